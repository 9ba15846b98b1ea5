"""Work on a Ray cluster: `--engine ray` of classify, evaluate and train.

`engine.run_ray_job` classifies into a data set in parts; `models.RayCluster` runs images through a
model for evaluations and features. Ray is an extra, and imported when it is asked for.
"""
