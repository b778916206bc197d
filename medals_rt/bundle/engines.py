"""The engines of a bundle: which there are, what each serves, and which fits here.

An engine is a graph compiled by TensorRT or TensorRT-RTX. It lies in the bundle's folder `engines`
as `<name>.engine` with a record `<name>.json` beside it, and serves exactly one graph, library
version, set of GPU architectures, precision and range of N: its key. What is not the right one is
never loaded, and the reason is said. Building is `medals_export.engines`'s work.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GRAPH_NAMES, GraphName, Sha256
from medals_rt.bundle.recipes import PromptCounts
from medals_rt.common.atomic_io import write_json
from medals_rt.common.choices import (
    STAGE_NAMES,
    TENSORRT_LABELS,
    Precision,
    StageNumber,
    TensorRTKind,
)
from medals_rt.common.errors import BundleError

ENGINE_FOLDER = "engines"


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine is for; two engines of one key are interchangeable.

    Attributes
    ----------
    graph_sha256
        Hash of the ONNX file.
    library, version
        "tensorrt" or "tensorrt-rtx", and its exact version.
    architectures
        Compute capabilities, such as "SM90".
    precision
        Arithmetic, which the graph decides.
    prompt_counts
        Range of N; None where the graph has no N.
    """

    graph_sha256: Sha256
    library: TensorRTKind
    version: str
    architectures: tuple[str, ...]
    precision: Precision
    prompt_counts: PromptCounts | None

    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for the whole key in file names."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:12]


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies beside an engine.

    Attributes
    ----------
    record_version
        Of this format.
    stage, graph
        Which graph of the bundle it was built from.
    key
        What it is for.
    sha256, bytes
        Hash and size of the engine's file.
    recipe
        Name of the recipe.
    optimization_level, workspace_mib
        The library's settings; see `medals_rt.bundle.recipes.BuildSettings`.
    built
        When, in UTC.
    """

    record_version: Literal[1]
    stage: StageNumber
    graph: GraphName
    key: EngineKey
    sha256: Sha256
    bytes: int
    recipe: str
    optimization_level: int
    workspace_mib: int
    built: str

    @property
    def name(self) -> str:
        """Name of its files, without ending."""
        return engine_name(self.stage, self.graph, self.key)


@dataclass(frozen=True)
class Engine:
    """An engine that lies in a bundle."""

    folder: Path
    record: EngineRecord

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{self.record.name}.engine"

    @property
    def record_path(self) -> Path:
        """Its record."""
        return self.folder / f"{self.record.name}.json"

    @property
    def trials_path(self) -> Path:
        """Where results of trying it are kept; see `medals_rt.runners.engine_check`."""
        return self.folder / f"{self.record.name}.trials.json"

    def read(self) -> bytes:
        """Read the engine, holding what was read to the record.

        Raises
        ------
        BundleError
            If the file is missing, or size or hash is not the record's.
        """
        again = f"run `medals-rt build --target {self.record.key.library}` again"
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            raise BundleError(
                f"engine {self.path} is missing; {again}", code="engine-file-missing"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if len(data) != self.record.bytes or found != self.record.sha256:
            raise BundleError(
                f"engine {self.path} is not the one that was built: {len(data)} bytes with SHA-256 "
                f"{found}, its record says {self.record.bytes} and {self.record.sha256}; {again}",
                code="engine-damaged",
            )
        return data


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is: engines done of all, and a phase of the one that is being built.

    Phases are the library's own, and nested; reported is the one that moved last.
    """

    graph: str
    engines_done: int
    engines: int
    phase: str
    steps_done: int
    steps: int


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine.

    Attributes
    ----------
    name, kind
        As the library calls it.
    precision
        The type of what it gives, such as "fp16"; several types with commas.
    shape
        Of its first output, such as "1x32x64x64x64".
    tactic
        The kernel that was chosen; empty where the library does not say.
    """

    name: str
    kind: str
    precision: str
    shape: str
    tactic: str


@dataclass(frozen=True)
class EngineInspection:
    """What is in an engine.

    Attributes
    ----------
    record
        The engine's.
    source
        "engine", or "network" where there is no GPU to load it with: its graph as it was parsed.
    scratch_bytes
        Memory that a run takes beside inputs, outputs and weights; None where it is not known.
    layers
        In the order in which they run.
    """

    record: EngineRecord
    source: Literal["engine", "network"]
    scratch_bytes: int | None
    layers: tuple[EngineLayer, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that lies in the bundle now.

    `built` is False where it lay there before, `inspection` None where nobody asked for it.
    """

    engine: Engine
    built: bool
    inspection: EngineInspection | None = None


