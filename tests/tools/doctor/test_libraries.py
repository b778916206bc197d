"""What is installed, and whether it can be imported."""

from pathlib import Path

import pytest

from medals_rt.common.optional_deps import OPTIONAL_LIBRARIES, OptionalLibrary
from medals_rt.tools.doctor.libraries import import_apart, look_at_libraries


def kind(module: str, detail: str = "") -> OptionalLibrary:
    modules, packages = ("no_such_module", module), ("not-there", "numpy")
    return OptionalLibrary(module, modules, packages, "a test", detail)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules to import."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sound.py").write_text("answer = 42\nprint('some talk')\n", encoding="utf-8")
    (tmp_path / "lacking.py").write_text(
        "raise ImportError('libnvinfer.so.10: no such file')\n", encoding="utf-8"
    )
    (tmp_path / "deadly.py").write_text("import os\nos.abort()\n", encoding="utf-8")
    (tmp_path / "silent.py").write_text("import os\nos._exit(5)\n", encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("modules")
def test_states() -> None:
    found = look_at_libraries(
        [kind("sound", detail="m.answer + 1"), kind("lacking"), kind("deadly"), kind("absent")]
    )
    sound, lacking, deadly, absent = found
    assert (sound.state, sound.detail, sound.reason) == ("installed", "43", None)
    assert sound.version is not None
    assert lacking.state == deadly.state == "broken"
    assert lacking.reason == "ImportError: libnvinfer.so.10: no such file"
    assert "by SIGABRT" in str(deadly.reason)
    assert (absent.state, absent.version, absent.reason) == ("missing", None, None)


@pytest.mark.usefixtures("modules")
def test_silence_is_told_too() -> None:
    assert import_apart("silent") == (None, "its import ended with 5")


def test_endless_imports_end(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "endless.py").write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setattr("medals_rt.tools.doctor.libraries._TIMEOUT_S", 0.5)
    assert import_apart("endless") == (None, "its import did not end within 0.5 s")


def test_details_of_real_libraries() -> None:
    """The expressions fit the libraries of today."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    chosen = [each for each in OPTIONAL_LIBRARIES if each.name in {"OpenVINO", "ONNX Runtime"}]
    openvino, onnxruntime = look_at_libraries(chosen)
    assert openvino.state == onnxruntime.state == "installed"
    assert "FP32" in str(openvino.detail)
    assert "CPU" in str(onnxruntime.detail)
