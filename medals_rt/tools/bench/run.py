"""Ask every question of a benchmark, each in a child process, and put the answers together."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.choices import TENSORRT_LABELS, Refinement
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.common.errors import InputError, MedalsError
from medals_rt.common.progress import Progress
from medals_rt.io.registry import read_case
from medals_rt.pipeline.job_inputs import choose_prompts
from medals_rt.pipeline.options import PromptSource
from medals_rt.pipeline.report import CHALLENGE_SECONDS_PER_CLASS
from medals_rt.tools.bench.records import (
    REPORT_FORMAT,
    Answer,
    Backend,
    BenchReport,
    CaseFacts,
    Question,
    Standing,
    Task,
)

BASELINE = Backend("pytorch", "bf16")
"""Eager PyTorch under autocast: what the released code would be on the same machine."""

_CLASS_COUNTS = (1, 4, 16, 64, 243)
_VOLUME_FACTORS = (1, 2, 4)


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes
    ----------
    bundle, case, prompts
        Paths; `prompts` None takes those inside the case.
    backends
        What runs the network, the one that matters most first: it is also measured cold, and
        its scaling with classes and volume.
    checkpoints
        Of the coarse and the fine network, for eager PyTorch; None leaves PyTorch out.
    repetitions
        Runs of the case that count, after a first one that does not.
    thorough
        Also measure how time grows with classes and volume, and the machine's own rates.
    left_out
        Which runners of this machine are none of them, and why, for the report.
    """

    bundle: Path
    case: Path
    prompts: Path | None
    backends: tuple[Backend, ...]
    checkpoints: tuple[Path, Path] | None = None
    threads: int | None = None
    repetitions: int = 5
    refinement: Refinement = "masked"
    thorough: bool = True
    class_counts: tuple[int, ...] = _CLASS_COUNTS
    volume_factors: tuple[int, ...] = _VOLUME_FACTORS
    left_out: tuple[str, ...] = ()


def run_bench(request: BenchRequest, progress: Progress | None = None) -> BenchReport:
    """Measure all backends.

    A backend that fails is reported with its reason, and the others go on.

    Parameters
    ----------
    request
        What to measure.
    progress
        Called with the step, how many are done, and how many there are.

    Raises
    ------
    InputError
        No backend, no repetition, or PyTorch without checkpoints.
    MedalsError
        The bundle or the case can't be read.
    """
    _check(request)
    bundle = Bundle.open(request.bundle)
    case = read_case(request.case)
    prompts = choose_prompts(case, PromptSource(request.prompts))
    plan = [(each, task) for each in request.backends for task in _tasks(request, each)]
    answers: dict[tuple[Backend, Task], Answer] = {}
    failures: dict[Backend, str] = {}
    with tempfile.TemporaryDirectory(prefix="medals-rt-bench-") as scratch:
        for done, (backend, task) in enumerate(plan):
            if progress is not None:
                progress(f"{backend.label}: {task}", done, len(plan))
            if backend in failures:
                continue
            try:
                answers[backend, task] = ask(_question(request, backend, task), Path(scratch))
            except MedalsError as error:
                failures[backend] = str(error)
        if progress is not None:
            progress("done", len(plan), len(plan))
    volume = case.volume
    return BenchReport(
        format=REPORT_FORMAT,
        date=datetime.now(UTC).date().isoformat(),
        bundle={"name": bundle.name, "hash": bundle.hash, "precision": bundle.precision},
        machine=machine_facts(),
        versions=library_versions(),
        case=CaseFacts(
            name=volume.name,
            shape_dhw=volume.shape_dhw,
            spacing_hwd_mm=volume.spacing_hwd_mm,
            prompts={str(prompt.label): prompt.text for prompt in prompts.prompts},
            refinement=request.refinement,
        ),
        repetitions=request.repetitions,
        baseline=BASELINE.label if BASELINE in request.backends else None,
        standings=tuple(
            Standing(
                backend=each,
                **{task: answers.get((each, task)) for task in _tasks(request, each)},
                failure=failures.get(each),
            )
            for each in request.backends
        ),
        budget_seconds_per_class=CHALLENGE_SECONDS_PER_CLASS,
        left_out=request.left_out,
    )


def ask(question: Question, scratch: Path) -> Answer:
    """Let a child process answer one question; compiled graphs are kept in `scratch`.

    Raises
    ------
    MedalsError
        The child failed; the message is the last line it wrote.
    """
    slug = question.backend.label.replace(" ", "-")
    answer = scratch / f"{slug}-{question.task}.json"
    environment = {**os.environ, "MEDALS_RT_CACHE": str(scratch / f"cache-{slug}")}
    done = subprocess.run(
        [sys.executable, "-m", "medals_rt.tools.bench.worker", str(answer)],
        input=msgspec.json.encode(question),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0 or not answer.is_file():
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise MedalsError(
            f"{question.backend.label}, {question.task}: {reason}", code="measurement-failed"
        )
    return msgspec.json.decode(answer.read_bytes(), type=Answer)


def _check(request: BenchRequest) -> None:
    if not request.backends:
        raise InputError(
            "there is nothing to measure: no runner is installed or named",
            code="nothing-to-measure",
        )
    if request.repetitions < 1:
        raise InputError(
            f"repetitions must be at least 1, got {request.repetitions}",
            code="repetitions-not-positive",
        )
    if request.checkpoints is None and any(c.runner == "pytorch" for c in request.backends):
        raise InputError(
            "eager PyTorch needs --stage1 and --stage2, the checkpoints", code="checkpoint-missing"
        )


def _tasks(request: BenchRequest, backend: Backend) -> Sequence[Task]:
    """Choose what a backend is asked: all of the first, the case alone of PyTorch."""
    if backend.runner == "pytorch":
        return ("warm",)
    if backend != request.backends[0] or not request.thorough:
        return ("cold", "warm")
    if (
        backend.runner in TENSORRT_LABELS
    ):  # its engines are a bundle's; roofline are graphs made here
        return ("cold", "warm", "classes", "volumes")
    return ("cold", "warm", "roofline", "classes", "volumes")


def _question(request: BenchRequest, backend: Backend, task: Task) -> Question:
    return Question(
        task=task,
        backend=backend,
        bundle=str(request.bundle),
        case=str(request.case),
        prompts=None if request.prompts is None else str(request.prompts),
        checkpoints=None
        if request.checkpoints is None
        else (str(request.checkpoints[0]), str(request.checkpoints[1])),
        threads=request.threads,
        repetitions=request.repetitions,
        refinement=request.refinement,
        class_counts=request.class_counts,
        volume_factors=request.volume_factors,
    )
