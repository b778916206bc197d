"""What a job writes: the names of its files, and what is refused before the network runs."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from os.path import realpath
from pathlib import Path
from typing import Final

from medals_rt.common.atomic_io import check_writable
from medals_rt.common.choices import SAME_FORMAT
from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import require
from medals_rt.io.case import Case
from medals_rt.io.dicom.web import check_store
from medals_rt.io.registry import (
    FORMATS,
    OUTPUT_ENDINGS,
    case_stem,
    check_output,
    check_own_grid,
    files_of_case,
    files_of_output,
    format_of_output,
    is_dicom,
    is_read_from,
)
from medals_rt.pipeline.class_files import (
    check_class_files,
    class_files,
    split_ending,
)
from medals_rt.pipeline.job_request import Job, fields_by_role
from medals_rt.prompts.prompt_set import PromptSet

SEGMENTATIONS: Final = tuple(each.name for each in FORMATS if each.is_dicom_seg)
"""Formats of outputs that a DICOM report can refer to."""

MAP_ENDING: Final = ".nii.gz"
"""Of probability maps: a format with a scale, by which bytes are read as 0 to 1."""

_OF_OTHER_PROGRAMS = frozenset(
    {
        ".xlsx",
        ".xls",
        ".ods",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".gif",
        ".bmp",
        ".webp",
        ".svg",
        ".pdf",
    }
)
"""Endings by which programs take a picture or a table for what it isn't."""


def check_outputs(job: Job) -> None:
    """Refuse outputs that can't be written or would overwrite what the job reads.

    Raises
    ------
    InputError, ServerError
    """
    _check_names(job)
    _check_folders(job)
    for path in all_outputs(job):
        check_writable(path)
    check_output(job.output, format=job.format)
    check_mesh(job)
    check_labels_are_dicom(job)
    if job.store is not None:
        check_store(job.store)
    if job.instances is not None:
        check_output(job.instances)
    if job.probabilities is not None:
        require("a probability map", "NiBabel")
    check_grid(job)


def check_grid(job: Job) -> None:
    """Refuse another grid than the scan's of formats that have no other.

    Raises
    ------
    InputError
    """
    if job.grid.is_scans:
        return
    check_own_grid(job.output, job.format)
    if job.instances is not None:
        check_own_grid(job.instances)


def all_inputs(job: Job) -> list[Path]:
    """Name what a job reads: files of its scan and labels, or their folder, and of its prompts.

    Of what lies in a folder, results are no inputs; `is_read_from` tells which is which.
    """
    prompts = () if job.source.file is None else (job.source.file,)
    given = job.input_files().values()
    files = all_files_of(files_of_case, (path for path in given if not path.is_dir()))
    return [*(path for path in given if path.is_dir()), *files, *prompts]


def all_files_of(
    files_of: Callable[[Path], tuple[Path, ...]], paths: Iterable[Path]
) -> Iterator[Path]:
    """Go through the files that each path stands for, by `files_of_case` or `files_of_output`."""
    return chain.from_iterable(map(files_of, paths))


def all_outputs(job: Job) -> list[Path]:
    """Name what a job writes; of each folder of files one that stands for all."""
    outputs = list(all_files_of(files_of_output, job.output_files().values()))
    if job.split is not None:
        outputs.append(job.split / f"class{split_ending(job.output)}")
    if job.probabilities is not None:
        outputs.append(job.probabilities / f"class{MAP_ENDING}")
    return outputs


def _check_names(job: Job) -> None:
    """Refuse names that are taken, or that say another format than the file has.

    Raises
    ------
    InputError
    """
    read = _resolved(all_inputs(job))
    outputs = list(all_files_of(files_of_output, job.output_files().values()))
    for path in outputs:
        if Path(realpath(path)) in read or is_read_from(job.input, path):
            raise InputError(
                f"{path} would overwrite an input; choose another name", code="input-overwritten"
            )
    if len(_resolved(outputs)) < len(outputs):
        raise InputError(
            "output, report, preview, statistics, instances and sr need different names",
            code="outputs-alike",
        )
    for named, ending in ((job.preview, ".png"), (job.statistics, ".csv")):
        if named is not None and named.suffix.lower() in _OF_OTHER_PROGRAMS:
            raise InputError(
                f"{named.name} would hold {ending[1:].upper()}; end its name in {ending}",
                code="ending-of-another-format",
            )
    if not job.output.name.lower().endswith(OUTPUT_ENDINGS):
        raise InputError(
            f"don't know how to write {job.output.name}; end it in {', '.join(OUTPUT_ENDINGS)}",
            code="format-unknown",
        )


def _check_folders(job: Job) -> None:
    """Refuse a file where a folder is wanted.

    Raises
    ------
    InputError
    """
    files = _resolved(job.output_files().values())
    for role, folder in job.output_folders().items():
        if Path(realpath(folder)) in files or (folder.exists() and not folder.is_dir()):
            raise InputError(
                f"--{fields_by_role()[role]} writes a file for each class into a folder, and "
                f"{folder} is a file; name a folder",
                code="folder-is-a-file",
            )


