"""A batch from start to end: what `medals-rt batch` does, as one call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.atomic_io import prepare_output
from medals_rt.common.errors import InputError, OutputError
from medals_rt.common.gpu import visible_gpus
from medals_rt.common.optional_deps import require
from medals_rt.common.progress import Progress
from medals_rt.pipeline.batch.claims import BatchStanding, Cells, settle_once, standing
from medals_rt.pipeline.batch.parts import parse_part
from medals_rt.pipeline.batch.plan import Batch, BatchPlan, plan_batch
from medals_rt.pipeline.batch.ray_cluster import run_on_ray
from medals_rt.pipeline.batch.records import Entry
from medals_rt.pipeline.batch.remote_files import local_places
from medals_rt.pipeline.batch.run import Listener, Silent, run_cases
from medals_rt.pipeline.batch.shared_cells import claims_file, identity_of, share_folders
from medals_rt.pipeline.batch.summary import summary_files, write_tables
from medals_rt.pipeline.batch.workers import (
    Place,
    places_on_cores,
    places_on_gpu,
    places_on_gpus,
    run_workers,
)
from medals_rt.prompts.prompt_set import read_prompts

_SILENT: Final = Silent()


@dataclass(frozen=True)
class BatchResult:
    """How a batch went.

    Attributes
    ----------
    entries
        How each case went that ended here, or was finished before; those that others have done at
        the same time are only in the tables.
    standing
        How many of all cases have ended, and how, whoever did them.
    count
        How many cases there are.
    tables
        Paths or URLs of the tables and the page; none while others still work on cases.
    warnings
        What was passed over among the inputs, and the like, a line each.
    """

    entries: tuple[Entry, ...]
    standing: BatchStanding
    count: int
    tables: tuple[str, ...]
    warnings: tuple[str, ...]


def run_batch(batch: Batch, listener: Listener = _SILENT) -> BatchResult:
    """Segment many cases with one opened model; called again, it continues where it stopped.

    A case that fails is an entry with its reason; the others go on. Where work is done in other
    processes (`processes`, `gpus`, and always on a GPU), a script must call this under
    ``if __name__ == "__main__":``, as `multiprocessing` says.

    Parameters
    ----------
    batch
        What to do.
    listener
        Hears how it goes.

    Raises
    ------
    InputError
        There is no case, something that is asked for can't be used, or another batch is writing to
        the folder (``folder-in-use``).
    OutputError
        A file can't be written; what is finished stays so.
    MedalsError
        The models can't be opened.
    """
    with prepared_batch(batch) as prepared:
        return prepared.run(listener)


@dataclass(frozen=True)
class PreparedBatch:
    """A batch of which all is known but the results.

    Attributes
    ----------
    batch, plan, bundle
        What is asked for, what that means, and with which model.
    own
        Places of the cases that may be done here.
    places
        Where workers work; none: in this process.
    """

    batch: Batch
    plan: BatchPlan
    bundle: Bundle
    own: Sequence[int]
    places: tuple[Place, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What users should know before the work begins."""
        lines = list(self.plan.passed_over)
        asked = self.batch.series or self.batch.select
        if asked and not any(case.job.series or case.job.select for case in self.plan.cases):
            lines.insert(
                0, "no case is a DICOM folder or zip: --series and --select change nothing"
            )
        if self.bundle.notice is not None:
            lines.append(self.bundle.notice)
        return tuple(lines)

    def run(self, listener: Listener) -> BatchResult:
        """Run the cases beside others who do the same batch; the last writes the tables.

        Raises
        ------
        MedalsError
            As `run_batch`.
        KeyboardInterrupt
            With what is to be said of how far the batch came.
        """
        batch, plan, count = self.batch, self.plan, len(self.plan.cases)
        asked = {"statistics": batch.statistics, "page": batch.preview}
        tables = summary_files(plan, **asked)
        identity = identity_of(
            plan,
            batch.options.deciding(),
            self.bundle.hash,
            tables=[file.name for file in tables],
            on_ray=batch.ray is not None,
        )
        with share_folders(plan, identity, tables) as cells:
            for file in tables:
                prepare_output(file)
            with _standing_told(cells, count):
                entries = self._entries(listener, cells)
            written = settle_once(
                cells,
                count,
                lambda: write_tables(plan, entries, cells, **asked, notice=self.bundle.notice),
            )
            now = standing(cells.read(0, count))
        shown = tuple(map(plan.remote.shown, tables)) if written else ()
        return BatchResult(tuple(entries.values()), now, count, shown, self.warnings)

    def _entries(self, listener: Listener, cells: Cells) -> dict[int, Entry]:
        """Run the cases in this process, in others of this machine, or on a cluster."""
        cases, options, own = self.plan.cases, self.batch.options, self.own
        if self.batch.ray is not None:
            return run_on_ray(
                cases,
                options,
                listener,
                address=self.batch.ray,
                workers=self.batch.processes,
                cells=cells,
                own=own,
            )
        places = self.places or places_on_gpu(options)
        if not places:
            return run_cases(cases, options, listener, cells=cells, own=own)
        return run_workers(
            cases,
            options,
            listener,
            places=places[: max(1, len(own))],
            cells=cells,
            cells_file=claims_file(self.plan),
            own=own,
        )


