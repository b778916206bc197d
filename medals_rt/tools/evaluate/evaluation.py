"""Scores of files and folders: which belong together, which labels count, what a case comes to."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from medals_rt.common.arrays import label_dtype
from medals_rt.common.atomic_io import prepare_output, write_json
from medals_rt.common.choices import Kind
from medals_rt.common.errors import CaseError, InputError, MedalsError, MissingFileError
from medals_rt.common.folders import walk_once
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import HostArray
from medals_rt.io.case import LabelFile
from medals_rt.io.grids import fill_left_out, grid_of, same_grid
from medals_rt.io.registry import LABEL_ENDINGS, case_stem, read_labels
from medals_rt.pipeline.csv_tables import write_csv
from medals_rt.preprocessing.label_sampling import sample_labels
from medals_rt.prompts.prompt_set import PromptSet, read_prompts
from medals_rt.tools.evaluate.classes import (
    LabelNames,
    Pairing,
    names_in,
    names_of_prompts,
    no_class_shared,
    pair_labels,
    prompts_beside,
    shared_label_notes,
)
from medals_rt.tools.evaluate.metrics import (
    Spacing3,
    dice_by_label,
    label_sizes,
    match_instances,
    nsd_by_label,
    split_binary,
)
from medals_rt.tools.evaluate.scores import (
    COLUMNS,
    CaseScore,
    Evaluation,
    FailedCase,
    LabelScore,
)


def evaluate(
    predicted: Path,
    reference: Path,
    *,
    kind: Kind | None = None,
    prompts: PromptSet | None = None,
    split_reference: bool = False,
    resample: bool = False,
    by_value: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score predictions against references, as the public challenge does.

    Two files, or two folders whose files, also those in folders below them, are matched by name
    without ending. A reference without prediction is scored as an empty prediction. A case of a
    folder that can't be scored is named with the reason, and the others are scored. DICOM files
    that are no segmentation count as scans beside their references.

    Parameters
    ----------
    predicted, reference
        Files with integer labels, or folders of them.
    kind
        How cases are scored; None takes it from the prompts, else from the segments' names, else
        anatomy.
    prompts
        What was asked for; it names the labels of files that don't name them. None takes what the
        files hold, or `NAME.prompts.json` beside the reference; without any, every label of the
        reference is scored.
    split_reference
        Number the components of a binary reference of lesions, too; the public script takes it as
        one instance.
    resample
        Bring a prediction that lies on another grid onto the reference's, with a note.
    by_value
        Pair labels by their values, whatever the files call them.
    progress
        Called with a case's name, the number of cases done and of all.

    Raises
    ------
    MissingFileError
        If a path doesn't exist, or a folder holds no label files.
    CaseError
        If one of two files is broken, or they can't be compared; see `score_case`.
    """
    pairs, without_reference = _pairs(predicted, reference)
    cases, failed, scans = [], [], []
    for done, (name, prediction_path, reference_path) in enumerate(pairs):
        if progress:
            progress(name, done, len(pairs))
        try:
            cases.append(
                score_case(
                    name,
                    None if prediction_path is None else read_labels(prediction_path),
                    _read_reference(reference_path),
                    kind=kind,
                    prompts=prompts,
                    split_reference=split_reference,
                    resample=resample,
                    by_value=by_value,
                )
            )
        except (MedalsError, OSError) as error:
            if not reference.is_dir():
                raise
            code = getattr(error, "code", "")
            if prediction_path is None and code == "not-a-segmentation":
                scans.append(name)
                continue
            failed.append(FailedCase(name, str(error).removeprefix(f"case {name}: ")))
    if progress:
        progress("", len(pairs), len(pairs))
    return Evaluation(tuple(cases), without_reference, tuple(failed), tuple(scans))


