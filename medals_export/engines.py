"""The graphs of a bundle to TensorRT or TensorRT-RTX engines in its folder `engines`.

Needs no torch. TensorRT-RTX builds run anywhere; TensorRT builds run on the GPU that is to run
the engines, which has not been tried on one: what is called is what both libraries share, and the
tests call it in TensorRT-RTX.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from medals_export.engine_builder import EngineOrder, build_engine, open_timing_cache
from medals_export.engine_inspection import inspect_engine
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.engines import (
    ENGINE_FOLDER,
    BuildProgress,
    BuiltEngine,
    Engine,
    EngineKey,
    EngineRecord,
    engine_name,
    list_engines,
    write_record,
)
from medals_rt.bundle.manifest import GRAPH_NAMES, GraphName, GraphRecord, file_sha256
from medals_rt.bundle.recipes import BuildSettings, Recipe, recipe_for
from medals_rt.common.choices import STAGE_NAMES, Precision, StageNumber, TensorRTKind
from medals_rt.common.errors import BuildError, BundleError, InputError
from medals_rt.common.gpu import require_gpu
from medals_rt.runners.tensorrt_library import TensorRTLibrary, open_library


@dataclass(frozen=True)
class _Job:
    """One graph of the bundle, and the key of the engine that it is to have."""

    stage: StageNumber
    graph: GraphName
    path: Path
    key: EngineKey

    @property
    def name(self) -> str:
        return engine_name(self.stage, self.graph, self.key)

    @property
    def label(self) -> str:
        return f"{STAGE_NAMES[self.stage]} {self.graph}"


def build_engines(
    bundle: Bundle,
    library: TensorRTLibrary,
    recipe_name: str,
    recipe: Recipe,
    *,
    architectures: Sequence[str] = (),
    rebuild: bool = False,
    inspect: bool = False,
    report: Callable[[BuildProgress], None] | None = None,
) -> tuple[BuiltEngine, ...]:
    """Build an engine of every graph of both stages: all, or none.

    Engines that lie in the bundle already, undamaged, of the same key and built with the recipe's
    settings, are kept. A build that fails or is interrupted leaves the bundle as it was.

    Parameters
    ----------
    bundle
        An opened bundle.
    library
        As `open_library` gave it.
    recipe_name, recipe
        How to build. Its precision must be the bundle's, because precision lives in the graphs.
    architectures
        What to build for instead of the recipe's, such as "SM89"; "CURRENT" is this machine's GPU.
    rebuild
        Build also what is there.
    inspect
        Say what is in each engine; see `engine_inspection`.
    report
        Called at every step, from the library's threads.

    Returns
    -------
    tuple of BuiltEngine
        One a graph, coarse before fine.

    Raises
    ------
    InputError
        If recipe, bundle, library and architectures do not go together.
    MissingDependencyError
        If a GPU is needed and there is none.
    BuildError
        If the library refuses a graph (the message is its own), or an engine can't be written.
    """
    settings = _checked_settings(bundle, library, recipe_name, recipe)
    targets = _targets(library, settings, architectures)
    jobs = _jobs(bundle, library, settings, targets)
    folder = bundle.folder / ENGINE_FOLDER
    there = {} if rebuild else _usable(folder, settings)
    missing = [job for job in jobs if job.name not in there]
    with _staging(folder) as staging, open_timing_cache(library, targets) as timing:
        for done, job in enumerate(missing):

            def on_step(
                phase: str, step: int, steps: int, label: str = job.label, done: int = done
            ) -> None:
                if report is not None:
                    report(BuildProgress(label, done, len(missing), phase, step, steps))

            order = EngineOrder(job.label, job.path, job.key.prompt_counts, targets, settings)
            plan = build_engine(library, order, timing, on_step)
            staged = staging / f"{job.name}.engine"
            staged.write_bytes(plan)
            write_record(staging, _record(job, staged, recipe_name, settings))
        for engine in list_engines(staging):
            there[engine.record.name] = _put_in_place(engine, folder)
    names = {job.name for job in missing}
    return tuple(
        BuiltEngine(
            there[job.name],
            job.name in names,
            inspect_engine(library, there[job.name], job.path) if inspect else None,
        )
        for job in jobs
    )


def build_graph(
    graph_path: Path,
    bundle_folder: Path,
    kind: TensorRTKind,
    precision: Precision,
    stage: StageNumber,
    graph: GraphName,
) -> Engine:
    """Build an engine of one ONNX file whose N is fixed, for this machine's GPU.

    Parameters
    ----------
    graph_path
        The file.
    bundle_folder
        In whose folder `engines` the engine is put.
    kind, precision
        The library, and what the graph computes in.
    stage, graph
        What it is a copy of, for its record.

    Raises
    ------
    MissingDependencyError
        If the library or a GPU is missing.
    BuildError
        If the library refuses the graph.
    """
    library = open_library(kind)
    gpu = require_gpu(f"an engine of {graph_path.name}")
    name, recipe = recipe_for(kind, precision, gpu.architecture)
    if recipe.build is None:
        raise AssertionError(name)
    targets = (gpu.architecture,)
    key = EngineKey(
        graph_sha256=file_sha256(graph_path),
        library=kind,
        version=library.version,
        architectures=targets,
        precision=precision,
        prompt_counts=None,
    )
    job = _Job(stage, graph, graph_path, key)
    folder = bundle_folder / ENGINE_FOLDER
    with _staging(folder) as staging, open_timing_cache(library, targets) as timing:
        order = EngineOrder(job.label, graph_path, None, targets, recipe.build)
        staged = staging / f"{job.name}.engine"
        staged.write_bytes(build_engine(library, order, timing, lambda *_: None))
        write_record(staging, _record(job, staged, name, recipe.build))
        (engine,) = list_engines(staging)
        return _put_in_place(engine, folder)


def _checked_settings(
    bundle: Bundle, library: TensorRTLibrary, recipe_name: str, recipe: Recipe
) -> BuildSettings:
    if recipe.build is None or library.kind not in recipe.runners:
        raise InputError(
            f"recipe {recipe_name} is for {', '.join(recipe.runners)} and builds no "
            f"{library.label} engines",
            code="recipe-for-other-runner",
        )
    if recipe.precision != bundle.precision:
        raise InputError(
            f"recipe {recipe_name} is for {recipe.precision} graphs, and those of bundle "
            f"{bundle.name!r} are {bundle.precision}; take another recipe, or export with "
            f"--precision {recipe.precision}",
            code="recipe-for-other-precision",
        )
    return recipe.build


def _targets(
    library: TensorRTLibrary, settings: BuildSettings, asked: Sequence[str]
) -> tuple[str, ...]:
    """Decide which architectures to build for, in rising order."""
    if not library.compiles_on_first_use:
        gpu = require_gpu(f"building {library.label} engines")
        if others := sorted({*asked} - {gpu.architecture, "CURRENT"}):
            raise InputError(
                f"{library.label} builds for the GPU that it runs on, {gpu.name} "
                f"({gpu.architecture}), not for {', '.join(others)}",
                code="architecture-of-other-gpu",
            )
        return (gpu.architecture,)
    known = {*library.module.ComputeCapability.__members__} - {"NONE", "CURRENT"}
    names = set(asked or settings.architectures)
    if "CURRENT" in names:
        gpu = require_gpu("architecture CURRENT")
        names = names - {"CURRENT"} | {gpu.architecture}
    if not names:
        raise InputError(
            "the recipe names no architecture; name one with --arch", code="architecture-missing"
        )
    if unknown := sorted(names - known, key=_number):
        raise InputError(
            f"{library.label} {library.version} builds for "
            f"{', '.join(sorted(known, key=_number))}, not for {', '.join(unknown)}",
            code="architecture-unknown",
        )
    return tuple(sorted(names, key=_number))


def _number(architecture: str) -> tuple[int, str]:
    digits = architecture.removeprefix("SM")
    return (int(digits) if digits.isdigit() else 0), architecture


def _jobs(
    bundle: Bundle, library: TensorRTLibrary, settings: BuildSettings, targets: tuple[str, ...]
) -> list[_Job]:
    jobs = []
    for stage in STAGE_NAMES:
        for graph in GRAPH_NAMES:
            record = bundle.graph(stage, graph)
            counts = settings.query_counts if graph == "query_decoder" else settings.prompt_counts
            key = EngineKey(
                graph_sha256=record.sha256,
                library=library.kind,
                version=library.version,
                architectures=targets,
                precision=bundle.manifest.precision,
                prompt_counts=counts if _takes_prompts(record) else None,
            )
            jobs.append(_Job(stage, graph, bundle.graph_path(stage, graph), key))
    return jobs


def _takes_prompts(record: GraphRecord) -> bool:
    """Whether a graph has a free dimension: N is the only one there is."""
    return any(isinstance(size, str) for tensor in record.inputs for size in tensor.shape)


def _usable(folder: Path, settings: BuildSettings) -> dict[str, Engine]:
    """Return the engines in a bundle that were built so and are what their records say, by name."""
    wanted = settings.optimization_level, settings.workspace_mib
    found = {}
    for engine in list_engines(folder):
        if (engine.record.optimization_level, engine.record.workspace_mib) != wanted:
            continue
        try:
            engine.read()
        except BundleError:  # is built again
            continue
        found[engine.record.name] = engine
    return found


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Return a folder beside the engines that is gone afterwards; so is theirs if it is empty."""
    try:
        folder.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as staging:
            yield Path(staging)
    except OSError as error:
        raise BuildError(
            f"can't write engines in {folder}: {error.strerror or error}",
            code="output-not-writable",
        ) from error
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _record(job: _Job, staged: Path, recipe_name: str, settings: BuildSettings) -> EngineRecord:
    return EngineRecord(
        record_version=1,
        stage=job.stage,
        graph=job.graph,
        key=job.key,
        sha256=file_sha256(staged),
        bytes=staged.stat().st_size,
        recipe=recipe_name,
        optimization_level=settings.optimization_level,
        workspace_mib=settings.workspace_mib,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _put_in_place(staged: Engine, folder: Path) -> Engine:
    """Move an engine to its place; its record is the first to go and the last to appear."""
    engine = Engine(folder, staged.record)
    engine.record_path.unlink(missing_ok=True)
    staged.path.replace(engine.path)
    staged.record_path.replace(engine.record_path)
    return engine
