"""The cells of a batch in one file, for processes of one machine or of many on a shared disk.

Locks are the operating system's, byte by byte (POSIX `fcntl`): one a case, on one open file. They
end with their process, however that ends, and with their machine as the file server has it (NFSv4:
when its lease runs out, 90 seconds by default; NFSv3: when it is started again). Leases by
heartbeat would need clocks that agree, wait minutes for every dead process, and be lost by one that
was only stopped for a while; the kernel knows at once. They fail where locks stay on one machine
(NFS mounted with ``nolock`` or ``local_lock``, most object stores as folders): work is then done
twice, but files are still whole, since each is renamed into its place and holds the same labels.

The content is read under the lock: taking one makes NFS clients drop what they had cached of the
file, and giving it back makes them write out.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from medals_rt.common.atomic_io import leftovers, prepare_output
from medals_rt.common.distribution import VERSION
from medals_rt.common.errors import InputError
from medals_rt.common.folders import STATE_FOLDER
from medals_rt.pipeline.batch.claims import OPEN, Cells, LocalCells, is_settled
from medals_rt.pipeline.batch.inputs import input_sizes
from medals_rt.pipeline.batch.plan import BatchPlan
from medals_rt.pipeline.batch.records import asked_of, stated_prompts

CLAIMS_FILE: Final = ".claims"

_HEADER_BYTES: Final = 64
"""SHA-256 (hex) of what the batch is."""
_LOCKS_AT: Final = 2**40
"""Where the bytes lie that are locked: beyond the content, which others read meanwhile."""
_GATE: Final = _LOCKS_AT - 1
"""Held for a moment by who comes in."""
_PRESENCE: Final = _LOCKS_AT - 2
"""Shared by all who work on the batch."""


class SharedCells:
    """Cells in a file that this process has opened once; see `Cells`.

    A process must not open the file a second time: closing either would end all its locks.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)

    def close(self) -> None:
        """End all locks of this process."""
        os.close(self._file)

    def read(self, start: int, count: int) -> bytes:
        """Return some cells."""
        return os.pread(self._file, count, _HEADER_BYTES + start)

    def write(self, index: int, value: int) -> None:
        """Change a cell that this process holds."""
        os.pwrite(self._file, bytes([value]), _HEADER_BYTES + index)

    def hold(self, index: int) -> bool:
        """Lock a case; False where another process has it."""
        return _lock(self._file, _LOCKS_AT + index)

    def free(self, index: int) -> None:
        """Unlock a case."""
        _unlock(self._file, _LOCKS_AT + index)

    def join(self) -> None:
        """Be counted among those who work on the batch, while another of them is."""
        _lock(self._file, _PRESENCE, shared=True, wait=True)

    def enter(self, identity: str, count: int) -> bool:
        """Begin the batch, or join others that work on the same; False where they do another.

        Where nobody works on it, all cells are as new: what was finished is looked at again.
        """
        _lock(self._file, _GATE, wait=True)
        try:
            if _lock(self._file, _PRESENCE):
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, identity.encode() + bytes([OPEN]) * count, 0)
            elif os.pread(self._file, _HEADER_BYTES, 0) != identity.encode():
                return False
            self.join()
        finally:
            _unlock(self._file, _GATE)
        return True