def evaluate_to_files(
    predicted: Path,
    reference: Path,
    *,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    prompts_file: Path | None = None,
    kind: Kind | None = None,
    split_reference: bool = False,
    resample: bool = False,
    by_value: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score as `evaluate` does and write the scores; each file appears whole or not at all.

    Parameters
    ----------
    json_file, csv_file
        Where scores go, if at all; checked before the work starts.
    prompts_file
        A prompts.json.
    predicted, reference, kind, split_reference, resample, by_value, progress
        As for `evaluate`.
    """
    for path in (json_file, csv_file):
        if path is not None:
            prepare_output(path)
    scores = evaluate(
        predicted,
        reference,
        kind=kind,
        prompts=None if prompts_file is None else read_prompts(prompts_file),
        split_reference=split_reference,
        resample=resample,
        by_value=by_value,
        progress=progress,
    )
    if json_file is not None:
        write_json(json_file, scores.to_dict())
    if csv_file is not None:
        write_csv(csv_file, COLUMNS, scores.rows())
    return scores


def score_case(
    name: str,
    predicted: LabelFile | None,
    reference: LabelFile,
    *,
    kind: Kind | None = None,
    prompts: PromptSet | None = None,
    split_reference: bool = False,
    resample: bool = False,
    by_value: bool = False,
) -> CaseScore:
    """Score one case from label maps that were read.

    Parameters
    ----------
    name
        The case's name.
    predicted
        Its labels; None where there is no prediction.
    reference
        The labels to compare with; its spacing is taken, else the prediction's.
    kind, prompts, split_reference, resample, by_value
        As for `evaluate`.

    Raises
    ------
    CaseError
        If the grids differ (code `grids-differ`, with `resample` only where a place is unknown:
        `place-unknown`), the files' names for their labels contradict each other (see
        `classes.pair_labels`), or anatomy is to be scored and no file holds a spacing
        (`spacing-missing`).
    """
    asked = LabelNames() if prompts is None else names_of_prompts(prompts)
    own = names_in(predicted)
    theirs = names_in(reference) or asked
    kind = kind or asked.kind or own.kind or theirs.kind or "anatomy"
    notes: tuple[Note, ...] = ()
    if predicted is not None:
        reference = fill_left_out(reference, grid_of(predicted))
        predicted = fill_left_out(predicted, grid_of(reference))
    truth = reference.labels_dhw
    if predicted is None:
        labels = np.zeros(truth.shape, np.uint8)
    else:
        predicted, notes = _on_reference_grid(name, predicted, reference, resample=resample)
        labels = predicted.labels_dhw
    foreground = dice_by_label((labels != 0).view(np.uint8), (truth != 0).view(np.uint8), [1])[1]
    if kind == "lesion":
        _check_classes(name, own or asked, theirs, by_value=by_value)
        known = None if predicted is None else predicted.instances_dhw
        pieces = split_binary(truth) if split_reference else truth
        found = match_instances(split_binary(labels) if known is None else known, pieces)
        return CaseScore(name, kind, (), found, foreground, predicted is None, notes)
    grid = reference if reference.spacing_hwd_mm else predicted
    if grid is None or grid.spacing_hwd_mm is None:
        raise CaseError(
            f"case {name}: neither file holds a spacing; add one to the reference",
            code="spacing-missing",
        )
    present = (_present(labels), _present(truth))
    pairing = pair_labels(name, own or asked, theirs, present=present, by_value=by_value)
    labels = _moved(labels, pairing)
    names = _names_to_score(name, asked, own, theirs, pairing, by_value=by_value)
    notes += pairing.notes
    if own and not theirs:
        text = f"case {name}: the reference doesn't name its labels: they are paired by value"
        notes += (Note("reference-unnamed", text),)
    elif theirs and not (own or asked) and predicted is not None:
        text = (
            f"case {name}: the prediction doesn't name its labels: they are paired by value; "
            "pass --prompts FILE to name them"
        )
        notes += (warning("prediction-unnamed", text),)
    notes += shared_label_notes(name, _present(labels), present[1], names or {})
    h, w, d = grid.spacing_hwd_mm
    stored = grid.source.spacing_ijk_mm or grid.spacing_hwd_mm
    scored = [label for label in present[1] if names is None or label in names]
    scores = _score_labels(labels, truth, stored, (d, h, w), scored, names or {})
    return CaseScore(name, kind, scores, None, foreground, predicted is None, notes)


def _read_reference(path: Path) -> LabelFile:
    """Read a reference; prompts beside it name its labels if it doesn't."""
    found = read_labels(path, prefer="gts")
    beside = None if names_in(found) else prompts_beside(path)
    return found if beside is None else replace(found, prompts=read_prompts(beside).as_mapping())


def _on_reference_grid(
    name: str, predicted: LabelFile, reference: LabelFile, *, resample: bool
) -> tuple[LabelFile, tuple[Note, ...]]:
    """Check that a prediction lies on the reference's grid, or bring it there.

    Raises
    ------
    CaseError
    """
    wanted, found = grid_of(reference), grid_of(predicted)
    difference = same_grid(wanted, found)
    if difference is None:
        return predicted, ()
    problem = f"case {name}: the prediction isn't on the reference's grid: {difference}"
    if wanted.affine_lps is None or found.affine_lps is None:
        unplaced = "the prediction" if found.affine_lps is None else "the reference"
        raise CaseError(
            f"{problem}; {unplaced} doesn't say where it lies, so that it can't be resampled: give "
            "results of the reference's own image, or files with an affine, such as .nii.gz",
            code="place-unknown" if resample else "grids-differ",
        )
    if not resample:
        raise CaseError(f"{problem}; use --resample to bring it there", code="grids-differ")
    onto = partial(
        sample_labels,
        affine=found.affine_lps,
        onto_affine=wanted.affine_lps,
        onto_shape_dhw=wanted.shape_dhw,
    )
    instances = predicted.instances_dhw
    moved = LabelFile(
        np.asarray(onto(predicted.labels_dhw)),
        None if instances is None else np.asarray(onto(instances)),
        reference.spacing_hwd_mm,
        reference.source,
        predicted.prompts,
        predicted.segment_names,
    )
    text = f"case {name}: prediction resampled onto the reference's grid ({difference})"
    return moved, (Note("prediction-resampled", text),)


