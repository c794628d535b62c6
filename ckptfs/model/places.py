"""Where a job finds its checkpoints, and the variables that say so: what the trainML service promises its
jobs, under the name that it has had since too."""

from __future__ import annotations

JOB_PATH = "/opt/trainml/checkpoint"
JOB_PATH_ALIAS = "/opt/ml/checkpoint"  # the same files again

PATH_VARIABLE = "TRAINML_CHECKPOINT_PATH"
PATH_VARIABLE_ALIAS = "ML_CHECKPOINT_PATH"
