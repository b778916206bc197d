"""Bring intensities into 0 to 255, as the network expects them (paper 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from medals_rt.common.arrays import contiguous, namespace, on_all_cores, row_slabs
from medals_rt.common.choices import traits_of
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import Array
from medals_rt.planning.policy import HounsfieldWindow, IntensityRules, Preset, load_policy
from medals_rt.preprocessing.percentiles import nonzero_percentiles

if TYPE_CHECKING:
    from medals_rt.io.volume import Volume

AUTO: Final = "auto"
"""In place of a window: what the classes want."""

PERCENTILES: Final = (0.5, 99.5)
"""Where images of the other modalities are cut (paper 3.2)."""

WHITE: Final = 255.0
"""The largest value of a prepared image; the smallest is 0."""

_NEAR_WHITE = 250.0
_DIM = 128.0
_AIR_HU = -1100.0
_NARROWEST_CT_HU = 150.0
_LARGEST_HU = 65_535.0
_DENSER_THAN_BONE_HU = 1_000.0
_LARGEST_DENSE_SHARE = 0.4
_LARGEST_PADDING = 0.99
_LARGEST_NEGATIVE_SHARE = 0.01
_SLAB_BLOCKS = 2
_ADDED_TO_WIDTH = 1e-8
_NARROWEST = 1e-9
_FARTHEST = 1e12  # of an image's values; beyond, float32 holds no image
_LEAVES_PREPARED: Final = IntensityRules()


@dataclass(frozen=True)
class IntensityWindow:
    """An intensity window: `width` around `level`, in the image's units (HU for CT).

    `name` is the policy's; None for numbers given by hand.
    """

    name: str | None
    width: float
    level: float

    @property
    def low(self) -> float:
        """The value that becomes 0."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """The value that becomes 255."""
        return self.level + self.width / 2


@dataclass(frozen=True)
class ImageFacts:
    """What the values of an image look like.

    Attributes
    ----------
    lowest, highest
        Its extremes.
    eight_bit
        Its type is unsigned and of 8 bits.
    whole
        All values are whole numbers; only known of images within 0 to 255.
    negative, padding, dense
        How many voxels are below 0, have the lowest value, and would be denser than bone in a CT.
    voxels
        How many there are.
    """

    lowest: float
    highest: float
    eight_bit: bool
    whole: bool
    negative: int
    padding: int
    dense: int
    voxels: int


@dataclass(frozen=True, eq=False)
class Intensities:
    """An image in 0 to 255, and how it got there.

    Attributes
    ----------
    image_dhw
        `(D, H, W)`, float32, 0 to 255.
    action
        `"unchanged"`, `"window"` or `"percentiles"`.
    window
        The window as it was asked for, a name or width and level; else `None`.
    low, high
        The source values that became 0 and 255; for `"unchanged"` the image's own extremes.
    notes
        What was assumed about the values, and what is doubtful about them.
    """

    image_dhw: Array
    action: str
    window: str | None
    low: float
    high: float
    notes: tuple[Note, ...] = ()

    def describe(self) -> dict[str, object]:
        """Return what was done, for the report."""
        return {"action": self.action, "window": self.window, "low": self.low, "high": self.high}


def parse_window(
    text: str, windows: Mapping[str, HounsfieldWindow] | None = None
) -> IntensityWindow:
    """Read a window: the name of one of `windows`, or `WIDTH,LEVEL` such as `400,40`.

    Without `windows` those are known that the policy names whatever the preset.

    Raises
    ------
    InputError
        If it is neither, or the width isn't positive.
    """
    known = load_policy().intensity_windows.windows if windows is None else windows
    if text in known:
        return IntensityWindow(text, known[text].width_hu, known[text].level_hu)
    try:
        width, level = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"no window is called {text!r}; choose from {', '.join(known)}, or give WIDTH,LEVEL "
            "such as 400,40",
            code="window-unknown",
        ) from None
    if not (np.isfinite([width, level]).all() and width > 0):
        raise InputError(
            f"the window {text!r} needs a width above 0 and a level, both finite",
            code="window-not-positive",
        )
    if not (_NARROWEST <= width <= _FARTHEST and abs(level) <= _FARTHEST):
        raise InputError(
            f"the window {text!r} needs a width of {_NARROWEST:g} to {_FARTHEST:g} and a level "
            f"within {_FARTHEST:g} of 0",
            code="window-out-of-range",
        )
    return IntensityWindow(None, width, level)


def look_at(image: Array) -> ImageFacts:
    """Find what the values of an image look like, slice by slice.

    Parameters
    ----------
    image
        ``(A, B, C)``, real and finite, on any device.
    """
    xp = namespace(image)
    lowest, highest = float(xp.min(image)), float(xp.max(image))
    slices = [image[i, ...] for i in range(image.shape[0])]
    in_range = lowest >= 0 and highest <= WHITE
    real = xp.isdtype(image.dtype, "real floating")
    return ImageFacts(
        lowest=lowest,
        highest=highest,
        eight_bit=image.dtype == xp.uint8,
        whole=in_range
        and (not real or all(bool(xp.all(each == xp.round(each))) for each in slices)),
        negative=sum(int(xp.count_nonzero(each < 0)) for each in slices) if lowest < 0 else 0,
        padding=sum(int(xp.count_nonzero(each == lowest)) for each in slices),
        dense=sum(int(xp.count_nonzero(each > _DENSER_THAN_BONE_HU)) for each in slices)
        if highest > _DENSER_THAN_BONE_HU
        else 0,
        voxels=int(image.size),
    )


def is_prepared(volume: Volume, rules: IntensityRules = _LEAVES_PREPARED) -> bool:
    """Whether an image holds gray values from 0 to 255 that are ready for the network.

    That its values lie in 0 to 255 is not enough: those of an MR from 0 to 1, or of a PET in SUV,
    do too. An image is prepared if its type is 8-bit, or if its values are whole and end near 255.
    A file without a stated geometry is a challenge file, whose values lie in 0 to 255 by
    definition: there one of the two signs suffices, since cropping takes the brightest voxel away,
    and resampling the whole numbers. A preset may take every image for a raw one.
    """
    stated = volume.geometry_is_stated
    return rules.takes_prepared and _are_prepared(look_at(volume.image_dhw), stated=stated)


def _are_prepared(facts: ImageFacts, *, stated: bool) -> bool:
    """Decide as `is_prepared`."""
    if facts.eight_bit:
        return True
    if facts.lowest < 0 or facts.highest > WHITE:
        return False
    bright = facts.highest >= _NEAR_WHITE
    return (facts.whole and bright) if stated else (facts.whole or bright)


def prepare_intensities(
    volume: Volume,
    modality: str,
    window: str = "soft tissue",
    preset: str | Preset = "paper",
) -> Intensities:
    """Scale a volume to 0..255 unless it was prepared so (`is_prepared`).

    CT is cut to a Hounsfield window and scaled. Every other modality is cut at the 0.5 and 99.5
    percentiles of the voxels that are not 0 and scaled; those that are 0 stay 0, as MedSAM, whose
    preprocessing the paper names, and the authors' script do. A window given in
    numbers is taken at its word, whatever the modality and the values.

    Parameters
    ----------
    volume
        The image.
    modality
        `"CT"`, `"MRI"`, `"US"`, `"PET"` or `"Microscopy"`.
    window
        For CT the name of a window of the policy, which also says which one suits the classes
        asked for; for any modality `"WIDTH,LEVEL"` in the image's units.
    preset
        Whose windows and rules of scaling count (`policy.IntensityRules`).

    Raises
    ------
    InputError
        As `parse_window`, or there is no such preset.
    """
    policy = load_policy()
    chosen = parse_window(window, policy.hounsfield_windows(preset))
    rules = policy.preset(preset).intensities
    image = volume.image_dhw
    stated = volume.geometry_is_stated
    facts = look_at(image)
    by_hand = chosen.name is None
    if by_hand:
        done = _windowed(image, facts, chosen, window, rules)
    elif rules.takes_prepared and _are_prepared(facts, stated=stated):
        xp = namespace(image)
        unchanged = contiguous(xp.astype(image, xp.float32, copy=False))
        done = Intensities(unchanged, "unchanged", None, facts.lowest, facts.highest)
    elif traits_of(modality).in_hounsfield:
        done = _windowed(image, facts, chosen, window, rules)
    else:
        only_positive = rules.percentiles_of == "positive"
        found = nonzero_percentiles(image, PERCENTILES, only_positive=only_positive) or (0.0, 0.0)
        low, high = found if found[0] < found[1] else (facts.lowest, facts.highest)
        scale = _whole_grays if rules.whole_grays else _grays
        image_dhw = _scaled(image, scale, low, high, keep_zeros=True)
        done = Intensities(image_dhw, "percentiles", None, low, high)
    return replace(done, notes=_notes(facts, modality, done, by_hand=by_hand, stated=stated))


def _windowed(
    image: Array, facts: ImageFacts, window: IntensityWindow, asked: str, rules: IntensityRules
) -> Intensities:
    """Cut to a window and scale; from end to end of what is left where that is stretched."""
    low, high = window.low, window.high
    if rules.stretched:
        low, high = (min(max(value, low), high) for value in (facts.lowest, facts.highest))
    scale = _whole_grays if rules.whole_grays else _grays
    return Intensities(_scaled(image, scale, low, high), "window", asked, low, high)


def _scaled(
    image: Array,
    scale: Callable[[Array, float, float], Array],
    low: float,
    high: float,
    *,
    keep_zeros: bool = False,
) -> Array:
    """Cut to `[low, high]` and map onto 0..255; an image of one value becomes zeros."""
    xp = namespace(image)
    result = xp.zeros(image.shape, dtype=xp.float32, device=image.device)

    def scale_rows(start: int, stop: int) -> None:
        slab = image[start:stop, ...]
        grays = scale(slab, low, high)
        result[start:stop, ...] = grays * (slab != 0) if keep_zeros and low < 0 else grays

    on_all_cores(scale_rows, row_slabs(image, _SLAB_BLOCKS), image)
    return result


def _grays(slab: Array, low: float, high: float) -> Array:
    """Map `[low, high]` onto 0..255 in float32."""
    xp = namespace(slab)
    slab = xp.astype(slab, xp.float32, copy=False)
    factor = np.float32(WHITE / (high - low)) if high > low else np.float32(0)
    return xp.clip((xp.clip(slab, low, high) - np.float32(low)) * factor, 0.0, WHITE)


def _whole_grays(slab: Array, low: float, high: float) -> Array:
    """Map `[low, high]` onto the whole numbers 0 to 254 as the authors' script does.

    It divides by a little more than the width and cuts decimals off, in float64. (Windows of
    float32 images it computes in float32, where the little is lost and the brightest is 255.)
    """
    xp = namespace(slab)
    slab = xp.clip(xp.astype(slab, xp.float64), low, high)
    return xp.astype(xp.floor((slab - low) / (high - low + _ADDED_TO_WIDTH) * WHITE), xp.float32)


def _notes(
    facts: ImageFacts, modality: str, done: Intensities, *, by_hand: bool, stated: bool
) -> tuple[Note, ...]:
    """Note what was assumed about an image's values, and what is doubtful about them."""
    extent = f"from {facts.lowest:.4g} to {facts.highest:.4g}"
    if facts.lowest == facts.highest:
        text = f"the image is constant: every voxel is {facts.lowest:.4g}"
        return (warning("image-constant", text),)
    notes = []
    if facts.padding > _LARGEST_PADDING * facts.voxels:
        share = 100 * facts.padding / facts.voxels
        text = f"{share:.4g} % of the voxels have one value, {facts.lowest:.4g}"
        notes.append(warning("image-mostly-constant", text))
    if done.action == "window" and not (facts.highest > done.low and facts.lowest < done.high):
        text = (
            f"the window from {done.low:.4g} to {done.high:.4g} holds none of the image's values, "
            f"which go {extent}"
        )
        notes.append(warning("window-misses-image", text))
    if not by_hand:
        notes += _notes_on_scaling(facts, modality, done, extent, stated=stated)
    return tuple(notes)


