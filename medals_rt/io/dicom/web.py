"""Series from DICOMweb servers, and results stored there (extra "dicomweb").

A server is asked for the list of series (QIDO-RS), then for the headers of the one that is chosen
(WADO-RS metadata); slices are chosen and checked by these, and only then are their pixels fetched,
to a folder that the same reader reads as any other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from zipfile import ZipFile

from medals_rt.common.errors import CaseError, InputError, ServerError
from medals_rt.common.notes import Note
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.case import Case
from medals_rt.io.dicom.case import read_dicom_case
from medals_rt.io.dicom.files import printable, reading, silence
from medals_rt.io.dicom.selection import check_one_image, parse_selection, select_slices
from medals_rt.io.dicom.series import Series, choose_series, group_series, pixel_bytes
from medals_rt.io.dicom.slices import slices_of, stack_slices
from medals_rt.io.dicom.web_address import SERIES_UID, STUDY_UID, WebAddress, is_uid
from medals_rt.io.dicom.web_server import ATTEMPTS, WebServer
from medals_rt.io.volume import check_shape

_WITHOUT_IMAGES: Final = (
    "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "DOC", "REG", "FID",
    "PLAN", "AU", "ECG", "HD", "RWV", "SMR", "STAIN", "TEXTUREMAP", "ANN",
)  # fmt: skip
"""Modalities whose objects aren't segmented."""


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
    server = WebServer(address.server)
    chosen = _choose(server, address, series)
    headers = server.headers(address.query[STUDY_UID], chosen)
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
        server.fetch(address.query[STUDY_UID], chosen.uid, wanted, folder)
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
    found = WebServer(address.server).search(address.query)
    return [
        replace(address, query={STUDY_UID: study, SERIES_UID: each.uid})
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
    if not is_uid(uid):
        raise InputError(f"{printable(uid)!r} is no UID of a series", code="series-uid-invalid")
    server = WebServer(WebAddress.parse(studies).server)
    found = [each for each in server.search({SERIES_UID: uid}) if each[1].uid == uid]
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
    with (
        TemporaryDirectory(prefix=".fetched-", dir=path.parent) as temporary,
        ZipFile(path, "w") as archive,
    ):  # beside the zip: whoever removes what a killed process left finds it there
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
    return "\n".join(WebServer(address.server).instances(address.query))


def check_store(text: str | os.PathLike[str]) -> None:
    """Check that a server answers and takes our credentials, before the work is done.

    Raises
    ------
    InputError, ServerError, MissingDependencyError
        As `read_web_case`.
    """
    server = WebServer(WebAddress.parse(text).server)
    server.ask(lambda client: client.search_for_studies(limit=1))


def store_files(
    text: str | os.PathLike[str], files: Sequence[Path], *, attempts: int = ATTEMPTS
) -> None:
    """Store DICOM files on a server, by STOW-RS. Storing a file again changes nothing.

    Parameters
    ----------
    text
        The server's address.
    files
        What is stored.
    attempts
        As for `WebServer`.

    Raises
    ------
    InputError, MissingDependencyError
        As `read_web_case`.
    ServerError
        The server can't be reached, or doesn't say that it has them all.
    """
    pydicom = import_optional("pydicom", "DICOMweb")
    server = WebServer(WebAddress.parse(text).server, attempts=attempts)
    for file in files:
        with silence():
            server.ask(partial(_store_one, pydicom.dcmread(file), file.name, server.url))


def _store_one(data: Any, name: str, url: str, client: Any) -> None:
    """Store an object; that it is stored is believed only where the answer names it."""
    answer = client.store_instances([data])
    for each in answer.get("FailedSOPSequence") or ():
        reason = printable(each.get("FailureReason", "none named"))
        raise ServerError(
            f"{url} did not store {name} (reason {reason}); try again", code="store-refused"
        )
    stored = answer.get("ReferencedSOPSequence") or ()
    if data.SOPInstanceUID not in [each.get("ReferencedSOPInstanceUID") for each in stored]:
        raise ServerError(
            f"{url} doesn't say that it stored {name}; check the address",
            code="answer-invalid",
        )


def _choose(server: WebServer, address: WebAddress, wanted: str | None) -> Series:
    """Choose a series of a study as among those of a folder."""
    if STUDY_UID not in address.query:
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
