"""`medals-rt doctor`: what would run here and why, with libraries and GPUs hidden or made up."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.engines import ENGINE_FOLDER, EngineKey, EngineRecord, write_record
from medals_rt.common.errors import MissingDependencyError
from medals_rt.common.gpu import Gpu
from medals_rt.common.optional_deps import OPTIONAL_LIBRARIES
from medals_rt.tools.doctor import diagnosis
from medals_rt.tools.doctor.diagnosis import (
    Automatic,
    BundleState,
    Diagnosis,
    EngineState,
    diagnose,
    look_at_cache,
    quantization_advice,
)
from medals_rt.tools.doctor.libraries import Library, State
from medals_rt.tools.doctor.machine import Processor
from tests.cli.helpers import call

H100 = Gpu("NVIDIA H100", "SM90", 80 * 2**30, "580.65.06, CUDA 13.0")


class Shown(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON that is printed."""

    format: int
    can_run: bool
    versions: dict[str, str]
    processor: dict[str, Any]
    memory: dict[str, int | None]
    graphics: dict[str, Any]
    libraries: list[dict[str, str | None]]
    runners: list[dict[str, Any]]
    automatic: dict[str, str | None]
    cache: dict[str, Any]
    bundle: dict[str, Any] | None
    advice: list[str]


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str, broken: tuple[str, ...] = ()) -> None:
    """Make libraries missing or broken, without importing any."""

    def state(name: str) -> State:
        return "broken" if name in broken else "missing" if name in hidden else "installed"

    found = tuple(
        Library(
            each.name,
            state(each.name),
            None if each.name in hidden else "1.0",
            each.extra,
            each.use,
            reason="ImportError: it lacks something" if each.name in broken else None,
        )
        for each in OPTIONAL_LIBRARIES
    )
    monkeypatch.setattr(diagnosis, "look_at_libraries", lambda: found)
    modules = {
        module for each in OPTIONAL_LIBRARIES if each.name in hidden for module in each.modules
    }
    monkeypatch.setattr(
        "medals_rt.common.optional_deps.find_spec", lambda name: None if name in modules else name
    )


def runner(found: Diagnosis, kind: str) -> Any:
    return next(each for each in found.runners if each.kind == kind)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests say themselves which GPU there is."""
    show_gpu(monkeypatch, None)


def show_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    for module in ("tools.doctor.diagnosis", "tools.doctor.machine", "common.gpu"):
        monkeypatch.setattr(f"medals_rt.{module}.find_gpu", lambda: gpu)


def test_json_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch)
    done = call("doctor", "--json")
    assert done.exit_code == 0, done.output
    shown = msgspec.json.decode(done.stdout, type=Shown)
    assert (shown.format, shown.can_run, shown.bundle) == (1, True, None)
    assert shown.automatic["runner"] == "openvino"
    assert shown.graphics == {"gpus": [], "used": None, "driver": None, "remark": None}
    assert {each["name"] for each in shown.libraries} == {each.name for each in OPTIONAL_LIBRARIES}
    states = {each["kind"]: each["problem"] for each in shown.runners}
    assert states["openvino"] is None
    assert states["tensorrt-rtx"] == "no NVIDIA GPU is found"
    assert shown.processor["cores"] >= 1


def test_auto_says_which_precision_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch)
    for offered, why in (
        (("bf16", "fp32"), "bf16: this processor computes in it natively"),
        (("fp32",), "fp32: the only one that openvino offers"),
    ):
        monkeypatch.setattr(diagnosis, "precisions", lambda *_, offered=offered: offered)
        found = diagnose()
        assert found.automatic.precision == offered[0]
        assert "OpenVINO is installed" in found.automatic.why
        assert why in found.automatic.why


def test_what_is_missing_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "NiBabel", "pynrrd", "PyTorch", "CuPy", "TensorRT")
    found = diagnose()
    advice = "\n".join(found.advice)
    assert "'medals-rt[formats]' adds NiBabel (NIfTI), pynrrd (NRRD)" in advice
    assert "'medals-rt[export]' adds PyTorch" in advice
    assert "CuPy" not in advice  # of no use without a GPU
    show_gpu(monkeypatch, H100)
    monkeypatch.setattr("medals_rt.common.optional_deps.gpu_extra", lambda: "gpu")
    advice = "\n".join(diagnose().advice)
    assert "'medals-rt[gpu]' adds CuPy" in advice
    assert "'medals-rt[tensorrt]' adds TensorRT" in advice


def test_nothing_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "OpenVINO", "ONNX Runtime", "CuPy", "TensorRT", "TensorRT-RTX")
    done = call("doctor")
    assert done.exit_code == 1
    assert "auto takes nothing" in done.stdout
    assert "pip install 'medals-rt[cpu]'" in done.stdout
    assert done.stderr == ""
    assert json.loads(call("doctor", "--json").stdout)["can_run"] is False


def test_a_broken_library_is_told_and_another_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, broken=("OpenVINO",))
    found = diagnose()
    assert found.can_run
    assert runner(found, "openvino").problem == "OpenVINO can't be imported"
    assert found.automatic.runner is None
    assert "it lacks something" in found.advice[0]
    assert any("--runner onnxruntime" in each for each in found.advice)


def test_cache_that_cant_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert look_at_cache(tmp_path / "file" / "cache").problem is not None
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "graph").write_bytes(bytes(2**20))
    found = look_at_cache(tmp_path / "cache")
    assert (found.mib, found.problem) == (1.0, None)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["graph"]
    hide(monkeypatch)
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    assert "cache: 1.0 MiB of at most 8,192" in call("doctor").stdout
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "file"))
    assert any("MEDALS_RT_CACHE" in each for each in diagnose().advice)


def test_no_bundle_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch)
    done = call("doctor", "--bundle", tmp_path / "none")
    assert done.exit_code == 1
    assert "can't be used: bundle" in done.stdout
    assert "does not exist" in done.stdout


def write_engine(bundle: Bundle, data: bytes, **changes: Any) -> str:
    """Put an engine of the coarse classifier into a bundle; give its file's name."""
    key = EngineKey(
        graph_sha256=bundle.graph(1, "classifier").sha256,
        library="tensorrt",
        version="11.4.0",
        architectures=("SM90",),
        precision="fp32",
        prompt_counts=None,
    )
    record = EngineRecord(
        record_version=1,
        stage=1,
        graph="classifier",
        key=msgspec.structs.replace(key, **changes),
        sha256=hashlib.sha256(b"engine").hexdigest(),
        bytes=len(b"engine"),
        recipe="h100-fp32",
        optimization_level=3,
        workspace_mib=1,
        built="2026-11-24T00:00:00+00:00",
    )
    folder = bundle.folder / ENGINE_FOLDER
    folder.mkdir(exist_ok=True)
    write_record(folder, record)
    (folder / f"{record.name}.engine").write_bytes(data)
    return f"{record.name}.engine"


