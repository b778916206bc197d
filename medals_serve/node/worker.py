"""The thread of a node that owns the model: it segments complete series, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Final

from medals_rt.common.errors import CaseError, DeviceLostError, InputError, MedalsError
from medals_rt.io.dicom.files import dicom_files, read_header
from medals_rt.io.registry import check_output, write_segmentation
from medals_rt.pipeline.job import segment_job
from medals_rt.pipeline.job_inputs import read_job
from medals_rt.pipeline.job_outputs import SEGMENTATIONS, check_outputs
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.job_results import write_job
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.segmenter import CaseSegmenter
from medals_serve.node.configuration import NodeConfiguration, Rule
from medals_serve.node.spool import Delivery, Spool, SpooledSeries, State

_REPORT: Final = "sr"
_POLL_S: Final = 0.5
_PRUNE_EACH_S: Final = 600.0


class _StoppedError(Exception):
    """The node is asked to end; the series is segmented again after the next start."""


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

    def run(self, stop: Event) -> None:
        """Work until told to stop; what is under way then is begun again at the next start."""
        self._give_up_killers()
        pruned = 0.0
        while not stop.is_set():
            for series in self.spool.complete(self.configuration.quiet_seconds):
                self._treat(series, stop)
                if stop.is_set():
                    return
            if time.monotonic() - pruned > _PRUNE_EACH_S:
                self.spool.prune(self.configuration.retain_hours * 3600)
                pruned = time.monotonic()
            stop.wait(_POLL_S)

    def _give_up_killers(self) -> None:
        """Mark what the process died of, again and again, as failed."""
        for series in self.spool.series():
            state = series.state()
            if state is not None and state.died_of:
                state.status, state.why = "failed", f"the node died of it {state.starts} times"
                self.spool.settle(series, state)
                self.warn(f"{series.name} failed: {state.why}")

    def _treat(self, series: SpooledSeries, stop: Event) -> None:
        """Segment a series by every rule that fits, and write down what came of it."""
        before = series.state() or State("started", ())
        state = State("started", series.names(), run=before.run + 1, starts=before.starts + 1)
        self.spool.settle(series, state)
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
        except DeviceLostError as error:
            if stop.is_set():  # there is no model any more: another start of the node takes it up
                return
            state.status, state.why = "failed", _reason(error)
            self.warn(f"{series.name} failed: {state.why}")
        except Exception as error:  # noqa: BLE001 - one series' failure is its own
            state.status, state.why = "failed", _reason(error)
            self.warn(f"{series.name} failed: {state.why}")
        state.starts = 0
        self.spool.settle(series, state)
        if state.status == "skipped":
            self.announce(f"no rule fits {series.name}: {len(state.objects)} objects")
        elif state.status == "delivering":
            files = len({each.file for each in state.deliveries})
            self.announce(f"segmented {series.name}: {files} results")

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
            result = segment_job(self.segmenter, read, _stopping(stop))
            write_job(read, result)
            for each in others:
                write_segmentation(
                    folder / outputs[each],
                    read.case,
                    result.labels_dhw,
                    instances_dhw=result.instances_dhw,
                    prompts=read.prompts,
                    model=result.report.bundle["name"],
                    notice=result.report.bundle["notice"],
                    format=each,
                )
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


def _stopping(stop: Event) -> Callable[[str, int, int], None]:
    def progress(_stage: str, _done: int, _total: int) -> None:
        if stop.is_set():
            raise _StoppedError

    return progress


def _reason(error: Exception) -> str:
    if isinstance(error, MedalsError):
        return f"{error} ({error.code})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
