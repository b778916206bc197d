"""What comes over the network from a model hub: lists of files, and files, in pieces if need be.

Files come from Hugging Face, or from the hub that `HF_ENDPOINT` names.
"""

import importlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

import msgspec

from medals_rt.bundle.hub_address import COMMIT, HubAddress
from medals_rt.bundle.manifest import MANIFEST_FILE, Sha256
from medals_rt.common.errors import DownloadError, InputError, MedalsError, MissingFileError
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.progress import Progress

WANTED: Final = (".pth", ".safetensors", ".json", ".txt", ".onnx")
"""Endings of the files that are taken; graphs of bundles alone."""

LEGAL: Final = re.compile(r"(licen[cs]e|copying|notice|readme)\b.*", re.IGNORECASE)
_GRAPH: Final = ".onnx"
_TIMEOUT_S: Final = 30.0


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


def size_here(path: Path) -> int:
    """Return how many bytes of a file are here."""
    return path.stat().st_size if path.exists() else 0


def _library() -> Any:
    """Import the hub's library, without its reports on use."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    library = import_optional("huggingface_hub", "an address on a hub")
    for part in ("constants", "errors", "utils"):  # its attributes only after they were imported
        importlib.import_module(f"{library.__name__}.{part}")
    return library


def _endpoint(library: Any) -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(library.constants.ENDPOINT)


def list_files(address: HubAddress) -> tuple[str, tuple[HubFile, ...], tuple[str, ...]]:
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
        if not COMMIT.fullmatch(commit) or (address.is_pinned and commit != address.revision):
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
        suffix = path.suffix.lower()
        if suffix == _GRAPH and bundles.isdisjoint(path.parents):
            return False
        return suffix in WANTED or LEGAL.fullmatch(path.name) is not None

    return sorted(str(path) for path in paths if is_needed(path))


def fetch(address: HubAddress, file: HubFile, partial: Path, progress: Progress | None) -> int:
    """Bring a file to where it lies while it is incomplete, and return how many bytes came now.

    A connection that breaks is opened again as long as each brings something.

    Raises
    ------
    DownloadError
        If it breaks off (``"download-interrupted"``) or more comes than announced.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    before = here = size_here(partial)
    while here < file.bytes:
        reason = _append(address, file, partial, progress)
        now = size_here(partial)
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

    here = size_here(partial)
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
                return _reason(error)
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
    """Turn what the hub's library raises into errors of this package, in one line.

    What is none of these is of the disk, or a fault of ours.
    """
    hub = _endpoint(library)
    with _connection_errors(hub, address), _refusals(hub, library.errors, address):
        yield


@contextmanager
def _refusals(hub: str, errors: Any, address: HubAddress) -> Iterator[None]:
    """Turn what a hub refuses into errors of this package, the special before the general."""
    repository = address.repository
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{address} is not all here and HF_HUB_OFFLINE forbids fetching it; unset it, or "
            "download it where there is a network and copy the folder",
            code="network-missing",
        ) from error
    except errors.HFValidationError as error:
        raise InputError(
            f"no repository can be called {repository!r}; write hf:OWNER/NAME@COMMIT",
            code="address-invalid",
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repository} is shown only to those who accepted its terms; accept them on its page "
            "and set HF_TOKEN to a token of your account",
            code="repository-gated",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{hub} has no repository {repository}, or it is private; check its name, or set "
            "HF_TOKEN",
            code="repository-missing",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{repository} has no revision {address.revision}; its page lists its commits",
            code="revision-missing",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise MissingFileError(
            f"{repository} lists a file that it doesn't have ({error.response.url}); ask its owner",
            code="file-missing",
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "")
        raise DownloadError(
            f"{hub} answered {status} for {address}; try again later", code="hub-refused"
        ) from error


@contextmanager
def _connection_errors(hub: str, address: HubAddress) -> Iterator[None]:
    """Turn what a connection or a strange answer raises into errors of this package."""
    import httpx2  # which the hub's library brings, and whose errors it passes on

    try:
        yield
    except MedalsError:
        raise
    except httpx2.HTTPError as error:
        raise DownloadError(
            f"can't reach {hub} ({_reason(error)}); check the network, HTTPS_PROXY and "
            "HF_ENDPOINT; what is here is kept",
            code="network-missing",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(
            f"{hub} answered for {address} what a hub doesn't ({_reason(error)}); check "
            "HF_ENDPOINT and proxies",
            code="hub-answer-invalid",
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
