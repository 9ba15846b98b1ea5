"""Turn a run into exports that are verified or do not exist."""

from tltools.export.export import ExportResult, export_run

__all__ = ["ExportResult", "export_run"]
