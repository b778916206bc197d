"""What the tests of every runner on a GPU ask for, whatever the precision."""

import numpy as np

from medals_rt.io.volume import Volume
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.runners.selection import open_runner
from tests.runners.engine_bundles import random_feeds


def expected(bundle, graph, feeds):
    """What ONNX Runtime gives on the CPU."""
    on_cpu = open_runner("onnxruntime", bundle.graph_path(1, graph))
    return on_cpu.run({key: array.get() for key, array in feeds.items()})


def assert_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for key, array in found.items():
        assert array.dtype == wanted[key].dtype
        scale = float(np.abs(wanted[key]).max())
        assert float(np.abs(array.get().astype(float) - wanted[key]).max()) <= tolerance * scale, (
            key
        )


def assert_results_are_the_callers_own(cupy, bundle, runner):
    """No later run writes into them, and they repeat to the byte."""
    feeds, others = (random_feeds(cupy, bundle, "refiner", 3, seed=seed) for seed in (0, 1))
    first = runner.run(feeds)["probabilities"]
    kept = first.copy()
    other = runner.run(others)["probabilities"]
    again = runner.run(feeds)["probabilities"]
    assert not bool((other == kept).all())
    assert bool((first == kept).all())
    assert bool((again == kept).all())
    assert first.data.ptr != again.data.ptr


def assert_ordered_with_the_callers_stream(cupy, bundle, runner, tolerance):
    """Inputs written just before, and overwritten just after, on a stream of the caller's."""
    sources = [random_feeds(cupy, bundle, "refiner", 2, seed=seed) for seed in range(6)]
    wanted = [expected(bundle, "refiner", feeds) for feeds in sources]
    cupy.cuda.Device().synchronize()
    found = []
    with cupy.cuda.Stream(non_blocking=True) as stream:
        feeds = {key: cupy.empty_like(array) for key, array in sources[0].items()}
        for source in sources:
            for key, array in source.items():
                feeds[key][...] = array
            found.append(runner.run(feeds))
            for array in feeds.values():
                array.fill(float("nan"))
        stream.synchronize()
    for each, right in zip(found, wanted, strict=True):
        assert_close(each, right, tolerance)


def agreement_of_a_whole_case(bundle, kind, precision):
    """Share of voxels with the label that ONNX Runtime on the CPU gives, from text to labels."""
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (20, 24, 28)).astype(np.float32)
    volume = Volume(image, (3.0, 2.0, 2.0))
    prompts = {"1": "Liver in abdominal CT", "2": "Right kidney in abdominal CT"}
    labels = {}
    for runner in ("onnxruntime", kind):
        with Segmenter.open(bundle, runner=runner, precision=precision) as segmenter:
            labels[runner] = segmenter.segment(volume, prompts).labels_dhw
    return float(np.mean(labels["onnxruntime"] == labels[kind]))
