"""The arithmetic of a bundle's graphs: fp32, or half precision with fp32 where that is needed.

In int8 and fp8 it is that of fp16, but for the convolutions that are quantized.

Libraries compute each operator in the type that the graph gives it, so precision is chosen here:
`half_network` turns a network into one that takes its convolutions and matrix products in half
precision, and norms, softmax and pooling in float32. The graphs' sigmoid and the float32 at their
borders are in `graph_modules`.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medals_export.model import MedalS
from medals_export.model.query_decoder import CrossAttention
from medals_export.quantization.number_format import FORMATS, NumberFormat
from medals_rt.common.choices import Precision
from medals_rt.common.errors import ExportError


@dataclass(frozen=True)
class Arithmetic:
    """What a bundle's precision means.

    Attributes
    ----------
    precision
        As the manifest names it.
    compute
        Type of convolutions and matrix products, of their weights, and of what lies between them;
        but for quantized convolutions, see `half_network`.
    upsample
        The one exception: the type of transposed convolutions. They take a thirtieth of the
        arithmetic, and TensorRT-RTX 1.7 has none in bf16, so they are float32 in bf16 bundles.
    handed_on
        Type of `features`, `image_embedding` and `refined`, which the run time passes from graph to
        graph untouched. NumPy and DLPack users have no bf16, so that is float32 there.
    opset
        ONNX operator set of the graphs: 20, which every library reads. ONNX has bf16 convolutions
        from 22 on only.
    tolerance
        Largest relative error of a graph against PyTorch in fp32, in int8 and fp8 with the same
        layers quantized: a value near the middle between two codes may get the other one. In int8
        that is the next of 127 steps; in fp8 (E4M3) it is an eighth of the value, of the largest
        too, so that two such steps are allowed there.
    number_format
        Of what quantized convolutions read and of their weights; None where none is quantized.
    """

    precision: Precision
    compute: torch.dtype
    upsample: torch.dtype
    handed_on: torch.dtype
    opset: int
    tolerance: float
    number_format: NumberFormat | None = None


_FP32, _FP16, _BF16 = torch.float32, torch.float16, torch.bfloat16
FP32 = Arithmetic("fp32", _FP32, _FP32, _FP32, opset=20, tolerance=1e-4)
ARITHMETICS: dict[Precision, Arithmetic] = {
    "fp32": FP32,
    "fp16": Arithmetic("fp16", _FP16, _FP16, _FP16, opset=20, tolerance=2e-2),
    "bf16": Arithmetic("bf16", _BF16, _FP32, _FP32, opset=22, tolerance=4e-2),
    **{
        precision: Arithmetic(
            precision,
            *(_FP16, _FP16, _FP16),
            opset=20,
            tolerance=1e-1 if number_format.integer else 2.5e-1,
            number_format=number_format,
        )
        for precision, number_format in FORMATS.items()
    },
}


def half_network(
    network: MedalS, arithmetic: Arithmetic, quantized: Collection[str] = ()
) -> MedalS:
    """Return a copy of a network that computes in an arithmetic; the network itself for fp32.

    Convolutions of the names `quantized` are float32, without their Q/DQ, which
    `quantization.qdq` adds to the graph: scales and results of 8-bit products are float32.

    Raises
    ------
    ExportError
        If weights are beyond what fp16 holds (65504); all of them are named.
    """
    if arithmetic is FP32:
        return network
    half = copy.deepcopy(network)
    too_large: list[str] = []
    for path, module in half.named_modules():
        if path in quantized:
            module.register_forward_pre_hook(_to(_FP32))
            continue  # an InstanceNorm takes the result as it is
        dtype = _type_of(module, arithmetic)
        if dtype is None:
            continue
        if isinstance(module, nn.Linear) or dtype is not arithmetic.compute:
            module.register_forward_pre_hook(_to(dtype))
        if dtype is not arithmetic.compute:
            module.register_forward_hook(_back_to(arithmetic.compute))
        for name, weight in module.named_parameters(recurse=False):
            largest = float(weight.abs().max())
            if largest > torch.finfo(dtype).max:
                too_large.append(f"{path}.{name} ({largest:.3g})")
            weight.data = weight.data.to(dtype)
    if too_large:
        raise ExportError(
            f"{arithmetic.precision} can't hold these weights: {', '.join(too_large)}; "
            "export in bf16 or fp32",
            code="weights-too-large",
        )
    return half


def _type_of(module: nn.Module, arithmetic: Arithmetic) -> torch.dtype | None:
    """Return what a module computes in; None for those that are left as they are.

    LayerNorm is one of these: it gets float32 from the sums before it, and gives it to layers that
    take it to their own type.
    """
    if isinstance(module, nn.ConvTranspose3d):
        return arithmetic.upsample
    if isinstance(module, nn.InstanceNorm3d):
        return torch.float32
    if isinstance(module, nn.Linear | nn.Conv3d | CrossAttention):
        return arithmetic.compute
    return None


def _to(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """Make a hook that turns a module's input into a type."""

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].to(dtype),)

    return hook


def _back_to(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    """Make a hook that turns a module's output into a type."""

    def hook(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return output.to(dtype)

    return hook
