"""A case, a folder for outputs, and `medals-rt run` on them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from tests.cli.helpers import Result, call, write_case


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return write_case(tmp_path / "case.npz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def run(tiny_bundle: Bundle, case: Path, out: Path) -> Callable[..., Result]:
    """`medals-rt run` on the tiny bundle; keyword arguments replace or (None) leave out options."""

    def invoke(*flags: object, **changes: object) -> Result:
        options = {
            "input": case,
            "output": out / "seg.npz",
            "bundle": tiny_bundle.folder,
            "precision": "fp32",
            **changes,
        }
        words: list[object] = []
        for key, value in options.items():
            if value is not None:
                words += [f"--{key.replace('_', '-')}", value]
        return call("run", *words, *flags)

    return invoke
