"""Libraries that may be missing: each has its extra, and one message says how to install it."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

from medals_rt.common.errors import MissingDependencyError
from medals_rt.common.gpu import Gpu
from medals_rt.common.optional_deps import (
    GPU_EXTRAS,
    OPTIONAL_LIBRARIES,
    OptionalLibrary,
    gpu_extra,
    import_optional,
    missing,
    missing_one_of,
    require,
)
from tests.errors import raises
from tests.paths import ROOT


@pytest.mark.parametrize("library", OPTIONAL_LIBRARIES, ids=lambda library: library.name)
def test_an_extra_installs_it(library: OptionalLibrary) -> None:
    assert library.extras
    assert library.extra == library.extras[0]
    assert not {"test", "dev"} & set(library.extras)


def test_extras_of_other_packages_are_offered_by_them() -> None:
    """pip only warns of one that a package has not, and leaves out what it was to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {
        (found[1], extra)
        for wanted in project["optional-dependencies"].values()
        for found in [re.match(r"([\w-]+)\[([\w,]+)\]", each) for each in wanted]
        if found and found[1] != "medals-rt"
        for extra in found[2].split(",")
    }
    assert {("cupy-cuda12x", "ctk"), ("cupy-cuda13x", "ctk")} < asked  # CUDA's headers, compiler
    assert ("onnxruntime-gpu", "cudnn") in asked
    for package, extra in asked:
        try:
            offered = metadata(package).get_all("Provides-Extra") or []
        except PackageNotFoundError:
            continue
        assert extra in offered, package


def test_the_extra_for_a_gpu_is_that_of_its_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: project["optional-dependencies"][name] for name in GPU_EXTRAS}
    for name, packages in GPU_EXTRAS.items():
        for package in packages:
            owners = {extra for extra, lines in extras.items() if package in "".join(lines)}
            assert owners == {name}
    installed: list[str] = []

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr("medals_rt.common.optional_deps.version", version)
    for architecture, driver, extra in (
        ("SM90", "580.65.06, CUDA 13.0", "gpu-cuda13"),
        ("SM120", "CUDA 13.5", "gpu-cuda13"),
        ("SM90", "570.10, CUDA 12.8", "gpu"),
        ("SM70", "580.65.06, CUDA 13.0", "gpu"),  # CUDA 13 has no kernels for Volta
    ):
        found = Gpu("NVIDIA", architecture, 8 << 30, driver)
        monkeypatch.setattr("medals_rt.common.gpu.find_gpu", lambda found=found: found)
        assert gpu_extra() == extra
        installed[:] = ["cucim-cu13"]
        assert gpu_extra() == "gpu-cuda13"
        installed[:] = ["cupy-cuda12x"]
        assert gpu_extra() == "gpu"
        installed.clear()
    monkeypatch.setattr("medals_rt.common.gpu.find_gpu", lambda: None)
    assert gpu_extra() == "gpu"
    monkeypatch.setattr(
        "medals_rt.common.optional_deps.extras_with", lambda _: ("onnx", *GPU_EXTRAS)
    )
    (library,) = (each for each in OPTIONAL_LIBRARIES if each.name == "ONNX Runtime")
    assert library.extras == ("onnx", "gpu")


def test_one_extra_where_one_installs_all() -> None:
    for names, extras in {
        ("ONNX",): "bench",
        ("ONNX", "ONNX Script"): "export",
        ("ONNX Runtime",): "onnx",
        ("ONNX Runtime", "CuPy"): "gpu",
        ("TensorRT", "CuPy"): "tensorrt,gpu",
        ("Matplotlib", "Jinja2"): "preview",
    }.items():
        said = str(missing("this", *names))
        assert said == f"this needs {', '.join(names)}: pip install 'medals-rt[{extras}]'"


def test_packages_where_the_extras_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source tree on the path, not installed, has no metadata."""
    monkeypatch.setattr("medals_rt.common.optional_deps.extras_with", lambda _: ())
    said = str(missing("this", "ONNX", "pynrrd"))
    assert said == "this needs ONNX, pynrrd: pip install onnx pynrrd"


def test_one_of_several() -> None:
    said = str(missing_one_of("this", "OpenVINO", "ONNX Runtime", remark=", and no GPU"))
    assert said == (
        "this needs OpenVINO or ONNX Runtime: pip install 'medals-rt[cpu]' or 'medals-rt[onnx]', "
        "and no GPU"
    )


def test_what_is_there_is_imported() -> None:
    require("this", "Jinja2", "Matplotlib")
    assert import_optional("Jinja2", "this") is sys.modules["jinja2"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with raises(MissingDependencyError, "dependency-missing", "Jinja2"):
        import_optional("Jinja2", "this")
    monkeypatch.setattr(
        "medals_rt.common.optional_deps.find_spec", lambda name: name == "onnx" or None
    )
    with raises(MissingDependencyError, "dependency-missing", "ONNX Script", "PyTorch"):
        require("this", "ONNX", "ONNX Script", "PyTorch")


def test_what_cannot_be_imported_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import no_such_library_below", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with raises(MissingDependencyError, "dependency-missing", "no_such_library_below"):
        import_optional("TensorRT-RTX", "this")
