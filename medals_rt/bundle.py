"""A bundle: the folder that holds an exported model, checked when it is opened."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

from medals_rt.errors import BundleError, MissingFileError
from medals_rt.geometry import StageSpec
from medals_rt.manifest import (
    MANIFEST_FILE,
    ClassRecord,
    EmbeddingsRecord,
    FileRecord,
    GraphName,
    GraphRecord,
    Manifest,
    StageRecord,
    file_sha256,
    manifest_hash,
    parse_manifest,
)

if TYPE_CHECKING:
    from medals_rt.prompts import Prompt, PromptSet

BUNDLE_VARIABLE = "MEDALS_RT_BUNDLE"
EmbeddingKind = Literal["sentence", "class"]
_Bank = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; make one with `Bundle.open`.

    Attributes
    ----------
    folder
        Where it lies.
    manifest
        The content of its `bundle.json`.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Open a bundle's folder and check it.

        Sizes of all files are always checked; hashes only with `verify`, which reads every file
        once.

        Raises
        ------
        MissingFileError
            If there is no such folder or no `bundle.json` in it.
        BundleError
            If the manifest is damaged or of another format version, a path leaves the folder, or
            a file is missing, of a wrong size, or (with `verify`) of a wrong hash.
        """
        folder = Path(path)
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "does not exist"
            raise MissingFileError(
                f"bundle {folder} {found}; a bundle is a folder with a {MANIFEST_FILE}"
            )
        manifest_path = folder / MANIFEST_FILE
        if not manifest_path.is_file():
            raise MissingFileError(f"{folder} is no bundle: there is no {MANIFEST_FILE} in it")
        manifest = parse_manifest(manifest_path.read_bytes(), str(manifest_path))
        files = manifest.files()
        for record in files:
            _check_size(folder, record)
        if verify:
            for record in files:
                _check_hash(folder, record)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """The name given at export."""
        return self.manifest.name

    @property
    def precision(self) -> str:
        """Arithmetic that the graphs ask for: "fp32", "fp16" or "bf16"."""
        return self.manifest.precision

    @property
    def classes(self) -> tuple[ClassRecord, ...]:
        """The classes that the embedding bank covers, in the order of its rows."""
        return self.manifest.classes

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that decides the results; see `manifest_hash`."""
        return manifest_hash(self.manifest)

    def stage_record(self, stage: int) -> StageRecord:
        """Give the manifest's record of stage 1 (coarse) or 2 (fine)."""
        if stage not in (1, 2):
            raise BundleError(f"a bundle has stages 1 and 2, not {stage}")
        return self.manifest.stages.coarse if stage == 1 else self.manifest.stages.fine

    def stage_spec(self, stage: int) -> StageSpec:
        """Give window and target spacing of stage 1 (coarse) or 2 (fine)."""
        record = self.stage_record(stage)
        return StageSpec(stage, record.window_hwd, record.spacing_hwd_mm)

    def graph(self, stage: int, name: GraphName) -> GraphRecord:
        """Give a graph's record: file, hash, inputs and outputs."""
        return self.stage_record(stage).graphs[name]

    def graph_path(self, stage: int, name: GraphName) -> Path:
        """Give the path of a graph's ONNX file."""
        return path_inside(self.folder, self.graph(stage, name).file)

    def embeddings(
        self, prompts: "PromptSet | Sequence[Prompt]"
    ) -> tuple[npt.NDArray[np.float32], tuple[EmbeddingKind, ...]]:
        """Give one text embedding a prompt.

        A sentence that was known at export gets its own embedding, any other its class's.

        Returns
        -------
        embeddings
            `(N, dim)` float32, in the order of the prompts.
        which
            For each prompt "sentence" or "class".

        Raises
        ------
        BundleError
            If the bank does not cover a prompt's class; the message names the nearest it covers.
        """
        rows: list[npt.NDArray[np.float32]] = []
        which: list[EmbeddingKind] = []
        missing: list[str] = []
        by_class, by_sentence = self._bank
        for prompt in prompts if isinstance(prompts, Sequence) else prompts.prompts:
            key = prompt.class_key
            sentence_row = self._sentence_rows.get(key.modality, {}).get(prompt.text.strip())
            class_row = self._class_rows.get(key.bank_key)
            if sentence_row is not None and by_sentence is not None:
                rows.append(by_sentence[sentence_row])
                which.append("sentence")
            elif class_row is not None:
                rows.append(by_class[class_row])
                which.append("class")
            else:
                missing.append(f"{key.modality} {key.name}")
        if missing:
            raise BundleError(self._not_covered(missing))
        return np.stack(rows) if rows else by_class[:0].copy(), tuple(which)

    @cached_property
    def _class_rows(self) -> dict[str, int]:
        return {record.bank_key: row for row, record in enumerate(self.manifest.classes)}

    @cached_property
    def _sentence_rows(self) -> dict[str, dict[str, int]]:
        record = self.manifest.sentences
        if record is None:
            return {}
        data = path_inside(self.folder, record.file).read_bytes()
        try:
            return msgspec.json.decode(data, type=dict[str, dict[str, int]])
        except msgspec.DecodeError as error:
            raise BundleError(f"{record.file} is damaged: {error}; export again") from error

    @cached_property
    def _bank(self) -> _Bank:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        record = self.manifest.embeddings
        try:
            tensors = load_file(path_inside(self.folder, record.file))
        except SafetensorError as error:
            raise BundleError(f"{record.file} is damaged: {error}; export again") from error
        sentence_count = max(
            (row + 1 for rows in self._sentence_rows.values() for row in rows.values()), default=0
        )
        by_class = _checked(tensors, "class_embeddings", len(self.classes), record)
        if not sentence_count:
            return by_class, None
        return by_class, _checked(tensors, "sentence_embeddings", sentence_count, record)

    def _not_covered(self, missing: list[str]) -> str:
        from rapidfuzz import process

        covered = [f"{record.bank_key.split('/')[0]} {record.name}" for record in self.classes]
        near = dict.fromkeys(
            name for wanted in missing for name, _, _ in process.extract(wanted, covered, limit=3)
        )
        return (
            f"bundle {self.name!r} knows {len(covered)} classes and not {', '.join(missing)}; "
            f"nearest that it knows: {', '.join(near)}"
        )


