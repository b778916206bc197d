"""A fake of `nvidia-cudnn-frontend`: convolutions by NumPy at the addresses given.

What the library asks for is asked for: a graph is made ready in the documented order, shapes and
strides are given in full, a plan is built before it runs, and runs on the handle's stream.
`refused` is how many of the first plans can't be built; `handles` are those that are open.
"""

import ctypes
import os
from math import prod
from types import SimpleNamespace

import numpy as np

if os.environ.get("MEDALS_RT_FAKES") != "1":
    raise ImportError("this is a fake of cuDNN, for tests only: take tests/fakes off the path")

__version__ = "1.14.1+fake"
PLANS = 3
WORKSPACE_BYTES = 64

data_type = SimpleNamespace(HALF="half", FLOAT="float")
heur_mode = SimpleNamespace(A="A", B="B", FALLBACK="FALLBACK")
numerical_note = SimpleNamespace(NONDETERMINISTIC="nondeterministic")
handles: dict[int, int] = {}
refused = 0


def backend_version_string():
    return "9.19.0 (fake)"


def create_device_properties(device):
    return SimpleNamespace(serialize=lambda: f'{{"cudaDeviceId": {device}}}')


def create_handle():
    handles[1 + len(handles)] = 0
    return len(handles)


def destroy_handle(handle):
    del handles[handle]


def set_stream(handle, stream):
    handles[handle] = stream


class _Tensor:
    def __init__(self, dim=None, stride=None, data_type=None):
        self.dim, self.stride, self.data_type, self.output = dim, stride, data_type, False

    def set_output(self, output):
        self.output = output
        return self

    def set_data_type(self, kind):
        self.data_type = kind
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def at(self, address):
        """The array at an address, in the order of its axes."""
        assert self.data_type == data_type.HALF
        assert max(self.stride) * self.dim[0] == prod(self.dim)
        memory = (ctypes.c_uint16 * prod(self.dim)).from_address(address)
        flat = np.frombuffer(memory, np.float16)
        return np.lib.stride_tricks.as_strided(flat, self.dim, [2 * each for each in self.stride])


def _convolve(volume, weights, stride):
    padded = np.pad(volume, [(0, 0), *[(1, 1)] * 3])
    sizes = volume.shape[1:]
    found = np.zeros((weights.shape[0], *sizes), np.float32)
    for i, j, k in np.ndindex(3, 3, 3):
        part = padded[:, i : i + sizes[0], j : j + sizes[1], k : k + sizes[2]]
        found += np.tensordot(weights[:, :, i, j, k], part, 1)
    return found[:, *(slice(None, None, step) for step in stride)]


def _go_back(volume, weights, stride):
    sizes = [size * step for size, step in zip(volume.shape[1:], stride, strict=True)]
    found = np.zeros((weights.shape[1], *sizes), np.float32)
    for i, j, k in np.ndindex(2, 2, 2):
        found[:, i::2, j::2, k::2] = np.tensordot(weights[:, :, i, j, k].T, volume, 1)
    return found


class pygraph:  # noqa: N801 - the library's name
    def __init__(self, handle, io_data_type, intermediate_data_type, compute_data_type):
        assert handle in handles
        assert io_data_type == data_type.HALF
        assert intermediate_data_type == compute_data_type == data_type.FLOAT
        self._steps, self._built, self._operation = [], set(), None

    def tensor(self, name, dim, stride, data_type):
        assert name
        assert len(dim) == len(stride) == 5
        return _Tensor(dim, stride, data_type)

    def conv_fprop(self, image, weight, padding, stride, dilation, compute_data_type):
        assert compute_data_type == data_type.FLOAT
        assert padding == dilation == [1, 1, 1]
        assert image.dim[1] == weight.dim[1]
        result = _Tensor()
        self._operation = (image, weight, result, stride)
        self._compute = _convolve
        return result

    def conv_dgrad(self, loss, filter, padding, stride, dilation, compute_data_type):  # noqa: A002
        assert compute_data_type == data_type.FLOAT
        assert (padding, stride, dilation) == ([0] * 3, [2] * 3, [1] * 3)
        assert loss.dim[1] == filter.dim[0]
        assert filter.dim[2:] == [2, 2, 2]
        result = _Tensor()
        self._operation = (loss, filter, result, stride)
        self._compute = _go_back
        return result

    def validate(self):
        image, weight, result, stride = self._operation
        assert result.output
        pairs = list(zip(image.dim[2:], stride, strict=True))
        if self._compute is _go_back:
            assert result.dim == [1, weight.dim[1], *(size * step for size, step in pairs)]
        else:
            assert result.dim == [
                1,
                weight.dim[0],
                *((size - 1) // step + 1 for size, step in pairs),
            ]
        self._step("validate", 0)

    def build_operation_graph(self):
        self._step("build_operation_graph", 1)

    def create_execution_plans(self, modes):
        assert set(modes) <= {"A", "B", "FALLBACK"}
        self._step("create_execution_plans", 2)

    def deselect_numeric_notes(self, notes):
        assert notes == [numerical_note.NONDETERMINISTIC]
        self._step("deselect_numeric_notes", 3)

    def check_support(self):
        self._step("check_support", 4)

    def _step(self, name, number):
        assert len(self._steps) == number, f"{name} after {self._steps}"
        self._steps.append(name)

    def get_execution_plan_count(self):
        return PLANS

    def build_plan_at_index(self, index):
        assert self._steps[-1] == "check_support"
        if index < refused:
            raise RuntimeError("this plan is not supported here")
        self._built.add(index)

    def get_workspace_size_plan_at_index(self, index):
        assert index in self._built
        return WORKSPACE_BYTES

    def get_plan_name_at_index(self, index):
        return f"fake{index}"

    def execute_plan_at_index(self, places, workspace, index, handle):
        from cupy import cuda

        assert index in self._built
        assert workspace
        image, weight, result, stride = self._operation

        def work():
            volume, weights = (each.at(places[each]).astype(np.float32) for each in (image, weight))
            result.at(places[result])[0] = self._compute(volume[0], weights, stride)

        cuda.streams[handles[handle]].queue(work)