def check_prompted_outputs(job: Job, case: Case, prompts: PromptSet) -> tuple[Note, ...]:
    """Refuse outputs that this case and its prompts can't have; return what can't be kept in them.

    Raises
    ------
    InputError
    """
    _check_instances(job, prompts)
    unkept = check_output(job.output, case, prompts=prompts, format=job.format)
    job.grid.check_size(case.volume, job.options.max_voxels)
    split, maps = files_of_classes(job, prompts), files_of_maps(job, prompts)
    written = partial(all_files_of, files_of_output)
    taken = _resolved(all_inputs(job), written(job.output_files().values()))
    others = check_class_files(split, taken)
    others += check_class_files(maps, taken | _resolved(written(split.values())))
    return (*unkept, *others, *job.grid.notes())


def files_of_classes(job: Job, prompts: PromptSet) -> dict[int, Path]:
    """Name the file of each label, if the job asks for them."""
    if job.split is None:
        return {}
    return class_files(job.split, prompts, split_ending(job.output))


def files_of_maps(job: Job, prompts: PromptSet) -> dict[int, Path]:
    """Name the probability map of each label, if the job asks for them."""
    if job.probabilities is None:
        return {}
    return class_files(job.probabilities, prompts, MAP_ENDING)


def default_output(path: Path) -> Path:
    """Name the result of a case: NAME_seg in the current folder, in the format of the case.

    Raises
    ------
    InputError
        There is such a file, which may be another case's of the same name.
    """
    output = Path(f"{case_stem(path)}_seg{own_ending(path)}")
    if output.exists():
        raise InputError(
            f"{output} is there already, and may be of another case: name the result, such as "
            f"--output {output} to write over it",
            code="output-exists",
        )
    return output


def ending_of(words: str) -> str | None:
    """Return the ending of results that a format's words mean; None: that of each case.

    Raises
    ------
    InputError
        There is no such format.
    """
    ending = f".{words}"
    if words != SAME_FORMAT and not ending.endswith(OUTPUT_ENDINGS):
        raise InputError(
            f"there is no format {words!r}; use {SAME_FORMAT} or one of "
            f"{', '.join(each.removeprefix('.') for each in OUTPUT_ENDINGS)}",
            code="format-unknown",
        )
    return None if words == SAME_FORMAT else ending


def own_ending(path: Path) -> str:
    """Return the ending of the format in which a case's result goes back to where it came from."""
    if is_dicom(path):
        return ".dcm"
    found = (each.ending_of(path.name) for each in FORMATS if each.write is not None)
    return max((ending for ending in found if ending), key=len, default=".npz")


def _resolved(*paths: Iterable[Path]) -> set[Path]:
    # not Path.resolve, which fails where a link leads to itself
    return {Path(realpath(path)) for part in paths for path in part}


def check_mesh(job: Job) -> None:
    """Refuse to leave out faces of an output that has none.

    Raises
    ------
    InputError, MissingDependencyError
    """
    if not job.mesh_reduction:
        return
    if not format_of_output(job.output, job.format).has_faces:
        raise InputError(
            f"{job.output.name} holds voxels, which have no faces to leave out; make it .glb or "
            ".stl, or leave out the mesh reduction",
            code="no-mesh-to-reduce",
        )
    require("--mesh-reduction", "fast-simplification")


def check_labels_are_dicom(job: Job, remedy: str = "end --output in .dcm") -> None:
    """Refuse a report about no DICOM SEG, and to store what no DICOM server takes.

    Parameters
    ----------
    job
        What to do.
    remedy
        What the user can do about it.

    Raises
    ------
    InputError
    """
    if job.sr is not None and not format_of_output(job.output, job.format).is_dicom_seg:
        raise InputError(
            f"{job.sr.name} would refer to a DICOM SEG, and {job.output.name} is none; {remedy}",
            code="report-without-seg",
        )
    if job.store is not None and not job.output.name.lower().endswith(".dcm"):
        raise InputError(
            f"{job.output.name} is no DICOM file, and a DICOMweb server stores nothing else; "
            f"{remedy}",
            code="store-not-dicom",
        )


def _check_instances(job: Job, prompts: PromptSet) -> None:
    """Refuse to write numbered lesions where there will be none.

    Raises
    ------
    InputError
    """
    if job.instances is None:
        return
    preset = job.options.segment.algorithm
    if not any(key.kind == "lesion" for key in prompts.class_keys):
        why = "the prompts ask for anatomy; ask for lesions (--kind lesion)"
    elif preset.lesions != "labels and instances":
        why = f"the preset {preset.name} doesn't number them; take another"
    else:
        return
    raise InputError(
        f"there will be no numbered lesions for {job.instances}: {why}", code="no-instances"
    )
