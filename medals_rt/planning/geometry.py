"""Which resampling, shape and windows a stage works with, and which box the fine stage looks at.

Pure functions of shapes and spacings. The release computes in float32 and its rules are full of
thresholds, so every step here keeps its types: spacings are float32 scalars, targets stay Python
floats (which NumPy 2 lets float32 absorb) until a rule replaces them.

Rules are numbered as in section 4 of the system's specification; `p` is the window, `d` the image's
length in voxels, `s` its spacing and `t` the target spacing along one axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.typing import Box, Shape, Spacing
from medals_rt.planning.image_spacing import SMALLEST_MEANT_SPACING, spacing_of, swapped
from medals_rt.planning.policy import CaseRules, Preset, Resampling
from medals_rt.planning.sliding_window import HALF_OVERLAP, Window, padded_shape, plan_windows

_Number: TypeAlias = float | np.float32
_Values: TypeAlias = Sequence[_Number] | Sequence[float] | npt.NDArray[np.float32]

_LARGEST_AXIS_HWD = (1000, 1000, 700)
_LARGEST_RATIO_TO_TARGET = 3
_MEMORY_BOUND_SCALE = 1.8
_BOUNDED_AXIS_SCALE = 1.9
_SEPARATE_AXIS_ABOVE = 3.0
_ENLARGEMENT_BASE = 1.25
_LARGEST_ENLARGEMENT = 50


@dataclass(frozen=True)
class StageGeometry:
    """What one stage does to one image.

    Attributes
    ----------
    spec
        The stage it is for.
    spacing_hwd_mm, target_spacing_hwd_mm
        The spacing that the image is taken to have and the one it is brought to. Only their ratio
        means anything: the release's rules bend both.
    input_shape_hwd, resampled_shape_hwd, padded_shape_hwd
        Shapes before and after resampling, and after padding to the window at the far end.
    separate_axis
        The coarse axis that is resampled by nearest neighbor, the plane linearly; None: trilinear.
    windows
        In the order in which they are run.
    iterations
        Masked pairs that lesions get after the first prediction of a window.
    """

    spec: StageSpec
    spacing_hwd_mm: Spacing
    target_spacing_hwd_mm: Spacing
    input_shape_hwd: Shape
    resampled_shape_hwd: Shape
    padded_shape_hwd: Shape
    separate_axis: int | None
    windows: tuple[Window, ...]
    iterations: int


def plan_stage(
    shape_hwd: Sequence[int],
    spacing_hwd: Sequence[float],
    spec: StageSpec,
    rules: CaseRules,
    preset: Preset,
    overlap: float = HALF_OVERLAP,
) -> StageGeometry:
    """Decide how a stage sees an image: spacing, shapes and windows.

    Parameters
    ----------
    shape_hwd
        Shape of the image, or of the region of interest.
    spacing_hwd
        Its spacing in mm, from `image_spacing.spacing_for`.
    spec, rules, preset
        The model, what the classes decide (`Policy.rules`), and how resampling is meant.
    overlap
        Share of a window that it has in common with the next.
    """
    shape = _shape(shape_hwd)
    spacing = np.asarray(spacing_hwd, dtype=np.float32)
    spacing, target = _bent_spacing(shape, spacing, spec, rules, preset.resampling)
    resampled = _shape(
        max(1, round(s / t * d)) for s, t, d in zip(spacing, target, shape, strict=True)
    )
    padded = padded_shape(resampled, spec.window_hwd)
    return StageGeometry(
        spec=spec,
        spacing_hwd_mm=spacing_of(spacing),
        target_spacing_hwd_mm=spacing_of(target),
        input_shape_hwd=shape,
        resampled_shape_hwd=resampled,
        padded_shape_hwd=padded,
        separate_axis=separate_axis(spacing, target),
        windows=plan_windows(padded, spec.window_hwd, overlap),
        iterations=rules.further_iterations[spec.name],
    )


def region_of_interest(
    coarse_box_dhw: Box,
    shape_dhw: Sequence[int],
    spacing_hwd: Sequence[float],
    fine: StageSpec,
    rules: CaseRules,
    preset: Preset,
) -> Box:
    """Widen the box of the coarse foreground to what the fine stage looks at (section 6, rule 3).

    The box is scaled by ``rules.roi_margin`` about its center and made at least about as large as
    the fine window, then cut to the image. It always holds `coarse_box_dhw`.

    Parameters
    ----------
    coarse_box_dhw
        Box around the coarse foreground, file order, high end exclusive.
    shape_dhw
        Shape of the whole image, file order.
    spacing_hwd
        Its spacing in mm, from `image_spacing.spacing_for`, in model order as everywhere.
    fine, rules, preset
        As for `plan_stage`. The release preset bends the spacing by the *whole* image's shape.

    Returns
    -------
    tuple
        (low inclusive, high exclusive), each (D, H, W).
    """
    shape_hwd = _shape(shape_dhw[axis] for axis in (1, 2, 0))
    spacing = np.asarray(spacing_hwd, dtype=np.float32)
    if preset.resampling.bends_region:
        spacing = _region_spacing(shape_hwd, spacing, fine, rules, preset.resampling)
    low, high = [], []
    for axis_dhw, axis in enumerate((2, 0, 1)):
        first, last = coarse_box_dhw[0][axis_dhw], coarse_box_dhw[1][axis_dhw] - 1
        center = (first + last) / 2
        half = (last - first + 1) * rules.roi_margin / 2
        half_window = (fine.window_hwd[axis] / 2) * fine.spacing_hwd_mm[axis] / spacing[axis]
        half = max(float(half_window - 1), half)
        low.append(max(0, int(center - half)))
        high.append(min(shape_dhw[axis_dhw] - 1, int(center + half)) + 1)
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def smallest_region(
    shape_dhw: Sequence[int],
    spacing_hwd: Sequence[float],
    fine: StageSpec,
    rules: CaseRules,
    preset: Preset,
) -> Box:
    """Return the region of interest of the image's middle voxel: no case has a smaller one."""
    low = (shape_dhw[0] // 2, shape_dhw[1] // 2, shape_dhw[2] // 2)
    box = (low, (low[0] + 1, low[1] + 1, low[2] + 1))
    return region_of_interest(box, shape_dhw, spacing_hwd, fine, rules, preset)


def separate_axis(spacing: _Values, target_spacing: _Values) -> int | None:
    """Find the axis that is so coarse that it is resampled by itself; None where there is none.

    Where the largest spacing is more than three times the smallest (of the image, else of the
    target) and one axis alone has it (nnU-Net's rule).
    """
    for spacings in (spacing, target_spacing):
        values = np.asarray(list(spacings))
        if values.max() / values.min() > _SEPARATE_AXIS_ABOVE:
            (coarse,) = np.nonzero(values.max() / values == 1)
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def _bent_spacing(
    shape: Shape,
    spacing: npt.NDArray[np.float32],
    spec: StageSpec,
    rules: CaseRules,
    resampling: Resampling,
) -> tuple[npt.NDArray[np.float32], list[_Number]]:
    """Apply the rules that count, of 4.1 to 4.8, to the image of one stage.

    Returns its spacing and its target.
    """
    spacing = spacing.copy()
    if resampling.repairs_box:
        spacing[spacing <= np.float32(SMALLEST_MEANT_SPACING)] = 1.0
        spacing = swapped(shape, spacing)
    target: list[_Number] = list(spec.spacing_hwd_mm)
    for axis, (d, p) in enumerate(zip(shape, spec.window_hwd, strict=True)):
        s = _axis_spacing(
            spacing[axis], d, axis, spec, rules, resampling, rules.large_extent_factors
        )
        if _is_too_long(s, d, axis, target[axis], resampling):
            s = np.float32(target[axis])
        elif resampling.fits_window and s * d < p * target[axis]:
            target[axis] = _small_image_target(s, d, p, target[axis])
        if resampling.by_class and spec.is_fine:
            s = s * rules.fine_spacing_factor
        spacing[axis] = s
    return _bounded(shape, spacing, target, spec, rules, resampling), target


def _region_spacing(
    shape: Shape,
    spacing: npt.NDArray[np.float32],
    fine: StageSpec,
    rules: CaseRules,
    resampling: Resampling,
) -> npt.NDArray[np.float32]:
    """Apply the rules that the region of interest uses: 2 to 5, half of 6, 7 and 8."""
    spacing = spacing.copy()
    target = list(fine.spacing_hwd_mm)
    for axis, d in enumerate(shape):
        s = _axis_spacing(
            spacing[axis], d, axis, fine, rules, resampling, rules.roi_large_extent_factors
        )
        if _is_too_long(s, d, axis, target[axis], resampling):
            s = np.float32(target[axis])
        spacing[axis] = s * rules.fine_spacing_factor if resampling.by_class else s
    # The release multiplies the axes as (D, H, W) here; the product's last bit depends on it.
    return _bounded(shape, spacing, target, fine, rules, resampling, product_order=[2, 0, 1])


def _axis_spacing(
    s: np.float32,
    d: int,
    axis: int,
    spec: StageSpec,
    rules: CaseRules,
    resampling: Resampling,
    large_extent_factors: tuple[float, ...],
) -> np.float32:
    """Apply rules 2 to 5 along one axis.

    What rule 5 of docs/presets.md ends with, factors for spacings under 0.4, is out of reach: rule
    3 has made those 1, and a single class on an axis that long was brought to twice the window.
    """
    p, t = spec.window_hwd[axis], spec.spacing_hwd_mm[axis]
    unit = resampling.by_class and rules.unit_spacing
    if unit or (resampling.submillimeter_is_one and s < 1 and d <= _LARGEST_AXIS_HWD[axis]):
        s = np.float32(1)
    if not (resampling.by_class and rules.single):
        return s
    if s > 1:
        divisors = rules.spacing_divisor
        s = max(s / (divisors.fine if spec.is_fine else divisors.coarse), np.float32(t))
        if s / t > _LARGEST_RATIO_TO_TARGET:
            s = _LARGEST_RATIO_TO_TARGET * s / (s / t - 0.5)
    for factor in large_extent_factors:
        if d > p * factor:
            return np.float32(p * factor / d)
    return s


def _is_too_long(s: np.float32, d: int, axis: int, t: _Number, resampling: Resampling) -> bool:
    """Whether an axis coarser than the target is longer than any may be (rule 6, first half)."""
    if resampling.longest_axis is None:
        return False
    unit = t if resampling.longest_axis == "target spacings" else 1
    return bool(s * d > _LARGEST_AXIS_HWD[axis] * unit and s > t)


def _small_image_target(s: np.float32, d: int, p: int, t: _Number) -> _Number:
    """Lower the target so that a small image fills more of the window (rule 6, second half)."""
    enlargement: float = 1
    power = _ENLARGEMENT_BASE
    while power <= _LARGEST_ENLARGEMENT:
        if d <= p / power:
            enlargement = power
        power *= _ENLARGEMENT_BASE
    lowered: _Number = max(s * d / p, s / enlargement)
    return min(t, lowered)


def _bounded(
    shape: Shape,
    spacing: npt.NDArray[np.float32],
    target: Sequence[_Number] | Sequence[float],
    spec: StageSpec,
    rules: CaseRules,
    resampling: Resampling,
    product_order: Sequence[int] = (0, 1, 2),
) -> npt.NDArray[np.float32]:
    """Keep a large volume within memory (rule 8; paper 2.5 and 2.6 with a = 1.9).

    Where the volume exceeds ``1.8^3 prod(p)``, each axis longer than ``1.9 p t`` is brought down to
    that, but never enlarged.
    """
    bound = resampling.memory_bound
    if bound is None or (bound.spares_single and rules.single):
        return spacing
    volume = np.prod([spacing[axis] * shape[axis] for axis in product_order])
    if not volume > _MEMORY_BOUND_SCALE**3 * np.prod(spec.window_hwd):
        return spacing
    bounded = spacing.copy()
    for axis, (s, t, p, d) in enumerate(zip(spacing, target, spec.window_hwd, shape, strict=True)):
        if s * d > p * _BOUNDED_AXIS_SCALE * t:
            limit = p * _BOUNDED_AXIS_SCALE * t / d
            bounded[axis] = max(t, limit / bound.raised_by) if s > t else min(t, limit)
    return bounded


def _shape(values: Iterable[int]) -> Shape:
    h, w, d = (int(value) for value in values)
    return h, w, d
