"""One batch at a time in a folder: what two would write there would be taken for one's."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from medals_rt.common.atomic_io import prepare_output
from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch.find import STATE_FOLDER, BatchPlan

LOCK_FILE: Final = ".lock"


@contextmanager
def lock_folders(plan: BatchPlan) -> Iterator[None]:
    """Keep other batches out of the folders of a batch, results and reports, during the block.

    The lock is the operating system's, on a file in the folder of records: it ends with the
    process, however that ends, and the file that stays says nothing.

    Raises
    ------
    InputError
        Another batch writes there, or the folder can't be written or locked.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for folder in dict.fromkeys((plan.results.resolve(), plan.reports.resolve())):
            file = folder / STATE_FOLDER / LOCK_FILE
            prepare_output(file)
            try:
                # on a disk without such locks refuse; a file that only exists would outlive a crash
                held.enter_context(FileLock(file, blocking=False, fallback_to_soft=False))
            except Timeout as error:
                raise InputError(
                    f"another batch is writing to {folder}; wait until it has ended, or name "
                    "another folder of outputs",
                    code="folder-in-use",
                ) from error
            except OSError as error:
                raise InputError(
                    f"can't lock {folder} against other batches: {error.strerror or error}; "
                    "name a folder on another disk",
                    code="folder-not-lockable",
                ) from error
        yield
