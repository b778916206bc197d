"""The files of a release in a folder: told apart by their names, else by what is in them.

Nothing is unpickled: of a `.pth` only the list of pickle's own instructions is read, in which the
names of the weights stand as text, and of a `.safetensors` its header.
"""

import dataclasses
import json
import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from medals_rt.bundle.manifest import path_inside
from medals_rt.common.errors import InputError
from medals_rt.common.typing import Shape, Spacing

TEXT_ENCODER_FILE: Final = "text_encoder.pth"
SPACING_ENTRY: Final = "spacing_hwd_mm"
"""Where checkpoints that this project trained say what spacing they were trained for."""

_ENDINGS: Final = (".pth", ".safetensors")
_NAME: Final = re.compile(
    r"crop_size_(?P<window>\d+_\d+_\d+)_spacing_(?P<spacing>{0}_{0}_{0})"
    r"(?:_|\.pth|\.safetensors|$)".format(r"(?:\d+\.?\d*|\.\d+)")
)
_LICENSE_FILE: Final = re.compile(r"(licen[cs]e|copying|notice)\b.*", re.IGNORECASE)
_CARD: Final = re.compile(r"\A---\s*\n(?P<facts>.*?)\n---", re.DOTALL)
_CARD_LICENSE: Final = re.compile(r"^license:\s*['\"]?(?P<name>[\w.+ -]+)", re.MULTILINE)
_NETWORK_KEY: Final = "backbone.encoder.stages.0.0."
_TEXT_ENCODER_KEY: Final = "modality_embed.weight"
_MOST_HEADER_BYTES: Final = 64 * 2**20

