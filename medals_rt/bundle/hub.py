"""Weights and bundles from a model hub: pinned to a commit, resumable, checked, never unpickled.

The list of a repository's files is asked for once and kept beside them, with the hub's hashes and
then our own SHA-256 of each file. So a download that was interrupted goes on where it stopped, one
that is complete is used without any request, and a file that was changed since is found.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from medals_rt.bundle.hub_address import HUB_PREFIX, HubAddress
from medals_rt.bundle.hub_requests import LEGAL, WANTED, HubFile, fetch, list_files, size_here
from medals_rt.bundle.manifest import Sha256, file_sha256, path_inside
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder
from medals_rt.common.errors import (
    DownloadError,
    InputError,
    MedalsError,
    MissingFileError,
    OutputError,
)
from medals_rt.common.progress import Progress

RECORD_FILE: Final = ".medals-rt-download.json"
LOCK_FILE: Final = ".medals-rt-download.lock"

_CHUNK: Final = 2**20


class _Record(msgspec.Struct, frozen=True):
    """What `RECORD_FILE` holds: a repository at a commit, its files, names of those left out."""

    source: str
    files: tuple[HubFile, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Download:
    """Files from a hub that are here, complete and checked.

    Attributes
    ----------
    address
        What was asked for, pinned.
    folder
        The folder that stands for the repository.
    files
        What was asked for, by path below `folder`.
    left_out
        Files of the repository that this package has no use for.
    fetched_bytes
        How much came over the network this time; 0 where everything was there.
    """

    address: HubAddress
    folder: Path
    files: tuple[HubFile, ...]
    left_out: tuple[str, ...]
    fetched_bytes: int

    @property
    def content(self) -> Path:
        """The address's own folder or file."""
        return self.folder / self.address.path


def pin(address: HubAddress) -> HubAddress:
    """Ask the hub which commit a branch or tag names now (`main` where none is named).

    Raises
    ------
    MedalsError
        As `download`.
    """
    if address.is_pinned:
        return address
    commit, _, _ = list_files(address)
    return HubAddress(address.repository, address.path, commit)


def download(
    address: HubAddress, folder: Path | None = None, *, progress: Progress | None = None
) -> Download:
    """Bring the files of an address here, those that are missing, and check all of them.

    Only weights, ONNX graphs of bundles, JSON, text, licenses and readmes are taken. No file is
    opened but to hash it. What is here after an interruption is kept, and the next call continues.

    Parameters
    ----------
    address
        Pinned to a commit.
    folder
        Where to put them; None for a folder of its own in the user's cache.
    progress
        Called for each file with the megabytes that are here.

    Raises
    ------
    InputError
        If the address is not pinned, the hub has no such repository, revision or file, or doesn't
        show it; a file is not what was downloaded (``"file-tampered"``); or the folder holds
        something else.
    DownloadError
        If the hub can't be reached, breaks off, or sends something else than it announced.
    OutputError
        If the files don't fit on the disk, which is checked first, or can't be written.
    MissingDependencyError
        If something is to be fetched and the extra `hub` is not installed.
    """
    if not address.is_pinned:
        raise InputError(
            f"{address} names no commit, so it may be other files tomorrow; write "
            f"{HUB_PREFIX}{address.repository}@COMMIT (40 hexadecimal digits), or let "
            "`medals-rt download ADDRESS --unpinned` find it",
            code="revision-not-pinned",
        )
    if folder is None:
        owner, name = address.repository.split("/")
        folder = cache_folder() / "hub" / f"{owner}--{name}" / str(address.revision)

    from filelock import FileLock

    with _disk_errors(folder):
        complete = _if_complete(address, folder)
        if complete is not None:
            return complete
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK_FILE):  # another process may be at it; it ends with the process
            return _complete(address, folder, progress)


@dataclass(frozen=True)
class LocalFiles:
    """A file or folder that is here.

    Attributes
    ----------
    path
        Where it is.
    repository
        The folder at whose top the publisher's license lies.
    address
        Where it was downloaded from, pinned; None for one that was named by its path.
    """

    path: Path
    repository: Path
    address: HubAddress | None = None


def local_files(
    named: str | os.PathLike[str], progress: Progress | None = None, *, unpinned: bool = False
) -> LocalFiles:
    """Find a file or folder that may be named by its address on a hub; `download` brings it.

    Parameters
    ----------
    named
        A path or an address.
    progress
        As for `download`.
    unpinned
        Whether an address may leave its commit open: the hub is then asked for it.

    Raises
    ------
    MedalsError
        As `download`.
    """
    text = Path(named).as_posix()  # on Windows a Path has turned an address's slashes
    if not text.startswith(HUB_PREFIX):
        path = Path(named)
        return LocalFiles(path, path if path.is_dir() else path.parent)
    address = HubAddress.parse(text)
    done = download(pin(address) if unpinned else address, progress=progress)
    return LocalFiles(done.content, done.folder, done.address)


