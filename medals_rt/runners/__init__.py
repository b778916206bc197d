"""Inference libraries behind one protocol, one file each; none is imported before it is chosen."""