@contextmanager
def share_folders(
    plan: BatchPlan, identity: str, tables: tuple[Path, ...], own: Sequence[int]
) -> Iterator[Cells]:
    """Work in the folders of a batch, results and reports, beside others that do the same batch.

    Yields the cells of its cases, and one more for the tables that the last one writes. The first
    who comes in removes what killed processes left half written.

    Parameters
    ----------
    plan
        The batch.
    identity
        As `identity_of`.
    tables
        Files about all cases that will be written.
    own
        Places of the cases that this process may take.

    Raises
    ------
    InputError
        Another batch works there, or a folder can't be written or locked.
    """
    with ExitStack() as held:
        cells: Cells | None = None
        for folder in dict.fromkeys((plan.reports.resolve(), plan.results.resolve())):
            file = folder / STATE_FOLDER / CLAIMS_FILE
            prepare_output(file)
            try:
                entered = _enter(held, file, identity, len(plan.cases) + 1)
            except OSError as error:
                raise InputError(
                    f"can't lock {folder} against other batches: {error.strerror or error}; "
                    "name a folder on another disk",
                    code="folder-not-lockable",
                ) from error
            if entered is None:
                raise InputError(
                    f"another batch is writing to {folder}, of other cases or options, or of scans "
                    "that have changed since; wait until it has ended, or name another folder of "
                    "outputs",
                    code="folder-in-use",
                )
            cells = cells or entered
        if cells is None:
            raise AssertionError(plan)
        if not any(map(is_settled, cells.read(0, len(plan.cases)))):
            remove_leftovers(plan, cells, own, tables)
        yield cells


@contextmanager
def joined_cells(file: Path) -> Iterator[SharedCells]:
    """Open the cells that a parent process shares; its presence makes sure that they stay."""
    cells = SharedCells(file)
    try:
        cells.join()
        yield cells
    finally:
        cells.close()


def claims_file(plan: BatchPlan) -> Path:
    """Path of the file of cells."""
    return plan.reports.resolve() / STATE_FOLDER / CLAIMS_FILE


def identity_of(
    plan: BatchPlan, options: Mapping[str, Any], bundle_hash: str, **more: object
) -> str:
    """SHA-256 (hex) of what those who share a folder must agree about.

    All that decides results, names and kinds of files, model and version. Of inputs the names in
    the folder of inputs, which may be another place on another machine, and the sizes.

    Raises
    ------
    InputError
        The prompts can't be read.
    """
    prompts_of = cache(stated_prompts)
    cases = [
        (
            case.name,
            case.job.output.name,
            [*case.job.output_files(), *case.job.output_folders()],
            case.given,
            sizes,
            asked_of(case.job, prompts_of),
        )
        for case, sizes in zip(plan.cases, input_sizes(plan), strict=True)
    ]
    parts = {
        "version": VERSION,
        "bundle": bundle_hash,
        "options": options,
        "cases": cases,
        "reports": os.path.relpath(plan.reports.resolve(), plan.results.resolve()),
        **more,
    }
    text = json.dumps(msgspec.to_builtins(parts), sort_keys=True)  # names need be no UTF-8
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def remove_leftovers(
    plan: BatchPlan, cells: Cells, own: Sequence[int], tables: tuple[Path, ...] = ()
) -> None:
    """Remove what killed processes left half written: beside files of cases that nobody holds.

    Of the cases in `own` alone, and of tables where these are all: parts of a batch may have no
    locks in common.
    """
    places = {
        path: index
        for index, case in ((index, plan.cases[index]) for index in own)
        for path in (*case.files().values(), case.record, case.paths.mark)
    }
    if len(own) == len(plan.cases):
        places |= dict.fromkeys(tables, len(plan.cases))
    for temporary, path in leftovers(places):
        index = places[path]
        if cells.hold(index):
            try:
                temporary.unlink(missing_ok=True)
            finally:
                cells.free(index)


def _enter(held: ExitStack, file: Path, identity: str, count: int) -> Cells | None:
    """Open a file of cells and go in; None where another batch is there."""
    if sys.platform == "win32":  # whose locks can't be shared: one batch a folder
        from filelock import FileLock, Timeout

        try:
            held.enter_context(FileLock(file, blocking=False, fallback_to_soft=False))
        except Timeout:
            return None
        return LocalCells(count)
    cells = SharedCells(file)
    held.callback(cells.close)
    return cells if cells.enter(identity, count) else None


def _lock(file: int, place: int, *, shared: bool = False, wait: bool = False) -> bool:
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.lockf(file, kind if wait else kind | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):  # POSIX lets systems choose between the two
        return False
    return True


def _unlock(file: int, place: int) -> None:
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
