"""What the installation says of itself is what pyproject.toml says."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from medals_rt.common import distribution
from medals_rt.common.distribution import Requirement, extras_with, normalized, requirements
from tests.paths import ROOT


@pytest.fixture
def fresh() -> Iterator[None]:
    """Read the metadata again in the test, and after it."""
    requirements.cache_clear()
    yield
    requirements.cache_clear()


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return content


def package_of(line: str) -> str:
    return normalized(re.split(r"[^\w.-]", line)[0])


def test_requirements_are_those_of_the_project() -> None:
    extras = project()["optional-dependencies"]
    always = {(package_of(line), None) for line in project()["dependencies"]}
    by_extra = {
        (package_of(line), extra)
        for extra, lines in extras.items()
        for line in lines
        if extra not in {"test", "dev"}
    }
    assert {(each.package, each.extra) for each in requirements()} == always | by_extra


@pytest.mark.parametrize(
    ("packages", "extras"),
    [
        (("openvino",), ("cpu",)),
        (("onnxruntime",), ("onnx", "export")),
        (("Onnxruntime_GPU", "onnxruntime"), ("onnx", "export", "gpu", "gpu-cuda13")),
        (("matplotlib",), ("preview", "bench")),
        (("tensorrt_rtx_cu13_bindings",), ("rtx",)),
        (("numpy",), ()),
        (("no-such-package",), ()),
    ],
)
def test_extras_the_smallest_first(packages: tuple[str, ...], extras: tuple[str, ...]) -> None:
    assert extras_with(packages) == extras


@pytest.mark.usefixtures("fresh")
def test_markers_of_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """As build tools write them: with both quotes, brackets, and other conditions."""
    lines = [
        "numpy>=2.1",
        "Cupy_CUDA12x[ctk]>=14.0.1; extra == 'gpu'",
        'bindings>=1.4; (platform_system != "Darwin" and extra != "no") and extra == "rtx"',
        "pytest>=8; extra == 'test'",
        "other ; python_version < '3.12'",
    ]
    monkeypatch.setattr(distribution, "requires", lambda _: lines)
    assert requirements() == (
        Requirement("numpy", None),
        Requirement("cupy-cuda12x", "gpu"),
        Requirement("bindings", "rtx"),
        Requirement("other", None),
    )


@pytest.mark.usefixtures("fresh")
def test_a_source_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(distribution, "requires", refuse)
    assert requirements() == ()
    assert extras_with(["openvino"]) == ()
