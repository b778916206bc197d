"""The wording of what the command line itself says, in one place; elsewhere codes are checked.

A line that is changed on purpose is changed here too.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.registry import OUTPUT_ENDINGS
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
    "run --input x --threads 0": "invalid value for '--threads': input should be greater than or "
    "equal to 1; see `medals-rt run --help`",
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
    "prompts": 'give either a sentence, such as "Liver in abdominal CT", or --list',
    "verify --graphs-only --cases-only": "--graphs-only and --cases-only leave nothing to do; "
    "give one of them",
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
