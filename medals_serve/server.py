"""A running server: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medals_rt.common.errors import InputError, MedalsError
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.segmenter import CaseSegmenter
from medals_serve.app import create_app
from medals_serve.engine import JobEngine
from medals_serve.metrics import Metrics
from medals_serve.model_process import open_served
from medals_serve.settings import ServeSettings

_PART_BYTES: Final = 2**14
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """Take a port.

    Parameters
    ----------
    host
        An address or a name of this machine.
    port
        0 for any that is free.

    Raises
    ------
    InputError
        It is in use, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise InputError(
            f"can't listen at {host}:{port}: {error.strerror or error}; choose another --port or "
            "--host",
            code="address-unusable",
        ) from error
    return taken


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def host_of(bound: socket.socket) -> str:
    """Return the name or IP address by which a browser on this machine calls a server."""
    host: str = bound.getsockname()[0]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        return socket.gethostname().lower()
    return host


def address_of(bound: socket.socket) -> str:
    """Return the address that a browser on this machine opens."""
    host, port = host_of(bound), bound.getsockname()[1]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _EndingTransport:
    """A transport that, once it is closed, waits only so long for a client to read the rest."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._ending: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close it: what was written is still sent, if somebody takes it."""
        self._transport.close()
        if self._ending is None:
            loop = asyncio.get_running_loop()
            self._ending = loop.call_later(self._seconds, self._transport.abort)

    def lost(self) -> None:
        """Note that it is closed."""
        if self._ending is not None:
            self._ending.cancel()


class PatientProtocol(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn's protocol, whose patience has an end: with a request's head, with idle readers.

    Connections that wait for a head, whose clients need not know any token, have room of their own:
    where more come, the one that waited longest goes. What is sent is read in small parts: one of
    chunks of a byte each takes long to parse, and all else waits meanwhile.
    """

    header_s: float
    idle_s: float
    max_waiting: int
    waiting: dict[PatientProtocol, None]
    """All that wait for a head, by how long; one for a server."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        self._ending = _EndingTransport(transport, self.idle_s)
        super().connection_made(self._ending)  # type: ignore[arg-type]
        self._wait_for_head(after=None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.waiting.pop(self, None)
        super().connection_lost(exc)
        self._ending.lost()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's interface
        """Return where to put what comes next."""
        self._part = bytearray(_PART_BYTES)
        return self._part

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        self.data_received(bytes(self._part[:nbytes]))

    def handle_events(self) -> None:
        """Take what has come, perhaps a head."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        ended = self.cycle
        super().on_response_complete()
        self._wait_for_head(after=ended)

    def _wait_for_head(self, after: object) -> None:
        if self.cycle is not after:
            return  # it had come already
        self.loop.call_later(self.header_s, self._close_if_none_came, after)
        self.waiting[self] = None
        if len(self.waiting) > self.max_waiting:
            longest = next(iter(self.waiting))
            del self.waiting[longest]
            longest.transport.close()

    def _close_if_none_came(self, after: object) -> None:
        if self.cycle is after and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves an application on a socket until it is told to stop.

    Parameters
    ----------
    settings, options
        As for `create_app`.
    open_model
        Opens the model; None: the one that the options name.
    announce
        Called once requests are answered.
    warn
        Tells of what stopping waits for.

    Raises
    ------
    MedalsError
        The model can't be opened.

    Attributes
    ----------
    failure
        Why the server stopped by itself; None where it did not.
    """

    def __init__(
        self,
        settings: ServeSettings,
        options: RunOptions,
        *,
        open_model: Callable[[], CaseSegmenter] | None = None,
        announce: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        metrics = Metrics()
        self.engine = JobEngine(
            open_model or (lambda: open_served(options, self.stop_for)),
            settings.max_queue,
        )
        self.failure: MedalsError | None = None
        self.stopped_by: int | None = None
        self._settings = settings
        self._announce = announce
        self._warn = warn
        self._stopping: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        logging.getLogger("uvicorn.access").disabled = True  # its lines hold names of files
        try:
            app = create_app(settings, options, self.engine, metrics)
        except BaseException:
            self.engine.stop(0.0)
            raise
        patience = {
            "header_s": settings.header_s,
            "idle_s": settings.body_idle_s,
            "max_waiting": settings.max_waiting,
            "waiting": {},
        }
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Protocol", (PatientProtocol,), patience),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=5,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.should_exit:
            self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, in the main thread; a second one hurries."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def stop(self, number: int | None = None) -> None:
        """Stop: jobs that wait are canceled, the one that runs has `ServeSettings.grace_s`.

        To be called in the server's loop; `stop_soon` is for other threads.
        """
        if self._stopping is not None:
            self.engine.hurry()
            return
        self.stopped_by = number
        self._stopping = asyncio.get_running_loop().create_task(self._stop())

    def stop_soon(self) -> None:
        """Stop, from any thread; nothing where it has stopped."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.stop)

    def stop_for(self, failure: MedalsError) -> None:
        """Stop because no job can run any more, from any thread; see `model_process`."""
        self.failure = failure
        self.stop_soon()

    async def _stop(self) -> None:
        if self.engine.jobs_running:
            self._warn(
                f"a job runs; it has {self._settings.grace_s:g} s to end (once more: at once)"
            )
        await anyio.to_thread.run_sync(self.engine.stop, self._settings.grace_s)
        await asyncio.sleep(self._settings.last_events_s)
        self.should_exit = True
