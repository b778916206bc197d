"""Which convolutions are Winograd's follows from measurements: shipped ones, and the user's own."""

from pathlib import Path

import msgspec
import pytest

from medals_rt.runners.winograd import choice
from medals_rt.runners.winograd.choice import (
    NOTHING,
    SHIPPED,
    WHEREVER_POSSIBLE,
    ConvolutionRule,
    Timing,
    instruction_set,
    keep,
    own_file,
    rule_here,
)


def timing(channels: int, voxels: int, ratio: float, **more: str) -> Timing:
    kept = {"processor": "mine", "precision": "fp32", **more}
    return Timing(kept["processor"], kept["precision"], channels, voxels, ratio, 1.0)


def test_what_lies_between_measurements_is_as_the_next_smaller_one() -> None:
    rule = ConvolutionRule(
        ((16, 1000, False), (16, 8000, True), (64, 1000, True), (64, 8000, False))
    )
    assert rule(64, 999) is False
    assert rule(16, 7999) is False
    assert rule(63, 10**6) is True
    assert rule(64, 1000) is True
    assert rule(128, 10**6) is False
    assert not rule.never


def test_asked_for_it_is_taken_for_all_but_small_volumes() -> None:
    assert WHEREVER_POSSIBLE(16, 32**3)
    assert not WHEREVER_POSSIBLE(512, 31**3)
    assert NOTHING.never
    assert not NOTHING(512, 10**9)


def test_ones_own_measurements_come_before_those_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "instruction_set", lambda _: "wide")
    shipped = tmp_path / "shipped.json"
    shipped.write_bytes(choice.to_json([timing(16, 1000, 3, processor="wide")]))
    monkeypatch.setattr(choice, "SHIPPED", shipped)
    assert rule_here("fp32", "mine")(16, 1000)
    assert rule_here("bf16", "mine").never
    file = keep([timing(16, 1000, 1.05), timing(32, 1000, 1.2)])
    assert file == own_file()
    rule = rule_here("fp32", "mine")
    assert (rule(16, 1000), rule(32, 1000)) == (False, True)
    assert rule_here("fp32", "another")(16, 1000)
    keep([timing(32, 1000, 0.5)])
    assert rule_here("fp32", "mine").never
    keep([timing(32, 1000, 2, processor="another")])
    assert rule_here("fp32", "mine").never
    assert file is not None
    file.write_bytes(b"damaged")
    assert rule_here("fp32", "mine")(16, 1000)


def test_the_shipped_measurements_are_complete() -> None:
    found = msgspec.json.decode(SHIPPED.read_bytes(), type=list[Timing])
    assert {each.processor for each in found} <= {"avx512_bf16", "avx512", "avx2"}
    for each in found:
        assert each.measured
        assert each.direct_seconds > 0
        assert each.winograd_seconds > 0
    # a full-size window on what was measured: worth its while in both precisions
    large = [each for each in found if each.channels == 64 and each.voxels >= 96**3]
    assert {(each.processor, each.precision) for each in large if each.pays} >= {
        ("avx512_bf16", "bf16"),
        ("avx512", "fp32"),
    }


@pytest.mark.parametrize(
    ("features", "fp32", "bf16"),
    [
        ({"avx2": True}, "avx2", "other"),
        ({"avx2": True, "avx512f": True}, "avx512", "other"),
        ({"avx2": True, "avx512f": True, "avx512bf16": True}, "avx512", "avx512_bf16"),
        ({"avx512f": True, "avx512bf16": True, "amx-bf16": True}, "avx512", "amx_bf16"),
        ({"neon": True}, "other", "other"),
    ],
)
def test_instruction_sets(
    features: dict[str, bool], fp32: str, bf16: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "processor_features", lambda: features)
    assert (instruction_set("fp32"), instruction_set("bf16")) == (fp32, bf16)


def test_the_librarys_switch_holds_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    hidden = choice.processor_features()
    assert not any(on for name, on in hidden.items() if name.startswith(("avx512", "amx")))
    assert instruction_set("bf16") == "other"
