"""Addresses of series on DICOMweb servers.

The server's, with what is wanted as its query:
``dicomweb+https://HOST/dicom-web?StudyInstanceUID=1.2.3&SeriesInstanceUID=1.2.3.4``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qsl, quote, urlsplit

from medals_rt.common.errors import InputError
from medals_rt.io.dicom.files import printable

SCHEME: Final = "dicomweb+"
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Hosts of URLs that are this machine."""

STUDY_UID: Final = "StudyInstanceUID"
SERIES_UID: Final = "SeriesInstanceUID"
OBJECT_UID: Final = "SOPInstanceUID"

USER_VARIABLE: Final = "MEDALS_RT_DICOMWEB_USER"
PASSWORD_VARIABLE: Final = "MEDALS_RT_DICOMWEB_PASSWORD"  # noqa: S105 - a variable's name
TOKEN_VARIABLE: Final = "MEDALS_RT_DICOMWEB_TOKEN"  # noqa: S105 - a variable's name
"""Where credentials are, since an address never holds them; see `web_server`."""

_ADDRESS: Final = re.compile(r"dicomweb\+(?P<scheme>https?):/{1,2}(?P<rest>[^/].*)")
"""A `Path` leaves one slash of two."""

_PLACE: Final = re.compile(
    r"(?P<root>.*?)(?:/studies/(?P<study>[^/]+)(?:/series/(?P<series>[^/]+))?)?"
)
_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_LONGEST_UID: Final = 64
_KEYWORD: Final = re.compile(r"[A-Za-z0-9]{1,64}")


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
                f"{USER_VARIABLE} and {PASSWORD_VARIABLE}, or into a .netrc file",
                code="credentials-in-address",
            )
        if url.scheme == "http" and url.hostname not in LOOPBACK:
            raise InputError(
                f"dicomweb+http sends patients' data in the clear, so it is for this machine only; "
                f"use dicomweb+https for {printable(url.hostname)}",
                code="address-not-encrypted",
            )
        place = _PLACE.fullmatch(url.path.rstrip("/"))
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if place is not None:
            named = {STUDY_UID: place["study"], SERIES_UID: place["series"]}
            query |= {key: value for key, value in named.items() if value}
        for key, value in query.items():
            names_object = key.endswith("UID")
            if not _KEYWORD.fullmatch(key) or (names_object and not is_uid(value)):
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
        return self.query.get(SERIES_UID) or self.query.get(STUDY_UID) or "dicomweb"

    def __str__(self) -> str:
        query = "&".join(f"{key}={quote(value)}" for key, value in self.query.items())
        return f"{SCHEME}{self.server}" + (f"?{query}" if query else "")


def is_web_address(text: str | os.PathLike[str]) -> bool:
    """Whether a path is an address of a DICOMweb server."""
    return os.fspath(text).startswith(SCHEME)


def is_uid(text: str) -> bool:
    """Whether a text is a UID, of digits and dots."""
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


def _without_user(text: str) -> str:
    """Leave out what may be a password of an address for a message."""
    return printable(re.sub(r"//?[^/@]*@", "//", text), 200)
