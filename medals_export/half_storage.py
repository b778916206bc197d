"""Weights stored as fp16 in graphs that compute in fp32: half the size, for the demo."""

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from medals_export.model import MedalS
from medals_rt.common.errors import ExportError


def store_constants_as_fp16(model: onnx.ModelProto) -> None:
    """Halve a graph's size: keep constants as fp16 and cast them back when it is loaded.

    Only constants that fp16 holds exactly are touched, so the graph computes the same numbers as
    before; round the network's weights first (`round_weights_to_fp16`).
    """
    graph = model.graph
    casts = []
    for index, initializer in enumerate(graph.initializer):
        values = numpy_helper.to_array(initializer)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        halved = values.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), values):
            continue
        name = initializer.name
        graph.initializer[index].CopyFrom(numpy_helper.from_array(halved, f"{name}.fp16"))
        casts.append(
            onnx.helper.make_node(
                "Cast", [f"{name}.fp16"], [name], f"cast.{name}", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model)


def round_weights_to_fp16(network: MedalS) -> None:
    """Round every weight of two or more dimensions to what fp16 can hold, in place.

    Biases and the scales of norms stay as they are: they are few, and errors in them reach every
    voxel.
    """
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim < 2:
                continue
            rounded = weight.half().float()
            if not rounded.isfinite().all():
                raise ExportError(
                    f"{name} holds values that fp16 can't: {weight.abs().max():.3g}",
                    code="weights-too-large",
                )
            weight.copy_(rounded)
