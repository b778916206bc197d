"""Three cases, and the command on them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from tests.pipeline.batch.helpers import KIDNEY, LIVER, Result, batch, write_case


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for number, prompts in enumerate((LIVER, KIDNEY, LIVER)):
        write_case(folder / f"case{number}.npz", number, prompts)
    return folder


@pytest.fixture
def empty_scans(tmp_path: Path) -> Path:
    """A folder of cases that nobody reads, for what goes by their names."""
    folder = tmp_path / "scans"
    for name in ("b.npz", "a.nii.gz", "deep/er/c.NRRD", "notes.md", ".hidden.npz", ".x/d.npz"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(tiny_bundle: Bundle, scans: Path, out: Path) -> Callable[..., Result]:
    """Run the batch over `scans` without pictures."""
    return lambda *words: batch(tiny_bundle.folder, scans, out, "--no-preview", *words)
