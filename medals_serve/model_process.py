"""A model in a process of its own, which is replaced when its GPU fails.

After some CUDA errors a process can use its GPU no more (`medals_rt.common.gpu_faults`). Were that
the server, it would have to end, and with it the sessions: uploads, results and jobs that wait. So
on a GPU the server itself never touches it. The model is opened, used and closed in a child; where
the child loses its GPU, or ends without a word, another takes its place and the job is tried once
more, while clients only see it go back to its first window. If the second attempt ends like that
too, it is the job that fails; if no model can be opened any more, the server ends (`gone`), for
whatever supervises it to start it again.

A case goes to the child and its labels come back through a pipe: 0.5 s of processor time for 512 x
512 x 400 voxels of 16 bits. On a processor, where nothing of the kind happens, the model stays in
the server.
"""

from __future__ import annotations

import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from threading import Thread
from typing import Any, Final, NamedTuple, Self
from weakref import WeakKeyDictionary

from medals_rt.bundle.bundle import Bundle, resolve_bundle
from medals_rt.common.errors import DeviceLostError, MedalsError, RunnerError
from medals_rt.common.gpu_faults import EXIT_DEVICE_LOST, sticky_fault
from medals_rt.common.interruption import check_interruption
from medals_rt.common.subprocesses import signal_name
from medals_rt.io.volume import Volume
from medals_rt.pipeline.job import open_models, passes_recorded
from medals_rt.pipeline.options import RunOptions, SegmentOptions
from medals_rt.pipeline.segmenter import CaseSegmenter, Result, Segmenter
from medals_rt.planning.memory import MemoryLimit
from medals_rt.prompts.prompt_set import AnyPrompts
from medals_rt.runners.selection import runs_on_gpu

_ATTEMPTS: Final = 2
_LOOK_AFTER_S: Final = 1.0
"""How often a job that tells nothing is asked whether it is canceled, or over its time."""
_TO_CANCEL_S: Final = 60.0
"""What a child may take to end a job that is canceled, before it is ended itself."""
_TO_END_S: Final = 20.0
_TO_OPEN_AGAIN_S: Final = 300.0
"""What a replacement may take to open at least. A library may hang for ever on a broken GPU."""


def open_served(options: RunOptions, gone: Callable[[MedalsError], None]) -> CaseSegmenter:
    """Open the model that the options name: on a GPU in a process of its own, else in this one.

    Parameters
    ----------
    options
        Which model.
    gone
        Called when a model that was lost can't be opened again: no job will run any more.

    Raises
    ------
    MedalsError
        As `Segmenter.open`.
    """
    bundle = Bundle.open(resolve_bundle(options.bundle), verify=False)  # by whoever runs it
    if runs_on_gpu(options.runner, bundle):
        return ModelProcess(options, bundle, gone)
    return open_models(options)


class _LostError(Exception):
    """The child is no use any more."""


class _Kept(NamedTuple):
    """What the child is to keep of an image, and which numbers are still in use."""

    cache: Callable[[int], Any]
    max_bytes: int
    number: int
    alive: frozenset[int]


@dataclass(frozen=True)
class _Request:
    """A job: arguments of `Segmenter.segment`, and the names of functions to be called here."""

    given: tuple[Any, ...]
    named: dict[str, Any]
    calls: tuple[str, ...]


@dataclass(frozen=True)
class _Memory:
    """The question how much memory there is, of which so much may be used."""

    asked: int | None


class _Listening:
    """The functions of a job that runs in the child, and what one of them raised."""

    def __init__(self, calls: Mapping[str, Callable[..., None]]) -> None:
        self.ending: BaseException | None = None
        self._calls = calls
        self._until = 0.0
        self._windows: tuple[Any, ...] = ()

    @property
    def is_stuck(self) -> bool:
        """Whether a job that was canceled has had its time to end."""
        return self.ending is not None and time.monotonic() > self._until

    def call(self, name: str, *given: Any) -> None:
        """Call a function; if it raises, the job is to end."""
        if name == "progress":
            self._windows = given
        self._ask(self._calls[name], *given)

    def check(self) -> None:
        """Ask whether the job is to end, also of one that has told nothing yet."""
        self._ask(check_interruption)
        if self._windows:
            self._ask(self._calls["progress"], *self._windows)

    def _ask(self, what: Callable[..., None], *given: Any) -> None:
        if self.ending is not None:
            return
        try:
            what(*given)
        except BaseException as error:  # noqa: BLE001 - raised once the child has stopped
            self.ending, self._until = error, time.monotonic() + _TO_CANCEL_S


