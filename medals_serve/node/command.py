"""What `medals-rt listen` does. Importing this costs little; the node needs the extra."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medals_rt.common.errors import MedalsError
from medals_rt.common.optional_deps import require
from medals_serve.node.configuration import read_configuration

if TYPE_CHECKING:
    from medals_rt.pipeline.options import RunOptions


def listen(
    path: Path,
    options: RunOptions,
    *,
    announce: Callable[[str], None],
    warn: Callable[[str], None],
) -> int:
    """Run a node until a signal ends it.

    All that can be wrong with its file is found before it listens. What is under way at the end is
    taken up at the next start.

    Parameters
    ----------
    path
        The file that describes it, see `configuration.NodeConfiguration`.
    options
        Which model, and how it segments.
    announce, warn
        Print a line.

    Returns
    -------
    int
        The signal that ended it.

    Raises
    ------
    InputError
        The file, the folder, the port, the prompts or the model can't be used.
    DeviceLostError
        The GPU failed, and the model can't be opened again: start the node again.
    MissingDependencyError
        The extra isn't installed.
    """
    require("medals-rt listen", "pynetdicom", "pydicom", "highdicom", "ContourPy")
    configuration = read_configuration(path)
    from medals_rt.pipeline.job import passes_recorded
    from medals_serve.model_process import open_served
    from medals_serve.node.delivery import Courier
    from medals_serve.node.receiver import listening, received_in
    from medals_serve.node.spool import Spool, lock_spool
    from medals_serve.node.worker import Worker, check_rules

    check_rules(configuration, options)
    folder = Path(configuration.folder)
    with ExitStack() as stack:
        ended = stack.enter_context(_signals())
        stack.enter_context(lock_spool(folder))
        spool = Spool(folder / "series", configuration.max_waiting, configuration.max_bytes)
        stack.enter_context(received_in(spool.incoming))
        segmenter = stack.enter_context(open_served(options, ended.fail))
        stack.enter_context(passes_recorded(segmenter))
        courier = Courier(configuration, spool, announce, warn)
        worker = Worker(configuration, options, spool, segmenter, announce, warn)
        threads = [
            threading.Thread(target=each.run, args=(ended.event,), name=name)
            for name, each in (("courier", courier), ("worker", worker))
        ]
        with listening(configuration, spool, warn):
            announce(f"{configuration.title} listens at {configuration.host}:{configuration.port}")
            for thread in threads:
                thread.start()
            while not ended.event.wait(1.0):
                if not all(thread.is_alive() for thread in threads):
                    warn("a thread of the node died; it ends")
                    break
            ended.event.set()
        for thread in threads:
            thread.join()
        if ended.failure is not None:
            raise ended.failure
        announce(f"{configuration.title} ended")
        return ended.number


class _Ended:
    """Whether a signal asked the node to end, and which, or that no model can be opened again."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0
        self.failure: MedalsError | None = None

    def note(self, number: int, _frame: object) -> None:
        """Take a signal."""
        self.number = number
        self.event.set()

    def fail(self, failure: MedalsError) -> None:
        """End because there is no model any more; see `medals_serve.model_process`."""
        self.failure = failure
        self.event.set()


@contextmanager
def _signals() -> Iterator[_Ended]:
    """Note SIGTERM and SIGINT instead of what they do otherwise; only the main thread gets them."""
    ended = _Ended()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, ended.note) for kind in kinds}
    try:
        yield ended
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
