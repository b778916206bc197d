"""One stage of a case: resample, sweep over the windows, decide, and restore the stage's grid.

Both stages run through `run_stage`; what differs is the plan, the network and whether there are
spatial prompts (system rules 5 to 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from medals_rt.common.arrays import contiguous, namespace, owned, settle
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.common.typing import Array
from medals_rt.inference.aggregation import LabelMap, SlabAggregator, empty_label_map
from medals_rt.inference.corrections import ShownPrompts, StageCorrection, correct
from medals_rt.inference.kept import Kept, digest_of
from medals_rt.inference.mirroring import mirrored
from medals_rt.inference.network import Network
from medals_rt.inference.refinement import MaskSource, Part, collect, refine
from medals_rt.inference.spatial_prompts import LabelPrompts, SpatialPrompts, label_prompts
from medals_rt.planning.memory import TileSweep
from medals_rt.planning.sliding_window import gaussian_weights, pad_far_end
from medals_rt.planning.stage_plan import StagePlan
from medals_rt.planning.time_budget import Watchdog
from medals_rt.planning.window_pass import WindowPass, passes_of_step, passes_per_window
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

    `maps_nhwd` are the probabilities of every class, where they are kept, on the stage's own grid.
    `passes` counts encoder passes: windows without any prompt need only one. `hastened` are runs of
    windows in fewer passes than planned because time ran out, `left_out` those that were not made,
    `kept` those that needed none, for an earlier run had made what they need. `corrected` windows
    were shown what a person changed of a result.
    """

    labels_hwd: Array
    probability_hwd: Array | None
    passes: int
    hastened: int = 0
    left_out: int = 0
    kept: int = 0
    corrected: int = 0
    maps_nhwd: Array | None = None


