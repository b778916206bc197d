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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from glob import has_magic
from inspect import signature
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from medals_rt.bundle.manifest import file_sha256
from medals_rt.common.errors import (
    CaseError,
    InputError,
    MedalsError,
    MissingFileError,
    OutputError,
)
from medals_rt.common.folders import STATE_FOLDER, walk_once
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.private_folder import private_folder
from medals_rt.io.dicom.web import content_of
from medals_rt.io.dicom.web_address import is_web_address
from medals_rt.io.registry import TWO_FILE_ENDINGS, files_of_case

_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}(?P<rest>[^/].*)", re.DOTALL)
"""Of a URL, also as a path has it, where one of the two slashes is lost."""
_VERSION: Final = "?versionId="
"""By which s3fs takes the rest of a key for a version of what comes before it."""
_DICOM_START: Final = bytes(128) + b"DICM"
_DICOM_ENDING: Final = ".dcm"
_DATES: Final = ("LastModified", "last_modified", "updated", "mtime")
"""By which names stores' libraries give the date of a file."""
UNREADABLE: Final = "url-unreadable"
"""Code of the error that says that a store doesn't give what may be there."""
_READING: Final = ("read", MissingFileError, UNREADABLE)
_WRITING: Final = ("write", OutputError, "url-unwritable")
_REMEDIES: Final = {
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another way of the "
    "store's to sign in",
    "EndpointConnectionError": "check AWS_ENDPOINT_URL",
    "PermissionError": "check what these credentials may do",
    "FileNotFoundError": "check the address",
}
"""By the error's name, what users can do; of others: run again."""


def url_of(path: Path) -> str | None:
    """Return the URL that a path of the command line is, if it is one."""
    found = None if is_web_address(path) else _URL.fullmatch(path.as_posix())
    return None if found is None else f"{found['scheme']}://{found['rest'].rstrip('/')}"


