"""A fake of ONNX Runtime with CUDA: the CPU computes, on the addresses that are bound."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Binding:
    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", 0)
        self.inputs[name] = (element_type, shape, buffer_ptr)

    def bind_output(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", 0)
        self.outputs[name] = (element_type, shape, buffer_ptr)


def make_library(cuda):
    """Make the module; `cuda` is the fake's `cupy.cuda`, on whose streams it runs.

    It keeps the last `options`, `providers`, `binding` and `run_options`. Tests set what is
    `available`, what a session has `taken`, and a `failure`.
    """

    class Session:
        def __init__(self, path, options, providers):
            ((_, settings),) = providers
            assert all(isinstance(value, str) for value in settings.values())
            library.options, library.providers = options, providers
            self._session = onnxruntime.InferenceSession(path, providers=[CPU])
            self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
            self._stream = int(settings["user_compute_stream"])

        def get_providers(self):
            return library.taken

        def io_binding(self):
            return Binding()

        def run_with_iobinding(self, binding, run_options):
            library.binding, library.run_options = binding, run_options
            if library.failure:
                raise RuntimeError(library.failure)
            feeds = {name: _at(*place) for name, place in binding.inputs.items()}

            def work():
                found = self._session.run(list(binding.outputs), feeds)
                for place, array in zip(binding.outputs.values(), found, strict=True):
                    _at(*place)[...] = array

            cuda.streams[self._stream].queue(work)

    def open_session(path, options, providers):
        kind = onnxruntime.InferenceSession if providers == [CPU] else Session
        return kind(path, options, providers=providers)

    library = SimpleNamespace(
        __version__="1.26.0",
        InferenceSession=open_session,
        SessionOptions=onnxruntime.SessionOptions,
        RunOptions=onnxruntime.RunOptions,
        get_available_providers=lambda: library.available,
        available=[CUDA, CPU],
        taken=[CUDA, CPU],
        failure="",
        preload_dlls=lambda: sys.stdout.write("Failed to load libcudnn.so.9"),
    )
    return library


def _at(dtype, shape, address):
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