def run_stage(
    network: Network,
    stage_plan: StagePlan,
    image_hwd: Array,
    task: StageTask,
    *,
    prompt_labels_hwd: Array | None,
    corrections: Iterable[StageCorrection] = (),
    keep_probability: bool,
    keep_maps: bool = False,
    watch: Stopwatch,
    name: str,
    progress: Progress | None = None,
    watchdog: Watchdog | None = None,
    measured: MutableMapping[int, float] | None = None,
    kept: Kept | None = None,
    on_labels: Callable[[Array], None] | None = None,
) -> StageResult:
    """Segment one image by one network.

    Parameters
    ----------
    network
        The stage's.
    stage_plan
        Geometry, sweeps and passes, from `planning.stage_plan.stage_plans` for this image.
    image_hwd
        `(H, W, D)` float32 in 0..255, on the device of the network.
    task
        Classes and masks.
    prompt_labels_hwd
        Label map on the same grid whose masks are the spatial prompts `S_p`; None: text only.
    corrections
        What a person changed of earlier results, in order: windows that decide about it are shown
        it.
    keep_probability
        Also return the largest probability, which post-processing needs.
    keep_maps
        Also return the probabilities of every class (`probability_maps`).
    watch, name, progress
        Seconds go to the steps ``"{name}: resample"``, ``"... open graphs"``, ``"... network"``,
        ``"... aggregate"`` and ``"... restore"``, and to ``"... kept"`` for windows of which an
        earlier run made what takes time. A GPU is waited for once a step; all that it does for a
        window counts as the network's.
    watchdog
        Shortens the stage when time runs out; None: there is no limit.
    measured
        Gets the seconds of a pass by stage number, as windows end.
    kept
        What earlier runs made of this image, if it is kept, and where what is made is kept.
    on_labels
        Called with the labels on the stage's own grid `(H, W, D)`, as soon as they are known.
    """
    xp = namespace(image_hwd)
    geometry, memory = stage_plan.geometry, stage_plan.memory
    grid = (geometry.resampled_shape_hwd, geometry.padded_shape_hwd, geometry.separate_axis)
    of_grid = None if kept is None else kept.at(*grid)
    with watch.step(f"{name}: resample"):
        image = None if of_grid is None else of_grid.get()
        if image is None:
            image = pad_far_end(
                resample_image(image_hwd, geometry.resampled_shape_hwd, geometry.separate_axis),
                geometry.padded_shape_hwd,
            )
            if of_grid is not None:
                of_grid.put(image, [image])
        blocks = stage_plan.window_pass.block_size
        shown = ShownPrompts([None] * len(geometry.windows), None)
        if prompt_labels_hwd is not None:
            prompt_map = pad_far_end(
                resample_labels(
                    prompt_labels_hwd, geometry.resampled_shape_hwd, geometry.separate_axis
                ),
                geometry.padded_shape_hwd,
            )
            prompts = label_prompts(prompt_map, geometry.windows, task.labels, blocks)
            shown = ShownPrompts(prompts, prompt_map)
        shown = correct(shown, corrections, geometry.windows, task.labels, blocks)
        weights = gaussian_weights(geometry.spec.window_hwd, xp)
        settle(image)
    with watch.step(f"{name}: open graphs"):
        window_pass = stage_plan.window_pass
        prompted = window_pass.starts_from_text or any(
            each is not None for each in shown.of_windows
        )
        network.prepare(len(task.labels), prompted=prompted and window_pass.mode != "none")
    label_map = empty_label_map(
        geometry.resampled_shape_hwd,
        task.labels,
        weights,
        keep_probability=keep_probability or memory.class_groups > 1,
    )
    maps = None
    if keep_maps:
        shape = (len(task.labels), *geometry.resampled_shape_hwd)
        maps = xp.zeros(shape, dtype=xp.uint8, device=weights.device)
    sweeper = _Sweeper(
        StageInput(
            network,
            stage_plan,
            image,
            task,
            shown.of_windows,
            watch,
            name,
            progress,
            watchdog,
            measured,
            of_grid,
            text_only=prompt_labels_hwd is None,
        )
    )
    for sweep in memory.sweeps:
        windows = [geometry.windows[index] for index in sweep.windows]
        labels = task.labels[sweep.classes]
        aggregator = SlabAggregator(
            windows,
            labels,
            weights,
            label_map,
            sweep.columns,
            stage_plan.threshold,
            None if maps is None else maps[sweep.classes, ...],
        )
        label_map = sweeper.run(sweep, aggregator)
        del aggregator
    if on_labels is not None:
        on_labels(label_map.labels_hwd)
    network.release()
    with watch.step(f"{name}: restore"):
        labels_hwd = _with_prompts_where_uncovered(label_map, shown.whole_hwd)
        labels_hwd = resample_labels(labels_hwd, geometry.input_shape_hwd, order=FILE_ORDER)
        probability = None
        if keep_probability and label_map.probability_hwd is not None:
            probability = resample_image(
                label_map.probability_hwd, geometry.input_shape_hwd, order=FILE_ORDER
            )
        settle(labels_hwd)
    counts = sweeper.counts
    return StageResult(
        labels_hwd,
        probability,
        counts.passes,
        counts.hastened,
        counts.left_out,
        counts.kept,
        shown.corrected,
        maps,
    )


@dataclass(frozen=True)
class StageInput:
    """What the windows of a stage are run on.

    Attributes
    ----------
    network, stage_plan, task, watch, name, progress, watchdog, measured
        As for `run_stage`.
    image_hwd
        The stage's, resampled and padded.
    prompts
        Spatial prompts of each window; None where it holds none.
    kept
        What is kept of the image on this grid; None: nothing is.
    text_only
        There are no prompts but those of corrections: other windows get what they get without.
    """

    network: Network
    stage_plan: StagePlan
    image_hwd: Array
    task: StageTask
    prompts: Sequence[LabelPrompts | None]
    watch: Stopwatch
    name: str
    progress: Progress | None
    watchdog: Watchdog | None
    measured: MutableMapping[int, float] | None
    kept: Kept | None = None
    text_only: bool = False


@dataclass
class _Counts:
    """Window runs that are done, and what they took; see `StageResult`."""

    done: int = 0
    passes: int = 0
    hastened: int = 0
    left_out: int = 0
    kept: int = 0


