"""How time and memory grow with the number of classes and with the size of the image."""

import time

import numpy as np

from medals_rt.common.arrays import to_device
from medals_rt.common.choices import Refinement
from medals_rt.common.environment import peak_memory_mib
from medals_rt.common.typing import Array, HostArray
from medals_rt.inference.network import Network, PassInput
from medals_rt.inference.spatial_prompts import SpatialPrompts, label_prompts
from medals_rt.io.case import Case
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.planning.sliding_window import plan_windows
from medals_rt.prompts.prompt_set import PromptSet
from medals_rt.tools.bench.gpu_memory import wait_for_device
from medals_rt.tools.bench.records import Question, Scaling
from medals_rt.tools.bench.target import BenchTarget

_SEED = 0
_BLOCK_VOXELS = 8


def scaling_with_classes(target: BenchTarget, question: Question) -> tuple[Scaling, ...]:
    """Time the network on one window of the fine stage for each number of classes.

    The image is noise and the text embeddings are random: neither changes what is computed. With
    prompts, every class has blocks of its own.
    """
    network = target.fine
    rng = np.random.default_rng(_SEED)
    window = network.spec.window_hwd
    device = network.array_device
    image = to_device(rng.random((1, 1, *window), np.float32) * 255, device)
    dim = target.segmenter.bundle.manifest.embeddings.dim
    found = []
    for count in question.class_counts:
        queries = to_device(rng.standard_normal((count, dim), np.float32), device)
        blocks = rng.integers(0, count + 1, [-(-size // _BLOCK_VOXELS) for size in window])
        labels = to_device(_spread(blocks, window).astype(np.uint16), device)
        windows = plan_windows(window, window)
        (prompts,) = label_prompts(labels, windows, range(1, count + 1), _BLOCK_VOXELS)
        found.append(
            Scaling(
                size=count,
                text_only_seconds=_best_of_two(network, image, queries, None),
                prompted_seconds=_best_of_two(network, image, queries, prompts),
                peak_memory_mib=peak_memory_mib(),
            )
        )
    return tuple(found)


def scaling_with_volume(
    target: BenchTarget, question: Question, case: Case, prompts: PromptSet
) -> tuple[Scaling, ...]:
    """Time the whole case with its image repeated along D."""
    volume = case.volume
    found = []
    for factor in question.volume_factors:
        image = np.tile(volume.image_dhw, (factor, 1, 1))
        larger = Volume(image, volume.spacing_hwd_mm, volume.name)
        text_only = _seconds(target, larger, prompts, "none")
        prompted = None
        if question.refinement != "none":
            prompted = _seconds(target, larger, prompts, question.refinement)
        found.append(Scaling(int(image.size), text_only, prompted, peak_memory_mib()))
    return tuple(found)


def _seconds(
    target: BenchTarget, volume: Volume, prompts: PromptSet, refinement: Refinement
) -> float:
    result = target.segmenter.segment(volume, prompts, SegmentOptions(refinement=refinement))
    return result.report.seconds["total"]


def _spread(blocks: HostArray, window: tuple[int, int, int]) -> HostArray:
    for axis, size in enumerate(window):
        blocks = np.take(blocks, np.arange(size) // _BLOCK_VOXELS, axis=axis)
    return blocks


def _best_of_two(
    network: Network, image: Array, queries: Array, prompts: SpatialPrompts | None
) -> float:
    """Time one pass; the first may compile and does not count where the second is faster."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        for _classes, _probabilities in network.predict(PassInput(image, queries, prompts)):
            pass
        wait_for_device(image)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
