"""Two stages, start to end: the models are opened once and serve any number of cases.

No arithmetic stands here: geometry decides, `run_stage` segments, `postprocess` cleans up; this
module says in which order and writes down what was done (system rules 3 to 8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt import timings
from medals_rt.annotation import checked_annotation, fine_prompts, labels_in
from medals_rt.arrays import Array, Box, bounding_box, namespace, to_device, to_host
from medals_rt.bundle import Bundle, resolve_bundle
from medals_rt.errors import InputError
from medals_rt.finish import finish_labels, treated_labels
from medals_rt.geometry import Spacing, clean_spacing, plan_stage, region_of_interest
from medals_rt.intensities import prepare_intensities
from medals_rt.network import StageNetwork
from medals_rt.policy import CaseRules, Preset, load_policy
from medals_rt.prompts import PromptSet, parse_prompts
from medals_rt.refinement import MaskSource, Mode, seeded_masks
from medals_rt.report import (
    RunReport,
    StageRecord,
    Stopwatch,
    class_records,
    peak_memory_mib,
)
from medals_rt.stage import CLASSES_PER_CHUNK, Progress, StageResult, StageTask, run_stage
from medals_rt.volume import Volume, to_dhw, to_hwd

StageNumber: TypeAlias = Literal[1, 2]
STAGE_NAMES: dict[StageNumber, str] = {1: "coarse", 2: "fine"}
REFINEMENTS: tuple[Mode, ...] = ("masked", "unmasked", "none")


@dataclass(frozen=True)
class Result:
    """The segmentation of one case, on the case's own `(D, H, W)` grid, on the host.

    Attributes
    ----------
    labels_dhw
        Label values of the prompts, 0 background; the smallest unsigned integer that holds them.
    instances_dhw
        For lesions under the preset `paper`: the components numbered from 1, uint32; else None.
    stage_labels_dhw
        What each stage gave on the whole grid before anything was cleaned up, by stage name.
    report
        What was done.
    """

    labels_dhw: npt.NDArray[Any]
    instances_dhw: npt.NDArray[np.uint32] | None
    stage_labels_dhw: dict[str, npt.NDArray[Any]]
    report: RunReport


@dataclass(frozen=True)
class _Case:
    """One case on the network's device, and everything that its stages share."""

    image_dhw: Array
    spacing_hwd_mm: Spacing
    rules: CaseRules
    preset: Preset
    task: StageTask
    keep_probability: bool
    watch: Stopwatch
    progress: Progress | None


@dataclass(frozen=True)
class _StageOutcome:
    """A stage's labels (and probability) on the whole grid, and its record."""

    labels_dhw: Array
    probability_dhw: Array | None
    record: StageRecord


