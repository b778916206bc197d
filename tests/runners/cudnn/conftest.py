"""CuPy and cuDNN: themselves where there is a GPU."""

import pytest

from medals_rt.common import gpu
from medals_rt.runners.selection import installed


@pytest.fixture
def cupy():
    """CuPy, where it finds a GPU and cuDNN is installed."""
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    if gpu.find_gpu() is None or not module.is_available():
        pytest.skip("there is no CUDA GPU")
    if not installed("cudnn"):
        pytest.skip("cudnn is not installed")
    return module
