"""Whole passes: the graphs that run on a window together, as the run time chains or joins them.

A library that optimizes across graphs computes something else than the graphs one by one, and what
it hands from one to the next need not be fp32: so both are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import FOLDED_REFINERS, GraphParity
from medals_rt.common.arrays import to_device, to_host
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.common.errors import MedalsError
from medals_rt.common.progress import Progress
from medals_rt.inference.network import Network, PassInput, StageNetwork
from medals_rt.inference.spatial_prompts import channel_prompts
from medals_rt.tools.verify.graphs import Tensors, graph_parity, made_up_inputs, tell
from medals_rt.tools.verify.measures import relative_error, rms_error
from medals_rt.tools.verify.references import Candidate, Reference

_BLOCK_SIZE = 4
_MANY = max(FOLDED_REFINERS) + 1


@dataclass(frozen=True)
class _Pass:
    """One run of the network: N, and whether there are spatial prompts."""

    name: str
    prompt_count: int
    prompted: bool


def compare_passes(
    bundle: Bundle,
    stage: StageNumber,
    reference: Reference,
    candidates: Sequence[Candidate],
    *,
    prompts_tried: int,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[Candidate, tuple[GraphParity, ...]]:
    """Compare the probabilities of one window: text only, prompted, and prompted with many classes.

    Many are more than the widest folded refiner takes; only the first `prompts_tried` of them are
    looked at.

    Raises
    ------
    MedalsError
        If the reference itself fails. A candidate that fails is recorded in its `GraphParity`.
    """
    passes = (
        _Pass("window, text only", prompts_tried, prompted=False),
        _Pass("window, prompted", prompts_tried, prompted=True),
        _Pass("window, many classes", _MANY, prompted=True),
    )
    tensors = made_up_inputs(bundle, stage, _MANY)
    label = f"{STAGE_NAMES[stage]} windows"
    total = len(passes) * (1 + len(candidates))
    tell(progress, label, 0, total)
    with reference.open_network(stage) as network:
        expected = [_probabilities(network, tensors, each, prompts_tried) for each in passes]
    found: dict[Candidate, tuple[GraphParity, ...]] = {}
    for index, candidate in enumerate(candidates, 1):
        tell(progress, label, index * len(passes), total)
        parities: list[GraphParity] = []
        try:
            with StageNetwork.open(
                bundle,
                stage,
                runner=candidate.kind,
                precision=candidate.precision,
                threads=threads,
            ) as network:
                for each, right in zip(passes, expected, strict=True):
                    ours = _probabilities(network, tensors, each, prompts_tried)
                    error, rms = relative_error(ours, right), rms_error(ours, right)
                    parities.append(graph_parity(each.name, (each.prompt_count,), error, rms=rms))
        except MedalsError as reason:
            parities += [
                graph_parity(each.name, (each.prompt_count,), None, fault=str(reason))
                for each in passes[len(parities) :]
            ]
        found[candidate] = tuple(parities)
    tell(progress, label, total, total)
    return found


def _probabilities(
    network: Network, tensors: Tensors, one: _Pass, wanted: int
) -> npt.NDArray[np.float32]:
    """Run one pass and return the probabilities `(wanted, H, W, D)` of the first classes."""
    device = network.array_device
    shown = to_device(tensors["prompts"][: one.prompt_count] > 0, device)
    given = PassInput(
        to_device(tensors["image"], device),
        to_device(tensors["queries"][: one.prompt_count], device),
        channel_prompts(shown, _BLOCK_SIZE) if one.prompted else None,
        classes=slice(0, min(wanted, one.prompt_count)),
    )
    parts = network.predict(given)
    return np.concatenate([to_host(probabilities) for _, probabilities in parts])
