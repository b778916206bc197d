"""A bundle: the folder that holds an exported model, checked when it is opened."""

import os
from collections.abc import Iterable, Mapping, Sequence
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
EmbeddingKind = Literal["sentence", "encoder", "class"]
_Bank = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


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
    def precision(self) -> Literal["fp32", "fp16", "bf16"]:
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

        A sentence that was known at export gets its own embedding. Any other gets its own from the
        bundle's text encoder, or its class's where the bundle has none.

        Returns
        -------
        embeddings
            `(N, dim)` float32, in the order of the prompts.
        which
            For each prompt "sentence" (from the bank), "encoder" or "class".

        Raises
        ------
        BundleError
            If there is no text encoder and the bank does not cover a prompt's class (the message
            names the nearest it covers), or the prompt is free text.
        MissingDependencyError
            If the text encoder is needed and a library that it needs is not installed.
        """
        asked = prompts if isinstance(prompts, Sequence) else prompts.prompts
        by_class, by_sentence = self._bank
        which = tuple(self._embedding_kind(prompt) for prompt in asked)
        missing = [
            str(prompt.class_key)
            for prompt, kind in zip(asked, which, strict=True)
            if kind == "class" and prompt.class_key.bank_key not in self._class_rows
        ]
        if missing:
            raise BundleError(self._not_covered(missing))
        encoded = self._encode(
            (prompt.class_key.modality, prompt.text.strip())
            for prompt, kind in zip(asked, which, strict=True)
            if kind == "encoder"
        )
        embeddings = np.empty((len(asked), by_class.shape[1]), np.float32)
        for row, (prompt, kind) in enumerate(zip(asked, which, strict=True)):
            modality, text = prompt.class_key.modality, prompt.text.strip()
            if kind == "sentence":
                embeddings[row] = by_sentence[self._sentence_rows[modality][text]]
            elif kind == "encoder":
                embeddings[row] = encoded[modality, text]
            else:
                embeddings[row] = by_class[self._class_rows[prompt.class_key.bank_key]]
        return embeddings, which

    def _embedding_kind(self, prompt: "Prompt") -> EmbeddingKind:
        """Say where a prompt's embedding comes from."""
        key = prompt.class_key
        if prompt.text.strip() in self._sentence_rows.get(key.modality, {}):
            return "sentence"
        if self.manifest.text_encoder is not None or key.is_free_text:
            return "encoder"
        return "class"

    def _encode(
        self, wanted: Iterable[tuple[str, str]]
    ) -> Mapping[tuple[str, str], npt.NDArray[np.float32]]:
        """Embed sentences (modality, text), each alone, so that none hangs on its case's others.

        The encoder is not kept open, since it takes as much memory as a stage's network; what it
        gave is kept.
        """
        from medals_rt.free_text import TextEncoder

        known = self._encoded
        new = [each for each in wanted if each not in known]
        if new:
            encoder = TextEncoder.open(self)
            for modality, text in new:
                (known[modality, text],) = encoder.embed([text], modality)
        return known

    @property
    def class_embeddings(self) -> npt.NDArray[np.float32]:
        """The bank's rows `(K, dim)` float32, in the order of `classes`."""
        return self._bank[0]

    @cached_property
    def _encoded(self) -> dict[tuple[str, str], npt.NDArray[np.float32]]:
        return {}

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
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
            return by_class, by_class[:0]
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
