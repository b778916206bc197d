"""One case from files to files: read, segment, write. The command `medals-rt run` is this."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medals_rt.bundle import resolve_bundle
from medals_rt.cases import ENDINGS, Case, read_case, read_labels, write_segmentation
from medals_rt.errors import CaseError, InputError, PromptError
from medals_rt.files import prepare_output, write_json
from medals_rt.intensities import prepare_intensities
from medals_rt.policy import load_policy
from medals_rt.preview import Orientation, require_matplotlib, save_preview
from medals_rt.prompts import PromptSet, numbered, parse_prompts, read_prompts
from medals_rt.report import Stopwatch
from medals_rt.volume import Volume

if TYPE_CHECKING:
    from medals_rt.segmenter import Result

_SPACING_TOLERANCE = 1e-3

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """What is to be done with one case.

    Attributes
    ----------
    input
        The case's file.
    output
        Where the labels go; the ending decides the format.
    prompts_file, sentences, kind
        What to segment: a prompts.json, or sentences of a kind ("anatomy" or "lesion"), numbered in
        order; with neither, the prompts inside the case.
    report, preview
        Where the report (JSON) and the picture (PNG) go, if at all.
    bundle
        The model; None is as `bundle.resolve_bundle` has it.
    spatial_prompts
        A file of labels drawn by the user (hybrid mode).
    """

    input: Path
    output: Path
    prompts_file: Path | None = None
    sentences: tuple[str, ...] = ()
    kind: str = "anatomy"
    report: Path | None = None
    preview: Path | None = None
    bundle: Path | None = None
    spatial_prompts: Path | None = None
    runner: str = "auto"
    precision: str | None = None
    threads: int | None = None
    preset: str = "paper"
    refinement: str = "masked"
    seed: int = 0
    window: str = "auto"


def run_job(job: Job, progress: Progress | None = None) -> "Result":
    """Segment one case and write what the job asks for, each file whole or not at all.

    All that can be wrong with the request is found before the model is opened.

    Parameters
    ----------
    job : what to do
    progress : called with a stage's name, the windows done and the windows in all

    Raises
    ------
    InputError : a file, prompt or option is unusable
    MedalsError : the work itself failed
    """
    from medals_rt.segmenter import load

    check_outputs(job)
    watch = Stopwatch()
    with watch.step("read"):
        case = read_case(job.input)
        prompts = choose_prompts(case, job.prompts_file, job.sentences, job.kind)
        annotation = None
        if job.spatial_prompts is not None:
            annotation = read_annotation(job.spatial_prompts, case.volume)
    if job.preview is not None:
        require_matplotlib()
    with watch.step("open models"):
        opened = load(
            resolve_bundle(job.bundle),
            runner=job.runner,
            precision=job.precision,
            threads=job.threads,
        )
    with opened as segmenter:
        result = segmenter.segment(
            case.volume,
            prompts,
            preset=job.preset,
            seed=job.seed,
            refinement=job.refinement,
            window=job.window,
            spatial_prompts=annotation,
            progress=progress,
        )
    result = replace(result, report=result.report.with_steps_before(watch.seconds))
    write_segmentation(
        job.output,
        case,
        result.labels_dhw,
        instances_dhw=result.instances_dhw,
        prompts=prompts.as_mapping(),
    )
    if job.report is not None:
        write_json(job.report, result.report.to_dict())
    if job.preview is not None:
        draw_preview(job.preview, case.volume, result.labels_dhw, prompts, job.window)
    return result


def default_output(path: Path) -> Path:
    """Name the result of a case: NAME_seg in the current folder, in the format of the case."""
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), ".npz")
    return Path(f"{path.name.removesuffix(ending)}_seg{ending}")


def check_outputs(job: Job) -> None:
    """Refuse outputs that can't be written or would overwrite what the job reads.

    Raises
    ------
    InputError
    """
    outputs = [path for path in (job.output, job.report, job.preview) if path is not None]
    inputs = (job.input, job.prompts_file, job.spatial_prompts)
    read = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        if path.resolve() in read:
            raise InputError(f"{path} would overwrite an input; give another name")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError("output, report and preview need different names")
    if not job.output.name.endswith(ENDINGS):
        raise InputError(
            f"don't know how to write {job.output.name}; end it in {', '.join(ENDINGS)}"
        )
    for path in outputs:
        prepare_output(path)


def read_annotation(path: Path, volume: Volume) -> Any:
    """Read labels `(D, H, W)` that were drawn on the grid of `volume`.

    Raises
    ------
    CaseError : the file is broken, or its shape or spacing is another one
    """
    drawn = read_labels(path)
    spacing = drawn.spacing_hwd_mm or volume.spacing_hwd_mm
    same = all(
        abs(a / b - 1) < _SPACING_TOLERANCE
        for a, b in zip(spacing, volume.spacing_hwd_mm, strict=True)
    )
    if drawn.labels_dhw.shape != volume.shape_dhw or not same:
        raise CaseError(
            f"{path} is on another grid: shape {drawn.labels_dhw.shape} (D, H, W) and spacing "
            f"{spacing} mm (H, W, D), the case has {volume.shape_dhw} and {volume.spacing_hwd_mm}; "
            "resample the annotation to the case"
        )
    return drawn.labels_dhw


def choose_prompts(
    case: Case, prompts_file: Path | None, sentences: tuple[str, ...], kind: str
) -> PromptSet:
    """Take the prompts from a file, from sentences, or from inside the case.

    Raises
    ------
    PromptError : there are none, both a file and sentences, or one of them names no class
    """
    if prompts_file is not None and sentences:
        raise PromptError("give either a prompts file or sentences, not both")
    if prompts_file is not None:
        return read_prompts(prompts_file)
    if sentences:
        return numbered(sentences, kind)
    if case.prompts is None:
        raise PromptError(
            f"{case.path} holds no text_prompts: give --prompts FILE "
            'or --prompt "Liver in abdominal CT"'
        )
    return parse_prompts(case.prompts)


def draw_preview(
    path: Path, volume: Volume, labels_dhw: Any, prompts: PromptSet, window: str = "auto"
) -> None:
    """Draw a result on its image, in the intensities that the model saw."""
    if window == "auto":
        window = load_policy().intensity_window(prompts.class_keys)
    shown = prepare_intensities(volume, prompts.modality, window)
    orientation: Orientation = "known"
    if prompts.modality == "Microscopy":
        orientation = "none"
    elif volume.source.affine_lps is None:
        orientation = "assumed"
    names = {prompt.label: prompt.class_key.name for prompt in prompts.prompts}
    save_preview(
        path,
        shown.image_dhw,
        labels_dhw,
        volume.spacing_dhw_mm,
        names,
        title=volume.name,
        orientation=orientation,
    )
