"""How much memory a case takes, how much it may take, and how a stage is cut to stay within that.

Three things grow: the sums over windows with classes times a slab of the image, the probabilities
of one window with the classes at once, and what the network holds while it runs, which is given.
The sums are cut into blocks of columns (of which only the windows that reach into them are run) and
groups of classes (each of which sweeps over these windows), whichever runs the fewest windows; the
classifier is cut into chunks. None of this changes a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from pathlib import Path

from medals_rt.bundle.manifest import refiner_width
from medals_rt.common import cgroups
from medals_rt.common.choices import StageNumber
from medals_rt.common.errors import InputError
from medals_rt.common.limits import CLASSES_PER_CHUNK
from medals_rt.common.typing import Shape
from medals_rt.planning.axis_tiling import AxisCut, Columns, axis_cuts
from medals_rt.planning.model_facts import VALUE_BYTES, ModelFacts
from medals_rt.planning.sliding_window import Window

LARGEST_DEFAULT_SLAB = 6 * 10**9
"""Bytes of sums that the host holds unless ``--max-memory`` allows more."""

ASKED_FOR = "asked for"
"""Where a limit is from that is kept to the letter."""

# Unasked, sums of this size are held however little is free: more runs would save nothing.
_LEAST_DEFAULT_SLAB = 2**30
_SHARE_OF_AVAILABLE = 0.8
_SHARE_OF_A_CHUNK = 0.25

# Measured on whole runs: benchmarks/results/peak_memory.md.
_PROCESS_BYTES = 168 * 10**6
"""Python, the libraries, and what compiling the graphs for the first time leaves behind."""

_LLVM_BYTES = 85 * 10**6
"""The compiler of Winograd convolutions, and what it made."""

_SPLIT_CHAIN_BYTES = 28 * 10**6
"""Of a chain that is cut for Winograd convolutions: some ten compiled graphs instead of one."""

_CHAIN_BYTES = 14 * 10**6
"""What a compiled chain holds beside its weights: its nodes and the code made for them."""

_SCRATCH_VALUES = 45 * 10**5
"""What a pass holds however small its window."""

_CASE_BYTES_PER_VOXEL = 12
"""At the end of a fine stage: prepared gray values, the coarse and the fine labels, the largest
probability, and what removing components takes. What was read comes on top."""

_GROUP_BYTES_PER_VOXEL = 7
"""What an earlier group of classes leaves: its labels, those of its stages, its probability."""

_MERGE_BYTES_PER_VOXEL = 3
"""What merging groups takes more than the end of a fine stage."""


@dataclass(frozen=True)
class _Footprint:
    """What a network holds in one library: see `weight_bytes` and `network_bytes`.

    Winograd's convolutions hold two volumes at a time, with the spare rows by which they work in
    place; and beside the compiled graphs their weights' factors, and rows that are converted.

    Values are times the feature map of a window: in a pass from text alone, in one with few
    prompted classes beside their channels, and in one with many.
    """

    bytes_per_weight: float
    values_text: float
    values_prompted: float
    values_many: float
    has_chains: bool = False
    chain_bytes: int = _CHAIN_BYTES
    compiler_bytes: int = 0


_FOOTPRINTS = {
    ("openvino", "fp32", "direct"): _Footprint(9.0, 4.0, 3.0, 4.0, has_chains=True),
    ("openvino", "bf16", "direct"): _Footprint(7.3, 4.0, 3.0, 4.0, has_chains=True),
    ("openvino", "fp32", "winograd"): _Footprint(
        12.0, 2.4, 2.4, 4.4, True, _SPLIT_CHAIN_BYTES, _LLVM_BYTES
    ),
    ("openvino", "bf16", "winograd"): _Footprint(
        8.8, 2.5, 2.5, 4.5, True, _SPLIT_CHAIN_BYTES, _LLVM_BYTES
    ),
    ("onnxruntime", "fp32", "direct"): _Footprint(4.7, 7.9, 7.9, 8.9),
    # not measured: as in fp32, in which a processor without bf16 computes what is not quantized
    ("openvino", "int8", "direct"): _Footprint(9.0, 4.0, 3.0, 4.0, has_chains=True),
    ("openvino", "fp8", "direct"): _Footprint(9.0, 5.0, 4.0, 5.0, has_chains=True),
    ("onnxruntime", "int8", "direct"): _Footprint(4.7, 9.9, 9.9, 10.9),
    ("onnxruntime", "fp8", "direct"): _Footprint(4.7, 9.9, 9.9, 10.9),
}
_OTHER_FOOTPRINT = _Footprint(4.0, 4.2, 4.2, 8.8)  # of runners on GPUs: not measured

_BYTES_PER_SUM = 4  # float32

_ANY_MACHINE = 10**15
"""Bytes that are no limit: for dry runs."""


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that the process (or the GPU) may hold in all, and where that number is from."""

    total: int
    source: str
    largest_slab: int | None = None

    @property
    def asked(self) -> bool:
        """Whether the caller set it: then it is kept to the letter, or refused."""
        return self.source == ASKED_FOR