class _WindowPredictor:
    """What the network says of one window, or said in an earlier run; a `refinement.Predict`.

    Parameters
    ----------
    stage
        What the window is of.
    window_pass
        The window.
    counts
        Counts the passes that are made.
    queries
        Names the queries.
    """

    def __init__(
        self, stage: StageInput, window_pass: WindowPass, counts: _Counts, queries: bytes
    ) -> None:
        window = stage.stage_plan.geometry.windows[window_pass.window_index]
        self._stage = stage
        self._pass = window_pass
        self._counts = counts
        self._chunk = stage.stage_plan.memory.classes_per_chunk
        self._image = contiguous(stage.image_hwd[window.slices])[None, None, ...]
        self._kept = None if stage.kept is None else stage.kept.at(window.starts_hwd)
        self._answers = self._kept and self._kept.at(
            "answer", (window_pass.mirrored, window_pass.combine), self._chunk, queries
        )

    def __call__(
        self, prompts: SpatialPrompts | None, classes: slice
    ) -> Iterator[tuple[slice, Array]]:
        """Run one pass, or all of a mirrored one, unless its answer is kept.

        An edit leaves one half of a masked pair as it was, unless it reaches into blocks of both.
        From text alone no answer is kept: it takes more memory than time, once the window's
        features are.
        """
        answer = None
        if self._answers is not None and (prompts is not None or self._pass.mirrored):
            seen = None if prompts is None else (type(prompts), digest_of(prompts.voxels))
            answer = self._answers.at(seen, classes.start, classes.stop)
        found = None if answer is None else answer.get()
        if found is not None:
            yield classes, found
            return
        predicted = self._predict(prompts, classes)
        size = 4 * (classes.stop - classes.start) * prod(self._pass.window_hwd)
        if answer is None or not answer.has_room(size):
            yield from predicted
            return
        found = owned(collect((Part(*each) for each in predicted), classes))
        answer.put(found, [found])
        yield classes, found

    def _predict(
        self, prompts: SpatialPrompts | None, classes: slice
    ) -> Iterator[tuple[slice, Array]]:
        if self._pass.mirrored:
            return mirrored(self._run, self._image, prompts, classes, self._pass.combine)
        return self._run(self._image, prompts, classes)

    def _run(
        self, image: Array, prompts: SpatialPrompts | None, classes: slice
    ) -> Iterator[tuple[slice, Array]]:
        """Run the network once; from text alone by features that are kept."""
        network = self._stage.network
        kept, features = None, None
        if self._kept is not None and prompts is None and not self._pass.mirrored:
            kept = self._kept.at("features")
            features = kept.get()
        if features is None:
            self._counts.passes += 1
            if kept is not None:
                features = network.encode(image)
                if features is not None:
                    kept.put(features, [features.refined, features.image_embedding])
        return network.predict(
            image,
            self._stage.task.queries,
            prompts,
            classes=classes,
            classes_per_chunk=self._chunk,
            features=features,
        )


