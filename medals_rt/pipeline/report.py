"""What a run did: one record a case, with everything that is needed to repeat and to judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.arrays import label_counts
from medals_rt.common.environment import library_versions, machine_facts, peak_memory_mib
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Spacing
from medals_rt.inference.cascade import StageSummary
from medals_rt.inference.network import NetworkInfo, convolution_of
from medals_rt.io.volume import Volume
from medals_rt.pipeline.lesions_over_anatomy import covered_notes
from medals_rt.pipeline.options import SegmentOptions, idle_options
from medals_rt.pipeline.window_groups import GroupResult, Merged
from medals_rt.planning.memory import memory_record
from medals_rt.postprocessing.component_filter import ComponentRemoval
from medals_rt.postprocessing.finalize import removal_notes
from medals_rt.postprocessing.label_notes import label_notes
from medals_rt.prompts.prompt_set import PromptSet

CHALLENGE_SECONDS_PER_CLASS = 60.0
"""The challenge's limit: a case that takes longer scores zero."""

REPORT_FORMAT = 4

NOTICE = "notice"
"""Code of the note that repeats the bundle's notice."""


@dataclass(frozen=True)
class ClassSummary:
    """What one prompt came to.

    `embedding` says where its text embedding came from: the bank's of the very "sentence" or of its
    "class", or the bundle's text "encoder". Free text has id 0 and its sentence as its name.
    `components` is the number of instances of a lesion, None for anatomy. `components_removed` and
    `removed_ml` say what post-processing took away; None where it did not treat the class.
    """

    label: int
    sentence: str
    modality: str
    kind: str
    name: str
    id: int
    matched: str
    embedding: str
    voxels: int
    volume_ml: float
    components: int | None = None
    components_removed: int | None = None
    removed_ml: float | None = None


