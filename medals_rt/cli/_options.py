"""Options that several commands take, each written once, and how commands get them.

A command names what it needs as one parameter (`options: RunOptions`), and `takes` puts the flags
of the function that makes it in that parameter's place. Closed lists come from `common.choices`.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from medals_rt.cli._completion import (
    complete_group,
    complete_modality,
    complete_sentence,
    complete_window,
)
from medals_rt.cli._configuration import configuration_file
from medals_rt.cli._output import out
from medals_rt.common.byte_sizes import parse_size
from medals_rt.common.choices import (
    MODALITIES,
    STAGE_NAMES,
    ConvolutionChoice,
    Kind,
    Modality,
    Postprocess,
    PrecisionChoice,
    PresetName,
    Refinement,
    RunnerChoice,
    StageNumber,
    Stages,
    StartFrom,
    modality_named,
)
from medals_rt.common.errors import InputError
from medals_rt.common.limits import MAX_MESH_REDUCTION, MAX_VOXELS
from medals_rt.common.notes import Note

if TYPE_CHECKING:
    from medals_rt.pipeline.options import PromptSource, RunOptions
    from medals_rt.pipeline.output_grid import GridRequest

HEADINGS: Final = {
    "Prompts": (
        *("prompts", "prompt", "lesion", "group", "everything", "kind", "modality", "free_text"),
    ),
    "Case in numbers": ("shape", "spacing", "classes", "stage"),
    "DICOM series": ("series", "select"),
    "Drawings": ("spatial_prompts", "corrects", "resample"),
    "Outputs": (
        *("output", "output_format", "report", "reports", "preview", "statistics", "instances"),
        *("sr", "split", "probabilities", "mesh_reduction", "crop", "output_spacing", "store"),
    ),
    "Sharing the work": ("part", "processes", "gpus", "ray"),
    "Limits of the server": (
        *("max_queue", "max_sessions", "max_upload", "max_disk", "min_free", "read_memory"),
        *("cache_memory", "grace", "idle"),
    ),
    "Model and machine": (
        *("bundle", "runner", "precision", "threads", "convolution"),
        *("time_budget", "max_memory", "max_voxels"),
    ),
    "Algorithm": (
        *("preset", "refinement", "window", "postprocess", "stages", "start_from", "iterations"),
        *("repetitions", "block_sizes", "lesion_iterations", "threshold", "overlap", "mirror"),
        "seed",
    ),
}
"""Under which heading commands that segment list an option: they have dozens. Others list theirs
as they come."""

Command: TypeAlias = Callable[..., int | None]
"""What a command is: a function of its options that returns an exit code, None for 0."""


def modality_option(words: str) -> Any:
    """Return the option of a modality, in any case or by DICOM's name, with its help."""
    return typer.Option(
        "--modality",
        parser=_modality,
        metavar=f"[{'|'.join(MODALITIES)}]",
        autocompletion=complete_modality,
        help=words,
    )


