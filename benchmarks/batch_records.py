"""Do records, tables and page of a batch grow in proportion to its cases?

Made-up cases with nine classes each: records are there as a batch writes them, then read by
"another" process and made into the tables and the page, as the last of several batches does.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from reporting import today, write_report

from medals_rt.common.environment import machine_facts, peak_memory_mib
from medals_rt.common.notes import warning
from medals_rt.pipeline.batch.paths import CasePaths
from medals_rt.pipeline.batch.plan import BatchCase, BatchPlan
from medals_rt.pipeline.batch.records import RECORD_FORMAT, Entry, Record
from medals_rt.pipeline.batch.summary import all_entries, write_summaries
from medals_rt.pipeline.class_statistics import ClassStatistics
from medals_rt.pipeline.job_request import Job

VOLUMES_ML = {
    "Liver": 1500, "Spleen": 200, "Left kidney": 160, "Right kidney": 160, "Aorta": 180,
    "Heart": 500, "Left lung": 1900, "Right lung": 1800, "Stomach": 400,
}  # fmt: skip


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="report, without ending")
    parser.add_argument("--cases", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    given = parser.parse_args()
    rows = []
    for count in given.cases:
        with tempfile.TemporaryDirectory() as made:
            rows.append(measured(Path(made), count))
        print(rows[-1], flush=True)
    report = {"date": today(), "processor": machine_facts()["processor"], "rows": rows}
    write_report(given.output, report, as_markdown(report))


def measured(folder: Path, count: int) -> dict[str, Any]:
    """Return processor seconds of each step, and sizes."""
    plan = made_up_plan(folder, count)
    entries = [made_up_entry(case, number) for number, case in enumerate(plan.cases)]
    steps = {}

    for case, entry in zip(plan.cases, entries, strict=True):  # as a batch does, without fsync
        case.record.parent.mkdir(parents=True, exist_ok=True)
        record = Record(RECORD_FORMAT, "", {}, entry, ".nii.gz")
        case.record.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    del entries

    start = time.process_time()
    found = all_entries(plan, {}, b"d" * count)
    steps["read records"] = time.process_time() - start
    if found is None:
        raise AssertionError(count)
    for name, page in (("tables", False), ("tables and page", True)):
        start = time.process_time()
        write_summaries(plan, found, statistics=True, page=page, notice=None)
        steps[name] = time.process_time() - start
    names = ("summary.csv", "statistics.csv", "index.html")
    return {
        "cases": count,
        "seconds": {name: round(seconds, 2) for name, seconds in steps.items()},
        "peak_mib": round(peak_memory_mib() or 0),  # of the process: sizes ascend
        "megabytes": {name: (plan.reports / name).stat().st_size / 1e6 for name in names},
    }


def made_up_plan(folder: Path, count: int) -> BatchPlan:
    """Return a batch of cases of which there is nothing."""
    cases = []
    for number in range(count):
        name = f"site{number % 7}/patient_{number:06d}"
        paths = CasePaths(name, folder, folder, ".nii.gz")
        job = Job(
            input=Path("scans") / f"{name}.nii.gz",
            output=paths.labels,
            report=paths.files()["report"],
            preview=paths.files()["preview"],
        )
        cases.append(BatchCase(job, paths))
    return BatchPlan(tuple(cases), folder, folder)


def made_up_entry(case: BatchCase, number: int) -> Entry:
    """Return how a case went."""
    dice = random.Random(number)  # noqa: S311 - made-up volumes
    classes = tuple(
        ClassStatistics(
            label, name, 1000, volume * dice.lognormvariate(0, 0.2), 60.1, 20.2, 1,
            (0, 0, 0), (90, 90, 90), (70.0, 70.0, 90.0),
        )
        for label, (name, volume) in enumerate(VOLUMES_ML.items(), start=1)
    )  # fmt: skip
    doubtful = warning("modality-contradicted", "the file says that it is MR, the prompts say CT")
    return Entry(
        name=case.name,
        input=str(case.job.input),
        output=str(case.job.output),
        status="failed" if number % 50 == 0 else "done",
        error="out of memory" if number % 50 == 0 else None,
        modality="CT",
        kind="anatomy",
        shape_dhw=(300, 512, 512),
        spacing_hwd_mm=(0.8, 0.8, 1.5),
        seconds=dice.uniform(20, 80),
        seconds_per_class=dice.uniform(2, 9),
        within_challenge=True,
        notes=(doubtful,) if number % 20 == 0 else (),
        classes=classes,
    )


def as_markdown(report: dict[str, Any]) -> str:
    """Write the report for people."""
    steps = list(report["rows"][0]["seconds"])
    files = list(report["rows"][0]["megabytes"])
    lines = [
        f"# Records, tables and page of many cases ({report['date']})",
        "",
        f"{report['processor']}; seconds of one processor, made-up cases of nine classes.",
        "",
        "| cases | "
        + " | ".join([*(f"{step}, s" for step in steps), "ms a case", "peak, MiB"])
        + "".join(f" | {name}, MB" for name in files)
        + " |",
        f"|---:|{'---:|' * (len(steps) + len(files) + 2)}",
    ]
    for row in report["rows"]:
        seconds = row["seconds"]
        each = 1000 * (sum(seconds.values()) - seconds["tables"]) / row["cases"]
        figures = [
            *(f"{seconds[step]:.1f}" for step in steps),
            f"{each:.2f}",
            str(row["peak_mib"]),
            *(f"{row['megabytes'][name]:.1f}" for name in files),
        ]
        lines.append(f"| {row['cases']:,} | {' | '.join(figures)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
