"""Scans and label maps in files: one module a format, one registry."""