@dataclass(frozen=True)
class Provenance:
    """What is known of a case from before it was segmented.

    Attributes
    ----------
    seconds
        What came before, by step, such as reading and opening models: it counts in the report and
        towards the time budget.
    notes
        Remarks of whoever read the case.
    origin
        Which part of the file it is (a DICOM series, say), without the patient; JSON values.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """The whole record of one case; `to_dict` is what `report.json` holds.

    `algorithm` are the values of the preset that options may replace, as they were used. `memory`
    says what might be held, and what was expected. `budget` is what a time budget planned
    and left out, None where there was none; `asked_seconds_per_class` is that budget.
    """

    case: str
    preset: str
    algorithm: dict[str, object]
    refinement: str
    postprocess: str
    seed: int
    runner: str
    runner_reason: str
    device: str
    precision: str
    convolution: str
    threads: int
    bundle: dict[str, Any]
    image: dict[str, Any]
    intensities: dict[str, Any]
    classes: tuple[ClassSummary, ...]
    stages: tuple[StageSummary, ...]
    seconds: dict[str, float]
    seconds_per_class: float
    peak_memory_mib: float | None
    memory: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] | None = None
    asked_seconds_per_class: float | None = None
    notes: tuple[Note, ...] = ()
    versions: dict[str, str] = field(default_factory=library_versions)
    machine: dict[str, Any] = field(default_factory=machine_facts)

    @property
    def within_challenge(self) -> bool:
        """Whether the case stayed inside the challenge's time a class."""
        return self.seconds_per_class <= CHALLENGE_SECONDS_PER_CLASS

    @property
    def within_asked(self) -> bool | None:
        """Whether the case stayed inside the time that was asked for; None where none was."""
        if self.asked_seconds_per_class is None:
            return None
        return self.seconds_per_class <= self.asked_seconds_per_class

    @property
    def incomplete(self) -> str | None:
        """Which stages or windows are missing because time ran out; None: none are."""
        if self.budget is None:
            return None
        groups = self.budget.get("groups")
        records = {"": self.budget} if groups is None else groups
        missing = [
            f"{group}: {what}" if group else what
            for group, record in records.items()
            for what in record["missing"]
        ]
        return "; ".join(missing) or None

    @property
    def limits(self) -> dict[str, float | bool | None]:
        """Which times a class there were to keep, and which were kept."""
        return {
            "challenge_seconds_per_class": CHALLENGE_SECONDS_PER_CLASS,
            "within_challenge": self.within_challenge,
            "asked_seconds_per_class": self.asked_seconds_per_class,
            "within_asked": self.within_asked,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        content = asdict(self)
        del content["asked_seconds_per_class"]
        return {
            "format": REPORT_FORMAT,
            **content,
            "limits": self.limits,
            "incomplete": self.incomplete,
        }


def build_report(
    volume: Volume,
    used_spacing_hwd_mm: Spacing,
    prompts: PromptSet,
    options: SegmentOptions,
    bundle: Bundle,
    networks: Sequence[NetworkInfo],
    groups: Sequence[GroupResult],
    merged: Merged,
    provenance: Provenance,
    total_seconds: float,
) -> RunReport:
    """Write down what was done with one case: the only place where a report is made.

    Parameters
    ----------
    volume, used_spacing_hwd_mm, prompts, options
        What was asked for.
    bundle, networks
        What did it: of both stages.
    groups
        The results of all groups; where there are several, stages and steps have their names in
        front, as in ``lesions: coarse``.
    merged
        The labels of all of them.
    provenance
        What came before.
    total_seconds
        What segmenting took, on the clock.
    """
    sources = {
        label: source
        for result in groups
        for label, source in zip(result.group.prompts.labels, result.sources, strict=True)
    }
    seconds = dict(provenance.seconds)
    for result in groups:
        seconds |= {result.group.named(step): taken for step, taken in result.seconds.items()}
    total = total_seconds + sum(provenance.seconds.values())
    info = networks[0]
    removals = [removal for result in groups for removal in result.removals]
    classes = class_summaries(
        prompts,
        tuple(sources[label] for label in prompts.labels),
        merged.labels_dhw,
        merged.instances_dhw,
        volume.voxel_ml,
        removals,
    )
    return RunReport(
        case=volume.name,
        preset=options.preset,
        algorithm=options.algorithm.values(),
        refinement=options.refinement,
        postprocess=options.postprocess,
        seed=options.seed,
        runner=info.runner,
        runner_reason=info.why,
        device=info.device,
        precision=info.precision,
        convolution=convolution_of(networks),
        threads=info.threads,
        bundle={"name": bundle.name, "hash": bundle.hash, "notice": bundle.notice},
        image={
            "shape_dhw": volume.shape_dhw,
            "stored_spacing_hwd_mm": volume.spacing_hwd_mm,
            "used_spacing_hwd_mm": used_spacing_hwd_mm,
            **({"origin": dict(provenance.origin)} if provenance.origin else {}),
        },
        intensities=_intensities(groups, merged),
        classes=classes,
        stages=tuple(
            replace(stage, name=result.group.named(stage.name))
            for result in groups
            for stage in result.stages
        ),
        seconds={**seconds, "total": total},
        seconds_per_class=total / len(prompts.labels),
        peak_memory_mib=peak_memory_mib(),
        memory=memory_record(
            groups[0].memory,
            max(stage.expected_peak_mib for result in groups for stage in result.stages),
        ),
        budget=_budget(groups),
        asked_seconds_per_class=options.time_budget,
        notes=(
            *_notice(bundle),
            *_degraded(groups),
            *_unused(options, groups),
            *provenance.notes,
            *dict.fromkeys(note for result in groups for note in result.notes),
            *covered_notes(merged, volume.voxel_ml),
            *removal_notes(removals, prompts, volume.voxel_ml),
            *label_notes(merged.labels_dhw, prompts, {each.label: each.voxels for each in classes}),
            *_of_networks(networks),
        ),
    )


def _intensities(groups: Sequence[GroupResult], merged: Merged) -> dict[str, Any]:
    if len(groups) == 1:
        return dict(groups[0].intensities)
    return {
        "action": "windows",
        "windows": [
            {**result.intensities, "labels": list(result.group.prompts.labels)} for result in groups
        ],
        "contested_voxels": merged.contested,
    }


def _budget(groups: Sequence[GroupResult]) -> dict[str, Any] | None:
    records = {
        result.group.name: result.budget.record() for result in groups if result.budget is not None
    }
    if len(records) <= 1:
        return next(iter(records.values()), None)
    return {"groups": records}


def _notice(bundle: Bundle) -> tuple[Note, ...]:
    return () if bundle.notice is None else (warning(NOTICE, bundle.notice),)


def _degraded(groups: Sequence[GroupResult]) -> tuple[Note, ...]:
    """Warn of what the time budget left out."""
    left_out = [what for each in groups if each.budget is not None for what in each.budget.degraded]
    return tuple(warning("time-budget", f"time budget: {what}") for what in dict.fromkeys(left_out))


def _unused(options: SegmentOptions, groups: Sequence[GroupResult]) -> tuple[Note, ...]:
    """Note options that changed nothing: for these classes, or because no stage was refined."""
    kinds = {key.kind for each in groups for key in each.group.prompts.class_keys}
    stages = [stage for result in groups for stage in result.stages]
    refined = any("spatial prompts" in each.prompts or each.iterations for each in stages)
    return idle_options(options, kinds, refined=refined)


def _of_networks(networks: Sequence[NetworkInfo]) -> tuple[Note, ...]:
    texts = dict.fromkeys(text for info in networks for text in info.notes)
    return tuple(Note("runner", text) for text in texts)


def class_summaries(
    prompts: PromptSet,
    sources: tuple[str, ...],
    labels_dhw: npt.NDArray[Any],
    instances_dhw: npt.NDArray[np.uint32] | None,
    voxel_ml: float,
    removals: Sequence[ComponentRemoval] = (),
) -> tuple[ClassSummary, ...]:
    """Count what each prompt came to.

    Parameters
    ----------
    prompts, sources
        The N prompts, and for each whose embedding it used: ``"sentence"`` or ``"class"``.
    labels_dhw, instances_dhw
        The final labels, and the numbered lesions or None.
    voxel_ml
        Volume of a voxel in mL.
    removals
        What post-processing took away.
    """
    removed = {each.label: each for each in removals}
    voxels = label_counts(labels_dhw, max(prompts.labels) + 1)
    of_label = None if instances_dhw is None else _instances_of_labels(labels_dhw, instances_dhw)
    records = []
    for prompt, source in zip(prompts.prompts, sources, strict=True):
        key, count = prompt.class_key, int(voxels[prompt.label])
        taken = removed.get(prompt.label)
        components = None
        if of_label is not None and key.kind == "lesion":
            components = of_label.get(prompt.label, 0)
        records.append(
            ClassSummary(
                label=prompt.label,
                sentence=prompt.text,
                modality=key.modality,
                kind=key.kind,
                name=key.name,
                id=key.id,
                matched=prompt.matched,
                embedding=source,
                voxels=count,
                volume_ml=round(count * voxel_ml, 3),
                components=components,
                components_removed=None if taken is None else taken.components_removed,
                removed_ml=None if taken is None else round(taken.voxels_removed * voxel_ml, 3),
            )
        )
    return tuple(records)


def _instances_of_labels(
    labels_dhw: npt.NDArray[Any], instances_dhw: npt.NDArray[np.uint32]
) -> dict[int, int]:
    """Count the instances of each label; an instance has one label throughout."""
    inside = instances_dhw > 0
    numbers = instances_dhw[inside]
    label_of = np.zeros(int(numbers.max(initial=0)) + 1, labels_dhw.dtype)
    label_of[numbers] = labels_dhw[inside]
    found, counts = np.unique(label_of[1:], return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
