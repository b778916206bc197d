"""Run exported Medal S models: text prompts and a volume in, a segmentation out, without torch.

>>> import medals_rt
>>> case = medals_rt.read_case("case.npz")
>>> with medals_rt.load() as segmenter:  # the demo model; else the folder of a bundle
...     result = segmenter.segment(case.volume, {"1": "Liver in abdominal CT"})
>>> result.labels_dhw  # (D, H, W), on the case's grid

Folders, from the ground up; each imports only those above it in this list (tests/test_layout.py):

- `common`: types, closed lists, arrays, errors, files, the machine
- `bundle`: an exported model on disk, its manifest, engines and recipes
- `runners`: inference libraries behind one protocol, one file each
- `prompts`: from sentences to classes and their text embeddings
- `io`: scans and label maps in files, one file a format
- `planning`: what will be computed, before anything is: rules, geometry, windows, memory, time
- `preprocessing`: intensities and resampling
- `postprocessing`: connected components and Algorithm 3
- `inference`: the network, its windows, and the coarse-to-fine cascade
- `pipeline`: a case from request to result: segmenter, job, report, preview, batch
- `tools`: evaluate, verify, bench, doctor
- `cli`: the command `medals-rt`, one file a command
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medals_rt.common.distribution import VERSION

if TYPE_CHECKING:
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.common.errors import (
        BundleError,
        CaseError,
        DeviceLostError,
        InputError,
        MedalsError,
        MissingDependencyError,
        MissingFileError,
        OutputError,
        PromptError,
        RunnerError,
        ServerError,
    )
    from medals_rt.common.notes import Note
    from medals_rt.inference.cascade import StageSummary
    from medals_rt.inference.corrections import Correction
    from medals_rt.inference.kept import FeatureCache, KeptImage
    from medals_rt.io.case import Case
    from medals_rt.io.registry import read_case, read_labels, write_segmentation
    from medals_rt.io.segment_metadata import Segment
    from medals_rt.io.volume import SourceGrid, Volume
    from medals_rt.pipeline.batch.plan import Batch
    from medals_rt.pipeline.batch.run import Listener
    from medals_rt.pipeline.batch.start import BatchResult, run_batch
    from medals_rt.pipeline.group_run import CoarseLabels
    from medals_rt.pipeline.job import run_job
    from medals_rt.pipeline.job_request import Job
    from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
    from medals_rt.pipeline.output_grid import GridRequest
    from medals_rt.pipeline.report import ClassSummary, Provenance, RunReport
    from medals_rt.pipeline.segmenter import Result, Segmenter, load
    from medals_rt.prompts.classes import ClassKey, class_groups
    from medals_rt.prompts.prompt_set import (
        Prompt,
        PromptReading,
        PromptSet,
        class_prompts,
        parse_prompts,
        read_prompts,
    )

__version__ = VERSION

_HOMES = {
    "Batch": "pipeline.batch.plan",
    "BatchResult": "pipeline.batch.start",
    "Bundle": "bundle.bundle",
    "BundleError": "common.errors",
    "Case": "io.case",
    "CaseError": "common.errors",
    "ClassKey": "prompts.classes",
    "ClassSummary": "pipeline.report",
    "CoarseLabels": "pipeline.group_run",
    "Correction": "inference.corrections",
    "DeviceLostError": "common.errors",
    "FeatureCache": "inference.kept",
    "GridRequest": "pipeline.output_grid",
    "InputError": "common.errors",
    "Job": "pipeline.job_request",
    "KeptImage": "inference.kept",
    "Listener": "pipeline.batch.run",
    "MedalsError": "common.errors",
    "MissingDependencyError": "common.errors",
    "MissingFileError": "common.errors",
    "Note": "common.notes",
    "OutputError": "common.errors",
    "Prompt": "prompts.prompt_set",
    "PromptError": "common.errors",
    "PromptReading": "prompts.prompt_set",
    "PromptSet": "prompts.prompt_set",
    "PromptSource": "pipeline.options",
    "Provenance": "pipeline.report",
    "Result": "pipeline.segmenter",
    "RunOptions": "pipeline.options",
    "RunReport": "pipeline.report",
    "RunnerError": "common.errors",
    "Segment": "io.segment_metadata",
    "SegmentOptions": "pipeline.options",
    "Segmenter": "pipeline.segmenter",
    "ServerError": "common.errors",
    "SourceGrid": "io.volume",
    "StageSummary": "inference.cascade",
    "Volume": "io.volume",
    "class_groups": "prompts.classes",
    "class_prompts": "prompts.prompt_set",
    "load": "pipeline.segmenter",
    "parse_prompts": "prompts.prompt_set",
    "read_case": "io.registry",
    "read_labels": "io.registry",
    "read_prompts": "prompts.prompt_set",
    "run_batch": "pipeline.batch.start",
    "run_job": "pipeline.job",
    "write_segmentation": "io.registry",
}

__all__ = [
    "Batch",
    "BatchResult",
    "Bundle",
    "BundleError",
    "Case",
    "CaseError",
    "ClassKey",
    "ClassSummary",
    "CoarseLabels",
    "Correction",
    "DeviceLostError",
    "FeatureCache",
    "GridRequest",
    "InputError",
    "Job",
    "KeptImage",
    "Listener",
    "MedalsError",
    "MissingDependencyError",
    "MissingFileError",
    "Note",
    "OutputError",
    "Prompt",
    "PromptError",
    "PromptReading",
    "PromptSet",
    "PromptSource",
    "Provenance",
    "Result",
    "RunOptions",
    "RunReport",
    "RunnerError",
    "Segment",
    "SegmentOptions",
    "Segmenter",
    "ServerError",
    "SourceGrid",
    "StageSummary",
    "Volume",
    "class_groups",
    "class_prompts",
    "load",
    "parse_prompts",
    "read_case",
    "read_labels",
    "read_prompts",
    "run_batch",
    "run_job",
    "write_segmentation",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import medals_rt` stays light."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'medals_rt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"medals_rt.{home}"), name)


def __dir__() -> list[str]:
    """List the public names: what tab completion shows."""
    return [*__all__, "__version__"]
