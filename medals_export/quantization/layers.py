"""The convolutions that can be quantized, and networks whose chosen ones are.

The convolutions of the image encoder, and the half of the refiner's that reads the features. Not
the first, which reads gray values of 0 to 255 beside prompts of 0 and 1, and not those that read
joined channels: OpenVINO 2026.4 computes these wrongly in int8 (a sixth of the features' root mean
square for one alone). Norms, pools, transposed convolutions, the query decoder, and the last
product, `T F_r`, stay as they are.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medals_export.model import MedalS
from medals_export.quantization.number_format import NumberFormat, weight_scales

_READS_JOINED = re.compile(r"decoder\.stages\.\d+\.convs\.0\.conv")
FUSION = "fusion_conv.convs.0.conv"
"""The refiner's convolution; only the half of its weights that reads the features is meant."""


def candidates(network: MedalS) -> tuple[str, ...]:
    """Name the convolutions that can be quantized, in the order in which they are computed."""
    encoder = [
        f"backbone.{path}"
        for path, module in network.backbone.named_modules()
        if isinstance(module, nn.Conv3d) and not _READS_JOINED.fullmatch(path)
    ]
    return (*encoder[1:], FUSION)


@contextmanager
def inputs_watched(
    network: MedalS, layers: tuple[str, ...], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Show what each of the layers reads, whenever the network runs."""
    handles = []
    for layer in layers:
        if layer == FUSION:
            handles.append(
                network.backbone.register_forward_hook(
                    lambda _, __, output, layer=layer: see(layer, output[1])
                )
            )
        else:
            handles.append(
                network.get_submodule(layer).register_forward_pre_hook(
                    lambda _, inputs, layer=layer: see(layer, inputs[0])
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def quantized_network(
    network: MedalS, ranges: Mapping[str, float], number_format: NumberFormat
) -> MedalS:
    """Return a copy of a network that computes in float32 what the graphs with Q/DQ compute.

    Its features are those that the refiner's convolution reads: rounded, where that is quantized.

    Parameters
    ----------
    network
        In float32.
    ranges
        Of the layers to quantize: the largest absolute value of what they read.
    """
    quantized = copy.deepcopy(network)
    for layer, largest in ranges.items():
        scale = number_format.scale(torch.tensor(largest, dtype=torch.float32))
        weight = quantized.get_parameter(f"{layer}.weight").data
        if layer == FUSION:
            weight = _feature_half(weight)
            quantized.backbone.register_forward_hook(_features_rounded(number_format, scale))
        else:
            quantized.get_submodule(layer).register_forward_pre_hook(
                _input_rounded(number_format, scale)
            )
        weight.copy_(number_format.rounded(weight, weight_scales(weight, number_format)))
    return quantized


def _feature_half(weight: Tensor) -> Tensor:
    """Return the part of the refiner's weights `(C, 2 C, 3, 3, 3)` that reads the features."""
    return weight[:, : weight.shape[1] // 2]


def _input_rounded(
    number_format: NumberFormat, scale: Tensor
) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (number_format.rounded(inputs[0], scale),)

    return hook


def _features_rounded(
    number_format: NumberFormat, scale: Tensor
) -> Callable[[nn.Module, tuple[Tensor], tuple[list[Tensor], Tensor]], tuple[list[Tensor], Tensor]]:
    def hook(
        _: nn.Module, __: tuple[Tensor], outputs: tuple[list[Tensor], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        return outputs[0], number_format.rounded(outputs[1], scale)

    return hook
