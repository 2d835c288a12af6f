"""What a benchmark leaves behind: one record a task and model.

An ABORTED episode has ``success`` None: the system failed, not the policy, so it is neither a failure nor left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openhorizon.agent.trajectory import Status, Trajectory


@dataclass(frozen=True)
class Record:
    """One task's outcome with one model. ``seed`` is the run's, not the episode's."""

    task: str
    domain: str
    horizon: int
    seed: int
    model: str
    status: Status
    success: bool | None
    score: float
    reason: str
    tool_calls: int
    first_failing_turn: int | None
    tokens: int  # that the policy generated
    answer: str | None


def record_of(trajectory: Trajectory, model: str, seed: int) -> Record:
    """The record of a finished episode."""
    task, status = trajectory.task, trajectory.status
    return Record(
        task=task.id,
        domain=task.domain,
        horizon=task.horizon,
        seed=seed,
        model=model,
        status=status,
        success=None if status is Status.ABORTED else status is Status.SOLVED,
        score=trajectory.verdict.score,
        reason=trajectory.verdict.reason,
        tool_calls=trajectory.tool_calls,
        first_failing_turn=first_failing_turn(trajectory),
        tokens=trajectory.written,
        answer=trajectory.answer,
    )


def first_failing_turn(trajectory: Trajectory) -> int | None:
    """The policy's turn (from 1) behind the last one that made progress; None where the episode was solved.

    Progress is an observation that is no error and shows a required piece of evidence for the first time; where the
    task requires none, any observation that is no error. A cliff to turn 1 past the training horizons is a sign of a
    bad prompt, not of a weak model (findings).
    """
    if trajectory.status is Status.SOLVED:
        return None
    required, missing = bool(trajectory.task.evidence), set(trajectory.task.evidence)
    turn, progressed = 0, 0
    for item in trajectory.turns:
        if item.role == "assistant":
            turn += 1
        elif item.role == "tool" and not item.error and (not required or missing & set(item.evidence)):
            missing -= set(item.evidence)
            progressed = turn
    return min(progressed + 1, max(turn, 1))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One row a record."""
    rows = [asdict(record) | {"status": record.status.value} for record in records]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, compression="zstd")


def read_records(path: Path) -> list[Record]:
    """Raises ``ValueError`` with the path where the file is missing, truncated or of another schema."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: missing or damaged ({str(error).splitlines()[0]}); run its stage again") from error
    if not table.schema.equals(_SCHEMA):
        raise ValueError(f"{path}: columns {table.schema.names}, expected {_SCHEMA.names}; run its stage again")
    return [Record(**row | {"status": Status(row["status"])}) for row in table.to_pylist()]


_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("domain", pa.string()),
        ("horizon", pa.int32()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("status", pa.string()),
        ("success", pa.bool_()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("tool_calls", pa.int32()),
        ("first_failing_turn", pa.int32()),
        ("tokens", pa.int32()),
        ("answer", pa.string()),
    ]
)
