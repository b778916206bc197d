r"""What should a case cost on an H100, by the bytes and the operations of every step?

    python benchmarks/gpu_budget.py --output benchmarks/gpu_budget

Computed from the shapes alone: the layers of the released network, the plan of a case of 13 classes
on 320 x 320 x 200, and how many kernels the array steps launch. Nothing is measured; the first real
run is held against it. The assumptions are the constants below. Needs no GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from textwrap import wrap

from gpu_models import WINDOWS_HWD, organs_of_ct
from reporting import new_parser, today, write_report

from medals_export.model.config import ModelConfig
from medals_rt.common.choices import STAGE_NAMES
from medals_rt.planning.cost import StageCost, plan_case
from medals_rt.planning.memory import dry_run_limit
from medals_rt.planning.model_facts import RELEASED
from medals_rt.planning.policy import load_policy
from medals_rt.planning.stage_plan import CaseSetup

BYTES_PER_SECOND = 3.35e12
FLOP_PER_SECOND = 8e14
SHARE_OF_RATE = 0.6
SHARE_OF_BANDWIDTH = 0.7
PCIE_BYTES_PER_SECOND = 5e10
LIBRARY_LAUNCH_S = 4e-6
ARRAY_LAUNCH_S = 12e-6  # through Python and CuPy
SYNCHRONIZATION_S = 30e-6

SHAPE_DHW = (200, 320, 320)
SPACING_HWD_MM = (1.0, 1.0, 1.5)
HALF, SINGLE = 2, 4
PROMPT_WIDTH = 16  # the folded refiner that 13 classes are padded to
SWEEPS_OF_LABELING = 12  # of memory, by a union-find labeling of components with its numbering


@dataclass(frozen=True)
class Step:
    """One step: what it moves and computes, and how often the processor is asked or waits."""

    name: str
    flop: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    synchronizations: int = 0
    launch_s: float = ARRAY_LAUNCH_S
    bandwidth: float = BYTES_PER_SECOND * SHARE_OF_BANDWIDTH

    @property
    def device_s(self) -> float:
        """Seconds that the GPU is busy: by arithmetic or by memory, whichever is longer."""
        return max(self.flop / (FLOP_PER_SECOND * SHARE_OF_RATE), self.bytes / self.bandwidth)

    @property
    def asking_s(self) -> float:
        """Seconds that the processor takes to launch it all and to wait."""
        return self.launches * self.launch_s + self.synchronizations * SYNCHRONIZATION_S

    @property
    def seconds(self) -> float:
        """What is longer: a GPU that is asked too slowly idles."""
        return max(self.device_s, self.asking_s)

    @property
    def bound(self) -> str:
        """What decides its seconds."""
        if self.asking_s > self.device_s:
            return "launches"
        by_flop = self.flop / (FLOP_PER_SECOND * SHARE_OF_RATE)
        return "arithmetic" if by_flop > self.bytes / self.bandwidth else "memory"


def convolution(name: str, inputs: int, outputs: int, voxels: int, voxels_in: int) -> Step:
    """Count a 3x3x3 convolution in fp16 with its norm, two sweeps, and activation in the second."""
    moved = HALF * (inputs * voxels_in + outputs * voxels * 4 + 27 * inputs * outputs)
    flop = 2 * 27 * inputs * outputs * voxels
    return Step(name, flop, moved, 3, launch_s=LIBRARY_LAUNCH_S)


def network_steps(config: ModelConfig, *, prompted: bool) -> Iterator[Step]:
    """Go through the layers of one pass, fp16."""
    levels = [prod(size >> i for size in config.window_hwd) for i in range(len(config.features))]
    widths = (config.in_channels, *config.features)
    for i, (low, high) in enumerate(pairwise(widths)):
        above = levels[max(i - 1, 0)]
        yield convolution(f"encoder {i}", low, high, levels[i], above)
        for _ in range(config.convs_per_stage - 1):
            yield convolution(f"encoder {i}", high, high, levels[i], levels[i])
    for i in reversed(range(len(config.features) - 1)):
        low, high = config.features[i + 1], config.features[i]
        moved = HALF * (low * levels[i + 1] + high * levels[i] + 8 * low * high)
        flop = 2 * 8 * low * high * levels[i + 1]
        yield Step(f"decoder {i}", flop, moved, 1, launch_s=LIBRARY_LAUNCH_S)
        joined = Step(f"decoder {i}", 0, 4 * HALF * high * levels[i], 1, launch_s=LIBRARY_LAUNCH_S)
        yield joined
        yield convolution(f"decoder {i}", 2 * high, high, levels[i], levels[i])
        for _ in range(config.convs_per_stage - 1):
            yield convolution(f"decoder {i}", high, high, levels[i], levels[i])
    pooled = sum(HALF * n * width for n, width in zip(levels, config.features, strict=True))
    yield Step("tokens", 0, pooled, 12, launch_s=LIBRARY_LAUNCH_S)
    yield query_decoder(config, levels[-1])
    width = config.channels
    inputs = width + PROMPT_WIDTH if prompted else width
    yield convolution("refiner", inputs, width, levels[0], levels[0])
    classes = PROMPT_WIDTH
    moved = levels[0] * (HALF * width + classes * (HALF + SINGLE + SINGLE))
    flop = 2 * width * classes * levels[0]
    yield Step("probabilities", flop, moved, 3, launch_s=LIBRARY_LAUNCH_S)


def query_decoder(config: ModelConfig, tokens: int) -> Step:
    """Attention of the queries to each other and to the tokens, in every layer."""
    dim, n = config.text_dim, PROMPT_WIDTH
    weights = 8 * dim * dim + 2 * dim * config.ffn
    flop = 2 * (6 * dim * dim * n + 2 * dim * dim * tokens + 2 * dim * config.ffn * n)
    flop += 4 * n * dim * (n + tokens)
    layers = config.decoder_layers
    moved = HALF * (weights + 3 * tokens * dim)
    return Step(
        "query decoder", layers * flop, layers * moved, layers * 30, launch_s=LIBRARY_LAUNCH_S
    )


def total(name: str, steps: list[Step], times: int = 1) -> Step:
    """Add steps up: for sums of bytes and operations, not of seconds."""
    return Step(
        name,
        times * sum(step.flop for step in steps),
        times * sum(step.bytes for step in steps),
        times * sum(step.launches for step in steps),
        times * sum(step.synchronizations for step in steps),
        steps[0].launch_s,
    )


def case_steps(stages: tuple[StageCost, ...], classes: int) -> Iterator[tuple[Step, float]]:
    """Go through a case's steps in their order, each with its seconds."""
    voxels = prod(SHAPE_DHW)

    def alone(step: Step) -> tuple[Step, float]:
        return step, step.seconds

    yield alone(
        Step("upload", bytes=2 * voxels, synchronizations=1, bandwidth=PCIE_BYTES_PER_SECOND)
    )
    yield alone(Step("intensities", bytes=(2 + 3 * SINGLE) * voxels, launches=4))
    for stage in stages:
        name = STAGE_NAMES[stage.stage]
        prompted = stage.stage == 2
        grid = prod(stage.padded_shape_hwd)
        window = prod(stage.window_hwd)
        # three axes one after another, each reads and writes two neighbors
        resampled = 3 * 3 * SINGLE * max(voxels, grid)
        labels = 3 * SINGLE * grid * prompted
        yield alone(
            Step(
                f"{name}: resample",
                bytes=resampled + labels,
                launches=20 + 20 * prompted,
                synchronizations=1 + prompted,
            )
        )
        config = ModelConfig.released(stage.window_hwd)
        layers = list(network_steps(config, prompted=prompted))
        inputs = Step(
            "inputs",
            bytes=window * SINGLE * (2 + prompted * 3 * PROMPT_WIDTH),
            launches=4 + 6 * prompted,
        )
        network = total(f"{name}: network", layers, stage.passes)
        yield network, stage.passes * sum(step.seconds for step in layers)
        yield alone(total(f"{name}: inputs", [inputs], stage.passes))
        # products and sums apart, a class at a time, in the two pieces of the ring
        moved = window * SINGLE * classes * 6
        one = Step("aggregate", bytes=moved, launches=2 * 2 * classes)
        yield alone(total(f"{name}: aggregate", [one], stage.passes))
        decided = Step(
            f"{name}: decide", bytes=grid * SINGLE * (2 * classes + 3), launches=3 * classes * 8
        )
        yield alone(decided)
        yield alone(
            Step(
                f"{name}: restore",
                bytes=3 * 3 * SINGLE * max(voxels, grid),
                launches=40,
                synchronizations=2,
            )
        )
    labeling = SINGLE * voxels * SWEEPS_OF_LABELING
    yield alone(
        Step(
            "components, with cuCIM",
            bytes=labeling + 6 * SINGLE * voxels,
            launches=60,
            synchronizations=10,
        )
    )
    yield alone(Step("download", bytes=voxels, synchronizations=1, bandwidth=PCIE_BYTES_PER_SECOND))


