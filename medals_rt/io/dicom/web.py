"""Series from DICOMweb servers, and results stored there (extra "dicomweb").

An address is the server's, with what is wanted as its query:
``dicomweb+https://HOST/dicom-web?StudyInstanceUID=1.2.3&SeriesInstanceUID=1.2.3.4``. The server is
asked for the list of series (QIDO-RS), then for the headers of the one that is chosen (WADO-RS
metadata); slices are chosen and checked by these, and only then are their pixels fetched, to a
folder that the same reader reads as any other.

Credentials are in environment variables or files, never in an address; see `_credentials`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit
from zipfile import ZipFile

from medals_rt.common.errors import CaseError, InputError, ServerError
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import read_dicom_case
from medals_rt.io.dicom.files import (
    MAX_FILES,
    MAX_HEADER_BYTES,
    DicomFile,
    damage,
    printable,
    reading,
    silence,
)
from medals_rt.io.dicom.selection import check_one_image, parse_selection, select_slices
from medals_rt.io.dicom.series import Image, Series, choose_series, group_series, pixel_bytes
from medals_rt.io.dicom.slices import slices_of, stack_slices
from medals_rt.io.volume import check_shape

SCHEME: Final = "dicomweb+"

_Answer = TypeVar("_Answer")

_ADDRESS: Final = re.compile(r"dicomweb\+(?P<scheme>https?):/{1,2}(?P<rest>[^/].*)")
"""A `Path` leaves one slash of two."""

_PLACE: Final = re.compile(
    r"(?P<root>.*?)(?:/studies/(?P<study>[^/]+)(?:/series/(?P<series>[^/]+))?)?"
)
_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_LONGEST_UID: Final = 64
_KEYWORD: Final = re.compile(r"[A-Za-z0-9]{1,64}")
_STUDY: Final = "StudyInstanceUID"
_SERIES: Final = "SeriesInstanceUID"
_OBJECT: Final = "SOPInstanceUID"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

_WITHOUT_IMAGES: Final = (
    "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "DOC", "REG", "FID",
    "PLAN", "AU", "ECG", "HD", "RWV", "SMR", "STAIN", "TEXTUREMAP", "ANN",
)  # fmt: skip
"""Modalities whose objects aren't segmented."""

_USER: Final = "MEDALS_RT_DICOMWEB_USER"
_PASSWORD: Final = "MEDALS_RT_DICOMWEB_PASSWORD"  # noqa: S105 - a variable's name
_TOKEN: Final = "MEDALS_RT_DICOMWEB_TOKEN"  # noqa: S105 - a variable's name
_FROM_FILE: Final = "_FILE"

_ATTEMPTS: Final = 5
_FIRST_WAIT_S: Final = 0.5
_TIMEOUT_S: Final = (10.0, 120.0)
"""To connect, and between two pieces of an answer."""

_TRY_AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_LARGEST_LIST: Final = 64 * 2**20
_HEADER_BYTES: Final = 2**18
"""Room for one instance's header as JSON."""

_CONNECTIONS: Final = 4
_PIECE: Final = 2**20
_WHOLE: Final = 2**31
"""Longer bodies are sent in chunks, which some servers don't take."""


