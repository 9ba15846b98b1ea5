"""Prepare exports for serving: a Triton model repository, or a Docker build context."""

from tltools.layouts.layout import FORMAT, Laid, Layout, lay_out

__all__ = ["FORMAT", "Laid", "Layout", "lay_out"]
