r"""How fast are images and label maps resampled, against scipy's zoom and torch's one-hot masks?

    python benchmarks/resampling.py --output benchmarks/results/resampling [--release DIR]

Images: `scipy.ndimage.zoom(order=1, mode="nearest", grid_mode=True)`, which computes the same, and
torch's trilinear interpolation. Label maps: each label's mask interpolated by torch, times 1000, in
float16, the largest wins: once written plainly here, one label in memory at a time, and, with
`--release`, by the released code itself (a checkout of it, from which `data/resample_torch.py` is
read; where it would need more than `--memory-gib` it is left out).

Volumes: the eight pairs of the golden figures, and 512 x 512 x 400 (0.8, 0.8, 1.0 mm) to the
coarse grid (1.5, 1.5, 3.0 mm), to the fine one (1 mm) and back; also as the view of a file's
(D, H, W) that the run time resamples. All take turns and the median of the repetitions counts, but
for the label maps at full size, where the others run once. Each label map is checked against the
plain reference, each image against torch. Needs the extra `export`.
"""

import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from phantoms import Shape, organs, smooth_image
from reporting import circumstances, new_parser, write_report
from scipy.ndimage import zoom
from torch.nn.functional import interpolate

from medals_rt.common.cores import usable_cores
from medals_rt.planning.geometry import separate_axis
from medals_rt.preprocessing.resampling import resample_image, resample_labels

FULL: Shape = (512, 512, 400)
COARSE: Shape = (273, 273, 133)
FINE: Shape = (410, 410, 400)
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
MOST_PLAIN_VOXELS = 2e9  # of masks: more would take minutes
BYTES_A_VOXEL = 2  # what the release keeps for each label and voxel: float16

Job = Callable[[], np.ndarray]


def by_scipy(image: np.ndarray, shape: Shape) -> np.ndarray:
    """Resample an image by scipy."""
    factors = [new / old for old, new in zip(image.shape, shape, strict=True)]
    return zoom(image, factors, order=1, mode="nearest", grid_mode=True)


def by_torch(image: np.ndarray, shape: Shape) -> np.ndarray:
    """Resample an image by torch."""
    return interpolate(torch.from_numpy(image)[None, None], shape, mode="trilinear")[0, 0].numpy()


def by_plain_masks(labels: np.ndarray, shape: Shape) -> np.ndarray:
    """Interpolate one label's mask after the other and keep the largest, first one first."""
    given = torch.from_numpy(labels)[None, None]
    best = torch.full(shape, -1, dtype=torch.float16)
    result = torch.zeros(shape, dtype=given.dtype)
    for value in torch.unique(given):
        weight = interpolate((given == value).float() * 1000, shape, mode="trilinear")[0, 0].half()
        wins = weight > best
        best = torch.where(wins, weight, best)
        result = torch.where(wins, value, result)
    return result.numpy()


def released_function(folder: Path) -> Callable[..., np.ndarray]:
    """Import `resample_torch_simple` from a checkout of the released code.

    The module imports two others for functions that this one does not use, and which need
    libraries that nothing here needs: empty ones stand in for them.
    """
    for name, function in (
        ("einops", "rearrange"),
        ("default_resampling", "determine_do_sep_z_and_axis"),
    ):
        stand_in = types.ModuleType(name)
        setattr(stand_in, function, None)
        sys.modules.setdefault(name, stand_in)
    sys.path.insert(0, str(folder / "data"))
    return importlib.import_module("resample_torch").resample_torch_simple


def by_release(function: Callable[..., np.ndarray], labels: np.ndarray, shape: Shape) -> np.ndarray:
    """Resample a label map by the released code, as its pipeline calls it."""
    wide = labels.astype(np.int16)[None]  # the type that its pipeline gives
    return function(wide, shape, is_seg=True, num_threads=torch.get_num_threads())[0]


