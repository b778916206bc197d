"""Convolutional graphs on a GPU: cuDNN convolves with the channels last, CuPy does the rest."""
