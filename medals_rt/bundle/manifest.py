"""What `bundle.json` holds, as typed records, and how it is read and hashed.

`engines/README.md` describes the same format in words.
"""

import hashlib
import os
import time
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args

import msgspec

from medals_rt.common.choices import FloatPrecision, Precision, StageName, StageNumber
from medals_rt.common.errors import BundleError
from medals_rt.common.limits import MAX_PROMPTS

FORMAT_VERSION = 2
MANIFEST_FILE = "bundle.json"

GraphName = Literal[
    "image_encoder",
    "query_decoder",
    "refiner",
    "refiner_text_only",
    "refiner_1",
    "refiner_2",
    "refiner_4",
    "refiner_8",
    "refiner_16",
    "fusion",
    "fusion_text_only",
    "classifier",
]
GRAPH_NAMES: tuple[GraphName, ...] = get_args(GraphName)
# numbers of prompts that a folded refiner is made for; fewer are padded with zeros up to one
FOLDED_REFINERS: dict[int, GraphName] = {
    1: "refiner_1",
    2: "refiner_2",
    4: "refiner_4",
    8: "refiner_8",
    16: "refiner_16",
}
HANDED_ON_TENSORS = frozenset({"features", "image_embedding", "refined"})
"""What one graph hands to the next as it is."""
HANDED_ON_DTYPES: dict[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "float32",  # NumPy has no bf16
    "int8": "float16",
    "fp8": "float16",
}
"""The type of these by the bundle's precision."""


def refiner_width(count: int) -> int | None:
    """Return the width of the folded refiner that takes so many prompts; None: no one does."""
    return next((width for width in FOLDED_REFINERS if width >= count), None)


# Times of files are coarse: what was written so recently could change without showing it.
_SETTLED_NS = 3 * 10**9
_HASHED: dict[tuple[int, ...], str] = {}

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(gt=0)]
Millimeters = Annotated[float, msgspec.Meta(gt=0)]


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
        """Return the input of that name."""
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        raise BundleError(
            f"{self.file} has no input {name!r}; export the bundle again",
            code="graph-input-missing",
        )


class StageRecord(msgspec.Struct, frozen=True):
    """One stage: the window its network sees, the spacing it was trained for, its graphs."""

    window_hwd: tuple[Count, Count, Count]
    spacing_hwd_mm: tuple[Millimeters, Millimeters, Millimeters]
    graphs: dict[str, GraphRecord]


class Stages(msgspec.Struct, frozen=True):
    """Stage 1 finds regions of interest, stage 2 segments inside them."""

    coarse: StageRecord
    fine: StageRecord


class EmbeddingsRecord(FileRecord, frozen=True, omit_defaults=True):
    """The embedding bank: a safetensors file, its width and where it came from in words.

    `remarks` tell which sentences given at export name no class, and which classes had none.
    """

    dim: Count
    source: str
    remarks: tuple[str, ...] = ()


class TextEncoderRecord(msgspec.Struct, frozen=True):
    """What embeds free sentences (`free_text`): its graph, `tokenizer.json`, and settings.

    `relative_errors` holds the largest difference from PyTorch over the largest value, by runner.
    """

    graph: GraphRecord
    tokenizer: FileRecord
    settings: FileRecord
    relative_errors: dict[str, float]

    def files(self) -> tuple[FileRecord, ...]:
        """Return its files."""
        return self.graph, self.tokenizer, self.settings


class ClassRecord(msgspec.Struct, frozen=True):
    """A class that the bank covers; its place in the manifest's list is its row in the bank."""

    bank_key: str
    name: str


class SourceRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The checkpoint that a stage was exported from.

    Attributes
    ----------
    file, sha256
        Its name, and the hash of its content.
    origin
        Its address on a hub.
    heads
        Attention heads, where whoever exported it named them: nothing in the file tells.
    """

    file: str
    sha256: Sha256
    origin: str | None = None
    heads: int | None = None


class Sources(msgspec.Struct, frozen=True):
    """The checkpoints of both stages."""

    coarse: SourceRecord
    fine: SourceRecord


class TermsRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """Under which terms something in the bundle was published.

    Attributes
    ----------
    source
        Where it came from: an address, or a folder's name.
    license
        Its name; None where the publisher states none.
    texts
        Its text, and the publisher's notices.
    """

    source: str
    license: str | None = None
    texts: tuple[FileRecord, ...] = ()


class VerifiedRecord(msgspec.Struct, frozen=True):
    """One comparison of a graph with PyTorch, worst over the prompt counts tried.

    Errors are the largest difference over the largest value. `relative_error` is between the runner
    and PyTorch with the weights as stored, `rounding_error` between PyTorch with those and with the
    checkpoint's own weights.
    """

    stage: StageNumber
    graph: GraphName
    runner: str
    runner_version: str
    precision: str
    prompt_counts: tuple[Count, ...]
    relative_error: float
    rounding_error: float
    tolerance: float


class UnverifiedRecord(msgspec.Struct, frozen=True):
    """A library that was asked for a comparison at export and can't compute the graphs, and why."""

    runner: str
    why: str


class MachineRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where something was measured: the kind of machine, never its name or owner."""

    system: str
    architecture: str
    processor: str
    cores: int
    gpu: str | None = msgspec.field(default=None, name="card")


class GraphParity(msgspec.Struct, frozen=True, omit_defaults=True):
    """How near a graph, or a whole window, came to the reference, worst over the N tried.

    `relative_error` is the largest difference over the largest value; None where an output was not
    finite, or where the runner failed, which `fault` then says. Windows, several graphs in a row,
    also have `rms_error`: the root mean square of the difference of probabilities over that of the
    probabilities.
    """

    graph: str
    prompt_counts: tuple[Count, ...]
    relative_error: float | None
    rms_error: float | None = None
    fault: str | None = None


class CaseParity(msgspec.Struct, frozen=True, omit_defaults=True):
    """How near a whole case came to the reference.

    `agreement` is the share of voxels with the same label, `dsc` the overlap of each class (None:
    in neither result), `mean_dsc` their mean. `probability_difference` is the largest difference
    of a voxel's largest probability, where both looked at it in the last stage. All None where the
    runner failed, which `fault` then says.
    """

    case: str
    agreement: float | None = None
    dsc: dict[str, float | None] = {}
    mean_dsc: float | None = None
    probability_difference: float | None = None
    fault: str | None = None


class ParityRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One runner held to a reference on one machine by `medals-rt verify`.

    Attributes
    ----------
    part
        The graphs of a stage, or whole cases.
    passed
        Whether everything lay within the tolerances.
    relative_error, mean_dsc, lowest_class_dsc
        The tolerances, as in a recipe.
    reference
        In words, such as "PyTorch 2.13.0 fp32".
    independent
        Whether the reference was computed from checkpoints; False where it was ONNX Runtime on the
        bundle's own graphs, which says nothing about how they were exported.
    when
        In UTC.
    versions
        Of the libraries that decide results.
    """

    part: Literal[StageName, "cases"]
    runner: str
    precision: str
    passed: bool
    relative_error: float
    mean_dsc: float
    lowest_class_dsc: float
    reference: str
    independent: bool
    when: str
    machine: MachineRecord
    versions: dict[str, str]
    graphs: tuple[GraphParity, ...] = ()
    cases: tuple[CaseParity, ...] = ()


class QuantizedLayer(msgspec.Struct, frozen=True):
    """A convolution that could be quantized.

    Attributes
    ----------
    layer
        Its name in the checkpoint.
    range
        The largest absolute value of what it reads; larger ones are cut off.
    error
        Where it alone is quantized: the root mean square of the error of probabilities over that of
        the probabilities.
    quantized
        Whether it is.
    """

    layer: str
    range: Annotated[float, msgspec.Meta(gt=0)]
    error: float
    quantized: bool


class StageQuantization(msgspec.Struct, frozen=True):
    """Which convolutions of a stage are quantized.

    Attributes
    ----------
    layers
        All that could be.
    passes
        How many passes of the network the ranges are from.
    rms_error, mean_dsc
        Those that are quantized, together, on some of the passes: as `QuantizedLayer.error`, and
        the mean overlap of classes with what the network finds in float32.
    """

    layers: tuple[QuantizedLayer, ...]
    passes: Count
    rms_error: float
    mean_dsc: float

    @property
    def quantized_layers(self) -> int:
        """How many are quantized."""
        return sum(each.quantized for each in self.layers)


