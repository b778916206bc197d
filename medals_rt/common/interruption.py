"""Ending the long call of a library in its middle: for a cancel, and for Ctrl-C."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
