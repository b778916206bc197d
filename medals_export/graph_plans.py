"""Which graphs a stage is exported as, and what goes in and out of each.

The cuts follow what the run time reuses: one image encoding serves any number of query chunks, a
window without prompts takes a refiner of half the cost, one with few prompts a folded refiner, and
class chunks of one window share what the fusion gives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from medals_export.arithmetic import FP32, Arithmetic, half_network
from medals_export.graph_modules import (
    ClassifierGraph,
    FoldedRefinerGraph,
    FusionGraph,
    ImageEncoderGraph,
    QueryDecoderGraph,
    RefinerGraph,
    TextOnlyFusionGraph,
    TextOnlyRefinerGraph,
)
from medals_export.model import MedalS
from medals_rt.bundle.manifest import FOLDED_REFINERS, GRAPH_NAMES, HANDED_ON_TENSORS, GraphName

EXAMPLE_PROMPTS = 3  # neither 1 nor another dimension of a graph, so that tracing keeps it apart
_PROMPT_TENSORS = frozenset({"queries", "adapted_queries", "prompts"})


@dataclass(frozen=True)
class GraphPlan:
    """One graph to trace.

    Attributes
    ----------
    name
        As the manifest names it.
    module
        What is traced.
    inputs
        Example inputs by name; only shape and dtype count.
    outputs
        Shape and dtype of what it must give, by name, on the device "meta".
    arithmetic
        What it computes in.
    prompt_inputs
        Inputs whose first axis is the number of prompts; where there is one, so is the outputs'.
    width
        That number where it is fixed, as in folded refiners; None leaves it free, as N.
    ranges
        Of convolutions that are quantized, by the network's names: the largest absolute value of
        what they read. Not all of them are in this graph.
    """

    name: GraphName
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    arithmetic: Arithmetic
    prompt_inputs: frozenset[str]
    width: int | None = None
    ranges: Mapping[str, float] = field(default_factory=dict)


_Form = tuple[Callable[[MedalS, Arithmetic], nn.Module], tuple[str, ...], tuple[str, ...]]
_PROMPTED = ("features", "adapted_queries", "prompts")
# what makes a graph's module, what it takes, what it gives; folded refiners share one module
_FORMS: dict[GraphName, _Form] = {
    "image_encoder": (
        ImageEncoderGraph,
        ("image", "foreground"),
        ("features", "image_embedding"),
    ),
    "query_decoder": (
        lambda network, _: QueryDecoderGraph(network),
        ("image_embedding", "queries"),
        ("adapted_queries",),
    ),
    "refiner": (RefinerGraph, _PROMPTED, ("probabilities",)),
    "refiner_text_only": (
        TextOnlyRefinerGraph,
        ("features", "adapted_queries"),
        ("probabilities",),
    ),
    **dict.fromkeys(FOLDED_REFINERS.values(), (FoldedRefinerGraph, _PROMPTED, ("probabilities",))),
    "fusion": (FusionGraph, ("features", "prompt_features"), ("refined",)),
    "fusion_text_only": (TextOnlyFusionGraph, ("features",), ("refined",)),
    "classifier": (
        lambda _, arithmetic: ClassifierGraph(arithmetic),
        ("refined", "adapted_queries"),
        ("probabilities",),
    ),
}


def graph_plans(
    network: MedalS,
    arithmetic: Arithmetic = FP32,
    ranges: Mapping[str, float] | None = None,
) -> tuple[GraphPlan, ...]:
    """Return the graphs of a network in an arithmetic, ready to trace, in the manifest's order.

    The example inputs are uninitialized memory that is never read or written. `ranges` are those of
    the convolutions to quantize, see `GraphPlan`.

    Raises
    ------
    ExportError
        If the arithmetic can't hold the network's weights.
    """
    ranges = ranges or {}
    network = half_network(network, arithmetic, ranges)
    widths = {name: width for width, name in FOLDED_REFINERS.items()}
    modules: dict[Callable[[MedalS, Arithmetic], nn.Module], nn.Module] = {}
    plans = []
    for name in GRAPH_NAMES:
        make, inputs, outputs = _FORMS[name]
        if make not in modules:
            modules[make] = make(network, arithmetic).eval()
        plans.append(
            GraphPlan(
                name,
                modules[make],
                {each: _example(network, arithmetic, each, widths.get(name)) for each in inputs},
                {
                    each: _example(network, arithmetic, each, widths.get(name), "meta")
                    for each in outputs
                },
                arithmetic,
                frozenset(inputs) & _PROMPT_TENSORS,
                widths.get(name),
                ranges,
            )
        )
    return tuple(plans)


def _example(
    network: MedalS, arithmetic: Arithmetic, name: str, width: int | None, device: str = "cpu"
) -> Tensor:
    """Return a tensor of the shape and type that an input or output of this name has."""
    config = network.config
    window, channels, dim = config.window_hwd, config.channels, config.text_dim
    count = width or EXAMPLE_PROMPTS
    shape = {
        "image": (1, 1, *window),
        "foreground": (1, 1, *window),
        "features": (1, channels, *window),
        "prompt_features": (1, channels, *window),
        "refined": (1, channels, *window),
        "image_embedding": (int(np.prod(config.grid_hwd)), dim),
        "queries": (count, dim),
        "adapted_queries": (count, channels),
        "prompts": (count, *window),
        "probabilities": (count, *window),
    }[name]
    dtype = arithmetic.handed_on if name in HANDED_ON_TENSORS else torch.float32
    return torch.empty(shape, dtype=dtype, device=device)
