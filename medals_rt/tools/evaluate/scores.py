"""What scores are made of: labels, cases, all cases; plain values for JSON and rows for CSV."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from medals_rt.common.choices import Kind
from medals_rt.common.notes import Note
from medals_rt.tools.evaluate.metrics import InstanceScore

COLUMNS = (
    *("case", "kind", "label", "name", "dsc", "nsd_official", "nsd_geometry", "f1", "dsc_tp"),
    *("true_positives", "false_positives", "false_negatives", "foreground_dsc", "missing"),
    "error",
)


@dataclass(frozen=True)
class LabelScore:
    """DSC and NSD at 2 mm of one label of an anatomy case.

    `nsd_official` hands the spacing to the axes (D, H, W) in the order in which it is stored, as
    the public script does; `nsd_geometry` gives each axis its own.
    """

    label: int
    name: str
    dsc: float
    nsd_official: float
    nsd_geometry: float


@dataclass(frozen=True)
class CaseScore:
    """What one case scored: `labels` for anatomy, `instances` for lesions.

    `foreground_dsc` is that of all labels taken as one mask. `missing` says that there was no
    prediction; it is scored as an empty one. `notes` are what a person should know of how the two
    files were compared.
    """

    case: str
    kind: Kind
    labels: tuple[LabelScore, ...]
    instances: InstanceScore | None
    foreground_dsc: float
    missing: bool = False
    notes: tuple[Note, ...] = ()

    def mean(self, measure: str) -> float:
        """Average one measure over the case's labels; NaN where it has none."""
        return _mean(getattr(score, measure) for score in self.labels)


@dataclass(frozen=True)
class FailedCase:
    """A case that could not be scored, and why."""

    case: str
    error: str


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases, and what no mean counts.

    Attributes
    ----------
    cases
        The scores.
    without_reference
        Predictions that no reference belongs to.
    failed
        Cases that could not be scored.
    scans
        DICOM files among the references that are no segmentation, and that no prediction has the
        name of: the scans themselves.
    """

    cases: tuple[CaseScore, ...]
    without_reference: tuple[str, ...] = ()
    failed: tuple[FailedCase, ...] = ()
    scans: tuple[str, ...] = ()

    @property
    def axis_order_matters(self) -> bool:
        """Whether the two readings of the spacing differ in any NSD."""
        return any(
            score.nsd_official != score.nsd_geometry for case in self.cases for score in case.labels
        )

    def mean(self, measure: str) -> float:
        """Average a measure of anatomy over the cases, each case by its own mean."""
        return _mean(case.mean(measure) for case in self.cases)

    def mean_instances(self, measure: str) -> float:
        """Average `f1` or `dsc_tp` over the cases with lesions."""
        return _mean(getattr(case.instances, measure) for case in self.cases if case.instances)

    def by_class(self, measure: str) -> dict[str, float]:
        """Average a measure of anatomy a class, over the cases that have it."""
        values: dict[str, list[float]] = {}
        for case in self.cases:
            for score in case.labels:
                values.setdefault(score.name, []).append(getattr(score, measure))
        return {name: _mean(found) for name, found in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is undefined is None."""
        measures = ("dsc", "nsd_official", "nsd_geometry")
        return {
            **{f"mean_{measure}": _plain(self.mean(measure)) for measure in measures},
            "mean_f1": _plain(self.mean_instances("f1")),
            "mean_dsc_tp": _plain(self.mean_instances("dsc_tp")),
            **{
                measure: {name: _plain(one) for name, one in self.by_class(measure).items()}
                for measure in measures
            },
            "cases": [_case_to_dict(case) for case in self.cases],
            "without_reference": list(self.without_reference),
            "scans": list(self.scans),
            "failed": [asdict(each) for each in self.failed],
        }

    def rows(self) -> list[tuple[Any, ...]]:
        """Return one row a label and one a case (its `label` is empty), cells as in `COLUMNS`.

        Of a case that failed there is but a row with its `error`.
        """
        rows: list[dict[str, Any]] = []
        for case in self.cases:
            common = {"case": case.case, "kind": case.kind}
            rows.extend({**common, **_label_to_dict(score)} for score in case.labels)
            whole = _case_to_dict(case)
            del whole["labels"], whole["notes"]
            rows.append({**whole, "label": None, "name": None})
        rows += [asdict(each) for each in self.failed]
        return [tuple(row.get(column) for column in COLUMNS) for row in rows]


def _case_to_dict(case: CaseScore) -> dict[str, Any]:
    found = case.instances
    return {
        "case": case.case,
        "kind": case.kind,
        "dsc": _plain(case.mean("dsc")),
        "nsd_official": _plain(case.mean("nsd_official")),
        "nsd_geometry": _plain(case.mean("nsd_geometry")),
        "f1": found and found.f1,
        "dsc_tp": found and found.dsc_tp,
        "true_positives": found and found.true_positives,
        "false_positives": found and found.false_positives,
        "false_negatives": found and found.false_negatives,
        "foreground_dsc": _plain(case.foreground_dsc),
        "missing": case.missing,
        "notes": [str(note) for note in case.notes],
        "labels": [_label_to_dict(score) for score in case.labels],
    }


def _label_to_dict(score: LabelScore) -> dict[str, Any]:
    return {
        "label": score.label,
        "name": score.name,
        "dsc": _plain(score.dsc),
        "nsd_official": _plain(score.nsd_official),
        "nsd_geometry": _plain(score.nsd_geometry),
    }


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
