"""Two stages, start to end: the models are opened once and serve any number of cases.

No arithmetic stands here: geometry decides, `run_stage` segments, `postprocess` cleans up; this
module says in which order and writes down what was done (system rules 3 to 8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.arrays import to_device, to_host
from medals_rt.common.choices import RUNNER_KINDS, STAGE_NAMES, Refinement, StageNumber
from medals_rt.common.environment import peak_memory_mib
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note, warning
from medals_rt.common.progress import Progress
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.inference.cascade import CaseRun, run_stages
from medals_rt.inference.hybrid_prompts import checked_annotation
from medals_rt.inference.network import StageNetwork
from medals_rt.inference.refinement import MaskSource, seeded_masks
from medals_rt.inference.stage import StageTask
from medals_rt.io.volume import Volume
from medals_rt.pipeline.report import RunReport, class_records
from medals_rt.planning import pass_timings
from medals_rt.planning.geometry import clean_spacing
from medals_rt.planning.memory import (
    CLASSES_PER_CHUNK,
    feature_channels,
    memory_limit,
    memory_record,
    weight_bytes,
)
from medals_rt.planning.policy import load_policy
from medals_rt.planning.stage_plan import CaseOutline
from medals_rt.planning.pass_timings import MeasuredPasses
from medals_rt.planning.time_budget import Budget, case_budget
from medals_rt.postprocessing.finalize import finish_labels, treated_labels
from medals_rt.preprocessing.intensity import prepare_intensities
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.prompt_set import PromptSet, parse_prompts

REFINEMENTS: tuple[Refinement, ...] = ("masked", "unmasked", "none")


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
    probability_dhw
        The last stage's largest probability of a voxel's classes, float32, 0 outside the stage's
        box; None unless it was asked for.
    """

    labels_dhw: npt.NDArray[Any]
    instances_dhw: npt.NDArray[np.uint32] | None
    stage_labels_dhw: dict[str, npt.NDArray[Any]]
    report: RunReport
    probability_dhw: npt.NDArray[np.float32] | None = None


