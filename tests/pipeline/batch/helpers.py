"""Small cases, and `medals-rt batch` on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.pipeline.batch import Batch, BatchPlan, plan_batch

Result = Any  # of typer's runner, whose module has moved between versions

LIVER = {"1": "Liver in abdominal CT", "instance_label": 0}
KIDNEY = {"5": "Right kidney in CT", "instance_label": 0}
SHAPE = (6, 14, 14)


def write_case(path: Path, seed: int = 0, prompts: object = LIVER) -> Path:
    """Write a challenge case of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8)
    fields = {"imgs": image, "spacing": np.array([2.0, 2.0, 3.0])}
    if prompts is not None:
        fields["text_prompts"] = np.array(prompts, dtype=object)
    np.savez(path, **fields)
    return path


def batch(bundle: Path, *words: object) -> Result:
    """Run the command in this process."""
    fixed = ["--bundle", bundle, "--precision", "fp32", "--runner", "onnxruntime"]
    return CliRunner().invoke(app, ["batch", *map(str, [*words, *fixed])])


def files_below(folder: Path) -> list[str]:
    """Names of all files of a folder, those of the batch's records left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] != ".medals-rt")


def statuses(reports: Path) -> dict[str, str]:
    """Status of every case by `summary.csv`."""
    lines = (reports / "summary.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(",")[0]: line.split(",")[1] for line in lines}


def write_json(path: Path, content: object) -> Path:
    """Write JSON."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def plan(*inputs: Path, out: Path, **changes: Any) -> BatchPlan:
    """Plan a batch, without any options but those given."""
    return plan_batch(Batch(inputs, out, **changes))


def results(found: BatchPlan) -> dict[str, str]:
    """Where each case's result will lie, below the folder of results."""
    return {
        case.name: case.job.output.relative_to(found.results).as_posix() for case in found.cases
    }
