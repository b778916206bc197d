r"""How fast are connected components cleaned up, against going through them class by class?

    python benchmarks/postprocessing.py --output benchmarks/results/postprocessing [--release DIR]

Algorithm 3 (`keep_probable_components`) beside the same rule written plainly, one whole-volume mask
a class and a component, and, with `--release`, beside the released function itself (a checkout of
the released code, from which `seg_postprocess/semantic_seg_postprocess.py` is read). Small
components (`drop_small_components`) beside scipy's labels and one mask a component that goes.

Volumes: the twelve golden ones, and label maps of 512 x 512 x 400 with 1, 13 and 104 classes. With
one class all run equally often, the first run of each left out; with more the others run once, and
for more than 20 classes not at all. All results are checked against each other.
"""

import contextlib
import importlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cc3d
import numpy as np
from phantoms import Shape, organs
from reporting import circumstances, new_parser, write_report
from scipy.ndimage import label

from medals_rt.common.cores import usable_cores
from medals_rt.postprocessing.component_filter import (
    drop_small_components,
    keep_probable_components,
)

FULL: Shape = (512, 512, 400)
GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "postprocess_release.npz"
SMALLEST_VOXELS = 10
MOST_CLASSES = 20  # with more of them, going class by class takes minutes

Job = Callable[[], np.ndarray]
Released = Callable[..., np.ndarray]


def keep_plainly(labels: np.ndarray, probability: np.ndarray, treated: list[int]) -> np.ndarray:
    """Apply the release's form of Algorithm 3, one class and one component after the other."""
    result = labels.copy()
    for value in treated:
        mask = labels == value
        numbers = cc3d.connected_components(mask, connectivity=6)
        sizes = np.bincount(numbers.reshape(-1))[1:]
        if not sizes.size:
            continue
        largest = np.argsort(-sizes, kind="stable")[:3] + 1
        means = {c: float(np.mean(probability[numbers == c])) for c in largest.tolist()}
        best = max(means.values())
        kept = [c for c, mean in means.items() if best - mean <= 0.1 and mean > 0.86]
        if len(kept) < 2:
            likeliest = max(means, key=lambda c: means[c])
            kept = [likeliest if likeliest in list(means)[:2] else int(largest[0])]
        stays = np.zeros(labels.shape, np.bool_)
        for c in kept:
            stays |= numbers == c
        result[mask & ~stays] = 0
    return result


def drop_plainly(mask: np.ndarray) -> np.ndarray:
    """Drop small components, one after the other."""
    numbers, _ = label(mask)
    sizes = np.bincount(numbers.reshape(-1))
    result = mask.copy()
    for number in np.flatnonzero(sizes < SMALLEST_VOXELS):
        result[numbers == number] = False
    return result


def released_function(folder: Path) -> Released:
    """Import the released function; what it prints of each component is kept back."""
    sys.path.insert(0, str(folder / "seg_postprocess"))
    module = importlib.import_module("semantic_seg_postprocess")
    function = module.remove_all_but_prob_or_size_component_from_every_class_segmentation

    def quiet(labels: np.ndarray, probability: np.ndarray, treated: list[int]) -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            return function(labels, probability, treated, background_label=0)

    return quiet


def median_ms(job: Job, repetitions: int) -> tuple[float, np.ndarray]:
    """Return the median of so many runs, and the last result; of several the first is left out."""
    seconds = []
    for _ in range(repetitions + (repetitions > 1)):
        start = time.perf_counter()
        result = job()
        seconds.append(time.perf_counter() - start)
    return round(1000 * float(np.median(seconds[-repetitions:])), 3), result


def row(what: str, case: str, jobs: dict[str, tuple[Job, int]]) -> dict:
    """Measure some ways to the same result."""
    ms, expected, differing = {}, None, 0
    for name, (job, repetitions) in jobs.items():
        ms[name], result = median_ms(job, repetitions)
        if expected is None:
            expected = result
        differing = max(differing, int(np.count_nonzero(result != expected)))
    return {"what": what, "case": case, "ms": ms, "voxels that differ": differing}


