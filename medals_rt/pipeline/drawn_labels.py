"""Labels that a person drew, from a file: where they lie, and which prompt each is of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medals_rt.common.arrays import look_up
from medals_rt.common.errors import CaseError
from medals_rt.common.notes import Note
from medals_rt.inference.hybrid_prompts import labels_in
from medals_rt.io.case import LabelFile
from medals_rt.io.grids import fill_left_out, grid_of, same_grid
from medals_rt.io.volume import Volume
from medals_rt.preprocessing.label_sampling import sample_labels
from medals_rt.prompts.classes import class_names
from medals_rt.prompts.prompt_set import PromptSet


def placed_labels(
    labels: LabelFile,
    name: str,
    volume: Volume,
    prompts: PromptSet | None,
    *,
    resample: bool | None = None,
) -> tuple[npt.NDArray[Any], tuple[Note, ...]]:
    """Bring labels of a file onto an image's grid, with the prompts' numbers.

    Parameters
    ----------
    labels
        As they were read.
    name
        What messages call them.
    volume, prompts, resample
        As of `job_inputs.read_annotation`; None where labels can't be resampled: the message
        doesn't offer it then.

    Returns
    -------
    labels_dhw, notes
        As of `job_inputs.read_annotation`.

    Raises
    ------
    CaseError
        ``annotation-on-another-grid``, ``place-unknown``, ``annotation-outside`` or
        ``annotation-names``.
    """
    wanted = grid_of(volume)
    drawn = fill_left_out(labels, wanted)
    renumbered: tuple[Note, ...] = ()
    if prompts is not None:
        drawn, renumbered = _as_numbered(drawn, prompts, name)
    found = grid_of(drawn)
    difference = same_grid(wanted, found)
    if difference is None:
        return drawn.labels_dhw, renumbered
    problem = f"{name} is not on the grid of {volume.name}: {difference}"
    if not resample:
        offer = "" if resample is None else ", or use --resample to bring it there"
        raise CaseError(
            f"{problem}; draw on the image itself{offer}", code="annotation-on-another-grid"
        )
    if wanted.affine_lps is None or found.affine_lps is None:
        raise CaseError(
            f"{problem}; --resample needs files that know their place", code="place-unknown"
        )
    moved = np.asarray(
        sample_labels(drawn.labels_dhw, found.affine_lps, wanted.affine_lps, wanted.shape_dhw)
    )
    if drawn.labels_dhw.any() and not moved.any():
        raise CaseError(
            f"no label of {name} lies in {volume.name}: {difference}; give the annotation of "
            "this image",
            code="annotation-outside",
        )
    text = f"{name} was resampled onto the grid of the scan ({difference})"
    return moved, (*renumbered, Note("annotation-resampled", text))


def _as_numbered(
    drawn: LabelFile, prompts: PromptSet, name: str
) -> tuple[LabelFile, tuple[Note, ...]]:
    """Give labels the numbers of the prompts, where the file names them and numbers them otherwise.

    Viewers number segments in their own order when they save them, and keep their names.

    Raises
    ------
    CaseError
        ``annotation-names``: a name is another label's, and not every label has a name of its own.
    """
    names = drawn.segment_names
    if not names:
        return drawn, ()
    labels = {each.class_key.name.casefold(): each.label for each in prompts.prompts}
    labels |= {each.text.casefold(): each.label for each in prompts.prompts}
    called = {
        label: names.get(label, "").strip().casefold() for label in labels_in(drawn.labels_dhw)
    }
    meant = {label: labels.get(word) for label, word in called.items()}
    foreign = [
        f"{names[label]} {label}"
        for label, own in meant.items()
        if own is None and label in prompts.labels and called[label] in class_names()
    ]
    if foreign:
        raise CaseError(
            f"{name} has labels of classes that no prompt names ({', '.join(foreign)}), with the "
            "numbers of others; ask for those classes too, or take these labels out",
            code="annotation-names",
        )
    others = {label: own for label, own in meant.items() if own not in {None, label}}
    if not others:
        return drawn, ()
    listed = ", ".join(f"{names[label]} {label}, here {own}" for label, own in others.items())
    if None in meant.values() or len(set(meant.values())) < len(meant):
        raise CaseError(
            f"{name} numbers labels otherwise than the prompts ({listed}), and doesn't name each "
            "of them as one prompt; number them as the prompts do",
            code="annotation-names",
        )
    table = np.zeros(max(meant) + 1, np.min_scalar_type(max(prompts.labels)))
    table[list(meant)] = list(meant.values())
    text = f"{name} numbers labels otherwise than the prompts, and is read by its names: {listed}"
    return replace(drawn, labels_dhw=np.asarray(look_up(table, drawn.labels_dhw))), (
        Note("annotation-renumbered", text),
    )
