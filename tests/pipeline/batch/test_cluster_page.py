"""The job files of docs/cluster.md: well formed, and their commands exist."""

import shlex
import shutil
import subprocess
from typing import Any

import pytest
import typer

from medals_rt.cli import app
from tests import documented
from tests.paths import ROOT

BLOCKS = {block.label: block for block in documented.blocks(ROOT / "docs" / "cluster.md")}


def parse(words: list[str]) -> Any:
    """Parse the words of a command without running it."""
    assert words[:2] == ["medals-rt", "batch"]
    command = typer.main.get_command(app).commands["batch"]
    return command.make_context("batch", words[2:]).params


def test_the_slurm_script() -> None:
    script = BLOCKS["slurm.sh"].text
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    checked = subprocess.run(
        [bash, "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "#SBATCH --array=" in script
    lines = script.replace("\\\n", " ").splitlines()
    (command,) = [line for line in lines if line.startswith("medals-rt")]
    assert parse(shlex.split(command))["part"] == "auto"


def test_the_kubernetes_job() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(BLOCKS["job.yaml"].text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = parse([*container["command"], *container["args"]])
    assert given["part"] == f"auto/{spec['completions']}"
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
