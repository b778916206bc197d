"""CuPy where cuDNN is there, too."""

import pytest

from medals_rt.runners.selection import installed


@pytest.fixture
def cupy(cupy):
    """CuPy, where it finds a GPU and cuDNN is installed."""
    if not installed("cudnn"):
        pytest.skip("cudnn is not installed")
    return cupy
