"""The process that reads uploaded files before the server does: `python -m` it.

Each request is one line of JSON on standard input, each answer one line on what was standard
output. A request is read in a child of this process, with limits on memory and time, so that a
reader that crashes ends that child alone and nothing of one file is there when the next is read.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.errors import CaseError, InputError, MedalsError
from medals_rt.common.optional_deps import import_optional, is_installed
from medals_rt.io.dicom.case import list_series
from medals_rt.io.registry import FORMATS, read_case
from medals_rt.io.volume import SourceGrid, Volume, volume_notes
from medals_rt.pipeline.job_inputs import read_annotation
from medals_serve.protocols.frames import read_array

Answer = dict[str, Any]


def describe_image(request: Mapping[str, Any]) -> Answer:
    """Read an image and say what it is."""
    case = read_case(
        request["path"],
        max_voxels=request["max_voxels"],
        series=request["series"],
        select=request["select"],
    )
    formats = []
    for each in FORMATS:
        if each.write is None:
            continue
        if each.check is not None:
            try:
                each.check(f"result{each.endings[0]}", case)
            except MedalsError:
                continue
        formats.append(each.endings[0].removeprefix("."))
    h_mm, w_mm, d_mm = case.volume.spacing_hwd_mm
    return {
        "shape_dhw": list(case.volume.shape_dhw),
        "spacing_dhw_mm": [d_mm, h_mm, w_mm],
        "modality": case.modality,
        "geometry_stated": case.geometry_is_stated,
        "has_prompts": case.prompts is not None,
        "grid": {
            "shape_dhw": case.volume.shape_dhw,
            "spacing_hwd_mm": case.volume.spacing_hwd_mm,
            "source": asdict(case.volume.source),
        },
        "series_number": case.origin.get("series_number"),
        "series_description": case.origin.get("series_description"),
        "output_formats": formats,
        "notes": [
            {"code": note.code, "text": note.text, "severity": note.severity}
            for note in (*case.notes, *volume_notes(case.volume))
        ],
    }


def describe_labels(request: Mapping[str, Any]) -> Answer:
    """Read a label map that was drawn on an image, and list its labels."""
    path, most = Path(request["path"]), request["max_voxels"]
    labels, _ = read_annotation(path, _blank(**request["on"]), max_voxels=most)
    found: set[int] = set()
    for plane in labels:  # sorting the volume at once would take eight bytes a voxel
        found.update(np.unique(plane).tolist())
    return {"labels": sorted(found - {0})}


def _blank(name: str, shape_dhw: Any, spacing_hwd_mm: Any, source: Mapping[str, Any]) -> Volume:
    """Make a volume that takes no memory on the grid that `describe_image` told of."""
    grid = SourceGrid(**source)
    if grid.affine_lps is not None:
        grid = replace(grid, affine_lps=tuple(map(tuple, grid.affine_lps)))
    return Volume(np.broadcast_to(np.uint8(0), shape_dhw), spacing_hwd_mm, name, grid)


def describe_series(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the series of a DICOM file."""
    return [
        {
            "series": each.uid,
            "number": each.number,
            "description": each.description,
            "modality": each.modality,
            "images": each.slices,
        }
        for each in list_series(Path(request["path"]), max_voxels=request["max_voxels"])
    ]


SERIES_CODES: Final = frozenset({"several-series", "series-ambiguous", "series-not-found"})
"""Of errors that end with a choice among series."""

LIBRARIES: Final = ("NiBabel", "pynrrd", "pydicom", "highdicom", "Blosc2")

READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Answer]]] = {
    "image": describe_image,
    "labels": describe_labels,
    "array": read_array,
}


def answer_to(request: Mapping[str, Any]) -> Answer:
    """Read what is asked for; errors of the file are part of the answer."""
    try:
        return {"found": READERS[request["reader"]](request)}
    except MemoryError:
        error: MedalsError = CaseError(
            f"{Path(request['path']).name} needs more memory to be read than the server allows; "
            "upload a smaller image",
            code="reader-memory",
        )
    except MedalsError as known:
        error = known
    to_choose = error.code in SERIES_CODES
    return {
        "error": str(error),
        "code": error.code,
        "input": isinstance(error, InputError),
        "choices": describe_series(request) if to_choose else [],
    }


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for library in LIBRARIES:  # else each child would import them again
        if is_installed(library):
            import_optional(library, "a file that is uploaded")
    for line in sys.stdin:
        request = json.loads(line)
        ready, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ready)
            _read_limited(request, write)
        os.close(write)
        with os.fdopen(ready, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        print(said.decode() or json.dumps({"ended": ended}), file=answers, flush=True)


def _read_limited(request: Mapping[str, Any], write: int) -> None:
    """Read in this child, answer, and end it."""
    status = 1
    try:
        sys.stdin.close()
        seconds, writes = int(request["seconds"]) + 1, request.get("writes", 0)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (request["bytes"], request["bytes"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (writes, writes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = json.dumps(answer_to(request)).encode()
        sent = 0
        while sent < len(answer):
            sent += os.write(write, answer[sent:])
        status = 0
    finally:
        os._exit(status)  # nothing of the parent is flushed or ended twice


if __name__ == "__main__":
    main()
