"""The DICOM server of a node: it keeps what is sent to it (C-STORE) and answers C-ECHO."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import InputError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.files import printable, silence
from medals_serve.node.configuration import NodeConfiguration
from medals_serve.node.spool import CANNOT_UNDERSTAND, MISMATCH, SUCCESS, NotStoredError, Spool

_PLAIN: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Not the deflated one: what a few bytes become is not known before."""
_COMPRESSED: Final = (
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),
)
_MOST_ASSOCIATIONS: Final = 8
_QUIET_PEER_S: Final = 60


@contextmanager
def received_in(folder: Path) -> Iterator[None]:
    """Let objects go to files in a folder as they come, whatever their size.

    pynetdicom can hold them in memory or write them where temporary files are, whichever the whole
    process does. All its other temporary files go there, too: they may hold patients' data as well.
    Warnings name values of what is sent, so there are none: threads share them, and none can keep
    back its own.
    """
    import_optional("pynetdicom", "medals-rt listen")
    from pynetdicom import _config as settings  # its name, but documented

    before = settings.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir
    settings.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir = True, str(folder)
    try:
        with silence():
            yield
    finally:
        settings.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir = before


@contextmanager
def listening(
    configuration: NodeConfiguration, spool: Spool, warn: Callable[[str], None]
) -> Iterator[None]:
    """Listen, in threads of its own, until the block ends; within `received_in`.

    Parameters
    ----------
    configuration
        Who we are and who may call.
    spool
        Where images are kept.
    warn
        Called with a line about what was refused.

    Raises
    ------
    InputError
        The port is taken, or the certificates can't be used.
    MissingDependencyError
        pynetdicom isn't installed.
    """
    pynetdicom = import_optional("pynetdicom", "medals-rt listen")
    from medals_serve.node import transport

    entity = transport.Entity(configuration.title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(configuration.callers)
    entity.maximum_associations = _MOST_ASSOCIATIONS - 1  # beside the one that is judged
    entity.network_timeout = _QUIET_PEER_S
    entity.acse_timeout = transport.PATIENCE_S
    syntaxes = list(readable_syntaxes())
    for context in pynetdicom.AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, syntaxes)
    entity.add_supported_context(pynetdicom.sop_class.Verification)
    handlers: Any = [
        (pynetdicom.evt.EVT_C_STORE, _keep, [spool, warn]),
        (pynetdicom.evt.EVT_C_ECHO, lambda _: SUCCESS),
        (pynetdicom.evt.EVT_REJECTED, _rejected, [warn]),
        (pynetdicom.evt.EVT_CONN_OPEN, transport.bound, [warn]),
    ]
    tls: Any = None
    if configuration.tls is not None:
        tls = transport.Certificates(configuration.tls, warn)
    try:
        server: Any = entity.start_server(
            (configuration.host, configuration.port),
            block=False,
            evt_handlers=handlers,
            ssl_context=tls,
        )
    except OSError as error:
        raise InputError(
            f"can't listen at {configuration.host} port {configuration.port}: "
            f"{error.strerror or error}; choose another",
            code="port-taken",
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        transport.cut_off(server)


def readable_syntaxes() -> tuple[str, ...]:
    """Return the transfer syntaxes that can be read here: those compressed need their decoders."""
    import_optional("pydicom", "medals-rt listen")
    from pydicom.pixels.decoders.base import get_decoder

    return (*_PLAIN, *(uid for uid in _COMPRESSED if get_decoder(uid).is_available))


def _keep(event: Any, spool: Spool, warn: Callable[[str], None]) -> int:
    """Keep an image; it is acknowledged by what is returned."""
    import pydicom

    file = Path(event.dataset_path)
    try:
        data = pydicom.dcmread(file, stop_before_pixels=True)
        study = str(data.get("StudyInstanceUID") or "")
        series = str(data.get("SeriesInstanceUID") or "")
    except Exception as error:  # noqa: BLE001 - whatever pydicom makes of damaged data
        warn(f"refused an object that can't be read ({type(error).__name__})")
        return CANNOT_UNDERSTAND
    uid = str(event.request.AffectedSOPInstanceUID)
    if uid != str(data.get("SOPInstanceUID") or ""):  # results would refer to another image
        warn(f"refused an object of series {printable(series)}: it is announced under another UID")
        return MISMATCH
    try:
        spool.keep(study, series, uid, file)
    except NotStoredError as error:
        warn(f"refused an object of series {printable(series)}: {error}")
        return error.status
    return SUCCESS


def _rejected(event: Any, warn: Callable[[str], None]) -> None:
    caller = printable(event.assoc.requestor.ae_title)
    called = printable(event.assoc.requestor.primitive.called_ae_title)
    reason = event.assoc.acceptor.primitive.reason_str
    warn(f"rejected an association of {caller!r} with {called!r}: {reason}")
