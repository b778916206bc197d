"""Iterative masked refinement (paper, Algorithm 2; docs/algorithm.md, section 7).

A network that is shown its own earlier answer copies it. So half of the blocks of a window are
hidden from it, it predicts, the other half is hidden, it predicts again, and each voxel keeps the
prediction that did **not** see its prompt.

Which blocks are hidden is drawn by a counter-based generator from what the pass *is* (seed, case,
stage, window, iteration, repetition) and not from what was drawn before: a window gives the same
masks whatever else runs, in whatever order and however classes are cut into chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import as_namespace, namespace
from medals_rt.common.choices import StageNumber
from medals_rt.common.typing import Array, Namespace, Shape
from medals_rt.inference.spatial_prompts import Blocks, SpatialPrompts, channel_prompts
from medals_rt.planning.policy import MaskedPass
from medals_rt.planning.window_pass import Combine, WindowPass

Predict: TypeAlias = Callable[[SpatialPrompts | None, slice], Iterable[tuple[slice, Array]]]
"""One pass of the network: from spatial prompts (None: there are none) and the classes wanted, to
their probabilities ``(n, h, w, d)`` float32, some classes at a time, each with which classes they
are. Prompts are those of all N classes, whichever are wanted: each class sees them."""

_PROMPT_ABOVE = 0.5
"""A probability that becomes a prompt of the next masked pair is strictly more than half (section
7), unlike one that becomes a label, which is at least `Preset.threshold` (section 5). A run may
change the latter; what the network is shown stays the same."""

_LOGIT_MARGIN = 1e-7


@dataclass(frozen=True)
class MaskRequest:
    """The pass that a block mask is wanted for.

    Attributes
    ----------
    stage
        1 coarse, 2 fine.
    window_index
        Position of the window in the stage's plan.
    iteration
        Counts the masked pairs of one window from 0: a prompted pass is 0, what follows it 1, ...;
        without a prompted pass the first lesion iteration is 0.
    repetition
        From 0 to R - 1.
    window_hwd
        Voxels of the window.
    block_sizes
        Block edges in voxels, one of which is to be drawn.
    """

    stage: StageNumber
    window_index: int
    iteration: int
    repetition: int
    window_hwd: Shape
    block_sizes: tuple[int, ...]


BlockMask: TypeAlias = Blocks
"""The blocks of a window that are shown in the first pass of a pair and hidden in the second."""

MaskSource: TypeAlias = Callable[[MaskRequest], BlockMask]


@dataclass(frozen=True)
class Part:
    """Probabilities of some classes of a window, and where they are valid.

    Attributes
    ----------
    classes
        Which of the N, with start and stop.
    probabilities
        ``(n, h, w, d)`` float32, one a class.
    valid_mask
        ``(h, w, d)`` bool; None: everywhere. Of the parts of one class exactly one is valid at a
        voxel.
    """

    classes: slice
    probabilities: Array
    valid_mask: Array | None = None


def block_grid(window_hwd: Shape, block_size: int) -> Shape:
    """Return the number of blocks along each axis; blocks at the far end may be cut."""
    h, w, d = (-(-length // block_size) for length in window_hwd)
    return h, w, d


def seeded_masks(seed: int, case_key: str) -> MaskSource:
    """Make a source of reproducible masks.

    NumPy's Philox is keyed by (`seed`, `case_key`) and its counter is set to the pass. Only its raw
    bits are used, which NumPy promises never to change: the block size is a raw number modulo the
    sizes, the shown half (rounded down, at least one) are the blocks of the smallest raw numbers.

    Parameters
    ----------
    seed
        Any integer.
    case_key
        Names the case (or its content), so that two cases don't share masks.
    """
    digest = hashlib.sha256(f"{seed}\n{case_key}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)

    def draw(request: MaskRequest) -> BlockMask:
        counter = np.array(
            [
                0,
                request.window_index,
                (request.stage << 32) | request.iteration,
                request.repetition,
            ],
            dtype=np.uint64,
        )
        philox = np.random.Philox(counter=counter, key=key)
        which = int(philox.random_raw()) % len(request.block_sizes)
        block_size = request.block_sizes[which]
        grid = block_grid(request.window_hwd, block_size)
        order = np.argsort(philox.random_raw(prod(grid)), kind="stable")
        return mask_from_order(order, grid, block_size)

    return draw


def mask_from_order(order: npt.NDArray[np.integer], grid: Shape, block_size: int) -> BlockMask:
    """Show the first half (rounded down, at least one) of the blocks in the given `order`.

    `order` is a permutation of the flattened ``(h, w, d)`` block grid.
    """
    total = prod(grid)
    shown = np.zeros(total, dtype=np.bool_)
    shown[order[: max(1, total // 2)]] = True
    return Blocks(block_size, shown.reshape(grid))


def expand_mask(mask: BlockMask, window_hwd: Shape, xp: Namespace = np) -> Array:
    """Spread a block mask over its window: ``(h, w, d)`` bool, true where the block is shown."""
    expanded = as_namespace(mask.chosen, xp)
    for axis, length in enumerate(window_hwd):
        block = as_namespace(np.arange(length) // mask.size, xp)
        expanded = xp.take(expanded, block, axis=axis)
    return expanded


def masked_pass(
    predict: Predict, prompts: SpatialPrompts, mask: BlockMask, window_hwd: Shape, classes: slice
) -> Iterator[Part]:
    """Predict twice with complementary halves of the prompts hidden; keep what did not see them.

    ``P_1 (1 - M) + P_2 M`` with ``P_1`` from ``P M`` and ``P_2`` from ``P (1 - M)``. The release
    combines logits and takes the sigmoid afterwards; the mask is binary, so at each voxel one of
    the two is picked as it is, and the result is the same. What is picked needs no array of its
    own: each part says where it is valid.

    Parameters
    ----------
    predict
        One pass.
    prompts
        ``P``.
    mask
        ``M``.
    window_hwd
        Voxels of the window.
    classes
        Those wanted.
    """
    shown = expand_mask(mask, window_hwd, prompts.xp)
    hidden = Blocks(mask.size, ~mask.chosen)
    for seen, blocks, valid_mask in ((shown, mask, ~shown), (~shown, hidden, shown)):
        for chunk, probabilities in predict(prompts.where(seen, blocks), classes):
            yield Part(chunk, probabilities, valid_mask)


def refine(
    predict: Predict,
    prompts: SpatialPrompts | None,
    what: WindowPass,
    masks: MaskSource,
    go_on: Callable[[], bool] = lambda: True,
    becomes_prompts: Callable[[Array], object] = lambda _: None,
) -> Iterator[Part]:
    """Run the passes of one window; yield the probabilities of the classes wanted, in parts.

    The network runs as the parts are asked for. Those of the last masked pair are handed on as they
    come; what an earlier one predicted is held whole, for the next pair's prompts.

    Parameters
    ----------
    predict
        One pass of the network.
    prompts
        Spatial prompts; None: the window holds none.
    what
        The window and the passes it gets.
    masks
        Where block masks come from: `seeded_masks`, or a test's own. It is asked once a
        repetition, in order, also for windows whose prompts are empty, though these need no mask:
        hiding nothing leaves both predictions equal, so one pass without prompts replaces the
        pair.
    go_on
        Asked before each further pair; where it says no, what there is is the result.
    becomes_prompts
        Called with the probabilities that the prompts of a further pair are made of.
    """
    everything = slice(0, what.count)
    wanted = what.wanted or everything
    steps = what.steps
    first_pair = 1 if steps[0] is None else 0
    for number, step in enumerate(steps):
        is_last = number == len(steps) - 1
        classes = wanted if is_last else everything
        if step is None:
            parts = _one_pass(predict, None, classes)
        else:
            parts = _repeated(predict, prompts, what, number - first_pair, step, masks, classes)
        if is_last:
            yield from parts
            return
        probabilities = collect(parts, classes)
        if not go_on():
            yield Part(wanted, probabilities[wanted, ...])
            return
        becomes_prompts(probabilities)
        prompts = channel_prompts(probabilities > _PROMPT_ABOVE, what.block_size)
        del probabilities


def collect(parts: Iterable[Part], classes: slice) -> Array:
    """Put the parts of a window together: ``(n, h, w, d)`` float32, one a class of `classes`."""
    whole = None
    for part in parts:
        here = slice(part.classes.start - classes.start, part.classes.stop - classes.start)
        xp = namespace(part.probabilities)
        if whole is None:
            if part.valid_mask is None and part.classes == classes:
                return part.probabilities
            shape = (classes.stop - classes.start, *part.probabilities.shape[1:])
            whole = xp.zeros(shape, dtype=xp.float32, device=part.probabilities.device)
        if part.valid_mask is None:
            whole[here, ...] = part.probabilities
        else:
            whole[here, ...] = xp.where(part.valid_mask, part.probabilities, whole[here, ...])
    if whole is None:
        raise ValueError("no class was predicted")
    return whole


def _one_pass(predict: Predict, prompts: SpatialPrompts | None, classes: slice) -> Iterator[Part]:
    for chunk, probabilities in predict(prompts, classes):
        yield Part(chunk, probabilities)


def _repeated(
    predict: Predict,
    prompts: SpatialPrompts | None,
    what: WindowPass,
    iteration: int,
    masked: MaskedPass,
    masks: MaskSource,
    classes: slice,
) -> Iterator[Part]:
    """Run one iteration: R masked pairs averaged, or one pass in the other cases.

    An average is the one thing that needs whole arrays.
    """
    if what.mode == "unmasked":
        yield from _one_pass(predict, prompts, classes)
        return
    requests = [
        MaskRequest(
            what.stage,
            what.window_index,
            iteration,
            repetition,
            what.window_hwd,
            masked.block_sizes,
        )
        for repetition in range(masked.repetitions)
    ]
    drawn = [masks(request) for request in requests]
    if prompts is None:
        yield from _one_pass(predict, None, classes)
    elif len(drawn) == 1:
        yield from masked_pass(predict, prompts, drawn[0], what.window_hwd, classes)
    else:
        pairs = (
            collect(masked_pass(predict, prompts, mask, what.window_hwd, classes), classes)
            for mask in drawn
        )
        yield Part(classes, mean_of(pairs, what.combine))


def mean_of(predictions: Iterable[Array], combine: Combine) -> Array:
    """Average probabilities as they are or as logits; two arrays of them are held at once."""
    total, count = None, 0
    for probabilities in predictions:
        xp = namespace(probabilities)
        each = _logit(probabilities, xp) if combine == "logit" else probabilities
        total, count = (each if total is None else total + each), count + 1
    if total is None:
        raise ValueError("there is nothing to average")
    mean = total / count
    return 1.0 / (1.0 + xp.exp(-mean)) if combine == "logit" else mean


def _logit(probabilities: Array, xp: Namespace) -> Array:
    """Return ``log(p / (1 - p))``, kept finite: the nearest float32 to 1 is 6e-8 away from it."""
    safe = xp.clip(probabilities, _LOGIT_MARGIN, 1.0 - _LOGIT_MARGIN)
    return xp.log(safe) - xp.log1p(-safe)
