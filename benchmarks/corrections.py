"""What does a correction gain, near it and far from it?

    python benchmarks/corrections.py

Held-out phantoms of chest and abdomen, the demo model. In each result, the largest error of every
organ is corrected as a person would: in a ball of 20 mm around it, the truth is drawn (`by hand`).
Then the case is segmented again, with that as a correction (`medals_rt.Correction`), and with the
whole corrected organ as a drawing (hybrid mode), as the page did before there were corrections. DSC
of the corrected organ within 30 mm of the error and as a whole, voxels of any class that changed
farther away, and the share of the corrected voxels that the result has.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from reporting import today, write_report
from scipy import ndimage
from session_speed import BODY, DEMO, HERE

import medals_rt
from demo_training.cases import make_case
from medals_rt.common.environment import machine_facts
from medals_rt.inference.corrections import Correction
from medals_rt.inference.kept import FeatureCache
from medals_rt.io.volume import Volume
from medals_rt.pipeline.segmenter import Segmenter

DRAWN_MM = 20.0
NEAR_MM = 30.0
FIRST = 200
"""Of the phantoms: training and the other benchmarks have others."""
WAYS = ("before", "by hand", "correction", "drawing")


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the DSC of two masks."""
    both = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(found & truth) / max(1, both)


def share_kept(made: Correction, labels: np.ndarray) -> float:
    """Return which share of the corrected voxels labels have as they were corrected."""
    applied = labels.copy()
    made.apply(applied)
    return 1 - np.count_nonzero(applied != labels) / made.voxels


def distance_mm(volume: Volume, center: np.ndarray) -> np.ndarray:
    """Return how far each voxel is from one, `(D, H, W)`."""
    axes = np.ogrid[tuple(slice(length) for length in volume.shape_dhw)]
    squares = [
        ((axis - at) * mm) ** 2
        for axis, at, mm in zip(axes, center, volume.spacing_dhw_mm, strict=True)
    ]
    return np.sqrt(squares[0] + squares[1] + squares[2])


def largest_error(wrong: np.ndarray) -> np.ndarray | None:
    """Return where the largest error that is thicker than two voxels has its center."""
    components, count = ndimage.label(ndimage.binary_erosion(wrong))
    if count == 0:
        return None
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    inside = np.argwhere(components == largest)
    middle = inside.mean(axis=0)
    return inside[np.argmin(((inside - middle) ** 2).sum(axis=1))]


def measure(segmenter: Segmenter, number: int) -> list[dict[str, Any]]:
    """Correct the largest error of every organ of a phantom, each by itself."""
    arrays, prompts = make_case(replace(BODY, number=number))
    h, w, d = BODY.spacing_hwd_mm
    volume, truth = Volume(arrays["imgs"], (h, w, d), name=f"phantom {number}"), arrays["gts"]
    asked = {label: text for label, text in prompts.items() if label.isdecimal()}
    rows = []
    with FeatureCache(4 * 2**30).image() as kept:

        def run(**drawn: Any) -> np.ndarray:
            return segmenter.segment(volume, asked, kept=kept, **drawn).labels_dhw

        before = run()
        for label in map(int, asked):
            center = largest_error((before == label) != (truth == label))
            if center is None:
                continue
            distance = distance_mm(volume, center)
            organ = np.where(distance < DRAWN_MM, truth == label, before == label)
            drawn = np.where(organ, label, np.where(before == label, 0, before))
            made = Correction.of(before, drawn, [int(each) for each in asked])
            found = {
                "before": before,
                "by hand": drawn,
                "correction": run(corrections=[made]),
                "drawing": run(spatial_prompts=np.where(organ, label, 0).astype(np.uint8)),
            }
            near = distance < NEAR_MM
            for way, labels in found.items():
                mine, right = labels == label, truth == label
                rows.append(
                    {
                        "phantom": number,
                        "organ": asked[str(label)],
                        "way": way,
                        "dsc_near": round(dice(mine & near, right & near), 4),
                        "dsc": round(dice(mine, right), 4),
                        "changed_elsewhere": int(np.count_nonzero((labels != before) & ~near)),
                        "share_kept": round(share_kept(made, labels), 3),
                    }
                )
    return rows


def text_of(report: dict[str, Any]) -> str:
    """Write the figures for people."""
    near_dsc = f"DSC within {NEAR_MM:g} mm"
    columns = ("given as", near_dsc, "DSC", "voxels changed farther away", "share of drawn kept")
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|---:|---:|"]
    for way in WAYS:
        rows = [row for row in report["rows"] if row["way"] == way]
        near, whole, changed, kept = (
            np.mean([row[name] for row in rows])
            for name in ("dsc_near", "dsc", "changed_elsewhere", "share_kept")
        )
        lines.append(f"| {way} | {near:.3f} | {whole:.4f} | {changed:,.0f} | {kept:.2f} |")
    table = "\n".join(lines)
    return f"""# What a correction gains

{report["date"]}, {report["machine"]["processor"]}, {report["arithmetic"]}. The largest errors of
{report["errors"]} organs in {report["phantoms"]} held-out phantoms, each corrected in a ball of
{DRAWN_MM:g} mm and segmented again. Repeat it: `python benchmarks/corrections.py`.

{table}
"""


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=6)
    parser.add_argument("--output", type=Path, default=HERE / "results/corrections")
    options = parser.parse_args()
    with medals_rt.load(DEMO) as segmenter:
        numbers = range(FIRST, FIRST + options.phantoms)
        rows = [row for number in numbers for row in measure(segmenter, number)]
        report = {
            "date": today(),
            "machine": machine_facts(),
            "arithmetic": segmenter.arithmetic,
            "phantoms": options.phantoms,
            "errors": len(rows) // len(WAYS),
            "rows": rows,
        }
    write_report(options.output, report, text_of(report))


if __name__ == "__main__":
    main()
