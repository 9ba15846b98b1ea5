"""Run classify, evaluate and train on a Ray cluster.

`engine.run_ray_job` classifies and writes a data set in parts; `models.RayCluster` runs images
through a model for evaluation and feature extraction. Ray is an optional dependency, imported when
it is used.
"""
