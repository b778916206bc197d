r"""Where does a pass of the released size spend its time on a GPU, kernel by kernel?

    python benchmarks/gpu_profile.py --folder FOLDER --output benchmarks/results/gpu/profile

One window of the fine stage, through medals-rt and through PyTorch under autocast. Each pass is
recorded by PyTorch's profiler, which sees the kernels of all libraries of the process. Per pass:
wall time, the sum over kernels, and those that take longest, copies among them: what a library
leaves to the processor shows as such. FOLDER is what `gpu_models.py` wrote. `--device cpu`
rehearses it on the processor's operators (one inside another counts in both).
"""

import argparse
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from gpu_full import HALF, HALF_NAME, RUNNERS, Run, medals_run, probabilities, scene, wait
from gpu_full import last as with_channels_last
from gpu_report import PartReport, usable_runners
from torch.profiler import ProfilerActivity, profile

from medals_export.checkpoint import load_checkpoint
from medals_rt.bundle.bundle import Bundle

COLUMNS = ("pass", "runner", "kernel", "calls", "ms", "share")
ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "cpu": ProfilerActivity.CPU}
CATEGORIES = {"cuda": {"kernel", "gpu_memcpy", "gpu_memset"}, "cpu": {"cpu_op"}}
WARM_RUNS = 3
LONGEST = 25
NAME_LENGTH = 140


def record(run: Run, device: str, trace: Path) -> tuple[float, list[tuple[str, int, float]]]:
    """Return a warm run's wall milliseconds without the profiler, and its kernels' with it."""
    for _ in range(WARM_RUNS):
        run()
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    wall_ms = 1000 * (time.perf_counter() - start)
    with profile(activities=[ACTIVITIES[device]]) as seen:
        run()
        wait(device)
    seen.export_chrome_trace(str(trace))
    calls: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
        if event.get("cat") in CATEGORIES[device]:
            calls[event["name"]] += 1
            microseconds[event["name"]] += event["dur"]
    kernels = [(name, calls[name], spent / 1000) for name, spent in microseconds.most_common()]
    return wall_ms, kernels


def write_down(
    report: PartReport, names: dict[str, str], wall_ms: float, kernels: list[tuple[str, int, float]]
) -> None:
    """Add the longest kernels of a pass, and what they come to."""
    together = sum(ms for _, _, ms in kernels)
    report.add(**names, kernel="(wall)", ms=round(wall_ms, 3))
    report.add(
        **names, kernel="(all)", calls=sum(n for _, n, _ in kernels), ms=round(together, 3), share=1
    )
    for name, calls, ms in kernels[:LONGEST]:
        share = round(ms / together, 4)
        report.add(**names, kernel=name[:NAME_LENGTH], calls=calls, ms=round(ms, 3), share=share)


def main() -> None:
    """Record the fine stage's passes, medals-rt first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of gpu_models.py")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--classes", type=int, default=4)
    options = parser.parse_args()
    report = PartReport(options.output, "Where does a pass spend its time?", COLUMNS)
    bundle = Bundle.open(options.folder / "bundle", verify=False)
    model = load_checkpoint(options.folder / "stage2.pth").model.to(options.device).eval()
    trace = options.folder / "trace.json"
    with torch.inference_mode():
        scenes = [
            scene(2, prompted, options.classes, model, options.device) for prompted in (False, True)
        ]
        for runner in usable_runners(report, RUNNERS[options.device]):
            for each in scenes:
                names = {"pass": each.names["pass"], "runner": f"medals-rt, {runner}"}
                run = medals_run(bundle, each, runner)
                write_down(report, names, *record(run, options.device, trace))
        dtype = HALF[options.device]
        names = {"pass": scenes[0].names["pass"], "runner": f"pytorch {HALF_NAME[options.device]}"}
        plain = partial(probabilities, model, scenes[0], dtype)
        write_down(report, names, *record(plain, options.device, trace))
        names["runner"] += ", channels last"
        run = with_channels_last(model, scenes[0], dtype)
        write_down(report, names, *record(run, options.device, trace))


if __name__ == "__main__":
    main()
