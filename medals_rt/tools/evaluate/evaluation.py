"""Scores of files and folders: which belong together, which labels count, what a case comes to."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from medals_rt.common.atomic_io import prepare_output, write_json
from medals_rt.common.errors import CaseError, InputError, MissingFileError, PromptError
from medals_rt.common.typing import HostArray
from medals_rt.io.case import LabelFile
from medals_rt.io.registry import ENDINGS, read_labels
from medals_rt.pipeline.csv_tables import write_csv
from medals_rt.prompts.prompt_set import PromptSet, parse_prompts, read_prompts
from medals_rt.tools.evaluate.metrics import (
    InstanceScore,
    Spacing3,
    dice_by_label,
    match_instances,
    nsd_by_label,
    split_binary,
)
from medals_rt.tools.evaluate.scores import COLUMNS, CaseScore, Evaluation, Kind, LabelScore


def evaluate(
    predicted: Path,
    reference: Path,
    *,
    kind: Kind | None = None,
    prompts: PromptSet | None = None,
    split_reference: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score predictions against references (system section 10).

    Two files, or two folders whose files are matched by name without ending. A reference without
    prediction is scored as an empty prediction.

    Parameters
    ----------
    predicted, reference : files with integer labels, or folders of them
    kind : "anatomy" or "lesion"; None takes it from the prompts, without prompts anatomy
    prompts : what was asked for; None takes what the files hold, and without any, every label of
        the reference counts
    split_reference : number the components of a binary reference of lesions, too; the public
        script takes it as one instance
    progress : called with a case's name, the number of cases done and of all

    Raises
    ------
    MissingFileError : a path does not exist, or a folder holds no label files
    CaseError : a file is broken, or a pair has different shapes
    """
    pairs, without_reference = _pairs(predicted, reference)
    cases = []
    for done, (name, prediction_path, reference_path) in enumerate(pairs):
        if progress:
            progress(name, done, len(pairs))
        truth = read_labels(reference_path, prefer="gts")
        found = None if prediction_path is None else read_labels(prediction_path)
        names, asked_kind = _asked(prompts, (found.prompts if found else None) or truth.prompts)
        cases.append(
            score_case(
                name,
                found,
                truth,
                kind=kind or asked_kind,
                names=names,
                split_reference=split_reference,
            )
        )
    if progress:
        progress("", len(pairs), len(pairs))
    return Evaluation(tuple(cases), without_reference)


def evaluate_to_files(
    predicted: Path,
    reference: Path,
    *,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    prompts_file: Path | None = None,
    kind: Kind | None = None,
    split_reference: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score as `evaluate` does and write the scores; each file appears whole or not at all.

    Parameters
    ----------
    json_file, csv_file : where scores go, if at all; checked before the work starts
    prompts_file : a prompts.json
    predicted, reference, kind, split_reference, progress : as for `evaluate`
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
    kind: Kind,
    names: Mapping[int, str] | None = None,
    split_reference: bool = False,
) -> CaseScore:
    """Score one case from arrays.

    Parameters
    ----------
    name : the case's name
    predicted : its labels (D, H, W); None where there is no prediction
    reference : the labels to compare with; its spacing counts, else the prediction's
    kind : how it is scored
    names : labels that were asked for, with their class; None: all labels of the reference
    split_reference : see `evaluate`

    Raises
    ------
    CaseError : the shapes differ, or anatomy is to be scored and no file holds a spacing
    """
    truth = reference.labels_dhw
    labels = np.zeros(truth.shape, np.uint8) if predicted is None else predicted.labels_dhw
    if labels.shape != truth.shape:
        raise CaseError(
            f"case {name}: the prediction has shape {labels.shape} and the reference "
            f"{truth.shape} (D, H, W); bring them to one grid"
        )
    foreground = dice_by_label((labels != 0).view(np.uint8), (truth != 0).view(np.uint8), [1])[1]
    found: InstanceScore | None = None
    scores: tuple[LabelScore, ...] = ()
    if kind == "lesion":
        known = None if predicted is None else predicted.instances_dhw
        pieces = split_binary(truth) if split_reference else truth
        found = match_instances(split_binary(labels) if known is None else known, pieces)
    else:
        grid = reference if reference.spacing_hwd_mm else predicted
        if grid is None or grid.spacing_hwd_mm is None:
            raise CaseError(f"case {name}: neither file holds a spacing; add one to the reference")
        h, w, d = grid.spacing_hwd_mm
        stored = grid.source.spacing_ijk_mm or grid.spacing_hwd_mm
        scores = _score_labels(labels, truth, stored, (d, h, w), names)
    return CaseScore(name, kind, scores, found, foreground, missing=predicted is None)


def _score_labels(
    labels: HostArray,
    truth: HostArray,
    stored_spacing_mm: Spacing3,
    spacing_dhw_mm: Spacing3,
    names: Mapping[int, str] | None,
) -> tuple[LabelScore, ...]:
    """Score the labels that were asked for and are in the reference."""
    present = (np.flatnonzero(np.bincount(truth.ravel())[1:]) + 1).tolist()
    counted = [label for label in present if names is None or label in names]
    dice = dice_by_label(labels, truth, counted)
    nsd = nsd_by_label(labels, truth, counted, [stored_spacing_mm, spacing_dhw_mm])
    return tuple(
        LabelScore(label, names[label] if names else f"label {label}", dice[label], *nsd[label][:2])
        for label in counted
    )


def _asked(
    prompts: PromptSet | None, stored: Mapping[str, object] | None
) -> tuple[dict[int, str] | None, Kind]:
    """Tell which labels were asked for, by class name, and which kind they are."""
    if prompts is None:
        if stored is None:
            return None, "anatomy"
        try:
            prompts = parse_prompts(stored)
        except PromptError:
            # Scoring needs no class: a sentence that names none still names its label.
            texts = {int(key): str(text) for key, text in stored.items() if key.isdecimal()}
            return texts, "lesion" if stored.get("instance_label") == 1 else "anatomy"
    names: dict[int, str] = {}
    for prompt in prompts.prompts:
        name = prompt.class_key.name
        names[prompt.label] = name if name not in names.values() else f"{name} ({prompt.label})"
    return names, "lesion" if prompts.kind == "lesion" else "anatomy"


def _pairs(
    predicted: Path, reference: Path
) -> tuple[list[tuple[str, Path | None, Path]], tuple[str, ...]]:
    for path in (predicted, reference):
        if not path.exists():
            raise MissingFileError(f"{path} does not exist")
    if predicted.is_dir() != reference.is_dir():
        raise InputError(f"give two files or two folders, not {predicted} and {reference}")
    if not reference.is_dir():
        return [(_case_name(reference), predicted, reference)], ()
    predictions, references = _label_files(predicted), _label_files(reference)
    if not references:
        raise MissingFileError(f"{reference} holds no {', '.join(ENDINGS)} file")
    pairs = [(name, predictions.get(name), path) for name, path in references.items()]
    return pairs, tuple(name for name in predictions if name not in references)


def _label_files(folder: Path) -> dict[str, Path]:
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))
    return {_case_name(path): path for path in files if not path.name.startswith(".")}


def _case_name(path: Path) -> str:
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), path.suffix)
    return path.name.removesuffix(ending)
