"""DICOMweb against a real Orthanc, and against a server that misbehaves."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import CaseError, InputError, MedalsError, ServerError
from medals_rt.io.dicom import web, web_server
from medals_rt.io.dicom.web_address import WebAddress, is_web_address
from medals_rt.io.registry import case_stem, is_dicom, read_case
from tests.cli.helpers import call
from tests.dicom import write_series
from tests.orthanc import PASSWORD, USER, Orthanc, running_orthanc

AFFINE = np.diag([12.0, 12.0, 15.0, 1.0])
AFFINE[:3, 3] = (-90.0, -80.0, -50.0)
VALUES = np.random.default_rng(0).integers(-1000, 1000, (6, 16, 20)).astype(np.int16)
STUDY = "StudyInstanceUID=1.2.3.4"
SECOND = "1.2.3.4.2"


def two_echoes(k: int, data: object) -> None:
    data.EchoNumbers = 1 + k % 2  # type: ignore[attr-defined]
    data.ImagePositionPatient = [-90.0, -80.0, -50.0 + 15 * (k // 2)]  # type: ignore[attr-defined]


def as_report(_: int, data: object) -> None:
    data.Modality = "SR"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive with a CT of 6 slices (series 3), one of two echoes (4), and a report."""
    folder = tmp_path_factory.mktemp("orthanc")
    with running_orthanc(folder / "server") as server:
        write_series(folder / "ct", VALUES, AFFINE)

        def fourth(k: int, data: object) -> None:
            two_echoes(k, data)
            data.SeriesNumber = 4  # type: ignore[attr-defined]

        write_series(folder / "echoes", VALUES, AFFINE, change=fourth, seed=1)
        write_series(folder / "sr", VALUES[:1], AFFINE, change=as_report, seed=2)
        server.upload(folder / "ct")
        server.upload(folder / "echoes")
        server.upload(folder / "sr")
        yield server


@pytest.fixture
def series_folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "same", VALUES, AFFINE)
    return tmp_path / "same"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("TOKEN", "TOKEN_FILE", "USER_FILE", "PASSWORD_FILE"):
        monkeypatch.delenv(f"MEDALS_RT_DICOMWEB_{variable}", raising=False)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_USER", USER)
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_PASSWORD", PASSWORD)
    monkeypatch.setattr(web_server, "_FIRST_WAIT_S", 0.001)


@pytest.mark.parametrize(
    ("text", "server", "query"),
    [
        ("dicomweb+https://h/dicom-web", "https://h/dicom-web", {}),
        ("dicomweb+https:/h/dicom-web", "https://h/dicom-web", {}),  # as a Path has it
        (
            "dicomweb+https://h:8443/a/b?StudyInstanceUID=1.2&SeriesInstanceUID=1.2.3",
            "https://h:8443/a/b",
            {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3"},
        ),
        (
            "dicomweb+http://127.0.0.1:1/w/studies/1.2/series/3.4",
            "http://127.0.0.1:1/w",
            {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "3.4"},
        ),
        ("dicomweb+http://[::1]:1/w?PatientID=a%26b", "http://[::1]:1/w", {"PatientID": "a&b"}),
    ],
)
def test_addresses(text: str, server: str, query: dict[str, str]) -> None:
    found = WebAddress.parse(Path(text))
    assert (found.server, found.query) == (server, query)
    assert WebAddress.parse(str(found)) == found
    assert is_web_address(Path(text))
    assert is_dicom(Path(text))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("dicomweb+ftp://h/w", "address-invalid"),
        ("dicomweb+https://user:secret@h/w", "credentials-in-address"),
        ("dicomweb+http://user:secret@h/w", "credentials-in-address"),
        ("dicomweb+http://hospital.example/w", "address-not-encrypted"),
        ("dicomweb+https://h/w?StudyInstanceUID=../../x", "address-invalid"),
        ("dicomweb+https://h/w/studies/1.2%2f..", "address-invalid"),
        ("dicomweb+https://h/w?a%20b=1", "address-invalid"),
        (f"dicomweb+https://h/w?StudyInstanceUID={'1' * 65}", "address-invalid"),
    ],
)
def test_addresses_that_are_refused(text: str, code: str) -> None:
    with pytest.raises(InputError) as refused:
        WebAddress.parse(text)
    assert refused.value.code == code
    assert "secret" not in str(refused.value)


def test_a_case_is_called_by_its_uid() -> None:
    assert case_stem("dicomweb+https://h/w?StudyInstanceUID=1.2&PatientName=Doe") == "1.2"


