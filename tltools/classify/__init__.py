"""Classify images, one row per image: list, predict, write, resume.

`output_formats/` defines the columns of each format; `predict.Prediction` holds their values.
"""

from typing import TYPE_CHECKING

from tltools.lazy import lazy_names

if TYPE_CHECKING:
    from tltools.classify.inputs import list_images
    from tltools.classify.job import Job, Summary
    from tltools.classify.merge import Merged, merge_shards
    from tltools.classify.output_formats import OUTPUT_FORMATS, OutputFormat
    from tltools.classify.predict import Prediction, classify
    from tltools.classify.run import run_job
    from tltools.classify.shards import Shard
    from tltools.classify.writer import Output, check_output
    from tltools.data.image_ref import ImageRef
    from tltools.runtime import Plan, open_model

__all__ = [
    "OUTPUT_FORMATS",
    "ImageRef",
    "Job",
    "Merged",
    "Output",
    "OutputFormat",
    "Plan",
    "Prediction",
    "Shard",
    "Summary",
    "check_output",
    "classify",
    "list_images",
    "merge_shards",
    "open_model",
    "run_job",
]

# The command must fork before importing anything that starts threads, such as numpy.
__getattr__ = lazy_names(
    __name__,
    {
        "OUTPUT_FORMATS": "tltools.classify.output_formats",
        "Job": "tltools.classify.job",
        "Merged": "tltools.classify.merge",
        "Output": "tltools.classify.writer",
        "OutputFormat": "tltools.classify.output_formats",
        "ImageRef": "tltools.data.image_ref",
        "Plan": "tltools.runtime",
        "Prediction": "tltools.classify.predict",
        "Shard": "tltools.classify.shards",
        "Summary": "tltools.classify.job",
        "check_output": "tltools.classify.writer",
        "classify": "tltools.classify.predict",
        "list_images": "tltools.classify.inputs",
        "merge_shards": "tltools.classify.merge",
        "open_model": "tltools.runtime",
        "run_job": "tltools.classify.run",
    },
)
