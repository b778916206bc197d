"""Ending the long call of a library in its middle: for a cancel, and for Ctrl-C."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final

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


def wait_interruptibly(wait: Callable[[float], bool], cancel: Callable[[], None]) -> None:
    """Wait for a library that computes in threads of its own, and was started.

    While this thread waits, Python runs its handlers of signals, which a call into the library
    would put off until it returns.

    Parameters
    ----------
    wait
        Waits at most so many seconds; returns whether the library is done.
    cancel
        Asks the library to stop soon. It is waited for, since it uses memory of the caller's.
    """
    try:
        check_interruption()
        while not wait(POLL_S):
            check_interruption()
    except BaseException:
        cancel()
        with suppress(Exception):  # how the library says that it was canceled
            while not wait(POLL_S):
                pass
        raise
