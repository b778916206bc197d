"""One stage of a case: resample, walk the windows, decide, and go back to the stage's own grid.

Both stages run through `run_stage`; what differs is the plan, the network and whether there are
spatial prompts (system rules 5 to 7).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace

from medals_rt.common.arrays import contiguous, namespace, settle
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.common.typing import Array
from medals_rt.inference.aggregation import LabelMap, SlabAccumulator, empty_label_map
from medals_rt.inference.network import StageNetwork
from medals_rt.inference.refinement import MaskSource, Part, refine
from medals_rt.inference.spatial_prompts import LabelPrompts, SpatialPrompts, label_prompts
from medals_rt.planning.memory import TileSweep
from medals_rt.planning.sliding_window import gaussian_weights, pad_far_end
from medals_rt.planning.stage_plan import StagePlan
from medals_rt.planning.time_budget import Watchdog
from medals_rt.planning.window_pass import WindowPass, passes_per_window
from medals_rt.preprocessing.resampling import FILE_ORDER, resample_image, resample_labels


@dataclass(frozen=True)
class StageTask:
    """What a stage has to do with one case, the same for both stages.

    Attributes
    ----------
    queries
        Text embeddings `(N, text_dim)` float32, on the device of the network.
    labels
        The label value of each of the N classes.
    masks
        Where the masks of refinement come from.
    """

    queries: Array
    labels: tuple[int, ...]
    masks: MaskSource


@dataclass(frozen=True)
class StageResult:
    """Labels and the largest probability on the grid that the stage was given, `(H, W, D)`.

    `passes` counts encoder passes: windows without any prompt need only one. `hastened` are runs of
    windows in fewer passes than planned because time ran out, `left_out` those that were not made.
    """

    labels_hwd: Array
    probability_hwd: Array | None
    passes: int
    hastened: int = 0
    left_out: int = 0


def run_stage(
    network: StageNetwork,
    way: StagePlan,
    image_hwd: Array,
    task: StageTask,
    *,
    prompt_labels_hwd: Array | None,
    keep_probability: bool,
    watch: Stopwatch,
    name: str,
    progress: Progress | None = None,
    watchdog: Watchdog | None = None,
    measured: MutableMapping[int, float] | None = None,
) -> StageResult:
    """Segment one image by one network.

    Parameters
    ----------
    network
        The stage's graphs.
    way
        Geometry, cuts and passes, from `ways.stage_plans` for this image.
    image_hwd
        `(H, W, D)` float32 in 0..255, on the device of the network.
    task
        Classes and masks.
    prompt_labels_hwd
        Label map on the same grid whose masks are the spatial prompts `S_p`; None: text only.
    keep_probability
        Also give the largest probability, which post-processing needs.
    watch, name, progress
        Seconds go to the steps ``"{name}: resample"``, ``"... open graphs"``, ``"... network"``,
        ``"... gather"`` and ``"... restore"``. A card is waited for once a step; all that it does
        for a window counts as the network's.
    watchdog
        Shortens the stage when time runs out; None: there is no limit.
    measured
        Gets the seconds of a pass by stage number, as windows end.
    """
    xp = namespace(image_hwd)
    plan, memory = way.plan, way.memory
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
            blocks = way.window_pass.block_size
            prompts = label_prompts(prompt_map, plan.windows, task.labels, blocks)
        weights = gaussian_weights(plan.stage.window_hwd, xp)
        settle(image)
    with watch.step(f"{name}: open graphs"):
        prompted = any(each is not None for each in prompts) and way.window_pass.mode != "none"
        classes = memory.sweeps[0].classes
        network.prepare(len(task.labels), classes, memory.classes_per_chunk, prompted=prompted)
    decided = empty_label_map(
        plan.resampled_shape_hwd,
        task.labels,
        weights,
        keep_probability=keep_probability or memory.class_groups > 1,
    )
    walker = _Walker(network, way, image, task, prompts, watchdog, watch, name, progress)
    walker.measured = measured
    for walk in memory.sweeps:
        windows = [plan.windows[index] for index in walk.windows]
        labels = task.labels[walk.classes]
        gathered = SlabAccumulator(windows, labels, weights, decided, walk.columns)
        decided = walker.walk(walk, gathered)
        del gathered
    network.rest()
    with watch.step(f"{name}: restore"):
        labels, probability = _with_prompts_where_uncovered(decided, prompt_map), None
        labels = resample_labels(labels, plan.input_shape_hwd, order=FILE_ORDER)
        if keep_probability:
            probability = resample_image(
                decided.probability_hwd, plan.input_shape_hwd, order=FILE_ORDER
            )
        settle(labels)
    return StageResult(labels, probability, walker.passes, walker.hastened, walker.left_out)


class _Walker:
    """Walks over a stage's windows and counts what was spent."""

    def __init__(
        self,
        network: StageNetwork,
        way: StagePlan,
        image: Array,
        task: StageTask,
        prompts: Sequence[LabelPrompts | None],
        watchdog: Watchdog | None,
        watch: Stopwatch,
        name: str,
        progress: Progress | None,
    ) -> None:
        self._network = network
        self._windows = way.plan.windows
        self._ways = _shorter_ways(way.window_pass)
        self._image = image
        self._task = task
        self._prompts = prompts
        self._classes_per_chunk = way.memory.classes_per_chunk
        self._watchdog = watchdog
        self._watch = watch
        self._name = name
        self._progress = progress
        self._runs = way.memory.window_runs
        self._done = 0
        self.passes = 0
        self.hastened = 0
        self.left_out = 0
        self.measured: MutableMapping[int, float] | None = None
        self._tell()

    def walk(self, walk: TileSweep, gathered: SlabAccumulator) -> LabelMap:
        """Run the windows of a walk and decide.

        Block masks hang on a window's place in the stage's plan, whichever walk it is run for.
        """
        for index in walk.windows:
            window = self._windows[index]
            way = self._choose_way()
            with self._watch.step(f"{self._name}: gather"):
                if way is None:
                    gathered.skip(window)
                else:
                    gathered.begin(window)
            if way is not None:
                self._gather_window(gathered, replace(way, window_index=index, wanted=walk.classes))
            self._done += 1
            self._tell()
        with self._watch.step(f"{self._name}: network"):
            settle(self._image)  # else these seconds would be those of asking a card, not its work
        self._measure()
        with self._watch.step(f"{self._name}: gather"):
            return gathered.result()

    def _gather_window(self, gathered: SlabAccumulator, way: WindowPass) -> None:
        first = 0 if way.wanted is None else way.wanted.start
        parts = self._run_window(way)
        while True:
            with self._watch.step(f"{self._name}: network"):
                part = next(parts, None)
            if part is None:
                self._measure()
                return
            with self._watch.step(f"{self._name}: gather"):
                classes = slice(part.classes.start - first, part.classes.stop - first)
                gathered.add(classes, part.probabilities, part.counted)
            del part

    def _measure(self) -> None:
        """Keep what a pass took so far, of windows that were finished."""
        if self.measured is not None and self.passes > 0:
            seconds = self._watch.seconds[f"{self._name}: network"]
            self.measured[self._network.spec.number] = seconds / self.passes

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._name, self._done, self._runs)

    def _choose_way(self) -> WindowPass | None:
        """Decide how the next window is run; None: not at all, for there is no time."""
        if self._watchdog is None:
            return self._ways[0]
        costs = [passes_per_window(way) for way in self._ways]
        chosen = self._watchdog.choose(costs, self._runs - self._done)
        if chosen is None:
            self.left_out += 1
            return None
        self.hastened += chosen > 0
        return self._ways[chosen]

    def _run_window(self, way: WindowPass) -> Iterator[Part]:
        """Run the passes of a window, as its parts are asked for."""
        image = contiguous(self._image[self._windows[way.window_index].slices])[None, None, ...]
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
            lambda: self._goes_on(way, self.passes - before),
        )
        if self._watchdog is not None:
            settle(image)
            self._watchdog.window_ended(self.passes - before)

    def _goes_on(self, way: WindowPass, done: int) -> bool:
        """Decide whether a lesion's next iteration is run, after so many passes of a window."""
        if self._watchdog is None:
            return True
        settle(self._image)
        goes_on = self._watchdog.allows(2 if way.mode == "masked" else 1, done)
        self.hastened += not goes_on
        return goes_on


def _shorter_ways(planned: WindowPass) -> list[WindowPass]:
    """Give the ways to run a window, as planned first, each of fewer passes than the one before."""
    ways = [planned]
    for shorter in (replace(planned, further_iterations=0), replace(planned, mode="none")):
        if passes_per_window(shorter) < passes_per_window(ways[-1]):
            ways.append(shorter)
    return ways


def _with_prompts_where_uncovered(decided: LabelMap, prompt_map: Array | None) -> Array:
    """Fill voxels of which no window was run with what the stage was shown, if anything."""
    labels, uncovered = decided.labels_hwd, decided.uncovered_hwd
    if uncovered is None or prompt_map is None:
        return labels
    xp = namespace(labels)
    h, w, d = labels.shape
    shown = xp.astype(prompt_map[:h, :w, :d], labels.dtype)
    return xp.where(uncovered & (labels == 0), shown, labels)
