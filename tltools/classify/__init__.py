"""Pictures in, one row of predictions out for each: listing, the pipeline and the writers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tltools.classify.job import Summary, run_job
    from tltools.classify.merge import Merged, merge_shards
    from tltools.classify.pictures import list_pictures
    from tltools.classify.pipeline import Prediction, classify
    from tltools.classify.ray_engine import run_ray_job
    from tltools.classify.shards import Shard
    from tltools.classify.writers import Output, check_output
    from tltools.data.image_ref import ImageRef
    from tltools.runtime import Plan, open_model

__all__ = [
    "ImageRef",
    "Merged",
    "Output",
    "Plan",
    "Prediction",
    "Shard",
    "Summary",
    "check_output",
    "classify",
    "list_pictures",
    "merge_shards",
    "open_model",
    "run_job",
    "run_ray_job",
]

_MODULES = {
    "Merged": "tltools.classify.merge",
    "Output": "tltools.classify.writers",
    "ImageRef": "tltools.data.image_ref",
    "Plan": "tltools.runtime",
    "Prediction": "tltools.classify.pipeline",
    "Shard": "tltools.classify.shards",
    "Summary": "tltools.classify.job",
    "check_output": "tltools.classify.writers",
    "classify": "tltools.classify.pipeline",
    "list_pictures": "tltools.classify.pictures",
    "merge_shards": "tltools.classify.merge",
    "open_model": "tltools.runtime",
    "run_job": "tltools.classify.job",
    "run_ray_job": "tltools.classify.ray_engine",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and not before.

    The command has to divide its process before anything is imported that starts threads, as numpy
    does.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
