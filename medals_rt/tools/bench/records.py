"""What a benchmark asks for and what it finds; all of it goes to and comes from JSON.

Fields that have another name in JSON had that name when the first reports were written.
"""

from typing import Any, Literal

import msgspec
import numpy as np

from medals_rt.common.choices import Precision, Refinement, RunnerKind

Shape3 = tuple[int, int, int]
Task = Literal["cold", "warm", "classes", "volumes", "roofline"]

REPORT_FORMAT = 1


class Backend(msgspec.Struct, frozen=True):
    """What runs the network: a library and the arithmetic asked for.

    `precision` None is the library's own choice. `runner` "pytorch" is the eager network, under
    autocast where the precision is "bf16" or "fp16"; it needs the checkpoints.
    """

    runner: Literal["pytorch", RunnerKind]
    precision: Precision | None = None

    @property
    def label(self) -> str:
        """Name for tables."""
        return self.runner if self.precision is None else f"{self.runner} {self.precision}"


class Question(msgspec.Struct, frozen=True):
    """One measurement, for one child process.

    Attributes
    ----------
    task
        "cold": empty cache, first opening and first case. "warm": opening from the cache, then
        `repetitions` of the case. "classes" and "volumes": how time grows. "roofline": this
        library's matrix and convolution rate on the machine.
    bundle, case, prompts
        Paths; prompts None for those in the case.
    checkpoints
        Of the coarse and the fine network; only PyTorch needs them.
    class_counts
        For "classes": the numbers of classes.
    volume_factors
        For "volumes": the case's image is repeated this many times along D.
    """

    task: Task
    backend: Backend
    bundle: str
    case: str
    prompts: str | None
    checkpoints: tuple[str, str] | None
    threads: int | None
    repetitions: int
    refinement: Refinement
    class_counts: tuple[int, ...]
    volume_factors: tuple[int, ...]


class RunTime(msgspec.Struct, frozen=True):
    """One run of a case: seconds in all (reading and writing left out) and of each step."""

    seconds: float
    steps: dict[str, float]


class StageWork(msgspec.Struct, frozen=True):
    """What a stage did in the case, and the arithmetic of it."""

    name: str
    windows: int
    passes: int
    resampled_shape_hwd: Shape3
    window_hwd: Shape3
    tflop: float | None
    network_seconds: float

    @property
    def tflop_per_second(self) -> float | None:
        """Arithmetic over the seconds of the step "network"."""
        return None if self.tflop is None else self.tflop / self.network_seconds


class Scaling(msgspec.Struct, frozen=True):
    """Seconds for one size: `size` counts classes, or voxels of the image."""

    size: int
    text_only_seconds: float
    prompted_seconds: float | None
    peak_memory_mib: float | None


class Roofline(msgspec.Struct, frozen=True):
    """Rates that this library reaches on this machine, TFLOP/s."""

    matrix_tflop_per_second: float
    convolution_tflop_per_second: float


class Answer(msgspec.Struct, frozen=True):
    """What one child process found; fields that its task does not ask for stay empty."""

    version: str
    device: str
    precision: str
    threads: int
    open_seconds: float = 0.0
    runs: tuple[RunTime, ...] = ()
    stages: tuple[StageWork, ...] = ()
    scaling: tuple[Scaling, ...] = msgspec.field(default=(), name="growth")
    roofline: Roofline | None = msgspec.field(default=None, name="roofs")
    peak_memory_mib: float | None = None
    peak_gpu_memory_mib: float | None = msgspec.field(default=None, name="peak_card_memory_mib")
    notes: tuple[str, ...] = ()


class Standing(msgspec.Struct, frozen=True):
    """All that was measured of one backend; `failure` says why the rest is missing."""

    backend: Backend = msgspec.field(name="contestant")
    cold: Answer | None = None
    warm: Answer | None = None
    classes: Answer | None = None
    volumes: Answer | None = None
    roofline: Answer | None = msgspec.field(default=None, name="roofs")
    failure: str | None = None


class CaseFacts(msgspec.Struct, frozen=True):
    """The case that was run."""

    name: str
    shape_dhw: Shape3
    spacing_hwd_mm: tuple[float, float, float]
    prompts: dict[str, str]
    refinement: Refinement


class BenchReport(msgspec.Struct, frozen=True):
    """The whole of `report.json`."""

    format: int
    date: str
    bundle: dict[str, str]
    machine: dict[str, Any]
    versions: dict[str, str]
    case: CaseFacts
    repetitions: int
    baseline: str | None
    standings: tuple[Standing, ...]
    budget_seconds_per_class: float
    left_out: tuple[str, ...] = ()

    @property
    def finished(self) -> tuple[Standing, ...]:
        """The backends whose case was timed."""
        return tuple(each for each in self.standings if each.warm is not None and each.warm.runs)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values lies, interpolated.

    Raises
    ------
    ValueError
        There are no values.
    """
    if not values:
        raise ValueError("no values to take a quantile of")
    return float(np.quantile(values, share))
