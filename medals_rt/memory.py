"""How much memory a case may take, and how a stage is cut to stay within it.

Three things grow: the sums over windows with classes times a slab of the image, the probabilities
of one window with the classes at once, and what the network holds while it runs, which is given.
The sums are cut into groups of classes (the windows are then walked once a group), the classifier
into chunks. Neither changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

from medals_rt.errors import InputError
from medals_rt.gathering import slab_bytes
from medals_rt.manifest import FOLDED_REFINERS
from medals_rt.network import CLASSES_PER_CHUNK
from medals_rt.windows import Shape

LARGEST_DEFAULT_SLAB = 6 * 10**9
"""Bytes of sums that the host holds unless ``--max-memory`` allows more."""

ASKED_FOR = "asked for"
"""Where a limit is from that is kept to the letter."""

# Unasked, sums of this size are held however little is free: more walks would save nothing.
_LEAST_DEFAULT_SLAB = 2**30
_SHARE_OF_AVAILABLE = 0.8
_SHARE_OF_A_CHUNK = 0.25

_PROCESS_BYTES = 900 * 2**20  # Python, the libraries, and the weights of both stages
# What the network holds at its peak, in values a voxel and feature channel. Measured for a window
# of 192^3 and 64 channels in bf16 (OpenVINO): 5.0 GB of the process with graphs joined, 10.2 with
# many prompted classes, whose features and F_a are arrays.
_VALUES_JOINED = 4.2
_VALUES_CUT = 8.2
_VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

ANY_MACHINE = 10**15
"""Bytes that are no limit: for dry runs."""


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that the process (or the card) may hold in all, and where that number is from."""

    total: int
    source: str
    largest_slab: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """How one stage is cut.

    Attributes
    ----------
    groups
        Classes whose sums are held at once, with start and stop: one walk over the windows each.
    classes_per_chunk
        Classes that the classifier gives at once.
    slab_bytes
        What the sums of a group take.
    expected_bytes
        The estimated peak.
    """

    groups: tuple[slice, ...]
    classes_per_chunk: int
    slab_bytes: int
    expected_bytes: int


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
    free = available_bytes(Path("/proc"), Path("/sys/fs/cgroup"))
    if free is None:
        return MemoryLimit(2 * LARGEST_DEFAULT_SLAB, "the default", LARGEST_DEFAULT_SLAB)
    total = int(_SHARE_OF_AVAILABLE * free)
    return MemoryLimit(total, "80 % of the memory that is free here", LARGEST_DEFAULT_SLAB)


def memory_record(limit: MemoryLimit) -> dict[str, object]:
    """Give what a report says of a limit."""
    return {"limit_mib": round(limit.total / 2**20, 1), "limit_from": limit.source}


def plan_memory(
    classes: int,
    padded_shape_hwd: Shape,
    window_hwd: Shape,
    channels: int,
    limit: MemoryLimit,
    *,
    precision: str = "bf16",
    held: int = 0,
    classes_per_chunk: int = CLASSES_PER_CHUNK,
) -> MemoryPlan:
    """Cut a stage so that it fits.

    Parameters
    ----------
    classes
        N.
    padded_shape_hwd, window_hwd
        Voxels of the stage's image and window.
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
        A limit that was asked for does not even hold one class at a time; the message says what
        would do.
    """
    window, volume = prod(window_hwd), prod(padded_shape_hwd)
    fixed = (
        _PROCESS_BYTES
        + network_bytes(window_hwd, channels, classes, precision)
        + volume * (4 + 4 + 1 + 1)  # image, largest probability, labels, prompts
        + held * window * 5  # probabilities, and prompts as bools
    )
    of_class = slab_bytes(1, padded_shape_hwd, window_hwd) // 2
    room = limit.total - fixed
    # a chunk is held twice while the library writes the next
    chunk = int(room * _SHARE_OF_A_CHUNK) // (2 * 4 * window)
    chunk = max(1, min(chunk, classes, classes_per_chunk))
    slab = room - 2 * 4 * window * chunk
    if limit.source != ASKED_FOR:
        slab = max(slab, _LEAST_DEFAULT_SLAB)
    if limit.largest_slab is not None:
        slab = min(slab, limit.largest_slab)
    at_once = slab // of_class - 1
    if at_once < 1:
        if limit.source == ASKED_FOR:
            need = fixed + 2 * 4 * window + 2 * of_class
            raise InputError(
                f"{_gigabytes(limit.total)} of memory are too few for windows of {window_hwd} in "
                f"an image of {padded_shape_hwd} voxels (H, W, D): allow at least "
                f"{_gigabytes(need)}"
            )
        at_once = 1
    count = ceil(classes / at_once)
    size = ceil(classes / count)
    groups = tuple(slice(k, min(k + size, classes)) for k in range(0, classes, size))
    taken = slab_bytes(size, padded_shape_hwd, window_hwd)
    return MemoryPlan(groups, chunk, taken, fixed + 2 * 4 * window * chunk + taken)


def network_bytes(window_hwd: Shape, channels: int, classes: int, precision: str) -> int:
    """Estimate what the network holds at its peak for one window of N classes."""
    values = _VALUES_JOINED if classes <= max(FOLDED_REFINERS) else _VALUES_CUT
    return int(prod(window_hwd) * channels * values * _VALUE_BYTES[precision])


def available_bytes(proc: Path, cgroup: Path) -> int | None:
    """Memory that this process may still take; None where the system does not tell.

    What Linux has available, or less where a container's limit leaves less: both generations of
    control groups are known (`memory.max`, `memory.limit_in_bytes`).
    """
    try:
        listing = (proc / "meminfo").read_text(encoding="ascii")
        (line,) = (line for line in listing.splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = (cgroup / limit).read_text(encoding="ascii").strip()
            used = (cgroup / usage).read_text(encoding="ascii").strip()
            if most != "max":
                free = min(free, max(0, int(most) - int(used)))
        except (OSError, ValueError):  # no control group, or one without this file
            continue
    return free


def _free_on_card() -> int:
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
