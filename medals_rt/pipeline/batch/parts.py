"""Parts of a batch, for job arrays: which cases belong to part I of N, and which part one is.

A case's part depends on its name alone, so that cases which come or go don't move the others.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch.plan import BatchCase

_WORDS: Final = re.compile(r"(?P<part>\d{1,9}|auto)(?:/(?P<count>\d{1,9}))?")
_FORM: Final = "write I/N, such as 2/8; auto in a SLURM array; auto/N in a Kubernetes indexed job"


@dataclass(frozen=True)
class BatchPart:
    """One part of a batch: `number` from 1 to `count`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(
                f"there is no part {self.number} of {self.count}: parts are numbered from 1",
                code="part-out-of-range",
            )

    def indices(self, cases: Sequence[BatchCase]) -> tuple[int, ...]:
        """Return the places of the part's cases."""
        return tuple(
            index
            for index, case in enumerate(cases)
            if _number(case.name) % self.count == self.number - 1
        )


def parse_part(text: str, environment: Mapping[str, str] = os.environ) -> BatchPart:
    """Read ``I/N``, or ``auto`` and ``auto/N`` from what SLURM or Kubernetes tell a task.

    SLURM: `SLURM_ARRAY_TASK_ID`, `_MIN`, `_MAX`, `_STEP` and `_COUNT`. Kubernetes:
    `JOB_COMPLETION_INDEX` (from 0), which comes without a count.

    Raises
    ------
    InputError
        It is of another form, or the environment doesn't say it, as in an array with gaps
        (``part-unknown``).
    """
    found = _WORDS.fullmatch(text.strip())
    if found is None or (found["part"] != "auto" and found["count"] is None):
        raise InputError(f"{text!r} names no part; {_FORM}", code="part-invalid")
    count = None if found["count"] is None else int(found["count"])
    if found["part"] != "auto":
        return BatchPart(int(found["part"]), count or 0)
    for task, first, last, step, tasks in (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX",
         "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"),
        ("JOB_COMPLETION_INDEX", "", "", "", ""),
    ):  # fmt: skip
        if task not in environment:
            continue
        number, lowest = _whole(environment, task, None), _whole(environment, first, 0)
        total = count or _whole(environment, tasks, None)
        apart = max(_whole(environment, step, 1), 1)
        highest = _whole(environment, last, number)
        if count is None and highest >= lowest + total * apart:
            raise InputError(
                f"--part auto: the array has {total} tasks from {lowest} to {highest}, with gaps, "
                "so that the number of a task doesn't say its part; write --part I/N for each",
                code="part-unknown",
            )
        return BatchPart((number - lowest) // apart + 1, total)
    raise InputError(
        "--part auto finds neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX in the "
        f"environment; {_FORM}",
        code="part-unknown",
    )


def _whole(environment: Mapping[str, str], name: str, default: int | None) -> int:
    """Read a whole number of the environment."""
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        what = f"{name} is {text!r}" if text else "the environment doesn't say how many parts"
        raise InputError(f"--part auto: {what}; {_FORM}", code="part-unknown")
    return int(text)


def _number(name: str) -> int:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
