"""The wording of what users are told most often, in one place; elsewhere codes are checked.

A line that is changed on purpose is changed here too.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.engines import Wanted, find_engine
from medals_rt.bundle.recipes import read_recipe, shipped_recipes
from medals_rt.common.atomic_io import prepare_output
from medals_rt.common.choices import RUNNER_KINDS
from medals_rt.common.errors import MedalsError
from medals_rt.io.registry import OUTPUT_ENDINGS, read_case
from medals_rt.io.volume import check_image, check_shape, check_spacing
from medals_rt.preprocessing.intensity import parse_window
from medals_rt.prompts.matching import find_class
from medals_rt.prompts.prompt_set import parse_prompts
from medals_rt.runners.base import check_convolution, check_precision
from medals_rt.runners.selection import choose
from tests.cli.helpers import Result, call

USAGE = {
    "run --input x --promt y": "there is no option --promt; did you mean --prompt? "
    "See `medals-rt run --help`",
    "run --input x --zzz": "there is no option --zzz; see `medals-rt run --help`",
    "--vresion": "there is no option --vresion; did you mean --version? See `medals-rt --help`",
    "rum": "no such command 'rum'; did you mean 'run'? See `medals-rt --help`",
    "nonsense": "no such command 'nonsense'; see `medals-rt --help`",
    "run": "missing option '--input'; see `medals-rt run --help`",
    "evaluate one": "missing argument 'GT'; see `medals-rt evaluate --help`",
    "run --input x --preset newest": "invalid value for '--preset': 'newest' is not one of "
    "'paper', 'release', 'native'; see `medals-rt run --help`",
    "run --input x --modality XR": "invalid value for '--modality': no modality 'XR'; choose from "
    "CT, MRI, US, PET, Microscopy; see `medals-rt run --help`",
    "run --input x --threads 0": "invalid value for '--threads': input should be greater than or "
    "equal to 1; see `medals-rt run --help`",
    **dict.fromkeys(
        ("run --prompt --input x", "run --prompt --input --input x"),
        "option '--prompt' lacks its value: '--input' follows it; see `medals-rt run --help`",
    ),
    "run --input x --statistics --quiet": "option '--statistics' lacks its value: '--quiet' "
    "follows it; see `medals-rt run --help`",
    "run --input x --report --quite": "option '--report' lacks its value: '--quite' follows it; "
    "see `medals-rt run --help`",
    "build": "missing option '--target'; choose from: tensorrt, tensorrt-rtx; see "
    "`medals-rt build --help`",
}

FORMATS = ", ".join(ending.removeprefix(".") for ending in OUTPUT_ENDINGS)

OPTIONS = {
    "plan": "give --input CASE, or all of --shape, --spacing and --classes",
    "plan --input x --shape 1,1,1": "--shape, --spacing, --classes and --stage describe a case "
    "that --input names; leave out one or the other",
    "plan --input x --max-memory much": "'much' is not an amount of memory; write it as 6GB, "
    "512MiB or 6e9",
    "prompts": 'give a sentence, such as "Liver in abdominal CT", or --list, or --groups',
    "verify --graphs-only --cases-only": "--graphs-only and --cases-only leave nothing to do; "
    "give one of them",
    "verify --layers --cases-only": "--layers narrows single graphs down, and --cases-only "
    "compares none; give one of them",
    "plan --shape 9,9,9 --spacing 1,1,1 --classes CT/Liver --prompt x": "--classes names what is "
    "asked for: leave out --prompts, --prompt, --lesion, --group and --all, or describe the case "
    "by --input",
    "bench --convolution --quick --input x": "--convolution measures layers of its own, on "
    "OpenVINO, and takes only --threads: leave out --input, --thorough/--quick",
    "verify --prompts x": "--prompts belongs to --case; give both",
    "bench --stage1 x": "eager PyTorch needs both checkpoints: --stage1 and --stage2",
    "batch x y --no-preview --prompts x --prompt y": "prompts come from --prompts or from "
    "--prompt, not both; leave out one of them",
    "batch x y --no-preview --format tiff": "there is no format 'tiff'; use same "
    f"or one of {FORMATS}",
}

FAILURES = {
    ZeroDivisionError("surprise"): "error: ZeroDivisionError: surprise; run again with --debug "
    "for a traceback",
    MemoryError("3 GiB"): "error: out of memory (3 GiB); `medals-rt plan` estimates how much a "
    "case needs",
    KeyboardInterrupt(): "interrupted; no unfinished file is left behind",
}

# Where there is a folder, it is empty but for the cases that `broken` writes.
REFUSED: dict[str, Callable[[Path], object]] = {
    # cases
    "there is no such file or folder: {folder}/none.npz; check the path": lambda folder: read_case(
        folder / "none.npz"
    ),
    "no-image.npz has no 'imgs' (it has 'spacing'); a case needs 'imgs' (D, H, W) and 'spacing'": (
        lambda folder: read_case(folder / "no-image.npz")
    ),
    "no-spacing.npz has no 'spacing' (it has 'imgs'); add the voxel size in mm, three numbers": (
        lambda folder: read_case(folder / "no-spacing.npz")
    ),
    "no-zip.npz isn't a readable .npz file (File is not a zip file)": lambda folder: read_case(
        folder / "no-zip.npz"
    ),
    "the image has 2 axes (3 x 4), as a single slice has; give one volume of three": lambda _: (
        check_image(np.zeros((3, 4)))
    ),
    "the image holds NaN or infinite values (slice 0 has 4); replace them by real intensities": (
        lambda _: check_image(np.full((2, 2, 2), np.nan))
    ),
    "the image has 8,000,000,000 voxels, more than the limit of 2,147,483,648; crop it or raise "
    "the limit": lambda _: check_shape((2000, 2000, 2000), max_voxels=2**31),
    "spacing is (0, 1, 1); each must be a positive number of millimeters": lambda _: check_spacing(
        (0, 1, 1)
    ),
    "spacing has 2 values, not 3; give the voxel size in mm along H, W, D": lambda _: check_spacing(
        (1, 1)
    ),
    # prompts
    'there is no prompt; give at least one, such as {{"1": "Spleen in abdominal CT", '
    '"instance_label": 0}}': lambda _: parse_prompts({}),
    "label '0' isn't a label value; use whole numbers from 1 to 65535 as keys": lambda _: (
        parse_prompts({"0": "Liver in CT"})
    ),
    "prompt 'liver' names no modality, nor does the file; name it with --modality (CT, MRI, US, "
    "PET, Microscopy), or in one sentence of the prompts, as in 'Spleen in abdominal CT'": (
        lambda _: find_class("liver", "anatomy")
    ),
    "prompt 'kidney on CT' doesn't say which side; ask for 'CT Right kidney' or 'CT Left kidney'": (
        lambda _: find_class("kidney on CT", "anatomy")
    ),
    "prompt 'both kidneys on CT' names both sides; a prompt names one class, give one for each "
    "side: 'CT Right kidney' or 'CT Left kidney'": lambda _: find_class(
        "both kidneys on CT", "anatomy"
    ),
    "prompt 'liver and spleen on CT' names several classes, 'CT Liver' and 'CT Spleen'; give each "
    "its own prompt": lambda _: find_class("liver and spleen on CT", "anatomy"),
    # what a run is asked for
    "no window is called 'liver'; choose from soft tissue, lung, brain, bone, or give WIDTH,LEVEL "
    "such as 400,40": lambda _: parse_window("liver"),
    "the window '0,40' needs a width above 0 and a level, both finite": lambda _: parse_window(
        "0,40"
    ),
    f"there is no runner 'torch'; use auto, {', '.join(RUNNER_KINDS)}": lambda _: choose("torch"),
    "unknown precision 'int4'; use fp32, fp16, bf16, int8 or fp8": lambda _: check_precision(
        "int4"
    ),
    "unknown convolution 'Direct'; use auto, direct or winograd": lambda _: check_convolution(
        "Direct"  # type: ignore[arg-type]
    ),
    "{folder} is a folder; give the name of a file to write": prepare_output,
    # bundles
    "{folder} is no bundle: there is no bundle.json in it": Bundle.open,
    "bundle {folder}/none does not exist; a bundle is a folder with a bundle.json": lambda folder: (
        Bundle.open(folder / "none")
    ),
    f"there is no recipe h200; those that come with medals-rt: {', '.join(shipped_recipes())}": (
        lambda _: read_recipe("h200")
    ),
    "there is no TensorRT engine for refiner in {folder}/none; run `medals-rt build --target "
    "tensorrt`": lambda folder: find_engine(
        folder / "none", Wanted("a" * 64, "tensorrt", "11.4.0", "SM90"), "refiner"
    ),
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    np.savez(tmp_path / "no-image.npz", spacing=np.ones(3))
    np.savez(tmp_path / "no-spacing.npz", imgs=np.ones((2, 3, 4)))
    (tmp_path / "no-zip.npz").write_bytes(b"no zip")
    return tmp_path


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(broken: Path, message: str) -> None:
    with pytest.raises(MedalsError) as caught:
        REFUSED[message](broken)
    assert str(caught.value) == message.format(folder=broken)


@pytest.mark.parametrize("words", USAGE | OPTIONS)
def test_wrong_words(words: str) -> None:
    result = call(*words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {(USAGE | OPTIONS)[words]}\n"


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_failures(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("medals_rt.pipeline.segmenter.Segmenter.segment", fail)
    assert run().stderr == f"{FAILURES[error]}\n"


def test_a_bundle_without_cases(tiny_bundle: Bundle) -> None:
    assert call("bench", "--bundle", tiny_bundle.folder).stderr == (
        f"error: bundle {tiny_bundle.folder} has no case of its own; name one with --input\n"
    )


def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.common.optional_deps.find_spec", lambda _: None)
    words = ("--stage1", "a.pth", "--stage2", "b.pth", "--bank", "c", "--out", tmp_path)
    assert call("export", *words).stderr == (
        "error: export needs PyTorch, ONNX, ONNX Script: pip install 'medals-rt[export]'\n"
    )