@dataclass(frozen=True)
class WebAddress:
    """Where images lie on a DICOMweb server.

    Attributes
    ----------
    server
        URL of the service, ``https://HOST/dicom-web``.
    query
        Attributes that the series have, by DICOM keyword, as for QIDO-RS.
    """

    server: str
    query: Mapping[str, str]

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> Self:
        """Read an address; studies and series may also be in its path, as in WADO-RS.

        Raises
        ------
        InputError
            If it isn't one, names a user or password, or an http server on another machine.
        """
        shown = os.fspath(text)
        found = _ADDRESS.fullmatch(shown)
        if found is None:
            raise InputError(
                f"{_without_user(shown)!r} is no address of a DICOMweb server; write "
                "dicomweb+https://HOST/dicom-web?StudyInstanceUID=UID",
                code="address-invalid",
            )
        url = urlsplit(f"{found['scheme']}://{found['rest']}")
        if "@" in url.netloc:
            raise InputError(
                "an address must not hold a user or password: put them into "
                f"{_USER} and {_PASSWORD}, or into a .netrc file",
                code="credentials-in-address",
            )
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise InputError(
                f"dicomweb+http sends patients' data in the clear, so it is for this machine only; "
                f"use dicomweb+https for {printable(url.hostname)}",
                code="address-not-encrypted",
            )
        place = _PLACE.fullmatch(url.path.rstrip("/"))
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if place is not None:
            named = {_STUDY: place["study"], _SERIES: place["series"]}
            query |= {key: value for key, value in named.items() if value}
        for key, value in query.items():
            is_uid = key.endswith("UID")
            if not _KEYWORD.fullmatch(key) or (is_uid and not _is_uid(value)):
                raise InputError(
                    f"{printable(key)}={printable(value)!r} can't be searched for; write "
                    "KEYWORD=VALUE with a DICOM keyword, and a UID as digits and dots",
                    code="address-invalid",
                )
        root = url.path.rstrip("/") if place is None else place["root"]
        return cls(f"{url.scheme}://{url.netloc}{root}", query)

    @property
    def name(self) -> str:
        """Name of what it holds: the UID of its series or study, never a patient's name."""
        return self.query.get(_SERIES) or self.query.get(_STUDY) or "dicomweb"

    def of_series(self, series: Series) -> WebAddress:
        """Return the address of one series of its study."""
        return replace(self, query={_STUDY: self.query[_STUDY], _SERIES: series.uid})

    def __str__(self) -> str:
        query = "&".join(f"{key}={quote(value)}" for key, value in self.query.items())
        return f"{SCHEME}{self.server}" + (f"?{query}" if query else "")


def is_web_address(text: str | os.PathLike[str]) -> bool:
    """Whether a path is an address of a DICOMweb server."""
    return os.fspath(text).startswith(SCHEME)


def read_web_case(
    text: str | os.PathLike[str],
    *,
    max_voxels: int,
    series: str | None = None,
    select: Sequence[str] = (),
) -> Case:
    """Read one series of a server; see `registry.read_case`.

    Parameters
    ----------
    text
        The address; it names a study, at least.
    series, select
        As for `case.read_dicom_case`.

    Raises
    ------
    InputError
        As `read_dicom_case`; also for an address that isn't one.
    ServerError
        The server can't be reached, refuses, or sends something else than it announced.
    MissingDependencyError
        If a library isn't installed.
    """
    address = WebAddress.parse(text)
    selection = parse_selection(select)
    server = _Server(address.server)
    chosen = _choose(server, address, series)
    headers = server.headers(address.query[_STUDY], chosen)
    with silence():
        found = choose_series(group_series(headers), None, str(address))
        slices = select_slices(slices_of(found), selection, found)
        check_one_image(slices, selection, found)
        stack = stack_slices(slices, found)
    shape = (len(stack.slices), *stack.slices[0].shape)
    check_shape(shape, max_voxels=max_voxels, what=f"the series [{found}]")
    wanted = list(dict.fromkeys(each.image for each in stack.slices))
    with TemporaryDirectory(prefix="medals-rt-") as temporary:
        folder = Path(temporary, chosen.uid)
        folder.mkdir()
        server.fetch(address.query[_STUDY], chosen.uid, wanted, folder)
        case = read_dicom_case(folder, max_voxels=max_voxels, select=select)
    fetched = f"fetched {len(wanted)} of {len(headers)} objects of the series from {address.server}"
    return replace(
        case,
        path=Path(chosen.uid),
        notes=(Note("fetched", fetched), *case.notes),
        origin={**case.origin, "server": address.server},
    )


def series_addresses(text: str | os.PathLike[str]) -> list[WebAddress]:
    """Find the series with images that an address's query names, in the order of their numbers.

    Raises
    ------
    InputError, ServerError, MissingDependencyError
        As `read_web_case`.
    """
    address = WebAddress.parse(text)
    found = _Server(address.server).search(address.query)
    return [
        replace(address, query={_STUDY: study, _SERIES: each.uid})
        for study, each in found
        if each.modality not in _WITHOUT_IMAGES
    ]


