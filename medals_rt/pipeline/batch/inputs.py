"""What a batch's cases are read from: what tells its content, and whether it is another's.

A case's folder of slices may hold the results too; what is written there is none of its content.
"""

import hashlib
from collections.abc import Iterable
from functools import cache, cached_property
from os.path import realpath
from pathlib import Path

import msgspec

from medals_rt.common.folders import walk_once
from medals_rt.io.registry import files_of_case
from medals_rt.pipeline.batch.plan import BatchCase, BatchPlan


def inputs_sha256(case: BatchCase) -> str | None:
    """SHA-256 (hex) of the content of all files that a case is read from; None if one is missing.

    Raises
    ------
    OSError, MedalsError
        One can't be read.
    """
    found = [
        (role, name, case.remote.identity(file))
        for role, path in case.job.input_files().items()
        for name, file in _content(case, path)
    ]
    if any(digest is None for _, _, digest in found):
        return None
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()


def input_sizes(plan: BatchPlan) -> list[list[object]]:
    """Return the sizes of what each case is read from, in bytes, as far as they are known.

    They differ between scans of the same names, and are the same on all machines, also while the
    batch writes; no file is opened but headers that name another. Of folders the number of files
    and the sum of their sizes.
    """
    written = _Written(plan)
    return [
        [_size_of(path, written) for path in case.job.input_files().values()] for case in plan.cases
    ]


def _content(case: BatchCase, path: Path) -> Iterable[tuple[str, Path]]:
    """Go through the files that one input is read from, each with its name in its folder.

    Those of a folder that lie among the results, or would be written, are left out.
    """
    if case.remote.url(path) is not None:
        return [("", path)]
    files = files_of_case(path)
    if not path.is_dir() or files == (path,):
        return [("" if file == path else file.name, file) for file in files]
    top = Path(realpath(path))
    outputs = (case.paths.results, case.paths.reports, *case.job.output_folders().values())
    written = {Path(realpath(each)) for each in (*outputs, *case.files().values())}
    inside = {each for each in written if top in each.parents}
    below = sorted(file.relative_to(path) for file in files)
    return [
        (_text(name), path / name)
        for name in below
        if inside.isdisjoint(((top / name), *(top / name).parents))
    ]


def _text(path: Path) -> str:
    """Write a name as text that JSON can hold, whatever its bytes."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


class _Written:
    """The places that a batch writes to."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan

    @cached_property
    def tops(self) -> set[Path]:
        """The folders of results and reports."""
        return {Path(realpath(each)) for each in (self._plan.results, self._plan.reports)}

    @cached_property
    def files(self) -> set[Path]:
        """Files of cases."""
        real = cache(realpath)
        found = (path for case in self._plan.cases for path in case.files().values())
        return {Path(real(path.parent)) / path.name for path in found}

    @cached_property
    def folders(self) -> set[Path]:
        """Folders that nothing is read from."""
        found = (path for case in self._plan.cases for path in case.job.output_folders().values())
        return self.tops | {Path(realpath(path)) for path in found}


def _size_of(path: Path, written: _Written) -> object:
    """Return the size of an input; None where it isn't known, or changes as the batch goes on."""
    if not path.is_dir():
        return [file.stat().st_size if file.is_file() else None for file in files_of_case(path)]
    if Path(realpath(path)) in written.tops:  # where tables come and go
        return None
    sizes = []
    try:
        for folder, _, names in walk_once(path, written.folders):
            place = Path(realpath(folder))
            files = [place / name for name in names if not name.startswith(".")]
            sizes += [file.stat().st_size for file in files if file not in written.files]
    except OSError:
        return None
    return [len(sizes), sum(sizes)]
