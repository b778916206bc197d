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
        If `out` is there already, unless it is a bundle and `overwrite` is set, or an empty folder.
    """
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


def write_bundle(
    out: str | os.PathLike[str], fill: Callable[[Path], Manifest], *, overwrite: bool = False
) -> Bundle:
    """Build a bundle in a temporary folder beside `out`, then rename it into place.

    Parameters
    ----------
    out
        Where the bundle shall lie. A bundle there is replaced with `overwrite` only; files that are
        not the old bundle's, such as notes and cases beside it, stay.
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
        If `out` may not be written. Whatever `fill` raises passes through; nothing is left behind.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    temporary.mkdir()
    try:
        manifest = fill(temporary)
        (temporary / MANIFEST_FILE).write_bytes(dump_manifest(manifest))
        _keep_other_files(target, temporary)
        Bundle.open(temporary)
        _sync_tree(temporary)
        _move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle.open(target, verify=False)


def _keep_other_files(old: Path, new: Path) -> None:
    """Copy what lies in an old bundle's folder without belonging to it."""
    if not (old / MANIFEST_FILE).is_file():
        return
    own = _named_files(old / MANIFEST_FILE) | {MANIFEST_FILE}
    for path in sorted(old.rglob("*")):
        relative = path.relative_to(old)
        if path.is_file() and relative.as_posix() not in own and not (new / relative).exists():
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / relative)


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
        old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
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
