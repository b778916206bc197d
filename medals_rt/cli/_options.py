"""Options that several commands take, each written once, and how a command gets them.

A command names what it needs as one parameter (`options: RunOptions`), and `takes` puts the flags
of the function that makes it in that parameter's place.
"""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from medals_rt.cli._console import (
    Bundle,
    Kind,
    Modality,
    Preset,
    PresetOption,
    PromptsFile,
    Refinement,
    RefinementOption,
    Sentences,
)
from medals_rt.common.byte_sizes import parse_size
from medals_rt.common.limits import MAX_VOXELS
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.prompts.prompt_set import PromptReading


class Runner(StrEnum):
    """Inference libraries."""

    AUTO = "auto"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Precision(StrEnum):
    """Arithmetic of the network."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def prompt_source(
    *,
    prompts: PromptsFile = None,
    prompt: Sentences = None,
    kind: Annotated[Kind, typer.Option(help="What sentences ask for.")] = Kind.ANATOMY,
) -> PromptSource:
    """Make the source of prompts from its flags."""
    return PromptSource(prompts, tuple(prompt or ()), kind.value)


def run_options(
    *,
    bundle: Bundle = None,
    runner: Annotated[Runner, typer.Option(help="Inference library.")] = Runner.AUTO,
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic; auto takes what the processor is good at.")
    ] = Precision.AUTO,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the inference library.")
    ] = None,
    preset: PresetOption = Preset.PAPER,
    refinement: RefinementOption = Refinement.MASKED,
    window: Annotated[
        str,
        typer.Option(
            metavar="auto|soft tissue|lung|brain|bone|W,L",
            help="Intensity window of an image that is not in 0 to 255: what the classes want "
            "(a CT whose classes want several is run once for each), the name of a window of "
            "Hounsfield units, or width and level such as 400,40 for any image.",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random block masks.")] = 0,
    modality: Annotated[
        Modality | None, typer.Option(help="What the image is, for sentences that don't say it.")
    ] = None,
    free_text: Annotated[
        bool,
        typer.Option(
            "--free-text",
            help="Take sentences that name no known class as they are; the bundle needs a text "
            "encoder.",
        ),
    ] = False,
    time_budget: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds a class that a case may take. Where they don't suffice, less is done, "
            "and the report says what was left out.",
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that a case may take, such as 6GB or 512MiB."),
    ] = None,
    max_voxels: Annotated[
        int, typer.Option(min=1, help="Refuse images of more voxels than this.")
    ] = MAX_VOXELS,
) -> RunOptions:
    """Make the options of a run from their flags."""
    return RunOptions(
        bundle=bundle,
        runner=runner.value,
        precision=None if precision is Precision.AUTO else precision.value,
        threads=threads,
        segment=SegmentOptions(
            preset=preset.value,
            refinement=refinement.value,
            window=window,
            seed=seed,
            time_budget=time_budget,
            max_memory=None if max_memory is None else parse_size(max_memory),
        ),
        reading=PromptReading(modality and modality.value, free_text),
        max_voxels=max_voxels,
    )


def takes(**makers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace parameters of a command by the flags of the functions that make them.

    Parameters
    ----------
    makers : name of a parameter of the command to the function that makes its value
    """
    flags = {name: inspect.signature(maker).parameters for name, maker in makers.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            for name, maker in makers.items():
                given[name] = maker(**{flag: given.pop(flag) for flag in flags[name]})
            command(**given)

        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += flags.get(parameter.name, {parameter.name: parameter}).values()
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate
