"""Prepare exports for use: a short program, a Triton model repository or a Docker context."""

from tltools.layouts.layout import FORMAT, Laid, Layout, lay_out

__all__ = ["FORMAT", "Laid", "Layout", "lay_out"]
