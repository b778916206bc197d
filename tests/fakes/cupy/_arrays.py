"""The array: it mixes with its own kind and with numbers, and with nothing else."""

from types import SimpleNamespace

import numpy as np

from . import cuda

ALIGNMENT_BYTES = 512


class ndarray:  # noqa: N801 - CuPy's name
    """An array that mixes with its own kind and with numbers only."""

    __array_ufunc__ = None  # NumPy's operators leave the work, and the refusal, to those below
    __hash__ = None

    def __init__(self, host):
        self._host = host

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: ndarray(self._host.T))
    device = property(lambda self: cuda.Device(0))  # noqa: ARG005
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed: use .get()")

    def get(self, stream=None, order="C", out=None, blocking=True):  # noqa: ARG002
        if out is None:
            return np.array(self._host, order=order)
        _require_host_like(self, out)
        out[...] = self._host
        return out

    def set(self, arr, stream=None):  # noqa: ARG002
        _require_host_like(self, arr)
        if not self.flags.c_contiguous:
            raise RuntimeError("cannot set to a non-contiguous array")
        self._host[...] = arr

    def copy(self):
        return ndarray(_aligned(self._host))

    def fill(self, value):
        self._host.fill(_host(value))

    def astype(self, dtype, copy=True):
        same = self._host.dtype == dtype and not copy
        return self if same else ndarray(_aligned(self._host.astype(dtype)))

    def tolist(self):
        return self._host.tolist()

    def item(self):
        return self._host.item()

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __index__(self):
        return self._host.__index__()

    def __getitem__(self, key):
        return _card(self._host[_index(key)])

    def __setitem__(self, key, value):
        self._host[_index(key)] = _host(value)


def _require_host_like(array, host):
    if type(host) is not np.ndarray or (host.dtype, host.shape) != (array.dtype, array.shape):
        raise TypeError(f"needs a NumPy array of {array.dtype} {array.shape}")


def _host(value):
    """What NumPy is to compute with; a NumPy array among the arguments is refused."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(_host(each) for each in value)
    return value


def _index(key):
    return _host(key if isinstance(key, tuple) else (key,))


def _card(found):
    """Make arrays of what NumPy gave, of single values too."""
    if isinstance(found, np.ndarray | np.generic):
        return ndarray(np.asarray(found))
    if isinstance(found, list | tuple):
        return type(found)(_card(each) for each in found)
    return found


def _aligned(host):
    """Copy to memory that begins where CuPy's does."""
    memory = np.empty(host.size * host.itemsize + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    array = memory[start : start + host.nbytes].view(host.dtype).reshape(host.shape)
    array[...] = host
    return array


def _operator(name):
    def operate(self, other):
        if not isinstance(other, ndarray | np.generic | bool | int | float | complex):
            raise TypeError(f"Unsupported type {type(other)}")
        found = getattr(self._host, name)(_host(other))
        return self if found is self._host else _card(found)

    return operate


def _method(name):
    def call(self, *args, **kwargs):
        return _card(getattr(self._host, name)(*_host(args), **_host_items(kwargs)))

    return call


def _host_items(kwargs):
    return {key: _host(value) for key, value in kwargs.items()}


def _require(value):
    if not isinstance(value, ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


_BINARY = "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul"
_COMPARED = "lt le gt ge eq ne"
_ALONE = "__neg__ __invert__ __abs__ __pos__"
_METHODS = (
    "reshape ravel transpose squeeze view take sum any all max min mean argmax argsort nonzero"
)
for _name in _BINARY.split():
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in _COMPARED.split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in (*_ALONE.split(), *_METHODS.split()):
    setattr(ndarray, _name, _method(_name))
