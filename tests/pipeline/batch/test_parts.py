"""Which cases belong to a part, and which part the tasks of job arrays are."""

from pathlib import Path

import pytest

from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch.parts import BatchPart, parse_part
from medals_rt.pipeline.batch.paths import CasePaths
from medals_rt.pipeline.batch.plan import BatchCase
from medals_rt.pipeline.job_request import Job

CASES = [
    BatchCase(Job(Path("a"), Path("b")), CasePaths(f"case{number}", Path("c"), Path("c"), ".npz"))
    for number in range(1000)
]
SLURM = {
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
}

GAPS = {  # --array=1-4,9
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "9",
    "SLURM_ARRAY_TASK_STEP": "1",
    "SLURM_ARRAY_TASK_COUNT": "5",
}


def test_every_case_is_in_one_part() -> None:
    parts = [BatchPart(number, 7).indices(CASES) for number in range(1, 8)]
    assert sorted(index for part in parts for index in part) == list(range(1000))
    assert min(map(len, parts)) > 100  # 143 on average


def test_a_part_depends_on_names_alone() -> None:
    def names(cases: list[BatchCase]) -> set[str]:
        return {cases[index].name for index in BatchPart(2, 7).indices(cases)}

    assert names(CASES[::-3]) == names(CASES) & {case.name for case in CASES[::-3]}


@pytest.mark.parametrize(
    ("text", "environment", "part"),
    [
        ("2/8", {}, BatchPart(2, 8)),
        ("auto", SLURM, BatchPart(3, 4)),
        ("auto/9", SLURM, BatchPart(3, 9)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MAX": "8"}, BatchPart(3, 4)),
        ("auto/9", GAPS, BatchPart(3, 9)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2"}, BatchPart(1, 2)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "15"}, BatchPart(16, 16)),
    ],
)
def test_parts_that_are_said(text: str, environment: dict[str, str], part: BatchPart) -> None:
    assert parse_part(text, environment) == part


@pytest.mark.parametrize(
    ("text", "environment", "code"),
    [
        ("0/8", {}, "part-out-of-range"),
        ("9/8", {}, "part-out-of-range"),
        ("3", {}, "part-invalid"),
        ("a/b", {}, "part-invalid"),
        ("auto", {}, "part-unknown"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "part-unknown"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"}, "part-unknown"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "4"}, "part-out-of-range"),
        ("auto", GAPS, "part-unknown"),
        ("auto", {**GAPS, "SLURM_ARRAY_TASK_ID": "9"}, "part-unknown"),
    ],
)
def test_parts_that_are_refused(text: str, environment: dict[str, str], code: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_part(text, environment)
    assert caught.value.code == code
