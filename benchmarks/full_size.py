r"""How much faster than PyTorch is a pass of the full-size network, and at what memory?

    python benchmarks/full_size.py --output benchmarks/results/full_size

One window of each stage, N classes, from text alone and with spatial prompts, by networks of the
released size with made-up weights. OpenVINO in fp32 and bf16, its own convolutions (direct) and
Winograd's, beside eager PyTorch in fp32 and under bf16 autocast, which runs what the release runs:
every graph whole, prompts of zeros where there are none. Each row is a process of its own, one
after another, with the same inputs and threads, so that its peak memory is the process's. Compiled
code is kept by an earlier process that only opens; "first" is the first pass behind that. `--rows`
takes those whose name holds a text; `--list` only shows them, with the seconds expected of each.
Needs the extras `cpu` and `export`, 12 GB, and a machine that does nothing else.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from reporting import circumstances, new_parser, write_report

from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.inference.graph_chains import Chain, JoinedGraphs, pass_chains
from medals_rt.inference.network import PassInput, StageNetwork, arithmetic_of
from medals_rt.inference.spatial_prompts import LabelPrompts, label_prompts
from medals_rt.planning.sliding_window import plan_windows
from medals_rt.runners.base import Runner
from medals_rt.runners.selection import open_runner

WINDOWS = {"192^3": (192, 192, 192), "224x224x128": (224, 224, 128)}
KINDS = ("text", "prompts")
TEXT_DIM = 768
BLOCK_VOXELS = 8
SETTING_UP = 25.0
# seconds of a pass of 192^3 on two quiet Zen 4 cores
EXPECTED = {
    "pytorch fp32": 120.0,
    "pytorch bf16": 50.0,
    "openvino fp32 direct": 48.0,
    "openvino fp32 winograd": 26.0,
    "openvino bf16 direct": 22.5,
    "openvino bf16 winograd": 13.0,
}
_ONCE = {"pytorch fp32", "pytorch bf16", "openvino fp32 direct"}  # whose first pass is as others


@dataclass(frozen=True)
class Row:
    """One contestant at one window, number of classes and kind of pass."""

    window: str
    classes: int
    kind: str
    runner: str

    @property
    def name(self) -> str:
        """As `--rows` looks for it."""
        return f"{self.window}, N={self.classes}, {self.kind}, {self.runner}"

    @property
    def seconds(self) -> float:
        """Expected, with what comes before the first pass."""
        passes = 1 if self.runner in _ONCE else 2
        share = prod(WINDOWS[self.window]) / 192**3
        return SETTING_UP * self.runner.startswith("openvino") + passes * share * self.each

    @property
    def each(self) -> float:
        """Expected of a pass."""
        return EXPECTED[self.runner]


ROWS = (
    *(
        Row("192^3", 4, kind, runner)
        for kind in KINDS
        for runner in EXPECTED
        if "fp32" not in runner
    ),
    *(Row("192^3", 4, "text", runner) for runner in EXPECTED if "fp32" in runner),
    *(
        Row("192^3", 13, kind, runner)
        for kind in KINDS
        for runner in ("openvino bf16 direct", "openvino bf16 winograd")
    ),
    *(
        Row("224x224x128", 4, kind, runner)
        for kind in KINDS
        for runner in ("openvino bf16 direct", "openvino bf16 winograd")
    ),
)


def network(window: tuple[int, ...]) -> Any:
    """Make the eager network; the same every time."""
    import torch

    from medals_export.model import MedalS, ModelConfig

    torch.manual_seed(0)
    return MedalS(ModelConfig.released(window)).eval()


def export(window: tuple[int, ...], folder: Path) -> None:
    """Write the graphs of the passes that are timed, unless they are there."""
    import onnx

    from medals_export.graph_plans import graph_plans
    from medals_export.onnx_graphs import trace

    passes = [pass_chains(row.classes, prompted=row.kind == "prompts") for row in ROWS]
    wanted = {name for chains in passes for chain in chains for name in chain}
    if all((folder / f"{name}.onnx").is_file() for name in wanted):
        return
    folder.mkdir(parents=True, exist_ok=True)
    plans = [plan for plan in graph_plans(network(window)) if plan.name in wanted]
    for plan, model in trace(plans):
        onnx.save(model, folder / f"{plan.name}.onnx")


def inputs(window: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray, LabelPrompts]:
    """Return an image of noise, queries, and blocky prompts; the same every time."""
    rng = np.random.default_rng(7)
    image = rng.random((1, 1, *window), dtype=np.float32) * 255
    queries = rng.standard_normal((classes, TEXT_DIM), dtype=np.float32)
    labels = rng.integers(0, 2 * classes, [size // BLOCK_VOXELS for size in window])
    for axis in range(3):
        labels = np.repeat(labels, BLOCK_VOXELS, axis=axis)
    windows = plan_windows(window, window)
    (prompts,) = label_prompts(labels.astype(np.uint16), windows, range(1, classes + 1), 8)
    return image, queries, prompts


def timed(row: Row, run: Callable[[], np.ndarray], folder: Path) -> dict[str, Any]:
    """Time passes; keep their probabilities in the folder."""
    seconds = []
    for _ in range(1 if row.runner in _ONCE else 2):
        start = time.perf_counter()
        found = run()
        seconds.append(round(time.perf_counter() - start, 2))
    np.save(folder / f"{row.name}.npy", found.astype(np.float16))
    # not `ru_maxrss`, which begins with the peak of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak_kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    peak_gb = round(int(peak_kib) * 1024 / 1e9, 2)
    return {"first": seconds[0], "seconds": seconds[-1], "peak_gb": peak_gb}


def pytorch(row: Row, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the eager network."""
    import torch

    torch.set_num_threads(options.threads)
    model = network(WINDOWS[row.window])
    image, queries, prompts = inputs(WINDOWS[row.window], row.classes)
    shown, seen = prompts.channels(row.classes), prompts.foreground()
    if row.kind == "text":
        shown, seen = np.zeros_like(shown), np.zeros_like(seen)
    values = [torch.from_numpy(each) for each in (image, seen, queries, shown[None])]

    @torch.inference_mode()
    def run() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in row.runner):
            logits = model(*values)
        found: np.ndarray = logits.float().sigmoid()[0].numpy()
        return found

    return timed(row, run, folder)


