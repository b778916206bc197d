"""Types that all folders share."""

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""A NumPy or CuPy array (in tests also an `array_api_strict` one)."""

Namespace: TypeAlias = Any
"""The functions that go with an `Array`: the module `numpy`, `cupy` or `array_api_strict`."""

Shape: TypeAlias = tuple[int, int, int]
"""Voxels along three axes."""

Spacing: TypeAlias = tuple[float, float, float]
"""Millimeters from one voxel to the next, along three axes."""

Box: TypeAlias = tuple[tuple[int, int, int], tuple[int, int, int]]
"""A box in voxels: the lowest index on each axis (inclusive) and the highest (exclusive)."""
