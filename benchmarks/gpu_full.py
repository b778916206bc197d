r"""How fast is a pass of the released size on a GPU, and what share of its matrix rate is that?

    python benchmarks/gpu_full.py --folder FOLDER --output benchmarks/results/gpu/full

One window of each stage (192^3 and 224 x 224 x 128), N classes, from text alone and with spatial
prompts. Contestants: PyTorch under autocast as the release runs it (eager; cuDNN's search; channels
last; `torch.compile`; a CUDA graph), ONNX Runtime on the exported graphs with bound memory (plain;
channels last; a CUDA graph), and medals-rt with its runners that need no engines. Each family runs
in a process of its own with a time limit, so that a fault ends one family; each row is written when
it is there. Arithmetic is counted from the graphs or by PyTorch's counter, and set against a matrix
product that is measured here. Differences are those of probabilities from PyTorch in fp32 without
TF32.

FOLDER is what `gpu_models.py` wrote. `--device cpu` rehearses all of it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_report import PartReport
from torch.utils.flop_counter import FlopCounterMode

from medals_export.checkpoint import load_checkpoint
from medals_export.model import MedalS
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import refiner_width
from medals_rt.common.choices import RunnerKind
from medals_rt.inference.graph_chains import pass_chains
from medals_rt.tools.bench.arithmetic import graph_flop

COLUMNS = (
    "window",
    "pass",
    "runner",
    "ms",
    "open_s",
    "first_s",
    "tflop",
    "share_of_matrix_rate",
    "peak_mib",
    "largest_difference",
    "problem",
)
BLOCK_VOXELS = 8
MATRIX_EDGE = {"cuda": 8192, "cpu": 512}
ORT_VARIANTS: dict[str, dict[str, str]] = {
    "onnxruntime": {},
    "onnxruntime, channels last": {"prefer_nhwc": "1"},
    "onnxruntime, CUDA graph": {"enable_cuda_graph": "1"},
}
RUNNERS: dict[str, tuple[RunnerKind, ...]] = {
    "cuda": ("cudnn", "onnxruntime-cuda"),
    "cpu": ("onnxruntime",),
}
HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}
"""What the release computes in on a GPU, and what a processor has kernels for."""
HALF_NAME = {"cuda": "fp16", "cpu": "bf16"}
TORCH_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
NUMPY_TYPES = {torch.float32: np.float32, torch.float16: np.float16}

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Scene:
    """One kind of pass: a stage's window with its inputs, on the device, the same every time."""

    stage: int
    prompted: bool
    device: str
    image: torch.Tensor
    foreground: torch.Tensor
    queries: torch.Tensor
    prompts: torch.Tensor

    @property
    def names(self) -> dict[str, Any]:
        """Columns that say which pass this is."""
        window = " x ".join(map(str, self.image.shape[2:]))
        return {"window": window, "pass": "text and prompts" if self.prompted else "text only"}


