"""`medals-rt evaluate`: score results against references."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medals_rt.cli._errors import EXIT_DONE, EXIT_FAILURE
from medals_rt.cli._options import PromptsFile
from medals_rt.cli._output import out
from medals_rt.common.choices import Kind

if TYPE_CHECKING:
    from medals_rt.tools.evaluate.scores import Evaluation

_MOST_NAMES = 20

EXAMPLES: Final = (
    "medals-rt evaluate result.nii.gz reference.nii.gz",
    "medals-rt evaluate results references --csv scores.csv --json scores.json",
)


def evaluate_command(
    *,
    predicted: Annotated[
        Path, typer.Argument(metavar="PRED", help="Result, or folder of results.")
    ],
    reference: Annotated[Path, typer.Argument(metavar="GT", help="Reference, or folder of them.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores as JSON here.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the scores as CSV here.")
    ] = None,
    prompts: PromptsFile = None,
    kind: Annotated[
        Kind | None,
        typer.Option(help="Which scores to compute [default: those of the prompts' kind]."),
    ] = None,
    split_reference: Annotated[
        bool,
        typer.Option(
            "--split-reference",
            help="Split a binary lesion reference into its connected components.",
        ),
    ] = False,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample", help="Bring results on another grid onto the reference's (nearest voxel)."
        ),
    ] = False,
    by_value: Annotated[
        bool,
        typer.Option("--by-value", help="Pair labels by value, whatever the files call them."),
    ] = False,
) -> int:
    """Score results against references: DSC, NSD, F1 and DSC TP.

    Anatomy is scored by DSC and NSD, lesions by F1 and DSC TP. Both files must lie on one grid.
    Labels are paired by value, or by class where both files name them. A case of a folder that
    can't be scored is named, and the exit code is 1.
    """
    from medals_rt.tools.evaluate.evaluation import evaluate_to_files

    with out.progress() as progress:
        scores = evaluate_to_files(
            predicted,
            reference,
            json_file=json_file,
            csv_file=csv_file,
            prompts_file=prompts,
            kind=kind,
            split_reference=split_reference,
            resample=resample,
            by_value=by_value,
            progress=progress and (lambda _, done, total: progress("cases", done, total)),
        )
    for case in scores.cases:
        for note in case.notes:
            out.note(note)
    print_scores(scores)
    out.wrote(json_file, csv_file)
    for failed in scores.failed:
        out.failure(f"{failed.case} failed: {failed.error}")
    if scores.failed:
        count = len(scores.failed)
        out.failure(f"error: {count} of {count + len(scores.cases)} cases could not be scored")
        return EXIT_FAILURE
    return EXIT_DONE


def print_scores(scores: "Evaluation") -> None:
    """Print the scores as tables, one for anatomy and one for lesions."""
    _print_anatomy(scores)
    _print_lesions(scores)
    missing = [case.case for case in scores.cases if case.missing]
    if missing:
        out.line(f"no prediction, scored as empty: {_listed(missing)}")
    if scores.without_reference:
        out.line(f"no reference, not scored: {_listed(scores.without_reference)}")
    if scores.scans:
        out.line(f"no segmentation, but DICOM of a scan, passed over: {_listed(scores.scans)}")


def _listed(names: Sequence[str]) -> str:
    """Name the first few cases, and count the others."""
    more = len(names) - _MOST_NAMES
    return ", ".join([*names[:_MOST_NAMES], *([f"and {more} more"] if more > 0 else [])])


def _print_anatomy(scores: "Evaluation") -> None:
    """Print DSC and NSD; both readings of the spacing where they differ, as in the files."""
    measures = {"dsc": "DSC", "nsd_official": "NSD 2 mm"}
    if scores.axis_order_matters:
        measures |= {"nsd_official": "NSD official", "nsd_geometry": "NSD geometry"}
    rows = []
    for case in scores.cases:
        if case.kind == "anatomy" and not case.labels:
            rows.append([case.case, "not scored", *("-" for _ in measures)])
        rows += [
            [case.case, one.name, *(_score(getattr(one, name)) for name in measures)]
            for one in case.labels
        ]
    if not rows:
        return
    rows.append(["mean over cases", "", *(_score(scores.mean(name)) for name in measures)])
    columns = {"case": "left", "class": "left", **dict.fromkeys(measures.values(), "right")}
    out.table("anatomy", columns, rows)


def _print_lesions(scores: "Evaluation") -> None:
    rows = []
    for case in scores.cases:
        found = case.instances
        if found is not None:
            counts = (found.true_positives, found.false_positives, found.false_negatives)
            rows.append([case.case, *map(str, counts), _score(found.f1), _score(found.dsc_tp)])
    if not rows:
        return
    means = [scores.mean_instances(name) for name in ("f1", "dsc_tp")]
    rows.append(["mean over cases", "", "", "", *map(_score, means)])
    columns = {
        "case": "left",
        "found": "right",
        "false": "right",
        "missed": "right",
        "F1": "right",
        "DSC TP": "right",
    }
    out.table("lesions", columns, rows)


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
