"""Graph by graph: every candidate on the inputs and against the outputs of the reference.

One graph is open at a time, and what it gave is freed before the next: at the released windows one
array of features alone is 1.8 GB.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import (
    FOLDED_REFINERS,
    GRAPH_NAMES,
    GraphName,
    GraphParity,
    GraphRecord,
)
from medals_rt.common.arrays import to_device, to_host
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.common.errors import MedalsError
from medals_rt.common.progress import Progress
from medals_rt.common.typing import Array
from medals_rt.runners.base import Runner
from medals_rt.tools.verify.measures import relative_error
from medals_rt.tools.verify.references import Candidate, Reference, open_candidate

Tensors = dict[str, npt.NDArray[np.float32]]

PROMPTS_TRIED = 3
_PROMPT_TENSORS = frozenset({"queries", "adapted_queries", "prompts"})
_FOLDED_WIDTHS = {name: width for width, name in FOLDED_REFINERS.items()}
_SMALL_TENSORS = frozenset({"adapted_queries", "prompts"})
_BLOCK_VOXELS = 4
_SIGNIFICANT_DIGITS = 3


def compare_graphs(
    bundle: Bundle,
    stage: StageNumber,
    reference: Reference,
    candidates: Sequence[Candidate],
    *,
    prompts_tried: int = PROMPTS_TRIED,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[Candidate, tuple[GraphParity, ...]]:
    """Compare all graphs of a stage.

    The image encoder's outputs in the reference are the inputs of the graphs after it, and so on.
    Graphs with N free are run with 1 and with `prompts_tried` prompts; a folded refiner is held to
    the reference's plain one, zeros standing for the prompts that it has room for.

    Raises
    ------
    MedalsError
        If the reference itself fails. A candidate that fails is recorded in its `GraphParity`.
    """
    tensors = made_up_inputs(bundle, stage, prompts_tried)
    graphs = {name: bundle.graph(stage, name) for name in GRAPH_NAMES}
    found: dict[Candidate, list[GraphParity]] = {candidate: [] for candidate in candidates}
    label = f"{STAGE_NAMES[stage]} graphs"
    total = len(graphs) * (1 + len(candidates))
    done = iter(range(total + 1))
    for index, (name, record) in enumerate(graphs.items()):
        tell(progress, label, next(done), total)
        if any(each.name == "prompt_features" for each in record.inputs):
            tensors["prompt_features"] = _spread_prompts(tensors)
        counts = _prompt_counts(name, record, prompts_tried)
        feeds = [_cut(record, tensors, count) for count in counts]
        form: GraphName = "refiner" if name in _FOLDED_WIDTHS else name
        with closing(reference.open_graph(stage, form)) as runner:
            expected = [run_graph(runner, each) for each in feeds]
        for candidate in candidates:
            tell(progress, label, next(done), total)
            error, fault = None, None
            try:
                with closing(open_candidate(bundle, stage, name, candidate, threads)) as runner:
                    error = _worst_error(runner, feeds, expected)
            except MedalsError as reason:
                fault = str(reason)
            found[candidate].append(graph_parity(name, counts, error, fault=fault))
        tensors |= expected[-1]
        later = list(graphs.values())[index + 1 :]
        needed = {tensor.name for graph in later for tensor in graph.inputs} | _SMALL_TENSORS
        tensors = {key: value for key, value in tensors.items() if key in needed}
        del feeds, expected
    tell(progress, label, total, total)
    return {candidate: tuple(parities) for candidate, parities in found.items()}


def made_up_inputs(bundle: Bundle, stage: StageNumber, prompts: int, seed: int = 0) -> Tensors:
    """Make up what a stage's first graphs take: blocks with noise on them, and their prompts.

    Queries are drawn from the bundle's own embeddings.

    Returns
    -------
    Tensors
        `image` and `foreground (1, 1, H, W, D)`, `queries (N, dim)`, `prompts (N, H, W, D)`, all
        float32.
    """
    rng = np.random.default_rng(seed)
    window = bundle.stage_spec(stage).window_hwd
    blocks = tuple(-(-size // _BLOCK_VOXELS) for size in window)
    spread = np.ix_(*(np.arange(size) // _BLOCK_VOXELS for size in window))

    def noise(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        values = np.empty(shape, np.float32)
        rng.random(out=values, dtype=np.float32)
        return values

    image = noise(window)
    image *= 55
    image += 200 * noise(blocks)[spread]
    shown = np.stack([noise(blocks)[spread] > 0.7 for _ in range(prompts)]).astype(np.float32)
    bank = bundle.class_embeddings
    return {
        "image": image[None, None],
        "foreground": shown.max(axis=0, keepdims=True)[None],
        "queries": bank[rng.choice(len(bank), prompts, replace=prompts > len(bank))],
        "prompts": shown,
    }


def inputs_of_graph(
    bundle: Bundle,
    stage: StageNumber,
    graph: GraphName,
    reference: Reference,
    prompts: int = PROMPTS_TRIED,
) -> Tensors:
    """Return what `compare_graphs` runs a graph on last, computed by the reference.

    Raises
    ------
    MedalsError
        If the reference fails.
    """
    tensors = made_up_inputs(bundle, stage, prompts)
    makers = {
        output.name: name for name in GRAPH_NAMES for output in bundle.graph(stage, name).outputs
    }

    def provide(name: str) -> None:
        if name in tensors:
            return
        if name == "prompt_features":
            provide("adapted_queries")
            tensors[name] = _spread_prompts(tensors)
            return
        record = bundle.graph(stage, makers[name])
        for each in record.inputs:
            provide(each.name)
        with closing(reference.open_graph(stage, makers[name])) as runner:
            tensors.update(run_graph(runner, _cut(record, tensors, prompts)))

    record = bundle.graph(stage, graph)
    for each in record.inputs:
        provide(each.name)
    return _cut(record, tensors, _prompt_counts(graph, record, prompts)[-1])


def _spread_prompts(tensors: Tensors) -> npt.NDArray[np.float32]:
    """`F_a = T^T S_p (1, C, H, W, D)`."""
    adapted, prompts = tensors["adapted_queries"], tensors["prompts"]
    spread = adapted.T @ prompts.reshape(len(prompts), -1)
    return spread.reshape(1, -1, *prompts.shape[1:])


def _prompt_counts(name: GraphName, record: GraphRecord, prompts_tried: int) -> tuple[int, ...]:
    """Numbers of prompts to try a graph with; 1 where it takes none."""
    if name in _FOLDED_WIDTHS:
        return (min(prompts_tried, _FOLDED_WIDTHS[name]),)
    free = any(isinstance(axis, str) for tensor in record.inputs for axis in tensor.shape)
    return tuple(dict.fromkeys((1, prompts_tried))) if free else (1,)


def _cut(record: GraphRecord, tensors: Tensors, count: int) -> Tensors:
    """Take a graph's inputs, of prompts the first `count`."""
    return {
        each.name: tensors[each.name][:count]
        if each.name in _PROMPT_TENSORS
        else tensors[each.name]
        for each in record.inputs
    }