class _Sweeper:
    """Sweeper of a stage's windows that counts what was spent."""

    def __init__(self, stage: StageInput) -> None:
        self._stage = stage
        self._levels = _shorter_passes(stage.stage_plan.window_pass)
        self._runs = stage.stage_plan.memory.window_runs
        self._queries = b"" if stage.kept is None else digest_of(stage.task.queries)
        self.counts = _Counts()
        self._report_progress()

    def run(self, sweep: TileSweep, aggregator: SlabAggregator) -> LabelMap:
        """Run the windows of a sweep and decide.

        Block masks depend on a window's place in the stage's plan, whichever sweep it is run for.
        """
        stage = self._stage
        for index in sweep.windows:
            window = stage.stage_plan.geometry.windows[index]
            window_pass = self._choose_pass()
            with stage.watch.step(f"{stage.name}: aggregate"):
                if window_pass is None:
                    aggregator.skip(window)
                else:
                    aggregator.begin(window)
            if window_pass is not None:
                window_pass = replace(window_pass, window_index=index, wanted=sweep.classes)
                if stage.text_only and stage.prompts[index] is None:
                    window_pass = window_pass.from_text
                self._aggregate_window(aggregator, window_pass, sweep.classes.start)
            self.counts.done += 1
            self._report_progress()
        with stage.watch.step(f"{stage.name}: network"):
            settle(stage.image_hwd)  # else these seconds would be those of asking a GPU
        self._measure()
        with stage.watch.step(f"{stage.name}: aggregate"):
            return aggregator.result()

    def _aggregate_window(
        self, aggregator: SlabAggregator, window_pass: WindowPass, first: int
    ) -> None:
        """Run a window and add its parts; `first` is the class that the aggregator counts from."""
        watch, name = self._stage.watch, self._stage.name
        before = self.counts.passes
        parts = self._run_window(window_pass)
        while True:
            with watch.step(f"{name}: network") as step:
                part = next(parts, None)
                if self.counts.passes == before:
                    step.name = f"{name}: kept"
            if part is None:
                self.counts.kept += self.counts.passes == before
                self._measure()
                return
            with watch.step(f"{name}: aggregate"):
                classes = slice(part.classes.start - first, part.classes.stop - first)
                aggregator.add(classes, part.probabilities, part.valid_mask)
            del part

    def _measure(self) -> None:
        """Keep what a pass took so far, of windows that were finished."""
        stage = self._stage
        if stage.measured is not None and self.counts.passes > 0:
            seconds = stage.watch.seconds[f"{stage.name}: network"]
            stage.measured[stage.network.spec.number] = seconds / self.counts.passes

    def _report_progress(self) -> None:
        if self._stage.progress is not None:
            self._stage.progress(self._stage.name, self.counts.done, self._runs)

    def _choose_pass(self) -> WindowPass | None:
        """Decide how the next window is run; None: not at all, for there is no time."""
        watchdog = self._stage.watchdog
        if watchdog is None:
            return self._levels[0]
        costs = [passes_per_window(level) for level in self._levels]
        chosen = watchdog.choose(costs, self._runs - self.counts.done)
        if chosen is None:
            self.counts.left_out += 1
            return None
        self.counts.hastened += chosen > 0
        return self._levels[chosen]

    def _run_window(self, window_pass: WindowPass) -> Iterator[Part]:
        """Run the passes of a window, as its parts are asked for."""
        stage, before = self._stage, self.counts.passes
        if stage.watchdog is not None:
            stage.watchdog.window_begins()
        yield from refine(
            _WindowPredictor(stage, window_pass, self.counts, self._queries),
            stage.prompts[window_pass.window_index],
            window_pass,
            stage.task.masks,
            lambda: self._goes_on(window_pass, self.counts.passes - before),
        )
        if stage.watchdog is not None:
            settle(stage.image_hwd)
            stage.watchdog.window_ended(self.counts.passes - before)

    def _goes_on(self, window_pass: WindowPass, done: int) -> bool:
        """Decide whether a lesion's next iteration is run, after so many passes of a window."""
        watchdog = self._stage.watchdog
        if watchdog is None:
            return True
        settle(self._stage.image_hwd)
        goes_on = watchdog.allows(passes_of_step(window_pass, window_pass.steps[-1]), done)
        self.counts.hastened += not goes_on
        return goes_on


def _shorter_passes(planned: WindowPass) -> list[WindowPass]:
    """List quality levels of a window, as planned first, each of fewer passes than the last."""
    levels = [planned]
    for shorter in (
        replace(planned, further_iterations=0),
        replace(planned, mode="none"),
        replace(planned, mode="none", mirrored=False),
    ):
        if passes_per_window(shorter) < passes_per_window(levels[-1]):
            levels.append(shorter)
    return levels


def _with_prompts_where_uncovered(label_map: LabelMap, prompt_map: Array | None) -> Array:
    """Fill voxels of which no window was run with what the stage was shown, if anything."""
    labels, uncovered = label_map.labels_hwd, label_map.uncovered_hwd
    if uncovered is None or prompt_map is None:
        return labels
    xp = namespace(labels)
    h, w, d = labels.shape
    shown = xp.astype(prompt_map[:h, :w, :d], labels.dtype)
    return xp.where(uncovered & (labels == 0), shown, labels)