@dataclass(frozen=True)
class MemoryDemand:
    """What decides the memory of a stage, beside its grid.

    Attributes
    ----------
    model
        Both stages' networks, and how they are run.
    classes
        N.
    case_bytes
        What the arrays on the case's own grid take, see `case_bytes`.
    open_chains
        Chains of graphs that are compiled by the end of the stage, where a library joins graphs.
    prompted
        Whether windows may have spatial prompts.
    held_classes
        Classes of one window whose probabilities are held whole between two of its steps.
    averaged
        Whether a mean of a window's probabilities is formed: two more arrays of all classes.
    classes_per_chunk
        The most that the classifier gives at once.
    keeps_maps
        Whether a byte a class and voxel of the stage is kept: the classes' probabilities.
    """

    model: ModelFacts
    classes: int
    case_bytes: int = 0
    open_chains: int = 2
    prompted: bool = False
    held_classes: int = 0
    averaged: bool = False
    classes_per_chunk: int = CLASSES_PER_CHUNK
    keeps_maps: bool = False


@dataclass(frozen=True)
class TileSweep:
    """One sweep over windows, which aggregates some classes in one block of columns.

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
        The estimated peak of the process.
    least_bytes
        What that would be with one class at a time in the narrowest blocks.
    """

    sweeps: tuple[TileSweep, ...]
    classes_per_chunk: int
    slab_bytes: int
    expected_bytes: int
    least_bytes: int

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
            raise InputError(
                f"max_memory must be positive, found {asked}", code="memory-not-positive"
            )
        return MemoryLimit(asked, ASKED_FOR)
    if device == "cuda":
        return MemoryLimit(int(_SHARE_OF_AVAILABLE * _free_on_gpu()), "80 % of the GPU's memory")
    free = available_bytes(Path("/proc"), cgroups.CGROUP)
    if free is None:
        return MemoryLimit(2 * LARGEST_DEFAULT_SLAB, "the default", LARGEST_DEFAULT_SLAB)
    total = int(_SHARE_OF_AVAILABLE * free)
    return MemoryLimit(total, "80 % of the memory that is free here", LARGEST_DEFAULT_SLAB)


def dry_run_limit(asked: int | None) -> MemoryLimit:
    """Return what a run might hold: as `memory_limit`, but None for a machine that has enough."""
    if asked is not None:
        return memory_limit(asked, "cpu")
    return MemoryLimit(_ANY_MACHINE, "a dry run", LARGEST_DEFAULT_SLAB)


def memory_record(limit: MemoryLimit, expected_peak_mib: float) -> dict[str, object]:
    """Return what a report says of a limit and of the peak that was expected."""
    return {
        "limit_mib": round(limit.total / 2**20, 1),
        "limit_from": limit.source,
        "expected_peak_mib": expected_peak_mib,
    }


def plan_memory(
    demand: MemoryDemand, shape_hwd: Shape, windows: Sequence[Window], limit: MemoryLimit
) -> MemoryPlan:
    """Cut a stage so that it fits and runs as few windows as that allows.

    Where nothing fits it is cut as far as can be; `least_bytes` then exceeds the limit.

    Parameters
    ----------
    demand
        Classes and network.
    shape_hwd
        Voxels of the stage's image before padding.
    windows
        All windows of the padded image.
    limit
        What may be held.
    """
    first = windows[0]
    h, w, d = (b - a for a, b in zip(first.starts_hwd, first.stops_hwd, strict=True))
    window = h * w * d
    fixed = _fixed_bytes(demand, (h, w, d), windows)
    room = limit.total - fixed
    # a chunk is held twice while the library writes the next
    chunk = int(room * _SHARE_OF_A_CHUNK) // (2 * 4 * window)
    chunk = max(1, min(chunk, demand.classes, demand.classes_per_chunk))
    slab = room - 2 * 4 * window * chunk
    if not limit.asked:
        slab = max(slab, _LEAST_DEFAULT_SLAB)
    if limit.largest_slab is not None:
        slab = min(slab, limit.largest_slab)
    cuts = _slab_cuts(demand.classes, shape_hwd, windows, h)
    narrowest = min(cuts, key=lambda each: each.bytes)
    fitting = (each for each in cuts if each.bytes <= slab)
    cut = min(fitting, key=_SlabCut.cost, default=narrowest)
    return MemoryPlan(
        sweeps=tuple(cut.sweeps(windows)),
        classes_per_chunk=chunk,
        slab_bytes=cut.bytes,
        expected_bytes=fixed + 2 * 4 * window * chunk + cut.bytes,
        least_bytes=fixed + 2 * 4 * window + narrowest.bytes,
    )