def _check_classes(
    name: str, predicted: LabelNames, reference: LabelNames, *, by_value: bool
) -> None:
    """Refuse lesions of classes that have nothing to do with each other.

    Raises
    ------
    CaseError
    """
    known = all(
        each.classes and len(each.classes) == len(each.names) for each in (predicted, reference)
    )
    if known and not by_value and not set(predicted.label_of()) & set(reference.label_of()):
        raise no_class_shared(name, predicted, reference)


def _names_to_score(
    name: str,
    asked: LabelNames,
    own: LabelNames,
    theirs: LabelNames,
    pairing: Pairing,
    *,
    by_value: bool,
) -> dict[int, str] | None:
    """Return the labels that were asked for, as the reference numbers them; None for all."""
    if asked:
        to_reference = pair_labels(name, asked, theirs, by_value=by_value).moved
        names = asked.names
    else:
        names, to_reference = (own.names, pairing.moved) if own else (theirs.names, {})
    return {to_reference.get(label, label): text for label, text in names.items()} or None


def _present(labels: HostArray) -> list[int]:
    """Return the labels above 0 that occur, ascending."""
    values, _ = label_sizes(labels)
    return [int(value) for value in values if value]


def _moved(labels: HostArray, pairing: Pairing) -> HostArray:
    """Return labels with the values that a pairing moves them to."""
    if not pairing.moved:
        return labels
    highest = max(int(labels.max(initial=0)), *pairing.moved)
    table = np.arange(highest + 1)
    table[list(pairing.moved)] = list(pairing.moved.values())
    return table.astype(label_dtype(int(table.max())))[labels]


def _score_labels(
    labels: HostArray,
    truth: HostArray,
    stored_spacing_mm: Spacing3,
    spacing_dhw_mm: Spacing3,
    scored: list[int],
    names: Mapping[int, str],
) -> tuple[LabelScore, ...]:
    dice = dice_by_label(labels, truth, scored)
    nsd = nsd_by_label(labels, truth, scored, [stored_spacing_mm, spacing_dhw_mm])
    return tuple(
        LabelScore(label, names.get(label, f"label {label}"), dice[label], *nsd[label][:2])
        for label in scored
    )


def _pairs(
    predicted: Path, reference: Path
) -> tuple[list[tuple[str, Path | None, Path]], tuple[str, ...]]:
    for path in (predicted, reference):
        if not path.exists():
            raise MissingFileError(f"{path} does not exist; check the path")
    if predicted.is_dir() != reference.is_dir():
        raise InputError(
            f"give two files or two folders, not {predicted} and {reference}",
            code="file-and-folder",
        )
    if not reference.is_dir():
        return [(case_stem(reference), predicted, reference)], ()
    predictions, references = _label_files(predicted), _label_files(reference)
    if not references:
        raise MissingFileError(
            f"{reference} holds no {', '.join(LABEL_ENDINGS)} file", code="no-label-files"
        )
    if not predictions.keys() & references.keys():
        raise InputError(
            f"{predicted} and {reference} have no case in common: files of one case have one name, "
            f"as {next(iter(references))} in {reference}",
            code="no-common-case",
        )
    pairs = [(name, predictions.get(name), path) for name, path in references.items()]
    return pairs, tuple(name for name in predictions if name not in references)


def _label_files(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder and those below it by the names of their cases.

    They are named as a batch names them: ``later/anna`` for ``later/anna.nii.gz``.

    Raises
    ------
    CaseError
        If two are of one case.
    """
    files: dict[str, Path] = {}
    for path in _files_below(folder):
        if not path.name.lower().endswith(LABEL_ENDINGS):
            continue
        name = (path.parent.relative_to(folder) / case_stem(path)).as_posix()
        twin = files.setdefault(name, path)
        if twin is not path:
            raise CaseError(
                f"case {name}: {path.parent} holds both {twin.name} and {path.name}; keep one",
                code="case-repeated",
            )
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    """Go through the files of a folder as `walk_once` does, but hidden ones.

    Raises
    ------
    InputError
        ``folder-unreadable``: a mean over the other cases would pass for one over all.
    """
    try:
        for parent, folders, files in walk_once(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (parent / name for name in files if not name.startswith("."))
    except OSError as error:
        raise InputError(
            f"can't read the folder {error.filename} ({error.strerror}); let it be read",
            code="folder-unreadable",
        ) from error