@dataclass(frozen=True)
class Wanted:
    """What an engine must be for, to be loaded; `precision` None leaves that to the graph."""

    graph_sha256: str
    library: TensorRTKind
    version: str
    architecture: str
    precision: Precision | None = None


def engine_name(stage: StageNumber, graph: str, key: EngineKey) -> str:
    """Name an engine's files: readable, and one name a key."""
    return (
        f"{STAGE_NAMES[stage]}.{graph}.{key.library}.{'-'.join(key.architectures)}.{key.digest()}"
    )


def list_engines(folder: Path) -> tuple[Engine, ...]:
    """List the engines of a bundle's folder `engines`, by name; none where there is no folder.

    Raises
    ------
    BundleError
        If a record is damaged, or its name is not its key's (files were renamed or exchanged).
    """
    records = (path for path in folder.glob("*.json") if not path.name.endswith(".trials.json"))
    return tuple(Engine(folder, _read_record(path)) for path in sorted(records))


def find_engine(folder: Path, wanted: Wanted, name: str) -> Engine:
    """Find the engine that serves a graph here; of several the one for the most prompts.

    Parameters
    ----------
    folder
        The bundle's folder `engines`.
    wanted
        What it must be for.
    name
        The graph, for messages.

    Raises
    ------
    BundleError
        If there is none. The message says how the nearest differs, or that the graph has none.
    """
    fitting: list[Engine] = []
    reasons: list[tuple[int, str]] = []
    for engine in list_engines(folder):
        differences = differing_parts(engine.record.key, wanted)
        if not differences:
            fitting.append(engine)
        elif engine.record.key.graph_sha256 == wanted.graph_sha256:
            reasons.append((len(differences), f"{engine.path.name} is {' and '.join(differences)}"))
    if fitting:
        return max(fitting, key=_most_prompts)
    found = f"; the nearest, {min(reasons)[1]}" if reasons else f" in {folder}"
    raise BundleError(
        f"there is no {TENSORRT_LABELS[wanted.library]} engine for {name}{found}; "
        f"run `medals-rt build --target {wanted.library}`",
        code="engine-missing",
    )


def require_engines(bundle: Bundle, library: TensorRTKind, version: str, architecture: str) -> None:
    """Look for a fitting engine of every graph of both stages.

    Raises
    ------
    BundleError
        For the first that has none; see `find_engine`.
    """
    for stage in STAGE_NAMES:
        for graph in GRAPH_NAMES:
            sha256 = bundle.graph(stage, graph).sha256
            wanted = Wanted(sha256, library, version, architecture)
            find_engine(bundle.folder / ENGINE_FOLDER, wanted, f"{graph} of stage {stage}")


def differing_parts(key: EngineKey, wanted: Wanted) -> tuple[str, ...]:
    """Describe the parts of an engine's key that are not what is wanted; empty where it fits."""
    differences = []
    library = TENSORRT_LABELS[key.library]
    if key.graph_sha256 != wanted.graph_sha256:
        differences.append("for another graph")
    if key.library != wanted.library:
        differences.append(f"for {library}, not {TENSORRT_LABELS[wanted.library]}")
    elif key.version != wanted.version:
        differences.append(f"for {library} {key.version}, here is {wanted.version}")
    if wanted.architecture not in key.architectures:
        built_for = ", ".join(key.architectures)
        differences.append(f"for GPUs of {built_for}, here is {wanted.architecture}")
    if wanted.precision not in {None, key.precision}:
        differences.append(f"in {key.precision}, asked for is {wanted.precision}")
    return tuple(differences)


def write_record(folder: Path, record: EngineRecord) -> None:
    """Write an engine's record, atomically."""
    write_json(folder / f"{record.name}.json", msgspec.to_builtins(record))


def _read_record(path: Path) -> EngineRecord:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"engine record {path} is damaged: {error}; delete it and build again",
            code="engine-record-damaged",
        ) from error
    if record.name != path.stem:
        raise BundleError(
            f"engine record {path} is that of {record.name}; "
            "engines are not renamed: delete it and build again",
            code="engine-renamed",
        )
    return record


def _most_prompts(engine: Engine) -> int:
    counts = engine.record.key.prompt_counts
    return 0 if counts is None else counts.most