def _fixed_bytes(demand: MemoryDemand, window_hwd: Shape, windows: Sequence[Window]) -> int:
    """Estimate what a stage holds however its sums and classes are cut."""
    padded_hwd = [max(each.stops_hwd[axis] for each in windows) for axis in range(3)]
    return (
        _PROCESS_BYTES
        + _footprint(demand).compiler_bytes
        + weight_bytes(demand)
        + network_bytes(demand, window_hwd)
        + demand.case_bytes
        + prod(padded_hwd) * (4 + 4 + 1 + 1)  # image, largest probability, labels, prompts
        + demand.held_classes * prod(window_hwd) * 5  # probabilities, and prompts as bools
        + demand.keeps_maps * demand.classes * prod(padded_hwd)
        + demand.averaged * demand.classes * prod(window_hwd) * 8
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
        """Rank cuts by runs along a row of windows, sweeps, and blocks: fewer are better."""
        groups = ceil(self.classes / self.size)
        blocks = len(self.w.blocks) * len(self.d.blocks)
        return groups * self.w.runs * self.d.runs, groups * blocks, blocks

    def sweeps(self, windows: Sequence[Window]) -> Iterator[TileSweep]:
        """Go through each group of classes in each block."""
        for columns in product(self.w.blocks, self.d.blocks):
            reaching = tuple(k for k, window in enumerate(windows) if _reaches(window, columns))
            for start in range(0, self.classes, self.size):
                yield TileSweep(
                    slice(start, min(start + self.size, self.classes)), columns, reaching
                )


def _slab_cuts(
    classes: int, shape_hwd: Shape, windows: Sequence[Window], rows: int
) -> list[_SlabCut]:
    """List the cuts of the sums that are worth having along each axis."""
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


def weight_bytes(demand: MemoryDemand) -> int:
    """Estimate what compiled graphs hold by the end of a stage.

    Both stages' networks are open from the start. Where a library joins graphs, each chain has
    weights of its own.
    """
    footprint = _footprint(demand)
    chains = demand.open_chains if footprint.has_chains else 2
    return chains * (
        int(footprint.bytes_per_weight * demand.model.weights / 2) + footprint.chain_bytes
    )


def joined_chains(
    stage: StageNumber, classes: int, *, prompted: bool
) -> frozenset[tuple[StageNumber, str]]:
    """Name the chains of graphs that a stage compiles where a library joins graphs.

    Windows with prompts take a chain of their own, one for each width of the refiner.
    """
    names = ["text"]
    if prompted:
        names.append(f"prompts, {refiner_width(classes) or 'many'} classes")
    return frozenset((stage, name) for name in names)


def network_bytes(demand: MemoryDemand, window_hwd: Shape) -> int:
    """Estimate what the network holds at its peak, beside its weights, for one window."""
    footprint, window = _footprint(demand), prod(window_hwd)
    value = VALUE_BYTES[demand.model.precision]
    features = window * demand.model.channels * value
    held = footprint.values_text * features  # also of a stage with prompts: not in every window
    if demand.prompted:
        width = refiner_width(demand.classes)
        if width is None:
            held = max(held, footprint.values_many * features)
        else:
            held = max(held, footprint.values_prompted * features + 4 * width * window)
    return int(held + _SCRATCH_VALUES * value)


def case_bytes(voxels: int, bytes_per_voxel: int, earlier_groups: int = 0) -> int:
    """Estimate what the arrays on a case's own grid take at their peak.

    Parameters
    ----------
    voxels
        Of the image.
    bytes_per_voxel
        Of the image as it was read.
    earlier_groups
        Groups of classes that were segmented before, whose results wait to be merged.
    """
    held = bytes_per_voxel + _CASE_BYTES_PER_VOXEL
    if earlier_groups:
        held += earlier_groups * _GROUP_BYTES_PER_VOXEL + _MERGE_BYTES_PER_VOXEL
    return voxels * held


def _footprint(demand: MemoryDemand) -> _Footprint:
    model = demand.model
    how = model.runner, model.precision, model.convolution
    return _FOOTPRINTS.get(how, _OTHER_FOOTPRINT)


def slab_bytes(classes: int, slab_hwd: Shape) -> int:
    """Bytes of sums that a `SlabAggregator` holds: N classes and the weights.

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


def _free_on_gpu() -> int:
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes())
