"""A real Orthanc, a DICOM archive, started by tests that need one; they skip where it is absent."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

PROGRAM: Final = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
DICOMWEB: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER: Final = "reader"
PASSWORD: Final = "between-us-only"  # noqa: S105 - of a server that ends with the test
TITLE: Final = "ORTHANC"
_STARTS_WITHIN_S: Final = 180


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: its ports for HTTP and DICOM."""

    http: int
    dicom: int
    folder: Path

    @property
    def address(self) -> str:
        return f"dicomweb+http://127.0.0.1:{self.http}/dicom-web"

    def rest(self, method: str, path: str, **options: Any) -> Any:
        """Call Orthanc's own interface."""
        import requests

        url = f"http://127.0.0.1:{self.http}{path}"
        answer = requests.request(
            method, url, auth=(USER, PASSWORD), timeout=60, proxies={"http": ""}, **options
        )
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers.get("Content-Type", "") else answer.content

    def upload(self, folder: Path) -> None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.rest("POST", "/instances", data=file.read_bytes())

    def series(self, **query: str) -> list[str]:
        """Orthanc's own numbers of series by attributes."""
        return list(self.rest("POST", "/tools/find", json={"Level": "Series", "Query": query}))

    def datasets(self, **query: str) -> list[Any]:
        """Every object of the series that have these attributes."""
        from io import BytesIO

        import pydicom

        return [
            pydicom.dcmread(BytesIO(self.rest("GET", f"/instances/{instance}/file")))
            for series in self.series(**query)
            for instance in self.rest("GET", f"/series/{series}")["Instances"]
        ]

    def requests(self) -> str:
        """What its log says so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    """A port that nobody has, below those that systems lend: nobody is given it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running_orthanc(folder: Path, modalities: Mapping[str, Any] | None = None) -> Iterator[Orthanc]:
    """Start Orthanc with its storage in a folder and authentication on."""
    if not Path(PROGRAM).is_file() or not DICOMWEB.is_file():
        pytest.skip(
            "Orthanc isn't installed (Debian packages orthanc, orthanc-dicomweb): "
            "nothing is tested against a real archive"
        )
    folder.mkdir(parents=True, exist_ok=True)
    orthanc = Orthanc(free_port(), free_port(), folder)
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(DICOMWEB)],
        "HttpPort": orthanc.http,
        "DicomPort": orthanc.dicom,
        "DicomAet": TITLE,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomModalities": dict(modalities or {}),
        "DicomAlwaysAllowStore": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "StableAge": 1,
        "OverwriteInstances": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "--verbose", str(folder / "orthanc.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            _wait_until_up(orthanc, process)
            yield orthanc
        finally:
            process.terminate()
            process.wait(180)


def _wait_until_up(orthanc: Orthanc, process: subprocess.Popen[bytes]) -> None:
    import requests

    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end:
        assert process.poll() is None, orthanc.requests()
        with contextlib.suppress(requests.ConnectionError):
            orthanc.rest("GET", "/system")
            return
        time.sleep(0.1)
    raise AssertionError(orthanc.requests())
