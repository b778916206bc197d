"""`benchmarks/gpu_budget.py`: its arithmetic is the network's, its page is what it computes."""

import json
from math import prod
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="counts operations, which needs the extra 'export'")

from importlib import import_module

from torch.utils.flop_counter import FlopCounterMode

from medals_export.model import MedalS, ModelConfig
from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the benchmarks")


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("gpu_budget")


@pytest.mark.parametrize("window_hwd", [(192, 192, 192), (224, 224, 128)])
def test_operations_of_a_pass_are_those_that_pytorch_counts(
    budget: ModuleType, window_hwd: tuple[int, int, int]
) -> None:
    config = ModelConfig.released(window_hwd)
    with torch.device("meta"):
        model = MedalS(config)
        image = torch.empty((1, 1, *window_hwd))
        queries = torch.empty((budget.PROMPT_WIDTH, config.text_dim))
    with FlopCounterMode(display=False) as counter:
        model(image, image, queries)
    counted = sum(step.flop for step in budget.network_steps(config, prompted=False))
    assert counted == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_a_pass_with_prompts_reads_one_channel_more_a_prompt(budget: ModuleType) -> None:
    config = ModelConfig.released((192, 192, 192))
    text_only, prompted = (
        sum(step.flop for step in budget.network_steps(config, prompted=prompted))
        for prompted in (False, True)
    )
    folded = 2 * 27 * budget.PROMPT_WIDTH * config.channels * prod(config.window_hwd)
    assert prompted - text_only == folded


def test_a_step_takes_what_is_longest(budget: ModuleType) -> None:
    step = budget.Step("a step", flop=4.8e11, bytes=2.345e9, launches=10)
    assert step.device_s == pytest.approx(1e-3)
    assert step.seconds == step.device_s
    slow = budget.Step("another", bytes=2.345e9, launches=1000, synchronizations=1)
    assert (slow.bound, slow.seconds) == ("launches", pytest.approx(1000 * 12e-6 + 30e-6))


def test_the_page_is_what_is_computed(
    budget: ModuleType, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_budget.py", "--output", str(tmp_path / "found")])
    monkeypatch.setattr(budget, "today", lambda: json.loads(kept)["date"])
    kept = (FOLDER / "gpu_budget.json").read_text(encoding="utf-8")
    budget.main()
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    for name, seconds in json.loads(kept)["case"].items():
        assert found["case"][name] == pytest.approx(seconds)
    page = (tmp_path / "found.md").read_text(encoding="utf-8")
    assert page == (FOLDER / "gpu_budget.md").read_text(encoding="utf-8")
