"""The NVIDIA GPU that would be used, asked of the driver itself: no library need be installed."""

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medals_rt.common.errors import MissingDependencyError

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_VERSION_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """The first GPU that `CUDA_VISIBLE_DEVICES` leaves to this process.

    Attributes
    ----------
    name
        As the driver calls it, "NVIDIA H100 80GB HBM3".
    architecture
        Its compute capability as TensorRT writes it: "SM90" is 9.0.
    memory_bytes
        Its whole memory.
    driver
        The driver's version, and the newest CUDA that it runs: "580.65.06, CUDA 13.0".
    """

    name: str
    architecture: str
    memory_bytes: int
    driver: str

    @property
    def runs_cuda13(self) -> bool:
        """Whether libraries for CUDA 13 run on it; they need Turing (7.5) or later."""
        newest = int(self.driver.rpartition("CUDA ")[2].partition(".")[0])
        return newest >= 13 and int(self.architecture.removeprefix("SM")) >= 75


@cache
def find_gpu() -> Gpu | None:
    """Ask the driver for the first GPU; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return ask_driver(driver)


def visible_gpus() -> tuple[str, ...]:
    """Return what `CUDA_VISIBLE_DEVICES` calls each GPU that this process may use; often numbers.

    Empty where there is no driver or no GPU.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ()
    return names_of_visible(driver, os.environ.get("CUDA_VISIBLE_DEVICES"))


def names_of_visible(driver: Any, visible: str | None) -> tuple[str, ...]:
    """Name the GPUs that a driver finds, which is told what is visible; None: nothing was said."""
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    names = map(str, range(count.value)) if visible is None else visible.split(",")
    return tuple(name.strip() for name in names)[: count.value]


def require_gpu(what: str) -> Gpu:
    """Return the GPU that `what` needs.

    Raises
    ------
    MissingDependencyError
        If the driver finds none.
    """
    gpu = find_gpu()
    if gpu is None:
        raise MissingDependencyError(
            f"{what} needs an NVIDIA GPU, and no driver finds one here "
            "(nvidia-smi lists GPUs; CUDA_VISIBLE_DEVICES may hide them)",
            code="gpu-missing",
        )
    return gpu


def ask_driver(driver: Any) -> Gpu | None:
    """Read the first GPU through the CUDA driver's C interface; None where a call fails."""

    def answer(function: str, *arguments: object) -> int | None:
        value = ctypes.c_int()
        failed = getattr(driver, function)(ctypes.byref(value), *arguments)
        return None if failed else value.value

    if driver.cuInit(0) or not answer("cuDeviceGetCount"):
        return None
    device = answer("cuDeviceGet", 0)
    major = answer("cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MAJOR, device)
    minor = answer("cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MINOR, device)
    cuda = answer("cuDriverGetVersion")
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t()
    failed = driver.cuDeviceGetName(name, len(name), device) or driver.cuDeviceTotalMem_v2(
        ctypes.byref(memory), device
    )
    if failed or major is None or minor is None or cuda is None:
        return None
    version = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    if installed := driver_version(_VERSION_FILE):
        version = f"{installed}, {version}"
    return Gpu(name.value.decode(errors="replace"), f"SM{major}{minor}", memory.value, version)


def driver_version(file: Path) -> str | None:
    """Read the driver's version from the file in which Linux drivers write it; None: no such file.

    The first line reads "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun ...".
    """
    try:
        words = file.read_text(encoding="utf-8", errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    numbers = [word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()]
    return numbers[0] if numbers else None
