"""The process in which readers are fed: it notices what they must not do.

Code that is run, files opened for writing, connections and child processes are noticed by an audit
hook; a hang by an alarm; memory by the process's peak; anything but a `MedalsError` by its type.
"""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from medals_rt.common.environment import peak_memory_mib
from medals_rt.common.errors import MedalsError
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS, Target

SECONDS_PER_INPUT = 60  # a busy machine takes ten to import a library
MIB_PER_INPUT = 300
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Finding:
    """Something that a reader should not have done, with what repeats it."""

    target: str
    seed: int
    index: int
    what: str


class HangError(BaseException):
    """Raised by the alarm; no reader may catch it."""


class Guard:
    """Collects what the audit hook sees while it is on. A hook can't be taken away again."""

    def __init__(self, allowed: Path) -> None:
        self.on = False
        self.seen: list[str] = []
        self._allowed = str(allowed.resolve())
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "shutil.rmtree" and not str(arguments[0]).startswith(self._allowed):
            self.seen.append(f"removed {arguments[0]!r:.200}")
        elif event == "open" and len(arguments) == 3:
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                mode is None and isinstance(flags, int) and flags & _WRITING
            )
            if writes and not str(path).startswith(self._allowed):
                self.seen.append(f"wrote {path!r:.200}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Notice what happens in the block."""
        self.seen = []
        self.on = True
        try:
            yield self.seen
        finally:
            self.on = False


def inputs_of(target: Target, seeds: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    """Yield a target's mutated files, the same for the same seed."""
    for index in range(count):
        rng = np.random.default_rng([seed, TARGETS.index(target), index])
        yield mutate(seeds[index % len(seeds)], rng, target.mutations)


def run(target: Target, seed: int, count: int, guard: Guard, scratch: Path) -> list[Finding]:
    """Feed one reader and give what it did wrong."""
    findings: list[Finding] = []
    seeds = target.seeds(scratch)
    for valid in seeds:  # what the first use imports and keeps is no input's fault
        path = scratch / f"valid{target.ending}"
        path.write_bytes(valid)
        with contextlib.suppress(MedalsError):
            target.feed(path)
    for index, data in enumerate(inputs_of(target, seeds, seed, count)):
        path = scratch / f"input{target.ending}"
        path.write_bytes(data)
        before = set(scratch.iterdir())
        peak = peak_memory_mib() or 0.0
        with guard.watching() as seen:
            problem = _feed(target, path)
        problems = [*seen, *([problem] if problem else [])]
        taken = (peak_memory_mib() or 0.0) - peak
        if taken > MIB_PER_INPUT:
            problems.append(f"took {taken:.0f} MiB for {len(data)} bytes")
        left = {p for p in set(scratch.iterdir()) - before if p.suffix or p.is_file()}
        problems += [f"left {p.name}" for p in left]
        findings += [Finding(target.name, seed, index, what) for what in problems]
    return findings


def _feed(target: Target, path: Path) -> str | None:
    signal.alarm(SECONDS_PER_INPUT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.feed(path)
    except MedalsError as error:
        text = str(error)
        return None if text and len(text) < 3000 else f"message of {len(text)} characters"
    except HangError:
        return f"took more than {SECONDS_PER_INPUT} s"
    except BaseException:  # noqa: BLE001 - this is what is looked for
        return traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
    return None


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise HangError


def attack(names: tuple[str, ...], seed: int, inputs: int) -> list[Finding]:
    """Feed so many inputs in all, shared between the targets named (all: none named)."""
    signal.signal(signal.SIGALRM, _hang)
    chosen = [each for each in TARGETS if not names or each.name in names]
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        guard = Guard(Path(tempfile.gettempdir()))
        for turn, target in enumerate(chosen):
            own = scratch / target.name.replace(" ", "-")
            own.mkdir()
            count = inputs // len(chosen) + (turn < inputs % len(chosen))
            findings += run(target, seed, count, guard, own)
    return findings