def save_series(uid: str, studies: str, path: Path, *, max_bytes: int) -> None:
    """Fetch a series of a server into a zip.

    Parameters
    ----------
    uid
        Its SeriesInstanceUID.
    studies
        Address of the server.
    path
        Of the zip.
    max_bytes
        What its pixels may take.

    Raises
    ------
    InputError
        `uid` is no UID, or the server has no images under it, or too many.
    ServerError, MissingDependencyError
        As `read_web_case`.
    """
    if not _is_uid(uid):
        raise InputError(f"{printable(uid)!r} is no UID of a series", code="series-uid-invalid")
    server = _Server(WebAddress.parse(studies).server)
    found = [each for each in server.search({_SERIES: uid}) if each[1].uid == uid]
    if len(found) != 1:
        raise CaseError(f"{server.url} has no series {uid}; check the UID", code="series-not-there")
    ((study, series),) = found
    images = server.headers(study, series)
    with silence(), reading(server.url):
        size = sum(map(pixel_bytes, images))
    if size > max_bytes:
        raise CaseError(
            f"series {uid} has {size:,} bytes of pixels, more than the {max_bytes:,} that it may "
            "have",
            code="series-too-large",
        )
    with TemporaryDirectory(prefix="medals-rt-") as temporary, ZipFile(path, "w") as archive:
        server.fetch(study, uid, images, Path(temporary))
        for file in sorted(Path(temporary).iterdir()):
            archive.write(file, file.name)


def content_of(text: str | os.PathLike[str]) -> str:
    """List the objects that an address stands for now, by UID: to tell whether it changed since.

    Raises
    ------
    InputError, ServerError, MissingDependencyError
        As `read_web_case`.
    """
    address = WebAddress.parse(text)
    return "\n".join(_Server(address.server).instances(address.query))


def check_store(text: str | os.PathLike[str]) -> None:
    """Check that a server answers and takes our credentials, before the work is done.

    Raises
    ------
    InputError, ServerError, MissingDependencyError
        As `read_web_case`.
    """
    server = _Server(WebAddress.parse(text).server)
    server.ask(lambda client: client.search_for_studies(limit=1))


def store_files(text: str | os.PathLike[str], files: Sequence[Path]) -> None:
    """Store DICOM files on a server, by STOW-RS. Storing a file again changes nothing.

    Raises
    ------
    InputError, MissingDependencyError
        As `read_web_case`.
    ServerError
        The server can't be reached, or didn't take all of them.
    """
    pydicom = import_optional("pydicom", "DICOMweb")
    server = _Server(WebAddress.parse(text).server)
    for file in files:
        with silence():
            answer = server.ask(partial(_store_one, pydicom.dcmread(file)))
        failed = list(answer.get("FailedSOPSequence") or [])
        if failed:
            reason = printable(failed[0].get("FailureReason", "none named"))
            raise ServerError(
                f"{server.url} did not store {file.name} (reason {reason}); try again",
                code="store-refused",
            )


def _store_one(data: Any, client: Any) -> Any:
    return client.store_instances([data])


def _choose(server: _Server, address: WebAddress, wanted: str | None) -> Series:
    """Choose a series of a study as among those of a folder."""
    if _STUDY not in address.query:
        raise InputError(
            f"{address} names no study; add StudyInstanceUID=UID", code="study-missing"
        )
    every = [series for _, series in server.search(address.query)]
    images = [each for each in every if each.modality not in _WITHOUT_IMAGES]
    if not images:
        kinds = ", ".join(sorted({each.modality for each in every})) or "nothing"
        raise CaseError(
            f"{address} holds no images ({kinds}); check the UIDs",
            code="no-images" if every else "no-dicom",
        )
    return choose_series(images, wanted, str(address))


class _Server:
    """A DICOMweb server: requests are bounded, and repeated where that helps."""

    def __init__(self, url: str) -> None:
        import_optional("dicomweb-client", "DICOMweb")
        self.url = url
        self._local = local()

    def search(self, query: Mapping[str, str]) -> list[tuple[str, Series]]:
        """Find series by attributes: the study of each, and what the server says of it."""
        fields = ("SeriesDescription", "SeriesNumber", "Modality", "NumberOfSeriesRelatedInstances")
        found = self._pages(
            lambda client, offset: client.search_for_series(
                search_filters=dict(query), fields=fields, offset=offset
            ),
            _SERIES,
        )
        with silence(), reading(self.url):
            listed = [_listed(each) for each in found]
        return sorted(
            listed,
            key=lambda each: (each[0], each[1].number is None, each[1].number or 0, each[1].uid),
        )

    def instances(self, query: Mapping[str, str]) -> list[str]:
        """Find the UIDs of objects by attributes, sorted."""
        found = self._pages(
            lambda client, offset: client.search_for_instances(
                search_filters=dict(query), offset=offset
            ),
            _OBJECT,
        )
        return sorted(str(each.SOPInstanceUID) for each in found)

    def _pages(self, search: Callable[..., Any], key: str) -> list[Any]:
        """Search until a page brings nothing new: servers may cut lists short, or repeat them.

        `key` is the identifier in which what is listed differs.
        """
        found: dict[str, Any] = {}
        while True:
            before = len(found)
            page = self.ask(partial(search, offset=before or None))
            with silence(), reading(self.url):
                found |= {_uid(each, key): each for each in _data_sets(page)}
            if len(found) == before:
                return list(found.values())
            if len(found) > MAX_FILES:
                raise ServerError(
                    f"{self.url} lists more than {MAX_FILES:,} objects; name a study",
                    code="answer-too-large",
                )

    def headers(self, study: str, series: Series) -> list[Image]:
        """Fetch the headers of a series, without pixels."""
        from pydicom.dataset import FileMetaDataset

        room = _LARGEST_LIST + series.slices * _HEADER_BYTES
        found = self.ask(
            lambda client: client.retrieve_series_metadata(study, series.uid), largest=room
        )
        images = []
        with silence(), reading(self.url):
            for header in _data_sets(found):
                header.file_meta = FileMetaDataset()
                name = _uid(header, _OBJECT)
                if "Rows" in header:
                    images.append(Image(DicomFile.elsewhere(name), header))
        return images

    def fetch(self, study: str, series: str, images: Sequence[Image], folder: Path) -> None:
        """Fetch objects to a folder, a few at a time."""
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="dicomweb") as pool:
            waiting = [
                pool.submit(self._fetch_one, study, series, image, folder / f"{number:06}.dcm")
                for number, image in enumerate(images)
            ]
            try:
                for each in waiting:
                    each.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _fetch_one(self, study: str, series: str, image: Image, path: Path) -> None:
        uid = image.sop_instance
        largest = 2 * pixel_bytes(image) + MAX_HEADER_BYTES
        data = self.ask(
            lambda client: client.retrieve_instance(study, series, uid), largest=largest
        )
        with silence(), reading(self.url):
            sent = str(data.get(_OBJECT))
        if sent != uid:
            raise ServerError(
                f"{self.url} sent another object than {uid}; try again", code="answer-invalid"
            )
        try:
            with silence():
                data.save_as(path)
        except OSError:  # of the disk
            raise
        except damage() as error:
            raise ServerError(
                f"{self.url} sent a damaged object, {uid} ({printable(error, 100)}); try again",
                code="object-damaged",
            ) from error

    def ask(self, call: Callable[[Any], _Answer], *, largest: int = _LARGEST_LIST) -> _Answer:
        """Call the server's client, again where the fault may pass, and explain its failure.

        Raises
        ------
        ServerError
        """
        import requests

        exceptions: Any = requests.exceptions
        client = self._client(largest)
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                with silence():
                    return call(client)
            except ServerError:
                raise
            except exceptions.HTTPError as error:
                status = error.response.status_code
                if last or status not in _TRY_AGAIN:
                    raise self._refused(status) from None
            except exceptions.SSLError as error:
                raise ServerError(
                    f"the certificate of {self.url} can't be verified; let REQUESTS_CA_BUNDLE name "
                    "the file of its authority",
                    code="certificate-invalid",
                ) from error
            except (exceptions.ConnectionError, exceptions.Timeout) as error:
                if last:
                    raise ServerError(
                        f"{self.url} can't be reached or breaks off ({type(error).__name__}, "
                        f"{_ATTEMPTS} attempts); check the address and the network",
                        code="server-unreachable",
                    ) from error
            except damage() as error:
                raise ServerError(
                    f"{self.url} answers with something that is no DICOMweb "
                    f"({printable(error, 100)}); check the address",
                    code="answer-invalid",
                ) from error
            time.sleep(_FIRST_WAIT_S * 2**attempt)
        raise AssertionError

    def _refused(self, status: int) -> ServerError:
        if status in {401, 403}:
            return ServerError(
                f"{self.url} refuses access ({status}); put credentials into {_USER} and "
                f"{_PASSWORD}, into {_TOKEN}, or into a .netrc file",
                code="access-refused",
            )
        return ServerError(
            f"{self.url} answers with the error {status}; check the address, or try later",
            code="server-error",
        )

    def _client(self, largest: int) -> Any:
        """Return this thread's client, whose answers are at most so long."""
        if not hasattr(self._local, "client"):
            from dicomweb_client.api import DICOMwebClient

            session = _session()
            client = DICOMwebClient(
                self.url, session=session, timeout=_TIMEOUT_S, permissive_uid=True
            )
            client.set_http_retry_params(retry=False)  # `ask` does that, for more than statuses
            client.set_chunk_size(_WHOLE)
            self._local.client, self._local.session = client, session
        self._local.session.largest = largest
        return self._local.client


