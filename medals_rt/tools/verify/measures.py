"""How near two computations of one thing are: graphs by tensors, cases by labels."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.manifest import CaseParity
from medals_rt.common.errors import RunnerError
from medals_rt.common.typing import Box
from medals_rt.tools.evaluate.metrics import dice_by_label

if TYPE_CHECKING:
    from medals_rt.pipeline.segmenter import Result

_BLOCK_ELEMENTS = 1 << 22  # keeps the temporaries of a comparison small beside what is compared

Floats = npt.NDArray[np.floating[Any]]


def relative_error(found: Floats, expected: Floats) -> float:
    """Return the largest absolute difference over the largest absolute value expected.

    Infinite where something is not finite. Arrays of any float type and size: they are looked at
    in float32, block by block.

    Raises
    ------
    RunnerError
        If shapes differ.
    """
    difference = scale = 0.0
    for a, b in _blocks(found, expected):
        scale = max(scale, float(np.abs(b).max()))
        worst = float(np.abs(a - b).max())
        if not np.isfinite(worst):
            return float("inf")
        difference = max(difference, worst)
    return difference / (scale or 1.0)


def rms_error(found: Floats, expected: Floats) -> float:
    """Return the root mean square of the difference over that of what is expected.

    Infinite where something is not finite. For probabilities: their largest difference says little,
    because where a logit is steep a small error turns one voxel over.

    Raises
    ------
    RunnerError
        If shapes differ.
    """
    difference = scale = 0.0
    for a, b in _blocks(found, expected):
        difference += float(np.square(a - b, dtype=np.float64).sum())
        scale += float(np.square(b, dtype=np.float64).sum())
    error = float(np.sqrt(difference / (scale or 1.0)))
    return error if np.isfinite(error) else float("inf")


def compare_cases(
    case: str, names: Mapping[int, str], found: "Result", expected: "Result"
) -> CaseParity:
    """Compare two results of one case, both made with `keep_probability`.

    Parameters
    ----------
    case
        Its name.
    names
        The class of each label value.
    found, expected
        The results. Labels are compared as they are delivered, probabilities where the last
        stages' boxes of both lie: outside its box a stage has none.
    """
    ours, theirs = found.labels_dhw, expected.labels_dhw
    by_label = dice_by_label(ours, theirs, list(names))
    scored = [score for score in by_label.values() if not np.isnan(score)]
    return CaseParity(
        case=case,
        agreement=float(np.mean(ours == theirs)),
        dsc={names[label]: _or_none(score) for label, score in by_label.items()},
        mean_dsc=float(np.mean(scored)) if scored else None,
        probability_difference=_probability_difference(found, expected),
    )


def _probability_difference(found: "Result", expected: "Result") -> float | None:
    """Largest difference of the probabilities in the part of the volume that both looked at."""
    if found.probability_dhw is None or expected.probability_dhw is None:
        return None
    inside = _common_box(found.report.stages[-1].box_dhw, expected.report.stages[-1].box_dhw)
    pairs = _blocks(found.probability_dhw[inside], expected.probability_dhw[inside])
    return max((float(np.abs(a - b).max()) for a, b in pairs), default=None)


def _common_box(first: Box, second: Box) -> tuple[slice, ...]:
    lows = (max(pair) for pair in zip(first[0], second[0], strict=True))
    highs = (min(pair) for pair in zip(first[1], second[1], strict=True))
    return tuple(slice(low, max(low, high)) for low, high in zip(lows, highs, strict=True))


def _or_none(score: float) -> float | None:
    return None if np.isnan(score) else score


def _blocks(first: Floats, second: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Iterate over two arrays in blocks of float32; they must be of one shape."""
    if first.shape != second.shape:
        raise RunnerError(f"shapes differ: {first.shape} and {second.shape}", code="shapes-differ")
    flat = first.reshape(-1), second.reshape(-1)
    for start in range(0, flat[0].size, _BLOCK_ELEMENTS):
        part = slice(start, start + _BLOCK_ELEMENTS)
        yield flat[0][part].astype(np.float32), flat[1][part].astype(np.float32)