@dataclass(frozen=True)
class RemoteFiles:
    """Files under their places on this machine, and which of them lie behind URLs.

    Attributes
    ----------
    folder
        Of this machine: what lies in it under ``SCHEME/BUCKET/KEY`` lies behind the URL
        ``SCHEME://BUCKET/KEY`` in truth. None: everything lies in its place.
    """

    folder: Path | None = None

    def url(self, path: Path) -> str | None:
        """Return where a file lies in truth; None: in its place."""
        if self.folder is None or not path.is_relative_to(self.folder):
            return None
        scheme, *below = path.relative_to(self.folder).parts
        return f"{scheme}://{'/'.join(below)}"

    def place(self, path: Path) -> Path:
        """Return the place of what the command line names.

        Raises
        ------
        InputError
            As `place_of`.
        """
        url = url_of(path)
        return path if url is None else self.place_of(url)

    def place_of(self, url: str) -> Path:
        """Return the place of what lies behind a URL.

        Raises
        ------
        InputError
            Its name can't be that of a file here (``url-name``).
        """
        if self.folder is None:
            raise AssertionError(url)
        scheme, _, below = url.partition("://")
        found = self.folder / scheme / below
        if self.url(found) != url or ".." in found.parts or _VERSION in url:
            raise InputError(
                f"{url} can't be the name of a file here; rename it without .., //, and {_VERSION}",
                code="url-name",
            )
        return found

    def moved(self, path: Path, folder: Path) -> Path:
        """Return the place that a file has in another folder in the stead of `self.folder`."""
        if self.folder is None or not path.is_relative_to(self.folder):
            return path
        return folder / path.relative_to(self.folder)

    def shown(self, path: Path) -> str:
        """Return a file's place for people."""
        return self.url(path) or str(path)

    def told(self, text: str) -> str:
        """Return a text for people with URLs in the stead of their places on this machine."""
        if self.folder is None:
            return text
        return re.sub(rf"{re.escape(str(self.folder))}/([^/\s]+)/", r"\1://", text)

    def identity(self, path: Path) -> str | None:
        """Return what changes with the content of a file or folder; None where there is none.

        SHA-256 of the content; behind a URL, of what the store says of it (its tag, size and date),
        so that nothing need be fetched but the header of a case of two files (`fetch_header`).

        Raises
        ------
        MissingFileError
            It is behind a URL, and the store doesn't say.
        """
        if self.url(path) is None:
            there = is_web_address(path) or path.exists()
            return content_sha256(path) if there else None
        parts = []
        for file in _files_read(path):
            with self.opened(file) as (files, key):
                found = sorted(_infos(files, key).items())
                parts += [
                    f"{file.name}{each.removeprefix(key)} {_tag(files, each, said)}"
                    for each, said in found
                ]
        text = "\n".join(parts).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest() if parts else None

    def sha256(self, path: Path) -> str | None:
        """SHA-256 (hex) of the content of a file, wherever it lies; None where there is none.

        Raises
        ------
        MissingFileError
            It is behind a URL and can't be read.
        """
        if self.url(path) is None:
            return self.identity(path)
        content = self.read(path)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def fetch_header(self, path: Path) -> None:
        """Fetch the header of a case of two files, which says what the other is; nothing of others.

        Raises
        ------
        MissingFileError
            It can't be read.
        """
        if path.name.lower().endswith(TWO_FILE_ENDINGS):
            self._fetch(path)

    def fetch(self, path: Path) -> bool:
        """Bring the files of a case to their places on this machine, as far as they are there.

        Returns
        -------
        bool
            Whether they lie behind a URL: else they are where they were.

        Raises
        ------
        MissingFileError
            They can't be read.
        CaseError
            A file's name leads out of the folder (``url-leaves-folder``).
        """
        if self.url(path) is None:
            return False
        self._fetch(path)
        for other in _files_read(path):
            if other != path:
                self._fetch(other)
        return True

    def _fetch(self, path: Path) -> None:
        """Bring a file, or all files of a folder."""
        if self.url(path) is None:
            return
        with self.opened(path) as (files, key):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:  # of a file, most likely, which takes one request
                with suppress(FileNotFoundError):
                    files.get_file(key, str(path))
                if path.is_file():
                    return
            found = list(_infos(files, key))
            places = [path / each.removeprefix(key).lstrip("/") for each in found]
            for place in places:
                if ".." in place.relative_to(path).parts:  # a key may be any text
                    raise CaseError(
                        f"{self.url(path)} holds {place.name!r} under a name that leads out of it",
                        code="url-leaves-folder",
                    )
            files.get(found, [str(place) for place in places])

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file, by one request; None where there is none.

        Raises
        ------
        MissingFileError
            It is behind a URL and can't be read.
        """
        if self.folder is None or self.url(path) is None:
            with suppress(OSError):
                return path.read_bytes()
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.opened(path) as (files, key), TemporaryDirectory(dir=self.folder) as made:
            copy = Path(made) / "copy"
            with suppress(FileNotFoundError):
                files.get_file(key, str(copy))  # `cat_file` asks for the size first
                return copy.read_bytes()
        return None

    def exists(self, path: Path) -> bool:
        """Whether there is such a file, by one request where a store lists what begins alike.

        Raises
        ------
        MissingFileError
            It is behind a URL, and the store doesn't say.
        """
        if self.url(path) is None:
            return path.is_file()
        with self.opened(path) as (files, key):
            if "prefix" in signature(files.find).parameters:  # `exists` asks twice for what isn't
                folder, _, name = key.rpartition("/")
                return key in files.find(folder, prefix=name)
            return bool(files.exists(key))

    def put(self, path: Path) -> None:
        """Bring a file from its place on this machine to where it belongs.

        Raises
        ------
        OutputError
            It can't be written there.
        """
        if self.url(path) is not None:
            with self.opened(path, to_write=True) as (files, key):
                files.put_file(str(path), key)

    def put_empty(self, path: Path) -> None:
        """Write an empty file behind a URL; of others nothing.

        Raises
        ------
        OutputError
            It can't be written there.
        """
        if self.url(path) is not None:
            with self.opened(path, to_write=True) as (files, key):
                files.pipe_file(key, b"")

    def remove(self, path: Path) -> None:
        """Remove a file where it lies, and its copy.

        Raises
        ------
        OutputError
            It is behind a URL, and the store doesn't let it go.
        """
        path.unlink(missing_ok=True)
        if self.url(path) is not None:
            with (
                self.opened(path, to_write=True) as (files, key),
                suppress(FileNotFoundError),
            ):
                files.rm_file(key)

    def remove_mark(self, path: Path) -> None:
        """Remove a file that means something as long as it has content.

        Some stores let nobody remove anything: there it is emptied.

        Raises
        ------
        OutputError
            It can't be written.
        """
        try:
            self.remove(path)
        except OutputError:
            self.put_empty(path)

    @contextmanager
    def opened(self, path: Path, *, to_write: bool = False) -> Iterator[tuple[Any, str]]:
        """Yield the file system of what lies behind a URL, and its key there.

        Whatever its library raises in the block, little of which is an `OSError`, says afterwards
        what can't be read or written.
        """
        url = self.shown(path)
        verb, kind, code = _WRITING if to_write else _READING
        try:
            yield _open(url)
        except MedalsError:
            raise
        except Exception as error:
            raise kind(f"can't {verb} {url}: {_why(error)}", code=code) from error


LOCAL: Final = RemoteFiles()
"""Everything lies in its place."""


@contextmanager
def local_places(
    inputs: Sequence[Path], outputs: Path, reports: Path | None
) -> Iterator[tuple[RemoteFiles, list[Path], Path, Path | None]]:
    """Yield for each given place one of this machine, during the block; first, which are of URLs.

    Of inputs behind URLs only the names and sizes are there, and what earlier batches noted of
    results among them; files that end in .dcm begin like DICOM.

    Raises
    ------
    InputError
        Names behind a URL can't be those of files here (``url-name``).
    MissingFileError
        There is nothing at an input's URL.
    MissingDependencyError
        fsspec, or what it needs for a scheme, isn't installed.
    """
    with ExitStack() as stack:
        given = (*inputs, outputs, *(() if reports is None else (reports,)))
        remote = LOCAL
        if any(url_of(path) is not None for path in given):
            remote = RemoteFiles(stack.enter_context(private_folder()))
        places = [remote.place(path) for path in inputs]
        results = remote.place(outputs)
        where = None if reports is None else remote.place(reports)
        written = (results, where or results)
        for place in places:
            _outline(remote, place, [top for top in written if not place.is_relative_to(top)])
        if any(place.is_relative_to(top) for place in places for top in written):
            _outline(remote, (where or results) / STATE_FOLDER, required=False)
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


def _outline(
    remote: RemoteFiles, place: Path, skip: Sequence[Path] = (), *, required: bool = True
) -> None:
    """Make files without content of the names and sizes behind a URL, but for some folders.

    What batches have noted of their results is fetched.

    Raises
    ------
    InputError
        As `local_places`.
    """
    url = remote.url(place)
    if url is None:
        return
    with remote.opened(place) as (files, key):
        found = _infos(files, key)
    if required and not found:
        pattern = "; patterns aren't taken in URLs, name the folder" if has_magic(url) else ""
        raise MissingFileError(
            f"there is nothing at {url}; check the address{pattern}", code=UNREADABLE
        )
    noted: dict[str, str] = {}
    for each, said in found.items():
        file = remote.place_of(f"{url}{each.removeprefix(key)}")
        if any(file.is_relative_to(top) for top in skip):
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_DICOM_START if file.suffix.lower() == _DICOM_ENDING else b"")
            os.truncate(file, said.get("size") or 0)  # which takes no room
        except OSError as error:  # such as a folder of the name of a file
            raise InputError(
                f"{remote.shown(file)} can't be the name of a file here "
                f"({(error.strerror or str(error)).lower()}); rename it, or name other inputs",
                code="url-name",
            ) from error
        if STATE_FOLDER in file.parts and file.suffix == ".json":
            noted[each] = str(file)
    if noted:
        with remote.opened(place):
            files.get(list(noted), list(noted.values()))


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the file's key there.

    Only the beginning is read as a URL: a key may be any text, also one that means something there.
    """
    fsspec = import_optional("fsspec", url)
    scheme, _, below = url.partition("://")
    bucket, _, name = below.partition("/")
    try:
        files, top = fsspec.core.url_to_fs(f"{scheme}://{bucket}", use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"can't open {url}: {error}; for s3:// pip install 'medals-rt[s3]'",
            code="url-scheme",
        ) from error
    return files, f"{top.rstrip('/')}/{name}" if name else top


