"""The result of a job as files: what it left when it ended, and what is made of that when asked."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from medals_rt.common.atomic_io import atomic_output, write_json
from medals_rt.common.errors import InputError
from medals_rt.io.palette import hex_color, label_color
from medals_rt.io.registry import check_own_grid
from medals_rt.pipeline.csv_tables import (
    LESION_COLUMNS,
    STATISTICS_COLUMNS,
    lesion_row,
    statistics_row,
    write_csv,
)
from medals_rt.pipeline.job_outputs import check_mesh, files_of_maps
from medals_rt.pipeline.job_request import Job, ReadJob
from medals_rt.pipeline.job_writing import (
    measure,
    measure_lesions,
    write_labels,
    write_maps,
    write_preview,
)
from medals_rt.pipeline.output_grid import GridRequest, lost_notes, on_grid
from medals_rt.pipeline.report import RunReport
from medals_rt.pipeline.segmenter import Result
from medals_rt.prompts.prompt_set import PromptSet
from medals_serve.images import CaseCache, ServedImage
from medals_serve.job_requests import OUTPUT_KINDS

_MAPS: Final = "probabilities.zip"


@dataclass(frozen=True)
class JobFile:
    """A file of a job.

    Attributes
    ----------
    path
        Where it is, or will be.
    is_there
        Whether it has been made.
    make
        Makes it, unless somebody did meanwhile, and returns its path; takes the memory of an image.
    """

    path: Path
    is_there: bool
    make: Callable[[], Path]


class JobFiles:
    """The result of a job, in its folder. Methods may be called by any thread.

    Those that name a file check what is asked for, and leave it to their caller to have it made.

    Parameters
    ----------
    job
        What was asked for.
    image, cases
        What was segmented, and where it is had from.
    keep
        Accounts for a file that was written, or removes it and raises.
    prompts, report
        What was read and found.
    """

    def __init__(
        self,
        job: Job,
        image: ServedImage,
        cases: CaseCache,
        keep: Callable[[Path], None],
        prompts: PromptSet,
        report: RunReport,
    ) -> None:
        self.report = report
        self._job = job
        self._image = image
        self._cases = cases
        self._keep = keep
        self._prompts = prompts
        self._folder = job.output.parent
        self._lost: dict[str, tuple[str, ...]] = {}
        self._kept: set[str] = set()
        self._writing = threading.Lock()

    def store(self, read: ReadJob, result: Result) -> None:
        """Write what all other files are made of."""
        arrays = {"labels_dhw": result.labels_dhw}
        if result.instances_dhw is not None:
            arrays["instances_dhw"] = result.instances_dhw
        with atomic_output(self._job.output) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        self._keep(self._job.output)
        if self._job.probabilities is not None:
            self._store_maps(read, result)

    def _store_maps(self, read: ReadJob, result: Result) -> None:
        """Write the probability map of each class, all in one archive: `Result` isn't kept."""
        packed = self._folder / _MAPS
        with (
            TemporaryDirectory(dir=self._folder) as made,
            atomic_output(packed) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            for label, path in files_of_maps(self._job, read.prompts).items():
                one = Path(made) / path.name
                write_maps({label: one}, read.case, result)
                archive.write(one, path.name)
                one.unlink()
        self._keep(packed)

    def _outcome(self) -> tuple[ReadJob, Result]:
        """Return what was read and found, as when the job ended."""
        with np.load(self._job.output, allow_pickle=False) as stored:
            arrays = dict(stored)
        result = Result(arrays["labels_dhw"], arrays.get("instances_dhw"), {}, self.report)
        case = self._cases.case(self._image)
        return ReadJob(self._job, case, self._prompts, None, {}), result

    def _file(self, name: str, write: Callable[[Path], None]) -> JobFile:
        """Name a file that is made once."""
        path = self._folder / name

        def make() -> Path:
            with self._writing:
                if name not in self._kept:
                    write(path)
                    self._keep(path)
                    self._kept.add(name)
            return path

        return JobFile(path, name in self._kept, make)

    def classes(self) -> list[dict[str, Any]]:
        """Describe what was found; see `schemas.FoundClass`."""
        keys = {each.label: each.class_key for each in self._prompts.prompts}
        return [
            {
                "label": each.label,
                "class_id": None if keys[each.label].is_free_text else keys[each.label].bank_key,
                "name": each.name,
                "sentence": each.sentence,
                "modality": each.modality,
                "kind": each.kind,
                "color": hex_color(label_color(each.label, each.name)),
                "voxels": each.voxels,
                "volume_ml": each.volume_ml,
                "lesions": each.components,
            }
            for each in self.report.classes
        ]

    def labels(
        self, kind: str, grid: GridRequest | None = None, mesh_reduction: float = 0.0
    ) -> JobFile:
        """Name the labels in a format of `OUTPUT_KINDS`.

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
        output = self._folder / f"result{found.ending}"
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

        return self._file(name, write)

    def warnings(self, path: Path) -> tuple[str, ...]:
        """Return what a file that `labels` made can't hold."""
        return self._lost.get(path.name, ())

    def labels_dhw(self) -> npt.NDArray[Any]:
        """Return the labels in canonical orientation, `(D, H, W)`."""
        return self._outcome()[1].labels_dhw

    def labels_kji(self) -> npt.NDArray[Any]:
        """Return the labels on the file's own grid, `(k, j, i)`."""
        read, result = self._outcome()
        return np.asarray(read.case.volume.restore(result.labels_dhw))

    def instances(self) -> JobFile:
        """Name the numbered lesions as NIfTI.

        Raises
        ------
        InputError
            There are none.
        """

        def write(path: Path) -> None:
            read, result = self._outcome()
            if result.instances_dhw is None:
                raise InputError("the job has no numbered lesions", code="no-instances")
            lesions = replace(result, labels_dhw=result.instances_dhw, instances_dhw=None)
            write_labels(path, read, lesions, format="nifti")

        return self._file("instances.nii.gz", write)

    def probabilities(self) -> JobFile:
        """Name the archive of probability maps, as ``medals-rt run --probabilities`` writes.

        Raises
        ------
        InputError
            The job wasn't asked for them.
        """
        if self._job.probabilities is None:
            raise InputError(
                "the job kept no probability maps; ask for them by the option probabilities",
                code="no-probabilities",
            )
        path = self._folder / _MAPS
        return JobFile(path, is_there=True, make=lambda: path)

    def report_file(self) -> JobFile:
        """Name the report that ``medals-rt run --report`` writes."""
        return self._file("report.json", lambda path: write_json(path, self.report.to_dict()))

    def preview(self) -> JobFile:
        """Name the picture that ``medals-rt run --preview`` draws."""
        return self._file("preview.png", lambda path: write_preview(path, *self._outcome()))

    def statistics(
        self, form: Literal["json", "csv"], table: Literal["classes", "lesions"]
    ) -> JobFile:
        """Name the statistics that ``medals-rt run --statistics`` writes, also as JSON."""

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

        return self._file(f"{table}.{form}", write)
