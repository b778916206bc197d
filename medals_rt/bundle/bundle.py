"""A bundle: the folder that holds an exported model, checked when it is opened."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from medals_rt.bundle.hub import local_path
from medals_rt.bundle.manifest import (
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
    path_inside,
)
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.choices import STAGE_NAMES, Precision, StageNumber
from medals_rt.common.errors import BundleError, MissingFileError
from medals_rt.common.progress import Progress

BUNDLE_VARIABLE = "MEDALS_RT_BUNDLE"
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
                f"bundle {folder} {found}; a bundle is a folder with a {MANIFEST_FILE}",
                code="bundle-missing",
            )
        manifest_path = folder / MANIFEST_FILE
        if not manifest_path.is_file():
            raise MissingFileError(
                f"{folder} is no bundle: there is no {MANIFEST_FILE} in it", code="bundle-missing"
            )
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
    def notice(self) -> str | None:
        """A warning for everyone who sees a result of this model; None: there is none."""
        return self.manifest.notice

    @property
    def precision(self) -> Precision:
        """Arithmetic that the graphs ask for."""
        return self.manifest.precision

    @property
    def classes(self) -> tuple[ClassRecord, ...]:
        """The classes that the embedding bank covers, in the order of its rows."""
        return self.manifest.classes

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of all that decides the results; see `manifest_hash`."""
        return manifest_hash(self.manifest)

    def stage_record(self, stage: StageNumber) -> StageRecord:
        """Return the manifest's record of stage 1 (coarse) or 2 (fine)."""
        if stage not in STAGE_NAMES:
            raise BundleError(f"a bundle has stages 1 and 2, not {stage}", code="stage-unknown")
        return self.manifest.stages.coarse if stage == 1 else self.manifest.stages.fine

    def stage_spec(self, stage: StageNumber) -> StageSpec:
        """Return window and target spacing of stage 1 (coarse) or 2 (fine)."""
        record = self.stage_record(stage)
        return StageSpec(stage, record.window_hwd, record.spacing_hwd_mm)

    def graph(self, stage: StageNumber, name: GraphName) -> GraphRecord:
        """Return a graph's record: file, hash, inputs and outputs."""
        return self.stage_record(stage).graphs[name]

    def graph_path(self, stage: StageNumber, name: GraphName) -> Path:
        """Return the path of a graph's ONNX file; see `file_path`."""
        return self.file_path(self.graph(stage, name))

    def file_path(self, record: FileRecord) -> Path:
        """Return the path of a file, which is still the one that the manifest names.

        Files are read when they are first needed, and the folder may have been exchanged since the
        bundle was opened: two models would then be mixed under the name of one. What was hashed
        before and not written to since is not read again.

        Raises
        ------
        BundleError
            If it is not, or is gone (``bundle-changed``).
        """
        path = path_inside(self.folder, record.file)
        found = file_sha256(path) if path.is_file() else None
        if found != record.sha256:
            raise BundleError(
                f"{path} {'is gone' if found is None else f'has SHA-256 {found}'}, "
                f"{MANIFEST_FILE} said {record.sha256} when it was opened; open the bundle again, "
                "or export or fetch it again",
                code="bundle-changed",
            )
        return path

    @property
    def class_embeddings(self) -> npt.NDArray[np.float32]:
        """The bank's rows of classes `(K, dim)` float32, in the order of `classes`."""
        return self._bank[0]

    @property
    def sentence_embeddings(self) -> npt.NDArray[np.float32]:
        """The bank's rows of known sentences `(M, dim)` float32; see `sentence_rows`."""
        return self._bank[1]

    @cached_property
    def class_rows(self) -> dict[str, int]:
        """Row of `class_embeddings` by bank key."""
        return {record.bank_key: row for row, record in enumerate(self.manifest.classes)}

    @cached_property
    def sentence_rows(self) -> dict[str, dict[str, int]]:
        """Row of `sentence_embeddings` by modality and sentence."""
        record = self.manifest.sentences
        if record is None:
            return {}
        data = self.file_path(record).read_bytes()
        try:
            return msgspec.json.decode(data, type=dict[str, dict[str, int]])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{record.file} is damaged: {error}; export again", code="file-damaged"
            ) from error

    @cached_property
    def _bank(self) -> _Bank:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        record = self.manifest.embeddings
        try:
            tensors = load_file(self.file_path(record))
        except SafetensorError as error:
            raise BundleError(
                f"{record.file} is damaged: {error}; export again", code="file-damaged"
            ) from error
        sentence_count = max(
            (row + 1 for rows in self.sentence_rows.values() for row in rows.values()), default=0
        )
        by_class = _checked(tensors, "class_embeddings", len(self.classes), record)
        if not sentence_count:
            return by_class, by_class[:0]
        return by_class, _checked(tensors, "sentence_embeddings", sentence_count, record)


def resolve_bundle(
    explicit: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """Decide which bundle is meant.

    The one named explicitly, else the one that the environment variable `MEDALS_RT_BUNDLE` names,
    else the demo model that comes with this package. An address on a model hub
    (`hf:OWNER/NAME@COMMIT`) is downloaded to the cache folder first, where it isn't there yet;
    `progress` is called as by `hub.download`.

    Raises
    ------
    MissingFileError
        If none of them is there; the message says what to do.
    MedalsError
        What `hub.local_path` raises, for an address on a hub.
    """
    named = os.environ.get(BUNDLE_VARIABLE) or None if explicit is None else explicit
    if named is not None:
        return local_path(named, progress)
    return demo_folder()


def demo_folder() -> Path:
    """Return the folder of the demo model, with its cases: the installed one, or the checkout's.

    Raises
    ------
    MissingFileError
        If this copy of the package came without it.
    """
    installed = Path(__file__).parent / "demo"
    for folder in (installed, Path(__file__).resolve().parents[2] / "engines" / "demo"):
        if (folder / MANIFEST_FILE).is_file():
            return folder
    raise MissingFileError(
        "this copy of medals-rt came without the demo model: name a bundle with --bundle DIR or in "
        f"{BUNDLE_VARIABLE}; `medals-rt export` makes one from checkpoints",
        code="bundle-missing",
    )


def _check_size(folder: Path, record: FileRecord) -> None:
    path = path_inside(folder, record.file)
    if not path.is_file():
        raise BundleError(
            f"bundle {folder} lacks {record.file}; export or fetch it again", code="file-missing"
        )
    size = path.stat().st_size
    if size != record.bytes:
        raise BundleError(
            f"{path} has {size} bytes, {MANIFEST_FILE} says {record.bytes}; "
            "export or fetch it again",
            code="file-damaged",
        )


def _check_hash(folder: Path, record: FileRecord) -> None:
    path = path_inside(folder, record.file)
    found = file_sha256(path)
    if found != record.sha256:
        raise BundleError(
            f"{path} has SHA-256 {found}, {MANIFEST_FILE} says {record.sha256}; "
            "export or fetch it again",
            code="file-damaged",
        )


def _checked(
    tensors: dict[str, npt.NDArray[np.generic]], name: str, rows: int, record: EmbeddingsRecord
) -> npt.NDArray[np.float32]:
    if name not in tensors:
        raise BundleError(f"{record.file} lacks {name}; export again", code="file-damaged")
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.shape != (rows, record.dim):
        raise BundleError(
            f"{record.file}: {name} is {tensor.dtype} {tensor.shape}, "
            f"expected float32 {(rows, record.dim)}; export again",
            code="file-damaged",
        )
    return tensor.astype(np.float32, copy=False)
