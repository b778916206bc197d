"""Limits that commands name in their help; importing them costs nothing."""

from typing import Final

MAX_VOXELS: Final = 2**31
"""Largest volume accepted unless a caller says otherwise (an image of 1290 voxels a side)."""

CLASSES_PER_CHUNK: Final = 32
"""Classes that go through the classifier at once: bounds the memory of their probabilities."""