def median_ms(jobs: dict[str, Job], repetitions: int) -> dict[str, float]:
    """Let all take turns, so that a drift of the machine's speed meets everyone."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repetitions):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * float(np.median(times)), 3) for name, times in seconds.items()}


def golden_rows(release: Callable[..., np.ndarray] | None, repetitions: int) -> list[dict]:
    """Measure the eight golden pairs, in and back, and add them up."""
    pairs = json.loads((GOLDEN / "resample.json").read_text(encoding="utf-8"))
    images: dict[str, float] = {}
    labels: dict[str, float] = {}
    with np.load(GOLDEN / "resample.npz") as stored:
        for i, pair in enumerate(pairs):
            image, label = stored[f"{i}_image"], stored[f"{i}_label"]
            small = stored[f"{i}_label_resampled"].astype(np.uint8)
            shape = tuple(pair["new_shape"])
            axis = separate_axis(np.asarray(pair["spacing"], np.float32), pair["target_spacing"])
            image_jobs: dict[str, Job] = {
                "medals-rt": lambda a=image, s=shape, x=axis: resample_image(a, s, x),
                "scipy": lambda a=image, s=shape: by_scipy(a, s),
                "torch": lambda a=image, s=shape: by_torch(a, s),
            }
            back = label.shape
            label_jobs: dict[str, Job] = {
                "medals-rt": lambda a=small, s=back: resample_labels(a, s),
                "plain masks": lambda a=small, s=back: by_plain_masks(a, s),
            }
            if release is not None:
                label_jobs["release"] = lambda a=small, s=back: by_release(release, a, s)
            for jobs, sums in ((image_jobs, images), (label_jobs, labels)):
                for job in jobs.values():
                    job()  # imports and tables of positions are not what is asked for
                for name, ms in median_ms(jobs, 10 * repetitions).items():
                    sums[name] = sums.get(name, 0.0) + ms
    return [
        {"what": "image", "case": "8 golden pairs, sum", "ms": images},
        {"what": "labels", "case": "8 golden pairs back, sum", "ms": labels},
    ]


def image_row(case: str, image: np.ndarray, shape: Shape, repetitions: int) -> dict:
    """Measure one full-size image."""
    found, expected = resample_image(image, shape), by_torch(image, shape)
    difference = float(np.abs(found - expected).max() / np.ptp(expected))
    del found, expected
    jobs: dict[str, Job] = {
        "medals-rt": lambda: resample_image(image, shape),
        "scipy": lambda: by_scipy(image, shape),
        "torch": lambda: by_torch(image, shape),
    }
    return {
        "what": "image",
        "case": case,
        "ms": median_ms(jobs, repetitions),
        "largest difference from torch, of the range": difference,
    }


def label_row(
    case: str,
    labels: np.ndarray,
    shape: Shape,
    release: Callable[..., np.ndarray] | None,
    memory_gib: float,
    repetitions: int,
) -> dict:
    """Measure one full-size label map."""
    found = resample_labels(labels, shape)
    ms = median_ms({"medals-rt": lambda: resample_labels(labels, shape)}, repetitions)
    row: dict = {"what": "labels", "case": case, "ms": ms}
    masks = len(np.unique(labels)) * float(np.prod(shape))
    if masks <= MOST_PLAIN_VOXELS:
        start = time.perf_counter()
        expected = by_plain_masks(labels, shape)
        ms["plain masks"] = round(1000 * (time.perf_counter() - start), 3)
        row["voxels that differ"] = int(np.count_nonzero(found != expected))
        del expected
    else:
        row["plain masks left out"] = f"{masks / 1e9:.0f} billion voxels of masks"
    needed = BYTES_A_VOXEL * masks / 2**30
    if release is not None and needed <= memory_gib:
        ms |= median_ms({"release": lambda: by_release(release, labels, shape)}, 1)
    elif release is not None:
        row["release left out"] = f"needs {needed:.0f} GiB for its masks alone"
    return row


def markdown(report: dict) -> str:
    """Write the rows as a table."""
    columns = ("medals-rt", "scipy", "torch", "plain masks", "release")
    machine = report["machine"]
    lines = [
        (
            f"{machine['processor']}, {report['threads']} threads, {report['date']}; "
            f"milliseconds, median of {report['repetitions']}."
        ),
        "",
        "| what | case | " + " | ".join(columns) + " | times as fast |",
        "|---|---|" + "---:|" * len(columns) + "---|",
    ]
    for row in report["rows"]:
        ms = row["ms"]
        ratios = ", ".join(
            f"{ms[name] / ms['medals-rt']:.1f}x {name}" for name in columns[1:] if name in ms
        )
        cells = " | ".join(f"{ms[name]:.4g}" if name in ms else "" for name in columns)
        lines.append(f"| {row['what']} | {row['case']} | {cells} | {ratios} |")
    notes = [
        f"- {row['what']}, {row['case']}: {key}: {value}"
        for row in report["rows"]
        for key, value in row.items()
        if key not in {"what", "case", "ms"}
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def main() -> None:
    """Measure all rows and write them down."""
    parser = new_parser(__doc__)
    parser.add_argument("--release", type=Path, help="a checkout of the released code")
    parser.add_argument("--memory-gib", type=float, default=8.0)
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 13, 104])
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    threads = usable_cores()
    torch.set_num_threads(threads)
    release = None if options.release is None else released_function(options.release)
    rows = golden_rows(release, options.repetitions)
    image = smooth_image(FULL)
    rows.append(image_row("512x512x400 to the coarse grid", image, COARSE, options.repetitions))
    rows.append(image_row("512x512x400 to the fine grid", image, FINE, options.repetitions))
    as_in_file = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    case = "512x512x400 to the coarse grid, view of (D, H, W)"
    rows.append(image_row(case, as_in_file, COARSE, options.repetitions))
    del as_in_file
    fine_image = np.ascontiguousarray(image[: FINE[0], : FINE[1]])
    del image
    rows.append(image_row("fine grid to 512x512x400", fine_image, FULL, options.repetitions))
    del fine_image
    for classes in options.classes:
        full = organs(FULL, classes)
        coarse, fine = resample_labels(full, COARSE), resample_labels(full, FINE)
        for name, labels, shape in (
            ("512x512x400 to the coarse grid", full, COARSE),
            ("fine grid to 512x512x400", fine, FULL),
            ("coarse grid to 512x512x400", coarse, FULL),
        ):
            rows.append(
                label_row(
                    f"{classes} classes, {name}",
                    labels,
                    shape,
                    release,
                    options.memory_gib,
                    options.repetitions,
                )
            )
    report = {
        **circumstances(),
        "torch": torch.__version__,
        "threads": threads,
        "repetitions": options.repetitions,
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
