"""What is known of the outputs of an OpenVINO model's nodes."""

from math import prod
from typing import Any

import numpy as np


def key_of(port: Any) -> tuple[str, int]:
    """Name an output of a node: two Python objects may be one."""
    return port.get_node().get_name(), port.get_index()


def readers_of(port: Any) -> list[Any]:
    """List the nodes that read an output."""
    return [each.get_node() for each in port.get_target_inputs()]


def volume_of(port: Any) -> tuple[int, int] | None:
    """Channels and voxels of `(1, C, H, W, D)`; None for anything else."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 5 or shape.is_dynamic or shape.to_shape()[0] != 1:
        return None
    _, channels, *space = shape.to_shape()
    return channels, prod(space)


def constant_of(port: Any) -> np.ndarray | None:
    """Return a constant as float32, also one that is stored in half precision; None if none."""
    node = port.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.array(node.data, np.float32) if node.get_type_name() == "Constant" else None


def values_by_channel(port: Any, channels: int) -> np.ndarray | None:
    """Return a constant that has a value for each channel, or one for all, as `(C,)`."""
    values = constant_of(port)
    if values is None or values.size not in {1, channels}:
        return None
    if values.size == channels > 1 and (values.ndim < 4 or values.shape[-4] != channels):
        return None
    return np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (channels,)))
