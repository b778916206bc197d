from pathlib import Path

import msgspec
import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError
from medals_rt.runners import selection
from medals_rt.tools.bench import backends
from medals_rt.tools.bench.backends import parse_backends, runners_for
from medals_rt.tools.bench.records import Backend, BenchReport, Question, StageWork, quantile
from tests.errors import raises
from tests.fakes import Fakes
from tests.paths import ROOT
from tests.runners.engine_bundles import build_fake_engines


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_quantile_is_numpys(share: float, count: int) -> None:
    values = list(np.random.default_rng(count).random(count))

    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), abs=1e-12)


def test_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_report_of_the_first_days_is_read_and_written_alike() -> None:
    stored = (ROOT / "tests/data/bench_report_2026_11_24.json").read_bytes()
    report = msgspec.json.decode(stored, type=BenchReport)
    assert report.standings[0].backend.runner == "openvino"
    assert msgspec.json.decode(msgspec.json.encode(report)) == msgspec.json.decode(stored)


def test_a_question_survives_json() -> None:
    question = Question(
        task="warm",
        backend=Backend("openvino", "bf16"),
        bundle="b",
        case="c.npz",
        prompts=None,
        checkpoints=("1.pth", "2.pth"),
        threads=2,
        repetitions=3,
        refinement="masked",
        class_counts=(1, 4),
        volume_factors=(1,),
    )

    assert msgspec.json.decode(msgspec.json.encode(question), type=Question) == question


def test_rate_is_arithmetic_over_seconds() -> None:
    stage = StageWork("fine", 1, 2, (8, 8, 8), (8, 8, 8), tflop=6.0, network_seconds=1.5)

    assert stage.tflop_per_second == 4.0


def test_backends_are_read_in_order_and_once() -> None:
    found = parse_backends(("onnxruntime", "openvino:fp32", "onnxruntime"), pytorch=True)

    assert found == (
        Backend("onnxruntime"),
        Backend("openvino", "fp32"),
        Backend("pytorch", "bf16"),
    )


def test_without_names_the_automatic_choice_comes_first(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medals_rt.common.gpu.find_gpu", lambda: None)
    for native, exact in ((("bf16", "fp32"), ("openvino:fp32",)), (("fp32",), ())):
        monkeypatch.setattr(backends, "precisions", lambda _, native=native: native)
        assert runners_for(tiny_bundle) == (("openvino", *exact, "onnxruntime"), ())


def test_runners_of_the_card_without_engines_are_left_out_and_told(
    fakes: Fakes, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "distribution", lambda name: name)  # onnxruntime-gpu
    monkeypatch.setattr(backends, "precisions", lambda _: ("bf16", "fp32"))
    everywhere = ("openvino", "openvino:fp32", "onnxruntime")
    names, left_out = runners_for(tiny_bundle)
    assert names == ("onnxruntime-cuda", "openvino:fp32", "openvino", "onnxruntime")
    told = "\n".join(left_out)
    assert "tensorrt is left out: there is no TensorRT engine for image_encoder of stage 1" in told
    if selection.installed("tensorrt-rtx"):
        assert "tensorrt-rtx is left out: TensorRT-RTX " in told
        assert "has no engines for SM90 GPUs" in told

    built = build_fake_engines(tmp_path / "built", tiny_bundle, fakes)
    names, left_out = runners_for(built)
    assert names[0] == "tensorrt"
    assert {*names[1:]} == {*everywhere, "onnxruntime-cuda"}
    assert not any(line.startswith("tensorrt is") for line in left_out)


@pytest.mark.usefixtures("fakes")
def test_a_runner_that_is_named_is_measured_whatever_it_lacks() -> None:
    assert parse_backends(("tensorrt",), pytorch=False) == (Backend("tensorrt"),)


def test_an_unknown_backend_is_refused() -> None:
    with raises(InputError, "runner-unknown", "caffe"):
        parse_backends(("caffe",), pytorch=False)
    with raises(InputError, "precision-unknown", "int4"):
        parse_backends(("pytorch:int4",), pytorch=False)
