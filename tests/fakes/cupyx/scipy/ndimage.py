"""Numbering of components, as CuPy's takes it: masks and their structure, no other options."""

import cupy
from scipy import ndimage


def label(input, structure=None):  # noqa: A002 - CuPy's name
    numbers, count = ndimage.label(input._host, structure)
    return cupy.asarray(numbers), count
