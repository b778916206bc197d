"""Hold exported graphs to the PyTorch network they came from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medals_export.arithmetic import Arithmetic
from medals_export.graph_plans import GraphPlan, graph_plans
from medals_export.model import MedalS
from medals_export.model.refiner import spread_prompts
from medals_export.torch_reference import graph_function
from medals_rt.bundle.manifest import FOLDED_REFINERS, GraphName, UnverifiedRecord, VerifiedRecord
from medals_rt.common.arrays import to_host
from medals_rt.common.choices import RunnerKind, StageNumber
from medals_rt.common.errors import ExportError
from medals_rt.runners.base import Runner
from medals_rt.runners.registry import runner_spec
from medals_rt.runners.selection import open_runner
from medals_rt.tools.verify import measures

PROMPT_COUNTS = (1, 3)
Floats = npt.NDArray[np.float32]
Feeds = dict[str, Floats]


@dataclass(frozen=True)
class ReferencePass:
    """One graph's inputs and what PyTorch makes of them, for one number of prompts."""

    prompt_count: int
    feeds: Feeds
    outputs: Feeds


@dataclass(frozen=True)
class GraphReference:
    """What one graph must give.

    `rounding_error` is how far the weights as stored move the outputs from those of the
    checkpoint's own weights, relative as in `relative_error`; 0 where they are the same.
    """

    passes: tuple[ReferencePass, ...]
    rounding_error: float


def relative_error(found: Sequence[Floats], expected: Sequence[Floats]) -> float:
    """Return the largest absolute difference over the largest absolute value, worst of all arrays.

    Raises
    ------
    ExportError
        If shapes differ.
    """
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            raise ExportError(f"shapes differ: {a.shape} and {b.shape}", code="shapes-differ")
        worst = max(worst, measures.relative_error(a, b))
    return worst


def reference_passes(
    network: MedalS, original: MedalS, embeddings: Floats, seed: int = 0
) -> dict[GraphName, GraphReference]:
    """Run on random inputs what every graph has to compute, by the network's own methods.

    Graphs with N free are run with 1 and with 3 prompts. A folded refiner is held to the plain one,
    with as many prompts as it is wide and with fewer, padded with zeros.

    Parameters
    ----------
    network
        With the weights that the graphs hold.
    original
        With the checkpoint's weights; the same object where they are the same.
    embeddings
        `(K, dim)` float32: queries are drawn from its rows.
    """
    references: dict[GraphName, GraphReference] = {}
    with torch.inference_mode():
        pool = _random_tensors(network, embeddings, seed)
        for plan in graph_plans(network):
            passes = []
            rounding_error = 0.0
            for count in _prompt_counts(plan):
                feeds = {
                    name: pool[name][:count] if name in plan.prompt_inputs else pool[name]
                    for name in plan.inputs
                }
                outputs = _run(graph_function(network, plan.name), feeds, plan.outputs)
                if network is not original:
                    exact = _run(graph_function(original, plan.name), feeds, plan.outputs)
                    error = relative_error(list(outputs.values()), list(exact.values()))
                    rounding_error = max(rounding_error, error)
                passes.append(ReferencePass(count, feeds, outputs))
            references[plan.name] = GraphReference(tuple(passes), rounding_error)
    return references


def _prompt_counts(plan: GraphPlan) -> tuple[int, ...]:
    """Numbers of prompts to try a graph with."""
    if plan.width is not None:
        fewer = min(PROMPT_COUNTS[-1], plan.width - 1)
        return (plan.width, fewer) if fewer else (plan.width,)
    return PROMPT_COUNTS if plan.prompt_inputs else (1,)


