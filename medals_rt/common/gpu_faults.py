"""Faults after which a process can use its GPU no more, recognized in what libraries say.

CUDA calls them sticky: the context is lost, every later call fails with the same error, and only
a new process has a GPU again. CuPy, ONNX Runtime and TensorRT each have exceptions of their own,
none of which says whether the fault is of that kind; but each message holds the name, the number
or the text that CUDA has for it. Those are in one table.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from medals_rt.common.errors import DeviceLostError

_P = ParamSpec("_P")
_T = TypeVar("_T")

EXIT_DEVICE_LOST: Final = 4
"""What a process ends with that can use its GPU no more: whoever started it starts another."""


@dataclass(frozen=True)
class GpuFault:
    """A sticky fault, as CUDA describes it.

    Attributes
    ----------
    number
        Of the runtime and the driver.
    runtime, driver
        Its names, ``cudaError_t`` without ``cudaError`` and ``CUresult`` without ``CUDA_ERROR_``.
    text
        What ``cudaGetErrorString`` gives.
    """

    number: int
    runtime: str
    driver: str
    text: str


STICKY_FAULTS: Final = (
    GpuFault(214, "ECCUncorrectable", "ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"),
    GpuFault(
        220,
        "NvlinkUncorrectable",
        "NVLINK_UNCORRECTABLE",
        "uncorrectable NVLink error detected during the execution",
    ),
    GpuFault(700, "IllegalAddress", "ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    GpuFault(702, "LaunchTimeout", "LAUNCH_TIMEOUT", "the launch timed out and was terminated"),
    GpuFault(709, "ContextIsDestroyed", "CONTEXT_IS_DESTROYED", "context is destroyed"),
    GpuFault(710, "Assert", "ASSERT", "device-side assert triggered"),
    GpuFault(714, "HardwareStackError", "HARDWARE_STACK_ERROR", "hardware stack error"),
    GpuFault(
        715, "IllegalInstruction", "ILLEGAL_INSTRUCTION", "an illegal instruction was encountered"
    ),
    GpuFault(716, "MisalignedAddress", "MISALIGNED_ADDRESS", "misaligned address"),
    GpuFault(
        717,
        "InvalidAddressSpace",
        "INVALID_ADDRESS_SPACE",
        "operation not supported on global/shared address space",
    ),
    GpuFault(718, "InvalidPc", "INVALID_PC", "invalid program counter"),
    GpuFault(719, "LaunchFailure", "LAUNCH_FAILED", "unspecified launch failure"),
    GpuFault(721, "TensorMemoryLeak", "TENSOR_MEMORY_LEAK", "tensor memory not completely freed"),
)
"""Those after which, by CUDA's reference, the process must be ended and started again."""


def _pattern(fault: GpuFault) -> str:
    """Return what a message holds: CuPy and TensorRT the name or text, ONNX Runtime the number."""
    return (
        rf"\bcudaError{fault.runtime}\b|\bCUDA_ERROR_{fault.driver}\b|{re.escape(fault.text)}"
        rf"|\bCUDA (?:failure|error) {fault.number}\b|\bcudaError {fault.number}\b"
    )


_STICKY: Final = re.compile("|".join(map(_pattern, STICKY_FAULTS)))


def sticky_fault(error: BaseException | None) -> str | None:
    """Return the line that tells of a sticky fault, of an error or what it came from; else None."""
    for each in _chain(error):
        if isinstance(each, DeviceLostError):
            return str(each)
        if isinstance(each, Exception) and _STICKY.search(str(each)):
            return " ".join(str(each).split())
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def raises_device_lost(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function raise `DeviceLostError` for whatever exception a sticky fault came as."""

    @wraps(work)
    def checked(*given: _P.args, **named: _P.kwargs) -> _T:
        try:
            return work(*given, **named)
        except DeviceLostError:
            raise
        except Exception as error:
            fault = sticky_fault(error)
            if fault is None:
                raise
            raise DeviceLostError(
                f"the GPU failed, and this process can use it no more: {fault}; run it again"
            ) from error

    return checked
