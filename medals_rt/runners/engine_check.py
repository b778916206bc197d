"""A new engine is first run in a child process, so that a fault on the GPU can't end the run.

After a CUDA fault a process can use the GPU no more, and a bad engine may end it without a word.
So the first time that an engine is opened with a GPU and driver, a child runs it on zeros, with
the fewest and the most prompts that it is for. What came of it is kept beside the engine: what
failed is not opened again. Untried on a GPU; the tests use a fake of the library.
"""

from datetime import UTC, datetime

import msgspec

from medals_rt.bundle.engines import Engine
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.errors import RunnerError
from medals_rt.common.gpu import Gpu, require_gpu
from medals_rt.common.subprocesses import run_python

_TIMEOUT_S = 600.0
EXIT_FAILED, EXIT_OUT_OF_MEMORY = 1, 3
_WORKER = "medals_rt.runners.engine_check_worker"


class EngineTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One trial.

    Attributes
    ----------
    engine_sha256
        What was tried.
    gpu, driver
        With what; another GPU or driver is another trial. The file calls it `card`.
    failure
        Why it is not to be used; empty where it ran.
    tried
        When, in UTC.
    """

    engine_sha256: str
    gpu: str = msgspec.field(name="card")
    driver: str
    failure: str
    tried: str


def ensure_tried(engine: Engine, name: str, *, timeout_s: float = _TIMEOUT_S) -> tuple[str, ...]:
    """Try an engine, unless it has been tried with this GPU and driver.

    Parameters
    ----------
    engine
        An engine that fits.
    name
        The graph's name, for messages.
    timeout_s
        How long the child may take, seconds.

    Returns
    -------
    tuple of str
        Notes for the run's report: that the result could not be kept.

    Raises
    ------
    RunnerError
        If it failed, now or then; the message gives the reason.
    MissingDependencyError
        If there is no GPU.
    """
    gpu = require_gpu(f"the engine of {name}")
    known = _known_trials(engine)
    notes: tuple[str, ...] = ()
    trial = next((trial for trial in known if _is_of(trial, engine, gpu)), None)
    if trial is None:
        failure, lasting = _try_in_child(engine, timeout_s)
        trial = EngineTrial(
            engine_sha256=engine.record.sha256,
            gpu=gpu.name,
            driver=gpu.driver,
            failure=failure,
            tried=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if lasting:
            notes = _keep(engine, [*known, trial])
    if trial.failure:
        raise RunnerError(
            f"the engine of {name} was tried in a process of its own ({trial.tried}, {gpu.name}) "
            f"and is not used: {trial.failure}; build it again with --rebuild, or delete "
            f"{engine.trials_path} to have it tried again",
            code="engine-failed-trial",
        )
    return notes


def _try_in_child(engine: Engine, timeout_s: float) -> tuple[str, bool]:
    """Return why the engine failed (empty: it ran), and whether that is worth remembering."""
    child = run_python(["-m", _WORKER, str(engine.folder), engine.record.name], timeout_s)
    if child.code == 0:
        return "", True
    if child.code is None:
        return f"it did not end within {timeout_s:g} s", True
    lines = (*child.complained, *child.said)
    reason = lines[-1] if lines else "it gave no reason"
    if child.signal is not None:
        reason = f"the process ended by {child.signal} ({reason})"
    return reason, child.code != EXIT_OUT_OF_MEMORY


def _is_of(trial: EngineTrial, engine: Engine, gpu: Gpu) -> bool:
    return (trial.engine_sha256, trial.gpu, trial.driver) == (
        engine.record.sha256,
        gpu.name,
        gpu.driver,
    )


def _known_trials(engine: Engine) -> list[EngineTrial]:
    """Read the trials of this very engine; those of one that it replaced are forgotten."""
    try:
        trials = msgspec.json.decode(engine.trials_path.read_bytes(), type=list[EngineTrial])
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunnerError(
            f"{engine.trials_path} is damaged: {error}; delete it to have the engine tried again",
            code="trials-damaged",
        ) from error
    return [trial for trial in trials if trial.engine_sha256 == engine.record.sha256]


def _keep(engine: Engine, trials: list[EngineTrial]) -> tuple[str, ...]:
    try:
        with atomic_output(engine.trials_path) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(trials), indent=2))
    except OSError as error:
        return (f"it is not kept that the engines were tried: {error}",)
    return ()
