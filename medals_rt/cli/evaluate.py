"""`medals-rt evaluate`: score results against references."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medals_rt.cli._console import Debug, Kind, PromptsFile, print_table, progress_bar

if TYPE_CHECKING:
    from medals_rt.tools.evaluate.scores import Evaluation


def evaluate_command(
    *,
    predicted: Annotated[Path, typer.Argument(metavar="PRED", help="Result file or folder.")],
    reference: Annotated[Path, typer.Argument(metavar="GT", help="Reference file or folder.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores as JSON here.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the scores as CSV here.")
    ] = None,
    prompts: PromptsFile = None,
    kind: Annotated[
        Kind | None, typer.Option(help="How to score [default: as the prompts say].")
    ] = None,
    split_reference: Annotated[
        bool,
        typer.Option(
            "--split-reference", help="Number the pieces of a binary lesion reference, too."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Score results against references: DSC and NSD for anatomy, F1 and DSC TP for lesions."""
    del debug  # read by one_line_errors
    from medals_rt.tools.evaluate.evaluation import evaluate_to_files

    with progress_bar(quiet=quiet) as progress:
        scores = evaluate_to_files(
            predicted,
            reference,
            json_file=json_file,
            csv_file=csv_file,
            prompts_file=prompts,
            kind=None if kind is None else kind.value,
            split_reference=split_reference,
            progress=progress and (lambda _, done, total: progress("cases", done, total)),
        )
    if not quiet:
        print_scores(scores)
        for path in (json_file, csv_file):
            if path is not None:
                typer.echo(f"wrote {path}")


def print_scores(scores: "Evaluation") -> None:
    """Print the scores as tables, one for anatomy and one for lesions."""
    _print_anatomy(scores)
    _print_lesions(scores)
    missing = [case.case for case in scores.cases if case.missing]
    if missing:
        typer.echo(f"no prediction, scored as empty: {', '.join(missing)}")
    if scores.without_reference:
        typer.echo(f"no reference, not scored: {', '.join(scores.without_reference)}")


def _print_anatomy(scores: "Evaluation") -> None:
    rows = [
        [case.case, one.name, *map(_score, (one.dsc, one.nsd_geometry, one.nsd_official))]
        for case in scores.cases
        for one in case.labels
    ]
    if not rows:
        return
    means = [scores.mean(name) for name in ("dsc", "nsd_geometry", "nsd_official")]
    rows.append(["mean over cases", "", *map(_score, means)])
    columns = {"case": "left", "class": "left", "DSC": "right", "NSD 2 mm": "right"}
    if scores.axis_order_matters:
        columns["NSD as the public script"] = "right"
    print_table("anatomy", columns, [row[: len(columns)] for row in rows])


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
    columns = {"case": "left", "found": "right", "false": "right", "missed": "right"}
    columns |= {"F1": "right", "DSC TP": "right"}
    print_table("lesions", columns, rows)


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
