"""Operations that are computed a few rows at a time, beside the library's own for whole volumes."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from medals_rt.runners.openvino_compiled import CompiledModel
from medals_rt.runners.winograd import sweeps
from medals_rt.runners.winograd.partition import partition
from medals_rt.runners.winograd.split_model import SplitModel

pytest.importorskip("llvmlite")
SHAPE = 24, 16, 12
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}


def network() -> Any:
    """Make a convolution; of it one of stride 2 with a norm, averages, and products of voxels."""
    import openvino
    from openvino import opset13

    from medals_rt.runners.openvino_graphs import name_outputs

    rng = np.random.default_rng(4)

    def convolution(source: Any, channels: int, count: int, stride: int) -> Any:
        weights = rng.standard_normal((count, channels, 3, 3, 3)) / np.sqrt(27 * channels)
        ones = [1, 1, 1]
        values = opset13.constant(weights.astype(np.float32))
        return opset13.convolution(source, values, [stride] * 3, ones, ones, ones)

    image = opset13.parameter([1, 16, *SHAPE], np.float32, name="image")
    queries = opset13.parameter([-1, 16], np.float32, name="queries")
    volume = convolution(image, 16, 16, 1)
    bias = opset13.constant(rng.standard_normal((1, 32, 1, 1, 1)).astype(np.float32))
    smaller = opset13.add(convolution(volume, 16, 32, 2), bias)
    axes = opset13.constant([2, 3, 4])
    deep = convolution(opset13.mvn(smaller, axes, True, 1e-5, "inside_sqrt"), 32, 16, 1)
    kernel, none = [8, 4, 6], [0, 0, 0]
    means = opset13.avg_pool(volume, kernel, none, none, kernel, exclude_pad=True)
    flat = opset13.reshape(volume, [16, int(np.prod(SHAPE))], special_zero=False)
    scores = opset13.reshape(
        opset13.matmul(queries, flat, False, False), [-1, *SHAPE], special_zero=False
    )
    results = {"deep": deep, "means": opset13.relu(means), "scores": opset13.sigmoid(scores)}
    nodes = [openvino.op.Result(node.output(0)) for node in results.values()]
    return name_outputs(openvino.Model(nodes, [image, queries], "network"), list(results))


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_sweeps_of_few_rows_are_the_whole_operations(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SWEPT_VOXELS", 1)
    monkeypatch.setattr(sweeps, "_ROWS_VOXELS", 2 * rows * SHAPE[1] * SHAPE[2])
    rng = np.random.default_rng(5)
    feeds = {
        "image": rng.standard_normal((1, 16, *SHAPE), dtype=np.float32),
        "queries": rng.standard_normal((3, 16), dtype=np.float32),
    }
    expected = CompiledModel(network, CONFIG, None).run(feeds)
    cut, models = partition(network(), "float32", lambda *_: True)
    assert [(sweep.output, sweep.runs) for sweep in cut.sweeps] == [
        ("swept_1", 12 // rows),
        ("scores", 24 // (2 * rows)),
    ]
    assert [pool.kernel for block in cut.blocks for pool in block.pools] == [(8, 4, 6)]
    computes = (*cut.computes, *[True] * len(cut.sweeps))
    split = SplitModel(
        cut,
        [
            CompiledModel(partial(models.__getitem__, number), CONFIG, None) if needed else None
            for number, needed in enumerate(computes)
        ],
        "float32",
        2,
    )
    assert {spec.name: spec.shape for spec in split.outputs}["scores"] == ("?", *SHAPE)
    for _ in range(2):  # the second time in memory that held other volumes
        found = split.run(feeds)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-4)
    split.close()