class Segmenter:
    """Opened models, ready for cases. Use it as a context manager, or call `close`.

    Make one with `medals_rt.load` or `Segmenter.open`.
    """

    def __init__(self, bundle: Bundle, networks: dict[StageNumber, StageNetwork]) -> None:
        self.bundle = bundle
        self._networks = networks
        self._embedder = PromptEmbedder(bundle)
        self._measured: dict[int, float] = {}

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
            ``"auto"`` or one of `medals_rt.runners.selection.RUNNER_KINDS`.
        precision
            ``"fp32"``, ``"fp16"`` or ``"bf16"``; None: what suits this machine and bundle.
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

    def network(self, stage: StageNumber) -> StageNetwork:
        """Give the network of stage 1 (coarse) or 2 (fine)."""
        return self._networks[stage]

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
        keep_probability: bool = False,
        max_memory: int | None = None,
        time_budget: float | None = None,
        seconds_spent: float = 0.0,
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
            Told the stage's name, windows done and windows in all; one that is run several times,
            to keep within the memory, counts each time.
        masks
            Another source of block masks, for tests.
        classes_per_chunk
            How many classes are classified at once at most; changes memory, not results.
        keep_probability
            Also give the largest probability of each voxel, for comparisons.
        max_memory
            Bytes that the process (on a card: the arrays there) may hold; None for 80 % of what is
            free. Changes how classes are cut, not results.
        time_budget
            Seconds a class that the case may take; None: there is no limit. What is left out to
            keep it is in the report (`budget`).
        seconds_spent
            What the case took before this call, of its budget.

        Raises
        ------
        CaseError
            The annotation does not fit the volume.
        BundleError
            The bundle does not cover a class.
        InputError
            Unknown preset, refinement or window; `max_memory` or `time_budget` is not positive, or
            the memory does not hold one class.
        PromptError
            A prompt names no class.
        """
        if refinement not in REFINEMENTS:
            raise InputError(
                f"no refinement {refinement!r}: choose one of {', '.join(REFINEMENTS)}"
            )
        mode: Refinement = refinement
        if not isinstance(prompts, PromptSet):
            prompts = parse_prompts(prompts)
        if classes_per_chunk < 1:
            raise InputError(f"classes_per_chunk must be at least 1, found {classes_per_chunk}")
        watch = Stopwatch()
        budget = case_budget(time_budget, len(prompts.labels), seconds_spent)
        policy = load_policy()
        rules = policy.rules(prompts.class_keys, preset)
        chosen = policy.preset(preset)
        with watch.step("prepare"):
            annotation = checked_annotation(spatial_prompts, volume.shape_dhw, prompts)
            if window == "auto":
                window = policy.intensity_window(prompts.class_keys)
            intensities = prepare_intensities(volume, prompts.modality, window)
            embeddings, sources = self._embedder.embed(prompts)
            device = self._networks[1].array_device
            treated = treated_labels(volume.image_dhw.size, prompts, preset)
            recalled = pass_timings.recall(self.bundle.hash, self._arithmetic)
            known = {} if recalled is None else recalled.seconds_per_pass
            outline = CaseOutline(
                shape_dhw=volume.shape_dhw,
                spacing_hwd_mm=clean_spacing(volume.shape_dhw, volume.spacing_hwd_mm),
                rules=rules,
                preset=chosen,
                mode=mode,
                classes=len(prompts.labels),
                channels=feature_channels(self.bundle),
                memory=memory_limit(max_memory, device),
                weight_bytes=weight_bytes(self.bundle),
                runner=self._networks[1].info.runner,
                precision=self._networks[1].info.precision,
                classes_per_chunk=classes_per_chunk,
            )
            case = CaseRun(
                image_dhw=to_device(intensities.image_dhw, device),
                outline=outline,
                task=StageTask(
                    queries=to_device(embeddings, device),
                    labels=prompts.labels,
                    masks=masks or seeded_masks(seed, _content_key(intensities.image_dhw)),
                ),
                keep_probability=keep_probability or bool(treated),
                watch=watch,
                progress=progress,
                budget=budget,
                seconds_per_pass={**known, **self._measured},
                measured=self._measured,
            )
            annotated = None if annotation is None else to_device(annotation, device)
        outcomes = run_stages(self._networks, case, annotated)
        with watch.step("post-process"):
            last = outcomes[-1]
            labels, instances = finish_labels(
                last.labels_dhw, last.probability_dhw, treated, lesion=rules.lesion, preset=chosen
            )
        with watch.step("download"):
            labels_host = to_host(labels)
            instances_host = None if instances is None else to_host(instances)
            stage_labels = {each.record.name: to_host(each.labels_dhw) for each in outcomes}
            probability = to_host(last.probability_dhw) if keep_probability else None
        total = watch.total()
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
                "used_spacing_hwd_mm": outline.spacing_hwd_mm,
            },
            intensities=intensities.describe(),
            classes=class_records(prompts, sources, labels_host, instances_host, volume.voxel_ml),
            stages=tuple(each.record for each in outcomes),
            seconds={**watch.seconds, "total": total},
            seconds_per_class=total / len(prompts.labels),
            peak_memory_mib=peak_memory_mib(),
            memory=memory_record(
                outline.memory, max(each.record.expected_peak_mib for each in outcomes)
            ),
            budget=None if budget is None else budget.record(),
            asked_seconds_per_class=time_budget,
            notes=self._notes(budget),
        )
        return Result(labels_host, instances_host, stage_labels, report, probability)

    @property
    def measured_passes(self) -> MeasuredPasses | None:
        """What passes took in this process, for `pass_timings.record`.

        None where nothing was run, or the networks are of another kind than the run time's (PyTorch
        as a reference), which says nothing of it. It holds after a case that failed, too.
        """
        if not self._measured or self._networks[1].info.runner not in RUNNER_KINDS:
            return None
        return MeasuredPasses(self._arithmetic, dict(self._measured))

    @property
    def _arithmetic(self) -> str:
        """Runner and precision, as measured passes are kept by."""
        info = self._networks[1].info
        return f"{info.runner}/{info.precision}"

    def _notes(self, budget: Budget | None) -> tuple[Note, ...]:
        """Remarks of both networks, and warnings of what the time budget left out."""
        reduced = [] if budget is None else budget.degraded
        degraded = [warning("time-budget", f"time budget: {what}") for what in reduced]
        of_networks = (note for each in self._networks.values() for note in each.info.notes)
        return (*degraded, *(Note("runner", text) for text in dict.fromkeys(of_networks)))


def load(
    bundle: str | Path | None = None,
    *,
    runner: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
) -> Segmenter:
    """Open a bundle; see `Segmenter.open`."""
    return Segmenter.open(bundle, runner=runner, precision=precision, threads=threads)


def _content_key(image_dhw: npt.NDArray[np.float32]) -> str:
    """Name a case by what is in it, so that its masks don't hang on a file's name."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(image_dhw.shape).encode())
    digest.update(np.ascontiguousarray(image_dhw).data)
    return digest.hexdigest()