def _modality(name: str) -> Modality:
    try:
        return modality_named(name)
    except InputError as error:  # which click would take for a ValueError without words
        raise typer.BadParameter(str(error)) from error


Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Folder of the exported model, or its address on a hub, hf:OWNER/NAME@COMMIT "
        "[default: $MEDALS_RT_BUNDLE, else the demo model].",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help='JSON file of prompts: {"1": "Liver in abdominal CT", "instance_label": 0}.',
    ),
]
Sentences = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="SENTENCE",
        autocompletion=complete_sentence,
        help="What to segment, such as 'Liver in abdominal CT'; repeat it for more classes. "
        "Labels are 1, 2, ... in this order. Classes compete for voxels: more of them change the "
        "others a little.",
    ),
]
Lesions = Annotated[
    list[str] | None,
    typer.Option(
        "--lesion",
        metavar="SENTENCE",
        autocompletion=complete_sentence,
        help="Lesions to segment beside the organs of --prompt or --prompts, in a second pass, "
        "such as 'Liver tumors in abdominal CT'. They replace the organ below them; their labels "
        "follow those of the organs.",
    ),
]
Series = Annotated[
    str | None,
    typer.Option(
        "--series",
        metavar="NUMBER|UID",
        help="Which series of a DICOM folder: its number or its UID.",
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        metavar="KEY=VALUE",
        help="Which images of the series, such as ECHO=2 or ACQUISITION=1.",
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME",
        autocompletion=complete_group,
        help="All classes of a group that the model has, such as 'abdominal organs'; repeat it for "
        "more. `medals-rt prompts --groups` lists them.",
    ),
]
Everything = Annotated[
    bool,
    typer.Option(
        "--all",
        help="All classes of --kind that the model has for the modality, after those of --prompt. "
        "Each voxel gets one label, so classes that overlap in the body share it.",
    ),
]
PresetOption = Annotated[
    PresetName,
    typer.Option(
        "--preset",
        help="The algorithms of the paper, the rules of the code released for the challenge, or "
        "those of the authors' script for raw scans (native).",
    ),
]
RefinementOption = Annotated[
    Refinement,
    typer.Option(
        "--refinement",
        help="How the fine stage uses the coarse result as spatial prompts.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads of the inference library."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="SECONDS",
        min=0.1,
        help="Seconds per class that a case may take. If they don't suffice, less is computed, "
        "and what was left out is reported.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory", metavar="SIZE", help="Memory that a case may take, such as 6GB or 512MiB."
    ),
]
Crop = Annotated[
    float | None,
    typer.Option(
        "--crop",
        metavar="MM",
        min=0,
        help="Write only the box of what was found and so many mm around it; geometry stays right.",
    ),
]
OutputSpacing = Annotated[
    str | None,
    typer.Option(
        "--output-spacing",
        metavar="MM|H,W,D",
        help="Write labels on a grid of another spacing than the scan's, such as 1 or 0.8,0.8,2.",
    ),
]
MeshReduction = Annotated[
    float,
    typer.Option(
        "--mesh-reduction",
        metavar="SHARE",
        min=0,
        max=MAX_MESH_REDUCTION,
        help="Leave out this share of the faces of surfaces (.glb, .stl), such as 0.9.",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="ADDRESS",
        help="Also store the result on a DICOMweb server, dicomweb+https://HOST/dicom-web; "
        "credentials are read from the environment.",
    ),
]


def prompt_source(
    *,
    prompts: PromptsFile = None,
    prompt: Sentences = None,
    lesion: Lesions = None,
    group: Groups = None,
    everything: Everything = False,
    kind: Annotated[
        Kind, typer.Option(help="What the sentences ask for: one region, or separate lesions.")
    ] = "anatomy",
) -> "PromptSource":
    """Make the source of prompts from its flags."""
    from medals_rt.pipeline.options import PromptSource

    return PromptSource(
        prompts, tuple(prompt or ()), kind, tuple(lesion or ()), tuple(group or ()), everything
    )


def run_options(
    *,
    bundle: Bundle = None,
    runner: Annotated[
        RunnerChoice,
        typer.Option(help="Inference library; auto takes the fastest that this machine can run."),
    ] = "auto",
    precision: Annotated[
        PrecisionChoice,
        typer.Option(help="Arithmetic of the network; auto takes the fastest of this processor."),
    ] = "auto",
    threads: Threads = None,
    convolution: Annotated[
        ConvolutionChoice,
        typer.Option(
            help="How OpenVINO's convolutions of large windows are computed. direct: by OpenVINO. "
            "winograd: with fewer multiplications. auto: by what was measured to be faster on such "
            "a processor (bench --convolution measures this one).",
        ),
    ] = "auto",
    preset: PresetOption = "paper",
    refinement: RefinementOption = "masked",
    window: Annotated[
        str,
        typer.Option(
            metavar="auto|NAME|WIDTH,LEVEL",
            autocompletion=complete_window,
            help="Intensity window of an image that isn't in 0 to 255 already. auto: the one each "
            "class needs; a CT whose classes need several is run once for each. NAME: a window of "
            "Hounsfield units, such as lung. WIDTH,LEVEL: such as 400,40, for any image.",
        ),
    ] = "auto",
    postprocess: Annotated[
        Postprocess,
        typer.Option(
            help="Which organs small components are removed from. auto: those that are one object "
            "by the preset's rule. all: every one. off: none.",
        ),
    ] = "auto",
    stages: Annotated[
        Stages | None,
        typer.Option(
            help="The coarse or the fine stage alone, on the whole image, or the fine one inside "
            "what the coarse one found [default: both; native: fine].",
        ),
    ] = None,
    start_from: Annotated[
        StartFrom | None,
        typer.Option(
            help="What masked refinement starts from: the coarse labels, or one more pass from the "
            "text alone, as Algorithm 2 is printed [default: coarse].",
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="Iterations of masked refinement [default: 1].",
        ),
    ] = None,
    repetitions: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="Masked pairs of passes that each iteration averages [default: 1].",
        ),
    ] = None,
    block_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="B,...",
            help="Edges in voxels of the masks' blocks, one of which each pair draws, such as 4,8 "
            "[default: the preset's].",
        ),
    ] = None,
    lesion_iterations: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Iterations that lesions get afterwards [default: 1; native: 0].",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Least probability of a class that is no background [default: 0.5].",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of a window that it has in common with the next [default: 0.5].",
        ),
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror",
            help="Average each pass over the image mirrored along all axes: eight times the work "
            "[default: no].",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Seed of the random block masks.",
        ),
    ] = 0,
    modality: Annotated[
        Modality | None,
        modality_option("Modality of the image, for sentences that don't name it."),
    ] = None,
    free_text: Annotated[
        bool,
        typer.Option(
            "--free-text",
            help="Accept sentences that name no known class; needs a bundle with a text encoder.",
        ),
    ] = False,
    time_budget: TimeBudget = None,
    max_memory: MaxMemory = None,
    max_voxels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Refuse images with more voxels than this.")
    ] = MAX_VOXELS,
) -> "RunOptions":
    """Make the options of a run from their flags."""
    from medals_rt.pipeline.options import RunOptions, SegmentOptions
    from medals_rt.prompts.prompt_set import PromptReading

    return RunOptions(
        bundle=bundle,
        runner=runner,
        precision=precision,
        threads=threads,
        convolution=convolution,
        segment=SegmentOptions(
            preset=preset,
            refinement=refinement,
            window=window,
            postprocess=postprocess,
            seed=seed,
            stages=stages,
            start_from=start_from,
            iterations=iterations,
            repetitions=repetitions,
            block_sizes=None if block_sizes is None else _whole_numbers(block_sizes),
            lesion_iterations=lesion_iterations,
            threshold=threshold,
            overlap=overlap,
            mirrored=mirror,
            time_budget=time_budget,
            max_memory=None if max_memory is None else parse_size(max_memory),
        ),
        reading=PromptReading(modality, free_text),
        max_voxels=max_voxels,
    )


