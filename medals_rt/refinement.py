"""Iterative masked refinement (paper, Algorithm 2; system section 7).

A network that is shown its own earlier answer copies it. So half of the blocks of a window are
hidden from it, it predicts, the other half is hidden, it predicts again, and each voxel keeps the
prediction that did **not** see its prompt.

Which blocks are hidden is drawn by a counter-based generator from what the pass *is* (seed, case,
stage, window, iteration, repetition) and not from what was drawn before: a window gives the same
masks whatever else runs, in whatever order and however classes are cut into chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.arrays import Array, Namespace, as_namespace, namespace
from medals_rt.policy import MaskedPass
from medals_rt.windows import Shape

Mode: TypeAlias = Literal["masked", "unmasked", "none"]
"""``masked``: Algorithm 2. ``unmasked``: each masked pair is one pass that sees the whole prompts.
``none``: one pass from the text alone."""

Combine: TypeAlias = Literal["probability", "logit"]

Predict: TypeAlias = Callable[[Array | None], Array]
"""From spatial prompts ``(N, h, w, d)`` float32, 0 or 1, or None where there are none, to
probabilities of the same shape. It derives the foreground prompt ``S_f`` itself, from all N."""

_PROMPT_THRESHOLD = 0.5
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

    stage: int
    window_index: int
    iteration: int
    repetition: int
    window_hwd: Shape
    block_sizes: tuple[int, ...]


@dataclass(frozen=True)
class BlockMask:
    """Which blocks of a window are shown in the first pass of a pair and hidden in the second.

    Attributes
    ----------
    block_size
        Edge of a block in voxels.
    shown
        ``(ceil(h / b), ceil(w / b), ceil(d / b))`` bool.
    """

    block_size: int
    shown: npt.NDArray[np.bool_]


MaskSource: TypeAlias = Callable[[MaskRequest], BlockMask]


@dataclass(frozen=True)
class WindowPass:
    """What `refine` does to one window.

    Attributes
    ----------
    stage, window_index, window_hwd
        As in `MaskRequest`.
    prompted
        Algorithm 2 for prompts that are given (``Preset.prompted``).
    further
        Masked pairs after the first prediction, each from the previous probability
        (``Preset.further``).
    further_iterations
        How many of these: ``StagePlan.iterations`` for lesions, 0 for anatomy.
    mode, combine
        See `Mode` and `masked_pass`.
    """

    stage: int
    window_index: int
    window_hwd: Shape
    prompted: MaskedPass
    further: MaskedPass
    further_iterations: int
    mode: Mode = "masked"
    combine: Combine = "probability"


def block_grid(window_hwd: Shape, block_size: int) -> Shape:
    """Give the number of blocks along each axis; blocks at the far end may be cut."""
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
    return BlockMask(block_size, shown.reshape(grid))


def expand_mask(mask: BlockMask, window_hwd: Shape, xp: Namespace = np) -> Array:
    """Spread a block mask over its window: ``(h, w, d)`` float32, 1 where the block is shown."""
    expanded = as_namespace(mask.shown.astype(np.float32), xp)
    for axis, length in enumerate(window_hwd):
        block = as_namespace(np.arange(length) // mask.block_size, xp)
        expanded = xp.take(expanded, block, axis=axis)
    return expanded


def masked_pass(predict: Predict, prompts: Array, mask: Array) -> Array:
    """Predict twice with complementary halves of the prompts hidden; keep what did not see them.

    ``P_1 (1 - M) + P_2 M`` with ``P_1`` from ``P M`` and ``P_2`` from ``P (1 - M)``. The release
    combines logits and takes the sigmoid afterwards; `mask` is binary, so at each voxel one of the
    two is picked as it is, and the result is the same.

    Parameters
    ----------
    predict
        From spatial prompts to probabilities.
    prompts
        ``P``: ``(N, h, w, d)`` float32, 0 or 1.
    mask
        ``M``: ``(h, w, d)`` float32, 0 or 1 (`expand_mask`).

    Returns
    -------
    Array
        ``(N, h, w, d)`` float32.
    """
    xp = namespace(prompts)
    with_shown = predict(_or_none(prompts * mask))
    with_hidden = predict(_or_none(prompts * (1.0 - mask)))
    return xp.where(mask > 0, with_hidden, with_shown)


def refine(
    predict: Predict, prompts: Array | None, what: WindowPass, masks: MaskSource, xp: Namespace = np
) -> Array:
    """Run the passes of one window; give its probabilities ``(N, h, w, d)`` float32.

    Parameters
    ----------
    predict
        From spatial prompts to probabilities, see `Predict`.
    prompts
        Spatial prompts ``(N, h, w, d)`` float32, 0 or 1. None: text only.
    what
        The window and the passes it gets.
    masks
        Where block masks come from: `seeded_masks`, or a test's own. It is asked once a
        repetition, in order, also for windows whose prompts are empty, though these need no mask:
        hiding nothing leaves both predictions equal, so one pass without prompts stands for the
        pair.
    xp
        The library of the arrays.

    Returns
    -------
    Array
        Probabilities ``(N, h, w, d)`` float32.
    """
    if what.mode == "none":
        return predict(None)
    pairs = [what.further] * what.further_iterations
    if prompts is None:
        probabilities = predict(None)
    else:
        pairs = [what.prompted] * what.prompted.iterations + pairs
        probabilities = None
    for iteration, masked in enumerate(pairs):
        if probabilities is not None:
            prompts = xp.astype(probabilities > _PROMPT_THRESHOLD, xp.float32)
        probabilities = _repeated(predict, prompts, what, iteration, masked, masks, xp)
    return probabilities


def passes_per_window(what: WindowPass, *, prompted: bool) -> int:
    """Count the network passes of one window at most; windows with empty prompts need fewer."""
    if what.mode == "none":
        return 1
    each = 2 if what.mode == "masked" else 1
    further = what.further_iterations * each * _repetitions(what.further, what.mode)
    if not prompted:
        return 1 + further
    return what.prompted.iterations * each * _repetitions(what.prompted, what.mode) + further


def _repetitions(masked: MaskedPass, mode: Mode) -> int:
    """Without masks, repetitions would all be the same."""
    return masked.repetitions if mode == "masked" else 1


def _repeated(
    predict: Predict,
    prompts: Array,
    what: WindowPass,
    iteration: int,
    masked: MaskedPass,
    masks: MaskSource,
    xp: Namespace,
) -> Array:
    """Run one iteration: R masked pairs averaged, or one pass in the other cases."""
    if what.mode == "unmasked":
        return predict(_or_none(prompts))
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
    if _or_none(prompts) is None:
        return predict(None)
    pairs = [
        masked_pass(predict, prompts, expand_mask(mask, what.window_hwd, xp)) for mask in drawn
    ]
    if len(pairs) == 1:
        return pairs[0]
    if what.combine == "probability":
        return sum(pairs[1:], start=pairs[0]) / len(pairs)
    logits = [_logit(probabilities, xp) for probabilities in pairs]
    return 1.0 / (1.0 + xp.exp(-sum(logits[1:], start=logits[0]) / len(logits)))


def _logit(probabilities: Array, xp: Namespace) -> Array:
    """Give ``log(p / (1 - p))``, kept finite: the nearest float32 to 1 is 6e-8 away from it."""
    safe = xp.clip(probabilities, _LOGIT_MARGIN, 1.0 - _LOGIT_MARGIN)
    return xp.log(safe) - xp.log1p(-safe)


def _or_none(prompts: Array) -> Array | None:
    """Give `prompts`, or None where they are zero everywhere."""
    return prompts if bool(namespace(prompts).any(prompts != 0)) else None
