"""One model that OpenVINO compiled for the CPU, or opened as an earlier process compiled it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medals_rt.common.interruption import run_interruptibly
from medals_rt.common.typing import Array
from medals_rt.runners.base import TensorSpec
from medals_rt.runners.openvino_cache import compiled_file, keep_compiled, made_again, open_kept
from medals_rt.runners.openvino_graphs import import_openvino, port_name, shared_core

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "uint16",  # its bits: NumPy has no such type
    "i64": "int64",
    "i32": "int32",
    "boolean": "bool",
}


class CompiledModel:
    """A compiled model. Each run is a request of its own, so its results are the caller's own.

    Parameters
    ----------
    make
        Makes the model, where no compiled form of it is kept.
    config
        What the CPU plugin is told.
    key
        All that decides whether a kept form fits; None to keep none.

    Attributes
    ----------
    inputs, outputs
        What goes in and comes out.
    threads
        How many it computes with.
    notes
        What could not be kept.

    Raises
    ------
    RuntimeError
        OpenVINO's, if it refuses the model or a run.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        config: Mapping[str, Any],
        key: Sequence[object] | None,
    ) -> None:
        self._library = import_openvino()
        self._mapped: Any = None
        self.notes: tuple[str, ...] = ()
        core = shared_core()
        kept: Path | None = None
        self._compiled: Any = None
        if key is not None:
            kept, self.notes = compiled_file(key)
        if kept is not None:
            self._compiled = self._reopened(core, kept, config)
        if self._compiled is None:
            self._compiled = core.compile_model(make(), "CPU", config)
            if kept is not None:
                self.notes += keep_compiled(kept, self._compiled.export_model)
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        self.inputs = _specs(self._compiled.inputs)
        self.outputs = _specs(self._compiled.outputs)
        ports = (*self._compiled.inputs, *self._compiled.outputs)
        self._types = {port_name(port): port.get_element_type() for port in ports}

    def run(
        self, feeds: Mapping[str, Array], into: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, Array]:
        """Compute all outputs from all inputs, by name; some into memory that is given."""
        results: dict[str, Array] = {}
        request = self._compiled.create_infer_request()
        for spec in self.outputs:
            shape = tuple(size for size in spec.shape if isinstance(size, int))
            if into is not None and spec.name in into:
                results[spec.name] = into[spec.name]
            elif len(shape) == len(spec.shape):
                results[spec.name] = np.empty(shape, spec.dtype)
            if spec.name in results:
                request.set_tensor(spec.name, self._tensor(spec.name, results[spec.name]))
        inputs = {
            name: self._tensor(name, np.ascontiguousarray(value)) for name, value in feeds.items()
        }

        def wait(seconds: float | None) -> bool:
            if seconds is not None and not request.wait_for(int(1000 * seconds)):
                return False
            request.wait()  # for its error, if there is one
            return True

        run_interruptibly(
            lambda: request.start_async(inputs, share_inputs=True), wait, request.cancel
        )
        # an output of free size that is set would be written elsewhere first, and then copied
        for spec in self.outputs:
            if spec.name not in results:
                results[spec.name] = request.get_tensor(spec.name).data
        return results

    def release(self) -> None:
        """Return the memory that the library keeps between runs; the next run takes it again."""
        self._compiled.release_memory()

    def close(self) -> None:
        """Let go of the compiled model."""
        self._compiled = None
        self._mapped = None

    def _reopened(self, core: Any, kept: Path, config: Mapping[str, Any]) -> Any | None:
        """Open a compiled form that an earlier process left; None where there is none that fits.

        The library reads weights from the mapped file whenever it runs, so the mapping lives as
        long as the model.
        """
        content, self.notes = open_kept(kept)
        if content is None:
            return None
        try:
            tensor = self._library.Tensor(content, shared_memory=True)
            compiled = core.import_model(tensor, "CPU", config)
        except (ValueError, RuntimeError) as error:
            self.notes = made_again(error)
            return None
        self._mapped = tensor, content
        return compiled

    def _tensor(self, name: str, array: Array) -> Any:
        """Return the library's view of an array, in the type of an input or output."""
        return self._library.Tensor(array, self._library.Shape(array.shape), self._types[name])


def _specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            port_name(port),
            tuple(
                axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()
            ),
            _DTYPES.get(
                port.get_element_type().get_type_name(), port.get_element_type().get_type_name()
            ),
        )
        for port in ports
    )
