"""One stage of a case: resample, walk the windows, decide, and go back to the stage's own grid.

Both stages run through `run_stage`; what differs is the plan, the network and whether there are
spatial prompts (system rules 5 to 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from medals_rt.arrays import Array, contiguous, namespace, settle
from medals_rt.budget import Watchdog
from medals_rt.gathering import Decided, SlabAccumulator
from medals_rt.geometry import StagePlan
from medals_rt.memory import MemoryPlan
from medals_rt.network import StageNetwork
from medals_rt.policy import Preset
from medals_rt.progress import Progress
from medals_rt.refinement import MaskSource, Mode, Part, WindowPass, passes_per_window, refine
from medals_rt.report import Stopwatch
from medals_rt.resample import FILE_ORDER, resample_image, resample_labels
from medals_rt.spatial import LabelPrompts, SpatialPrompts, label_prompts
from medals_rt.windows import gaussian_weights, pad_far_end


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
    """

    queries: Array
    labels: tuple[int, ...]
    lesion: bool
    preset: Preset
    mode: Mode
    masks: MaskSource


@dataclass(frozen=True)
class StageResult:
    """Labels and the largest probability on the grid that the stage was given, `(H, W, D)`.

    `passes` counts encoder passes: windows without any prompt need only one. `hastened` are windows
    that were run in fewer passes than planned because time ran out, `left_out` those not run.
    """

    labels_hwd: Array
    probability_hwd: Array | None
    passes: int
    hastened: int = 0
    left_out: int = 0


