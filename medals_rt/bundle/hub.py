"""Weights and bundles from a model hub: pinned to a commit, resumable, checked, never unpickled.

Files come from Hugging Face, or from the hub that `HF_ENDPOINT` names. The list of a repository's
files is asked for once and kept beside them, with the hub's hashes and then our own SHA-256 of each
file. So a download that was interrupted goes on where it stopped, one that is complete is used
without any request, and a file that was changed since is found.
"""

import errno
import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files as resource_files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Self

import msgspec

from medals_rt.bundle.manifest import MANIFEST_FILE, Sha256, file_sha256, path_inside
from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder
from medals_rt.common.errors import (
    DownloadError,
    InputError,
    MedalsError,
    MissingFileError,
    OutputError,
)
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.progress import Progress

HUB_PREFIX: Final = "hf:"
RECORD_FILE: Final = ".medals-rt-download.json"
LOCK_FILE: Final = ".medals-rt-download.lock"

_WANTED: Final = (".pth", ".safetensors", ".json", ".txt")
_WANTED_OF_BUNDLES: Final = (*_WANTED, ".onnx")
_LEGAL: Final = re.compile(r"(licen[cs]e|copying|notice|readme)\b.*", re.IGNORECASE)
_ADDRESS: Final = re.compile(
    r"hf:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<path>[^@]+?))?/?(?:@(?P<revision>[^@\s]+))?",
    re.ASCII,
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_CHUNK: Final = 2**20
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class HubAddress:
    """Where files lie on a hub, written as `hf:OWNER/NAME@REVISION`, or with `/PATH` before `@`.

    Attributes
    ----------
    repository
        Owner and name, with `/` between them.
    path
        A folder or file of the repository; empty for all of it.
    revision
        A commit (40 hexadecimal digits), branch or tag; None where none was named.
    """

    repository: str
    path: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address; a published one without a revision gets the commit known for it, if any.

        Raises
        ------
        InputError
            If it isn't an address (code ``"address-invalid"``).
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise InputError(
                f"{text!r} is no address on a hub; write it as hf:OWNER/NAME@COMMIT",
                code="address-invalid",
            )
        revision = found["revision"]
        if revision is None:
            revision = next((each.commit for each in known_weights() if each.address == text), None)
        return cls(found["repository"], found["path"] or "", revision)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which can't come to mean other files."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.repository}{path}{revision}"


class KnownWeights(msgspec.Struct, frozen=True):
    """Published weights that this package can use; `data/weights.toml` lists them."""

    address: str
    holds: str
    license: str | None = None
    commit: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")] | None = None


class HubFile(msgspec.Struct, frozen=True):
    """A file of a repository at one commit.

    Attributes
    ----------
    file
        Its path in the repository, and below the folder it is downloaded to.
    bytes
        Its size.
    hub_hash
        What the hub says of its content: a SHA-256 (64 digits), or git's SHA-1 of a blob (40).
    sha256
        Our own, computed when the file was complete; None before.
    """

    file: str
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    hub_hash: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
    sha256: Sha256 | None = None


class _Record(msgspec.Struct, frozen=True):
    """What `RECORD_FILE` holds: a repository at a commit, its files, names of those left out."""

    source: str
    files: tuple[HubFile, ...]
    left_out: tuple[str, ...]


class _Known(msgspec.Struct, frozen=True):
    weights: tuple[KnownWeights, ...]


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


def known_weights() -> tuple[KnownWeights, ...]:
    """Return the published weights that this package can use."""
    text = resource_files("medals_rt.bundle").joinpath("data", "weights.toml").read_bytes()
    return msgspec.toml.decode(text, type=_Known).weights


def pin(address: HubAddress) -> HubAddress:
    """Ask the hub which commit a branch or tag names now (`main` where none is named).

    Raises
    ------
    MedalsError
        As `download`.
    """
    if address.is_pinned:
        return address
    commit, _, _ = _ask_hub(address)
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


def local_path(named: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Return where a file or folder is: itself, or what `download` brings where it is an address.

    Raises
    ------
    MedalsError
        As `download`.
    """
    text = Path(named).as_posix()  # on Windows a Path has turned an address's slashes
    if not text.startswith(HUB_PREFIX):
        return Path(named)
    return download(HubAddress.parse(text), progress=progress).content


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
        _, needed, left_out = _ask_hub(address)
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
        fetched_bytes += _fetch(address, each, paths[each.file], progress)
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
            f"{', '.join(_WANTED_OF_BUNDLES)}",
            code="file-missing",
        )
    return tuple(
        each
        for each in record.files
        if each.file in inside or ("/" not in each.file and _LEGAL.fullmatch(each.file))
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


def _size_here(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(folder: Path, missing: Iterable[HubFile], paths: dict[str, Path]) -> None:
    needed = sum(each.bytes - _size_here(_partial(paths[each.file])) for each in missing)
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


# --- requests ---


def _library() -> Any:
    """Import the hub's library, without its reports on use."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    library = import_optional("huggingface_hub", "an address on a hub")
    for part in ("constants", "errors", "utils"):  # its attributes only after they were imported
        importlib.import_module(f"{library.__name__}.{part}")
    return library


def _endpoint(library: Any) -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(library.constants.ENDPOINT)


def _ask_hub(address: HubAddress) -> tuple[str, tuple[HubFile, ...], tuple[str, ...]]:
    """Return a revision's commit, the files of it that are needed, and the names of the others."""
    library = _library()
    with _hub_errors(library, address):
        info = library.HfApi(endpoint=_endpoint(library)).model_info(
            address.repository,
            revision=address.revision or "main",
            files_metadata=True,
            timeout=_TIMEOUT_S,
        )
        sizes = {each.rfilename: each.size for each in info.siblings}
        hashes = {
            each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id for each in info.siblings
        }
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit) or (address.is_pinned and commit != address.revision):
            raise ValueError(f"commit {commit}")
        names = _needed(sizes)
        needed = msgspec.convert(
            [{"file": name, "bytes": sizes[name], "hub_hash": hashes[name]} for name in names],
            tuple[HubFile, ...],
        )
    return commit, needed, tuple(sorted(set(sizes) - set(names)))


def _needed(names: Iterable[str]) -> list[str]:
    """Return the files of a repository that this package has a use for; hidden ones are not."""
    paths = [PurePosixPath(name) for name in names]
    bundles = {path.parent for path in paths if path.name == MANIFEST_FILE}

    def is_needed(path: PurePosixPath) -> bool:
        if any(part.startswith(".") and part != ".." for part in path.parts):
            return False
        suffixes = _WANTED if bundles.isdisjoint(path.parents) else _WANTED_OF_BUNDLES
        return path.suffix.lower() in suffixes or _LEGAL.fullmatch(path.name) is not None

    return sorted(str(path) for path in paths if is_needed(path))


def _fetch(address: HubAddress, file: HubFile, path: Path, progress: Progress | None) -> int:
    """Bring a file to its partial place, and return how many bytes of it came now.

    A connection that breaks is opened again as long as each brings something.
    """
    partial = _partial(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    before = here = _size_here(partial)
    while here < file.bytes:
        reason = _append(address, file, partial, progress)
        now = _size_here(partial)
        if now <= here:
            raise DownloadError(
                f"{file.file} broke off at {now / 1e6:.1f} of {file.bytes / 1e6:.1f} MB "
                f"({reason}); what is here is kept, the same command continues",
                code="download-interrupted",
            )
        here = now
    return here - before


def _append(address: HubAddress, file: HubFile, partial: Path, progress: Progress | None) -> str:
    """Append to a partial file until it is complete or the connection ends; return why it ended."""
    library = _library()
    import httpx2  # which the library brings, and whose errors it passes on

    here = _size_here(partial)
    headers = {**library.utils.build_hf_headers(), "Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
    url = library.hf_hub_url(
        address.repository,
        file.file,
        revision=address.revision,
        endpoint=_endpoint(library),
    )
    with _hub_errors(library, address), partial.open("ab") as stream:
        request = library.get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S)
        with request as answer:
            library.utils.hf_raise_for_status(answer)
            if here and answer.status_code != 206:  # the hub can't continue: all of it comes again
                stream.truncate(0)
                here = 0
            try:
                for chunk in answer.iter_bytes():
                    here += len(chunk)
                    if here > file.bytes:
                        break
                    stream.write(chunk)
                    if progress is not None:
                        progress(f"{file.file}, MB", here // 10**6, -(-file.bytes // 10**6))
            except httpx2.TransportError as error:
                return " ".join(str(error).split()) or type(error).__name__
    if here > file.bytes:
        partial.unlink()
        raise DownloadError(
            f"the hub sent more of {file.file} than the {file.bytes} bytes it announces; "
            "it was removed, run the same command again",
            code="download-damaged",
        )
    return "the hub closed the connection"


@contextmanager
def _hub_errors(library: Any, address: HubAddress) -> Iterator[None]:
    """Turn what the hub's library raises into errors of this package, in one line."""
    try:
        yield
    except MedalsError:
        raise
    except Exception as error:
        for kinds, ending, code, message in _endings(library, address, error):
            if isinstance(error, kinds):
                raise ending(message, code=code) from error
        raise  # of the disk, or a fault of ours


def _endings(
    library: Any, address: HubAddress, error: Exception
) -> tuple[tuple[Any, type[MedalsError], str, str], ...]:
    """Return what each kind of exception means, the special before the general: error and text."""
    import httpx2

    errors, hub, repository = library.errors, _endpoint(library), address.repository
    response = getattr(error, "response", None)
    url, status = getattr(response, "url", ""), getattr(response, "status_code", "")
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        (
            errors.OfflineModeIsEnabled,
            DownloadError,
            "network-missing",
            (
                f"{address} is not all here and HF_HUB_OFFLINE forbids fetching it; unset it, or "
                "download it where there is a network and copy the folder"
            ),
        ),
        (
            errors.HFValidationError,
            InputError,
            "address-invalid",
            f"no repository can be called {repository!r}; write hf:OWNER/NAME@COMMIT",
        ),
        (
            errors.GatedRepoError,
            InputError,
            "repository-gated",
            (
                f"{repository} is shown only to those who accepted its terms; accept them on its "
                "page and set HF_TOKEN to a token of your account"
            ),
        ),
        (
            errors.RepositoryNotFoundError,
            InputError,
            "repository-missing",
            (
                f"{hub} has no repository {repository}, or it is private; check its name, or set "
                "HF_TOKEN"
            ),
        ),
        (
            errors.RevisionNotFoundError,
            InputError,
            "revision-missing",
            f"{repository} has no revision {address.revision}; its page lists its commits",
        ),
        (
            errors.RemoteEntryNotFoundError,
            MissingFileError,
            "file-missing",
            f"{repository} lists a file that it doesn't have ({url}); ask its owner",
        ),
        (
            errors.HfHubHTTPError,
            DownloadError,
            "hub-refused",
            f"{hub} answered {status} for {address}; try again later",
        ),
        (
            httpx2.HTTPError,
            DownloadError,
            "network-missing",
            (
                f"can't reach {hub} ({reason}); check the network, HTTPS_PROXY and HF_ENDPOINT; "
                "what is here is kept"
            ),
        ),
        (
            (ValueError, KeyError, TypeError, AttributeError),
            DownloadError,
            "hub-answer-invalid",
            (
                f"{hub} answered for {address} what a hub doesn't ({reason}); check HF_ENDPOINT "
                "and proxies"
            ),
        ),
    )


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