def test_a_series_is_read_as_from_its_folder(orthanc: Orthanc, series_folder: Path) -> None:
    address = f"{orthanc.address}?{STUDY}&SeriesInstanceUID=1.2.3.4.1"
    found, expected = read_case(Path(address)), read_case(series_folder)
    np.testing.assert_array_equal(found.volume.image_dhw, expected.volume.image_dhw)
    assert found.volume.spacing_hwd_mm == expected.volume.spacing_hwd_mm
    np.testing.assert_array_equal(found.volume.source.affine_lps, expected.volume.source.affine_lps)
    assert found.volume.name == "1.2.3.4.1"
    assert found.origin == {**expected.origin, "server": orthanc.address.removeprefix("dicomweb+")}
    assert [note.code for note in found.notes] == ["fetched"]


def test_series_are_chosen_as_in_a_folder(orthanc: Orthanc) -> None:
    address = f"{orthanc.address}?{STUDY}"
    assert read_case(address, series="3").volume.name == "1.2.3.4.1"
    for series, code in ((None, "several-series"), ("7", "series-not-found")):
        with pytest.raises(CaseError) as refused:
            read_case(address, series=series)
        assert refused.value.code == code


def test_only_the_selected_slices_are_fetched(orthanc: Orthanc) -> None:
    address = f"{orthanc.address}?{STUDY}"
    with pytest.raises(CaseError) as refused:
        read_case(address, series="4")
    assert refused.value.code == "several-images"
    assert f"GET /dicom-web/studies/1.2.3.4/series/{SECOND}/instances/" not in orthanc.requests()
    case = read_case(address, series="4", select=("ECHO=2",))
    np.testing.assert_array_equal(case.volume.image_dhw, VALUES[1::2])
    fetched = {
        line.rsplit("/", 1)[1].strip()
        for line in orthanc.requests().splitlines()
        if f"GET /dicom-web/studies/1.2.3.4/series/{SECOND}/instances/" in line
    }
    assert fetched == {f"{SECOND}.{k + 1}" for k in (1, 3, 5)}


def test_too_many_voxels_are_refused_before_pixels_are_fetched(
    orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web.WebServer, "fetch", None)
    with pytest.raises(CaseError) as refused:
        read_case(f"{orthanc.address}?{STUDY}", series="3", max_voxels=100)
    assert refused.value.code == "too-many-voxels"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("PatientID=none", "study-missing"),
        ("StudyInstanceUID=9.9.9", "no-dicom"),
        (f"{STUDY}&SeriesInstanceUID=1.2.3.4.3", "no-images"),
    ],
)
def test_nothing_to_read(orthanc: Orthanc, query: str, code: str) -> None:
    with pytest.raises(InputError) as refused:
        read_case(f"{orthanc.address}?{query}")
    assert refused.value.code == code


