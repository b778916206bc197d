"""A job of a client: how far it is, and what came of it.

The work is that of `medals_rt.pipeline.job`, so that labels, report and statistics are those that
`medals-rt run` writes.
"""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from medals_rt.common.atomic_io import atomic_output, write_json
from medals_rt.common.errors import InputError
from medals_rt.common.interruption import interrupted_by
from medals_rt.common.notes import Note, warning
from medals_rt.inference.corrections import Correction, check_corrections, parts_of
from medals_rt.inference.hybrid_prompts import check_start
from medals_rt.io.format import stem
from medals_rt.io.palette import hex_color, label_color
from medals_rt.io.registry import FORMATS, check_own_grid
from medals_rt.pipeline.csv_tables import (
    LESION_COLUMNS,
    STATISTICS_COLUMNS,
    lesion_row,
    statistics_row,
    write_csv,
)
from medals_rt.pipeline.group_run import CoarseLabels
from medals_rt.pipeline.job import passes_recorded, segment_job
from medals_rt.pipeline.job_inputs import prepare_job, read_annotation
from medals_rt.pipeline.job_outputs import check_mesh, files_of_maps
from medals_rt.pipeline.job_request import Job, ReadJob
from medals_rt.pipeline.job_results import (
    measure,
    measure_lesions,
    write_labels,
    write_maps,
    write_preview,
)
from medals_rt.pipeline.output_grid import GridRequest, lost_notes, on_grid
from medals_rt.pipeline.report import RunReport
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.pipeline.window_groups import part_of_annotation
from medals_rt.prompts.classes import ClassKey
from medals_rt.prompts.prompt_set import PromptSet
from medals_serve.images import CaseCache, ServedImage, write_placed
from medals_serve.job_requests import OUTPUT_KINDS
from medals_serve.problems import JobEndedError, ServiceError, log_failure, problem_of

JobStatus: TypeAlias = Literal["queued", "running", "done", "failed", "canceled"]
OVER: Final = frozenset({"done", "failed", "canceled"})


