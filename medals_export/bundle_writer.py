"""Write a bundle so that it is either whole or not there."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    dump_manifest,
    file_sha256,
)
from medals_rt.common.atomic_io import check_writable, failures_named
from medals_rt.common.errors import ExportError


def file_record(folder: Path, file: str) -> FileRecord:
    """Return the manifest's record of a file that was just written below `folder`."""
    path = folder / file
    return FileRecord(file=file, sha256=file_sha256(path), bytes=path.stat().st_size)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that must not be written, before hours of work rather than after.

    Raises
    ------
    ExportError
        If `out` is there already, unless it is a bundle whose manifest can be read and `overwrite`
        is set, or an empty folder; or if it is a mount point, which can't be renamed.
    InputError
        If nothing can be written beside it, where the bundle is made.
    """
    target = out.resolve()
    check_writable(_beside(target, "partial"))
    if os.path.ismount(target):
        raise ExportError(
            f"{out} is a mount point, which can't be replaced; give a folder inside it",
            code="target-is-mount",
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST_FILE).is_file():
        raise ExportError(
            f"{out} exists and is no bundle; give another folder", code="not-a-bundle"
        )
    if not overwrite:
        raise ExportError(
            f"{out} holds a bundle already; give another folder or overwrite it",
            code="bundle-exists",
        )
    _named_files(out / MANIFEST_FILE)


def _beside(target: Path, ending: str) -> Path:
    """Return a hidden name beside a target that nothing else has."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{ending}")


def write_bundle(
    out: str | os.PathLike[str], fill: Callable[[Path], Manifest], *, overwrite: bool = False
) -> Bundle:
    """Build a bundle in a temporary folder beside `out`, then rename it into place.

    Parameters
    ----------
    out
        Where the bundle shall lie; of a link, where it leads to. A bundle there is replaced with
        `overwrite` only; files, links and empty folders in it that are not the old bundle's, such
        as notes and cases, stay.
    fill
        Writes the graphs and the bank into the folder it is given and returns the manifest that
        describes them.

    Returns
    -------
    Bundle
        The bundle in `out`, whose hashes were checked before the rename.

    Raises
    ------
    ExportError
        If `out` may not be written.
    OutputError
        If it can't be, as where the disk is full. What else `fill` raises passes through; nothing
        is left behind.
    """
    given = Path(out)
    check_target(given, overwrite=overwrite)
    target = given.resolve()
    temporary = _beside(target, "partial")
    try:
        with failures_named(given):
            temporary.mkdir(parents=True)
            manifest = fill(temporary)
            (temporary / MANIFEST_FILE).write_bytes(dump_manifest(manifest))
            _keep_other_files(target, temporary)
            Bundle.open(temporary)
            _sync_tree(temporary)
            _move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle.open(given, verify=False)


def _keep_other_files(old: Path, new: Path) -> None:
    """Copy what lies in an old bundle's folder without belonging to it; links stay links."""
    if not (old / MANIFEST_FILE).is_file():
        return
    own = _named_files(old / MANIFEST_FILE) | {MANIFEST_FILE}
    for path in sorted(old.rglob("*")):
        copy = new / path.relative_to(old)
        if path.relative_to(old).as_posix() in own or os.path.lexists(copy):
            continue
        if path.is_symlink() or path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
        elif path.is_dir() and not any(path.iterdir()):
            copy.mkdir(parents=True)


def _named_files(manifest: Path) -> set[str]:
    """Return the files that a manifest names, whichever version its format has."""
    try:
        rest = [msgspec.json.decode(manifest.read_bytes())]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{manifest} is damaged: {error}; give another folder", code="manifest-damaged"
        ) from error
    named = set()
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            if {"file", "sha256", "bytes"} <= item.keys():
                named.add(str(item["file"]))
            rest += item.values()
        elif isinstance(item, list):
            rest += item
    return named


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename over the target; an old bundle is put back if that fails."""
    if not target.exists():
        temporary.rename(target)
    elif not any(target.iterdir()):
        target.rmdir()
        temporary.rename(target)
    else:
        old = _beside(target, "old")
        target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Ask the system to put a file or folder on the disk; Windows can't do that for folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
