"""What `bundle.json` holds, as typed records, and how it is read and hashed.

`engines/README.md` describes the same format in words.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medals_rt.errors import BundleError

FORMAT_VERSION = 1
MANIFEST_FILE = "bundle.json"

GraphName = Literal["image_encoder", "query_decoder", "refiner", "refiner_text_only"]
GRAPH_NAMES: tuple[GraphName, ...] = (
    "image_encoder",
    "query_decoder",
    "refiner",
    "refiner_text_only",
)

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(gt=0)]
Millimetres = Annotated[float, msgspec.Meta(gt=0)]


class FileRecord(msgspec.Struct, frozen=True):
    """A file of the bundle: its path from the bundle's folder (with `/`), hash and size."""

    file: str
    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class TensorRecord(msgspec.Struct, frozen=True):
    """A graph's input or output; a dimension that is free has a name instead of a number."""

    name: str
    dtype: str
    shape: tuple[Count | str, ...]


class GraphRecord(FileRecord, frozen=True):
    """An ONNX file and what goes in and out of it."""

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]

    def input(self, name: str) -> TensorRecord:
        """Give the input of that name."""
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        raise BundleError(f"{self.file} has no input {name!r}; export the bundle again")


class StageRecord(msgspec.Struct, frozen=True):
    """One stage: the window its network sees, the spacing it was trained for, its graphs."""

    window_hwd: tuple[Count, Count, Count]
    spacing_hwd_mm: tuple[Millimetres, Millimetres, Millimetres]
    graphs: dict[str, GraphRecord]


class Stages(msgspec.Struct, frozen=True):
    """Stage 1 finds regions of interest, stage 2 segments inside them."""

    coarse: StageRecord
    fine: StageRecord


class EmbeddingsRecord(FileRecord, frozen=True):
    """The embedding bank: a safetensors file, its width and where it came from in words."""

    dim: Count
    source: str


class ClassRecord(msgspec.Struct, frozen=True):
    """A class that the bank covers; its place in the manifest's list is its row in the bank."""

    bank_key: str
    name: str


class SourceRecord(msgspec.Struct, frozen=True):
    """The checkpoint that a stage was exported from: file name and hash."""

    file: str
    sha256: Sha256


class Sources(msgspec.Struct, frozen=True):
    """The checkpoints of both stages."""

    coarse: SourceRecord
    fine: SourceRecord


class VerifiedRecord(msgspec.Struct, frozen=True):
    """One comparison of a graph with PyTorch, worst over the prompt counts tried.

    Errors are the largest difference over the largest value. `relative_error` is between the runner
    and PyTorch with the weights as stored, `rounding_error` between PyTorch with those and with the
    checkpoint's own weights.
    """

    stage: Literal[1, 2]
    graph: GraphName
    runner: str
    runner_version: str
    precision: str
    prompt_counts: tuple[Count, ...]
    relative_error: float
    rounding_error: float
    tolerance: float


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole of `bundle.json`.

    `precision` is the arithmetic that the graphs ask for, `weights` the type in which their
    constants are stored. `versions` names the libraries that made the bundle.
    """

    format_version: int
    name: str
    created: str
    precision: Literal["fp32", "fp16", "bf16"]
    weights: Literal["fp32", "fp16", "bf16"]
    stages: Stages
    embeddings: EmbeddingsRecord
    classes: tuple[ClassRecord, ...]
    sources: Sources
    versions: dict[str, str]
    sentences: FileRecord | None = None
    verified: tuple[VerifiedRecord, ...] = ()

    def files(self) -> tuple[FileRecord, ...]:
        """Give every file that the manifest names."""
        graphs = (
            graph
            for stage in (self.stages.coarse, self.stages.fine)
            for graph in stage.graphs.values()
        )
        sentences = () if self.sentences is None else (self.sentences,)
        return (*graphs, self.embeddings, *sentences)


class _Version(msgspec.Struct):
    format_version: int


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """Read the bytes of a `bundle.json`; `origin` names it in errors.

    Raises
    ------
    BundleError
        If it is no JSON, of another format version, or a member is missing or of a wrong type.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
    except msgspec.DecodeError as error:
        raise BundleError(f"{origin} is no bundle manifest: {error}") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{origin} has format_version {version}, this version of medals-rt reads "
            f"{FORMAT_VERSION}; install the medals-rt that wrote it, or export again"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{origin} is damaged: {error}; export the bundle again") from error
    for name, stage in (("coarse", manifest.stages.coarse), ("fine", manifest.stages.fine)):
        missing = [graph for graph in GRAPH_NAMES if graph not in stage.graphs]
        if missing:
            raise BundleError(f"{origin}: stage {name} lacks {', '.join(missing)}; export again")
    return manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """Give the indented JSON of a manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def manifest_hash(manifest: Manifest) -> str:
    """SHA-256 (hex) of all that decides a bundle's results.

    Taken over the compact JSON, keys sorted, of the members `format_version`, `stages`,
    `embeddings`, `classes` and `sentences`, which hold the hash of every file. When it was made,
    by which library versions, and what was verified afterwards do not enter.
    """
    members: dict[str, object] = {
        "format_version": manifest.format_version,
        "stages": manifest.stages,
        "embeddings": manifest.embeddings,
        "classes": manifest.classes,
        "sentences": manifest.sentences,
    }
    return hashlib.sha256(msgspec.json.encode(members, order="sorted")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