def golden_row(release: Released | None, repetitions: int) -> dict:
    """Measure the twelve golden volumes and add them up."""
    total: dict[str, float] = {}
    differing = 0
    with np.load(GOLDEN) as stored:
        for i in range(12):
            given = (stored[f"{i}_seg"], stored[f"{i}_prob"], stored[f"{i}_labels"].tolist())
            found = algorithm_3(f"golden {i}", *given, release, 10 * repetitions, 10 * repetitions)
            differing += found["voxels that differ"]
            for name, ms in found["ms"].items():
                total[name] = total.get(name, 0.0) + ms
    return {
        "what": "Algorithm 3",
        "case": "12 golden volumes, sum",
        "ms": total,
        "voxels that differ": differing,
    }


def algorithm_3(
    case: str,
    labels: np.ndarray,
    probability: np.ndarray,
    treated: list[int],
    release: Released | None,
    repetitions: int,
    repetitions_of_others: int,
) -> dict:
    """Measure the three ways through Algorithm 3; the slow two only for few classes."""
    jobs: dict[str, tuple[Job, int]] = {
        "medals-rt": (
            lambda: keep_probable_components(labels, probability, treated)[0],
            repetitions,
        ),
    }
    few = len(treated) <= MOST_CLASSES
    if few:
        jobs["plain"] = (lambda: keep_plainly(labels, probability, treated), repetitions_of_others)
    if few and release is not None:
        wide = labels.astype(np.int16)  # the type that its pipeline gives
        jobs["release"] = (lambda: release(wide, probability, treated), repetitions_of_others)
    return row("Algorithm 3", case, jobs)


def full_rows(classes: int, release: Released | None, repetitions: int) -> list[dict]:
    """Measure a full-size label map."""
    labels = organs(FULL, classes)
    rng = np.random.default_rng(0)
    probability = rng.random(FULL, dtype=np.float32) * np.float32(0.1) + np.float32(0.82)
    mask = labels > 0
    return [
        algorithm_3(
            f"512x512x400, {classes} classes",
            labels,
            probability,
            list(range(1, classes + 1)),
            release,
            repetitions,
            repetitions if classes == 1 else 1,
        ),
        row(
            "small components",
            f"512x512x400, mask of {classes} classes",
            {
                "medals-rt": (lambda: drop_small_components(mask, SMALLEST_VOXELS), repetitions),
                "plain": (lambda: drop_plainly(mask), repetitions),
            },
        ),
    ]


def markdown(report: dict) -> str:
    """Write the rows as a table."""
    columns = ("medals-rt", "plain", "release")
    machine = report["machine"]
    lines = [
        (
            f"{machine['processor']}, {report['threads']} threads, {report['date']}; "
            f"milliseconds, median of {report['repetitions']} (others at several classes: 1)."
        ),
        "",
        "| what | case | " + " | ".join(columns) + " | times as fast | voxels that differ |",
        "|---|---|" + "---:|" * len(columns) + "---|---:|",
    ]
    for each in report["rows"]:
        ms = each["ms"]
        ratios = ", ".join(
            f"{ms[name] / ms['medals-rt']:.1f}x {name}" for name in columns[1:] if name in ms
        )
        cells = " | ".join(f"{ms[name]:.4g}" if name in ms else "" for name in columns)
        lines.append(
            f"| {each['what']} | {each['case']} | {cells} | {ratios} "
            f"| {each['voxels that differ']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all rows and write them down."""
    parser = new_parser(__doc__)
    parser.add_argument("--release", type=Path, help="a checkout of the released code")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 13, 104])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    release = None if options.release is None else released_function(options.release)
    rows = [golden_row(release, options.repetitions)]
    for classes in options.classes:
        rows += full_rows(classes, release, options.repetitions)
    report = {
        **circumstances(),
        "threads": usable_cores(),
        "repetitions": options.repetitions,
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