def _files_read(path: Path) -> tuple[Path, ...]:
    """Return the files of a case behind a URL, of which a header that says so was fetched."""
    return files_of_case(path) if path.name.lower().endswith(TWO_FILE_ENDINGS) else (path,)


def _infos(files: Any, key: str) -> dict[str, Mapping[str, Any]]:
    """Return what a store says of a file, or of each in a folder; nothing where there is none.

    By one request where a file has an ending, and a folder has none. Folders' own markers, whose
    names end in a slash, are left out.
    """
    if PurePosixPath(key).suffix:
        try:
            said = files.info(key)
        except FileNotFoundError:
            return {}
        if said["type"] != "directory":
            return {key: said}
    found = files.find(key, detail=True)
    return {each: said for each, said in found.items() if not each.endswith("/")}


def _tag(files: Any, key: str, said: Mapping[str, Any]) -> str:
    """Return what changes with a file's content, of what the store says of it.

    Not the class of its storage and the like, which change alone.
    """
    tag = said.get("ETag") or said.get("etag")
    if not tag:
        return str(files.ukey(key))
    date = next((said[name] for name in _DATES if name in said), None)
    return f"{tag} {said['size']} {date}"


def _why(error: Exception) -> str:
    """Say in a line what a store's library raised, and what can be done."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    remedy = next((_REMEDIES[kind] for kind in kinds if kind in _REMEDIES), "run again")
    words = " ".join(str(error).split())
    return f"{words or kinds[0]}; {remedy}"
