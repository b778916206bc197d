"""What several tests share: reference figures, and the array libraries that array code is held to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference figures computed with the authors' released code."""
    return Path(__file__).parent / "golden"


@pytest.fixture(params=["numpy", "array_api_strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    """Each array library in turn; CuPy where there is a card."""
    if request.param == "numpy":
        return np
    if request.param == "array_api_strict":
        return array_api_strict
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    import cupy

    if not cupy.is_available():
        pytest.skip("CuPy finds no CUDA card")
    import array_api_compat.cupy

    return array_api_compat.cupy
