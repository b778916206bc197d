r"""How fast are the array steps on a GPU, against the same code on the processor?

    python benchmarks/device_arrays.py --output benchmarks/results/gpu/arrays

Upload and download, resampling, small components, Algorithm 3 and the bounding box, on
512 x 512 x 400 with 104 classes. The GPU is
waited for before and after each run; the median counts, after one run that compiles. The results
of both are compared. Needs a CUDA GPU and CuPy; without cc3d the processor's components are left
out.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cupy
import numpy as np
from gpu_report import PartReport
from phantoms import Shape, organs, smooth_image

from medals_rt.common.arrays import bounding_box, to_device, to_host
from medals_rt.postprocessing.component_filter import (
    drop_small_components,
    keep_probable_components,
)
from medals_rt.preprocessing.resampling import resample_image, resample_labels

FULL: Shape = (512, 512, 400)
SMALL: Shape = (32, 32, 32)
COARSE: Shape = (273, 273, 133)
CLASSES = 104
COLUMNS = ("step", "gpu_ms", "other_ms", "note")

Step = Callable[[Any, Any, Any], Any]


def steps() -> dict[str, Step]:
    """Return what is measured, as functions of (image, labels, probability)."""
    treated = list(range(1, CLASSES + 1))
    found: dict[str, Step] = {
        "image to the coarse grid": lambda image, *_: resample_image(image, COARSE),
        "labels to the coarse grid": lambda _, labels, __: resample_labels(labels, COARSE),
        "bounding box": lambda _, labels, __: np.array(bounding_box(labels > 0)),
        "small components": lambda _, labels, __: drop_small_components(labels > 0, 10),
        "Algorithm 3": lambda _, labels, probability: keep_probable_components(
            labels, probability, treated, 0.6
        )[0],
    }
    if find_spec("cc3d") is None:
        del found["small components"], found["Algorithm 3"]
    return found


def median_ms(job: Callable[[], Any], repetitions: int) -> float:
    """Return the median of so many runs after a first one."""
    seconds = []
    for repetition in range(repetitions + 1):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        job()
        cupy.cuda.Device().synchronize()
        if repetition:
            seconds.append(time.perf_counter() - start)
    return round(1000 * float(np.median(seconds)), 3)


def main() -> None:
    """Measure all steps and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny image, to rehearse")
    options = parser.parse_args()
    shape: Shape = SMALL if options.small else FULL
    image, labels = smooth_image(shape), organs(shape, CLASSES)
    probability = np.random.default_rng(0).random(shape, dtype=np.float32)
    host = (image, labels, probability)
    gpu = tuple(to_device(each, "cuda") for each in host)
    gib = image.nbytes / 2**30
    report = PartReport(options.output, "How fast are the array steps?", COLUMNS)
    report.remark(f"cuCIM is {'there' if find_spec('cucim') else 'not installed'}.")
    for name, copy in (
        ("upload", lambda: to_device(image, "cuda")),
        ("download", lambda: to_host(gpu[0])),
    ):
        ms = median_ms(copy, options.repetitions)
        report.add(step=name, gpu_ms=ms, note=f"{1000 * gib / ms:.1f} GiB/s")
    for name, step in steps().items():
        found, wanted = to_host(step(*gpu)), step(*host)
        largest = np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64)).max()
        report.add(
            step=name,
            gpu_ms=median_ms(lambda: step(*gpu), options.repetitions),  # noqa: B023
            other_ms=median_ms(lambda: step(*host), 1),  # noqa: B023
            note=f"largest difference {largest:.3g}; other: processor",
        )


if __name__ == "__main__":
    main()