class ModelProcess:
    """What has a `Segmenter` in a child; see `CaseSegmenter`. Not safe to share between threads.

    Parameters
    ----------
    options, gone
        As for `open_served`.
    bundle
        The model's.
    """

    def __init__(
        self, options: RunOptions, bundle: Bundle, gone: Callable[[MedalsError], None]
    ) -> None:
        self.bundle = bundle
        self._options = options
        self._gone = gone
        self._arithmetic = ""
        self._longest_opening_s = 0.0
        self._sending: Thread | None = None
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._next_number = count()
        self._open()

    @property
    def arithmetic(self) -> str:
        """See `Segmenter.arithmetic`."""
        return self._arithmetic

    @property
    def measured_passes(self) -> None:
        """None: the child keeps what its passes took."""
        return

    def close(self) -> None:
        """End the child."""
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(_TO_END_S)
        self._end_child()

    def segment(
        self,
        volume: Volume,
        prompts: AnyPrompts,
        options: SegmentOptions | None = None,
        **more: Any,
    ) -> Result:
        """Segment one case in the child, if need be in a second one; see `Segmenter.segment`.

        Of `more`, functions are called here with what the child calls them with, and of what is
        kept of an image (`kept`) the child has its own, for as long as the one given is not closed.
        """
        calls = {name: each for name, each in more.items() if callable(each)}
        values = {name: each for name, each in more.items() if name not in calls}
        values["kept"] = self._kept_there(values.get("kept"))
        request = _Request((volume, prompts, options), values, tuple(calls))
        reasons: list[str] = []
        while len(reasons) < _ATTEMPTS:
            try:
                if self._pipe.closed:  # with a child that was stuck
                    self._replace()
                return self._result(request, calls)
            except _LostError as error:
                reasons.append(str(error))
                self._replace()
        raise DeviceLostError(
            f"the model was lost twice in this job, and opened again: {reasons[-1]}; ask for other "
            "classes or another size, or have the GPU and its driver looked at"
        )

    def memory_limit(self, asked: int | None) -> MemoryLimit:
        """Ask the child; see `Segmenter.memory_limit`. Not while a job runs.

        Raises
        ------
        DeviceLostError
            The child has ended.
        """
        try:
            if self._pipe.closed:
                self._replace()
            self._tell(_Memory(asked))
            (limit,) = self._heard("memory")
        except _LostError as error:
            raise DeviceLostError(f"the model was lost: {error}") from error
        found: MemoryLimit = limit
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kept_there(self, kept: Any) -> _Kept | None:
        """Say under which number the child keeps something of an image, and what is closed."""
        if kept is None:
            return None
        self._numbers.setdefault(kept, next(self._next_number))
        alive = {number for each, number in self._numbers.items() if not each.is_closed}
        cache = kept.cache
        return _Kept(type(cache), cache.max_bytes, self._numbers[kept], frozenset(alive))

    def _open(self, within_s: float = math.inf) -> None:
        started_s = time.monotonic()
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self._options, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            (self._arithmetic,) = self._heard("opened", started_s + within_s)
        except BaseException:
            self._end_child()
            raise
        took_s = time.monotonic() - started_s
        self._longest_opening_s = max(self._longest_opening_s, took_s)

    def _replace(self) -> None:
        """Open the model in another child, which may take thrice the time of any before."""
        self._end_child()
        try:
            self._open(max(_TO_OPEN_AGAIN_S, 3 * self._longest_opening_s))
        except (MedalsError, _LostError) as error:
            lost = DeviceLostError(f"the model was lost and can't be opened again: {error}")
            self._gone(lost)
            raise lost from error

    def _end_child(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        if self._sending is not None:
            self._sending.join()  # nobody reads any more, so that it ends
        self._pipe.close()

    def _result(self, request: _Request, calls: Mapping[str, Callable[..., None]]) -> Result:
        """Pass calls on until the result is there; what one of them raises cancels the job.

        A child that does not end it in time is ended itself. It may be stuck before it has read
        the request, which is longer than a pipe holds: another thread sends it.
        """
        listening, to_cancel = _Listening(calls), True
        self._sending = Thread(
            target=self._send, args=(ForkingPickler.dumps(request),), daemon=True
        )
        self._sending.start()
        while True:
            event = self._next()
            if listening.ending is not None and to_cancel and not self._sending.is_alive():
                to_cancel = False
                self._tell("cancel")
            if event is None:
                if listening.is_stuck and listening.ending is not None:
                    self._end_child()
                    raise listening.ending
                listening.check()
            elif event[0] == "raised":
                raise listening.ending or event[1]
            elif event[0] == "result":
                if listening.ending is not None:
                    raise listening.ending
                result: Result = event[1]
                return result
            else:
                listening.call(*event)

    def _heard(self, expected: str, until_s: float = math.inf) -> list[Any]:
        while (event := self._next()) is None:
            if time.monotonic() > until_s:
                raise _LostError("its process says nothing")
        what, *more = event
        if what == "raised":
            raise more[0]
        if what != expected:
            raise AssertionError(what)
        return more

    def _next(self) -> tuple[Any, ...] | None:
        """Wait a little for the child's next word.

        Raises
        ------
        _LostError
            It has lost its GPU, or has ended.
        """
        try:
            if not self._pipe.poll(_LOOK_AFTER_S):
                return None
            event: tuple[Any, ...] = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _LostError(self._how_it_ended()) from error
        if event[0] == "lost":
            raise _LostError(event[1])
        return event

    def _send(self, request: memoryview) -> None:
        with suppress(OSError):  # whoever listens for the answer finds that the child has ended
            self._pipe.send_bytes(request)

    def _tell(self, what: object) -> None:
        try:
            self._pipe.send(what)
        except OSError as error:
            raise _LostError(self._how_it_ended()) from error

    def _how_it_ended(self) -> str:
        self._process.join(_TO_END_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"its process was ended by {signal_name(-code)}"
        return f"its process ended with exit code {code}"


class _CanceledError(Exception):
    """The server wants no result any more."""


def _work(options: RunOptions, pipe: Connection) -> None:
    """Be the child: open the model, do jobs until there is no more, close it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this one
    with suppress(EOFError, BrokenPipeError):  # the server has ended
        try:
            with open_models(options) as segmenter:
                pipe.send(("opened", segmenter.arithmetic))
                images = _KeptImages()
                while (request := pipe.recv()) is not None:
                    if isinstance(request, _Memory):
                        pipe.send(("memory", segmenter.memory_limit(request.asked)))
                    elif request != "cancel":  # of a job that had ended meanwhile
                        _segment(segmenter, pipe, request, images)
        except Exception as error:  # noqa: BLE001 - the server raises it
            _tell_error(pipe, error)


class _KeptImages:
    """What jobs leave of images for later ones, by the server's numbers."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._images: dict[int, Any] = {}

    def of(self, asked: _Kept) -> Any:
        """Return what is kept of an image, and let go of those that the server has closed."""
        if self._cache is None:
            self._cache = asked.cache(asked.max_bytes)
        for number in [each for each in self._images if each not in asked.alive]:
            self._images.pop(number).close()
        if asked.number not in self._images:
            self._images[asked.number] = self._cache.image()
        return self._images[asked.number]


def _segment(
    segmenter: Segmenter, pipe: Connection, request: _Request, images: _KeptImages
) -> None:
    def calling(name: str) -> Callable[..., None]:
        def call(*given: Any) -> None:
            pipe.send((name, *given))
            if pipe.poll():
                pipe.recv()
                raise _CanceledError

        return call

    named = {**request.named, **{name: calling(name) for name in request.calls}}
    kept = named.pop("kept")
    if kept is not None:
        named["kept"] = images.of(kept)
    try:
        with passes_recorded(segmenter):
            result = segmenter.segment(*request.given, **named)
        pipe.send(("result", result))
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001 - the server raises it
        _tell_error(pipe, error)


def _tell_error(pipe: Connection, error: Exception) -> None:
    """Pass an error on; after a fault of the GPU end, since no job could be done any more."""
    fault = sticky_fault(error)
    if fault is not None:
        pipe.send(("lost", fault))
        os._exit(EXIT_DEVICE_LOST)  # libraries that tidy up on a lost GPU abort, or hang
    if not isinstance(error, MedalsError | MemoryError | _CanceledError):
        places = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f" in {place.name}:{place.lineno}" for place in places)
        error = RunnerError(f"{type(error).__name__}{where}: {error}", code="model-process")
    pipe.send(("raised", error))
