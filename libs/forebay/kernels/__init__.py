"""Tensor operations of a decoder: `port.py` and its torch implementation, and the whole native step in `cpu/`."""