def grid_request(*, crop: Crop = None, output_spacing: OutputSpacing = None) -> "GridRequest":
    """Make the grid of results from its flags."""
    from medals_rt.pipeline.output_grid import GridRequest, read_spacing

    return GridRequest(None if output_spacing is None else read_spacing(output_spacing), crop)


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"block sizes are whole numbers separated by commas, such as 4,8, not {text!r}",
            code="block-sizes-not-whole",
        ) from None


def common_flags(
    *,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only warnings and errors (and JSON).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", help="Log what is done and how long it takes [default: $MEDALS_RT_LOG]."
        ),
    ] = False,
    json_progress: Annotated[
        bool,
        typer.Option(
            "--json-progress",
            help="Print JSON lines on standard error, for programs: progress, notes, errors.",
        ),
    ] = False,
) -> None:
    """Set up the output of the command that runs."""
    out.start(quiet=quiet, debug=debug, verbose=verbose, json_progress=json_progress)
    file = configuration_file()
    if file is not None:
        text = f"options that aren't given are those of {file}"
        out.note(Note("options-from-file", text))


def with_common_flags(command: Command) -> Command:
    """Add the flags that every command has, and act on them before the command runs."""
    flags = inspect.signature(common_flags).parameters

    @functools.wraps(command)
    def run(**given: Any) -> int | None:
        common_flags(**{flag: given.pop(flag) for flag in flags})
        return command(**given)

    _set_parameters(run, [*inspect.signature(command).parameters.values(), *flags.values()])
    return run


def stage_asked(number: int | None) -> StageNumber | None:
    """Return the stage of an option whose limits are those of `STAGE_NAMES`."""
    return next((each for each in STAGE_NAMES if each == number), None)


def takes(**makers: Callable[..., Any]) -> Callable[[Command], Command]:
    """Replace parameters of a command by the flags of the functions that make them.

    Parameters
    ----------
    makers
        Name of a parameter of the command, and the function that makes its value.
    """
    flags = {name: inspect.signature(maker).parameters for name, maker in makers.items()}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**given: Any) -> int | None:
            for name, maker in makers.items():
                given[name] = maker(**{flag: given.pop(flag) for flag in flags[name]})
            return command(**given)

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            parameters += flags.get(parameter.name, {parameter.name: parameter}).values()
        _set_parameters(run, parameters)
        return run

    return decorate


def _set_parameters(command: Command, parameters: list[inspect.Parameter]) -> None:
    """Let typer see these parameters instead of those that a function was written with."""
    signature = inspect.signature(command).replace(parameters=parameters)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
