"""The network, its windows, and the coarse-to-fine cascade."""
