"""A job of a client: what it is asked for, and how far it is.

The work is that of `medals_rt.pipeline.job`, so that labels, report and statistics are those that
`medals-rt run` writes; see `job_files` for what came of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from medals_rt.common.interruption import interrupted_by
from medals_rt.common.notes import Note, warning
from medals_rt.inference.corrections import Correction, check_corrections, parts_of
from medals_rt.inference.hybrid_prompts import check_start
from medals_rt.io.format import stem
from medals_rt.io.grids import grid_of
from medals_rt.io.registry import FORMATS
from medals_rt.pipeline.group_run import CoarseLabels
from medals_rt.pipeline.job import passes_recorded, segment_job
from medals_rt.pipeline.job_inputs import prepare_job, read_annotation
from medals_rt.pipeline.job_request import Job, ReadJob
from medals_rt.pipeline.segmenter import CaseSegmenter
from medals_rt.pipeline.window_groups import part_of_annotation
from medals_rt.prompts.classes import ClassKey
from medals_serve.images import CaseCache, ServedImage, write_placed
from medals_serve.job_files import JobFiles
from medals_serve.metrics import Metrics
from medals_serve.problems import JobEndedError, ServiceError, log_failure, problem_of

JobStatus: TypeAlias = Literal["queued", "running", "done", "failed", "canceled"]
OVER: Final = frozenset({"done", "failed", "canceled"})


@dataclass(frozen=True)
class _Past:
    """What a job takes over from those that led to it, each a correction of the one before.

    Attributes
    ----------
    classes
        What labels mean in any of them.
    drawing
        The labels that guided the first, if any did.
    corrections
        Of all of their classes, so that those come back with a class that was left out meanwhile;
        packed, for each holds whole organs.
    """

    classes: Mapping[int, ClassKey]
    drawing: Path | None = None
    corrections: tuple[bytes, ...] = ()


class ServedJob:
    """One job. The thread of the engine runs it, those of requests watch it.

    Parameters
    ----------
    image
        What is segmented.
    job
        What is asked for; its output's folder belongs to this job alone, and bears its id.
    cases
        Where the image is had from.
    seconds
        That it may run.
    keep
        Accounts for a file that was written, or removes it and raises.
    metrics
        Where it is counted once it is over.
    corrects
        The job whose result is corrected, if any.
    """

    def __init__(
        self,
        image: ServedImage,
        job: Job,
        cases: CaseCache,
        seconds: float,
        keep: Callable[[Path], None],
        metrics: Metrics,
        corrects: ServedJob | None = None,
    ) -> None:
        self.image = image
        self.folder = job.output.parent
        self.name = self.folder.name
        self.corrects = None if corrects is None else corrects.name
        self.version = 0
        self.seconds_run = 0.0
        self._job = job
        self._cases = cases
        self._seconds = seconds
        self._keep = keep
        self._metrics = metrics
        self._before = corrects
        self._past: _Past | None = None
        self._remarks: tuple[Note, ...] = ()
        self._status: JobStatus = "queued"
        self._stage: str | None = None
        self._done = self._total = 0
        self._coarse: list[tuple[int, ...]] = []
        self._began = self._stage_began = 0.0
        self._problem: dict[str, Any] | None = None
        self._canceled: str | None = None
        self._files: JobFiles | None = None
        self._lock = threading.RLock()

    @property
    def status(self) -> JobStatus:
        """Where it is."""
        return self._status

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self._status in OVER

    def cancel(self, why: str = "the job was canceled") -> None:
        """Cancel it: at once while it waits, soon while it runs, in the middle of a window too."""
        with self._lock:
            if self.is_over:
                return
            self._canceled = why
            if self._status == "queued":
                self._end("canceled", JobEndedError(why, code="job-canceled"))

    def prepare(self) -> ReadJob:
        """Read what the job needs and check it, as `medals-rt run` does before the model opens.

        Raises
        ------
        InputError
            The request can't be used.
        ServiceError
            The job that is corrected has no result, or is of other classes.
        """
        job, past = self._job, self._past
        if past is not None and self.corrects is not None:  # its corrections hold what was drawn
            job = replace(job, spatial_prompts=None)
        read = prepare_job(job, self._cases.case(self.image))
        if past is None:
            past = self._past = self._past_of(read)
            self._before = None  # else each would keep all before it
        if self.corrects is None:
            return read
        labels = read.prompts.labels
        lesions = {label for label, key in past.classes.items() if key.kind == "lesion"}
        unpacked = [Correction.from_bytes(each) for each in past.corrections]
        corrections = parts_of(unpacked, labels, lesions.difference(labels))
        drawn = None
        if past.drawing is not None:
            annotation, _ = read_annotation(past.drawing, read.case.volume, read.prompts)
            drawn = part_of_annotation(annotation, labels)
        preset = job.options.segment.algorithm
        check_start(preset, annotated=drawn is not None or bool(corrections))
        check_corrections(corrections, grid_of(read.case.volume), read.prompts, preset)
        case = replace(read.case, notes=(*read.case.notes, *self._remarks))
        return replace(read, case=case, annotation_dhw=drawn, corrections=corrections)

    def _past_of(self, read: ReadJob) -> _Past:
        asked = {each.label: each.class_key for each in read.prompts.prompts}
        before = self._before
        if before is None:
            return _Past(asked, self._job.spatial_prompts)
        past = before.past()
        labels = {key: label for label, key in past.classes.items()}
        unlike = [
            label
            for label, key in asked.items()
            if past.classes.get(label, key) != key or labels.get(key, label) != label
        ]
        if unlike:
            raise ServiceError(
                f"the labels {unlike} mean other classes in the job that is corrected, or in one "
                "that led to it: keep the label of a class from job to job",
                code="corrects-other-classes",
                status=HTTPStatus.CONFLICT,
            )
        corrections = past.corrections
        if read.annotation_dhw is not None:
            made = Correction.of(before.files.labels_dhw(), read.annotation_dhw, asked)
            corrections = (*corrections, made.to_bytes())
        others = [name for name, value in self.options.items() if before.options[name] != value]
        if others:
            text = (
                f"the corrected result was made with other options ({', '.join(others)}), so that "
                "this one may differ from it anywhere"
            )
            self._remarks = (warning("corrects-other-options", text),)
        return _Past({**past.classes, **asked}, past.drawing, corrections)

    def past(self) -> _Past:
        """Return what jobs that correct this one take over.

        Raises
        ------
        ServiceError
            It has no result.
        """
        if self._past is None or self._files is None:
            raise self._no_result()
        return self._past

    @property
    def files(self) -> JobFiles:
        """Its result.

        Raises
        ------
        ServiceError
            It has none.
        """
        if self._files is None:
            raise self._no_result()
        return self._files

    def _no_result(self) -> ServiceError:
        return ServiceError(
            f"the job has no result: it is {self._status}",
            code="job-not-done",
            status=HTTPStatus.CONFLICT,
        )

    @property
    def class_keys(self) -> tuple[ClassKey, ...]:
        """The classes that it is asked for, and those of the jobs that led to it."""
        return () if self._past is None else tuple(self._past.classes.values())

    @property
    def options(self) -> dict[str, Any]:
        """Those that decide about its result."""
        found: dict[str, Any] = self._job.options.deciding()["segment"]
        return found

    @property
    def drawing(self) -> Path | None:
        """The labels that guide it: those of the first of the jobs that led to it."""
        return None if self._past is None else self._past.drawing

    def run(self, segmenter: CaseSegmenter) -> None:
        """Segment, and keep what came of it; every error becomes the job's."""
        with self._lock:
            if self._status != "queued":
                return
            self._status = "running"
            self._began = time.monotonic()
            self.version += 1
        try:
            self._run(segmenter)
        except JobEndedError as error:
            self._end("canceled" if error.code == "job-canceled" else "failed", error)
        except Exception as error:  # noqa: BLE001 - the server lives on; the client sees it
            if self._canceled is not None:  # its folder is gone, as when its session ended
                self._end("canceled", JobEndedError(self._canceled, code="job-canceled"))
                return
            log_failure(error)
            self._end("failed", error)

    def _run(self, segmenter: CaseSegmenter) -> None:
        began = time.perf_counter()
        read = self.prepare()
        read = replace(read, seconds={"read": time.perf_counter() - began})
        with passes_recorded(segmenter), interrupted_by(self._check_ended):
            result = segment_job(
                segmenter, read, self._advance, kept=self.image.kept, on_coarse=self._add_coarse
            )
        self._check_ended()
        files = JobFiles(
            self._job, self.image, self._cases, self._keep, read.prompts, result.report
        )
        files.store(read, result)
        with self._lock:
            self._files = files
            self._end("done")

    def _advance(self, stage: str, done: int, total: int) -> None:
        """Note progress; end the job where that was asked for, or its time is over."""
        self._check_ended()
        with self._lock:
            if stage != self._stage:
                self._stage, self._stage_began = stage, time.monotonic()
            self._done, self._total = done, total
            self.version += 1

    def _add_coarse(self, found: CoarseLabels) -> None:
        """Keep what the coarse stage found as a file, while the fine one runs.

        A job that is tried again after its model was lost finds the same again.
        """
        self._check_ended()
        if found.labels in self._coarse:
            return
        path = self._coarse_file(len(self._coarse) + 1)
        write_placed(path, found.labels_dhw, found.affine_lps)
        self._keep(path)
        with self._lock:
            self._coarse.append(found.labels)
            self.version += 1

    def _coarse_file(self, number: int) -> Path:
        return self.folder / f"coarse-{number}.nii.gz"

    def _check_ended(self) -> None:
        if self._canceled is not None:
            raise JobEndedError(self._canceled, code="job-canceled")
        if time.monotonic() - self._began > self._seconds:
            raise JobEndedError(
                f"the job took more than {self._seconds:g} s; ask for fewer classes, or set "
                "time_budget",
                code="job-overdue",
            )

    def _end(self, status: JobStatus, error: Exception | None = None) -> None:
        with self._lock:
            if self._began:
                self.seconds_run = time.monotonic() - self._began
            self._problem = None if error is None else problem_of(error)
            self._status = status
            self.version += 1
        self._metrics.count("medals_jobs_total", status=status)
        self._metrics.count("medals_job_seconds_total", self.seconds_run)

    def state(self, position: int | None) -> dict[str, Any]:
        """Describe it; see `schemas.JobState`."""
        with self._lock:
            running, files = self._status == "running", self._files
            left = None
            if running and self._done:
                spent = time.monotonic() - self._stage_began
                left = round(spent / self._done * (self._total - self._done), 1)
            return {
                "job": self.name,
                "image": self.image.name,
                "status": self._status,
                "position": position,
                "stage": self._stage,
                "windows_done": self._done,
                "windows_total": self._total,
                "coarse_parts": len(self._coarse),
                "corrects": self.corrects,
                "probabilities": self._job.probabilities is not None,
                "seconds_left": left,
                "seconds_run": round(
                    time.monotonic() - self._began if running else self.seconds_run, 3
                ),
                "classes": None if files is None else files.classes(),
                "notes": [] if files is None else [asdict(each) for each in files.report.notes],
                "incomplete": None if files is None else files.report.incomplete,
                "problem": self._problem,
            }

    def coarse(self, number: int) -> Path:
        """Return a part of the coarse result as NIfTI, on the coarse stage's grid.

        Raises
        ------
        ServiceError
            It is not there yet, or there is no such part.
        """
        if not 1 <= number <= len(self._coarse):
            raise ServiceError(
                f"there is no coarse part {number}: parts are numbered from 1, and the job has "
                f"{len(self._coarse)} so far (`coarse_parts` of its state)",
                code="coarse-not-there",
                status=HTTPStatus.CONFLICT,
            )
        return self._coarse_file(number)

    def download_name(self, file: Path) -> str:
        """Return the name that a file of this job is offered under."""
        base = stem(Path(self.image.shown), FORMATS)
        _, _, ending = file.name.partition(".")
        what = "seg" if file.name.startswith("result-") else file.name.partition(".")[0]
        return f"{base}_{what}.{ending}"