def table(rows: list[tuple[Step, float]]) -> list[str]:
    """Write steps as a table."""
    lines = [
        "| step | TFLOP | GB | launches | waits | GPU, ms | asking, ms | ms | bound by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {step.name} | {step.flop / 1e12:.2f} | {step.bytes / 1e9:.2f} | {step.launches} | "
        f"{step.synchronizations} | {1000 * step.device_s:.2f} | {1000 * step.asking_s:.2f} | "
        f"{1000 * seconds:.2f} | {step.bound} |"
        for step, seconds in rows
    ]
    return lines


def by_layer(config: ModelConfig, *, prompted: bool) -> list[tuple[Step, float]]:
    """Add up the layers of a pass by their name."""
    found: dict[str, list[Step]] = {}
    for step in network_steps(config, prompted=prompted):
        found.setdefault(step.name, []).append(step)
    return [
        (total(name, steps), sum(step.seconds for step in steps)) for name, steps in found.items()
    ]


def wrapped(*paragraphs: str, indent: str = "") -> list[str]:
    """Break paragraphs into lines."""
    return [line for each in paragraphs for line in wrap(each, 100, subsequent_indent=indent)]


def conclusions(case_s: float, outside_s: float) -> list[str]:
    """Say what the figures mean for the goals: 24 ms a pass, 2 s a case."""
    config = ModelConfig.released(WINDOWS_HWD[2])
    layers = list(network_steps(config, prompted=True))
    pass_ms = 1000 * sum(step.seconds for step in layers)
    busy_ms = 1000 * sum(step.flop for step in layers) / (FLOP_PER_SECOND * SHARE_OF_RATE)
    idle_ms = 1000 * sum(max(0.0, step.asking_s - step.device_s) for step in layers)
    half = 2 * 27 * config.channels**2 * prod(config.window_hwd) / 1e12
    whole = half + sum(step.flop for step in network_steps(config, prompted=False)) / 1e12
    return wrapped(
        f"- The release's {whole:.1f} TFLOP a window hold the convolution of the prompts' "
        f"{config.channels} features, {half:.2f} TFLOP; the exported graphs fold it.",
        f"- A prompted pass of 192^3 takes {pass_ms:.1f} ms, its arithmetic alone {busy_ms:.1f} "
        "ms: memory of the finest layers costs the rest. The goal of 24 ms needs norms whose sums "
        "are formed as the convolution writes, not more of the rate.",
        f"- A CUDA graph of a window saves at most {idle_ms:.1f} ms a pass, nearly all of it in "
        "the query decoder.",
        "- The two halves of a masked pair as one batch of 2, or several windows as one, share "
        "launches and no arithmetic: they gain no more than that.",
        f"- All that overlap with the network could hide is {outside_s:.2f} s of {case_s:.2f} s, "
        "most of it aggregation and prompt channels, whose float32 arrays of all classes are "
        "written and read again: one kernel for product and sum halves them.",
        "- So the number of passes decides: a smaller region of interest or fewer masked pairs "
        "outweighs everything else here.",
        indent="  ",
    )


