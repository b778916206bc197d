"""Whole passes, cut and uncut: every chain of graphs that the network runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import ConvolutionChoice
from medals_rt.inference.network import PassInput, StageNetwork
from medals_rt.inference.spatial_prompts import label_prompts
from medals_rt.planning.sliding_window import plan_windows
from medals_rt.runners import openvino
from medals_rt.runners.winograd.choice import NOTHING, WHEREVER_POSSIBLE, ConvolutionRule
from tests.paths import ROOT

pytest.importorskip("llvmlite")


def predicted(
    convolution: ConvolutionChoice, count: int, *, prompted: bool, precision: str = "fp32"
):
    """Probabilities of a made-up window, and how the network says it was run."""
    rng = np.random.default_rng(5)
    bundle = Bundle.open(ROOT / "engines" / "demo", verify=False)
    with StageNetwork.open(
        bundle, 2, runner="openvino", precision=precision, convolution=convolution
    ) as network:
        window = network.spec.window_hwd
        image = rng.random((1, 1, *window), dtype=np.float32) * 255
        queries = rng.standard_normal((count, bundle.manifest.embeddings.dim), dtype=np.float32)
        labels = rng.integers(0, 2 * count, [size // 8 for size in window])
        for axis in range(3):
            labels = np.repeat(labels, 8, axis=axis)
        (prompts,) = label_prompts(
            labels.astype(np.uint16), plan_windows(window, window), range(1, count + 1), 8
        )
        found = network.predict(PassInput(image, queries, prompts if prompted else None))
        return np.concatenate([part for _, part in found]), network.info


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("count", [3, 20])
def test_a_cut_pass_is_an_uncut_one(count: int, *, prompted: bool) -> None:
    expected, direct = predicted("direct", count, prompted=prompted)
    found, winograd = predicted("winograd", count, prompted=prompted)
    assert (direct.convolution, winograd.convolution) == ("direct", "winograd")
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_it_opens_from_the_cache_and_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path))
    expected, _ = predicted("winograd", 3, prompted=False)
    again, _ = predicted("winograd", 3, prompted=False)
    np.testing.assert_array_equal(again, expected)
    files = sorted((tmp_path / "openvino").glob("*.blob"), key=lambda file: file.stat().st_size)
    assert len(files) > 3
    for file in files:
        file.write_bytes(b"damaged")
        found, info = predicted("winograd", 3, prompted=False)
        np.testing.assert_array_equal(found, expected)
        assert ["made again" in note for note in info.notes] == [True]
    for file in files:
        kept = bytearray(file.read_bytes())
        kept[len(kept) // 2] ^= 0xFF
        file.write_bytes(kept)
    found, info = predicted("winograd", 3, prompted=False)
    np.testing.assert_array_equal(found, expected)
    assert ["made again" in note for note in info.notes] == [True]


def test_auto_follows_the_rule_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    rules = {
        NOTHING: "direct",
        WHEREVER_POSSIBLE: "winograd",
        ConvolutionRule(((512, 1, True),)): "direct",
    }
    for rule, expected in rules.items():

        def rule_here(precision: str, processor: str, *, rule: Any = rule) -> ConvolutionRule:
            asked.append((precision, processor))
            return rule

        monkeypatch.setattr(openvino, "rule_here", rule_here)
        assert predicted("auto", 1, prompted=False)[1].convolution == expected
    assert {precision for precision, _ in asked} == {"fp32"}
    assert all(processor for _, processor in asked)


def test_without_llvmlite_auto_is_the_librarys_own_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino, "is_installed", lambda name: name != "llvmlite")
    _, info = predicted("auto", 1, prompted=False)
    assert info.convolution == "direct"
    assert any("llvmlite is not installed" in note for note in info.notes)
    expected = openvino.OPENVINO.expected_convolution
    assert expected is not None
    assert expected("auto", "fp32", 64, 10**9) == "direct"
    assert expected("winograd", "fp32", 64, 10**9) == "winograd"
    _, info = predicted("direct", 1, prompted=False)
    assert not info.notes