def run_graph(runner: Runner, feeds: Tensors) -> dict[str, npt.NDArray[Any]]:
    """Run a graph on its device, in its dtypes; prompts that it has room for are zeros."""
    given: dict[str, Array] = {}
    lacking = 0
    for spec in runner.inputs:
        value = feeds[spec.name].astype(spec.dtype, copy=False)
        width = spec.shape[0]
        if spec.name in _PROMPT_TENSORS and isinstance(width, int):
            lacking = width - len(value)
            value = np.pad(value, [(0, lacking), *[(0, 0)] * (value.ndim - 1)])
        given[spec.name] = to_device(np.ascontiguousarray(value), runner.device)
    outputs = {name: to_host(value) for name, value in runner.run(given).items()}
    return {name: value[: len(value) - lacking] for name, value in outputs.items()}


def _worst_error(
    runner: Runner, feeds: Sequence[Tensors], expected: Sequence[dict[str, npt.NDArray[Any]]]
) -> float:
    """Return the largest relative error over all passes and outputs."""
    worst = 0.0
    for each, outputs in zip(feeds, expected, strict=True):
        found = run_graph(runner, each)
        for name, value in outputs.items():
            worst = max(worst, relative_error(found[name], value))
    return worst


def graph_parity(
    name: str,
    counts: tuple[int, ...],
    error: float | None,
    *,
    rms: float | None = None,
    fault: str | None = None,
) -> GraphParity:
    """Make the record of a comparison; an error that is not finite becomes a fault."""
    if error is None or not math.isfinite(error):
        return GraphParity(name, counts, None, fault=fault or "an output is not finite")
    return GraphParity(name, counts, _rounded(error), None if rms is None else _rounded(rms))


def _rounded(error: float) -> float:
    return float(f"{error:.{_SIGNIFICANT_DIGITS}g}")


def tell(progress: Progress | None, label: str, done: int, total: int) -> None:
    """Report a step, if anyone listens."""
    if progress is not None:
        progress(label, done, total)