class QuantizationRecord(msgspec.Struct, frozen=True):
    """How a bundle was quantized.

    `cases` are those that ranges and decisions are from, by the SHA-256 of their files: a file's
    name may name a person.
    """

    coarse: StageQuantization
    fine: StageQuantization
    cases: tuple[Sha256, ...]


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole of `bundle.json`.

    `precision` is the arithmetic that the graphs ask for, `weights` the type in which their
    constants are stored, of `int8` and `fp8` bundles those that are not quantized;
    `quantization` says which are. `max_prompts` is the largest N of the graphs; bundles of earlier
    exports don't say it, and take `MAX_PROMPTS`. `versions` names the libraries that made it.
    `notice` is for everyone who sees a result, `terms` are those of the weights' publishers.
    `verified` and `unverified` were found by the export, `parity` since then by `medals-rt verify`
    wherever it ran.
    """

    format_version: int
    name: str
    created: str
    precision: Precision
    weights: FloatPrecision
    stages: Stages
    embeddings: EmbeddingsRecord
    classes: tuple[ClassRecord, ...]
    sources: Sources
    versions: dict[str, str]
    max_prompts: Count | None = None
    sentences: FileRecord | None = None
    text_encoder: TextEncoderRecord | None = None
    quantization: QuantizationRecord | None = None
    verified: tuple[VerifiedRecord, ...] = ()
    unverified: tuple[UnverifiedRecord, ...] = ()
    parity: tuple[ParityRecord, ...] = ()
    notice: str | None = None
    terms: tuple[TermsRecord, ...] = ()

    @property
    def prompt_limit(self) -> int:
        """Most prompts of one case."""
        return MAX_PROMPTS if self.max_prompts is None else self.max_prompts

    def files(self) -> tuple[FileRecord, ...]:
        """Return every file that the manifest names."""
        graphs = (
            graph
            for stage in (self.stages.coarse, self.stages.fine)
            for graph in stage.graphs.values()
        )
        sentences = () if self.sentences is None else (self.sentences,)
        text_encoder = () if self.text_encoder is None else self.text_encoder.files()
        legal = (text for terms in self.terms for text in terms.texts)
        return (*graphs, self.embeddings, *sentences, *text_encoder, *legal)


class _Version(msgspec.Struct):
    format_version: int


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """Read the bytes of a `bundle.json`; `origin` names it in errors.

    Raises
    ------
    BundleError
        If it is no JSON, of another format version, a member is missing or of a wrong type, or its
        precision is not that of its graphs.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{origin} is no bundle manifest: {error}", code="manifest-damaged"
        ) from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{origin} has format_version {version}, this version of medals-rt reads "
            f"{FORMAT_VERSION}; install the medals-rt that wrote it, or export again",
            code="format-version-unknown",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{origin} is damaged: {error}; export the bundle again", code="manifest-damaged"
        ) from error
    for name, stage in (("coarse", manifest.stages.coarse), ("fine", manifest.stages.fine)):
        missing = [graph for graph in GRAPH_NAMES if graph not in stage.graphs]
        if missing:
            raise BundleError(
                f"{origin}: stage {name} lacks {', '.join(missing)}; export again",
                code="graph-missing",
            )
        _check_precision(manifest.precision, name, stage, origin)
    return manifest


def _check_precision(precision: Precision, name: str, stage: StageRecord, origin: str) -> None:
    """Refuse a precision that the graphs' own records contradict.

    By it runners choose their arithmetic, and checks their tolerance.
    """
    for graph, record in stage.graphs.items():
        for tensor in (*record.inputs, *record.outputs):
            if tensor.name in HANDED_ON_TENSORS and tensor.dtype != HANDED_ON_DTYPES[precision]:
                raise BundleError(
                    f"{origin} says precision {precision}, and {tensor.name} of the {name} {graph} "
                    f"is {tensor.dtype}, not {HANDED_ON_DTYPES[precision]}; export again",
                    code="precision-differs",
                )


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the indented JSON of a manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def manifest_hash(manifest: Manifest) -> str:
    """SHA-256 (hex) of all that decides a bundle's results.

    Taken over the compact JSON, keys sorted, of the members `format_version`, `stages`,
    `embeddings`, `classes`, `sentences` and `text_encoder`, which hold the hash of every file, and
    of `precision` where that is not fp32. When it was made, by which library versions, and what was
    verified do not enter.
    """
    members: dict[str, object] = {
        "format_version": manifest.format_version,
        "stages": manifest.stages,
        "embeddings": manifest.embeddings,
        "classes": manifest.classes,
        "sentences": manifest.sentences,
        "text_encoder": manifest.text_encoder and manifest.text_encoder.files(),
    }
    if manifest.precision != "fp32":
        members["precision"] = manifest.precision
    return hashlib.sha256(msgspec.json.encode(members, order="sorted")).hexdigest()


def path_inside(folder: Path, file: str, named_by: str = MANIFEST_FILE) -> Path:
    """Join a path that a manifest or a hub names to the folder it is meant for.

    Raises
    ------
    BundleError
        If it is absolute, not written with `/`, or leads out of the folder (also by a link).
    """
    pure = PurePosixPath(file)
    plain = file and "\\" not in file and ":" not in file and "\0" not in file
    if not plain or pure.is_absolute() or ".." in pure.parts:
        raise BundleError(
            f"{named_by} names {file!r}, which is no path inside its folder",
            code="path-leaves-bundle",
        )
    path = folder / pure
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"{named_by} names {file!r}, a link that leaves its folder",
            code="path-leaves-bundle",
        )
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    A file that this process hashed before is not read again while nothing has written to it: those
    of a bundle from a hub are checked by more than one.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        written_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, written_ns)
        found = _HASHED.get(state)
        if found is None:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            if time.time_ns() - written_ns > _SETTLED_NS:
                _HASHED[state] = found
        return found