def test_credentials_from_files_and_netrc(
    orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_PASSWORD", "wrong")
    with pytest.raises(ServerError) as refused:
        web.check_store(orthanc.address)
    assert refused.value.code == "access-refused"
    (tmp_path / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_PASSWORD_FILE", str(tmp_path / "password"))
    web.check_store(orthanc.address)
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_PASSWORD_FILE", str(tmp_path / "absent"))
    with pytest.raises(InputError) as unreadable:
        web.check_store(orthanc.address)
    assert unreadable.value.code == "credentials-unreadable"
    for variable in ("USER", "PASSWORD", "PASSWORD_FILE"):
        monkeypatch.delenv(f"MEDALS_RT_DICOMWEB_{variable}")
    with pytest.raises(ServerError):
        web.check_store(orthanc.address)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    web.check_store(orthanc.address)


def test_run_stores_its_result(
    orthanc: Orthanc,
    tiny_bundle: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    done = call(
        "run", "--input", f"{orthanc.address}?{STUDY}", "--series", "3",
        "--prompt", "Liver in abdominal CT", "--bundle", tiny_bundle.folder,
        "--output", tmp_path / "liver.dcm", "--report", tmp_path / "report.json",
        "--store", orthanc.address,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (stored,) = orthanc.datasets(Modality="SEG")
    assert stored.StudyInstanceUID == "1.2.3.4"
    named = stored.ReferencedSeriesSequence[0]
    assert named.SeriesInstanceUID == "1.2.3.4.1"
    assert len(named.ReferencedInstanceSequence) == len(VALUES)
    report = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(report)["image"]["origin"]["server"].endswith("/dicom-web")
    for text in (done.output, report, caplog.text):
        assert PASSWORD not in text
        assert "Authorization" not in text
    web.store_files(orthanc.address, [tmp_path / "liver.dcm"])  # storing it again changes nothing
    assert len(orthanc.datasets(Modality="SEG")) == 1


def test_a_batch_takes_every_series_and_goes_on(
    orthanc: Orthanc, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    def batch() -> str:
        words = ("--prompt", "Liver in abdominal CT", "--bundle", tiny_bundle.folder)
        address = f"{orthanc.address}?{STUDY}&Modality=CT"
        done = call("batch", address, tmp_path / "results", *words, "--no-preview")
        return str(done.output)

    first = batch()
    assert (tmp_path / "results" / "1.2.3.4" / "1.2.3.4.1.dcm").is_file()
    assert "1 done, 1 failed" in first  # the series of two echoes has to be chosen from
    fetched = orthanc.requests().count("/series/1.2.3.4.1/instances/")
    assert "1 finished before, 1 failed" in batch()
    assert orthanc.requests().count("/series/1.2.3.4.1/instances/") == fetched


def test_what_is_stored_must_be_dicom(
    orthanc: Orthanc, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    done = call(
        "run", "--input", f"{orthanc.address}?{STUDY}", "--series", "3",
        "--prompt", "Liver in abdominal CT", "--bundle", tiny_bundle.folder,
        "--output", tmp_path / "liver.nii.gz", "--store", orthanc.address,
    )  # fmt: skip
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())


Answer = tuple[int, str, bytes]


@pytest.fixture
def misbehaving() -> Iterator[Callable[[list[Answer]], tuple[str, list[str]]]]:
    """A server that gives prepared answers in their order, the last one again and again."""
    servers = []

    def start(answers: list[Answer]) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.headers.get("Authorization", ""))
                status, kind, body = answers[min(len(asked), len(answers)) - 1]
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if 300 <= status < 400:
                    self.send_header("Location", body.decode().strip())
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # not all want to read it
                    self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"dicomweb+http://127.0.0.1:{server.server_port}/w", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


JSON = "application/dicom+json"
NOTHING: Answer = (200, JSON, b"[]")


def test_faults_that_pass_are_waited_for(
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]],
) -> None:
    address, asked = misbehaving([(503, "text/plain", b""), (500, "text/plain", b""), NOTHING])
    assert web.series_addresses(f"{address}?{STUDY}") == []
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "code", "times"),
    [
        ((503, "text/plain", b""), "server-error", 5),
        ((404, "text/plain", b""), "server-error", 1),
        ((403, "text/plain", b""), "access-refused", 1),
        ((200, "text/html", b"<p>welcome</p>"), "answer-invalid", 1),
        ((200, JSON, b"[" + b" " * 2000 + b"]"), "answer-too-large", 1),
        ((200, JSON, b'[{"0020000E": {"vr": "UI", "Value": ["../../etc"]}}]'), None, 1),
    ],
)
def test_faults_that_stay(
    answer: Answer,
    code: str | None,
    times: int,
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_server, "_LARGEST_LIST", 1000)
    monkeypatch.setattr(web.WebServer.ask, "__kwdefaults__", {"largest": 1000})
    address, asked = misbehaving([answer])
    with pytest.raises(MedalsError) as failed:
        web.series_addresses(f"{address}?{STUDY}")
    assert code is None or failed.value.code == code
    assert len(asked) == times
    assert PASSWORD not in str(failed.value)