def scene(stage: int, prompted: bool, classes: int, model: MedalS, device: str) -> Scene:
    """Make an image of noise, queries and blocky prompts (zeros without prompts)."""
    window = model.config.window_hwd
    rng = np.random.default_rng(7)
    image = rng.random((1, 1, *window), dtype=np.float32) * 255
    queries = rng.standard_normal((classes, model.config.text_dim), dtype=np.float32)
    labels = rng.integers(0, 2 * classes, [size // BLOCK_VOXELS for size in window])
    for axis in range(3):
        labels = np.repeat(labels, BLOCK_VOXELS, axis=axis)
    shown = np.stack([labels == label for label in range(1, classes + 1)]).astype(np.float32)
    shown *= prompted
    return Scene(
        stage,
        prompted,
        device,
        *(
            torch.from_numpy(array).to(device)
            for array in (image, shown.max(axis=0)[None, None], queries, shown[None])
        ),
    )


def wait(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(run: Run, device: str, repetitions: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the first run's seconds and the median of the others after one more, and a result."""
    seconds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repetitions + 2):
        wait(device)
        start = time.perf_counter()
        found = run()
        wait(device)
        seconds.append(time.perf_counter() - start)
    row: dict[str, Any] = {
        "first_s": round(seconds[0], 3),
        "ms": round(1000 * float(np.median(seconds[2:])), 3),
    }
    if device == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
    return row, found


def matrix_rate(device: str) -> float:
    """Return the TFLOP/s of a bf16 product of large square matrices."""
    edge = MATRIX_EDGE[device]
    # of noise: on equal numbers a card runs cooler and faster
    a = torch.randn((edge, edge), dtype=torch.bfloat16, device=device)
    row, _ = timed(lambda: a @ a, device, 10)
    return 2 * edge**3 / row["ms"] / 1e9


def forward(model: MedalS, each: Scene) -> torch.Tensor:
    """Run the whole network as the release does: prompts of zeros where there are none."""
    return model(each.image, each.foreground, each.queries, each.prompts)


def probabilities(model: MedalS, each: Scene, dtype: torch.dtype | None) -> torch.Tensor:
    """Return P of a pass, under autocast or, with None, in fp32."""
    with torch.autocast(each.device, dtype, enabled=dtype is not None):
        return forward(model, each)[0].float().sigmoid()


def torch_flop(model: MedalS, each: Scene) -> int:
    """Count the arithmetic of the whole network from its shapes."""
    meta = [
        tensor.to("meta") for tensor in (each.image, each.foreground, each.queries, each.prompts)
    ]
    with FlopCounterMode(display=False) as counter:
        type(model)(model.config).to("meta")(*meta)
    return int(counter.get_total_flops())


def channels_last(model: MedalS) -> MedalS:
    """Lay out weights with the channels last; what they meet takes that layout on."""
    return model.to(memory_format=torch.channels_last_3d)


def torch_runs(model: MedalS, each: Scene) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Return eager PyTorch's contestants, each made when its turn comes."""
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    if each.device == "cpu":
        del halves["fp16"]  # a processor's kernels for it are a hundred times slower
    for name, dtype in halves.items():

        def eager(dtype: torch.dtype = dtype) -> Run:
            return lambda: probabilities(model, each, dtype)

        yield f"pytorch {name} autocast", eager
    half, dtype = HALF_NAME[each.device], HALF[each.device]
    yield f"pytorch {half} autocast, cuDNN's search", lambda: searched(model, each, dtype)
    yield f"pytorch {half} autocast, CUDA graph", lambda: recorded(model, each, dtype)
    yield f"pytorch {half} autocast, channels last", lambda: last(model, each, dtype)


def last(model: MedalS, each: Scene, dtype: torch.dtype) -> Run:
    """Run with the channels last."""
    channels_last(model)
    return lambda: probabilities(model, each, dtype)


def searched(model: MedalS, each: Scene, dtype: torch.dtype) -> Run:
    """Run with the convolution algorithms that are the fastest in a trial."""

    def run() -> torch.Tensor:
        torch.backends.cudnn.benchmark = True
        try:
            return probabilities(model, each, dtype)
        finally:
            torch.backends.cudnn.benchmark = False

    return run


def recorded(model: MedalS, each: Scene, dtype: torch.dtype) -> Run:
    """Record the launches of a pass once, and launch them all at once from then on."""
    if each.device != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        probabilities(model, each, dtype)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = probabilities(model, each, dtype)

    def run() -> torch.Tensor:
        graph.replay()
        return found

    return run


def compiled_runs(model: MedalS, each: Scene) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Return the contestants of `torch.compile`."""

    def compiled() -> Run:
        fast: Run = torch.compile(
            lambda: probabilities(model, each, HALF[each.device]), dynamic=False
        )
        return fast

    yield f"pytorch {HALF_NAME[each.device]} autocast, compiled", compiled

    def compiled_last() -> Run:
        channels_last(model)
        return compiled()

    yield f"pytorch {HALF_NAME[each.device]} autocast, compiled, channels last", compiled_last


def bound_run(bundle: Bundle, each: Scene, settings: dict[str, str]) -> Run:
    """Open a pass's graphs in ONNX Runtime, with all arrays bound in the device's memory."""
    import onnxruntime

    on_gpu = each.device == "cuda"
    if settings and not on_gpu:
        raise RuntimeError(f"the settings {', '.join(settings)} need a GPU")
    # without TF32 its convolutions in fp16 don't run on the matrix units either
    provider = ("CUDAExecutionProvider", {"use_tf32": "1", **settings})
    providers = [provider] if on_gpu else ["CPUExecutionProvider"]
    if on_gpu:
        onnxruntime.preload_dlls()
    count = width = len(each.queries)
    if each.prompted:  # refiners are of fixed widths: the rest are prompts of zeros
        width = refiner_width(count) or count
    values: dict[str, torch.Tensor] = {
        "image": each.image,
        "foreground": each.foreground,
        "queries": padded(each.queries, width),
        "prompts": padded(each.prompts[0], width),
    }
    prepared = []
    for name in graph_names(each):
        session = onnxruntime.InferenceSession(
            str(bundle.graph_path(each.stage, name)), providers=providers
        )
        if on_gpu and session.get_providers()[:1] != [provider[0]]:
            raise RuntimeError("ONNX Runtime did not take the graph to the GPU")
        binding = session.io_binding()
        for spec in session.get_inputs():
            values[spec.name] = values[spec.name].to(TORCH_TYPES[spec.type]).contiguous()
            bind(binding.bind_input, spec.name, values[spec.name])
        for spec in session.get_outputs():
            shape = [size if isinstance(size, int) else width for size in spec.shape]
            values[spec.name] = torch.empty(shape, dtype=TORCH_TYPES[spec.type], device=each.device)
            bind(binding.bind_output, spec.name, values[spec.name])
        prepared.append((session, binding))

    def run() -> torch.Tensor:
        for session, binding in prepared:
            session.run_with_iobinding(binding)
        return values["probabilities"][:count]

    return run


def padded(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Add rows of zeros up to a width."""
    missing = width - len(tensor)
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])


def bind(to: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
    """Bind a tensor's memory."""
    dtype = NUMPY_TYPES[tensor.dtype]
    to(name, tensor.device.type, 0, dtype, tuple(tensor.shape), tensor.data_ptr())


def graph_names(each: Scene) -> tuple[Any, ...]:
    """Return the graphs of a pass, as the run time takes them."""
    chains = pass_chains(len(each.queries), prompted=each.prompted)
    return tuple(name for chain in chains for name in chain)


def medals_run(bundle: Bundle, each: Scene, runner: RunnerKind) -> Run:
    """Run a pass through the run time itself."""
    from latency import network_pass

    from medals_rt.common.arrays import to_device
    from medals_rt.inference.network import StageNetwork
    from medals_rt.inference.spatial_prompts import label_prompts
    from medals_rt.planning.sliding_window import plan_windows

    network = StageNetwork.open(bundle, each.stage, runner=runner)
    count = len(each.queries)
    shown = each.prompts[0].cpu().numpy()
    labels = (shown * np.arange(1, count + 1)[:, None, None, None]).sum(axis=0).astype(np.uint16)
    window = network.spec.window_hwd
    (prompts,) = label_prompts(
        to_device(labels, each.device), plan_windows(window, window), range(1, count + 1), 8
    )
    arrays = (
        to_device(each.image.cpu().numpy(), each.device),
        to_device(each.queries.cpu().numpy(), each.device),
        prompts,
    )
    run = network_pass(network)
    return lambda: torch.from_dlpack(run(arrays, each.prompted))


def family_of(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the contestants of one family on one window; yield a row each."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bundle = Bundle.open(options.folder / "bundle", verify=False)
    file = options.folder / f"stage{options.stage}.pth"
    for prompted in (False, True):
        model = load_checkpoint(file).model.to(options.device).eval()
        each = scene(options.stage, prompted, options.classes, model, options.device)
        wanted = probabilities(model, each, None).cpu()
        flop = torch_flop(model, each)
        if name in {"medals-rt", "onnxruntime"}:
            del model
            flop = sum(
                graph_flop(bundle.graph_path(each.stage, graph), options.classes)
                for graph in graph_names(each)
            )
            contestants = (medals_runs if name == "medals-rt" else ort_runs)(bundle, each)
        else:
            contestants = (torch_runs if name == "pytorch" else compiled_runs)(model, each)
        for runner, make in contestants:
            row = {**each.names, "runner": runner, "tflop": round(flop / 1e12, 4)}
            try:
                start = time.perf_counter()
                run = make()
                row["open_s"] = round(time.perf_counter() - start, 2)
                measured, found = timed(run, options.device, options.repetitions)
                difference = float((found.cpu().float() - wanted).abs().max())
                row |= {**measured, "largest_difference": round(difference, 5)}
            except Exception as error:  # noqa: BLE001 - one that fails is a row, the others go on
                row["problem"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            yield row


def medals_runs(bundle: Bundle, each: Scene) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Return the run time with each of its runners."""
    for runner in RUNNERS[each.device]:
        yield f"medals-rt, {runner}", lambda runner=runner: medals_run(bundle, each, runner)


def ort_runs(bundle: Bundle, each: Scene) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Return ONNX Runtime's contestants."""
    for name, settings in ORT_VARIANTS.items():
        yield name, lambda settings=settings: bound_run(bundle, each, settings)


FAMILIES = ("medals-rt", "pytorch", "onnxruntime", "compile")


def ask(family: str, stage: int, options: argparse.Namespace, report: PartReport) -> None:
    """Run a family in a process of its own, and write its rows down as they come."""
    command = [sys.executable, __file__, *sys.argv[1:], "--family", family, "--stage", str(stage)]
    command = ["timeout", "--kill-after=5", str(options.family_limit), *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            if line.startswith("{"):
                row = json.loads(line)
                if row.get("ms"):
                    rate = row["tflop"] * 1000 / row["ms"]
                    row["share_of_matrix_rate"] = round(rate / options.rate, 3)
                report.add(**row)
    if child.returncode:
        what = "was stopped" if child.returncode == 124 else f"ended with {child.returncode}"
        report.remark(f"Stage {stage}, {family}: {what}; its rows above are what it had.")


def main() -> None:
    """Ask every family on both windows, the fine one first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of gpu_models.py")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--family-limit", type=int, default=90, help="seconds")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--family", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.family is not None:
        with torch.inference_mode():
            for row in family_of(options.family, options):
                print(json.dumps(row), flush=True)
        return
    report = PartReport(options.output, "How fast is a pass of the released size?", COLUMNS)
    with torch.inference_mode():
        options.rate = matrix_rate(options.device)
    report.remark(f"A bf16 product of large matrices runs at {options.rate:.3g} TFLOP/s here.")
    for stage in (2, 1):
        for family in options.families:
            ask(family, stage, options, report)


if __name__ == "__main__":
    main()