def run_stage(
    network: StageNetwork,
    plan: StagePlan,
    image_hwd: Array,
    task: StageTask,
    *,
    prompt_labels_hwd: Array | None,
    keep_probability: bool,
    memory: MemoryPlan,
    watch: Stopwatch,
    name: str,
    progress: Progress | None = None,
    watchdog: Watchdog | None = None,
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
    memory
        How classes are grouped and cut into chunks.
    watch, name, progress
        Seconds go to the steps ``"{name}: resample"``, ``"... open graphs"``, ``"... network"``,
        ``"... gather"`` and ``"... restore"``.
    watchdog
        Shortens the stage when time runs out; None: there is no limit.
    """
    xp = namespace(image_hwd)
    with watch.step(f"{name}: resample"):
        image = pad_far_end(
            resample_image(image_hwd, plan.resampled_shape_hwd, plan.separate_axis),
            plan.padded_shape_hwd,
        )
        prompt_map = None
        prompts: Sequence[LabelPrompts | None] = [None] * len(plan.windows)
        if prompt_labels_hwd is not None:
            prompt_map = pad_far_end(
                resample_labels(prompt_labels_hwd, plan.resampled_shape_hwd, plan.separate_axis),
                plan.padded_shape_hwd,
            )
            what = window_pass(plan, task, prompted=True)
            prompts = label_prompts(prompt_map, plan.windows, task.labels, what.block_size)
        weights = gaussian_weights(plan.stage.window_hwd, xp)
    with watch.step(f"{name}: open graphs"):
        prompted = any(each is not None for each in prompts) and task.mode != "none"
        count = task.queries.shape[0]
        network.prepare(count, memory.groups[0], memory.classes_per_chunk, prompted=prompted)
    walk = _Walk(network, plan, image, task, prompts, memory, watchdog, watch, name, progress)
    ways = _ways(window_pass(plan, task, prompted=prompt_map is not None))
    decided: Decided | None = None
    for group in memory.groups:
        gathered = SlabAccumulator(
            plan.windows,
            plan.resampled_shape_hwd,
            task.labels[group],
            weights,
            label_dtype=xp.uint8 if max(task.labels) < 256 else xp.uint16,
            keep_probability=keep_probability or group.stop < count,
            before=decided,
        )
        decided = walk.over_windows(gathered, ways, group)
        del gathered
    network.rest()
    if decided is None:
        raise ValueError("a stage has at least one window")
    with watch.step(f"{name}: restore"):
        labels, probability = _with_prompts_where_uncovered(decided, prompt_map), None
        labels = resample_labels(labels, plan.input_shape_hwd, order=FILE_ORDER)
        if keep_probability:
            probability = resample_image(
                decided.probability_hwd, plan.input_shape_hwd, order=FILE_ORDER
            )
    return StageResult(labels, probability, walk.passes, walk.hastened, walk.left_out)


class _Walk:
    """Walks over a stage's windows, once a group of classes, and counts what was spent."""

    def __init__(
        self,
        network: StageNetwork,
        plan: StagePlan,
        image: Array,
        task: StageTask,
        prompts: Sequence[LabelPrompts | None],
        memory: MemoryPlan,
        watchdog: Watchdog | None,
        watch: Stopwatch,
        name: str,
        progress: Progress | None,
    ) -> None:
        self._network = network
        self._plan = plan
        self._image = image
        self._task = task
        self._prompts = prompts
        self._classes_per_chunk = memory.classes_per_chunk
        self._watchdog = watchdog
        self._watch = watch
        self._name = name
        self._progress = progress
        self._windows = len(plan.windows) * len(memory.groups)
        self._done = 0
        self.passes = 0
        self.hastened = 0
        self.left_out = 0
        self._tell()

    def over_windows(
        self, gathered: SlabAccumulator, ways: Sequence[WindowPass], group: slice
    ) -> Decided:
        """Run every window for a group of classes and decide.

        `ways` are the ways to run one, from the most thorough to the least.
        """
        for index, window in enumerate(self._plan.windows):
            way = self._choose_way(ways)
            with self._watch.step(f"{self._name}: gather"):
                if way is None:
                    gathered.skip(window)
                else:
                    gathered.begin(window)
            if way is not None:
                self._gather_window(gathered, replace(way, window_index=index, wanted=group))
            self._done += 1
            self._tell()
        with self._watch.step(f"{self._name}: gather"):
            return gathered.result()

    def _gather_window(self, gathered: SlabAccumulator, way: WindowPass) -> None:
        first = 0 if way.wanted is None else way.wanted.start
        parts = self._run_window(way)
        while True:
            with self._watch.step(f"{self._name}: network"):
                part = next(parts, None)
            if part is None:
                return
            with self._watch.step(f"{self._name}: gather"):
                classes = slice(part.classes.start - first, part.classes.stop - first)
                gathered.add(classes, part.probabilities, part.counted)
            del part

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._name, self._done, self._windows)

    def _choose_way(self, ways: Sequence[WindowPass]) -> WindowPass | None:
        """Decide how the next window is run; None: not at all, for there is no time."""
        if self._watchdog is None:
            return ways[0]
        costs = [passes_per_window(way) for way in ways]
        chosen = self._watchdog.choose_way(costs, self._windows - self._done)
        if chosen is None:
            self.left_out += 1
            return None
        self.hastened += chosen > 0
        return ways[chosen]

    def _run_window(self, way: WindowPass) -> Iterator[Part]:
        """Run the passes of a window, as its parts are asked for."""
        image = contiguous(self._image[self._plan.windows[way.window_index].slices])[None, None]
        before = self.passes
        if self._watchdog is not None:
            self._watchdog.window_begins()

        def predict(
            prompts: SpatialPrompts | None, classes: slice
        ) -> Iterator[tuple[slice, Array]]:
            self.passes += 1
            return self._network.predict(
                image,
                self._task.queries,
                prompts,
                classes=classes,
                classes_per_chunk=self._classes_per_chunk,
            )

        yield from refine(
            predict,
            self._prompts[way.window_index],
            way,
            self._task.masks,
            lambda: self._goes_on(way),
        )
        if self._watchdog is not None:
            settle(image)
            self._watchdog.window_ended(self.passes - before)

    def _goes_on(self, way: WindowPass) -> bool:
        """Decide whether a lesion's next iteration is run."""
        if self._watchdog is None:
            return True
        goes_on = self._watchdog.allows(2 if way.mode == "masked" else 1)
        self.hastened += not goes_on
        return goes_on


def window_pass(plan: StagePlan, task: StageTask, *, prompted: bool) -> WindowPass:
    """Say what a stage does to each window."""
    return WindowPass(
        stage=plan.stage.number,
        window_index=0,
        window_hwd=plan.stage.window_hwd,
        prompted=task.preset.prompted if prompted else None,
        further=task.preset.further,
        further_iterations=plan.iterations if task.lesion else 0,
        mode=task.mode,
        combine=task.preset.combine,
        count=len(task.labels),
    )


def _ways(planned: WindowPass) -> list[WindowPass]:
    """Give the ways to run a window, each of fewer passes than the one before it."""
    ways = [planned]
    for shorter in (replace(planned, further_iterations=0), replace(planned, mode="none")):
        if passes_per_window(shorter) < passes_per_window(ways[-1]):
            ways.append(shorter)
    return ways


def _with_prompts_where_uncovered(decided: Decided, prompt_map: Array | None) -> Array:
    """Fill voxels of which no window was run with what the stage was shown, if anything."""
    labels, uncovered = decided.labels_hwd, decided.uncovered_hwd
    if uncovered is None or prompt_map is None:
        return labels
    xp = namespace(labels)
    h, w, d = labels.shape
    shown = xp.astype(prompt_map[:h, :w, :d], labels.dtype)
    return xp.where(uncovered & (labels == 0), shown, labels)