def test_bundle_and_engines(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that fit, are stale, for another GPU or library, and damaged."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    hide(monkeypatch)
    assert (folder_state := diagnose(folder).bundle) is not None
    assert (folder_state.name, folder_state.problem, folder_state.engines) == ("tiny", None, ())
    assert folder_state.hash == tiny_bundle.hash

    bundle = Bundle.open(folder)
    problems = {
        write_engine(bundle, b"engine"): None,
        write_engine(bundle, b"engine", graph_sha256="0" * 64): "for another graph",
        write_engine(bundle, b"engine", architectures=("SM89",)): "for GPUs of SM89, here is SM90",
        write_engine(bundle, b"engine", version="10.13.0"): "for TensorRT 10.13.0, here is 11.4.0",
        write_engine(bundle, b"other!", precision="fp16"): "is not the one that was built",
    }
    assert all(each.problem == "no NVIDIA GPU is found" for each in engines_of(folder))
    show_gpu(monkeypatch, H100)
    monkeypatch.setattr(diagnosis, "open_library", lambda _: SimpleNamespace(version="11.4.0"))
    found = engines_of(folder)
    assert {each.file for each in found} == set(problems)
    for each in found:
        expected = problems[each.file]
        assert each.problem is None if expected is None else expected in str(each.problem)
    assert "fits" in call("doctor", "--bundle", folder).stdout


def test_engines_whose_library_is_missing(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> None:
        raise MissingDependencyError("TensorRT is not installed")

    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    hide(monkeypatch)
    show_gpu(monkeypatch, H100)
    monkeypatch.setattr(diagnosis, "open_library", missing)
    write_engine(Bundle.open(folder), b"engine")
    assert [each.problem for each in engines_of(folder)] == ["TensorRT is not installed"]


def engines_of(folder: Path) -> tuple[EngineState, ...]:
    state = diagnose(folder).bundle
    assert state is not None
    return state.engines


def test_no_library_is_imported_by_it() -> None:
    heavy = ("torch", "openvino", "onnxruntime", "cupy", "tensorrt")
    code = (
        "import sys, medals_rt.tools.doctor.diagnosis;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("precision", "runner", "features", "slower"),
    [
        ("int8", "openvino", ("avx2", "avx512_vnni"), False),
        ("int8", "openvino", ("asimd", "asimddp"), False),
        ("int8", "openvino", ("avx2", "avx512f"), True),
        ("int8", "openvino", None, False),
        ("int8", "onnxruntime", ("avx512_vnni",), True),
        ("int8", "tensorrt", ("avx2",), False),
        ("fp8", "openvino", ("avx512_vnni",), True),
        ("fp32", "openvino", ("avx2",), False),
    ],
)
def test_where_eight_bits_are_slower_is_said(precision, runner, features, slower):
    processor = Processor("made up", 2, 2, None, features)
    bundle = BundleState("folder", None, precision=precision)
    said = quantization_advice(bundle, Automatic(runner, precision, ""), processor)
    assert len(said) == slower
