"""How a model is cut for Winograd convolutions and sweeps, as data that can be kept on disk.

What is cut out is a *block*: convolutions of several sources that add up, and the norm and
activation behind them. A norm needs sums of a whole volume, so its result is not made: whoever
reads a block's output gets what was convolved, and scales, shifts and activates while reading. A
large norm of what OpenVINO convolved is a block too, without convolutions of its own.

Everything else is sorted into *segments*: a segment needs outputs of the blocks before it, and none
of those behind. Segment 0, block 0, segment 1, block 1 and so on are a pass. What reads a whole
volume, but only a few rows of it for a few rows of its result, is a *sweep* behind a segment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_FORM: Final = "cut"


@dataclass(frozen=True)
class Term:
    """One convolution of a block.

    Attributes
    ----------
    source
        Number of the block that it reads, or name of a segment's output `(1, H, W, D, C)`.
    weights
        `(K, C, 3, 3, 3)` float32, or name of the output where they depend on the window's prompts.
    """

    source: int | str
    weights: np.ndarray | str


@dataclass(frozen=True)
class Pool:
    """Averages of a block's output that segments read.

    Attributes
    ----------
    name
        Of the input `(1, h, w, d, C)` float32.
    kernel
        Voxels along each axis that are averaged; it divides the volume.
    """

    name: str
    kernel: tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """What is computed between two segments.

    Attributes
    ----------
    terms
        Convolutions that add up; none for values of OpenVINO's own.
    values
        Name of these; "" where there are convolutions.
    bias
        `(K,)`; None for none.
    eps, scale, shift
        Of the norm: ``(x - mean) / sqrt(variance + eps) * scale + shift``; None if there is none.
    slope
        What negative values are multiplied by; 1 for no activation.
    pools
        Averages of what is computed.
    """

    terms: tuple[Term, ...]
    values: str
    bias: np.ndarray | None
    eps: float | None
    scale: np.ndarray | None
    shift: np.ndarray | None
    slope: float
    pools: tuple[Pool, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A model of OpenVINO's that is run for a few rows of a volume along H after the other.

    Attributes
    ----------
    step
        Number of the segment after which it is run.
    source
        Number of the block whose output is read, or name of the model's input `(1, H, W, D, C)`.
    rows
        Name of the input `(1, h, W, D, C)` of h rows.
    output
        Name of what is made, whose rows are its second axis.
    advance
        How many rows further the next run reads.
    before
        How many rows of zeros lie before the first; behind the last as many as are read.
    runs
        How many.
    """

    step: int
    source: int | str
    rows: str
    output: str
    advance: int
    before: int
    runs: int


@dataclass(frozen=True)
class Handed:
    """A block's output that the model returns as it is stored.

    Attributes
    ----------
    name
        Of the model's output.
    block
        Number of the block.
    shape
        `(1, H, W, D, C)`.
    """

    name: str
    block: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Segments and the blocks between them, one more segment than blocks.

    Attributes
    ----------
    blocks
        In the order in which they are computed; none where no convolution is cut out.
    reads
        By segment: numbers of the blocks whose outputs it reads, by the name of the input.
    computes
        By segment: whether it has outputs.
    sweeps
        In the order in which they are computed.
    handed
        What the next model reads just as a block has made it.
    outputs
        Names of all that the model returns.
    """

    blocks: tuple[Block, ...]
    reads: tuple[Mapping[str, int], ...]
    computes: tuple[bool, ...]
    sweeps: tuple[Sweep, ...]
    handed: tuple[Handed, ...]
    outputs: tuple[str, ...]


WHOLE: Final = Cut((), ({},), (True,), (), (), ())
"""Of a model that is better left as it is."""


class _TermForm(msgspec.Struct, array_like=True):
    source: int | str
    weights: str
    fixed: bool


class _BlockForm(msgspec.Struct, array_like=True):
    terms: list[_TermForm]
    values: str
    bias: str | None
    eps: float | None
    scale: str | None
    shift: str | None
    slope: float
    pools: list[Pool]


class _CutForm(msgspec.Struct, array_like=True):
    blocks: list[_BlockForm]
    reads: list[dict[str, int]]
    computes: list[bool]
    sweeps: list[Sweep]
    handed: list[Handed]
    outputs: list[str]


def to_bytes(cut: Cut) -> bytes:
    """Return a description as a safetensors file."""
    arrays: dict[str, np.ndarray] = {}

    def kept(values: np.ndarray) -> str:
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(values, np.float32)
        return name

    def kept_if_any(values: np.ndarray | None) -> str | None:
        return None if values is None else kept(values)

    blocks = [
        _BlockForm(
            [
                _TermForm(term.source, term.weights, fixed=False)
                if isinstance(term.weights, str)
                else _TermForm(term.source, kept(term.weights), fixed=True)
                for term in block.terms
            ],
            block.values,
            kept_if_any(block.bias),
            block.eps,
            kept_if_any(block.scale),
            kept_if_any(block.shift),
            block.slope,
            list(block.pools),
        )
        for block in cut.blocks
    ]
    form = _CutForm(
        blocks,
        list(map(dict, cut.reads)),
        list(cut.computes),
        list(cut.sweeps),
        list(cut.handed),
        list(cut.outputs),
    )
    arrays[_FORM] = np.frombuffer(msgspec.json.encode(form), np.uint8)
    return save(arrays)


def from_bytes(content: bytes) -> Cut | None:
    """Read a description; None where it can't be read."""
    try:
        arrays: dict[str, Any] = load(content)
        form = msgspec.json.decode(arrays[_FORM].tobytes(), type=_CutForm)
    except (SafetensorError, msgspec.MsgspecError, KeyError):
        return None

    def if_any(name: str | None) -> Any:
        return None if name is None else arrays[name]

    blocks = tuple(
        Block(
            tuple(
                Term(term.source, arrays[term.weights] if term.fixed else term.weights)
                for term in block.terms
            ),
            block.values,
            if_any(block.bias),
            block.eps,
            if_any(block.scale),
            if_any(block.shift),
            block.slope,
            tuple(block.pools),
        )
        for block in form.blocks
    )
    return Cut(
        blocks,
        tuple(form.reads),
        tuple(form.computes),
        tuple(form.sweeps),
        tuple(form.handed),
        tuple(form.outputs),
    )