Kind = Literal["network", "text encoder", "other"]


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint of one stage, and what is known of it that neither name nor content may say.

    Attributes
    ----------
    path
        The file.
    window_hwd, spacing_hwd_mm
        What it was trained for; None: as its name or content says.
    heads
        Attention heads of its query decoder; None: as its content says, else as in the released
        networks.
    origin
        Address on a hub, pinned to a commit, where it came from; None for a local file.
    """

    path: Path
    window_hwd: Shape | None = None
    spacing_hwd_mm: Spacing | None = None
    heads: int | None = None
    origin: str | None = None


@dataclass(frozen=True)
class Terms:
    """Under which terms files were published.

    Attributes
    ----------
    source
        Address or folder of the files.
    license
        Its name as the publisher states it; None where that isn't known.
    texts
        Files with its text, and notices that must go with copies.
    """

    source: str
    license: str | None = None
    texts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ReleasedFiles:
    """The files of a release; None for what it has not."""

    coarse: CheckpointFile
    fine: CheckpointFile
    text_encoder: Path | None = None
    biolord: Path | None = None


@dataclass(frozen=True)
class Content:
    """What a file of weights holds, as far as the names in it tell."""

    kind: Kind
    spacing_hwd_mm: Spacing | None = None


def parse_released_name(name: str) -> tuple[Shape | None, Spacing | None]:
    """Return window and spacing from a file name in the released manner; None where it is not.

    Such a name has ``crop_size_H_W_D_spacing_a_b_c`` in it.
    """
    match = _NAME.search(name)
    if match is None:
        return None, None
    h, w, d = (int(part) for part in match["window"].split("_"))
    a, b, c = (float(part) for part in match["spacing"].split("_"))
    return (h, w, d), (a, b, c)


def read_content(path: Path) -> Content:
    """Tell what a `.pth` or `.safetensors` holds, without loading it; `"other"` if unsure."""
    names, spacing = (_of_safetensors if path.suffix == ".safetensors" else _of_pickle)(path)
    found: set[Kind] = set()
    for name in names:
        if _NETWORK_KEY in name:
            found.add("network")
        elif name.endswith(_TEXT_ENCODER_KEY):
            found.add("text encoder")
    return Content(found.pop() if len(found) == 1 else "other", spacing)


def find_released(
    folder: Path, stage1: CheckpointFile | None = None, stage2: CheckpointFile | None = None
) -> ReleasedFiles:
    """Find the files of a release, wherever in a folder: the coarse stage has the larger voxels.

    Parameters
    ----------
    folder
        Where they lie.
    stage1, stage2
        Checkpoints that are named, by their paths inside the folder, both or none: for files whose
        stage neither name nor content says.

    Raises
    ------
    InputError
        If there are not two networks of different spacing (code ``"checkpoints-not-found"``), or
        several text encoders or BioLORDs (``"text-encoder-ambiguous"``, ``"biolord-ambiguous"``).
    """
    weights = sorted(path for ending in _ENDINGS for path in folder.rglob(f"*{ending}"))
    spacings = {path: parse_released_name(path.name)[1] for path in weights}
    contents = {path: read_content(path) for path in weights if spacings[path] is None}
    encoders = [path for path in weights if path.name == TEXT_ENCODER_FILE] or [
        path for path, content in contents.items() if content.kind == "text encoder"
    ]
    biolords = [
        path.parent
        for path in sorted(folder.rglob("config.json"))
        if any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    ]
    if stage1 is not None and stage2 is not None:
        coarse, fine = (_inside(folder, each) for each in (stage1, stage2))
    else:
        networks = {path: spacing for path, spacing in spacings.items() if spacing is not None} | {
            path: content.spacing_hwd_mm
            for path, content in contents.items()
            if content.kind == "network" and path not in encoders
        }
        fine, coarse = map(CheckpointFile, _by_spacing(folder, networks))
    return ReleasedFiles(
        coarse,
        fine,
        _only(folder, encoders, "text encoders", "text-encoder"),
        _only(folder, biolords, "folders of BioLORD", "biolord"),
    )


def terms_of(folder: Path, source: str, license_name: str | None = None) -> Terms:
    """Find the license of published files: its text at the top of their folder, its name.

    Parameters
    ----------
    folder
        The folder that stands for the repository.
    source
        What to call it.
    license_name
        Its name where the readme's heading doesn't state one.
    """
    texts = tuple(
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and _LICENSE_FILE.fullmatch(path.name)
    )
    readme = folder / "README.md"
    card = None
    if readme.is_file():
        card = _CARD.search(readme.read_text(encoding="utf-8", errors="replace"))
    stated = None if card is None else _CARD_LICENSE.search(card["facts"])
    return Terms(source, license_name if stated is None else stated["name"].strip(), texts)


def _by_spacing(folder: Path, networks: dict[Path, Spacing | None]) -> tuple[Path, Path]:
    """Return the checkpoints of the fine and of the coarse stage."""
    volumes = {
        path: math.prod(spacing) for path, spacing in networks.items() if spacing is not None
    }
    if len(volumes) == len(networks) == 2 and len(set(volumes.values())) == 2:
        fine, coarse = sorted(volumes, key=volumes.__getitem__)
        return fine, coarse
    found = "; ".join(
        f"{path.relative_to(folder)} ({_stated(spacing)})" for path, spacing in networks.items()
    )
    raise InputError(
        f"{folder} must hold two networks (.pth, .safetensors) of different spacing, stated in "
        f"their names (crop_size_H_W_D_spacing_a_b_c) or in them; found: {found or 'none'}; say "
        "which is which by --stage1 FILE --stage2 FILE, inside that folder, with --stage1-window "
        "H,W,D --stage1-spacing A,B,C and the same for stage 2",
        code="checkpoints-not-found",
    )


def _stated(spacing: Spacing | None) -> str:
    return "no spacing stated" if spacing is None else " x ".join(f"{each:g}" for each in spacing)


def _inside(folder: Path, named: CheckpointFile) -> CheckpointFile:
    path = path_inside(folder, named.path.as_posix(), "the command line")
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {named.path}; name a file inside it", code="checkpoints-not-found"
        )
    return dataclasses.replace(named, path=path)


def _only(folder: Path, found: list[Path], what: str, option: str) -> Path | None:
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(folder)) for path in found)
        raise InputError(
            f"{folder} holds several {what}: {listed}; name one by --{option}",
            code=f"{option}-ambiguous",
        )
    return next(iter(found), None)


def _of_safetensors(path: Path) -> tuple[Iterable[str], Spacing | None]:
    """Return the names of the tensors, and the spacing that the header's remarks state."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size) if size <= _MOST_HEADER_BYTES else b""
    try:
        entries = json.loads(header)
        remarks = entries.get("__metadata__") or {}
        return entries, _three(json.loads(remarks.get(SPACING_ENTRY, "[]")))
    except (ValueError, AttributeError, RecursionError):
        return (), None


def _of_pickle(path: Path) -> tuple[Iterable[str], Spacing | None]:
    """Return the texts in a `.pth` (a zip with one pickle), and the spacing beside its name."""
    texts: list[str] = []
    spacing = None
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [each for each in archive.infolist() if each.filename.endswith("/data.pkl")]
            if len(inside) != 1 or inside[0].file_size > _MOST_HEADER_BYTES:
                return (), None
            instructions = _arguments(archive.read(inside[0]))
            for argument in instructions:
                if argument == SPACING_ENTRY:
                    spacing = _three(islice((each for each in instructions if each is not None), 3))
                elif isinstance(argument, str):
                    texts.append(argument)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError):
        return (), None
    return texts, spacing


def _arguments(data: bytes) -> Iterator[Any]:
    """Go through the values in a pickle; places in its memo are none."""
    for instruction, argument, _ in pickletools.genops(data):
        if "PUT" not in instruction.name and "GET" not in instruction.name:
            yield argument


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _three(values: Iterable[Any]) -> Spacing | None:
    numbers = [float(value) for value in values if _is_number(value)]
    if len(numbers) != 3 or not all(0 < number < math.inf for number in numbers):
        return None
    a, b, c = numbers
    return a, b, c
