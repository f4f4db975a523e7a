"""Tensor operations of a decoder behind one port."""

from forebay.kernels.port import HeadShape, Kernels, RopeRows, Span

__all__ = ["HeadShape", "Kernels", "RopeRows", "Span"]
