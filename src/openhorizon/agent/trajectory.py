"""What an episode leaves behind: turns, answer, status. The one type that every later stage reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from openhorizon.domains.base import Task, Verdict


class Status(StrEnum):
    """How an episode ended. TRUNCATED (a budget ran out) is kept as a valid prefix; ABORTED (the system failed, not
    the policy) is retried and never trained on (recipe stage 3)."""

    SOLVED = "SOLVED"
    FAILED = "FAILED"
    TRUNCATED = "TRUNCATED"
    ABORTED = "ABORTED"


@dataclass(frozen=True)
class Turn:
    """One message. ``ids`` are the token ids exactly as generated (assistant) or as fed (others): text is never
    re-tokenised. ``logprobs`` has one entry an id for turns a policy sampled, else it is empty."""

    role: Literal["prompt", "assistant", "tool"]
    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    evidence: tuple[str, ...] = ()
    error: bool = False


@dataclass(frozen=True)
class Trajectory:
    """A task's episode. It carries its own domain, status and loss mask: there are no parallel lists."""

    task: Task
    turns: tuple[Turn, ...]
    answer: str | None
    status: Status
    verdict: Verdict
    policy: str  # "expert" or a checkpoint's hash
    seed: int

    @property
    def ids(self) -> list[int]:
        return [token for turn in self.turns for token in turn.ids]

    @property
    def loss_mask(self) -> list[bool]:
        """True on tokens that the policy produced (its end-of-turn token included); aligned with ``ids``."""
        return [turn.role == "assistant" for turn in self.turns for _ in turn.ids]

    @property
    def logprobs(self) -> list[float]:
        """Sampling log-probabilities aligned with ``ids``; 0.0 on tokens that were not sampled."""
        return [turn.logprobs[i] if turn.logprobs else 0.0 for turn in self.turns for i in range(len(turn.ids))]

    @property
    def tool_calls(self) -> int:
        return sum(turn.role == "tool" for turn in self.turns)


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """One row a trajectory: flat columns to query, and the turns as JSON. An empty list makes an empty table."""
    rows = [_to_row(trajectory) for trajectory in trajectories]
    pq.write_table(pa.Table.from_pylist(rows, schema=_TRAJECTORY_SCHEMA), path, compression="zstd")


def read_trajectories(path: Path) -> list[Trajectory]:
    """Raises ``ValueError`` with the path where the file is missing, truncated or of another schema."""
    return [_from_row(row) for row in _read(path, _TRAJECTORY_SCHEMA)]


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """One row a task."""
    pq.write_table(
        pa.Table.from_pylist(
            [
                {"task": _task_json(task), "domain": task.domain, "id": task.id, "horizon": task.horizon}
                for task in tasks
            ],
            schema=_TASK_SCHEMA,
        ),
        path,
        compression="zstd",
    )


def read_tasks(path: Path) -> list[Task]:
    """Raises ``ValueError`` with the path where the file is missing, truncated or of another schema."""
    return [_task(row["task"]) for row in _read(path, _TASK_SCHEMA)]


_TASK_SCHEMA = pa.schema([("task", pa.string()), ("domain", pa.string()), ("id", pa.string()), ("horizon", pa.int32())])
_TRAJECTORY_SCHEMA = pa.schema(
    [
        *_TASK_SCHEMA,
        ("turns", pa.string()),
        ("answer", pa.string()),
        ("status", pa.string()),
        ("passed", pa.bool_()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("rubric", pa.string()),
        ("policy", pa.string()),
        ("seed", pa.int64()),
        ("tool_calls", pa.int32()),
        ("tokens", pa.int32()),
    ]
)


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: missing or damaged ({str(error).splitlines()[0]}); run its stage again") from error
    if table.schema.names != schema.names:
        raise ValueError(f"{path}: columns {table.schema.names}, expected {schema.names}; run its stage again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _task_json(task: Task) -> str:
    return json.dumps(asdict(task), ensure_ascii=False, sort_keys=True)


def _task(text: str) -> Task:
    value = json.loads(text)
    for key in ("evidence", "verifiers"):
        value[key] = tuple(value[key])
    value["entity_pairs"] = tuple((a, b) for a, b in value["entity_pairs"])
    return Task(**value)


def _to_row(trajectory: Trajectory) -> dict[str, Any]:
    task, verdict = trajectory.task, trajectory.verdict
    return {
        "task": _task_json(task),
        "domain": task.domain,
        "id": task.id,
        "horizon": task.horizon,
        "turns": json.dumps([asdict(turn) for turn in trajectory.turns], ensure_ascii=False),
        "answer": trajectory.answer,
        "status": trajectory.status.value,
        "passed": verdict.passed,
        "score": verdict.score,
        "reason": verdict.reason,
        "rubric": json.dumps(dict(verdict.rubric), sort_keys=True),
        "policy": trajectory.policy,
        "seed": trajectory.seed,
        "tool_calls": trajectory.tool_calls,
        "tokens": len(trajectory.ids),
    }


def _from_row(row: dict[str, Any]) -> Trajectory:
    turns = tuple(
        Turn(
            turn["role"],
            turn["text"],
            tuple(turn["ids"]),
            tuple(turn["logprobs"]),
            tuple(turn["evidence"]),
            turn["error"],
        )
        for turn in json.loads(row["turns"])
    )
    verdict = Verdict(row["passed"], row["score"], row["reason"], json.loads(row["rubric"]))
    status = Status(row["status"])
    return Trajectory(_task(row["task"]), turns, row["answer"], status, verdict, row["policy"], row["seed"])
