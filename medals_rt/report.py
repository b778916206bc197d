"""What a run did: one record a case, with everything that is needed to repeat and to judge it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from medals_rt.prompts import PromptSet

BUDGET_SECONDS_PER_CLASS = 60.0
"""The challenge's limit: a case that takes longer scores zero (system rule 10)."""

REPORT_FORMAT = 1

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]


def library_versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide results, where installed."""
    found = {"python": platform.python_version()}
    names = ("medals-rt", "numpy", "scipy", "openvino", "onnxruntime", "onnxruntime-gpu", "cupy")
    for name in (*names, "tensorrt", "connected-components-3d"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """Name the machine's kind, never its owner: system, architecture, processor, cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor_name(),
        "cores": cores,
    }


def _processor_name() -> str:
    """Read the processor's name where Linux keeps it, else what Python knows."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def peak_memory_mib() -> float | None:
    """Largest resident size of this process so far, in MiB; None where the system can't tell.

    Linux keeps it with the process's memory; what `getrusage` gives there counts that of the
    program that started this one, too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kib = peak / 1024 if sys.platform == "darwin" else peak
    return round(kib / 1024, 1)


@dataclass(frozen=True)
class ClassRecord:
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
class StageRecord:
    """What one stage did. Axes are (H, W, D), but for the box, which is (D, H, W) of the case.

    `spacing_mm_hwd` is the image's spacing as dynamic resampling read it. `passes` counts the
    network's encoder passes; `iterations` the masked refinements of a window. For memory, results
    were gathered in `column_blocks` blocks of the image and in `class_groups` groups of classes,
    each of which runs the windows that reach into it: `window_runs` in all. The sums of one took
    `accumulators_mib`; classes were classified `classes_per_chunk` at a time.
    """

    name: str
    box_dhw: tuple[Shape3, Shape3]
    spacing_mm_hwd: Spacing3
    target_spacing_mm_hwd: Spacing3
    resampled_shape_hwd: Shape3
    padded_shape_hwd: Shape3
    window_hwd: Shape3
    windows: int
    passes: int
    iterations: int
    prompts: str
    class_groups: int = 1
    column_blocks: int = 1
    window_runs: int = 0
    classes_per_chunk: int = 0
    accumulators_mib: float = 0.0


@dataclass(frozen=True)
class RunReport:
    """The whole record of one case; `to_dict` is what `report.json` holds.

    `memory` says what might be held. `budget` is what a time budget planned and gave up, None where
    there was none.
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
    classes: tuple[ClassRecord, ...]
    stages: tuple[StageRecord, ...]
    seconds: dict[str, float]
    seconds_per_class: float
    peak_memory_mib: float | None
    memory: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=library_versions)
    machine: dict[str, Any] = field(default_factory=machine_facts)

    @property
    def within_budget(self) -> bool:
        """Whether the case stayed inside the challenge's time a class."""
        return self.seconds_per_class <= BUDGET_SECONDS_PER_CLASS

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
        return {
            "format": REPORT_FORMAT,
            **asdict(self),
            "budget_seconds_per_class": BUDGET_SECONDS_PER_CLASS,
            "within_budget": self.within_budget,
        }


def class_records(
    prompts: PromptSet,
    sources: tuple[str, ...],
    labels_dhw: npt.NDArray[Any],
    instances_dhw: npt.NDArray[np.uint32] | None,
    voxel_ml: float,
) -> tuple[ClassRecord, ...]:
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
            ClassRecord(
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


class Stopwatch:
    """Adds up the seconds of named steps, in the order in which they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time of the block towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def total(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self._start
