"""Set exports up for serving: a model repository for Triton, the makings of a slim image."""

from tltools.layouts.layout import Laid, Layout, lay_out

__all__ = ["Laid", "Layout", "lay_out"]