def local_path(named: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Return the path of what `local_files` finds.

    Raises
    ------
    MedalsError
        As `download`.
    """
    return local_files(named, progress).path


def _if_complete(address: HubAddress, folder: Path) -> Download | None:
    """Check what is here if nothing is missing, without writing anything."""
    record = _read_record(address, folder)
    if record is None:
        return None
    chosen = _chosen(address, record)
    paths = _paths(address, folder, chosen)
    if any(each.sha256 is None or not paths[each.file].is_file() for each in chosen):
        return None
    for each in chosen:
        _check_here(paths[each.file], each)
    return Download(address, folder, chosen, record.left_out, 0)


def _complete(address: HubAddress, folder: Path, progress: Progress | None) -> Download:
    """Check what is here, and fetch what is missing."""
    record = _read_record(address, folder)
    if record is None:
        _, needed, left_out = list_files(address)
        record = _Record(_source(address), needed, left_out)
    paths = _paths(address, folder, record.files)
    chosen = _chosen(address, record)
    missing = [each for each in chosen if not paths[each.file].exists()]
    done = {
        each.file: _check_here(paths[each.file], each) for each in chosen if each not in missing
    }
    _check_space(folder, missing, paths)
    record = _write_record(folder, record, done)
    fetched_bytes = 0
    for each in missing:
        fetched_bytes += fetch(address, each, _partial(paths[each.file]), progress)
        done[each.file] = _accept(paths[each.file], each)
        record = _write_record(folder, record, done)
    return Download(address, folder, _chosen(address, record), record.left_out, fetched_bytes)


def _paths(address: HubAddress, folder: Path, files: Iterable[HubFile]) -> dict[str, Path]:
    """Return where each file belongs; a name that leads out of the folder is refused."""
    return {each.file: path_inside(folder, each.file, str(address)) for each in files}


def _chosen(address: HubAddress, record: _Record) -> tuple[HubFile, ...]:
    """Return the files of the address's path, and the licenses and readmes at the top."""
    path = address.path
    inside = [
        each.file
        for each in record.files
        if not path or each.file == path or each.file.startswith(f"{path}/")
    ]
    if not inside:
        raise MissingFileError(
            f"{address}: there is no such file, or none of a kind that is needed: "
            f"{', '.join(WANTED)}",
            code="file-missing",
        )
    return tuple(
        each
        for each in record.files
        if each.file in inside or ("/" not in each.file and LEGAL.fullmatch(each.file))
    )


def _check_here(path: Path, file: HubFile) -> Sha256:
    """Return the SHA-256 of a file that is here, unless it is not the one it should be."""
    sha256 = _sha256_if_right(path, file)
    if sha256 is None:
        found = f"{path.stat().st_size} bytes, SHA-256 {file_sha256(path)[:12]}..."
        if file.sha256 is None:
            problem, code = f"{path} is another file than the hub's ({found})", "file-in-the-way"
        else:
            problem, code = f"{path} was changed after its download ({found})", "file-tampered"
        raise InputError(f"{problem}; remove it and run the same command again", code=code)
    return sha256


def _accept(path: Path, file: HubFile) -> Sha256:
    """Give a file that is complete its name, and return its SHA-256; a wrong one is removed."""
    partial = _partial(path)
    sha256 = _sha256_if_right(partial, file)
    if sha256 is None:
        partial.unlink()
        raise DownloadError(
            f"the hub sent {file.file} with another content than it announces; it was removed, "
            "run the same command again",
            code="download-damaged",
        )
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)
    return sha256


def _sha256_if_right(path: Path, file: HubFile) -> Sha256 | None:
    """Return a file's SHA-256 if that, or else the hub's hash of it, is as written down."""
    sha256 = file_sha256(path)
    if file.sha256 is not None:
        right = sha256 == file.sha256
    elif len(file.hub_hash) == 64:
        right = sha256 == file.hub_hash
    else:
        right = _git_sha1(path) == file.hub_hash
    return sha256 if right else None


def _git_sha1(path: Path) -> str:
    """Return git's hash of a file, which is what hubs know of small ones."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _partial(path: Path) -> Path:
    """Return where a file lies while it is incomplete; files of repositories never begin so."""
    return path.with_name(f".{path.name}.partial")


def _check_space(folder: Path, missing: Iterable[HubFile], paths: dict[str, Path]) -> None:
    needed = sum(each.bytes - size_here(_partial(paths[each.file])) for each in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"no room in {folder}: {needed / 1e9:.2f} GB are missing and {free / 1e9:.2f} GB free; "
            "make room or name another folder",
            code="disk-full",
        )


# --- the record beside the files ---


def _source(address: HubAddress) -> str:
    return str(HubAddress(address.repository, revision=address.revision))


def _read_record(address: HubAddress, folder: Path) -> _Record | None:
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is damaged: {error}; remove the folder and download again",
            code="record-damaged",
        ) from error
    if record.source != _source(address):
        raise InputError(
            f"{folder} holds {record.source}, not {_source(address)}; name another folder",
            code="folder-taken",
        )
    return record


def _write_record(folder: Path, record: _Record, done: dict[str, Sha256]) -> _Record:
    """Write down which files are complete, and return the record that says so."""
    files = tuple(
        msgspec.structs.replace(each, sha256=done.get(each.file, each.sha256))
        for each in record.files
    )
    record = msgspec.structs.replace(record, files=files)
    with atomic_output(folder / RECORD_FILE) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    return record


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into those of this package."""
    try:
        yield
    except MedalsError:
        raise
    except OSError as error:
        raise OutputError(
            f"can't use {folder}: {error.strerror or error}; make room or name another folder",
            code="disk-full" if error.errno == errno.ENOSPC else "folder-unusable",
        ) from error
