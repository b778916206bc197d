"""The comparison with other libraries runs, and those that compute the same agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

STEPS = ("largest component of each class", "NSD at 2 mm of each class")


@pytest.mark.slow
def test_peers_that_are_installed_agree(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable, "benchmarks/peers.py", "--output", str(tmp_path / "peers"),
            "--repetitions", "1", "--steps", *STEPS,
        ],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    report = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    by_step = {step: [row for row in report["rows"] if row["step"] == step] for step in STEPS}
    components, surfaces = by_step.values()
    assert {row["who"] for row in components} >= {"medals-rt", "cc3d", "scipy"}
    assert {row["who"] for row in surfaces} >= {"medals-rt", "surface-distance"}
    for row in components[1:]:
        assert row["agreement"].startswith("0 of ")
    for row in surfaces[1:]:
        assert float(row["agreement"].rpartition(" ")[2]) < 1e-6
    assert all(row["peak_gb"] >= 0 and row["seconds"] for row in report["rows"])
