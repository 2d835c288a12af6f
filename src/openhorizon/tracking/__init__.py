"""What a run records: curves, timings, parameters, where it came from. The only place that imports mlflow.

One MLflow run a reproduction (the parent) and, below it, one a stage. A stage appends what it records to a file of its
own (``record.py``); the flow's process carries all of them to MLflow while it waits (``carry.py``; under plain ``dvc
repro`` each stage does so itself, at its end). So a stage neither pays for importing mlflow nor ends when tracking
fails: that is said once. Timings stay out of what DVC compares, so that two runs of a stage write the same bytes.
"""

from openhorizon.tracking.carry import publish, reproduction, settle
from openhorizon.tracking.record import PARENT_VARIABLE, RECORDS, TIMINGS, UNTRACKED, StageLog, peak_rss_mb
from openhorizon.tracking.store import DATABASE, EXPERIMENT, Store, success

__all__ = [
    "DATABASE",
    "EXPERIMENT",
    "PARENT_VARIABLE",
    "RECORDS",
    "TIMINGS",
    "UNTRACKED",
    "StageLog",
    "Store",
    "peak_rss_mb",
    "publish",
    "reproduction",
    "settle",
    "success",
]
