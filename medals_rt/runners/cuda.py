"""What runners on a GPU share: CuPy's arrays, one stream, and the order of work on it.

The tests run it on a fake of CuPy that keeps arrays in host memory.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from medals_rt.common.errors import RunnerError
from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec

_LIBRARIES: Final = (
    *("libcudart", "libcublasLt", "libcublas", "libnvrtc", "libcurand", "libcufft", "libcudnn"),
)
"""What inference libraries are linked to or open by name, each after what it needs itself."""
_ENGINE_ALIGNMENT_BYTES = 256
"""Where arrays must begin that TensorRT reads or writes; CuPy's pool takes multiples of 512."""


@cache
def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, wherever on Python's path they lie.

    Inference libraries look for them beside their own package only. What is missing or can't be
    loaded is not told here: what needs it says so itself.
    """
    found = find_spec("nvidia")  # a namespace: each folder of Python's path may have a part of it
    parts = () if found is None else found.submodule_search_locations or ()
    folders = sorted(lib for part in parts for lib in Path(part).glob("*/lib"))
    for name in _LIBRARIES:
        for file in (file for folder in folders for file in sorted(folder.glob(f"{name}.so.*"))):
            with suppress(OSError):
                ctypes.CDLL(str(file))


def runner_stream(cupy: Any) -> Any:
    """Return the stream on which all graphs of this process run, for CuPy's current device.

    It is none of the caller's, and does not wait for the default stream: inference libraries
    synchronize the whole device when they are given that one. All runners share it, so that memory
    which one graph has done with serves the next (CuPy's pool keeps memory apart by stream).
    """
    return _stream_of(cupy, cupy.cuda.Device().id)


@cache
def _stream_of(cupy: Any, device: int) -> Any:
    with cupy.cuda.Device(device):
        return cupy.cuda.Stream(non_blocking=True)


class Ordering:
    """Orders a runner's stream against its caller's, without making the processor wait."""

    def __init__(self, cupy: Any, stream: Any) -> None:
        self._cupy = cupy
        self._stream = stream
        self._given = cupy.cuda.Event(disable_timing=True)
        self._done = cupy.cuda.Event(disable_timing=True)

    @contextmanager
    def after_and_before(self) -> Iterator[None]:
        """Order what is launched on the runner's stream inside the block.

        It starts after all that the caller's current stream was given before, and what that stream
        is given afterwards starts when it is done. So the caller may use, overwrite or free every
        array without a thought, as long as it does so on the same stream.
        """
        caller = self._cupy.cuda.get_current_stream()
        self._given.record(caller)
        self._stream.wait_event(self._given)
        try:
            yield
        finally:
            self._done.record(self._stream)
            caller.wait_event(self._done)

    def wait(self) -> None:
        """Block until the runner's stream has done all its work."""
        self._stream.synchronize()


def device_inputs(
    cupy: Any, name: str, feeds: Mapping[str, Array], *, views: bool = False
) -> dict[str, Array]:
    """Return inputs as contiguous, aligned CuPy arrays: themselves, or for views copies.

    With `views` they are taken as they are.

    Raises
    ------
    RunnerError
        If one lies in host memory.
    """
    for key, array in feeds.items():
        if not isinstance(array, cupy.ndarray):
            raise RunnerError(
                f"{name}: {key} is a {type(array).__name__} in host memory, and this runner takes "
                "CuPy arrays; move it with medals_rt.common.arrays.to_device(array, 'cuda')",
                code="input-not-on-gpu",
            )
    if views:
        return dict(feeds)
    contiguous = {key: cupy.ascontiguousarray(array) for key, array in feeds.items()}
    return {key: array if _aligned(array) else array.copy() for key, array in contiguous.items()}


def _aligned(array: Any) -> bool:
    return int(array.data.ptr) % _ENGINE_ALIGNMENT_BYTES == 0


def device_outputs(
    cupy: Any,
    name: str,
    specs: Sequence[TensorSpec],
    free: int | None,
    given: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """Return arrays for a graph's outputs: those given, else new ones from CuPy's pool.

    New ones are the caller's own: they are made on its current stream.

    Raises
    ------
    RunnerError
        If an array given is unknown, of a wrong shape or dtype, or not contiguous and aligned, or
        a shape doesn't follow from N.
    """
    given = given or {}
    if unknown := sorted(given.keys() - {spec.name for spec in specs}):
        raise RunnerError(f"{name} has no output {', '.join(unknown)}", code="output-names")
    outputs = {}
    for spec in specs:
        sizes = tuple(size if isinstance(size, int) else free for size in spec.shape)
        if None in sizes:
            raise RunnerError(
                f"{name}: the shape {spec.shape} of {spec.name} can't be known from the inputs",
                code="output-shape-unknown",
            )
        array = given.get(spec.name)
        if array is None:
            array = cupy.empty(sizes, spec.dtype)
        elif (
            not isinstance(array, cupy.ndarray)
            or tuple(array.shape) != sizes
            or str(array.dtype) != spec.dtype
            or not array.flags.c_contiguous
            or not _aligned(array)
        ):
            raise RunnerError(
                f"{name}: the array given for {spec.name} is not a contiguous CuPy array of "
                f"{spec.dtype} {sizes} that begins at a multiple of "
                f"{_ENGINE_ALIGNMENT_BYTES} bytes",
                code="output-array-unusable",
            )
        outputs[spec.name] = array
    return outputs
