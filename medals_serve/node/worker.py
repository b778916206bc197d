"""The thread of a node that owns the model: it segments complete series, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Final

from medals_rt.common.errors import (
    CaseError,
    DeviceLostError,
    InputError,
    MedalsError,
    OutputError,
)
from medals_rt.common.interruption import interrupted_by
from medals_rt.io.dicom.files import dicom_files, read_header
from medals_rt.io.registry import check_output
from medals_rt.pipeline.job import segment_job
from medals_rt.pipeline.job_inputs import read_job
from medals_rt.pipeline.job_outputs import SEGMENTATIONS, check_outputs
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.job_writing import write_job, write_labels
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.segmenter import CaseSegmenter
from medals_serve.node.configuration import NodeConfiguration, Rule
from medals_serve.node.spool import Delivery, Spool, SpooledSeries, State

_REPORT: Final = "sr"
_POLL_S: Final = 0.5
_PRUNE_EACH_S: Final = 600.0
_FIRST_WAIT_S: Final = 10.0
_LONGEST_WAIT_S: Final = 600.0
_TRIES: Final[Mapping[type[Exception], float]] = {
    DeviceLostError: 3,
    MemoryError: 3,
    OutputError: float("inf"),
    OSError: float("inf"),
}
"""How often a series is tried that ends with what may pass: a full disk does, for whoever makes
room; what is too large for a GPU may never fit. What else ends a series is final."""


class _StoppedError(Exception):
    """The node is asked to end; the series is segmented again after the next start."""


@dataclass
class _Wait:
    """When a series that failed for a while is tried again, and how often it was tried."""

    tries: int = 0
    until: float = 0.0

    def longer(self) -> None:
        """Wait twice as long as before."""
        seconds = min(_FIRST_WAIT_S * 2**self.tries, _LONGEST_WAIT_S)
        self.tries, self.until = self.tries + 1, time.monotonic() + seconds


@dataclass
class Worker:
    """Segments complete series by rules.

    Attributes
    ----------
    configuration, options
        What is done, and how.
    spool
        Where series and results lie.
    segmenter
        The opened model.
    announce, warn
        Print a line.
    """

    configuration: NodeConfiguration
    options: RunOptions
    spool: Spool
    segmenter: CaseSegmenter
    announce: Callable[[str], None]
    warn: Callable[[str], None]
    _waits: dict[Path, _Wait] = field(default_factory=dict, repr=False)
    _begun: set[Path] = field(default_factory=set, repr=False)
    _pruned: float = field(default=0.0, repr=False)

    def run(self, stop: Event) -> None:
        """Work until told to stop; what is under way then is begun again at the next start."""
        work: Callable[[Event], None] = self._begin
        wait = _Wait()
        while not stop.is_set():
            try:
                work(stop)
            except (OutputError, OSError) as error:  # not even what became of a series
                wait.longer()
                self.warn(f"the node can't write to its folder, and tries again: {_reason(error)}")
                stop.wait(wait.until - time.monotonic())
                continue
            work, wait = self._round, _Wait()
            stop.wait(_POLL_S)

    def _begin(self, _stop: Event) -> None:
        """Take up what came to nothing before, but mark as failed what the process died of."""
        for series in self.spool.series():
            state = series.state()
            if state is None:
                continue
            if state.died_of:
                state.status, state.why = "failed", f"the node died of it {state.starts} times"
                self.spool.settle(series, state)
                self.warn(f"{series.name} failed: {state.why}")
            elif state.came_to_nothing and not state.is_deadly and series.names():
                state.begin_again()  # rules may be others now, and the disk larger
                self.spool.settle(series, state)

    def _round(self, stop: Event) -> None:
        """Segment the series that are complete, and tidy up now and then."""
        for series in self.spool.complete(self.configuration.quiet_seconds):
            if time.monotonic() >= self._waits.get(series.folder, _Wait()).until:
                self._treat(series, stop)
            if stop.is_set():
                return
        for series, gone in self.spool.late(self.configuration.quiet_seconds):
            self.warn(
                f"images of {series.name} came when {gone} earlier ones had been removed; send "
                "the whole series again"
            )
        if time.monotonic() - self._pruned > _PRUNE_EACH_S:
            self.spool.prune(self.configuration.retain_hours * 3600)
            self._pruned = time.monotonic()

    def _treat(self, series: SpooledSeries, stop: Event) -> None:
        """Segment a series by every rule that fits, and write down what came of it."""
        before = series.state() or State("started", ())
        # what this process has begun before, it did not die of
        starts = 1 if series.folder in self._begun else before.starts + 1
        state = State("started", series.names(), run=before.run + 1, starts=starts)
        self.spool.settle(series, state)
        self._begun.add(series.folder)
        try:
            rules = self._rules(series, state)
            deliveries = [
                delivery
                for name, rule in rules.items()
                for delivery in self._results(series, state, name, rule, stop)
            ]
            state.status, state.deliveries = "delivering" if rules else "skipped", deliveries
        except _StoppedError:
            state.starts -= 1
            self.spool.settle(series, state)
            return
        except Exception as error:  # noqa: BLE001 - one series' failure is its own
            if isinstance(error, DeviceLostError) and stop.is_set():
                return  # there is no model any more: another start of the node takes it up
            self._note_failure(series, state, error)
        else:
            self._waits.pop(series.folder, None)
        state.starts = 0
        self.spool.settle(series, state)
        if state.status == "skipped":
            self.announce(f"no rule fits {series.name}: {len(state.objects)} objects")
        elif state.status == "delivering":
            files = len({each.file for each in state.deliveries})
            self.announce(f"segmented {series.name}: {files} results")

    def _note_failure(self, series: SpooledSeries, state: State, error: Exception) -> None:
        """Let a series wait for what may pass, else call it failed."""
        tries = next((most for kind, most in _TRIES.items() if isinstance(error, kind)), 1)
        wait = self._waits.setdefault(series.folder, _Wait())
        wait.longer()
        state.why = _reason(error)
        if wait.tries < tries:
            self.warn(f"{series.name} waits and is tried again: {state.why}")
            return
        state.status = "failed"
        self._waits.pop(series.folder)
        self.warn(f"{series.name} failed: {state.why}")

    def _rules(self, series: SpooledSeries, state: State) -> dict[str, Rule]:
        first = series.objects / state.objects[0]
        with dicom_files(first, max_voxels=self.options.max_voxels) as (files, _):
            if not files:
                raise CaseError(f"{first.name} is no DICOM file", code="no-dicom")
            return self.configuration.rules_for(read_header(files[0]))

    def _results(
        self, series: SpooledSeries, state: State, name: str, rule: Rule, stop: Event
    ) -> list[Delivery]:
        """Make the results of one rule, and list who gets them."""
        stem = f"{name}-{state.run}"
        outputs = {each: f"{stem}.{each}.dcm" for each in rule.outputs}
        with _made_anew(series.results, stem) as folder:
            first, *others = sorted(
                (each for each in outputs if each != _REPORT),
                key=lambda each: each not in SEGMENTATIONS,
            )
            job = Job(
                input=series.objects,
                output=folder / outputs[first],
                report=folder / f"{stem}.json",
                sr=folder / outputs[_REPORT] if _REPORT in outputs else None,
                source=rule.source,
                select=rule.select,
                options=self.options,
                format=first,
            )
            check_outputs(job)
            read = read_job(job)
            for each in others:
                check_output(folder / outputs[each], read.case, format=each)
            with interrupted_by(lambda: _check_stopped(stop)):
                result = segment_job(self.segmenter, read, lambda *_: _check_stopped(stop))
            write_job(read, result)
            for each in others:
                write_labels(folder / outputs[each], read, result, format=each)
        return [Delivery(file, to) for file in outputs.values() for to in rule.send_to]


def check_rules(configuration: NodeConfiguration, options: RunOptions) -> None:
    """Check that the prompts of all rules are understood.

    Raises
    ------
    InputError
        One is not.
    """
    from medals_rt.common.choices import MODALITY_OF_DICOM

    for name, rule in configuration.rules.items():
        reading = replace(options.reading, modality=MODALITY_OF_DICOM[rule.modality])
        try:
            rule.source.read(reading)
        except InputError as error:
            raise InputError(f"rule {name}: {error}", code=error.code) from error


@contextmanager
def _made_anew(folder: Path, stem: str) -> Iterator[Path]:
    """Yield a folder without files of a stem; they are removed where not all of them are made."""

    def clear() -> None:
        for path in folder.glob(f"{stem}.*"):
            path.unlink()

    folder.mkdir(parents=True, exist_ok=True)
    clear()
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            clear()
        raise


def _check_stopped(stop: Event) -> None:
    if stop.is_set():
        raise _StoppedError


def _reason(error: Exception) -> str:
    if isinstance(error, MedalsError):
        return f"{error} ({error.code})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
