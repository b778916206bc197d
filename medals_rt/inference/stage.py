"""One stage of a case: resample, sweep over the windows, decide, and restore the stage's grid.

Both stages run through `run_stage`; what differs is the plan, the network and whether there are
spatial prompts (docs/algorithm.md, sections 4 to 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from medals_rt.common.arrays import contiguous, namespace, owned, settle
from medals_rt.common.choices import StageName, StageNumber
from medals_rt.common.errors import RunnerError
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.common.typing import Array, Box
from medals_rt.inference.aggregation import LabelMap, SlabAggregator, empty_label_map
from medals_rt.inference.corrections import (
    Correction,
    ShownPrompts,
    StageCorrection,
    correct,
    who_decides,
)
from medals_rt.inference.kept import Kept, digest_of
from medals_rt.inference.largest_values import LargestValues
from medals_rt.inference.mirroring import mirrored
from medals_rt.inference.network import Network, PassInput
from medals_rt.inference.refinement import MaskSource, Part, collect, refine
from medals_rt.inference.spatial_prompts import SpatialPrompts, label_prompts
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
    keep_probability
        Whether the largest probability is wanted, which post-processing needs.
    keep_maps
        Whether the probabilities of every class are (`probability_maps`).
    watch, progress
        Seconds go to the steps ``"{name}: resample"``, ``"... open graphs"``, ``"... network"``,
        ``"... aggregate"`` and ``"... restore"``, and to ``"... kept"`` for windows of which an
        earlier run made what takes time. A GPU is waited for once a step; all that it does for a
        window counts as the network's.
    measured
        Gets the seconds of a pass by stage number, as windows end.
    """

    queries: Array
    labels: tuple[int, ...]
    masks: MaskSource
    keep_probability: bool = False
    keep_maps: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)
    progress: Progress | None = None
    measured: dict[StageNumber, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageInput:
    """What one stage is run on.

    Attributes
    ----------
    network
        The stage's.
    plan
        Geometry, sweeps and passes, from `planning.stage_plan.stage_plans` for this box.
    task
        What is asked for.
    box_dhw
        What the stage looks at of the case.
    image_hwd
        That box, `(H, W, D)` float32 in 0..255, on the device of the network.
    prompt_labels_hwd
        Label map of the same box whose masks are the spatial prompts `S_p`; None: text only.
    corrections
        What a person changed of earlier results of the case, in order: windows that decide about it
        are shown it.
    watchdog
        Shortens the stage when time runs out; None: there is no limit.
    kept
        What earlier runs made of this box, if it is kept, and where what is made is kept.
    on_labels
        Called with the labels on the stage's own grid `(H, W, D)`, as soon as they are known.
    """

    network: Network
    plan: StagePlan
    task: StageTask
    box_dhw: Box
    image_hwd: Array
    prompt_labels_hwd: Array | None = None
    corrections: Sequence[Correction] = ()
    watchdog: Watchdog | None = None
    kept: Kept | None = None
    on_labels: Callable[[Array], None] | None = None

    @property
    def name(self) -> StageName:
        """The stage's name."""
        return self.plan.geometry.spec.name


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


def run_stage(stage: StageInput) -> StageResult:
    """Segment one box of a case by one network.

    What its library keeps for a next run is returned, also where the stage is canceled or fails: it
    may take more than everything else of an opened model.

    Raises
    ------
    RunnerError
        If the network gives what is not finite (``output-not-finite``), or its library fails.
    """
    try:
        prepared = _prepare(stage)
        label_map, maps, counts = _sweep(prepared)
        if stage.on_labels is not None:
            stage.on_labels(label_map.labels_hwd)
    finally:
        stage.network.release()
    labels, probability = _restore(prepared, label_map)
    return StageResult(
        labels,
        probability,
        passes=counts.passes,
        hastened=counts.hastened,
        left_out=counts.left_out,
        kept=counts.kept,
        corrected=prepared.shown.corrected,
        maps_nhwd=maps,
    )


@dataclass(frozen=True)
class _Prepared:
    """What the windows of a stage are run on.

    Attributes
    ----------
    stage
        Whose they are.
    image_hwd
        Its image, resampled and padded.
    shown
        Spatial prompts of each window.
    weights
        Of the voxels of a window.
    kept
        What is kept of the image on this grid; None: nothing is.
    """

    stage: StageInput
    image_hwd: Array
    shown: ShownPrompts
    weights: Array
    kept: Kept | None


def _prepare(stage: StageInput) -> _Prepared:
    """Bring image and prompts onto the stage's grid, and open the graphs that its passes take."""
    geometry, window_pass = stage.plan.geometry, stage.plan.window_pass
    grid = (geometry.resampled_shape_hwd, geometry.padded_shape_hwd, geometry.separate_axis)
    kept = None if stage.kept is None else stage.kept.at(*grid)
    with stage.task.watch.step(f"{stage.name}: resample"):
        image = _resampled_image(stage, kept)
        shown = _shown_prompts(stage)
        weights = gaussian_weights(geometry.spec.window_hwd, namespace(image))
        settle(image)
    with stage.task.watch.step(f"{stage.name}: open graphs"):
        prompted = window_pass.starts_from_text or any(
            each is not None for each in shown.of_windows
        )
        stage.network.prepare(
            len(stage.task.labels), prompted=prompted and window_pass.mode != "none"
        )
    return _Prepared(stage, image, shown, weights, kept)


def _resampled_image(stage: StageInput, kept: Kept | None) -> Array:
    """Resample and pad the image, unless that is kept."""
    geometry = stage.plan.geometry
    image = None if kept is None else kept.get()
    if image is None:
        image = pad_far_end(
            resample_image(stage.image_hwd, geometry.resampled_shape_hwd, geometry.separate_axis),
            geometry.padded_shape_hwd,
        )
        if kept is not None:
            kept.put(image, [image])
    return image


def _shown_prompts(stage: StageInput) -> ShownPrompts:
    """Cut the spatial prompts for the windows, and show corrections to those that decide."""
    geometry, labels = stage.plan.geometry, stage.task.labels
    blocks = stage.plan.window_pass.block_size
    shown = ShownPrompts([None] * len(geometry.windows), None)
    if stage.prompt_labels_hwd is not None:
        prompt_map = pad_far_end(
            resample_labels(
                stage.prompt_labels_hwd, geometry.resampled_shape_hwd, geometry.separate_axis
            ),
            geometry.padded_shape_hwd,
        )
        prompts = label_prompts(prompt_map, geometry.windows, labels, blocks)
        shown = ShownPrompts(prompts, prompt_map)
    corrections = (
        StageCorrection.at(each, decides, stage.box_dhw, geometry, stage.image_hwd)
        for each, decides in zip(
            stage.corrections,
            who_decides(stage.corrections, stage.box_dhw, geometry),
            strict=True,
        )
    )
    return correct(shown, corrections, geometry.windows, labels, blocks)


def _sweep(prepared: _Prepared) -> tuple[LabelMap, Array | None, _Counts]:
    """Run the windows, sweep by sweep; return labels, the maps of all classes, what was spent."""
    task, plan, weights = prepared.stage.task, prepared.stage.plan, prepared.weights
    geometry, memory = plan.geometry, plan.memory
    label_map = empty_label_map(
        geometry.resampled_shape_hwd,
        task.labels,
        weights,
        keep_probability=task.keep_probability or memory.class_groups > 1,
    )
    maps = None
    if task.keep_maps:
        xp, shape = namespace(weights), (len(task.labels), *geometry.resampled_shape_hwd)
        maps = xp.zeros(shape, dtype=xp.uint8, device=weights.device)
    sweeper = _Sweeper(prepared)
    for sweep in memory.sweeps:
        aggregator = SlabAggregator(
            [geometry.windows[index] for index in sweep.windows],
            task.labels[sweep.classes],
            weights,
            label_map,
            plan.threshold,
            sweep.columns,
            None if maps is None else maps[sweep.classes, ...],
            sweeper.largest,
        )
        label_map = sweeper.run(sweep, aggregator)
        del aggregator
    return label_map, maps, sweeper.counts


def _restore(prepared: _Prepared, label_map: LabelMap) -> tuple[Array, Array | None]:
    """Bring labels and the largest probability back onto the grid of the box."""
    stage = prepared.stage
    shape_hwd = stage.plan.geometry.input_shape_hwd
    with stage.task.watch.step(f"{stage.name}: restore"):
        labels = _with_prompts_where_uncovered(label_map, prepared.shown.whole_hwd)
        labels = resample_labels(labels, shape_hwd, order=FILE_ORDER)
        probability = None
        if stage.task.keep_probability and label_map.probability_hwd is not None:
            probability = resample_image(label_map.probability_hwd, shape_hwd, order=FILE_ORDER)
        settle(labels)
    return labels, probability


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
    prepared
        What the window is of.
    window_pass
        The window.
    counts
        Counts the passes that are made.
    queries
        Names the queries.
    """

    def __init__(
        self, prepared: _Prepared, window_pass: WindowPass, counts: _Counts, queries: bytes
    ) -> None:
        stage = prepared.stage
        window = stage.plan.geometry.windows[window_pass.window_index]
        self._stage = stage
        self._pass = window_pass
        self._counts = counts
        self._chunk = stage.plan.memory.classes_per_chunk
        self._image = contiguous(prepared.image_hwd[window.slices])[None, None, ...]
        self._kept = None if prepared.kept is None else prepared.kept.at(window.starts_hwd)
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
        queries = self._stage.task.queries
        return network.predict(PassInput(image, queries, prompts, classes, self._chunk, features))


class _Sweeper:
    """Sweeper of a stage's windows that counts what was spent."""

    def __init__(self, prepared: _Prepared) -> None:
        stage = prepared.stage
        self._prepared = prepared
        self._stage = stage
        self._watch = stage.task.watch
        self._levels = _shorter_passes(stage.plan.window_pass)
        self._runs = stage.plan.memory.window_runs
        self._queries = b"" if prepared.kept is None else digest_of(stage.task.queries)
        self.counts = _Counts()
        self.largest = LargestValues()
        self._report_progress()

    def run(self, sweep: TileSweep, aggregator: SlabAggregator) -> LabelMap:
        """Run the windows of a sweep and decide.

        Block masks depend on a window's place in the stage's plan, whichever sweep it is run for.
        """
        stage, watch = self._stage, self._watch
        from_text = stage.prompt_labels_hwd is None
        for index in sweep.windows:
            window = stage.plan.geometry.windows[index]
            window_pass = self._choose_pass()
            with watch.step(f"{stage.name}: aggregate"):
                if window_pass is None:
                    aggregator.skip(window)
                else:
                    aggregator.begin(window)
            if window_pass is not None:
                window_pass = replace(window_pass, window_index=index, wanted=sweep.classes)
                if from_text and self._prepared.shown.of_windows[index] is None:
                    window_pass = window_pass.from_text
                self._aggregate_window(aggregator, window_pass, sweep.classes.start)
            self.counts.done += 1
            self._report_progress()
        with watch.step(f"{stage.name}: network"):
            settle(self._prepared.image_hwd)  # else these seconds would be those of asking a GPU
        self._measure()
        with watch.step(f"{stage.name}: aggregate"):
            label_map = aggregator.result()
            if not self.largest.are_finite():
                raise _not_finite(stage)
            return label_map

    def _aggregate_window(
        self, aggregator: SlabAggregator, window_pass: WindowPass, first: int
    ) -> None:
        """Run a window and add its parts; `first` is the class that the aggregator counts from."""
        watch, name = self._watch, self._stage.name
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
        if self.counts.passes > 0:
            seconds = self._watch.seconds[f"{stage.name}: network"]
            stage.task.measured[stage.plan.geometry.spec.number] = seconds / self.counts.passes

    def _report_progress(self) -> None:
        progress = self._stage.task.progress
        if progress is not None:
            progress(self._stage.name, self.counts.done, self._runs)

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
            _WindowPredictor(self._prepared, window_pass, self.counts, self._queries),
            self._prepared.shown.of_windows[window_pass.window_index],
            window_pass,
            stage.task.masks,
            lambda: self._goes_on(window_pass, self.counts.passes - before),
            self.largest.note,
        )
        if stage.watchdog is not None:
            settle(self._prepared.image_hwd)
            stage.watchdog.window_ended(self.counts.passes - before)

    def _goes_on(self, window_pass: WindowPass, done: int) -> bool:
        """Decide whether a lesion's next iteration is run, after so many passes of a window."""
        watchdog = self._stage.watchdog
        if watchdog is None:
            return True
        settle(self._prepared.image_hwd)
        goes_on = watchdog.allows(passes_of_step(window_pass, window_pass.steps[-1]), done)
        self.counts.hastened += not goes_on
        return goes_on


def _not_finite(stage: StageInput) -> RunnerError:
    """Return the error that a stage's network gave NaN."""
    info = stage.network.info
    what_to_do = (
        "its weights are damaged: `medals-rt verify` names the graph; export or fetch it again"
        if info.precision == "fp32"
        else "take --precision fp32, or a bundle exported in fp32 or bf16"
    )
    return RunnerError(
        f"the {stage.name} network gave values that are not finite, by {info.runner} in "
        f"{info.precision}; {what_to_do}",
        code="output-not-finite",
    )


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
