"""Turn a run into exports, each verified before it is kept."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tltools.export.export import ExportResult, export_run
    from tltools.export.settings import ExportSettings

__all__ = ["ExportResult", "ExportSettings", "export_run"]

_MODULES = {"ExportResult": "export", "ExportSettings": "settings", "export_run": "export"}


def __getattr__(name: str) -> Any:
    """Import a name on first use: importing PyTorch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
