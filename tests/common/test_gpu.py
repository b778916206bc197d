"""What the driver is asked, on a fake of its library."""

import ctypes

import pytest

from medals_rt.common import gpu
from medals_rt.common.errors import MissingDependencyError
from medals_rt.common.gpu import ask_driver, driver_version, names_of_visible, require_gpu
from tests.errors import raises

VERSION_TEXT = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:14:30 UTC 2025\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)


class Driver:
    """An H100 as its driver would tell of it; `failing` names a function that returns an error."""

    def __init__(self, failing="", count=1):
        self._failing, self._count = failing, count

    def __getattribute__(self, name):
        failing = object.__getattribute__(self, "__dict__")["_failing"]
        return (lambda *_: 100) if name == failing else object.__getattribute__(self, name)

    def cuInit(self, flags):  # noqa: N802 - the driver's names
        return flags

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = object.__getattribute__(self, "_count")
        return 0

    def cuDeviceGet(self, device, number):  # noqa: N802
        device._obj.value = number + 5
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        assert device == 5
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        assert (size, device) == (256, 5)
        name.value = b"NVIDIA H100"
        return 0

    def cuDeviceTotalMem_v2(self, size, device):  # noqa: N802
        assert device == 5
        size._obj.value = 80 << 30
        return 0


def test_a_card_is_described(monkeypatch, tmp_path):
    (tmp_path / "version").write_text(VERSION_TEXT, encoding="utf-8")
    monkeypatch.setattr(gpu, "_VERSION_FILE", tmp_path / "version")
    found = ask_driver(Driver())
    assert (found.name, found.architecture, found.memory_bytes) == ("NVIDIA H100", "SM90", 80 << 30)
    assert found.driver == "580.65.06, CUDA 12.8"


@pytest.mark.parametrize(
    "failing",
    ["cuInit", "cuDeviceGetCount", "cuDeviceGetAttribute", "cuDriverGetVersion", "cuDeviceGetName"],
)
def test_a_driver_that_fails_has_no_gpu(failing):
    assert ask_driver(Driver(failing)) is None


def test_no_gpus():
    assert ask_driver(Driver(count=0)) is None


def test_names_of_visible_gpus():
    assert names_of_visible(Driver(count=3), None) == ("0", "1", "2")
    assert names_of_visible(Driver(count=2), "3, GPU-8f") == ("3", "GPU-8f")
    assert names_of_visible(Driver(count=1), "0,9") == ("0",)  # the driver ignores what isn't there
    for failing in ("cuInit", "cuDeviceGetCount"):
        assert names_of_visible(Driver(failing), None) == ()


def test_driver_version(tmp_path):
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text("", encoding="utf-8")
    assert driver_version(file) is None
    file.write_text(VERSION_TEXT, encoding="utf-8")
    assert driver_version(file) == "580.65.06"


def test_no_driver_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    gpu.find_gpu.cache_clear()
    try:
        assert gpu.find_gpu() is None
        with raises(MissingDependencyError, "gpu-missing"):
            require_gpu("this")
    finally:
        gpu.find_gpu.cache_clear()
