"""A DICOMweb server: what is asked of it, within bounds, and again where that helps.

Credentials are in environment variables or files, never in an address; see `_credentials`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import local
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from medals_rt.common.errors import InputError, ServerError
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.files import (
    MAX_FILES,
    MAX_HEADER_BYTES,
    DicomFile,
    damage,
    printable,
    reading,
    silence,
)
from medals_rt.io.dicom.series import Image, Series, pixel_bytes
from medals_rt.io.dicom.web_address import (
    LOOPBACK,
    OBJECT_UID,
    PASSWORD_VARIABLE,
    SERIES_UID,
    STUDY_UID,
    TOKEN_VARIABLE,
    USER_VARIABLE,
    is_uid,
)

_Answer = TypeVar("_Answer")

_FROM_FILE: Final = "_FILE"

ATTEMPTS: Final = 5
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


class WebServer:
    """A DICOMweb server: requests are bounded, and repeated where that helps.

    Parameters
    ----------
    url
        Its address.
    attempts
        How often a request is tried whose fault may pass.
    """

    def __init__(self, url: str, *, attempts: int = ATTEMPTS) -> None:
        import_optional("dicomweb-client", "DICOMweb")
        self.url = url
        self._attempts = attempts
        self._local = local()

    def search(self, query: Mapping[str, str]) -> list[tuple[str, Series]]:
        """Find series by attributes: the study of each, and what the server says of it."""
        fields = ("SeriesDescription", "SeriesNumber", "Modality", "NumberOfSeriesRelatedInstances")
        found = self._pages(
            lambda client, offset: client.search_for_series(
                search_filters=dict(query), fields=fields, offset=offset
            ),
            SERIES_UID,
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
            OBJECT_UID,
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
                name = _uid(header, OBJECT_UID)
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
            sent = str(data.get(OBJECT_UID))
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
        for attempt in range(self._attempts):
            last = attempt == self._attempts - 1
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
                        f"attempt {attempt + 1}); check the address and the network",
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
                f"{self.url} refuses access ({status}); put credentials into {USER_VARIABLE} and "
                f"{PASSWORD_VARIABLE}, into {TOKEN_VARIABLE}, or into a .netrc file",
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
            if urlsplit(request.url).hostname in LOOPBACK:
                options["proxies"] = {}  # a proxy would get what is for this machine alone
            return super().send(request, **{**options, "stream": True})

        def rebuild_method(self, request: Any, answer: Any) -> None:
            _check_redirection(request, answer)
            request.headers.pop("Host", None)  # of who redirects

    def received(answer: Any, **_: Any) -> None:
        with _closed_on_failure(answer):
            answer._content = _bounded(answer, session.largest)  # noqa: SLF001 - it has no setter
        answer._content_consumed = True  # noqa: SLF001
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind.startswith("application/"):  # of other kinds, parameters matter
            answer.headers["Content-Type"] = kind  # as dicomweb_client compares it

    session: Any = Bounded()
    session.hooks["response"].append(received)
    session.headers["Accept-Encoding"] = "identity"
    user, password, token = _credentials()
    if token:
        session.auth = lambda request: _with_token(request, token)
    elif user:
        session.auth = (user.encode(), (password or "").encode())
    return session


def _check_redirection(request: Any, answer: Any) -> None:
    """Let no object be sent on, and nothing be asked for in the clear but of this machine."""
    target = urlsplit(request.url)
    is_private = target.scheme == "https" or (
        target.scheme == "http" and target.hostname in LOOPBACK
    )
    if request.method != "GET" or not is_private:
        raise ServerError(
            f"{urlsplit(answer.url).netloc} redirects a {request.method} to "
            f"{printable(f'{target.scheme}://{target.netloc}')}, which isn't followed; if that is "
            "the right server, give its own address",
            code="redirect-refused",
        )


@contextmanager
def _closed_on_failure(answer: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        answer.close()
        raise


def _bounded(answer: Any, largest: int) -> bytes:
    """Read an answer that isn't longer than it may be, before memory is taken for more."""
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

    Each of `USER_VARIABLE`, `PASSWORD_VARIABLE` and `TOKEN_VARIABLE` may have ``_FILE`` after it,
    and then names a file that holds the value. Without any of them, requests looks for the host in
    the user's .netrc, or in the file that `NETRC` names.

    Raises
    ------
    InputError
        Such a file can't be read.
    """
    return _secret(USER_VARIABLE), _secret(PASSWORD_VARIABLE), _secret(TOKEN_VARIABLE)


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
        uid=_uid(data, SERIES_UID),
        number=None if number in {None, ""} else int(number),
        description=printable(data.get("SeriesDescription") or ""),
        modality=printable(data.get("Modality") or "unknown", 16),
        images=(),
        listed=int(count or 0),
    )
    return _uid(data, STUDY_UID), series


def _uid(data: Any, name: str) -> str:
    """Value of an identifier that goes into further requests: digits and dots alone."""
    uid = str(data.get(name) or "")
    if not is_uid(uid):
        raise ValueError(f"a {name} that is no UID")
    return uid
