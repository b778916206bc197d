"""Operations that are computed a few rows at a time."""

from collections.abc import Iterator

import numpy as np
import pytest

from medals_rt.runners.openvino_graphs import shared_core
from medals_rt.runners.winograd import sweeps
from medals_rt.runners.winograd.partition import partition
from medals_rt.runners.winograd.split_model import SplitModel
from tests.runners.winograd.plain import convolved

pytest.importorskip("llvmlite")
SHAPE = 24, 16, 12
CHANNELS = 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sweeps of small volumes, in several runs."""
    monkeypatch.setattr(sweeps, "SWEPT_VOXELS", 1)
    monkeypatch.setattr(sweeps, "_ROWS_VOXELS", 9 * 16 * 12)
    yield


def network(rng: np.random.Generator):
    """A convolution, one of stride 2 and a norm behind it, averages, and a product with voxels."""
    from openvino import Model, opset13

    def weights(count: int) -> np.ndarray:
        values = rng.standard_normal((count, CHANNELS, 3, 3, 3)) / np.sqrt(27 * CHANNELS)
        return values.astype(np.float32)

    first, second, third = weights(CHANNELS), weights(32), weights(32)[:, :, :, :, :]
    bias = rng.standard_normal((1, 32, 1, 1, 1)).astype(np.float32)
    image = opset13.parameter([1, CHANNELS, *SHAPE], np.float32, name="image")
    queries = opset13.parameter([-1, CHANNELS], np.float32, name="queries")
    for each in (image, queries):
        each.output(0).set_names({each.get_friendly_name()})
    ones, none = [1, 1, 1], [0, 0, 0]
    volume = opset13.convolution(image, first, ones, ones, ones, ones)
    strided = opset13.add(
        opset13.convolution(volume, second, [2, 2, 2], ones, ones, ones), opset13.constant(bias)
    )
    normed = opset13.mvn(strided, [2, 3, 4], True, 1e-5, "inside_sqrt")
    deep = opset13.convolution(normed, third_of(third), ones, ones, ones, ones)
    means = opset13.avg_pool(volume, [8, 8, 4], none, none, [8, 8, 4], exclude_pad=True)
    flat = opset13.reshape(volume, [CHANNELS, int(np.prod(SHAPE))], special_zero=False)
    scores = opset13.sigmoid(
        opset13.reshape(opset13.matmul(queries, flat, False, False), [-1, *SHAPE], False)
    )
    results = {"deep": deep, "means": means, "probabilities": scores}
    nodes = []
    for name, node in results.items():
        node.output(0).set_names({name})
        result = opset13.result(node)
        result.set_friendly_name(name)
        nodes.append(result)
    return Model(nodes, [image, queries], "network"), first, second, third, bias


def third_of(weights: np.ndarray) -> np.ndarray:
    return np.concatenate([weights, weights[:, ::-1]], axis=1)