def _notes_on_scaling(
    facts: ImageFacts, modality: str, done: Intensities, extent: str, *, stated: bool
) -> list[Note]:
    """Note what scaling, or leaving it out, took for granted."""
    notes = []
    if done.action == "unchanged":
        text = f"values {extent} were taken for gray values from 0 to 255 and not scaled"
        if facts.highest < _DIM:
            notes.append(warning("intensities-dim", f"{text}, though they end far below 255"))
        elif stated and traits_of(modality).in_hounsfield:  # as scanners store them
            doubt = f"{text}; is it a CT? If so, in which units? Say so by --window WIDTH,LEVEL"
            notes.append(warning("intensities-prepared", doubt))
        elif stated:
            notes.append(Note("intensities-prepared", text))
        return notes
    if facts.lowest >= 0 and facts.highest <= WHITE:
        text = f"values {extent} were not taken for prepared gray values, and scaled"
        notes.append((Note if stated else warning)("intensities-not-prepared", text))
    if traits_of(modality).in_hounsfield:
        if doubt := _doubt_of_ct(facts, extent):
            notes.append(warning("ct-not-hounsfield", doubt))
    elif facts.negative > _LARGEST_NEGATIVE_SHARE * facts.voxels:
        share = 100 * facts.negative / facts.voxels
        text = (
            f"{share:.3g} % of the voxels are below 0 ({extent}), unusual for {modality}: is it a "
            "CT, or were the values standardized?"
        )
        notes.append(warning("negative-values", text))
    return notes


def _doubt_of_ct(facts: ImageFacts, extent: str) -> str:
    """Say why a CT's values are hardly Hounsfield units; empty: they may be."""
    only_padding_is_negative = facts.lowest < _AIR_HU and facts.negative == facts.padding
    remedy = "correct them, or give --window WIDTH,LEVEL in their units"
    if facts.lowest >= 0 or only_padding_is_negative:
        below = "below 0" if facts.lowest >= 0 else f"below 0 but the padding's {facts.lowest:.4g}"
        return (
            f"no value of this CT is {below} ({extent}), so these are hardly Hounsfield units: "
            f"{remedy}"
        )
    narrow = facts.highest - facts.lowest < _NARROWEST_CT_HU
    if narrow or max(facts.highest, -facts.lowest) > _LARGEST_HU:
        return f"values {extent} are hardly Hounsfield units (standardized, or scaled?): {remedy}"
    if facts.dense > _LARGEST_DENSE_SHARE * facts.voxels:
        share = 100 * facts.dense / facts.voxels
        return (
            f"{share:.3g} % of the voxels are above {_DENSER_THAN_BONE_HU:g} HU, denser than bone "
            f"({extent}): are the values inverted, or shifted?"
        )
    return ""
