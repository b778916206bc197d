"""One measurement in a process of its own: a question on standard input, an answer in a file.

    python -m medals_rt.tools.bench.worker ANSWER.json < question.json

The process is the unit because peak memory is counted for a process, and because a library that was
used before is warm.
"""

import sys
import time
from pathlib import Path

import msgspec

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.common.environment import peak_memory_mib
from medals_rt.common.errors import MissingDependencyError
from medals_rt.io.case import Case
from medals_rt.io.registry import read_case
from medals_rt.pipeline.job_inputs import choose_prompts
from medals_rt.pipeline.options import PromptSource, SegmentOptions
from medals_rt.pipeline.report import RunReport
from medals_rt.prompts.prompt_set import PromptSet
from medals_rt.tools.bench.gpu_memory import GpuMemory
from medals_rt.tools.bench.records import Answer, Question, RunTime, Scaling, StageWork
from medals_rt.tools.bench.target import BenchTarget, open_target


def _answer_question(question: Question) -> Answer:
    """Measure what a question asks for, in this process.

    Raises
    ------
    MedalsError
        As reading the case, opening the bundle and running it raise them.
    """
    if question.task == "roofline":
        return _roofs(question)
    case = read_case(question.case)
    prompts = choose_prompts(
        case, PromptSource(None if question.prompts is None else Path(question.prompts))
    )
    with GpuMemory() as gpu_memory:
        start = time.perf_counter()
        with open_target(question) as target:
            open_seconds = time.perf_counter() - start
            if question.task == "classes":
                from medals_rt.tools.bench.scaling import scaling_with_classes

                return _answer(
                    target, open_seconds, gpu_memory, scaling=scaling_with_classes(target, question)
                )
            if question.task == "volumes":
                from medals_rt.tools.bench.scaling import scaling_with_volume

                scaling = scaling_with_volume(target, question, case, prompts)
                return _answer(target, open_seconds, gpu_memory, scaling=scaling)
            return _case(target, question, case, prompts, open_seconds, gpu_memory)


def _case(
    target: BenchTarget,
    question: Question,
    case: Case,
    prompts: PromptSet,
    open_seconds: float,
    gpu_memory: GpuMemory,
) -> Answer:
    """Run the case once (cold) or, after a first run that does not count, several times."""
    runs: list[RunTime] = []
    report: RunReport | None = None
    for turn in range(1 if question.task == "cold" else 1 + question.repetitions):
        result = target.segmenter.segment(
            case.volume, prompts, SegmentOptions(refinement=question.refinement)
        )
        report = result.report
        if turn or question.task == "cold":
            steps = {name: s for name, s in report.seconds.items() if name != "total"}
            runs.append(RunTime(report.seconds["total"], steps))
    stages = () if report is None or question.task == "cold" else _work(target, report, runs)
    return _answer(target, open_seconds, gpu_memory, runs=tuple(runs), stages=stages)


def _work(target: BenchTarget, report: RunReport, runs: list[RunTime]) -> tuple[StageWork, ...]:
    """Put the arithmetic of a stage's passes beside the seconds of its network."""
    found = []
    for stage in report.stages:
        prompted = stage.prompts != "text only"
        try:
            from medals_rt.tools.bench.arithmetic import pass_tflop

            classes = len(report.classes)
            tflop = stage.passes * pass_tflop(
                target.segmenter.bundle, stage_number(stage.name), classes, prompted=prompted
            )
        except MissingDependencyError:
            tflop = None
        seconds = sorted(run.steps[f"{stage.name}: network"] for run in runs)
        found.append(
            StageWork(
                name=stage.name,
                windows=stage.windows,
                passes=stage.passes,
                resampled_shape_hwd=stage.resampled_shape_hwd,
                window_hwd=stage.window_hwd,
                tflop=tflop,
                network_seconds=seconds[len(seconds) // 2],
            )
        )
    return tuple(found)


def stage_number(name: str) -> StageNumber:
    """Return the number of a report's stage: "lung: fine" is 2, the fine one of a window's run."""
    return next(number for number, stage in STAGE_NAMES.items() if name.endswith(stage))


def _roofs(question: Question) -> Answer:
    from medals_rt.runners.selection import choose
    from medals_rt.tools.bench.roofline import measure_roofline

    kind = choose(question.backend.runner).kind
    roofline = measure_roofline(kind, question.backend.precision, question.threads)
    return Answer(version="", device="", precision="", threads=0, roofline=roofline)


def _answer(
    target: BenchTarget,
    open_seconds: float,
    gpu_memory: GpuMemory,
    *,
    runs: tuple[RunTime, ...] = (),
    stages: tuple[StageWork, ...] = (),
    scaling: tuple[Scaling, ...] = (),
) -> Answer:
    info = target.info
    return Answer(
        version=info.version,
        device=info.device,
        precision=info.precision,
        threads=info.threads,
        open_seconds=open_seconds,
        peak_memory_mib=peak_memory_mib(),
        peak_gpu_memory_mib=gpu_memory.peak_mib,
        notes=info.notes,
        runs=runs,
        stages=stages,
        scaling=scaling,
    )


def main() -> None:
    """Read the question, write the answer."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    answer = _answer_question(question)
    with atomic_output(Path(sys.argv[1])) as temporary:
        temporary.write_bytes(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