def main() -> None:
    """Compute passes and cases, and write them down."""
    parser = new_parser(__doc__)
    options = parser.parse_args()
    keys = organs_of_ct()
    model = replace(RELEASED, runner="onnxruntime-cuda", precision="fp16")
    preset, memory = load_policy().preset("paper"), dry_run_limit(None)
    setup = CaseSetup(SHAPE_DHW, SPACING_HWD_MM, 2, preset, "masked", model, memory)
    plan = plan_case(setup, {"400,40": keys})
    lines = [
        "# What a case should cost on an H100",
        "",
        *wrapped(
            f"Computed on {today()} by `benchmarks/gpu_budget.py` from shapes; **nothing here is "
            "measured**. The first GPU ([report](results/gpu/report.md), an H200) ran PyTorch's "
            "pass in 78 ms, and ours without the matrix units: what `benchmarks/gpu.sh full case` "
            "gives next is held against it. Copies from ordinary memory ran at 7 GB/s there, and "
            "two convolutions of our pass that did take the matrix units, channels last (64 "
            "channels at 96^3, to judge by the copies around them), at 522 TFLOP/s, 70% of what "
            "products of matrices reached. The runner `cudnn` is built as counted here."
        ),
        "",
        *wrapped(
            f"Assumed: {FLOP_PER_SECOND / 1e12:.0f} TFLOP/s in 16-bit, of which convolutions reach "
            f"{SHARE_OF_RATE:.0%}; {BYTES_PER_SECOND / 1e12:.2f} TB/s, of which kernels reach "
            f"{SHARE_OF_BANDWIDTH:.0%}; {PCIE_BYTES_PER_SECOND / 1e9:.0f} GB/s over PCIe; "
            f"{LIBRARY_LAUNCH_S * 1e6:.0f} microseconds a launch by an inference library, "
            f"{ARRAY_LAUNCH_S * 1e6:.0f} by CuPy, {SYNCHRONIZATION_S * 1e6:.0f} a wait. Norm and "
            "activation are two sweeps after the convolution has written its result. `asking` is "
            "the processor's time for launches and waits. The longest of arithmetic, memory and "
            "asking counts, layer by layer; `GPU` is that of the sums, so that it can be below "
            "`ms`."
        ),
    ]
    record: dict[str, object] = {"date": today(), "shape_dhw": SHAPE_DHW, "passes": {}}
    for stage in (2, 1):
        for prompted in (False, True):
            rows = by_layer(ModelConfig.released(WINDOWS_HWD[stage]), prompted=prompted)
            seconds, flop = sum(s for _, s in rows), sum(step.flop for step, _ in rows)
            asking = sum(step.asking_s for step, _ in rows)
            share = flop / FLOP_PER_SECOND / seconds
            title = f"{WINDOWS_HWD[stage]}, {'with prompts' if prompted else 'text only'}"
            launches = sum(step.launches for step, _ in rows)
            lines += ["", f"## A pass of {title}", "", *table(rows), ""]
            lines += wrapped(
                f"{flop / 1e12:.2f} TFLOP, **{1000 * seconds:.1f} ms**, {share:.0%} of the rate; "
                f"{launches} launches take {1000 * asking:.2f} ms to ask for, while the GPU works "
                "but in layers that are bound by them."
            )
            record["passes"][title] = {"tflop": flop / 1e12, "seconds": seconds}  # type: ignore[index]
    rows = list(case_steps(plan.stages, len(keys)))
    seconds = sum(s for _, s in rows)
    outside = sum(s for step, s in rows if not step.name.endswith("network"))
    sizes = " x ".join(map(str, SHAPE_DHW))
    lines += ["", f"## A case of {len(keys)} classes, {sizes}, {SPACING_HWD_MM} mm", ""]
    lines += [*table(rows), ""]
    launch_bound = [step.name for step, _ in rows if step.bound == "launches"]
    waiting = [step.name for step, _ in rows if step.synchronizations]
    plans = ", ".join(
        f"stage {stage.stage} {stage.windows} windows and {stage.passes} passes"
        for stage in plan.stages
    )
    lines += wrapped(
        f"**{seconds:.2f} s**, of which {outside:.2f} s outside the network; {plans}. The fine "
        "stage's region is the whole image here. Bound by launches: "
        f"{', '.join(launch_bound) or 'none'}. They wait for the GPU: {', '.join(waiting)}."
    )
    lines += ["", "## What follows", "", *conclusions(seconds, outside)]
    record["case"] = {step.name: step_s for step, step_s in rows} | {"all": seconds}
    write_report(options.output, record, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
