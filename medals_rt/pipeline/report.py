"""What a run did: one record a case, with everything that is needed to repeat and to judge it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.notes import Note
from medals_rt.inference.cascade import StageSummary

if TYPE_CHECKING:
    import numpy.typing as npt

    from medals_rt.prompts.prompt_set import PromptSet

CHALLENGE_SECONDS_PER_CLASS = 60.0
"""The challenge's limit: a case that takes longer scores zero (system rule 10)."""

REPORT_FORMAT = 3


@dataclass(frozen=True)
class ClassSummary:
    """What one prompt came to.

    `embedding` says where its text embedding came from: the bank's of the very "sentence" or of its
    "class", or the bundle's text "encoder". Free text has id 0 and its sentence as its name.
    `components` is the number of instances of a lesion, None for anatomy.
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


@dataclass(frozen=True)
class RunReport:
    """The whole record of one case; `to_dict` is what `report.json` holds.

    `memory` says what might be held. `budget` is what a time budget planned and left out, None where
    there was none; `asked_seconds_per_class` is that budget.
    """

    case: str
    preset: str
    refinement: str
    seed: int
    runner: str
    runner_reason: str
    device: str
    precision: str
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
        passes = self.budget.get("passes")
        records = {"": self.budget} if passes is None else passes
        missing = [
            f"{window}: {what}" if window else what
            for window, record in records.items()
            for what in (record or {}).get("missing", ())
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

    def with_steps_before(self, seconds: Mapping[str, float]) -> RunReport:
        """Count steps that came before the segmentation, such as reading and opening models."""
        total = self.seconds["total"] + sum(seconds.values())
        return replace(
            self,
            seconds={**seconds, **self.seconds, "total": total},
            seconds_per_class=total / len(self.classes),
        )

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        content = asdict(self)
        del content["asked_seconds_per_class"]
        return {
            "format": REPORT_FORMAT,
            **content,
            "limits": self.limits,
            "incomplete": self.incomplete,
        }


def class_records(
    prompts: PromptSet,
    sources: tuple[str, ...],
    labels_dhw: npt.NDArray[Any],
    instances_dhw: npt.NDArray[np.uint32] | None,
    voxel_ml: float,
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
    """
    highest = max(prompts.labels) + 1
    voxels = np.zeros(highest, np.int64)
    for plane in labels_dhw:  # counting the volume at once would take eight bytes a voxel
        voxels += np.bincount(plane.reshape(-1), minlength=highest)
    of_label = None if instances_dhw is None else _instances_of_labels(labels_dhw, instances_dhw)
    records = []
    for prompt, source in zip(prompts.prompts, sources, strict=True):
        key, count = prompt.class_key, int(voxels[prompt.label])
        components = None if of_label is None else of_label.get(prompt.label, 0)
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
