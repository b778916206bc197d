"""What would run here, why, and what could be better."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.bundle.engines import ENGINE_FOLDER, Engine, Wanted, differing_parts, list_engines
from medals_rt.common.cache_dir import KEPT_BYTES, cache_folder
from medals_rt.common.choices import (
    QUANTIZED_PRECISIONS,
    RUNNER_KINDS,
    RunnerKind,
)
from medals_rt.common.environment import library_versions
from medals_rt.common.errors import BundleError, MedalsError, MissingDependencyError
from medals_rt.common.gpu import Gpu, find_gpu
from medals_rt.common.optional_deps import GPU_EXTRAS
from medals_rt.runners.registry import runner_spec
from medals_rt.runners.selection import choose, installed, precisions
from medals_rt.runners.tensorrt_library import open_library
from medals_rt.tools.doctor.libraries import Library, look_at_libraries
from medals_rt.tools.doctor.machine import (
    INT8_FEATURES,
    Graphics,
    Memory,
    Processor,
    look_at_gpus,
    look_at_memory,
    look_at_processor,
)


@dataclass(frozen=True)
class RunnerState:
    """Whether a runner could be used: `problem` says why not, None that it could.

    `precisions` are those it offers, the one it takes unasked first.
    """

    kind: RunnerKind
    problem: str | None
    precisions: tuple[str, ...]


@dataclass(frozen=True)
class Automatic:
    """What `auto` comes to: a runner and its precision with the reasons, or why there is none."""

    runner: RunnerKind | None
    precision: str | None
    why: str


@dataclass(frozen=True)
class Cache:
    """The user's cache folder; `problem` says why it can't be written, None that it can.

    `mib` is what lies in it, `kept_mib` what compiled graphs and kernels may take of that.
    """

    folder: str
    mib: float
    problem: str | None
    kept_mib: int = KEPT_BYTES // 2**20


@dataclass(frozen=True)
class EngineState:
    """An engine of a bundle: `problem` says why it would not be loaded, None that it would."""

    file: str
    problem: str | None


@dataclass(frozen=True)
class BundleState:
    """A bundle: `problem` says why it can't be opened, None that it can."""

    folder: str
    problem: str | None
    name: str | None = None
    hash: str | None = None
    precision: str | None = None
    engines: tuple[EngineState, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; see the classes of its members."""

    versions: dict[str, str]
    processor: Processor
    memory: Memory
    graphics: Graphics
    libraries: tuple[Library, ...]
    runners: tuple[RunnerState, ...]
    automatic: Automatic
    cache: Cache
    bundle: BundleState | None
    advice: tuple[str, ...]

    @property
    def can_run(self) -> bool:
        """Whether anything could run: a runner, and the bundle if one was named."""
        ready = any(runner.problem is None for runner in self.runners)
        return ready and (self.bundle is None or self.bundle.problem is None)


def diagnose(bundle: Path | None = None) -> Diagnosis:
    """Look at this machine, and at a bundle if one is named. Nothing that is wrong raises."""
    libraries = look_at_libraries()
    graphics = look_at_gpus()
    opened, state = _look_at_bundle(bundle)
    runners = tuple(_look_at_runner(kind, libraries, opened) for kind in RUNNER_KINDS)
    automatic = _look_at_choice(runners, opened)
    cache = look_at_cache(cache_folder())
    processor = look_at_processor()
    return Diagnosis(
        versions=library_versions(),
        processor=processor,
        memory=look_at_memory(),
        graphics=graphics,
        libraries=libraries,
        runners=runners,
        automatic=automatic,
        cache=cache,
        bundle=state,
        advice=(
            *_advice(libraries, runners, automatic, cache, graphics),
            *quantization_advice(state, automatic, processor),
        ),
    )


def look_at_cache(folder: Path) -> Cache:
    """Try whether the cache folder can be written, and add up what lies in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".doctor-{os.getpid()}"
        trial.touch()
        trial.unlink()
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError as error:
        return Cache(str(folder), 0.0, error.strerror or str(error))
    return Cache(str(folder), round(held / 2**20, 1), None)


def _look_at_runner(
    kind: RunnerKind, libraries: Sequence[Library], bundle: Bundle | None
) -> RunnerState:
    """Check whether a runner could be used, without opening anything in it."""
    needed = [each for each in libraries if each.name in runner_spec(kind).libraries]
    broken = [each.name for each in needed if each.state == "broken"]
    if not installed(kind):
        return RunnerState(kind, "not installed", ())
    if broken:
        return RunnerState(kind, f"{' and '.join(broken)} can't be imported", ())
    if runner_spec(kind).device != "cpu" and find_gpu() is None:
        return RunnerState(kind, "no NVIDIA GPU is found", ())
    graphs = "fp32" if bundle is None else bundle.precision
    offered = precisions(kind, graphs)
    return RunnerState(kind, None if offered else f"it can't run {graphs} graphs", offered)


def _look_at_choice(runners: Sequence[RunnerState], bundle: Bundle | None) -> Automatic:
    """Ask what `auto` chooses; its precision is the first that the runner offers."""
    try:
        choice = choose("auto", bundle)
    except MissingDependencyError as error:
        return Automatic(None, None, str(error))
    state = next(each for each in runners if each.kind == choice.kind)
    if state.problem is not None:
        return Automatic(None, None, f"{choice.why}; but {state.problem}")
    precision = state.precisions[0]
    if runner_spec(choice.kind).device != "cpu":
        reason = f"{precision}: the arithmetic of the graphs"
    elif len(state.precisions) > 1:
        reason = f"{precision}: this processor computes in it natively, as {choice.kind} says"
    else:
        reason = f"{precision}: the only one that {choice.kind} offers on this processor"
    return Automatic(choice.kind, precision, f"{choice.why}; {reason}")


def _look_at_bundle(folder: Path | None) -> tuple[Bundle | None, BundleState | None]:
    """Open a bundle, check its files, and look at its engines."""
    if folder is None:
        return None, None
    try:
        bundle = Bundle.open(resolve_bundle(folder))
        engines = tuple(
            EngineState(each.path.name, _engine_problem(bundle, each, find_gpu()))
            for each in list_engines(bundle.folder / ENGINE_FOLDER)
        )
    except MedalsError as error:
        return None, BundleState(str(folder), str(error))
    return bundle, BundleState(
        str(folder), None, bundle.name, bundle.hash, bundle.precision, engines
    )


def _engine_problem(bundle: Bundle, engine: Engine, gpu: Gpu | None) -> str | None:
    """Describe why an engine would not be loaded here."""
    record = engine.record
    if gpu is None:
        return "no NVIDIA GPU is found"
    try:
        wanted = Wanted(
            graph_sha256=bundle.graph(record.stage, record.graph).sha256,
            library=record.key.library,
            version=open_library(record.key.library).version,
            architecture=gpu.architecture,
        )
        engine.read()
    except (BundleError, MissingDependencyError) as error:
        return str(error)
    return " and ".join(differing_parts(record.key, wanted)) or None


def quantization_advice(
    bundle: BundleState | None, automatic: Automatic, processor: Processor
) -> tuple[str, ...]:
    """Say where a quantized bundle is slower than one in floats."""
    if bundle is None or bundle.precision not in QUANTIZED_PRECISIONS:
        return ()
    if automatic.runner is None or runner_spec(automatic.runner).device != "cpu":
        return ()
    if bundle.precision in runner_spec(automatic.runner).quantized:
        if processor.features is None or INT8_FEATURES & {*processor.features}:
            return ()
        why = "this processor has no instructions for 8-bit integers (VNNI)"
    else:
        why = f"{automatic.runner} only rounds to {bundle.precision} on a processor"
    return (f"{why}: a bundle exported in fp32 is faster here",)


def _advice(
    libraries: Sequence[Library],
    runners: Sequence[RunnerState],
    automatic: Automatic,
    cache: Cache,
    graphics: Graphics,
) -> tuple[str, ...]:
    """List what to install or to repair, what matters most first."""
    said = [
        f"{each.name} is installed and can't be imported ({each.reason}): install it again with "
        f"pip install --force-reinstall 'medals-rt[{each.extra}]'"
        for each in libraries
        if each.state == "broken"
    ]
    ready = [each.kind for each in runners if each.problem is None]
    if not ready:
        said.append("nothing can run networks here: pip install 'medals-rt[cpu]'")
    elif automatic.runner is None:
        said.append(f"auto finds nothing; name what works: --runner {ready[0]}")
    if cache.problem is not None:
        said.append(
            f"compiled graphs can't be kept in {cache.folder} ({cache.problem}): name another "
            "folder in MEDALS_RT_CACHE"
        )
    missing: dict[str, list[str]] = {}
    for each in libraries:
        for_gpu = each.extra in {*GPU_EXTRAS, "tensorrt"}
        if each.state == "missing" and (graphics.used or not for_gpu):
            missing.setdefault(each.extra, []).append(f"{each.name} ({each.use})")
    said += [
        f"pip install 'medals-rt[{extra}]' adds {', '.join(names)}"
        for extra, names in missing.items()
    ]
    return tuple(said)
