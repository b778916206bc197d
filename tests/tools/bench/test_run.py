import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medals_export.checkpoint import save_checkpoint
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.common.errors import InputError
from medals_rt.io.registry import read_case
from medals_rt.prompts.classes import by_bank_key
from medals_rt.prompts.prompt_set import read_prompts
from medals_rt.tools.bench import roofline
from medals_rt.tools.bench.records import Backend, Question
from medals_rt.tools.bench.run import BASELINE, BenchRequest, _tasks, run_bench
from medals_rt.tools.bench.scaling import scaling_with_classes, scaling_with_volume
from medals_rt.tools.bench.target import open_target
from medals_rt.tools.bench.worker import stage_number
from tests.bundles import TINY_SPACINGS_HWD_MM, tiny_checkpoint
from tests.errors import raises


def test_stages_of_a_case_in_several_windows_have_their_numbers() -> None:
    names = {"coarse": 1, "fine": 2, "lung: coarse": 1, "soft tissue: fine": 2, "lesions: fine": 2}
    assert {name: stage_number(name) for name in names} == names


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    image = np.random.default_rng(1).integers(0, 256, (12, 30, 26), dtype=np.uint8)
    np.savez(folder / "noise.npz", imgs=image, spacing=np.array([4.0, 4.0, 6.0]))
    names = [by_bank_key(f"CT/anatomy/{i}").name for i in (1, 2)]
    prompts = {"1": f"{names[0]} in CT", "2": f"{names[1]} in CT", "instance_label": 0}
    (folder / "noise.prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return folder / "noise.npz"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for stage in (1, 2):
        model = tiny_checkpoint(stage).model
        save_checkpoint(folder / f"{stage}.pth", model, TINY_SPACINGS_HWD_MM[stage])
    return folder / "1.pth", folder / "2.pth"


def question(bundle: Bundle, case: Path, backend: Backend, **more: object) -> Question:
    return Question(
        task="warm",
        backend=backend,
        bundle=str(bundle.folder),
        case=str(case),
        prompts=str(case.with_name("noise.prompts.json")),
        threads=1,
        repetitions=1,
        refinement="masked",
        class_counts=(1, 5, 40),
        volume_factors=(1, 2),
        **{"checkpoints": None, **more},
    )


@pytest.mark.parametrize(
    "beside", [(), pytest.param((BASELINE,), marks=pytest.mark.slow, id="PyTorch")]
)
def test_runners_are_measured_and_one_that_fails_is_told(
    tiny_bundle: Bundle, case: Path, checkpoints: tuple[Path, Path], beside: tuple[Backend, ...]
) -> None:
    request = BenchRequest(
        bundle=tiny_bundle.folder,
        case=case,
        prompts=case.with_name("noise.prompts.json"),
        backends=(Backend("onnxruntime"), Backend("onnxruntime", "bf16"), *beside),
        checkpoints=checkpoints if beside else None,
        repetitions=2,
        thorough=False,
    )
    steps: list[tuple[str, int, int]] = []

    report = run_bench(request, lambda *step: steps.append(step))

    exact, wrong, *baselines = report.standings
    assert exact.cold is not None
    assert exact.warm is not None
    assert len(exact.cold.runs) == 1
    assert len(exact.warm.runs) == 2
    assert {stage.name for stage in exact.warm.stages} == {"coarse", "fine"}
    assert all(stage.tflop for stage in exact.warm.stages)
    assert wrong.failure is not None
    assert "bf16" in wrong.failure
    assert len(baselines) == len(beside)
    for baseline in baselines:
        assert baseline.warm is not None
        assert baseline.warm.version.startswith("2.")
        assert report.baseline == "pytorch bf16"
    assert report.finished == (exact, *baselines)
    assert [step[1] for step in steps] == sorted(step[1] for step in steps)
    assert steps[-1][1] == steps[-1][2]


def test_eager_pytorch_gives_the_same_labels(
    tiny_bundle: Bundle, case: Path, checkpoints: tuple[Path, Path]
) -> None:
    """What a speed is compared with has to do the same work."""
    asked = question(
        tiny_bundle, case, Backend("pytorch", "fp32"), checkpoints=tuple(map(str, checkpoints))
    )
    ours = question(tiny_bundle, case, Backend("onnxruntime"))
    prompts = read_prompts(case.with_name("noise.prompts.json"))
    labels = []
    for each in (asked, ours):
        with open_target(each) as target:
            result = target.segmenter.segment(read_case(case).volume, prompts)
            labels.append(result.labels_dhw)

    assert np.mean(labels[0] == labels[1]) > 0.999


def test_scaling_gives_a_figure_a_size(tiny_bundle: Bundle, case: Path) -> None:
    asked = question(tiny_bundle, case, Backend("onnxruntime"))
    prompts = read_prompts(case.with_name("noise.prompts.json"))
    with open_target(asked) as target:
        by_class = scaling_with_classes(target, asked)
        by_volume = scaling_with_volume(target, asked, read_case(case), prompts)

    assert [each.size for each in by_class] == [1, 5, 40]
    assert all(each.prompted_seconds for each in by_class)
    assert [each.size for each in by_volume] == [12 * 30 * 26, 2 * 12 * 30 * 26]


def test_a_machine_has_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_EDGE": 16, "_MATRIX": 128}.items():
        monkeypatch.setattr(roofline, name, value)

    found = roofline.measure_roofline("onnxruntime", None, 2)

    assert 0 < found.matrix_tflop_per_second < 100
    assert 0 < found.convolution_tflop_per_second < 100


def test_runners_of_engines_have_no_roofline(tmp_path: Path) -> None:
    """The roofline are ONNX graphs made for it, and in no bundle."""
    for runner, has_roofline in {
        "tensorrt": False,
        "tensorrt-rtx": False,
        "openvino": True,
    }.items():
        backend = Backend(runner)
        request = BenchRequest(tmp_path, tmp_path, None, (backend,))
        assert ("roofline" in _tasks(request, backend)) == has_roofline
        assert "volumes" in _tasks(request, backend)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"backends": ()}, "nothing-to-measure"),
        ({"repetitions": 0}, "repetitions-not-positive"),
        ({"backends": (BASELINE,)}, "checkpoint-missing"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    tiny_bundle: Bundle, case: Path, change: dict[str, object], code: str
) -> None:
    options = {"backends": (Backend("onnxruntime"),), **change}
    with raises(InputError, code):
        run_bench(BenchRequest(tiny_bundle.folder, case, None, **options))