def _session() -> Any:
    """Make a session that identifies us, and whose answers have a greatest length."""
    import requests

    class Bounded(requests.Session):
        largest = _LARGEST_LIST

        def send(self, request: Any, **options: Any) -> Any:
            answer = super().send(request, **{**options, "stream": True})
            with _closed_on_failure(answer):
                answer._content = _bounded(answer, self.largest)  # noqa: SLF001 - it has no setter
            answer._content_consumed = True  # noqa: SLF001
            return answer

    session: Any = Bounded()
    session.headers["Accept-Encoding"] = "identity"
    user, password, token = _credentials()
    if token:
        session.auth = lambda request: _with_token(request, token)
    elif user:
        session.auth = (user.encode(), (password or "").encode())
    return session


@contextmanager
def _closed_on_failure(answer: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        answer.close()
        raise


def _bounded(answer: Any, largest: int) -> bytes:
    """Read an answer that isn't longer than it may be, before memory is taken for more."""
    if answer._content is not False:  # noqa: SLF001 - of a redirection, read already
        return bytes(answer.content)
    announced = answer.headers.get("Content-Length", "")
    body = bytearray()
    pieces = iter(()) if announced.isdigit() and int(announced) > largest else None
    for piece in answer.iter_content(_PIECE) if pieces is None else pieces:
        body += piece
        if len(body) > largest:
            break
    if pieces is not None or len(body) > largest:
        raise ServerError(
            f"an answer of {urlsplit(answer.url).netloc} is longer than the {largest:,} bytes that "
            "it should have at most; it isn't read",
            code="answer-too-large",
        )
    return bytes(body)


def _with_token(request: Any, token: str) -> Any:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _credentials() -> tuple[str | None, str | None, str | None]:
    """User, password and token, from environment variables or the files that those name.

    Each of `_USER`, `_PASSWORD` and `_TOKEN` may have ``_FILE`` after it, and then names a file
    that holds the value. Without any of them, requests looks for the host in the user's .netrc, or
    in the file that `NETRC` names.

    Raises
    ------
    InputError
        Such a file can't be read.
    """
    return _secret(_USER), _secret(_PASSWORD), _secret(_TOKEN)


def _secret(variable: str) -> str | None:
    file = os.environ.get(variable + _FROM_FILE)
    if not file:
        return os.environ.get(variable) or None
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{variable}{_FROM_FILE} names a file that can't be read: {file}",
            code="credentials-unreadable",
        ) from error


def _data_sets(found: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    from pydicom.dataset import Dataset

    for each in found:
        yield Dataset.from_json(dict(each), bulk_data_uri_handler=lambda _: None)


def _listed(data: Any) -> tuple[str, Series]:
    """Study of a series in a list, and the series."""
    number = data.get("SeriesNumber")
    count = data.get("NumberOfSeriesRelatedInstances")
    series = Series(
        uid=_uid(data, _SERIES),
        number=None if number in {None, ""} else int(number),
        description=printable(data.get("SeriesDescription") or ""),
        modality=printable(data.get("Modality") or "unknown", 16),
        images=(),
        listed=int(count or 0),
    )
    return _uid(data, _STUDY), series


def _uid(data: Any, name: str) -> str:
    """Value of an identifier that goes into further requests: digits and dots alone."""
    uid = str(data.get(name) or "")
    if not _is_uid(uid):
        raise ValueError(f"a {name} that is no UID")
    return uid


def _is_uid(text: str) -> bool:
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def _without_user(text: str) -> str:
    """Leave out what may be a password of an address for a message."""
    return printable(re.sub(r"//?[^/@]*@", "//", text), 200)
