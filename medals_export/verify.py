"""Hold exported graphs to the PyTorch network they came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from medals_export.model import MedalS
from medals_export.onnx_graphs import GraphPlan, graph_plans
from medals_rt.errors import ExportError
from medals_rt.manifest import VerifiedRecord
from medals_rt.runners import RunnerKind, open_runner

FP32_TOLERANCE = 1e-4
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
    """Give the largest absolute difference over the largest absolute value, worst of all arrays.

    Raises
    ------
    ExportError
        If shapes differ.
    """
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            raise ExportError(f"shapes differ: {a.shape} and {b.shape}")
        scale = float(np.abs(b).max()) or 1.0
        error = float(np.abs(a - b).max()) / scale
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def reference_passes(
    network: MedalS, original: MedalS, embeddings: Floats, seed: int = 0
) -> dict[str, GraphReference]:
    """Run every graph's PyTorch form on random inputs, with 1 and with 3 prompts.

    Parameters
    ----------
    network
        With the weights that the graphs hold.
    original
        With the checkpoint's weights; the same object where they are the same.
    embeddings
        `(K, dim)` float32: queries are drawn from its rows.
    """
    rng = np.random.default_rng(seed)
    window = network.config.window_hwd
    image = rng.random((1, 1, *window), np.float32) * 255
    foreground = (rng.random((1, 1, *window), np.float32) > 0.5).astype(np.float32)
    with torch.inference_mode():
        features, tokens = (
            tensor.numpy()
            for tensor in network.encode(torch.from_numpy(image), torch.from_numpy(foreground))
        )
        pools: list[Feeds] = []
        for count in PROMPT_COUNTS:
            rows = rng.choice(len(embeddings), count, replace=count > len(embeddings))
            queries = np.ascontiguousarray(embeddings[rows])
            adapted = network.adapt(torch.from_numpy(tokens), torch.from_numpy(queries))
            prompts = (rng.random((count, *window), np.float32) > 0.5).astype(np.float32)
            pools.append(
                {
                    "image": image,
                    "foreground": foreground,
                    "image_embedding": tokens[0],
                    "queries": queries,
                    "features": features,
                    "adapted_queries": adapted[0].numpy(),
                    "prompts": prompts,
                }
            )
        return {
            plan.name: _reference(plan, plan_original, pools, same=network is original)
            for plan, plan_original in zip(graph_plans(network), graph_plans(original), strict=True)
        }


def verify_graph(
    path: Path,
    plan: GraphPlan,
    reference: GraphReference,
    stage: Literal[1, 2],
    kinds: Sequence[RunnerKind],
) -> tuple[VerifiedRecord, ...]:
    """Compare an ONNX file with PyTorch in each inference library given, in fp32.

    Raises
    ------
    ExportError
        If a relative error is above 1e-4.
    """
    records = []
    for kind in kinds:
        runner = open_runner(kind, path, name=f"{plan.name} of stage {stage}", precision="fp32")
        errors = []
        for one in reference.passes:
            found = runner.run(one.feeds)
            errors.append(
                relative_error(
                    [found[n] for n in plan.outputs], [one.outputs[n] for n in plan.outputs]
                )
            )
        record = VerifiedRecord(
            stage=stage,
            graph=plan.name,
            runner=kind,
            runner_version=runner.version,
            precision=runner.precision,
            prompt_counts=tuple(one.prompt_count for one in reference.passes),
            relative_error=_rounded(max(errors)),
            rounding_error=_rounded(reference.rounding_error),
            tolerance=FP32_TOLERANCE,
        )
        runner.close()
        if record.relative_error > FP32_TOLERANCE:
            raise ExportError(
                f"{plan.name} of stage {stage} does not compute what PyTorch does: relative error "
                f"{record.relative_error:.2g} in {kind} {record.runner_version}, allowed "
                f"{FP32_TOLERANCE:.0e}"
            )
        records.append(record)
    return tuple(records)


def _reference(
    plan: GraphPlan, original: GraphPlan, pools: Sequence[Feeds], *, same: bool
) -> GraphReference:
    """Run one graph's module on the inputs it takes; once only where N plays no part."""
    chosen = pools if plan.prompt_inputs else pools[:1]
    passes = []
    rounding_error = 0.0
    for pool in chosen:
        feeds = {name: pool[name] for name in plan.inputs}
        outputs = _run(plan, feeds)
        count = len(pool["queries"]) if plan.prompt_inputs else 1
        passes.append(ReferencePass(count, feeds, outputs))
        if not same:
            exact = _run(original, feeds)
            error = relative_error(list(outputs.values()), list(exact.values()))
            rounding_error = max(rounding_error, error)
    return GraphReference(tuple(passes), rounding_error)


def _rounded(error: float) -> float:
    return float(f"{error:.3g}")


def _run(plan: GraphPlan, feeds: Feeds) -> Feeds:
    found = plan.module(*(torch.from_numpy(feeds[name]) for name in plan.inputs))
    tensors = found if isinstance(found, tuple) else (found,)
    return {name: t.numpy() for name, t in zip(plan.outputs, tensors, strict=True)}
