"""Results that a person corrected: only windows that decide about a change are run again.

A correction is a result and what a person made of it. Windows that decide about what was drawn or
erased (`planning.sliding_window.deciding_windows`) are shown the corrected labels; all others are
shown what they were shown before, so that far from a change nothing changes, and what a session
kept of them is used again. Corrections add up, each one of the result of those before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import (
    as_namespace,
    bounding_box,
    box_slices,
    label_dtype,
    namespace,
    present_values,
    to_host,
)
from medals_rt.common.errors import CaseError, InputError
from medals_rt.common.typing import Array, Box, Shape
from medals_rt.inference.hybrid_prompts import check_label_map, drawn_over, only_labels
from medals_rt.inference.spatial_prompts import LabelPrompts, label_prompts
from medals_rt.io.case import LabelFile
from medals_rt.io.grids import Grid, fill_left_out, grid_of, same_grid
from medals_rt.io.volume import to_hwd
from medals_rt.planning.geometry import StageGeometry
from medals_rt.planning.policy import Preset
from medals_rt.planning.sliding_window import Window, deciding_windows, pad_far_end
from medals_rt.preprocessing.resampling import resample_labels
from medals_rt.prompts.prompt_set import PromptSet


@dataclass(frozen=True, eq=False)
class Correction:
    """What a person changed of a result; make one with `Correction.of`.

    Only the box that holds it is kept.

    Attributes
    ----------
    shape_dhw
        Of the image.
    start_dhw
        First voxel of the box.
    before_dhw, after_dhw
        Labels in the box that gained or lost a voxel, in the result and as they were corrected; 0
        for all else.
    is_earlier
        Whether it is all that a result had before a person changed it again: windows that decide
        about later corrections are shown it, and the model looks nowhere else because of it.
    grid
        That of the file that it was read from; None where it is of arrays.
    """

    shape_dhw: Shape
    start_dhw: Shape
    before_dhw: npt.NDArray[Any]
    after_dhw: npt.NDArray[Any]
    is_earlier: bool = False
    grid: Grid | None = None

    @classmethod
    def of(
        cls,
        result_dhw: npt.NDArray[Any] | LabelFile,
        corrected_dhw: npt.NDArray[Any] | LabelFile,
        labels: Iterable[int],
    ) -> Correction:
        """Compare a result with what a person made of it.

        Parameters
        ----------
        result_dhw, corrected_dhw
            Label maps on the image's grid: integers `(D, H, W)` in canonical orientation, as
            `Result.labels_dhw`, or what `medals_rt.read_labels` has read, whose place is compared
            with the other's, and with the image's where the correction is used.
        labels
            Those of the prompts. What else the result holds is not asked for any more.

        Raises
        ------
        CaseError
            The two are no label maps of one image (``annotation-shape``, ``annotation-type``,
            ``annotation-on-another-grid``; ``annotation-names`` where files call one label by two
            names), the corrected one holds labels that no prompt names (``annotation-labels``), or
            they are the same (``correction-empty``).
        """
        result, corrected, grid = _of_files(result_dhw, corrected_dhw)
        labels = set(labels)
        if corrected.ndim != 3:
            raise CaseError(
                f"the corrected result has the shape {corrected.shape}, a label map has "
                "(D, H, W): give the labels of the whole image",
                code="annotation-shape",
            )
        check_label_map(result, corrected.shape, "the result that was corrected")
        check_label_map(corrected, corrected.shape, "the corrected result")
        if int(result.min(initial=0)) < 0:
            raise CaseError(
                "the result that was corrected holds negative labels: give the file that was "
                "written",
                code="annotation-labels",
            )
        if unknown := sorted(present_values(corrected) - labels):
            raise CaseError(
                f"the corrected result holds labels that no prompt names: {unknown}; the prompts' "
                f"labels are {sorted(labels)}",
                code="annotation-labels",
            )
        whole = cls(_shape(result.shape), (0, 0, 0), result, corrected, grid=grid)
        found = _cut(whole, labels)
        if found is None:
            raise CaseError(
                "the corrected result is the result itself: draw or erase something",
                code="correction-empty",
            )
        return found

    def part(
        self, labels: Collection[int], covering: Collection[int] = frozenset()
    ) -> Correction | None:
        """Keep what was changed of some labels; None: nothing was.

        Parameters
        ----------
        labels
            Those that are kept.
        covering
            Others that lie over them, as lesions over organs: where one was drawn, nothing of what
            lies below was erased.
        """
        if self.labels.isdisjoint(covering):
            return self if self.labels.issubset(labels) else _cut(self, labels)
        covers = np.isin(self.after_dhw, list(covering))
        below = np.where(covers, only_labels(self.before_dhw, labels), self.after_dhw)
        return _cut(replace(self, after_dhw=below), labels)

    @property
    def labels(self) -> set[int]:
        """Those that gained or lost a voxel."""
        return present_values(self.before_dhw) | present_values(self.after_dhw)

    @property
    def changed_dhw(self) -> npt.NDArray[np.bool_]:
        """Which voxels of the box changed."""
        changed: npt.NDArray[np.bool_] = self.before_dhw != self.after_dhw
        return changed

    @property
    def changed_box_dhw(self) -> Box:
        """What holds the voxels of the image that changed."""
        box = bounding_box(self.changed_dhw)
        if box is None:
            raise AssertionError(self)
        low, high = (_shape(np.add(self.start_dhw, corner)) for corner in box)
        return low, high

    @property
    def voxels(self) -> int:
        """How many changed."""
        return int(np.count_nonzero(self.changed_dhw))

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """What holds the labels, as an index into the image."""
        return box_slices((self.start_dhw, _shape(np.add(self.start_dhw, self.after_dhw.shape))))

    def apply(self, labels_dhw: npt.NDArray[Any]) -> None:
        """Change labels `(D, H, W)` in place as the result was changed.

        Where a class was erased, another that is there now stays.
        """
        changed, there = self.changed_dhw, labels_dhw[self.box]
        wanted, found = self.after_dhw[changed], there[changed]
        found[np.isin(found, list(self.labels))] = 0
        there[changed] = np.where(wanted > 0, wanted, found)

    def to_bytes(self) -> bytes:
        """Pack it, to a hundredth and less where labels are those of organs; see `from_bytes`."""
        content = BytesIO()
        arrays = {"before": self.before_dhw, "after": self.after_dhw}
        shapes = {"shape": self.shape_dhw, "start": self.start_dhw}
        np.savez_compressed(
            content, allow_pickle=False, is_earlier=self.is_earlier, **arrays, **shapes
        )
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Correction:
        """Unpack what `to_bytes` has packed."""
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            shape, start = (_shape(stored[name]) for name in ("shape", "start"))
            earlier = bool(stored["is_earlier"])
            return cls(shape, start, stored["before"], stored["after"], earlier)

    def drawn_dhw(self) -> npt.NDArray[Any]:
        """Return `after_dhw` in the whole image."""
        drawn = np.zeros(self.shape_dhw, self.after_dhw.dtype)
        drawn[self.box] = self.after_dhw
        return drawn


def _of_files(
    result: npt.NDArray[Any] | LabelFile, corrected: npt.NDArray[Any] | LabelFile
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Grid | None]:
    """Take labels out of files that are of one grid, and whose names agree; return the grid, too.

    Raises
    ------
    CaseError
        ``annotation-on-another-grid`` or ``annotation-names``.
    """
    if isinstance(result, LabelFile) and isinstance(corrected, LabelFile):
        result = fill_left_out(result, grid_of(corrected))
        corrected = fill_left_out(corrected, grid_of(result))
        if difference := same_grid(grid_of(result), grid_of(corrected)):
            raise CaseError(
                f"the corrected result is not on the grid of the result: {difference}; correct "
                "the result itself",
                code="annotation-on-another-grid",
            )
        for label, name in corrected.segment_names.items():
            before = result.segment_names.get(label, name)
            if before.casefold() != name.casefold():
                raise CaseError(
                    f"label {label} is {before!r} in the result and {name!r} in the corrected "
                    "one; number them alike",
                    code="annotation-names",
                )
    files = [each for each in (corrected, result) if isinstance(each, LabelFile)]
    result_dhw, corrected_dhw = (
        np.asarray(each.labels_dhw if isinstance(each, LabelFile) else each)
        for each in (result, corrected)
    )
    return result_dhw, corrected_dhw, grid_of(files[0]) if files else None


def check_corrections(
    corrections: Sequence[Correction], grid: Grid, prompts: PromptSet, preset: Preset
) -> None:
    """Check that corrections fit an image, its prompts, and what a preset makes of them.

    Raises
    ------
    InputError
        ``corrections-without-labels``: results don't tell the classes apart.
    TypeError
        One is no `Correction`.
    CaseError
        One is of another image (``annotation-shape``, ``annotation-on-another-grid``) or of labels
        that no prompt names (``annotation-labels``).
    """
    relabeled = preset.lesions == "binary" and prompts.kind == "lesion" and prompts.labels != (1,)
    if corrections and relabeled:
        raise InputError(
            f"under the preset {preset.name!r} every lesion has the label 1, so that a result "
            "doesn't say which class was corrected; ask for one class, with the label 1, or use "
            "another preset",
            code="corrections-without-labels",
        )
    for each in corrections:
        if not isinstance(each, Correction):
            raise TypeError(
                f"a correction is a {type(each).__name__}, not a medals_rt.Correction; make it "
                "with Correction.of(result, corrected, labels)"
            )
        if each.shape_dhw != tuple(grid.shape_dhw):
            raise CaseError(
                f"a correction is of an image of shape {each.shape_dhw}, this one has "
                f"{tuple(grid.shape_dhw)} (D, H, W): correct a result of this image",
                code="annotation-shape",
            )
        if each.grid is not None and (difference := same_grid(grid, each.grid)):
            raise CaseError(
                f"a correction is not on the grid of the image: {difference}; correct a result of "
                "this image",
                code="annotation-on-another-grid",
            )
        if unknown := sorted(each.labels - set(prompts.labels)):
            raise CaseError(
                f"a correction is of labels that no prompt names: {unknown}; the prompts' labels "
                f"are {sorted(prompts.labels)}",
                code="annotation-labels",
            )


def parts_of(
    corrections: Sequence[Correction],
    labels: Collection[int],
    covering: Collection[int] = frozenset(),
) -> tuple[Correction, ...]:
    """Keep what corrections change of some labels; see `Correction.part`."""
    parts = (each.part(labels, covering) for each in corrections)
    return tuple(each for each in parts if each is not None)


def corrected_labels(corrections: Sequence[Correction]) -> npt.NDArray[Any]:
    """Return the labels of the corrected result that gained or lost a voxel.

    Parameters
    ----------
    corrections
        Of one image, in the order in which they were made; at least one.

    Returns
    -------
    numpy.ndarray
        `(D, H, W)`: each label as the last correction of it left it, everywhere in the image, and 0
        for all else.
    """
    highest = max(max(each.labels) for each in corrections)
    known = np.zeros(corrections[0].shape_dhw, label_dtype(highest))
    for each in corrections:
        known = to_host(drawn_over(known, each.drawn_dhw(), each.labels))
    return known


@dataclass(frozen=True, eq=False)
class StageCorrection:
    """A correction on the grid of a stage's windows.

    Attributes
    ----------
    drawn_hwd
        As drawn, on the padded grid and the network's device.
    labels
        Those that come from the drawing alone.
    decides
        One bool a window: whether it is shown the drawing.
    """

    drawn_hwd: Array
    labels: frozenset[int]
    decides: npt.NDArray[np.bool_]

    @classmethod
    def at(
        cls,
        correction: Correction,
        decides: npt.NDArray[np.bool_],
        box_dhw: Box,
        geometry: StageGeometry,
        like: Array,
    ) -> Self:
        """Bring a correction onto a stage's grid.

        Parameters
        ----------
        correction
            Of the whole image.
        decides
            Of `who_decides`.
        box_dhw
            What the stage looks at.
        geometry
            The stage's.
        like
            An array of the device.
        """
        drawn_dhw = correction.drawn_dhw()[box_slices(box_dhw)]
        drawn = to_hwd(as_namespace(drawn_dhw, namespace(like), like))
        resampled = resample_labels(drawn, geometry.resampled_shape_hwd, geometry.separate_axis)
        padded = pad_far_end(resampled, geometry.padded_shape_hwd)
        return cls(padded, frozenset(correction.labels), decides)


def who_decides(
    corrections: Sequence[Correction], box_dhw: Box, geometry: StageGeometry
) -> list[npt.NDArray[np.bool_]]:
    """Return for each correction which windows of a stage are shown it, one bool a window.

    Those that decide about a voxel that it changed. What a result had before is shown to all that
    decide about any other.

    Parameters
    ----------
    corrections
        Of the whole image.
    box_dhw
        What the stage looks at; changes lie in it, but those of earlier ones.
    geometry
        The stage's.
    """
    nobody = np.zeros(len(geometry.windows), np.bool_)
    own = [nobody if each.is_earlier else _decides(each, box_dhw, geometry) for each in corrections]
    anyone = np.logical_or.reduce([nobody, *own])
    return [
        anyone if each.is_earlier else decides
        for each, decides in zip(corrections, own, strict=True)
    ]


def _decides(
    correction: Correction, box_dhw: Box, geometry: StageGeometry
) -> npt.NDArray[np.bool_]:
    d, h, w = np.subtract(correction.start_dhw, box_dhw[0]).tolist()
    changed = np.asarray(to_hwd(correction.changed_dhw))
    indices = []
    for axis, start in enumerate((h, w, d)):
        scale = geometry.resampled_shape_hwd[axis] / geometry.input_shape_hwd[axis]
        centers = (start + np.arange(changed.shape[axis]) + 0.5) * scale
        index, first = np.unique(centers.astype(np.int64), return_index=True)
        changed = np.logical_or.reduceat(changed, first, axis=axis)
        indices.append(index)
    return deciding_windows(changed, indices, geometry.windows)


@dataclass(frozen=True)
class ShownPrompts:
    """What the windows of a stage are shown.

    Attributes
    ----------
    of_windows
        One a window; None: nothing.
    whole_hwd
        The same as one label map, where windows are shown different ones with all corrections;
        None: nothing.
    corrected
        How many windows are shown a correction.
    """

    of_windows: Sequence[LabelPrompts | None]
    whole_hwd: Array | None
    corrected: int = 0


def correct(
    shown: ShownPrompts,
    corrections: Iterable[StageCorrection],
    windows: Sequence[Window],
    labels: Sequence[int],
    block_size: int,
) -> ShownPrompts:
    """Show corrections to the windows that decide about them.

    Parameters
    ----------
    shown
        What windows are shown without them.
    corrections
        In the order in which they were made; each is asked for when those before it are drawn, for
        it may take the memory of a stage's image.
    windows, labels, block_size
        As for `label_prompts`.
    """
    before = whole = shown.whole_hwd
    maps: dict[int, Array] = {}
    for each in corrections:
        if before is None or whole is None:
            nothing = np.zeros(each.drawn_hwd.shape, label_dtype(max(labels)))
            before = whole = as_namespace(nothing, namespace(each.drawn_hwd), each.drawn_hwd)
        for number in np.flatnonzero(each.decides).tolist():
            cut = windows[number].slices
            own = maps.get(number, before[cut])
            maps[number] = drawn_over(own, each.drawn_hwd[cut], each.labels)
        whole = drawn_over(whole, each.drawn_hwd, each.labels)
    prompts, corrected = list(shown.of_windows), len(maps)
    while maps:  # each goes when its prompts are made: all of them may be eight times the image
        number, shown_hwd = maps.popitem()
        itself = Window((0, 0, 0), _shape(shown_hwd.shape))
        prompts[number] = label_prompts(shown_hwd, [itself], labels, block_size)[0]
    return ShownPrompts(prompts, whole, corrected)


def _cut(correction: Correction, labels: Collection[int]) -> Correction | None:
    """Keep the labels of some that gained or lost a voxel, in the box that holds them."""
    before, after = (
        only_labels(correction.before_dhw, labels),
        only_labels(correction.after_dhw, labels),
    )
    differs = before != after
    touched = present_values(before[differs][None]) | present_values(after[differs][None])
    if not touched:
        return None
    before, after = only_labels(before, touched), only_labels(after, touched)
    box = bounding_box(differs | (after > 0))
    if box is None:
        raise AssertionError(touched)
    inside = box_slices(box)
    return replace(
        correction,
        start_dhw=_shape(np.add(correction.start_dhw, box[0])),
        before_dhw=before[inside].copy(),
        after_dhw=after[inside].copy(),
    )


def _shape(values: Any) -> Shape:
    a, b, c = (int(value) for value in values)
    return a, b, c
