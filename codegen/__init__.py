"""The normgate generator: specs in, CUDA sources, dispatch tables and their library out."""

__version__ = "0.1.0"