def resolve_bundle(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Decide which bundle is meant.

    The one named explicitly, else the one that the environment variable `MEDALS_RT_BUNDLE` names,
    else `engines/demo` of the checkout that this package runs from.

    Raises
    ------
    MissingFileError
        If none of them is there; the message says what to do.
    """
    if explicit is not None:
        return Path(explicit)
    variable = os.environ.get(BUNDLE_VARIABLE)
    if variable:
        return Path(variable)
    demo = Path(__file__).resolve().parents[1] / "engines" / "demo"
    if (demo / MANIFEST_FILE).is_file():
        return demo
    raise MissingFileError(
        f"no model bundle: name one with --bundle DIR or in {BUNDLE_VARIABLE}; "
        "`medals-rt export` makes one from checkpoints"
    )


def path_inside(folder: Path, file: str) -> Path:
    """Join a path of the manifest to the bundle's folder.

    Raises
    ------
    BundleError
        If it is absolute, not written with `/`, or leads out of the folder (also by a link).
    """
    pure = PurePosixPath(file)
    plain = file and "\\" not in file and ":" not in file and "\0" not in file
    if not plain or pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"{MANIFEST_FILE} names {file!r}, which is no path inside the bundle")
    path = folder / pure
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{MANIFEST_FILE} names {file!r}, a link that leaves the bundle")
    return path


def _check_size(folder: Path, record: FileRecord) -> None:
    path = path_inside(folder, record.file)
    if not path.is_file():
        raise BundleError(f"bundle {folder} lacks {record.file}; export or fetch it again")
    size = path.stat().st_size
    if size != record.bytes:
        raise BundleError(
            f"{path} has {size} bytes, {MANIFEST_FILE} says {record.bytes}; "
            "export or fetch it again"
        )


def _check_hash(folder: Path, record: FileRecord) -> None:
    path = path_inside(folder, record.file)
    found = file_sha256(path)
    if found != record.sha256:
        raise BundleError(
            f"{path} has SHA-256 {found}, {MANIFEST_FILE} says {record.sha256}; "
            "export or fetch it again"
        )


def _checked(
    tensors: dict[str, npt.NDArray[np.generic]], name: str, rows: int, record: EmbeddingsRecord
) -> npt.NDArray[np.float32]:
    if name not in tensors:
        raise BundleError(f"{record.file} lacks {name}; export again")
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.shape != (rows, record.dim):
        raise BundleError(
            f"{record.file}: {name} is {tensor.dtype} {tensor.shape}, "
            f"expected float32 {(rows, record.dim)}; export again"
        )
    return tensor.astype(np.float32, copy=False)
