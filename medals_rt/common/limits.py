"""Limits that commands name in their help; importing them costs nothing."""

from typing import Final

MAX_PROMPTS: Final = 256
"""Most classes of one case: what graphs are exported for; a bundle says how many its own take."""

MAX_VOXELS: Final = 2**31
"""Largest volume accepted unless a caller says otherwise (an image of 1290 voxels a side)."""

MAX_MESH_REDUCTION: Final = 0.99
"""Largest share of a surface's faces that may be left out."""

CLASSES_PER_CHUNK: Final = 32
"""Classes that go through the classifier at once: bounds the memory of their probabilities."""
