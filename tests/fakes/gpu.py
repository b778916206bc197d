"""A whole process on the fakes: a GPU is found, and ONNX Runtime is one with CUDA.

For children that were given `tests.fakes.environment()`: a pytest takes it as a plugin
(``-p tests.fakes.gpu``), other code calls `put_in`. The process ends with it.
"""

import sys

import cupy

from medals_rt.common import gpu
from medals_rt.runners import onnxruntime as module
from medals_rt.runners import selection
from tests.fakes import GPU
from tests.fakes.onnxruntime_cuda import make_library


def put_in():
    """Have the driver, ONNX Runtime and its package be found as on a machine with a GPU."""
    assert "fake" in cupy.__version__, "needs tests.fakes.environment()"
    library, distribution = make_library(cupy.cuda), selection.distribution
    sys.modules["cucim"] = None  # where it is installed, it takes the real CuPy's arrays
    gpu.find_gpu = lambda: GPU
    module.import_onnxruntime = lambda: library
    selection.distribution = lambda name: name if name == "onnxruntime-gpu" else distribution(name)


def pytest_configure():
    put_in()
