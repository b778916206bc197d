"""What decides the cost of running a model: read from a bundle, or that of the released size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.choices import STAGE_NAMES, Convolution
from medals_rt.common.errors import BundleError

VALUE_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 4, "fp8": 4}
"""Bytes of a value between two layers, by the precision of the network."""


@dataclass(frozen=True)
class ModelFacts:
    """What decides the cost of running a model.

    Attributes
    ----------
    stages
        Windows and spacings of both.
    channels
        C, of the feature map.
    weights
        Of both networks together, how many numbers.
    runner, precision, convolution
        Inference library, arithmetic, and how it convolves.
    """

    stages: tuple[StageSpec, StageSpec]
    channels: int
    weights: int
    runner: str
    precision: str
    convolution: Convolution


RELEASED: Final = ModelFacts(
    stages=(
        StageSpec(1, (224, 224, 128), (1.5, 1.5, 3.0)),
        StageSpec(2, (192, 192, 192), (1.0, 1.0, 1.0)),
    ),
    channels=64,
    weights=218_720_000,
    runner="openvino",
    precision="bf16",
    convolution="direct",
)
"""The released models."""


def facts_of(
    bundle: Bundle, runner: str, precision: str, convolution: Convolution = "direct"
) -> ModelFacts:
    """Read what decides the cost of running a bundle.

    Raises
    ------
    BundleError
        ``bundle-without-channels``: the image encoder leaves its features' channels free.
    """
    return ModelFacts(
        (bundle.stage_spec(1), bundle.stage_spec(2)),
        _feature_channels(bundle),
        _count_weights(bundle),
        runner,
        precision,
        convolution,
    )


def _count_weights(bundle: Bundle) -> int:
    """Count the weights of both stages' image encoders and query decoders, nearly all there are."""
    size = VALUE_BYTES[bundle.manifest.weights]
    encoder_size = size if bundle.manifest.quantization is None else 1
    return sum(
        bundle.graph(stage, "image_encoder").bytes // encoder_size
        + bundle.graph(stage, "query_decoder").bytes // size
        for stage in STAGE_NAMES
    )


def _feature_channels(bundle: Bundle) -> int:
    """Read the number of feature channels from the image encoder's first output."""
    channels = bundle.graph(2, "image_encoder").outputs[0].shape[1]
    if isinstance(channels, int):
        return channels
    raise BundleError(
        f"the image encoder of {bundle.name} gives features of any width; export the bundle again",
        code="bundle-without-channels",
    )