class Segmenter:
    """Opened models, ready for cases. Use it as a context manager, or call `close`.

    Make one with `medals_rt.load` or `Segmenter.open`.
    """

    def __init__(self, bundle: Bundle, networks: dict[StageNumber, StageNetwork]) -> None:
        self.bundle = bundle
        self._networks = networks

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        *,
        runner: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open a bundle's models.

        Parameters
        ----------
        bundle
            Its folder; None for the one named by ``MEDALS_RT_BUNDLE``, else the demo.
        runner
            ``"auto"``, ``"openvino"`` or ``"onnxruntime"``.
        precision
            ``"fp32"`` or ``"bf16"``; None: what suits this processor.
        threads
            For the network; None: all that this process may use.

        Raises
        ------
        BundleError
            The bundle is damaged or of an unknown format.
        MissingDependencyError
            The runner's library is not installed.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(resolve_bundle(bundle))
        networks: dict[StageNumber, StageNetwork] = {}
        try:
            for number in STAGE_NAMES:
                networks[number] = StageNetwork.open(
                    opened, number, runner=runner, precision=precision, threads=threads
                )
        except BaseException:
            for network in networks.values():
                network.close()
            raise
        return cls(opened, networks)

    def close(self) -> None:
        """Give the models' memory back."""
        for network in self._networks.values():
            network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def segment(
        self,
        volume: Volume,
        prompts: PromptSet | Mapping[str, object],
        *,
        preset: str = "paper",
        seed: int = 0,
        refinement: str = "masked",
        spatial_prompts: npt.NDArray[Any] | None = None,
        window: str = "auto",
        progress: Progress | None = None,
        masks: MaskSource | None = None,
        classes_per_chunk: int = CLASSES_PER_CHUNK,
    ) -> Result:
        """Segment one case.

        Parameters
        ----------
        volume
            Image and spacing.
        prompts
            The classes asked for and their label values; a mapping like that of a prompts file is
            read by `parse_prompts`.
        preset
            ``"paper"`` or ``"release"``: which constants and class lists apply.
        seed
            Of the block masks; the same seed, case, bundle and runner give the same bytes.
        refinement
            ``"masked"``: Algorithm 2. ``"unmasked"``: the network sees whole prompts.
            ``"none"``: every stage works from the text alone.
        spatial_prompts
            An annotation `(D, H, W)` on the volume's grid with label values of `prompts`: it
            stands in for the coarse prediction of the labels that it holds (hybrid mode).
        window
            CT intensity window, ``"auto"``: chosen from the classes.
        progress
            Told the stage's name, windows done and windows in all.
        masks
            Another source of block masks, for tests.
        classes_per_chunk
            How many classes a pass from text alone refines at once; changes memory, not results.

        Raises
        ------
        CaseError
            The annotation does not fit the volume.
        BundleError
            The bundle does not cover a class.
        InputError
            Unknown preset, refinement or window.
        PromptError
            A prompt names no class.
        """
        if refinement not in REFINEMENTS:
            raise InputError(
                f"no refinement {refinement!r}: choose one of {', '.join(REFINEMENTS)}"
            )
        mode: Mode = refinement
        if not isinstance(prompts, PromptSet):
            prompts = parse_prompts(prompts)
        if classes_per_chunk < 1:
            raise InputError(f"classes_per_chunk must be at least 1, found {classes_per_chunk}")
        watch = Stopwatch()
        policy = load_policy()
        rules = policy.rules(prompts.class_keys, preset)
        chosen = policy.preset(preset)
        with watch.step("prepare"):
            annotation = checked_annotation(spatial_prompts, volume.shape_dhw, prompts)
            if window == "auto":
                window = policy.intensity_window(prompts.class_keys)
            intensities = prepare_intensities(volume, prompts.modality, window)
            embeddings, sources = self.bundle.embeddings(prompts)
            device = self._networks[1].array_device
            treated = treated_labels(volume.image_dhw.size, prompts, preset)
            case = _Case(
                image_dhw=to_device(intensities.image_dhw, device),
                spacing_hwd_mm=clean_spacing(volume.shape_dhw, volume.spacing_hwd_mm),
                rules=rules,
                preset=chosen,
                task=StageTask(
                    queries=to_device(embeddings, device),
                    labels=prompts.labels,
                    lesion=rules.lesion,
                    preset=chosen,
                    mode=mode,
                    masks=masks or seeded_masks(seed, _content_key(intensities.image_dhw)),
                    classes_per_chunk=classes_per_chunk,
                ),
                keep_probability=bool(treated),
                watch=watch,
                progress=progress,
            )
            annotated = None if annotation is None else to_device(annotation, device)
        outcomes = self._run_stages(case, prompts, annotated)
        with watch.step("post-process"):
            last = outcomes[-1]
            labels, instances = finish_labels(
                last.labels_dhw, last.probability_dhw, treated, lesion=rules.lesion, preset=chosen
            )
        with watch.step("download"):
            labels_host = to_host(labels)
            instances_host = None if instances is None else to_host(instances)
            stage_labels = {each.record.name: to_host(each.labels_dhw) for each in outcomes}
        total = watch.total()
        self._remember_speed(outcomes, watch)
        info = self._networks[1].info
        report = RunReport(
            case=volume.name,
            preset=preset,
            refinement=refinement,
            seed=seed,
            runner=info.runner,
            runner_reason=info.why,
            device=info.device,
            precision=info.precision,
            bundle={"name": self.bundle.name, "hash": self.bundle.hash},
            image={
                "shape_dhw": volume.shape_dhw,
                "stored_spacing_hwd_mm": volume.spacing_hwd_mm,
                "used_spacing_hwd_mm": case.spacing_hwd_mm,
            },
            intensities=intensities.describe(),
            classes=class_records(prompts, sources, labels_host, instances_host, volume.voxel_ml),
            stages=tuple(each.record for each in outcomes),
            seconds={**watch.seconds, "total": total},
            seconds_per_class=total / len(prompts.labels),
            peak_memory_mib=peak_memory_mib(),
            notes=tuple(dict.fromkeys(info.notes)),
        )
        return Result(labels_host, instances_host, stage_labels, report)

    def _run_stages(
        self, case: _Case, prompts: PromptSet, annotation: Array | None
    ) -> list[_StageOutcome]:
        """Run the stages that this case needs; the last one's labels count (section 6)."""
        rules = case.rules
        shape = tuple(case.image_dhw.shape)
        whole: Box = ((0, 0, 0), shape)
        annotated = labels_in(annotation)
        outcomes = []
        prompt_map = annotation
        if not rules.skip_coarse and (rules.skip_fine or set(prompts.labels) - annotated):
            shown = annotation if rules.skip_fine else None
            coarse = self._run_stage(1, case, whole, shown)
            outcomes.append(coarse)
            if rules.skip_fine:
                return outcomes
            prompt_map = fine_prompts(coarse.labels_dhw, annotation, lesion=rules.lesion)
        box = None if prompt_map is None else bounding_box(prompt_map > 0)
        if box is None:
            return [*outcomes, self._run_stage(2, case, whole, None)]
        fine = self._networks[2].spec
        region = region_of_interest(box, shape, case.spacing_hwd_mm, fine, rules, case.preset)
        return [*outcomes, self._run_stage(2, case, region, prompt_map)]

    def _run_stage(
        self, number: StageNumber, case: _Case, box: Box, prompt_map_dhw: Array | None
    ) -> _StageOutcome:
        """Run one stage on a box of the case and paste its result into the whole grid."""
        network, name = self._networks[number], STAGE_NAMES[number]
        inside = tuple(slice(low, high) for low, high in zip(*box, strict=True))
        image_hwd = to_hwd(case.image_dhw[inside])
        if case.task.mode == "none":
            prompt_map_dhw = None
        shown = None if prompt_map_dhw is None else to_hwd(prompt_map_dhw[inside])
        plan = plan_stage(
            image_hwd.shape, case.spacing_hwd_mm, network.spec, case.rules, case.preset
        )
        result = run_stage(
            network,
            plan,
            image_hwd,
            case.task,
            prompt_labels_hwd=shown,
            keep_probability=case.keep_probability,
            watch=case.watch,
            name=name,
            progress=case.progress,
        )
        record = StageRecord(
            name=name,
            box_dhw=box,
            spacing_mm_hwd=plan.spacing_hwd_mm,
            target_spacing_mm_hwd=plan.target_spacing_hwd_mm,
            resampled_shape_hwd=plan.resampled_shape_hwd,
            padded_shape_hwd=plan.padded_shape_hwd,
            window_hwd=plan.stage.window_hwd,
            windows=len(plan.windows),
            passes=result.passes,
            iterations=plan.iterations if case.task.lesion else 0,
            prompts="text only" if shown is None else f"text and {case.task.mode} spatial prompts",
        )
        return _StageOutcome(*_pasted(result, inside, case.image_dhw), record)

    def _remember_speed(self, outcomes: list[_StageOutcome], watch: Stopwatch) -> None:
        """Keep what a pass cost, so that `plan` can tell what the next case will."""
        info = self._networks[1].info
        passes = {each.record.name: each.record.passes for each in outcomes}
        measured: dict[int, float] = {
            number: watch.seconds[f"{name}: network"] / passes[name]
            for number, name in STAGE_NAMES.items()
            if name in passes
        }
        timings.record(self.bundle.hash, f"{info.runner}/{info.precision}", measured)


def load(
    bundle: str | Path | None = None,
    *,
    runner: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
) -> Segmenter:
    """Open a bundle; see `Segmenter.open`."""
    return Segmenter.open(bundle, runner=runner, precision=precision, threads=threads)


def _pasted(
    result: StageResult, inside: tuple[slice, ...], image_dhw: Array
) -> tuple[Array, Array | None]:
    """Put a box's labels and probability into arrays of the whole grid."""
    xp = namespace(image_dhw)
    labels = xp.zeros(image_dhw.shape, dtype=result.labels_hwd.dtype)
    labels[inside] = to_dhw(result.labels_hwd)
    if result.probability_hwd is None:
        return labels, None
    probability = xp.zeros(image_dhw.shape, dtype=xp.float32)
    probability[inside] = to_dhw(result.probability_hwd)
    return labels, probability


def _content_key(image_dhw: npt.NDArray[np.float32]) -> str:
    """Name a case by what is in it, so that its masks don't hang on a file's name."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(image_dhw.shape).encode())
    digest.update(np.ascontiguousarray(image_dhw).data)
    return digest.hexdigest()
