"""Where the files of a batch lie: on a disk, or behind URLs such as ``s3://bucket/scans``.

Readers and writers of this package know files only. What lies behind a URL has a place in a folder
of this machine's own, to which a case is brought before it is read, and from which results are put
where they belong before the case counts as finished; then the copies go. Needs fsspec, and what it
needs for a scheme (the extra `s3`); credentials come from the environment, as those libraries read
them.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medals_rt.bundle.manifest import file_sha256
from medals_rt.common.errors import CaseError, InputError, MissingFileError, OutputError
from medals_rt.common.folders import walk_once
from medals_rt.common.optional_deps import import_optional
from medals_rt.io.dicom.web import content_of
from medals_rt.io.dicom.web_address import is_web_address

_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}(?P<rest>[^/].*)", re.DOTALL)
"""Of a URL, also as a path has it, where one of the two slashes is lost."""
_DICOM_START: Final = bytes(128) + b"DICM"
_DICOM_ENDING: Final = ".dcm"


def url_of(path: Path) -> str | None:
    """Return the URL that a path of the command line is, if it is one."""
    found = None if is_web_address(path) else _URL.fullmatch(path.as_posix())
    return None if found is None else f"{found['scheme']}://{found['rest'].rstrip('/')}"


@dataclass(frozen=True)
class RemoteFiles:
    """Files under their places on this machine, and which of them lie behind URLs.

    Attributes
    ----------
    roots
        Folders of this machine, and the URL of what lies in them in truth.
    """

    roots: tuple[tuple[Path, str], ...] = ()

    def url(self, path: Path) -> str | None:
        """Return where a file lies in truth; None: in its place."""
        for folder, url in self.roots:
            if path.is_relative_to(folder):
                below = path.relative_to(folder).as_posix()
                return url if below == "." else f"{url}/{below}"
        return None

    def shown(self, path: Path) -> str:
        """Return a file's place for people."""
        return self.url(path) or str(path)

    def identity(self, path: Path) -> str | None:
        """Return what changes with the content of a file or folder; None where there is none.

        SHA-256 of the content; behind a URL, of what the server says of it (its tag, size and
        date), so that nothing need be fetched.
        """
        url = self.url(path)
        if url is None:
            there = is_web_address(path) or path.exists()
            return content_sha256(path) if there else None
        files, key = _open(url)
        try:
            if not files.isdir(key):
                return str(files.ukey(key))
            below = sorted(files.find(key))
            parts = [f"{each.removeprefix(key)} {files.ukey(each)}" for each in below]
        except FileNotFoundError:
            return None
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()

    def sha256(self, path: Path) -> str | None:
        """SHA-256 (hex) of the content of a file, wherever it lies; None where there is none."""
        if self.url(path) is None:
            return self.identity(path)
        content = self.read(path)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def fetch(self, path: Path) -> None:
        """Bring a file or folder to its place on this machine; nothing where it isn't there.

        Raises
        ------
        MissingFileError
            It can't be read.
        CaseError
            A file's name leads out of the folder (``url-leaves-folder``).
        """
        url = self.url(path)
        if url is None:
            return
        files, key = _open(url)
        try:
            if not files.exists(key):
                return
            found = files.find(key) if files.isdir(key) else [key]
            places = [path / each.removeprefix(key).lstrip("/") for each in found]
            for place in places:
                if ".." in place.relative_to(path).parts:  # a key may be any text
                    raise CaseError(
                        f"{url} holds {place.name!r} under a name that leads out of it",
                        code="url-leaves-folder",
                    )
            self.drop(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.get(found, [str(place) for place in places])
        except OSError as error:
            raise MissingFileError(f"can't read {url}: {error}", code="url-unreadable") from error

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file, by one request; None where there is none.

        Raises
        ------
        MissingFileError
            It is behind a URL and can't be read.
        """
        url = self.url(path)
        if url is None:
            with suppress(OSError):
                return path.read_bytes()
            return None
        files, key = _open(url)
        try:
            return bytes(files.cat_file(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MissingFileError(f"can't read {url}: {error}", code="url-unreadable") from error

    def put(self, path: Path) -> None:
        """Bring a file from its place on this machine to where it belongs.

        Raises
        ------
        OutputError
            It can't be written there.
        """
        url = self.url(path)
        if url is None:
            return
        files, key = _open(url)
        try:
            files.put_file(str(path), key)
        except OSError as error:
            raise OutputError(f"can't write {url}: {error}", code="url-unwritable") from error

    def drop(self, path: Path) -> None:
        """Remove the copy on this machine of what lies behind a URL."""
        if self.url(path) is None:
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file where it lies, and its copy."""
        path.unlink(missing_ok=True)
        url = self.url(path)
        if url is not None:
            files, key = _open(url)
            with suppress(FileNotFoundError):
                files.rm_file(key)

    def exists(self, path: Path) -> bool:
        """Whether there is such a file."""
        url = self.url(path)
        if url is None:
            return path.is_file()
        files, key = _open(url)
        return bool(files.exists(key))


LOCAL: Final = RemoteFiles()
"""Everything lies in its place."""


@contextmanager
def local_places(
    inputs: Sequence[Path], outputs: Path, reports: Path | None
) -> Iterator[tuple[RemoteFiles, list[Path], Path, Path | None]]:
    """Yield for each given place one of this machine, during the block; first, which are of URLs.

    Of inputs behind URLs only the names are there; those that end in .dcm begin like DICOM.

    Raises
    ------
    MissingFileError
        There is nothing at an input's URL.
    MissingDependencyError
        fsspec, or what it needs for a scheme, isn't installed.
    """
    with tempfile.TemporaryDirectory(prefix="medals-rt-") as made:
        roots: list[tuple[Path, str]] = []

        def place_of(path: Path, name: str) -> Path:
            url = url_of(path)
            if url is None:
                return path
            parent, _, last = url.rpartition("/")
            roots.append((Path(made) / name, parent))
            return Path(made) / name / last

        places = [place_of(path, f"in{number}") for number, path in enumerate(inputs)]
        results = place_of(outputs, "out")
        where = None if reports is None else place_of(reports, "reports")
        remote = RemoteFiles(tuple(roots))
        for place in places:
            _outline(remote, place)
        yield remote, places, results, where


def content_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, or of the names and content of all files in a folder.

    Of an address on a DICOMweb server: of the UIDs of its objects.
    """
    if is_web_address(path):
        return hashlib.sha256(content_of(path).encode()).hexdigest()
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    files = (parent / name for parent, _, names in walk_once(path) for name in names)
    for file in sorted(files):
        if file.is_file():
            digest.update(os.fsencode(file.relative_to(path)) + b"\0")
            digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()


def _outline(remote: RemoteFiles, place: Path) -> None:
    """Make empty files of the names that lie behind a place's URL."""
    url = remote.url(place)
    if url is None:
        return
    files, key = _open(url)
    try:
        found = files.find(key)
    except OSError as error:
        raise MissingFileError(f"can't list {url}: {error}", code="url-unreadable") from error
    if not found:
        raise MissingFileError(
            f"there is nothing at {url}; check the address", code="url-unreadable"
        )
    for each in found:
        file = place / each.removeprefix(key).lstrip("/")
        if not file.is_relative_to(place) or ".." in file.parts:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_DICOM_START if file.suffix.lower() == _DICOM_ENDING else b"")


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the file's key there."""
    fsspec = import_optional("fsspec", url)
    try:
        files, key = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"can't open {url}: {error}; for s3:// pip install 'medals-rt[s3]'",
            code="url-scheme",
        ) from error
    return files, key
