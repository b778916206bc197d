"""One case from files to files: read, segment, write. The command `medals-rt run` is this.

The steps have a room each: `job_request` says what is asked, `job_inputs` reads, `job_outputs`
checks what is to be written, `segmenter` segments, `job_writing` measures and writes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from medals_rt.bundle.bundle import resolve_bundle
from medals_rt.common.cores import usable_cores
from medals_rt.common.notes import Note, warning
from medals_rt.common.optional_deps import require
from medals_rt.common.progress import Progress, whole
from medals_rt.common.stopwatch import Stopwatch
from medals_rt.inference.kept import KeptImage
from medals_rt.pipeline.corrected_run import segment_corrected
from medals_rt.pipeline.group_run import CoarseLabels
from medals_rt.pipeline.job_inputs import read_job
from medals_rt.pipeline.job_outputs import check_outputs
from medals_rt.pipeline.job_request import Job, ReadJob
from medals_rt.pipeline.job_writing import write_job
from medals_rt.pipeline.options import RunOptions
from medals_rt.pipeline.report import Provenance
from medals_rt.pipeline.segmenter import CaseSegmenter, Result, Segmenter, load
from medals_rt.planning import pass_timings


def run_job(job: Job, progress: Progress | None = None) -> Result:
    """Segment one case and write what the job asks for, each file whole or not at all.

    All that can be wrong with the request is found before the model is opened.

    Parameters
    ----------
    job
        What to do.
    progress
        Called with a stage's name, the windows done and the windows in all; for "read", "open
        models" and "write" with 0 and 1 of 1.

    Raises
    ------
    InputError
        A file, prompt or option is unusable.
    MedalsError
        The work itself failed.
    """
    check_outputs(job)
    with whole(progress, "read"):
        read = read_job(job, progress)
    if job.preview is not None:
        require("a preview", "Matplotlib")
    watch = Stopwatch()
    with watch.step("open models"), whole(progress, "open models"):
        opened = open_models(job.options, progress)
    with opened as segmenter, passes_recorded(segmenter):
        result = segment_job(segmenter, read, progress, seconds_before=watch.seconds)
    with whole(progress, "write"):
        return write_job(read, result)


def open_models(options: RunOptions, progress: Progress | None = None) -> Segmenter:
    """Open the models that the options name; see `resolve_bundle` and `Segmenter.open`."""
    return load(
        resolve_bundle(options.bundle, progress),
        runner=options.runner,
        precision=options.precision,
        threads=None if options.threads is None else min(options.threads, usable_cores()),
        convolution=options.convolution,
    )


def segment_job(
    segmenter: CaseSegmenter,
    read: ReadJob,
    progress: Progress | None = None,
    *,
    seconds_before: Mapping[str, float] | None = None,
    kept: KeptImage | None = None,
    on_coarse: Callable[[CoarseLabels], None] | None = None,
) -> Result:
    """Segment a case that was read; its report counts reading and what came before, by step.

    Raises
    ------
    MedalsError
        As `Segmenter.segment` and `segment_corrected`.
    """
    provenance = Provenance(
        seconds={**read.seconds, **(seconds_before or {})},
        notes=(*read.case.notes, *_modality_notes(read)),
        origin=read.case.origin,
    )
    if read.result_dhw is not None:
        return segment_corrected(segmenter, read, read.result_dhw, provenance, progress)
    return segmenter.segment(
        read.case.volume,
        read.prompts,
        read.job.segment_options,
        spatial_prompts=read.annotation_dhw,
        corrections=read.corrections,
        provenance=provenance,
        progress=progress,
        kept=kept,
        on_coarse=on_coarse,
    )


@contextmanager
def passes_recorded(segmenter: CaseSegmenter) -> Iterator[None]:
    """Keep in the user's cache what passes took, however the block ends."""
    try:
        yield
    finally:
        measured = segmenter.measured_passes
        if measured is not None:
            pass_timings.record(segmenter.bundle.hash, measured)


def _modality_notes(read: ReadJob) -> tuple[Note, ...]:
    """Warn where the file says that it is of another modality than the prompts."""
    found, asked = read.case.modality, read.prompts.modality
    if found in {None, asked}:
        return ()
    text = f"the file says that it is {found}, the prompts say {asked}: results are doubtful"
    return (warning("modality-contradicted", text),)
