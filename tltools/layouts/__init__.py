"""Set exports up for serving: a model repository for Triton, the makings of a slim image."""

from tltools.layouts.layout import FORMAT, Laid, Layout, lay_out

__all__ = ["FORMAT", "Laid", "Layout", "lay_out"]
