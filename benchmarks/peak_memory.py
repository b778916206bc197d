r"""Does `medals-rt plan` name the memory that `medals-rt run` then takes?

    python benchmarks/peak_memory.py --output benchmarks/results/peak_memory

Each case is planned and then run, each in a process of its own; the peak is the largest resident
size of that process, all libraries included. A case is run twice, once with nothing compiled yet
and once with the compiled graphs of the first run; the larger counts. Needs the extras `cpu` and
`formats`, 4 GB, and Linux. With `--bundle` of the released size: 12 GB and an hour.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from reporting import circumstances, new_parser, write_report

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "engines/demo"
CHEST = ROOT / "tests/data/ctchest4_image.nrrd"
LUNGS = ("--prompt", "Left lung in chest CT", "--prompt", "Right lung in chest CT")
LARGE_DHW = (300, 512, 512)
LARGE_SPACING = (0.8, 0.8, 1.5)


@dataclass(frozen=True)
class Measured:
    """A case, what the plan expects of it and what its runs took."""

    case: str
    precision: str
    planned_mib: int
    peaks_mib: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """Planned over the largest that was measured."""
        return self.planned_mib / max(self.peaks_mib)


def make_large_ct(path: Path) -> None:
    """Write a CT of noise in the shape of a body, as large as hospitals' are."""
    import nibabel

    d, h, w = LARGE_DHW
    y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    rng = np.random.default_rng(3)
    image = np.empty((w, h, d), np.int16)
    for k in range(d):
        image[..., k] = np.where(body, rng.integers(-60, 140, (h, w)), -1000).T
    affine = np.diag([-LARGE_SPACING[1], -LARGE_SPACING[0], LARGE_SPACING[2], 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), path)


def peak_of(words: Sequence[str], cache: Path) -> tuple[int, bytes]:
    """Run a command to its end; return its largest resident size in MiB and its output."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "medals_rt", *words],
            stdout=output,
            env={**os.environ, "MEDALS_RT_CACHE": str(cache)},
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
        output.seek(0)
        return usage.ru_maxrss // 1024, output.read()


def measure(
    case: str, words: Sequence[str], precision: str, bundle: Path, folder: Path
) -> Measured:
    """Plan and run one case."""
    cache = folder / f"{case} {precision}"
    words = (*words, "--bundle", str(bundle), "--precision", precision)
    _, planned = peak_of(["plan", *words, "--json"], cache)
    output = folder / "labels.nii.gz"
    run = ["run", *words, "--quiet", "--output", str(output)]
    peaks = tuple(peak_of(run, cache)[0] for _ in range(2))
    found = Measured(
        case, precision, msgspec.json.decode(planned)["expected_peak_memory_mib"], peaks
    )
    print(found, round(found.ratio, 3), flush=True)
    return found


def cases_of(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the command line of each case by its name."""
    large = folder / "large.nii.gz"
    make_large_ct(large)
    demo = DEMO / "cases"
    prompts = demo / "ct_anatomy.prompts.json"
    return {
        "demo, 9 classes in two intensity windows": (
            *("--input", str(demo / "ct_anatomy.npz")),
            *("--prompts", str(prompts)),
        ),
        "demo, liver tumors": (
            *("--input", str(demo / "ct_liver_tumors.npz")),
            *("--prompts", str(demo / "ct_liver_tumors.prompts.json")),
        ),
        "real chest CT, 128 x 128 x 34, lungs": ("--input", str(CHEST), *LUNGS),
        "512 x 512 x 300, liver": ("--input", str(large), "--prompt", "Liver in abdominal CT"),
        "512 x 512 x 300, 9 classes in two intensity windows": (
            *("--input", str(large)),
            *("--prompts", str(prompts)),
        ),
    }


def markdown(report: dict[str, Any]) -> str:
    """Write the rows as a table."""
    head = (
        f"{report['machine']['processor']}, {report['date']}, OpenVINO {report['openvino']}, "
        f"bundle {report['bundle']}. Largest resident size of the process of `medals-rt run`: a "
        "first run, and a second one that finds the graphs compiled. The larger is compared."
    )
    lines = [
        head,
        "",
        "| case | precision | plan, MiB | first run, MiB | second run, MiB | plan / run |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        first, second = row["peaks_mib"]
        lines.append(
            f"| {row['case']} | {row['precision']} | {row['planned_mib']:,} | {first:,} | "
            f"{second:,} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each case in each precision and write the report."""
    parser = new_parser(__doc__)
    parser.add_argument("--bundle", type=Path, default=DEMO)
    parser.add_argument("--precision", action="append", choices=["fp32", "bf16"])
    parser.add_argument("--only", help="cases whose name holds this text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            measure(case, words, precision, options.bundle, folder)
            for case, words in cases_of(folder).items()
            if options.only is None or options.only in case
            for precision in options.precision or ("fp32", "bf16")
        ]
    report = {
        **circumstances(),
        "bundle": options.bundle.name,
        "rows": [{**msgspec.to_builtins(row), "ratio": round(row.ratio, 3)} for row in rows],
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
