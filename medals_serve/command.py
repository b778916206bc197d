"""What `medals-rt serve` does. Importing this costs nothing; the service needs the extra."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import require
from medals_serve.settings import ServeSettings

if TYPE_CHECKING:
    from medals_rt.pipeline.options import RunOptions

_SHORTEST_TOKEN: Final = 16
_REPLICA: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def serve(
    options: RunOptions,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    announce: Callable[[str], None],
    warn: Callable[[str], None],
    **limits: Any,
) -> int | None:
    """Serve one bundle until a signal ends it.

    Parameters
    ----------
    options
        Which model, and what a job that says nothing gets.
    host, port
        Where; port 0 is any that is free.
    token_file
        Holds the token that clients must know. Without one, a token is made for every address but
        the loopback's.
    announce, warn
        Print a line.
    limits
        Fields of `ServeSettings`; None keeps the default.

    Returns
    -------
    int or None
        The signal that ended it.

    Raises
    ------
    InputError
        The address, the token, a name of the host or replica, the bundle or the folder for data
        can't be used.
    DeviceLostError
        The GPU failed, and the model can't be opened again: start the server again.
    MissingDependencyError
        The extra isn't installed.
    """
    require("medals-rt serve", "FastAPI", "uvicorn")
    if not hasattr(os, "fork"):
        raise InputError(
            "medals-rt serve runs where processes can be limited, on Linux; run it in WSL or in "
            "the container",
            code="platform-not-supported",
        )
    replica = limits.get("replica")
    if replica is not None and not _REPLICA.fullmatch(replica):
        raise InputError(
            f"{replica!r:.60} can't be a replica's name; use lower-case letters, digits, hyphens",
            code="replica-name",
        )
    from medals_serve.security import is_host_name
    from medals_serve.server import Server, address_of, bind, host_of, is_loopback

    for name in limits.get("host_names", ()):
        if not is_host_name(name):
            raise InputError(
                f"{name!r:.60} is no name that clients call a server by; give it alone, without "
                "http:// and without a port",
                code="host-name",
            )

    token = None if token_file is None else read_token(token_file)
    with bind(host, port) as bound:
        if token is None and not is_loopback(bound):
            token = secrets.token_urlsafe(24)
        given = {name: value for name, value in limits.items() if value is not None}
        given["host_names"] = (*given.get("host_names", ()), host_of(bound))  # as it is announced
        settings = replace(ServeSettings(token=token), max_voxels=options.max_voxels, **given)
        address = address_of(bound)

        def say_where() -> None:
            shown = (
                address if token is None or token_file is not None else f"{address}?token={token}"
            )
            announce(f"serving at {shown}")
            announce("press Ctrl-C to stop")

        _log_requests()
        server = Server(settings, options, announce=say_where, warn=warn)
        server.run(sockets=[bound])
    if server.failure is not None:
        raise server.failure
    return server.stopped_by if server.stopped_by == signal.SIGINT else None


def read_token(file: Path) -> str:
    """Read a token from a file that nobody else may read.

    Raises
    ------
    InputError
        There is none, it is too short, or others may read it.
    """
    try:
        mode, token = file.stat().st_mode, file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't ASCII"
        raise InputError(
            f"can't read the token in {file}: {reason}; write one line of letters and digits",
            code="token-unreadable",
        ) from error
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise InputError(
            f"others may read the token in {file}; chmod 600 it", code="token-readable-by-others"
        )
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(
            f"the token in {file} is no single word of {_SHORTEST_TOKEN} letters or more",
            code="token-too-short",
        )
    return token


def _log_requests() -> None:
    """Log what failed, and each request: as the program logs, else on standard error.

    The program has a place for its log with ``--json-progress`` and ``--verbose``.
    """
    log = logging.getLogger("medals_serve")
    log.setLevel(logging.INFO)
    log.propagate = bool(logging.getLogger().handlers)
    if not log.propagate and not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
