"""What runners on a GPU share: CuPy's arrays, one stream, and the order of work on it.

Untried on a GPU; the tests run it on a fake of CuPy that keeps arrays in host memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from medals_rt.common.errors import RunnerError
from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec

_ALIGNMENT_BYTES = 256
"""Where arrays must begin that TensorRT reads or writes; CuPy's pool takes multiples of 512."""


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


def device_inputs(cupy: Any, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return inputs as contiguous, aligned CuPy arrays: themselves, or for views copies.

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
    contiguous = {key: cupy.ascontiguousarray(array) for key, array in feeds.items()}
    return {key: array if _aligned(array) else array.copy() for key, array in contiguous.items()}


def _aligned(array: Any) -> bool:
    return int(array.data.ptr) % _ALIGNMENT_BYTES == 0


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
                f"{spec.dtype} {sizes} that begins at a multiple of {_ALIGNMENT_BYTES} bytes",
                code="output-array-unusable",
            )
        outputs[spec.name] = array
    return outputs