@contextmanager
def prepared_batch(batch: Batch, progress: Progress | None = None) -> Iterator[PreparedBatch]:
    """Find out all about a batch that can be known before the work begins.

    Copies of files behind URLs are there during the block.

    Parameters
    ----------
    batch
        What to do.
    progress
        Called if the model is downloaded.

    Raises
    ------
    InputError
        As `run_batch`.
    """
    _check(batch)
    places = _places(batch)
    with local_places(batch.inputs, batch.outputs, batch.reports) as (remote, inputs, out, reports):
        here = replace(batch, inputs=tuple(inputs), outputs=out, reports=reports)
        plan = plan_batch(here, remote)
        bundle = Bundle.open(resolve_bundle(batch.options.bundle, progress), verify=False)
        own: Sequence[int] = range(len(plan.cases))
        if batch.part is not None:
            own = parse_part(batch.part).indices(plan.cases)
        yield PreparedBatch(batch, plan, bundle, own, places)


def _check(batch: Batch) -> None:
    """Refuse what can't be used before any folder is looked at."""
    source = batch.source
    if batch.preview:
        require("--preview", "Matplotlib", "Jinja2")
    if source.file is not None and source.sentences:
        raise InputError(
            "prompts come from --prompts or from --prompt, not both; leave out one of them",
            code="prompts-twice",
        )
    if source.file is not None:
        read_prompts(source.file, batch.options.reading)


def _places(batch: Batch) -> tuple[Place, ...]:
    """Return where workers work that are asked for; none where none are, or on a cluster."""
    if batch.gpus is not None and (batch.processes is not None or batch.ray is not None):
        raise InputError(
            "--gpus starts a process on each GPU of this machine; leave out --processes and --ray",
            code="processes-twice",
        )
    if batch.ray is not None:
        require("--ray", "Ray")
        return ()
    if batch.gpus is not None:
        return places_on_gpus(batch.gpus, visible_gpus())
    return () if batch.processes is None else places_on_cores(batch.processes)


@contextmanager
def _standing_told(cells: Cells, count: int) -> Iterator[None]:
    """Say how far the batch came, where it ends early."""

    def with_standing(before: str = "") -> str:
        finished = standing(cells.read(0, count)).finished
        return (
            f"{before}{finished} of {count} cases are finished; the same command continues with "
            "the others"
        )

    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(with_standing()) from interrupt
    except OutputError as error:
        raise OutputError(with_standing(f"{error}; "), code=error.code) from error
