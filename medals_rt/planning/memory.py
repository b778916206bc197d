"""How much memory a case may take, and how a stage is cut to stay within it.

Three things grow: the sums over windows with classes times a slab of the image, the probabilities
of one window with the classes at once, and what the network holds while it runs, which is given.
The sums are cut into blocks of columns (of which only the windows that reach into them are run) and
groups of classes (each of which sweeps these windows), whichever runs the fewest windows; the
classifier is cut into chunks. None of this changes a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, prod
from pathlib import Path

from medals_rt.bundle.manifest import FOLDED_REFINERS
from medals_rt.common import cgroups
from medals_rt.common.errors import InputError
from medals_rt.common.typing import Shape
from medals_rt.planning.axis_tiling import AxisCut, Columns, axis_cuts
from medals_rt.planning.sliding_window import Window

CLASSES_PER_CHUNK = 32
"""Classes that go through the classifier at once: bounds the memory of their probabilities."""

LARGEST_DEFAULT_SLAB = 6 * 10**9
"""Bytes of sums that the host holds unless ``--max-memory`` allows more."""

ASKED_FOR = "asked for"
"""Where a limit is from that is kept to the letter."""

# Unasked, sums of this size are held however little is free: more runs would save nothing.
_LEAST_DEFAULT_SLAB = 2**30
_SHARE_OF_AVAILABLE = 0.8
_SHARE_OF_A_CHUNK = 0.25

_PROCESS_BYTES = 900 * 2**20  # Python, the libraries, and the weights of both stages
# What the network holds at its peak, in values a voxel and feature channel. Measured for a window
# of 192^3 and 64 channels in bf16 (OpenVINO), the whole process: 4.8 GB with 4 prompted classes,
# 5.4 with 16. With more of them features and F_a are arrays where prompts overlap or graphs run one
# by one (8.9 GB), and that is expected; where prompts exclude each other it is 6.5 to 8.3.
_VALUES_JOINED = 4.2
_VALUES_CUT = 8.8
_VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

_BYTES_PER_SUM = 4  # float32

ANY_MACHINE = 10**15
"""Bytes that are no limit: for dry runs."""


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that the process (or the card) may hold in all, and where that number is from."""

    total: int
    source: str
    largest_slab: int | None = None


@dataclass(frozen=True)
class TileSweep:
    """One sweep over windows, which gathers some classes in one block of columns.

    Attributes
    ----------
    classes
        With start and stop.
    columns
        Along W and D, with start and stop, in the image before padding.
    windows
        Positions in the stage's plan of the windows that reach into the columns.
    """

    classes: slice
    columns: Columns
    windows: tuple[int, ...]


@dataclass(frozen=True)
class MemoryPlan:
    """How one stage is cut.

    Attributes
    ----------
    sweeps
        Every group of classes in one block of columns, then in the next.
    classes_per_chunk
        Classes that the classifier gives at once.
    slab_bytes
        What the sums of a sweep take at most.
    expected_bytes
        The estimated peak.
    """

    sweeps: tuple[TileSweep, ...]
    classes_per_chunk: int
    slab_bytes: int
    expected_bytes: int

    @property
    def class_groups(self) -> int:
        """Groups of classes."""
        return len({sweep.classes.start for sweep in self.sweeps})

    @property
    def column_blocks(self) -> int:
        """Blocks of columns."""
        return len(self.sweeps) // self.class_groups

    @property
    def window_runs(self) -> int:
        """Windows that are run, counted once a sweep."""
        return sum(len(sweep.windows) for sweep in self.sweeps)


def memory_limit(asked: int | None, device: str) -> MemoryLimit:
    """Decide how much memory a case may take.

    Parameters
    ----------
    asked
        Bytes that the caller allows; None for 80 % of what is free now.
    device
        Where the arrays lie: ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    InputError
        `asked` is not positive.
    """
    if asked is not None:
        if asked <= 0:
            raise InputError(f"max_memory must be positive, found {asked}")
        return MemoryLimit(asked, ASKED_FOR)
    if device == "cuda":
        return MemoryLimit(int(_SHARE_OF_AVAILABLE * _free_on_card()), "80 % of the card's memory")
    free = available_bytes(Path("/proc"), cgroups.CGROUP)
    if free is None:
        return MemoryLimit(2 * LARGEST_DEFAULT_SLAB, "the default", LARGEST_DEFAULT_SLAB)
    total = int(_SHARE_OF_AVAILABLE * free)
    return MemoryLimit(total, "80 % of the memory that is free here", LARGEST_DEFAULT_SLAB)


def memory_record(limit: MemoryLimit) -> dict[str, object]:
    """Give what a report says of a limit."""
    return {"limit_mib": round(limit.total / 2**20, 1), "limit_from": limit.source}


