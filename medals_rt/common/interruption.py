"""Ending the long call of a library in its middle: for a cancel, and for Ctrl-C."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, Generic, TypeVar

Found = TypeVar("Found")

POLL_S: Final = 0.05
"""Pause between looks at whether to go on."""


def _go_on() -> None:
    return


_check: ContextVar[Callable[[], None]] = ContextVar("interruption", default=_go_on)


@contextmanager
def interrupted_by(check: Callable[[], None]) -> Iterator[None]:
    """Let `check` end what this thread does in the block, by raising an error of its choice.

    It is called between the parts of long work and about every `POLL_S` seconds while a library
    computes, so it should be quick.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def check_interruption() -> None:
    """End here, if whoever asked for this work wants it ended."""
    _check.get()()


def run_interruptibly(
    start: Callable[[], None], wait: Callable[[float | None], bool], cancel: Callable[[], None]
) -> None:
    """Have a library compute in threads of its own, and stop it if this work is to end.

    While this thread waits, Python runs its handlers of signals, which a call into the library
    would put off until it returns.

    Parameters
    ----------
    start
        Starts the library, and returns at once.
    wait
        Waits at most so many seconds, with None until the library is done; returns whether it is.
        It may raise the library's error.
    cancel
        Asks the library to stop soon.
    """
    try:
        check_interruption()
        start()
        while not wait(POLL_S):
            check_interruption()
    except BaseException:
        cancel()
        _let_end(wait)
        raise


def _let_end(wait: Callable[[float | None], bool]) -> None:
    """Wait until a library no longer uses memory of the caller's, whatever comes meanwhile."""
    while True:
        try:
            wait(None)
        except Exception:  # noqa: BLE001 - how it says that it was canceled, or never started
            return
        except BaseException:  # noqa: BLE001, S112 - a second Ctrl-C
            continue
        return


class _Call(Generic[Found]):
    """A function's call in another thread, and what came of it."""

    def __init__(self, work: Callable[[], Found], ended: SimpleQueue[None]) -> None:
        self._work = work
        self._ended = ended
        self._found: list[Found] = []
        self._error: BaseException | None = None
        self.is_over = False

    def __call__(self) -> None:
        """Call it, and say so at the end."""
        try:
            self._found.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        self.is_over = True
        self._ended.put(None)

    def result(self) -> Found:
        """Return or raise what came of it."""
        if self._error is not None:
            raise self._error
        return self._found[0]


class Background:
    """Threads that work while this one waits for them, and may be interrupted at any moment.

    A `Future` or an `Event` takes its lock in Python code. Ctrl-C between the taking and the block
    that gives it back leaves it taken, and both sides wait for ever. Here nothing is locked but in
    the queue, which is written in C and lets go.

    Parameters
    ----------
    threads
        How many.
    name
        Of the threads, for people who look at them.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            Thread(target=_serve, args=(self._tasks,), name=f"{name} {number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, works: Sequence[Callable[[], Found]], cancel: Callable[[], None]) -> list[Found]:
        """Let each be called in a thread, and wait for all.

        Parameters
        ----------
        works
            No more than there are threads.
        cancel
            Asks them to end soon.

        Returns
        -------
        list
            What they return, in their order.
        """
        ended: SimpleQueue[None] = SimpleQueue()
        calls = [_Call(work, ended) for work in works]
        begun: list[_Call[Found]] = []

        def start() -> None:
            for call in calls:
                self._tasks.put(call)
                begun.append(call)

        def wait(seconds: float | None) -> bool:
            # an interruption may lose what the queue said, but not what the calls say
            while not all(call.is_over for call in begun):
                try:
                    ended.get(timeout=seconds)
                except Empty:
                    break
            return all(call.is_over for call in begun)

        run_interruptibly(start, wait, cancel)
        return [call.result() for call in calls]

    def close(self) -> None:
        """End the threads, and wait for them."""
        self._end()
        for thread in self._threads:
            thread.join()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)


def _serve(tasks: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # and what it holds, until the next one comes
