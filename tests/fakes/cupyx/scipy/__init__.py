"""What of SciPy CuPy has; see `ndimage`."""