def test_a_series_is_fetched_beside_its_zip(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of whoever wants it: that is removed where its process was killed."""
    seen: list[Path] = []
    fetch = web.WebServer.fetch

    def watched(*given: Any) -> None:
        seen.append(given[-1].parent)
        fetch(*given)

    monkeypatch.setattr(web.WebServer, "fetch", watched)
    archive = tmp_path / "own" / "series.zip"
    archive.parent.mkdir()
    web.save_series(SECOND, orthanc.address, archive, max_bytes=10**6)
    assert seen == [archive.parent]
    assert list(archive.parent.iterdir()) == [archive]


def test_who_has_pauses_of_its_own_asks_once(
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]],
) -> None:
    address, asked = misbehaving([(503, "text/plain", b""), NOTHING])
    server = web.WebServer(WebAddress.parse(address).server, attempts=1)
    with pytest.raises(ServerError) as failed:
        server.search({})
    assert failed.value.code == "server-error"
    assert len(asked) == 1


def test_nobody_there() -> None:
    with pytest.raises(ServerError) as failed:
        web.check_store("dicomweb+http://127.0.0.1:9/w")
    assert failed.value.code == "server-unreachable"


def test_a_token_is_sent_and_not_to_another_host(
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDALS_RT_DICOMWEB_TOKEN", "abc")
    other, asked_of_other = misbehaving([NOTHING])
    place = other.removeprefix("dicomweb+").replace("127.0.0.1", "localhost")
    address, asked = misbehaving([(302, "text/plain", place.encode())])
    web.series_addresses(f"{address}?{STUDY}")
    assert asked == ["Bearer abc"]
    assert asked_of_other == [""]


ELSEWHERE = "http://hospital.example/w"  # in the clear


@pytest.mark.parametrize(
    ("location", "code"),
    [
        (ELSEWHERE, "redirect-refused"),
        ("ftp://127.0.0.1/w", "redirect-refused"),
        ("http://127.0.0.1@hospital.example/w", "redirect-refused"),
        ("/w" + " " * 2000, "answer-too-large"),  # its body, which nobody needs
    ],
)
def test_redirections_that_are_not_followed(
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]], location: str, code: str
) -> None:
    address, asked = misbehaving([(302, "text/plain", location.encode()), NOTHING])
    with pytest.raises(ServerError) as failed:
        web.WebServer(WebAddress.parse(address).server).ask(
            lambda client: client.search_for_studies(limit=1), largest=1000
        )
    assert failed.value.code == code
    assert len(asked) == 1


def names(of: str, uid: str) -> dict[str, Any]:
    """A list in an answer about objects that were stored, or were not."""
    item = {
        "00081155": {"vr": "UI", "Value": [uid]},
        "00081197": {"vr": "US", "Value": [272]},
    }
    return {of: {"vr": "SQ", "Value": [item]}}


STORED, FAILED, FIRST = "00081199", "00081198", "1.2.3.4.1.1"
YES = json.dumps(names(STORED, FIRST)).encode()
NO = json.dumps(names(FAILED, FIRST)).encode()
OTHER = json.dumps(names(STORED, "1.2.3")).encode()
HALF = json.dumps(names(STORED, FIRST) | names(FAILED, FIRST)).encode()
YES_XML = b"""<NativeDicomModel><DicomAttribute tag="00081199" vr="SQ"
    keyword="ReferencedSOPSequence"><Item number="1"><DicomAttribute tag="00081155" vr="UI"
    keyword="ReferencedSOPInstanceUID"><Value number="1">1.2.3.4.1.1</Value></DicomAttribute></Item>
    </DicomAttribute></NativeDicomModel>"""


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, JSON, YES), None),
        ((202, "Application/JSON;charset=UTF-8", YES), None),
        ((200, "application/dicom+xml; charset=utf-8", YES_XML), None),
        ((202, JSON, NO), "store-refused"),
        ((202, f"{JSON}; charset=utf-8", NO), "store-refused"),
        ((202, "application/json;charset=UTF-8", NO), "store-refused"),
        ((202, "Application/DICOM+JSON", NO), "store-refused"),
        ((202, JSON, HALF), "store-refused"),
        ((200, JSON, OTHER), "answer-invalid"),
        ((200, JSON, b"{}"), "answer-invalid"),
        ((200, JSON, b""), "answer-invalid"),
        ((200, "application/dicom+xml", b"<NativeDicomModel/>"), "answer-invalid"),
        ((200, "text/html", b"<p>sign in</p>"), "answer-invalid"),
        ((302, "text/plain", b"/w/sign-in"), "redirect-refused"),
        ((303, "text/plain", b"https://hospital.example/sign-in"), "redirect-refused"),
        ((307, "text/plain", b"https://hospital.example/w"), "redirect-refused"),
    ],
)
def test_stored_is_what_the_answer_names(
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]],
    series_folder: Path,
    answer: Answer,
    code: str | None,
) -> None:
    """What nobody has would be taken for stored, and removed here."""
    address, asked = misbehaving([answer, (200, JSON, YES)])
    files = [each for each in series_folder.iterdir() if dcmread(each).SOPInstanceUID == FIRST]
    found = None
    try:
        web.store_files(address, files)
    except ServerError as error:
        found = error.code
    assert found == code
    assert len(asked) == 1


def test_no_proxy_gets_what_is_for_this_machine(
    misbehaving: Callable[[list[Answer]], tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, asked_of_proxy = misbehaving([NOTHING])
    monkeypatch.setenv("HTTP_PROXY", proxy.removeprefix("dicomweb+"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    address, asked = misbehaving([NOTHING])
    web.check_store(address)
    assert (len(asked), asked_of_proxy) == (1, [])
