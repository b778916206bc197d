"""Integers and floats of 8 bits: a value is a code times a scale, without offset."""

from dataclasses import dataclass

import torch
from onnx import TensorProto
from torch import Tensor

from medals_rt.common.choices import QuantizedPrecision

_SMALLEST_SCALE = 1e-12  # of channels whose weights are all zero


@dataclass(frozen=True)
class NumberFormat:
    """A format of 8 bits.

    Attributes
    ----------
    dtype, onnx_type
        As PyTorch and ONNX name it.
    largest
        The largest code; codes are symmetric, so int8 leaves -128 out.
    integer
        Whether codes are equally spaced.
    """

    dtype: torch.dtype
    onnx_type: int
    largest: float
    integer: bool

    def scale(self, largest_value: Tensor) -> Tensor:
        """Return the scale at which a value becomes the largest code."""
        return (largest_value / self.largest).clamp_min(_SMALLEST_SCALE)

    def codes(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return the codes of float32 values, as ONNX's `QuantizeLinear` does."""
        scaled = (values / scale).clamp_(-self.largest, self.largest)
        return (scaled.round_() if self.integer else scaled).to(self.dtype)

    def rounded(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return the values that the codes stand for."""
        return self.codes(values, scale).float() * scale


FORMATS: dict[QuantizedPrecision, NumberFormat] = {
    "int8": NumberFormat(torch.int8, TensorProto.INT8, 127.0, integer=True),
    "fp8": NumberFormat(torch.float8_e4m3fn, TensorProto.FLOAT8E4M3FN, 448.0, integer=False),
}


def weight_scales(weight: Tensor, number_format: NumberFormat) -> Tensor:
    """Return a scale for each output channel of `(C_out, C_in, 3, 3, 3)`: `(C_out, 1, 1, 1, 1)`."""
    return number_format.scale(weight.float().abs().amax(dim=(1, 2, 3, 4), keepdim=True))
