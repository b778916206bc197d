"""A file for each class, as TotalSegmentator writes them: `left_kidney.nii.gz`, 1 where it is."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from os.path import realpath
from pathlib import Path
from typing import Final

import numpy as np

from medals_rt.common.errors import InputError
from medals_rt.common.notes import Note, warning
from medals_rt.common.typing import HostArray
from medals_rt.io.case import Case
from medals_rt.io.registry import FORMATS, files_of_output, write_segmentation
from medals_rt.prompts.prompt_set import Prompt, PromptSet

_DICOM: Final = ".dcm"
_LONGEST_NAME: Final = 100
_NOT_OF_NAMES: Final = re.compile(r"[^a-z0-9]+")
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])?")
"""Names that Windows keeps for devices, whatever follows them; and none."""


def class_files(folder: Path, prompts: PromptSet, ending: str) -> dict[int, Path]:
    """Name the file of each label: its class in lower case, words joined by `_`.

    No name leaves the folder, whatever a prompt says: only the letters a to z and digits remain.
    Where two classes would share a name, or none remains, the label is part of it.

    Parameters
    ----------
    folder
        Where they lie.
    prompts
        Labels and their classes.
    ending
        Of the files, such as ``".nii.gz"``.
    """
    words = {each.label: _file_words(each) for each in prompts.prompts}
    counts = Counter(words.values())
    names = {
        label: name if counts[name] == 1 and not _DEVICES.fullmatch(name) else f"{name}_{label}"
        for label, name in words.items()
    }
    if len(set(names.values())) < len(names):  # a class that is called as another with its label
        names = {label: f"{name}_{label}" for label, name in words.items()}
    return {label: folder / f"{name.lstrip('_')}{ending}" for label, name in names.items()}


def split_ending(output: Path) -> str:
    """Return the ending of the files of classes: that of the label map.

    Raises
    ------
    InputError
        The label map is a DICOM object, which names its classes itself (code ``"split-format"``).
    """
    endings = (each.ending_of(output.name) for each in FORMATS if each.write is not None)
    ending = max((each for each in endings if each), key=len, default="")
    if not ending or ending.endswith(_DICOM):
        raise InputError(
            f"{output.name} holds a segment for each class already; for a file for each give "
            "the output another format (.nii.gz; in a batch --format nii.gz)",
            code="split-format",
        )
    return ending


def check_class_files(files: Mapping[int, Path], taken: Collection[Path]) -> tuple[Note, ...]:
    """Refuse files of classes that would overwrite others; note what else lies in their folder.

    Parameters
    ----------
    files
        From `class_files`.
    taken
        Resolved paths of what is read and written beside them.

    Raises
    ------
    InputError
        Code ``"class-file-taken"``.
    """
    written = [path for named in files.values() for path in files_of_output(named)]
    for path in written:
        if Path(realpath(path)) in taken:
            raise InputError(
                f"the file of a class, {path}, is also an input or another output; choose another "
                "folder",
                code="class-file-taken",
            )
    if not files:
        return ()
    own = {path.name for path in written}
    folder = next(iter(files.values())).parent
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name not in own and not path.name.startswith(".")
    )
    if not others:
        return ()
    text = f"{folder} also holds files that are not of this result: {', '.join(others[:10])}"
    return (warning("split-folder-not-empty", text + (" ..." if len(others) > 10 else "")),)


def write_class_files(
    files: Mapping[int, Path],
    case: Case,
    labels_dhw: HostArray,
    prompts: PromptSet,
    *,
    model: str | None = None,
    notice: str | None = None,
    mesh_reduction: float = 0.0,
) -> None:
    """Write each class as a label map of its own, 1 where it is; also one that was not found.

    Each file appears whole or not at all.

    Parameters
    ----------
    files
        File of each label, from `class_files`; none where no such files are asked for.
    case, labels_dhw, model, notice, mesh_reduction
        As for `registry.write_segmentation`.
    prompts
        Of `labels_dhw`.

    Raises
    ------
    OutputError
        A file can't be written, as when the disk is full.
    """
    for each in prompts.prompts if files else ():
        write_segmentation(
            files[each.label],
            case,
            (labels_dhw == each.label).astype(np.uint8),
            prompts=PromptSet((Prompt(1, each.text, each.class_key, each.matched),)),
            model=model,
            notice=notice,
            mesh_reduction=mesh_reduction,
        )


def _file_words(prompt: Prompt) -> str:
    plain = unicodedata.normalize("NFKD", prompt.class_key.name.casefold())
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return _NOT_OF_NAMES.sub("_", letters)[:_LONGEST_NAME].strip("_")
