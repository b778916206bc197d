"""Which exceptions mean that a process has lost its GPU; the messages are those of libraries."""

import pytest

from medals_rt.common.errors import DeviceLostError, InputError, RunnerError
from medals_rt.common.gpu_faults import STICKY_FAULTS, GpuFault, raises_device_lost, sticky_fault
from tests.errors import raises

LOST = [
    "cudaErrorIllegalAddress: an illegal memory access was encountered",  # CuPy
    "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",  # CuPy, of the driver
    "TensorRT failed in refiner: Cuda Runtime (an illegal memory access was encountered)",
    "TensorRT-RTX failed in refiner: Cuda Runtime (In launch at x.cpp:25 (cudaError 716: no text))",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access ; GPU=0 ; line=119",
    "CUDA error 719: something in another language",
]
NOT_LOST = [
    "cudaErrorMemoryAllocation: out of memory",
    "cudaErrorInvalidValue: invalid argument",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 2: out of memory ; GPU=0",
    "Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)",
    "CUDA failure 7000: no such number",
    "prompts holds 700 voxels",
    "",
]


@pytest.mark.parametrize("message", LOST)
def test_sticky_faults_are_recognized(message: str) -> None:
    @raises_device_lost
    def work() -> None:
        raise RunnerError(message)

    with raises(DeviceLostError, "device-lost", message.rsplit(maxsplit=1)[-1]) as caught:
        work()
    assert isinstance(caught.value.__cause__, RunnerError)


@pytest.mark.parametrize("message", NOT_LOST)
def test_other_faults_stay_what_they_are(message: str) -> None:
    @raises_device_lost
    def work() -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError) as caught:
        work()
    assert type(caught.value) is RuntimeError


def test_what_an_error_came_from_counts() -> None:
    """Tidying up on a lost GPU fails, too, and may hide why."""

    def work() -> None:
        try:
            raise RuntimeError("device-side assert triggered")
        finally:
            raise OSError("can't close")

    with pytest.raises(OSError, match="close") as caught:
        work()
    assert sticky_fault(caught.value) == "device-side assert triggered"
    again = InputError("a loop")
    again.__cause__ = again
    assert sticky_fault(again) is None
    assert sticky_fault(None) is None


@pytest.mark.parametrize("fault", STICKY_FAULTS, ids=lambda fault: fault.runtime)
def test_the_table_says_what_cuda_says(fault: GpuFault) -> None:
    """CuPy asks the CUDA runtime for name and text, which needs no GPU."""
    runtime = pytest.importorskip("cupy_backends.cuda.api.runtime", reason="needs CuPy")
    said = str(runtime.CUDARuntimeError(fault.number))
    assert said == f"cudaError{fault.runtime}: {fault.text}"
    for message in (said, f"CUDA_ERROR_{fault.driver}: ", f"CUDA failure {fault.number}: ?"):
        assert sticky_fault(RuntimeError(message)) == message.strip()