def plan_memory(
    classes: int,
    shape_hwd: Shape,
    windows: Sequence[Window],
    channels: int,
    limit: MemoryLimit,
    *,
    precision: str = "bf16",
    held: int = 0,
    classes_per_chunk: int = CLASSES_PER_CHUNK,
) -> MemoryPlan:
    """Cut a stage so that it fits and runs as few windows as that allows.

    Parameters
    ----------
    classes
        N.
    shape_hwd
        Voxels of the stage's image before padding.
    windows
        All windows of the padded image.
    channels
        C, of the network's feature map.
    limit
        What may be held.
    precision
        Arithmetic of the network.
    held
        Classes of one window whose probabilities are held whole (lesions that are iterated).
    classes_per_chunk
        The most that the classifier gives at once.

    Raises
    ------
    InputError
        A limit that was asked for does not even hold one class in the narrowest blocks (see
        `axis_cuts`); the message says what would do.
    """
    first = windows[0]
    h, w, d = (b - a for a, b in zip(first.starts_hwd, first.stops_hwd, strict=True))
    padded_hwd = tuple(max(each.stops_hwd[axis] for each in windows) for axis in range(3))
    window = h * w * d
    fixed = (
        _PROCESS_BYTES
        + network_bytes((h, w, d), channels, classes, precision)
        + prod(padded_hwd) * (4 + 4 + 1 + 1)  # image, largest probability, labels, prompts
        + held * window * 5  # probabilities, and prompts as bools
    )
    room = limit.total - fixed
    # a chunk is held twice while the library writes the next
    chunk = int(room * _SHARE_OF_A_CHUNK) // (2 * 4 * window)
    chunk = max(1, min(chunk, classes, classes_per_chunk))
    slab = room - 2 * 4 * window * chunk
    if limit.source != ASKED_FOR:
        slab = max(slab, _LEAST_DEFAULT_SLAB)
    if limit.largest_slab is not None:
        slab = min(slab, limit.largest_slab)
    cuts = _slab_cuts(classes, shape_hwd, windows, h)
    cut = min((each for each in cuts if each.bytes <= slab), key=_SlabCut.cost, default=None)
    if cut is None:
        cut = min(cuts, key=lambda each: each.bytes)
        if limit.source == ASKED_FOR:
            need = fixed + 2 * 4 * window + cut.bytes
            raise InputError(
                f"{floor(limit.total / 1e8) / 10} GB of memory are too few for windows of "
                f"{(h, w, d)} in an image of {padded_hwd} voxels (H, W, D): allow at least "
                f"{ceil(need / 1e8) / 10} GB"
            )
    return MemoryPlan(
        tuple(cut.sweeps(windows)), chunk, cut.bytes, fixed + 2 * 4 * window * chunk + cut.bytes
    )


@dataclass(frozen=True)
class _SlabCut:
    """Sums of N classes, `rows` high, in groups of `size` classes and in blocks of columns."""

    classes: int
    size: int
    rows: int
    w: AxisCut
    d: AxisCut

    @property
    def bytes(self) -> int:
        return slab_bytes(self.size, (self.rows, self.w.widest, self.d.widest))

    def cost(self) -> tuple[int, int, int]:
        """Give runs along a row of windows, sweeps, and blocks: fewer are better, in this order."""
        groups = ceil(self.classes / self.size)
        blocks = len(self.w.blocks) * len(self.d.blocks)
        return groups * self.w.runs * self.d.runs, groups * blocks, blocks

    def sweeps(self, windows: Sequence[Window]) -> Iterator[TileSweep]:
        """Give each group of classes in each block."""
        for columns in product(self.w.blocks, self.d.blocks):
            reaching = tuple(k for k, window in enumerate(windows) if _reaches(window, columns))
            for start in range(0, self.classes, self.size):
                yield TileSweep(
                    slice(start, min(start + self.size, self.classes)), columns, reaching
                )


def _slab_cuts(
    classes: int, shape_hwd: Shape, windows: Sequence[Window], rows: int
) -> list[_SlabCut]:
    """Give every way to cut the sums that is worth having along each of its axes."""
    along_w, along_d = (
        axis_cuts(
            tuple(sorted({(each.starts_hwd[axis], each.stops_hwd[axis]) for each in windows})),
            shape_hwd[axis],
        )
        for axis in (1, 2)
    )
    sizes = {ceil(classes / groups) for groups in range(1, classes + 1)}
    return [_SlabCut(classes, size, rows, w, d) for size, w, d in product(sizes, along_w, along_d)]


def _reaches(window: Window, columns: Columns) -> bool:
    return all(
        window.starts_hwd[axis] < block.stop and window.stops_hwd[axis] > block.start
        for axis, block in enumerate(columns, start=1)
    )


def network_bytes(window_hwd: Shape, channels: int, classes: int, precision: str) -> int:
    """Estimate what the network holds at its peak for one window of N classes."""
    values = _VALUES_JOINED if classes <= max(FOLDED_REFINERS) else _VALUES_CUT
    return int(prod(window_hwd) * channels * values * _VALUE_BYTES[precision])


def slab_bytes(classes: int, slab_hwd: Shape) -> int:
    """Bytes of sums that a `SlabAccumulator` holds: N classes and the weights.

    `slab_hwd` are the window's rows along H and the block's columns along W and D.
    """
    return (classes + 1) * prod(slab_hwd) * _BYTES_PER_SUM


def available_bytes(proc: Path, cgroup: Path) -> int | None:
    """Memory that this process may still take; None where the system does not tell.

    What Linux has available, or less where a container's limit leaves less.
    """
    try:
        listing = (proc / "meminfo").read_text(encoding="ascii")
        (line,) = (line for line in listing.splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    limit, used = cgroups.memory_limit(cgroup), cgroups.memory_in_use(cgroup)
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _free_on_card() -> int:
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes())