_MAPS: Final = "probabilities.zip"


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
        self._before = corrects
        self._past: _Past | None = None
        self._remarks: tuple[Note, ...] = ()
        self._status: JobStatus = "queued"
        self._stage: str | None = None
        self._done = self._total = 0
        self._coarse = 0
        self._began = self._stage_began = 0.0
        self._problem: dict[str, Any] | None = None
        self._canceled: str | None = None
        self._prompts: PromptSet | None = None
        self._report: RunReport | None = None
        self._lost: dict[str, tuple[str, ...]] = {}
        self._lock = threading.RLock()
        self._writing = threading.Lock()

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
        check_corrections(corrections, read.case.volume.shape_dhw, read.prompts, preset)
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
            made = Correction.of(before.labels_dhw(), read.annotation_dhw, asked)
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
        self._finished_report()
        if self._past is None:
            raise AssertionError(self.name)
        return self._past

    @property
    def options(self) -> dict[str, Any]:
        """Those that decide about its result."""
        found: dict[str, Any] = self._job.options.deciding()["segment"]
        return found

    @property
    def drawing(self) -> Path | None:
        """The labels that guide it: those of the first of the jobs that led to it."""
        return None if self._past is None else self._past.drawing

    def run(self, segmenter: Segmenter) -> None:
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

    def _run(self, segmenter: Segmenter) -> None:
        began = time.perf_counter()
        read = self.prepare()
        read = replace(read, seconds={"read": time.perf_counter() - began})
        with passes_recorded(segmenter), interrupted_by(self._check_ended):
            result = segment_job(
                segmenter, read, self._advance, kept=self.image.kept, on_coarse=self._add_coarse
            )
        self._check_ended()
        arrays = {"labels_dhw": result.labels_dhw}
        if result.instances_dhw is not None:
            arrays["instances_dhw"] = result.instances_dhw
        with atomic_output(self._job.output) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        self._keep(self._job.output)
        if self._job.probabilities is not None:
            self._keep(self._pack_maps(read, result))
        with self._lock:
            self._prompts, self._report = read.prompts, result.report
            self._end("done")

    def _pack_maps(self, read: ReadJob, result: Result) -> Path:
        """Write the probability map of each class, all in one archive: `Result` isn't kept."""
        files = files_of_maps(self._job, read.prompts)
        packed = self.folder / _MAPS
        with (
            TemporaryDirectory(dir=self.folder) as made,
            atomic_output(packed) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            for label, path in files.items():
                one = Path(made) / path.name
                write_maps({label: one}, read.case, result)
                archive.write(one, path.name)
                one.unlink()
        return packed

    def _advance(self, stage: str, done: int, total: int) -> None:
        """Note progress; end the job where that was asked for, or its time is over."""
        self._check_ended()
        with self._lock:
            if stage != self._stage:
                self._stage, self._stage_began = stage, time.monotonic()
            self._done, self._total = done, total
            self.version += 1

    def _add_coarse(self, found: CoarseLabels) -> None:
        """Keep what the coarse stage found as a file, while the fine one runs."""
        self._check_ended()
        path = self._coarse_file(self._coarse + 1)
        write_placed(path, found.labels_dhw, found.affine_lps)
        self._keep(path)
        with self._lock:
            self._coarse += 1
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

    def state(self, position: int | None) -> dict[str, Any]:
        """Describe it; see `schemas.JobState`."""
        with self._lock:
            running = self._status == "running"
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
                "coarse_parts": self._coarse,
                "corrects": self.corrects,
                "probabilities": self._job.probabilities is not None,
                "seconds_left": left,
                "seconds_run": round(
                    time.monotonic() - self._began if running else self.seconds_run, 3
                ),
                "classes": self._classes(),
                "notes": [] if self._report is None else _as_json(self._report.notes),
                "incomplete": None if self._report is None else self._report.incomplete,
                "problem": self._problem,
            }

    def _classes(self) -> list[dict[str, Any]] | None:
        if self._report is None:
            return None
        return [
            {
                "label": each.label,
                "class_id": f"{each.modality}/{each.kind}/{each.id}" if each.id else None,
                "name": each.name,
                "sentence": each.sentence,
                "modality": each.modality,
                "kind": each.kind,
                "color": hex_color(label_color(each.label, each.name)),
                "voxels": each.voxels,
                "volume_ml": each.volume_ml,
                "lesions": each.components,
            }
            for each in self._report.classes
        ]

    # What came of it ------------------------------------------------------------------------------

    def labels(
        self, kind: str, grid: GridRequest | None = None, mesh_reduction: float = 0.0
    ) -> Path:
        """Make the labels in a format of `OUTPUT_KINDS`; return the file.

        Parameters
        ----------
        kind
            The format.
        grid
            The one that they are wanted on; None: the scan's.
        mesh_reduction
            Share of a mesh's faces to leave out.

        Raises
        ------
        InputError
            There is no such format, or this image can't have it.
        ServiceError
            The job has no result.
        """
        found = OUTPUT_KINDS.get(kind)
        if found is None:
            raise InputError(
                f"there is no format {kind!r:.60}; use one of {', '.join(OUTPUT_KINDS)}",
                code="unknown-format",
            )
        wanted = grid or GridRequest()
        words: list[str] = [f"result-{found.format}"]
        if not wanted.is_scans:
            check_own_grid(f"result{found.ending}", found.format)
            parts = (*(wanted.spacing_hwd_mm or ("scan",)), wanted.crop_mm)
            words.extend(map(str, parts))
        output = self.folder / f"result{found.ending}"
        job = replace(self._job, output=output, mesh_reduction=mesh_reduction)
        check_mesh(job)
        if mesh_reduction:
            words.append(f"less-{mesh_reduction}")
        name = "-".join(words).replace(".", "_") + found.ending

        def write(path: Path) -> None:
            read, result = self._outcome()
            wanted.check_size(read.case.volume, self._job.options.max_voxels)
            case, moved, _ = on_grid(read.case, result, wanted)
            write_labels(path, replace(read, case=case, job=job), moved, format=found.format)
            self._lost[name] = tuple(note.text for note in lost_notes(result, moved))

        return self._made(name, write)

    def warnings(self, path: Path) -> tuple[str, ...]:
        """Return what a file that `labels` made can't hold."""
        return self._lost.get(path.name, ())

    def coarse(self, number: int) -> Path:
        """Return a part of the coarse result as NIfTI, on the coarse stage's grid.

        Raises
        ------
        ServiceError
            It is not there yet, or there is no such part.
        """
        if not 1 <= number <= self._coarse:
            raise ServiceError(
                f"there is no coarse part {number}: parts are numbered from 1, and the job has "
                f"{self._coarse} so far (`coarse_parts` of its state)",
                code="coarse-not-there",
                status=HTTPStatus.CONFLICT,
            )
        return self._coarse_file(number)

    def labels_dhw(self) -> npt.NDArray[Any]:
        """Return the labels in canonical orientation, `(D, H, W)`; see `labels`."""
        return self._outcome()[1].labels_dhw

    def labels_kji(self) -> npt.NDArray[Any]:
        """Return the labels on the file's own grid, `(k, j, i)`; see `labels`."""
        read, result = self._outcome()
        return np.asarray(read.case.volume.restore(result.labels_dhw))

    def instances(self) -> Path:
        """Make the numbered lesions as NIfTI; see `labels`."""

        def write(path: Path) -> None:
            read, result = self._outcome()
            if result.instances_dhw is None:
                raise InputError("the job has no numbered lesions", code="no-instances")
            lesions = replace(result, labels_dhw=result.instances_dhw, instances_dhw=None)
            write_labels(path, read, lesions, format="nifti")

        return self._made("instances.nii.gz", write)

    def probabilities(self) -> Path:
        """Return the archive of probability maps, as ``medals-rt run --probabilities`` writes.

        Raises
        ------
        InputError
            The job wasn't asked for them.
        ServiceError
            The job has no result.
        """
        self._finished_report()
        if self._job.probabilities is None:
            raise InputError(
                "the job kept no probability maps; ask for them by the option probabilities",
                code="no-probabilities",
            )
        return self.folder / _MAPS

    def report(self) -> Path:
        """Make the report that ``medals-rt run --report`` writes."""
        report = self._finished_report()
        return self._made("report.json", lambda path: write_json(path, report.to_dict()))

    def preview(self) -> Path:
        """Make the picture that ``medals-rt run --preview`` draws."""
        return self._made("preview.png", lambda path: write_preview(path, *self._outcome()))

    def statistics(
        self, form: Literal["json", "csv"], table: Literal["classes", "lesions"]
    ) -> Path:
        """Make the statistics that ``medals-rt run --statistics`` writes, also as JSON."""

        def write(path: Path) -> None:
            read, result = self._outcome()
            columns: tuple[str, ...] = STATISTICS_COLUMNS
            rows = [statistics_row(each) for each in measure(read, result)]
            if table == "lesions":
                columns = LESION_COLUMNS
                rows = [lesion_row(each) for each in measure_lesions(read, result)]
            if form == "csv":
                write_csv(path, columns, rows)
            else:
                write_json(path, {table: [dict(zip(columns, row, strict=True)) for row in rows]})

        return self._made(f"{table}.{form}", write)

    def download_name(self, file: Path) -> str:
        """Return the name that a file of this job is offered under."""
        base = stem(Path(self.image.shown), FORMATS)
        _, _, ending = file.name.partition(".")
        what = "seg" if file.name.startswith("result-") else file.name.partition(".")[0]
        return f"{base}_{what}.{ending}"

    def _finished_report(self) -> RunReport:
        if self._report is None:
            raise ServiceError(
                f"the job has no result: it is {self._status}",
                code="job-not-done",
                status=HTTPStatus.CONFLICT,
            )
        return self._report

    def _outcome(self) -> tuple[ReadJob, Result]:
        """Return what was read and found, as when the job ended."""
        report = self._finished_report()
        if self._prompts is None:
            raise AssertionError(self.name)
        with np.load(self._job.output, allow_pickle=False) as stored:
            arrays = dict(stored)
        result = Result(arrays["labels_dhw"], arrays.get("instances_dhw"), {}, report)
        case = self._cases.case(self.image)
        return ReadJob(self._job, case, self._prompts, None, {}), result

    def _made(self, name: str, write: Callable[[Path], None]) -> Path:
        """Make a file of the job's folder once."""
        self._finished_report()
        path = self.folder / name
        with self._writing:
            if not path.exists():
                write(path)
                self._keep(path)
        return path


def _as_json(notes: tuple[Note, ...]) -> list[dict[str, Any]]:
    return [asdict(note) for note in notes]
