"""Episodes that the report shows, as MLflow's traces of a reproduction's run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openhorizon import artifacts
from openhorizon.agent.trajectory import iter_trajectories
from openhorizon.traces import Span, trace_of

SPAN_NS = 1_000_000  # between two spans of a trace, whose order alone means something


def trace(root: Path, uri: str, experiment: str, parent: str) -> None:
    """The first solved and the first unsolved of the episodes that the report shows of each domain, as traces of
    the reproduction's run; once a run."""
    import mlflow
    from mlflow.entities import AssessmentSource

    shown = artifacts.read_json(root / artifacts.REPORTS / "results.json").get("samples", {})
    wanted = {next(it["task"] for it in of if it["label"] == name) for of in shown.values() for name in _labels(of)}
    path = root / artifacts.stage_dir("evaluate", "student") / "trajectories.parquet"
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"  # its queue drops traces silently when it is full
    mlflow.set_tracking_uri(uri)
    once = {"locations": [experiment], "run_id": parent, "max_results": 1, "return_type": "list"}
    if not wanted or not path.is_file() or mlflow.search_traces(**once):
        return
    source = AssessmentSource(source_type="CODE", source_id="verifier")
    for found in (it for it in iter_trajectories(path) if it.task.id in wanted):
        told, began = trace_of(found, "student"), time.time_ns()
        kept = {"mlflow.sourceRun": parent}
        whole = _begun(told.episode, began, experiment_id=experiment, metadata=kept, tags=dict(told.tags))
        for i, step in enumerate(told.steps):
            _begun(step, began + i * SPAN_NS, parent_span=whole).end(end_time_ns=began + (i + 1) * SPAN_NS)
        whole.end(end_time_ns=began + (len(told.steps) + 1) * SPAN_NS)
        for name, (value, why) in told.verdict.items():
            mlflow.log_feedback(trace_id=whole.trace_id, name=name, value=value, rationale=why, source=source)


def _labels(samples: Iterable[Mapping[str, str]]) -> list[str]:
    """Of the report's samples of a domain, each once."""
    return list(dict.fromkeys(it["label"] for it in samples))


def _begun(span: Span, at_ns: int, **more: Any) -> Any:
    """MLflow's span of one of ours; it has ended but for its time."""
    import mlflow

    begun = mlflow.start_span_no_context(
        span.name, span.kind, inputs=span.inputs, attributes=dict(span.attributes), start_time_ns=at_ns, **more
    )
    begun.set_outputs(span.outputs)
    return begun
