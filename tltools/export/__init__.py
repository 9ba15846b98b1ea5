"""Turn a run into exports, each verified before it is kept."""

from typing import TYPE_CHECKING

from tltools.lazy import lazy_names

if TYPE_CHECKING:
    from tltools.export.export import ExportResult, export_run
    from tltools.export.settings import ExportSettings

__all__ = ["ExportResult", "ExportSettings", "export_run"]

# Importing PyTorch takes seconds.
__getattr__ = lazy_names(
    __name__,
    {
        "ExportResult": "tltools.export.export",
        "ExportSettings": "tltools.export.settings",
        "export_run": "tltools.export.export",
    },
)
