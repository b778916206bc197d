"""A fake of CuPy: the rules of its arrays, kept by NumPy in host memory. It is no GPU.

It shows that array code obeys those rules and says nothing of kernels, streams or speed. What CuPy
refuses is refused: a NumPy array among its own, giving an array to NumPy without `get`, `set` from
another dtype or shape. What CuPy does otherwise than NumPy is done: reductions and single elements
are arrays, memory begins at multiples of 512 bytes and is not empty before it is written.

There are only the functions listed here, each of which CuPy has. `cupy.cuda` logs what is asked of
streams and runs it at once. Importing it needs `MEDALS_RT_FAKES=1`, which `tests.fakes` sets:
so it is never taken for CuPy by accident.
"""

import os
import re as _re
from pathlib import Path as _Path
from types import SimpleNamespace

import numpy as np

if os.environ.get("MEDALS_RT_FAKES") != "1":
    raise ImportError("this is a fake of CuPy, for tests only: take tests/fakes off the path")

# as CuPy does when it is imported
_Path(os.environ.get("CUPY_CACHE_DIR") or _Path.home() / ".cupy").mkdir(parents=True, exist_ok=True)

from . import _kernels, cuda
from ._arrays import _aligned, _card, _host, _host_items, _require, ndarray

__version__ = "14.2.0+fake"

_FROM_NUMPY = """
bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intp float16 float32 float64 complex64
complex128 dtype integer iinfo finfo isdtype issubdtype result_type broadcast_shapes e inf
nan newaxis pi
"""
# what the package and its tests use, and what array_api_compat looks for when it is imported
_FUNCTIONS = """
abs all any argsort array_equal broadcast_to clip concatenate count_nonzero cumsum diff exp floor
expand_dims flip isfinite isnan left_shift invert log log1p logical_and logical_not logical_or max
maximum mean min moveaxis nonzero ones_like power prod reshape right_shift round sin cos
sqrt squeeze stack sum swapaxes transpose unique where zeros_like
arccos arccosh arcsin arcsinh arctan arctan2 arctanh sign
matmul multiply tanh
"""


def _function(name):
    of_numpy = getattr(np, name)

    def call(*args, **kwargs):
        return _card(of_numpy(*_host(args), **_host_items(kwargs)))

    call.__name__ = name
    return call


globals().update({name: getattr(np, name) for name in _FROM_NUMPY.split()})
globals().update({name: _function(name) for name in _FUNCTIONS.split()})


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    return ndarray(_aligned(np.asarray(a, dtype)))


def array(obj, dtype=None, copy=True):
    return asarray(obj, dtype).copy() if copy else asarray(obj, dtype)


def ascontiguousarray(a):
    return _require(a) if a.flags.c_contiguous else a.copy()


def asfortranarray(a):
    return ndarray(np.asfortranarray(_require(a)._host))


def full(shape, fill_value, dtype=None):
    return ndarray(_aligned(np.full(shape, _host(fill_value), dtype)))


def empty(shape, dtype=float):
    return full(shape, 77, dtype)  # whatever was there before


def empty_like(a, dtype=None):
    return empty(_require(a).shape, dtype or a.dtype)


def zeros(shape, dtype=float):
    return full(shape, 0, dtype)


def ones(shape, dtype=float):
    return full(shape, 1, dtype)


def split(ary, indices_or_sections, axis=0):
    return [ndarray(each) for each in np.split(_require(ary)._host, indices_or_sections, axis)]


def arange(start, stop=None, step=1, dtype=None):
    first, last = (0, start) if stop is None else (start, stop)
    return ndarray(_aligned(np.arange(first, last, step, dtype)))


def take(a, indices, axis=None, out=None):
    if isinstance(indices, list | tuple):
        raise TypeError("indices must be an array of CuPy's or a number")
    return _card(np.take(_require(a)._host, _host(indices), axis, _host(out)))


_scheduler = np.random.default_rng()  # seeded by nothing: no two runs go the same way


def _shuffled(*arrays):
    """Put what threads of a GPU do in the order of one of its runs."""
    order = _scheduler.permutation(len(arrays[0]))
    return (each if each is None else each[order] for each in arrays)


def bincount(x, weights=None, minlength=None):
    """Add atomically: weights in any order."""
    numbers, weights = _shuffled(_require(x)._host, _host(weights))
    return ndarray(np.bincount(numbers, weights, minlength or 0))


class _Minimum:
    """The function, and its atomic form on dtypes that have one."""

    def __call__(self, *args, **kwargs):
        return _card(np.minimum(*_host(args), **_host_items(kwargs)))

    @staticmethod
    def at(a, indices, b):
        if a.dtype not in (np.int32, np.uint32, np.uint64, np.float32, np.float64):
            raise TypeError(f"minimum.at only supports 32 and 64 bits, not {a.dtype}")
        np.minimum.at(_require(a)._host, _host(indices), _require(b)._host)


minimum = _Minimum()


def asnumpy(a):
    return a.get()


def is_available():
    return True


class RawModule:
    """Kernels of `medals_rt.runners.cudnn.kernels`, in NumPy; their code is compiled nowhere."""

    def __init__(self, code, options):
        assert isinstance(options, tuple)
        self._code = code

    def get_function(self, name):
        assert _re.search(rf"\b{name}\(", self._code)
        compute = getattr(_kernels, name)

        def launch(grid, block, args):
            assert len(grid) == len(block) == 1
            assert all(isinstance(each, ndarray | np.generic) for each in args)
            cuda.get_current_stream().queue(lambda: compute(grid[0], *_host(tuple(args))))

        return launch


def get_default_memory_pool():
    return SimpleNamespace(free_bytes=lambda: 0)
