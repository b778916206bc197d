"""What is remembered of measured passes."""

from pathlib import Path

import pytest

from medals_rt.planning import pass_timings
from medals_rt.planning.pass_timings import MeasuredPasses


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_recorded_last_is_recalled() -> None:
    assert pass_timings.recall("abc") is None
    assert pass_timings.record("abc", MeasuredPasses("openvino/bf16", {1: 0.5, 2: 2.0}))
    assert pass_timings.record("abc", MeasuredPasses("onnxruntime/fp32", {1: 3.0}))
    assert pass_timings.record("other", MeasuredPasses("openvino/bf16", {1: 9.0}))
    assert pass_timings.recall("abc") == MeasuredPasses("onnxruntime/fp32", {1: 3.0})
    assert pass_timings.record("abc", MeasuredPasses("openvino/bf16", {2: 2.5}))
    assert pass_timings.recall("abc") == MeasuredPasses("openvino/bf16", {1: 0.5, 2: 2.5})
    assert pass_timings.recall("abc", "onnxruntime/fp32").seconds_per_pass == {1: 3.0}
    assert pass_timings.recall("abc", "tensorrt/fp16") is None


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"abc/x": 3}', '{"abc/x": {"1": "a"}}', '{"abc/x": {"9": 1}}']
)
def test_a_damaged_memory_is_none(own_cache: Path, content: str) -> None:
    own_cache.mkdir()
    (own_cache / "measured_passes.json").write_text(content, encoding="utf-8")
    found = pass_timings.recall("abc")
    assert found is None or found.seconds_per_pass == {}
    assert pass_timings.record("abc", MeasuredPasses("x", {1: 1.0}))
    assert pass_timings.recall("abc").seconds_per_pass == {1: 1.0}


def test_the_memory_stays_small() -> None:
    for k in range(80):
        pass_timings.record(f"bundle{k}", MeasuredPasses("x", {1: 1.0}))
    assert pass_timings.recall("bundle0") is None
    assert pass_timings.recall("bundle79") is not None


def test_an_unwritable_place_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "file" / "below"))
    assert not pass_timings.record("abc", MeasuredPasses("x", {1: 1.0}))
    assert pass_timings.recall("abc") is None
