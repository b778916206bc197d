"""One stage of a case: resample, walk the windows, decide, and go back to the stage's own grid.

Both stages run through `run_stage`; what differs is the plan, the network and whether there are
spatial prompts (system rules 5 to 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from medals_rt.arrays import Array, Namespace, namespace
from medals_rt.geometry import StagePlan
from medals_rt.network import StageNetwork
from medals_rt.policy import Preset
from medals_rt.refinement import MaskSource, Mode, WindowPass, refine
from medals_rt.report import Stopwatch
from medals_rt.resample import resample_image, resample_labels
from medals_rt.windows import SlabAccumulator, Window, gaussian_weights, pad_far_end

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage's name, the windows done and the windows in all."""

CLASSES_PER_CHUNK = 32
"""Classes that a pass from text alone refines at once: bounds the network's memory."""


@dataclass(frozen=True)
class StageTask:
    """What a stage has to do with one case, the same for both stages.

    Attributes
    ----------
    queries
        Text embeddings `(N, text_dim)` float32, on the device of the network.
    labels
        The label value of each of the N classes.
    lesion
        Lesions get the plan's further iterations.
    preset, mode, masks
        How windows are refined.
    classes_per_chunk
        How many classes go through the refiner at once.
    """

    queries: Array
    labels: tuple[int, ...]
    lesion: bool
    preset: Preset
    mode: Mode
    masks: MaskSource
    classes_per_chunk: int = CLASSES_PER_CHUNK


@dataclass(frozen=True)
class StageResult:
    """Labels and the largest probability on the grid that the stage was given, `(H, W, D)`.

    `passes` counts encoder passes: windows without any prompt need only one.
    """

    labels_hwd: Array
    probability_hwd: Array | None
    passes: int


def run_stage(
    network: StageNetwork,
    plan: StagePlan,
    image_hwd: Array,
    task: StageTask,
    *,
    prompt_labels_hwd: Array | None,
    keep_probability: bool,
    watch: Stopwatch,
    name: str,
    progress: Progress | None = None,
) -> StageResult:
    """Segment one image by one network.

    Parameters
    ----------
    network
        The stage's graphs.
    plan
        From `geometry.plan_stage` for this image.
    image_hwd
        `(H, W, D)` float32 in 0..255, on the device of the network.
    task
        Classes and refinement.
    prompt_labels_hwd
        Label map on the same grid whose masks are the spatial prompts `S_p`; None: text only.
    keep_probability
        Also give the largest probability, which post-processing needs.
    watch, name, progress
        Seconds go to the steps ``"{name}: resample"``, ``"... network"``, ``"... gather"`` and
        ``"... restore"``.
    """
    xp = namespace(image_hwd)
    with watch.step(f"{name}: resample"):
        image = pad_far_end(
            resample_image(image_hwd, plan.resampled_shape_hwd, plan.separate_axis),
            plan.padded_shape_hwd,
        )
        prompt_map = None
        if prompt_labels_hwd is not None:
            prompt_map = pad_far_end(
                resample_labels(prompt_labels_hwd, plan.resampled_shape_hwd, plan.separate_axis),
                plan.padded_shape_hwd,
            )
        gathered = SlabAccumulator(
            plan.windows,
            plan.resampled_shape_hwd,
            task.labels,
            gaussian_weights(plan.stage.window_hwd, xp),
            keep_probability=keep_probability,
        )
    passes = 0
    if progress is not None:
        progress(name, 0, len(plan.windows))
    for index, window in enumerate(plan.windows):
        with watch.step(f"{name}: network"):
            predictor = WindowPredictor(network, image, window, task, xp)
            prompts = None if prompt_map is None else split_labels(prompt_map, window, task.labels)
            probabilities = refine(
                predictor.predict, prompts, _window_pass(plan, index, task), task.masks, xp
            )
            passes += predictor.passes
        with watch.step(f"{name}: gather"):
            gathered.add(window, probabilities)
        if progress is not None:
            progress(name, index + 1, len(plan.windows))
    with watch.step(f"{name}: restore"):
        labels, probability = gathered.result()
        labels = resample_labels(labels, plan.input_shape_hwd)
        if probability is not None:
            probability = resample_image(probability, plan.input_shape_hwd)
    return StageResult(labels, probability, passes)


class WindowPredictor:
    """One window and its classes as the function of spatial prompts that `refine` wants.

    From text alone, classes don't see each other: they go through the refiner in chunks that share
    one encoding. Spatial prompts are seen by every class (`F_a` sums over them), so a prompted pass
    takes all classes at once.
    """

    def __init__(
        self, network: StageNetwork, image: Array, window: Window, task: StageTask, xp: Namespace
    ) -> None:
        self._network = network
        self._xp = xp
        self._image = xp.asarray(image[window.slices], order="C")[None, None]
        self._task = task
        self.passes = 0

    def predict(self, prompts: Array | None) -> Array:
        """Probabilities `(N, h, w, d)` float32; the foreground prompt is any class's prompt."""
        xp, queries = self._xp, self._task.queries
        foreground = None
        if prompts is not None:
            foreground = xp.astype(xp.any(prompts > 0, axis=0), xp.float32)[None, None]
        self.passes += 1
        count, size = queries.shape[0], self._task.classes_per_chunk
        if prompts is not None or count <= size:
            return self._network.predict(self._image, foreground, queries, prompts)
        encoded = self._network.encode(self._image, None)
        result = xp.empty((count, *self._image.shape[2:]), dtype=xp.float32)
        for start in range(0, count, size):
            chunk = slice(start, min(start + size, count))
            adapted = self._network.adapt(encoded, queries[chunk])
            result[chunk] = self._network.refine(encoded, adapted)
        return result


def split_labels(label_map: Array, window: Window, labels: tuple[int, ...]) -> Array:
    """Cut a window out of a label map: one channel a class, `(N, h, w, d)` float32, 0 or 1."""
    xp = namespace(label_map)
    patch = label_map[window.slices]
    return xp.stack([xp.astype(patch == label, xp.float32) for label in labels])


def _window_pass(plan: StagePlan, index: int, task: StageTask) -> WindowPass:
    return WindowPass(
        stage=plan.stage.number,
        window_index=index,
        window_hwd=plan.stage.window_hwd,
        prompted=task.preset.prompted,
        further=task.preset.further,
        further_iterations=plan.iterations if task.lesion else 0,
        mode=task.mode,
        combine=task.preset.combine,
    )
