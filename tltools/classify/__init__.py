"""Pictures in, one row of predictions out for each: listing, the pipeline and the writers."""

from tltools.classify.job import Summary, run_job
from tltools.classify.pictures import Picture, list_pictures
from tltools.classify.pipeline import Prediction, classify
from tltools.classify.writers import Output, check_output
from tltools.runtime import Plan, open_model

__all__ = [
    "Output",
    "Picture",
    "Plan",
    "Prediction",
    "Summary",
    "check_output",
    "classify",
    "list_pictures",
    "open_model",
    "run_job",
]
