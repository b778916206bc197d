"""Scores of segmentations: DSC, NSD, F1."""