def test_the_command_tells_what_it_leaves_out(
    tiny_bundle: Bundle, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --runner; a runner that is named is asked for whatever it lacks."""
    asked: list[BenchRequest] = []

    def refuse(request: BenchRequest, progress: object) -> None:  # noqa: ARG001
        asked.append(request)
        raise InputError("measured elsewhere")

    monkeypatch.setattr("medals_rt.tools.bench.run.run_bench", refuse)
    monkeypatch.setattr(
        "medals_rt.tools.bench.backends.runners_for",
        lambda bundle: (("openvino",), (f"tensorrt is left out: not for {bundle.name}",)),
    )
    command = ["bench", "--bundle", str(tiny_bundle.folder), "--input", str(case)]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path)])
    assert "tensorrt is left out: not for tiny\n" in done.stderr
    named = CliRunner().invoke(app, [*command, "--runner", "onnxruntime"])
    assert "left out" not in named.stderr
    assert [each.backends[0].runner for each in asked] == ["openvino", "onnxruntime"]
    assert [len(each.left_out) for each in asked] == [1, 0]


def test_the_command_refuses_half_a_pair_of_checkpoints() -> None:
    command = [sys.executable, "-m", "medals_rt", "bench", "--stage1", "a.pth"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "both checkpoints" in done.stderr