def _random_tensors(network: MedalS, embeddings: Floats, seed: int) -> Feeds:
    """Make up an input of each name, as large as real ones, prompts for the widest graph."""
    rng = np.random.default_rng(seed)
    window, count = network.config.window_hwd, max(FOLDED_REFINERS)
    image = rng.random((1, 1, *window), np.float32) * 255
    foreground = (rng.random((1, 1, *window), np.float32) > 0.5).astype(np.float32)
    queries = embeddings[rng.choice(len(embeddings), count, replace=count > len(embeddings))]
    prompts = (rng.random((count, *window), np.float32) > 0.5).astype(np.float32)
    features, tokens = network.encode(torch.from_numpy(image), torch.from_numpy(foreground))
    adapted = network.adapt(tokens, torch.from_numpy(queries))
    few = PROMPT_COUNTS[-1]
    prompt_features = spread_prompts(adapted[:, :few], torch.from_numpy(prompts[None, :few]))
    refined = network.fusion_conv(torch.cat([features, prompt_features], dim=1))
    return {
        "image": image,
        "foreground": foreground,
        "image_embedding": tokens[0].numpy(),
        "queries": queries,
        "features": features.numpy(),
        "adapted_queries": adapted[0].numpy(),
        "prompts": prompts,
        "prompt_features": prompt_features.numpy(),
        "refined": refined.numpy(),
    }


def verify_graph(
    path: Path,
    plan: GraphPlan,
    reference: GraphReference,
    stage: StageNumber,
    kinds: Sequence[RunnerKind],
) -> tuple[VerifiedRecord, ...]:
    """Compare an ONNX file with PyTorch in fp32, in each inference library given.

    The libraries compute on the CPU. Of a half-precision graph ONNX Runtime rounds to half where
    the graph says so, and OpenVINO computes everything in fp32 from the rounded weights. Libraries
    that can't compute the graph are passed over; see `unverified`.

    Raises
    ------
    ExportError
        If a relative error is above what the graph's arithmetic allows.
    """
    records = []
    tolerance = plan.arithmetic.tolerance
    for kind in kinds:
        if plan.arithmetic.precision not in runner_spec(kind).graph_precisions:
            continue
        runner = open_runner(kind, path, name=f"{plan.name} of stage {stage}", precision="fp32")
        errors = []
        for one in reference.passes:
            found = _graph_outputs(runner, plan, one)
            errors.append(relative_error(found, list(one.outputs.values())))
        record = VerifiedRecord(
            stage=stage,
            graph=plan.name,
            runner=kind,
            runner_version=runner.version,
            precision=runner.precision,
            prompt_counts=tuple(one.prompt_count for one in reference.passes),
            relative_error=_rounded(max(errors)),
            rounding_error=_rounded(reference.rounding_error),
            tolerance=tolerance,
        )
        runner.close()
        if record.relative_error > tolerance:
            raise ExportError(
                f"{plan.name} of stage {stage} does not compute what PyTorch does: relative error "
                f"{record.relative_error:.2g} in {kind} {record.runner_version}, allowed "
                f"{tolerance:.0e}",
                code="graph-differs",
            )
        records.append(record)
    return tuple(records)


def _rounded(error: float) -> float:
    return float(f"{error:.3g}")


def _run(function: Callable[..., tuple[Tensor, ...]], feeds: Feeds, names: Iterable[str]) -> Feeds:
    found = function(*(torch.from_numpy(value) for value in feeds.values()))
    return {name: tensor.numpy() for name, tensor in zip(names, found, strict=True)}


def unverified(arithmetic: Arithmetic, kinds: Sequence[RunnerKind]) -> tuple[UnverifiedRecord, ...]:
    """List which of the libraries given `verify_graph` passes over in an arithmetic, and why."""
    precision = arithmetic.precision
    return tuple(
        UnverifiedRecord(kind, f"{kind} can't compute graphs in {precision}")
        for kind in kinds
        if precision not in runner_spec(kind).graph_precisions
    )


def _graph_outputs(runner: Runner, plan: GraphPlan, one: ReferencePass) -> list[Floats]:
    """Run a graph on a reference's inputs; a folded one gets zeros for the prompts it lacks."""
    feeds = {}
    for name, value in one.feeds.items():
        missing = len(plan.inputs[name]) - len(value)
        padded = plan.width is not None and name in plan.prompt_inputs and missing
        widths = [(0, missing), *[(0, 0)] * (value.ndim - 1)]
        dtype = np.dtype(str(plan.inputs[name].dtype).removeprefix("torch."))
        feeds[name] = (np.pad(value, widths) if padded else value).astype(dtype, copy=False)
    found = runner.run(feeds)
    return [
        to_host(found[name])[: len(expected)].astype(np.float32)
        for name, expected in one.outputs.items()
    ]
