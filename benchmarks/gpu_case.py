r"""How long does a whole case take on a GPU, step by step, and are its labels the processor's?

    python benchmarks/gpu_case.py --folder FOLDER --output benchmarks/results/gpu/case

Labels first: each case of the demo, in fp32 and in fp16, on the GPU and on the processor in fp32.
Then 13 classes on 320 x 320 x 200 with networks of the released size: a first run that opens and
compiles, and warm ones, beside the same pipeline on eager PyTorch under bf16 autocast. Their labels
must not change from run to run. FOLDER is what `gpu_models.py` wrote. `--device cpu` rehearses it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from gpu_models import DEMO, organs_of_ct
from gpu_report import PartReport, usable_runners
from phantoms import smooth_image

from medals_export.eager import open_eager
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import RunnerKind
from medals_rt.io.registry import read_case
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.prompts.classes import canonical_sentence
from medals_rt.prompts.prompt_set import PromptSet, read_prompts

RUNNERS: dict[str, tuple[RunnerKind, ...]] = {
    "cuda": ("cudnn", "onnxruntime-cuda"),
    "cpu": ("onnxruntime",),
}
SPACING_HWD_MM = (1.0, 1.0, 1.5)
SOFT_TISSUE = "400,40"
COLUMNS = ("case", "runner", "run", "step", "seconds", "differing_voxels", "mean_dsc")


def large_case(shape_dhw: tuple[int, int, int]) -> tuple[Volume, list[str]]:
    """Return a CT with structure and the prompts of 13 organs."""
    image = np.rint(smooth_image(shape_dhw) - 110).astype(np.int16)
    return Volume(image, SPACING_HWD_MM, "made up"), list(map(canonical_sentence, organs_of_ct()))


def mean_dsc(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean Dice similarity over the labels of either."""
    scores = []
    for label in set(np.unique(found)) | set(np.unique(wanted)) - {0}:
        a, b = found == label, wanted == label
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return round(float(np.mean(scores)), 5)


def demo_cases(crop: int | None) -> list[tuple[str, Volume, PromptSet]]:
    """Return the demo's cases, whole or their middle."""
    found = []
    for file in sorted((DEMO / "cases").glob("*.npz")):
        volume = read_case(file).volume
        if crop is not None:
            box = tuple(slice(n // 2 - crop // 2, n // 2 + crop // 2) for n in volume.shape_dhw)
            part = np.ascontiguousarray(volume.image_dhw[box])
            volume = Volume(part, volume.spacing_hwd_mm, file.stem)
        found.append((file.stem, volume, read_prompts(file.with_suffix(".prompts.json"))))
    return found


def compare_labels(report: PartReport, bundle: Path, runner: RunnerKind, crop: int | None) -> None:
    """Segment the demo's cases on the GPU and on the processor."""
    with (
        Segmenter.open(bundle, runner="onnxruntime", precision="fp32") as on_cpu,
        Segmenter.open(bundle, runner=runner) as on_device,
    ):
        for name, volume, prompts in demo_cases(crop):
            start = time.perf_counter()
            found = on_device.segment(volume, prompts)
            seconds = time.perf_counter() - start
            wanted = on_cpu.segment(volume, prompts)
            report.add(
                case=name,
                runner=f"{found.report.runner} {found.report.precision}",
                run="against the processor",
                step="all",
                seconds=round(seconds, 2),
                differing_voxels=int((found.labels_dhw != wanted.labels_dhw).sum()),
                mean_dsc=mean_dsc(found.labels_dhw, wanted.labels_dhw),
            )


def time_runs(
    report: PartReport, segmenter: Segmenter, case: tuple[Volume, list[str]], runs: int
) -> None:
    """Segment a case several times, the first time cold; write down the seconds of every step."""
    volume, prompts = case
    first = None
    shape = " x ".join(map(str, volume.shape_dhw))
    for run in range(runs):
        found = segmenter.segment(volume, prompts, SegmentOptions(window=SOFT_TISSUE))
        first = found.labels_dhw if first is None else first
        row = {"case": shape, "runner": f"{found.report.runner} {found.report.precision}"}
        row["run"] = f"warm {run}" if run else "cold"
        for step, value in found.report.seconds.items():
            report.add(**row, step=step, seconds=round(value, 3))
        report.add(**row, step="labels", differing_voxels=int((found.labels_dhw != first).sum()))
    passes = ", ".join(f"{each.name}: {each.passes} passes" for each in found.report.stages)
    report.remark(f"{row['runner']}: {passes}.")


def main() -> None:
    """Compare labels, then time the large case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of gpu_models.py")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 320, 320), metavar="N")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--crop", type=int, help="voxels of an edge of the demo's cases")
    options = parser.parse_args()
    report = PartReport(options.output, "How long does a whole case take?", COLUMNS)
    half = options.folder / "demo"
    runners = usable_runners(report, RUNNERS[options.device])
    for_fp32 = RUNNERS[options.device][-1]
    compared = [(half, runner) for runner in runners]
    compared += [(DEMO, for_fp32)] if for_fp32 in runners else []
    for demo, runner in compared:
        compare_labels(report, demo, runner, options.crop)
    case = large_case(tuple(options.shape))
    bundle = Bundle.open(options.folder / "bundle", verify=False)
    for runner in runners:
        start = time.perf_counter()
        with Segmenter.open(bundle, runner=runner) as segmenter:
            report.remark(f"{runner}, opening: {time.perf_counter() - start:.2f} s.")
            time_runs(report, segmenter, case, options.runs)
    files = [options.folder / f"stage{stage}.pth" for stage in (1, 2)]
    with open_eager(bundle, *files) as segmenter:
        time_runs(report, segmenter, case, 2)


if __name__ == "__main__":
    main()
