"""What the convolutions of both networks read in real cases.

Cases go through the whole pipeline in PyTorch, in float32, twice: with masked refinement, and from
the text alone. So ranges are those of real windows, with and without prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medals_export.checkpoint import Checkpoint
from medals_export.model import MedalS
from medals_export.quantization.layers import candidates, inputs_watched
from medals_export.quantization.ranges import Magnitudes
from medals_export.torch_reference import TorchRunner
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import STAGE_NAMES, Refinement, StageNumber
from medals_rt.common.progress import Progress
from medals_rt.common.typing import Array
from medals_rt.inference.graph_chains import SingleGraphs
from medals_rt.inference.network import PassInput, StageNetwork
from medals_rt.inference.refinement import seeded_masks
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.tools.verify.cases import ParityCase

_PASSES_KEPT = 4
"""Of each stage, for `sensitivity`: each costs a pass a layer."""

_REFINEMENTS: tuple[Refinement, ...] = ("masked", "none")


@dataclass(frozen=True, eq=False)
class RecordedPass:
    """What a pass saw.

    Attributes
    ----------
    image, queries
        `(1, 1, H, W, D)` and `(N, dim)`, float32.
    prompts
        `(N, H, W, D)` bool; None for a pass from the text alone.
    """

    image: Tensor
    queries: Tensor
    prompts: Tensor | None

    def probabilities(self, network: MedalS) -> Tensor:
        """Run a network on it: `(N, H, W, D)` float32."""
        prompts = None if self.prompts is None else self.prompts.float()
        shown = torch.zeros_like(self.image)
        if prompts is not None:
            shown[0, 0] = prompts.amax(dim=0)
        with torch.inference_mode():
            features, tokens = network.encode(self.image, shown)
            adapted = network.adapt(tokens, self.queries)
            logits = network.refine(features, adapted, None if prompts is None else prompts[None])
        return logits[0].sigmoid()


@dataclass
class RecordedStage:
    """What was seen of a stage: by layer how large its input is, and some passes, by chance."""

    magnitudes: dict[str, Magnitudes]
    passes: list[RecordedPass] = field(default_factory=list)
    seen: int = 0

    def add(self, layer: str, values: Tensor) -> None:
        """Count what a layer reads."""
        self.magnitudes[layer].add(values)

    def keep(self, one: RecordedPass, chance: np.random.Generator) -> None:
        """Keep a pass, or not, so that each that was seen is kept with the same probability."""
        self.seen += 1
        place = len(self.passes)
        if place >= _PASSES_KEPT:
            place = int(chance.integers(self.seen))
        if place < _PASSES_KEPT:
            self.passes[place : place + 1] = [one]


class _RecordingNetwork(StageNetwork):
    """A stage in PyTorch that records what its passes see."""

    def __init__(self, bundle: Bundle, stage: StageNumber, network: MedalS) -> None:
        graphs = SingleGraphs(lambda name: TorchRunner(bundle, stage, name, network))
        super().__init__(bundle.stage_spec(stage), graphs, "the calibration")
        self.record = RecordedStage({layer: Magnitudes() for layer in candidates(network)})
        self._chance = np.random.default_rng(stage)

    def predict(self, one: PassInput) -> Iterator[tuple[slice, Array]]:
        """Run a pass, and record it."""
        shown = None
        if one.prompts is not None:
            shown = torch.from_numpy(one.prompts.channels(one.count) > 0)
        recorded = RecordedPass(torch.tensor(one.image), torch.tensor(one.queries), shown)
        self.record.keep(recorded, self._chance)
        return super().predict(one)


def record_cases(
    bundle: Bundle,
    checkpoints: Mapping[StageNumber, Checkpoint],
    cases: Sequence[ParityCase],
    progress: Progress,
) -> dict[StageNumber, RecordedStage]:
    """Segment cases with the checkpoints' networks and record what these see.

    Parameters
    ----------
    bundle
        Any that was exported from the checkpoints: it has the text embeddings.
    """
    total = len(cases) * len(_REFINEMENTS)
    with ExitStack() as stack:
        networks = {}
        for stage in STAGE_NAMES:
            network = checkpoints[stage].model
            networks[stage] = _RecordingNetwork(bundle, stage, network)
            record = networks[stage].record
            stack.enter_context(inputs_watched(network, tuple(record.magnitudes), record.add))
        segmenter = stack.enter_context(Segmenter(bundle, networks))
        for number, (case, refinement) in enumerate(
            (case, refinement) for case in cases for refinement in _REFINEMENTS
        ):
            progress("calibration", number, total)
            options = SegmentOptions(refinement=refinement, masks=seeded_masks(0, case.name))
            segmenter.segment(case.volume, case.prompts, options)
    progress("calibration", total, total)
    return {stage: network.record for stage, network in networks.items()}
