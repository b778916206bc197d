"""The documentation as its tests see it: pages, fenced blocks, and a folder to run them in."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import MANIFEST_FILE, ClassRecord, dump_manifest, file_sha256
from medals_rt.prompts.classes import all_classes
from tests.paths import ROOT

COMMAND = "medals-rt"
CHECKED_ONLY = {
    "install": "changes the environment",
    "docker": "needs Docker",
    "gpu": "needs a GPU, or builds for one",
    "long": "takes minutes",
    "network": "needs a network",
    "server": "is a server, or needs one",
}
"""Labels of ```bash blocks that are not run but checked word by word, and why."""

SHAPE_DHW = (12, 20, 24)
SPACING_DHW_MM = (3.0, 2.0, 2.0)
_FENCE = re.compile(r"^```(\w+)?[ ]?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, its text, and where it is."""

    language: str
    label: str
    text: str
    place: str


def pages() -> list[Path]:
    """Return every page that is written for people, by path."""
    folders = (".", "docs", "benchmarks", "engines", "engines/demo", "tests/data")
    return sorted(page for folder in folders for page in (ROOT / folder).glob("*.md"))


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found[1] or "",
            found[2],
            found[3],
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}",
        )
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield the commands of a ```bash block: what is put into the environment, and the words."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        environment = {}
        while words and _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words:
            yield environment, words


def cover_all_classes(bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle and give the copy made-up embeddings of all classes that there are."""
    from safetensors.numpy import save

    shutil.copytree(bundle.folder, folder)
    keys = all_classes()
    dim = bundle.manifest.embeddings.dim
    rows = np.random.default_rng(5).standard_normal((len(keys), dim), dtype=np.float32)
    file = folder / bundle.manifest.embeddings.file
    file.write_bytes(save({"class_embeddings": rows}))
    embeddings = msgspec.structs.replace(
        bundle.manifest.embeddings, sha256=file_sha256(file), bytes=file.stat().st_size
    )
    manifest = msgspec.structs.replace(
        bundle.manifest,
        embeddings=embeddings,
        classes=tuple(ClassRecord(key.bank_key, key.name) for key in keys),
        sentences=None,
    )
    (folder / MANIFEST_FILE).write_bytes(dump_manifest(manifest))
    return Bundle.open(folder)


def write_scans(folder: Path) -> None:
    """Write the scans that the pages name: one chest, in every format, and labels drawn on it."""
    import nibabel as nib
    import nrrd

    from tests.dicom import write_series

    rng = np.random.default_rng(11)
    image_kji = rng.integers(-1000, 1000, SHAPE_DHW).astype(np.int16)
    labels_kji = np.zeros(SHAPE_DHW, np.uint8)
    labels_kji[3:9, 5:15, 3:10] = 1
    labels_kji[3:9, 5:15, 14:21] = 2
    spacing_ijk_mm = SPACING_DHW_MM[::-1]
    affine = np.diag([*spacing_ijk_mm, 1.0])
    nib.save(nib.Nifti1Image(image_kji.T, affine), folder / "chest.nii.gz")
    for name in ("drawing", "corrected"):
        nib.save(nib.Nifti1Image(labels_kji.T, affine), folder / f"{name}.nii.gz")
    header = {
        "space": "right-anterior-superior",
        "space directions": affine[:3, :3],
        "space origin": [0.0, 0.0, 0.0],
    }
    nrrd.write(str(folder / "chest.nrrd"), image_kji.T, header)
    write_series(folder / "ct_series", image_kji, affine)
    scans = folder / "scans"
    scans.mkdir()
    for name in ("anna.nii.gz", "later/anna.nii.gz"):
        (scans / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "chest.nii.gz", scans / name)
    shutil.copytree(folder / "ct_series", scans / "berta")
    write_challenge_cases(folder, image_kji, labels_kji)


def write_challenge_cases(folder: Path, image: np.ndarray, labels: np.ndarray) -> None:
    """Write `case.npz` and two more in `inputs`, as the challenge's are: 0 to 255, prompts inside.

    `references` holds labels to score against.
    """
    prompts = {"1": "Left lung in chest CT", "2": "Right lung in chest CT", "instance_label": 0}
    d, h, w = SPACING_DHW_MM
    content = {
        "imgs": ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8),
        "spacing": np.array([h, w, d]),
        "text_prompts": np.array(prompts, dtype=object),
    }
    np.savez(folder / "case.npz", **content)
    for name in ("inputs", "references"):
        (folder / name).mkdir()
    for name in ("case_1.npz", "case_2.npz"):
        np.savez(folder / "inputs" / name, **content)
        np.savez(folder / "references" / name, gts=labels, **content)
