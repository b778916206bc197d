"""Opened models, ready for any number of cases.

No arithmetic stands here: classes are grouped by kind and intensity window, geometry decides,
`run_stages` segments, `finalize` cleans up, and `report` writes down what was done
(docs/algorithm.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.arguments import check_class
from medals_rt.common.choices import (
    RUNNER_KINDS,
    STAGE_NAMES,
    ConvolutionChoice,
    PrecisionChoice,
    RunnerChoice,
    StageNumber,
)
from medals_rt.common.errors import InputError
from medals_rt.common.gpu_faults import raises_device_lost
from medals_rt.common.notes import Note, warning
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.inference.corrections import Correction, check_corrections, parts_of
from medals_rt.inference.hybrid_prompts import check_start, checked_annotation
from medals_rt.inference.kept import KeptImage
from medals_rt.inference.network import Network, StageNetwork
from medals_rt.inference.probability_maps import ProbabilityMaps
from medals_rt.io.case import Case
from medals_rt.io.volume import Volume, volume_notes
from medals_rt.pipeline.case_setup import case_setup
from medals_rt.pipeline.corrected_voxels import corrected_notes
from medals_rt.pipeline.group_run import CoarseLabels, GroupTask, OpenedModel, run_group
from medals_rt.pipeline.lesions_over_anatomy import (
    case_groups,
    check_combination,
    covering_labels,
    merge_case,
)
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.report import Provenance, RunReport, build_report
from medals_rt.pipeline.window_groups import (
    GroupResult,
    Merged,
    check_window,
    part_of_annotation,
)
from medals_rt.planning.image_spacing import spacing_of_volume
from medals_rt.planning.memory import MemoryLimit, memory_limit
from medals_rt.planning.pass_timings import MeasuredPasses
from medals_rt.planning.stage_plan import StagesOfGroup, check_memory, outline_groups
from medals_rt.planning.time_budget import case_budget
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.prompt_set import AnyPrompts, PromptSet, as_prompt_set

_NAMED: Final = 5
"""As many classes stand in what is printed of a result at most."""


@dataclass(frozen=True, eq=False)
class Result:
    """The segmentation of one case, on the case's own `(D, H, W)` grid, on the host.

    Attributes
    ----------
    labels_dhw
        Label values of the prompts, 0 background; the smallest unsigned integer that holds them.
    instances_dhw
        For lesions, where the preset numbers them: the components from 1, uint32; else None.
    stage_labels_dhw
        What each stage came to on the whole grid before anything was cleaned up, by stage name
        (``"window: stage"`` where the classes were seen in several windows, ``"lesions: stage"``
        where organs and lesions were asked for).
    report
        What was done.
    probability_dhw
        The last stage's largest probability of a voxel's classes, float32, 0 outside the stage's
        box; None unless `SegmentOptions.keep_probability` asked for it.
    probabilities
        The last stage's probability of each class by its label, ``(D, H, W)`` uint8 with 255 for 1,
        made when it is asked for (`inference.probability_maps`); None unless
        `SegmentOptions.probabilities` asked for it.
    """

    labels_dhw: npt.NDArray[Any]
    instances_dhw: npt.NDArray[np.uint32] | None
    stage_labels_dhw: Mapping[str, npt.NDArray[Any]]
    report: RunReport
    probability_dhw: npt.NDArray[np.float32] | None = None
    probabilities: Mapping[int, npt.NDArray[np.uint8]] | None = None

    def __repr__(self) -> str:
        found = [f"{each.name} {each.volume_ml:,.2f} mL" for each in self.report.classes]
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return f"<Result of {self.report.case}: {', '.join(found[:_NAMED])}{more}>"


class CaseSegmenter(Protocol):
    """What segments cases: a `Segmenter`, or what asks one in another process."""

    @property
    def bundle(self) -> Bundle:
        """Whose models they are."""
        ...

    @property
    def arithmetic(self) -> str:
        """See `Segmenter.arithmetic`."""
        ...

    @property
    def measured_passes(self) -> MeasuredPasses | None:
        """See `Segmenter.measured_passes`."""
        ...

    def memory_limit(self, asked: int | None) -> MemoryLimit:
        """See `Segmenter.memory_limit`."""
        ...

    def segment(
        self,
        volume: Volume,
        prompts: AnyPrompts,
        options: SegmentOptions | None = None,
        *,
        spatial_prompts: npt.NDArray[Any] | None = None,
        corrections: Iterable[Correction] = (),
        provenance: Provenance | None = None,
        progress: Progress | None = None,
        kept: KeptImage | None = None,
        on_coarse: Callable[[CoarseLabels], None] | None = None,
    ) -> Result:
        """See `Segmenter.segment`."""
        ...

    def close(self) -> None:
        """See `Segmenter.close`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Segmenter:
    """Opened models, ready for cases. Use it as a context manager, or call `close`.

    Make one with `medals_rt.load` or `Segmenter.open`. Not safe to share between threads.
    """

    def __init__(self, bundle: Bundle, networks: Mapping[StageNumber, Network]) -> None:
        self.bundle = bundle
        self._model = OpenedModel(bundle, dict(networks), PromptEmbedder(bundle))
        self._open_chains: frozenset[tuple[int, str]] = frozenset()
        self._is_closed = False
        self._process = os.getpid()
        self._in_use = Lock()
        self._user: int | None = None
        self._token = object()  # what is kept is of this segmenter alone

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        *,
        runner: RunnerChoice = "auto",
        precision: PrecisionChoice | None = None,
        threads: int | None = None,
        convolution: ConvolutionChoice = "auto",
    ) -> Self:
        """Open a bundle's models; parameters and errors are those of `medals_rt.load`."""
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(resolve_bundle(bundle))
        networks: dict[StageNumber, StageNetwork] = {}
        try:
            for number in STAGE_NAMES:
                networks[number] = StageNetwork.open(
                    opened,
                    number,
                    runner=runner,
                    precision=precision,
                    threads=threads,
                    convolution=convolution,
                )
            return cls(opened, networks)
        except BaseException:
            for network in networks.values():
                network.close()
            raise

    def __repr__(self) -> str:
        if self._is_closed:
            return f"<Segmenter of {self.bundle.name}, closed>"
        return f"<Segmenter of {self.bundle.name}, {self.arithmetic}>"

    def network(self, stage: StageNumber) -> Network:
        """Return the network of stage 1 (coarse) or 2 (fine)."""
        return self._model.networks[stage]

    @property
    def arithmetic(self) -> str:
        """What runs the networks, such as ``"openvino/bf16"``: measured passes are kept by it."""
        return self._model.arithmetic

    def memory_limit(self, asked: int | None) -> MemoryLimit:
        """Return what may be held where the networks' arrays are; as `memory.memory_limit`."""
        return memory_limit(asked, self._model.array_device)

    @property
    def measured_passes(self) -> MeasuredPasses | None:
        """What passes took so far, for `pass_timings.record`; also after a case that failed.

        None where nothing was run, or the networks are of another kind than the run time's (PyTorch
        as a reference), which says nothing of it.
        """
        measured = self._model.measured
        if not measured or self._model.infos[0].runner not in RUNNER_KINDS:
            return None
        return MeasuredPasses(self.arithmetic, dict(measured))

    def close(self) -> None:
        """Free the models' memory, once a case that another thread runs has ended.

        Cases are refused from then on. In a fork of the process that opened it nothing is done.

        Raises
        ------
        InputError
            ``segmenter-in-use``: a function that `segment` has called asks for it.
        """
        if os.getpid() != self._process:
            return
        if self._user == get_ident():
            raise _in_use()
        self._is_closed = True
        with self._in_use:
            for network in self._model.networks.values():
                network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @raises_device_lost
    def segment(
        self,
        volume: Volume,
        prompts: AnyPrompts,
        options: SegmentOptions | None = None,
        *,
        spatial_prompts: npt.NDArray[Any] | None = None,
        corrections: Iterable[Correction] = (),
        provenance: Provenance | None = None,
        progress: Progress | None = None,
        kept: KeptImage | None = None,
        on_coarse: Callable[[CoarseLabels], None] | None = None,
    ) -> Result:
        """Segment one case.

        Parameters
        ----------
        volume
            Image and spacing.
        prompts
            The classes asked for and their label values: a `PromptSet`, a mapping like that of a
            prompts file, a list of sentences (labels 1, 2, ...), or one sentence. Classes that are
            asked for together compete for voxels: a left lung alone is not exactly the left lung
            of both. Anatomy and lesions (`prompt_set.combine`, or ``"lesions"`` in a mapping) are
            segmented apart, each as if asked for alone; lesions then replace the organs below them.
        options
            How; None for the defaults.
        spatial_prompts
            An annotation `(D, H, W)` on the volume's grid with label values of `prompts`: it
            replaces the coarse prediction of the labels that it holds (hybrid mode).
        corrections
            What a person changed of the result of this call without them, then of its result with
            the first of them, and so on: `medals_rt.Correction.of`. Windows that decide about a
            change are shown the corrected labels; all others are shown what they were shown
            before, so that nothing changes far from a change. The voxels that were changed stay as
            they were changed.
        provenance
            What is known of the case from before, for the report and the time budget.
        progress
            Called with the stage's name, windows done and windows in all; a window that is run
            several times, to keep within the memory, counts each time.
        kept
            What earlier runs left of this image, of `medals_rt.FeatureCache`: what didn't change
            since is not computed again, and the labels are the same to the bit. Not used by the
            stages of a run with a time budget.
        on_coarse
            Called with what the coarse stage found as soon as that is known, where a fine stage
            follows; once for each group of classes (intensity windows, lesions over anatomy).

        Raises
        ------
        TypeError
            `volume` is no `Volume`, `options` are no `SegmentOptions`, or `prompts` none of theirs.
        CaseError
            The annotation or a correction does not fit the volume.
        BundleError
            The bundle does not cover a class.
        InputError
            The segmenter is closed, in use by another thread, or was opened in another process; the
            window is unknown or not one of the modality; results of
            the preset can't be corrected, or refinement starts from the text alone; the memory
            does not hold one class at a time, or the time no pass of the network.
        PromptError
            There are no prompts (None), one names no class, or the preset can't tell lesions from
            anatomy.
        DeviceLostError
            The GPU failed: this process can use it no more.
        """
        with self._used():
            return self._segment(
                _checked(volume, prompts, options, spatial_prompts, corrections),
                provenance or Provenance(),
                progress,
                kept,
                on_coarse,
            )

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Refuse to be used by two at once, or where libraries would hang.

        Raises
        ------
        InputError
            ``segmenter-closed``, ``segmenter-elsewhere`` or ``segmenter-in-use``.
        """
        if self._is_closed:
            raise InputError(
                "this segmenter is closed; open it again with medals_rt.load",
                code="segmenter-closed",
            )
        if os.getpid() != self._process:  # threads of libraries don't live on in a fork
            raise InputError(
                "this segmenter was opened before the process was forked; call medals_rt.load in "
                "the process that uses it",
                code="segmenter-elsewhere",
            )
        if not self._in_use.acquire(blocking=False):
            raise _in_use()
        self._user = get_ident()
        try:
            yield
        finally:
            self._user = None
            self._in_use.release()

    def _segment(
        self,
        asked: _Asked,
        provenance: Provenance,
        progress: Progress | None,
        kept: KeptImage | None,
        on_coarse: Callable[[CoarseLabels], None] | None,
    ) -> Result:
        watch = Stopwatch()
        volume = asked.volume
        options, preset = asked.options, asked.options.algorithm
        spacing_hwd_mm, spacing_notes = spacing_of_volume(volume, preset, asked.prompts.modality)
        groups = case_groups(volume, asked.prompts, options.window, preset)
        for group in groups:
            self._model.embedder.sources(group.prompts.prompts)  # before any network runs
        of_image = None if kept is None else kept.begin(volume).at(self._token)
        setup = case_setup(
            volume.shape_dhw,
            spacing_hwd_mm,
            volume.image_dhw.dtype.itemsize,
            options,
            self._model.facts,
            self._memory_beside(kept, options.max_memory),
        )
        outlines = outline_groups(
            setup, [group.prompts.class_keys for group in groups], self._open_chains
        )
        by_probability = len(groups) > len(asked.prompts.parts) and preset.merge == "probability"
        tasks = [
            GroupTask(
                volume,
                group,
                outline,
                options,
                *asked.drawn_of(group.prompts),
                keep_probability=options.keep_probability or by_probability,
                kept=of_image,
                progress=progress,
                on_coarse=on_coarse,
            )
            for group, outline in zip(groups, outlines, strict=True)
        ]
        check_memory(
            [StagesOfGroup(task.outline, task.outline.stages, task.is_drawn) for task in tasks]
        )
        results = self._run_groups(tasks, options.time_budget, provenance, watch)
        merged = merge_case(results, preset.merge, asked.corrections)
        notes = (*provenance.notes, *asked.notes, *spacing_notes)
        report = build_report(
            volume,
            spacing_hwd_mm,
            asked.prompts,
            options,
            self.bundle,
            self._model.infos,
            results,
            merged,
            replace(provenance, notes=(*notes, *corrected_notes(asked.corrections, merged))),
            watch.total(),
        )
        return _result(options, results, merged, report)

    def _run_groups(
        self,
        tasks: Sequence[GroupTask],
        time_budget: float | None,
        provenance: Provenance,
        watch: Stopwatch,
    ) -> list[GroupResult]:
        """Run one group after the other: each has the time of its classes, and what is left.

        What came before counts as the first one's.
        """
        spent_before, classes_before = sum(provenance.seconds.values()), 0
        ended_before = 0.0
        results: list[GroupResult] = []
        for task in tasks:
            classes = len(task.group.prompts.labels)
            own = (time_budget or 0.0) * classes_before
            budget = case_budget(
                time_budget, classes, spent_before + watch.total() - own, may_refuse=not results
            )
            classes_before += classes
            self._open_chains = task.outline.chains_by(2)
            results.append(run_group(self._model, task, budget))
            if budget is not None:
                ended = spent_before + watch.total()
                budget.taken, ended_before = ended - ended_before, ended
        return results

    def _memory_beside(self, kept: KeptImage | None, asked: int | None) -> MemoryLimit:
        """Return what a case may hold beside what is kept between runs.

        That may grow to its limit meanwhile, which is not the case's to use. Of what is free now,
        what it holds has been taken already.
        """
        memory = self.memory_limit(asked)
        if kept is None:
            return memory
        reserved = kept.cache.max_bytes - (0 if memory.asked else kept.cache.bytes)
        return replace(memory, total=max(1, memory.total - reserved))


def load(
    bundle: str | Path | Bundle | None = None,
    *,
    runner: RunnerChoice = "auto",
    precision: PrecisionChoice | None = None,
    threads: int | None = None,
    convolution: ConvolutionChoice = "auto",
) -> Segmenter:
    """Open a bundle's models.

    Parameters
    ----------
    bundle
        Its folder, or the bundle itself; None for the one named by ``MEDALS_RT_BUNDLE``, else the
        demo.
    runner
        The inference library, one of `medals_rt.common.choices.RUNNER_KINDS`; ``"auto"`` takes the
        fastest that this machine can run.
    precision
        Arithmetic of the network: ``"fp32"``, ``"fp16"`` or ``"bf16"``, of a quantized bundle its
        own; ``"auto"`` or None: what suits this machine and bundle.
    threads
        For the network; None: all that this process may use.
    convolution
        How OpenVINO's convolutions of large windows are computed: ``"direct"`` by itself,
        ``"winograd"`` with fewer multiplications, ``"auto"`` by what was measured to be faster on
        such a processor.

    Returns
    -------
    Segmenter
        A context manager; `close` it after use.

    Raises
    ------
    BundleError
        The bundle is damaged, of an unknown format, or has other classes than this package.
    InputError
        The runner, precision or convolution is unknown, or the runner does not have it.
    MissingDependencyError
        The runner's library is not installed.
    RunnerError
        The library refuses a graph, or the processor lacks the precision.
    """
    return Segmenter.open(
        bundle, runner=runner, precision=precision, threads=threads, convolution=convolution
    )


def _in_use() -> InputError:
    return InputError(
        "this segmenter is in use, by another thread or by the call that called this function; "
        "open one for each, or let them take turns",
        code="segmenter-in-use",
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked for of a case, checked: arguments of `Segmenter.segment`."""

    volume: Volume
    prompts: PromptSet
    options: SegmentOptions
    annotation_dhw: npt.NDArray[Any] | None
    corrections: tuple[Correction, ...]

    def drawn_of(
        self, prompts: PromptSet
    ) -> tuple[npt.NDArray[Any] | None, tuple[Correction, ...]]:
        """Return the annotation's and the corrections' part of some of the classes."""
        covering = covering_labels(prompts, self.prompts)
        return (
            part_of_annotation(self.annotation_dhw, prompts.labels),
            parts_of(self.corrections, prompts.labels, covering),
        )

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks on the prompts, the image, and drawn labels that are no prompts."""
        notes = (*self.prompts.notes, *volume_notes(self.volume))
        is_drawn = self.annotation_dhw is not None or bool(self.corrections)
        if not is_drawn or self.options.refinement != "none":
            return notes
        text = (
            "drawn labels only bound where the fine stage looked: refinement none segments from "
            "the text alone"
        )
        return (*notes, warning("annotation-not-shown", text))


def _checked(
    volume: Volume,
    prompts: AnyPrompts,
    options: SegmentOptions | None,
    spatial_prompts: npt.NDArray[Any] | None,
    corrections: Iterable[Correction],
) -> _Asked:
    """Refuse what no model could do; see `Segmenter.segment`."""
    if isinstance(corrections, Correction):
        raise TypeError("corrections are several; write corrections=[correction]")
    corrections = tuple(corrections)
    made = "Volume.from_nibabel(image), Volume.from_sitk(image) or Volume(array, spacing)"
    instead = "write case.volume" if isinstance(volume, Case) else f"make one with {made}"
    check_class("volume", volume, Volume, instead)
    options = SegmentOptions() if options is None else options
    check_class(
        "options",
        options,
        SegmentOptions,
        "write segment(volume, prompts, SegmentOptions(preset='paper'))",
    )
    prompts = as_prompt_set(prompts)
    preset = options.algorithm
    check_window(options.window, prompts.modality, preset)
    check_combination(prompts, preset)
    check_start(preset, annotated=spatial_prompts is not None or bool(corrections))
    annotation = checked_annotation(spatial_prompts, volume.shape_dhw, prompts)
    check_corrections(corrections, volume.shape_dhw, prompts, preset)
    return _Asked(volume, prompts, options, annotation, corrections)


def _result(
    options: SegmentOptions, results: Sequence[GroupResult], merged: Merged, report: RunReport
) -> Result:
    """Put the results of a case's groups together."""
    stage_labels = {
        result.group.named(stage): labels
        for result in results
        for stage, labels in result.stage_labels_dhw.items()
    }
    maps = [each.maps for each in results if each.maps is not None]
    return Result(
        merged.labels_dhw,
        merged.instances_dhw,
        stage_labels,
        report,
        merged.probability_dhw if options.keep_probability else None,
        ProbabilityMaps(maps) if options.probabilities else None,
    )
