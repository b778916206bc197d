"""What other machines send: answers of a DICOMweb server, and objects and the rules of a node."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import numpy as np

from medals_rt.common.errors import CaseError
from medals_rt.io.dicom import web_server
from medals_rt.io.registry import read_case
from tests.dicom import slice_dataset, write_series

MAX_VOXELS = 1 << 18
STUDY, SERIES = "1.2.3.4", "1.2.3.4.1"
_SERVER = "http://127.0.0.1:9/dicom-web"  # nobody is asked


def _image() -> np.ndarray:
    return (np.random.default_rng(0).random((3, 8, 9)) * 255).astype(np.int16)


def _slices() -> list[Any]:
    uids = {"study": STUDY, "series": SERIES, "frame": "1.2.3.5"}
    return [slice_dataset(_image(), np.diag([1.0, 1.0, 2.0, 1.0]), k, uids) for k in range(3)]


# Answers of a DICOMweb server ---------------------------------------------------------------------


def list_seeds(_: Path) -> list[bytes]:
    """Lists of series (QIDO-RS)."""
    entry = {
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "0008103E": {"vr": "LO", "Value": ["thorax"]},
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00200011": {"vr": "IS", "Value": [3]},
        "00201209": {"vr": "IS", "Value": [3]},
    }
    other = {
        **entry,
        "00080060": {"vr": "CS", "Value": ["SEG"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3.4.2"]},
    }
    return [json.dumps(found).encode() for found in ([entry], [entry, other])]


def header_seeds(_: Path) -> list[bytes]:
    """Headers of a series (WADO-RS metadata)."""
    headers = []
    for each in _slices():
        del each.PixelData
        header = each.to_json_dict()
        header["7FE00010"] = {"vr": "OW", "BulkDataURI": f"{_SERVER}/bulk"}
        headers.append(header)
    return [json.dumps(headers).encode()]


def object_seeds(_: Path) -> list[bytes]:
    """An object as a part of an answer (WADO-RS)."""
    return [_multipart(_slices()[0])]


def _multipart(data: Any) -> bytes:
    content = BytesIO()
    data.save_as(content, enforce_file_format=True)
    head = b"--here\r\nContent-Type: application/dicom\r\n\r\n"
    return head + content.getvalue() + b"\r\n--here--\r\n"


def feed_list(path: Path) -> object:
    """Read a case of a server that lists series so."""
    return _read({"/series": path.read_bytes()})


def feed_headers(path: Path) -> object:
    """Read a case of a server that sends such headers."""
    return _read({"/metadata": path.read_bytes()})


def feed_object(path: Path) -> object:
    """Read a case of a server that sends such an object as the first."""
    return _read({f"/{SERIES}.1": path.read_bytes()})


def _read(answers: dict[str, bytes]) -> object:
    with _answering(answers):
        return read_case(f"dicomweb+{_SERVER}?StudyInstanceUID={STUDY}", max_voxels=MAX_VOXELS)


@contextmanager
def _answering(answers: dict[str, bytes]) -> Iterator[None]:
    """Answer in the place of a server: with `answers` by the ends of paths, else as one would."""
    import requests
    from requests.adapters import BaseAdapter

    valid = {
        "/series": list_seeds(Path())[0],
        "/metadata": header_seeds(Path())[0],
        **{f"/{each.SOPInstanceUID}": _multipart(each) for each in _slices()},
    }

    class Answers(BaseAdapter):
        def send(self, request: Any, **_: Any) -> Any:
            path = urlsplit(request.url).path
            answer = requests.Response()
            answer.url, answer.request = request.url, request
            found = [text for end, text in {**valid, **answers}.items() if path.endswith(end)]
            answer.status_code = 200 if found else 404
            answer.raw = BytesIO(found[0] if found else b"")
            kind = "application/dicom+json"
            if path.rpartition("/")[2] not in {"series", "metadata"}:
                kind = 'multipart/related; type="application/dicom"; boundary=here'
            answer.headers["Content-Type"] = kind
            return answer

        def close(self) -> None:
            """Nothing is open."""

    made = web_server._session

    def session() -> Any:
        found = made()
        found.mount("http://", Answers())
        return found

    with patch.object(web_server, "_session", session):
        yield


# A node -------------------------------------------------------------------------------------------

RULES = """
title = "MEDALS"
callers = ["SCANNER"]
folder = "node"
max_disk = "1GB"

[peers.PACS]
host = "pacs.example.org"
port = 104

[rules.abdomen]
modality = "CT"
body_part = "ABDOMEN|CHEST"
description = "^(?!scout)"
groups = ["abdominal organs"]
outputs = ["dicom-seg", "sr"]
send_to = ["PACS", "dicomweb+https://pacs.example.org/dicom-web"]
"""


def rules_seeds(_: Path) -> list[bytes]:
    """Files of a node."""
    return [RULES.encode()]


def feed_rules(path: Path) -> object:
    """Read a file of a node, and what it says of a series."""
    from medals_serve.node.configuration import read_configuration

    configuration = read_configuration(path)
    return configuration.max_bytes, configuration.rules_for(_slices()[0])


def store_seeds(_: Path) -> list[bytes]:
    """Data sets of C-STORE requests, in explicit VR."""
    from pynetdicom.dsutils import encode

    found = [encode(each, is_implicit_vr=False, is_little_endian=True) for each in _slices()[:2]]
    assert all(found)
    return [each for each in found if each is not None]


def _announced(data: bytes) -> str:
    """Return the UID under which an honest peer would announce an object, if it can be read."""
    from pydicom.uid import UID
    from pynetdicom.dsutils import decode

    try:
        found = UID(str(decode(BytesIO(data), False, True).SOPInstanceUID))
    except Exception:  # noqa: BLE001 - anything that a parser raises of damaged bytes
        return f"{SERIES}.1"
    return found if found.is_valid else f"{SERIES}.1"


def feed_store(path: Path) -> object:
    """Keep an object that a peer sends, and read its series as the node does."""
    from pydicom.uid import ExplicitVRLittleEndian
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import create_file_meta, encode_file_meta
    from pynetdicom.events import EVT_C_STORE, Event
    from pynetdicom.presentation import PresentationContextTuple

    from medals_serve.node.receiver import _keep
    from medals_serve.node.spool import SUCCESS, Spool

    request = C_STORE()
    request.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    request.AffectedSOPInstanceUID = _announced(path.read_bytes())
    context = PresentationContextTuple(1, request.AffectedSOPClassUID, ExplicitVRLittleEndian)
    folder = path.parent / hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    spool = Spool(folder / "series", max_waiting=1, max_bytes=10**9)
    request._dataset_path = spool.incoming / "sent.dcm"
    meta = create_file_meta(
        sop_class_uid=request.AffectedSOPClassUID,
        sop_instance_uid=request.AffectedSOPInstanceUID,
        transfer_syntax=ExplicitVRLittleEndian,
    )
    start = bytes(128) + b"DICM" + encode_file_meta(meta)
    request._dataset_path.write_bytes(start + path.read_bytes())
    event = Event(None, EVT_C_STORE, {"request": request, "context": context})  # type: ignore[arg-type]
    status = _keep(event, spool, lambda _: None)
    if status != SUCCESS:
        raise CaseError(f"refused with {status:04x}", code="refused")
    (found,) = spool.series()
    write_series(found.objects, _image(), np.diag([1.0, 1.0, 2.0, 1.0]), skip=(0,))
    return read_case(found.objects, max_voxels=MAX_VOXELS)