def openvino(
    row: Row, options: argparse.Namespace, folder: Path, *, only_open: bool
) -> dict[str, Any]:
    """Run the exported graphs by the run time's own network."""
    _, precision, convolution = row.runner.split()
    graphs = options.graphs / row.window

    def open_chain(chain: Chain) -> Runner:
        return open_runner(
            "openvino",
            *(graphs / f"{name}.onnx" for name in chain),
            joined=True,
            name=row.name,
            precision=arithmetic_of(chain, "cpu", precision, "fp16")[0],
            threads=options.threads,
            cache_key=f"full size, {row.window}, {chain}",
            convolution=convolution,  # type: ignore[arg-type]
        )

    start = time.perf_counter()
    spec = StageSpec(2, WINDOWS[row.window], (1.0, 1.0, 1.0))
    with StageNetwork(spec, JoinedGraphs(open_chain), "the benchmark") as network:
        network.prepare(row.classes, prompted=row.kind == "prompts")
        opened = round(time.perf_counter() - start, 2)
        if only_open:
            return {"compile": opened}
        image, queries, prompts = inputs(WINDOWS[row.window], row.classes)

        def run() -> np.ndarray:
            shown = prompts if row.kind == "prompts" else None
            return np.concatenate(
                [found for _, found in network.predict(PassInput(image, queries, shown))]
            )

        return timed(row, run, folder) | {"open": opened}


def ask(row: Row, options: argparse.Namespace, *, only_open: bool = False) -> dict[str, Any]:
    """Run a row in a process of its own."""
    words = ["--worker", row.name, "--folder", str(options.folder), "--graphs", str(options.graphs)]
    words += ["--threads", str(options.threads), *(["--only-open"] if only_open else [])]
    environment = {**os.environ, "MEDALS_RT_CACHE": str(options.folder / "cache")}
    command = [sys.executable, __file__, "--output", "-", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a row; with what compiled code is kept from before."""
    found: dict[str, Any] = {}
    if row.runner.startswith("openvino"):
        found |= ask(row, options, only_open=True)
    found |= ask(row, options)
    print(row.name, found, flush=True)
    return {"row": row.name, "case": f"{row.window}, N={row.classes}, {row.kind}", **found}


def compare(rows: list[dict[str, Any]], folder: Path) -> None:
    """Add how many times as fast as PyTorch's autocast and OpenVINO's best, and differences."""
    for found in rows:
        same = [each for each in rows if each["case"] == found["case"]]
        for title, text in (("pytorch", "pytorch bf16"), ("direct", "bf16 direct")):
            beside = next((each for each in same if text in each["row"]), None)
            if beside is not None:
                found[f"times_{title}"] = round(beside["seconds"] / found["seconds"], 2)
        exact = next((each for each in same if "openvino fp32 direct" in each["row"]), None)
        if exact is not None:
            ours, theirs = (
                np.load(folder / f"{each['row']}.npy").astype(np.float32) for each in (found, exact)
            )
            found["mean_difference"] = float(f"{np.abs(ours - theirs).mean():.2g}")


def markdown(report: dict[str, Any]) -> str:
    """Write the rows as a table."""
    head = (
        f"{report['machine']['processor']}, {report['threads']} threads, {report['date']}. One "
        "window, networks of the released size with made-up weights. Times as fast as PyTorch "
        "under bf16 autocast, and as OpenVINO's own convolutions in bf16; mean difference of a "
        "probability to OpenVINO in fp32."
    )
    columns = ("compile", "open", "first", "seconds", "peak_gb")
    columns += ("times_pytorch", "times_direct", "mean_difference")
    titles = "compile, s | open, s | first, s | s | peak, GB | PyTorch | direct | difference"
    lines = [head, "", f"| pass | {titles} |", "|---|" + "---:|" * len(columns)]
    for row in report["rows"]:
        cells = " | ".join(str(row.get(column, "")) for column in columns)
        lines.append(f"| {row['row']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row and write the report."""
    parser = new_parser(__doc__)
    parser.add_argument("--graphs", type=Path, help="keeps the exported graphs for a next time")
    parser.add_argument("--rows", action="append", help="those whose name holds this text")
    parser.add_argument("--list", action="store_true", help="only show the rows")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        (row,) = (row for row in ROWS if row.name == options.worker)
        if row.runner.startswith("pytorch"):
            found = pytorch(row, options, options.folder)
        else:
            found = openvino(row, options, options.folder, only_open=options.only_open)
        sys.stdout.buffer.write(msgspec.json.encode(found))
        return
    texts = options.rows or [""]
    rows = [row for row in ROWS if any(text in row.name for text in texts)]
    for row in rows:
        print(f"{row.seconds:5.0f} s  {row.name}")
    print(f"{sum(row.seconds for row in rows) / 60:.0f} minutes, and two for graphs that are made")
    if options.list:
        return
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        options.graphs = options.graphs or options.folder / "graphs"
        for window in dict.fromkeys(row.window for row in rows):
            export(WINDOWS[window], options.graphs / window)
        found_rows = [measure(row, options) for row in rows]
        compare(found_rows, options.folder)
    report = {
        **circumstances(),
        "threads": options.threads,
        "rows": found_rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
