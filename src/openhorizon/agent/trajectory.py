"""What an episode leaves behind: turns, answer, status. The one type that every later stage reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from openhorizon.domains.base import Task, Verdict

GROUP_ROWS = 500
GROUP_CHARS = 8_000_000
ROLES = ("prompt", "assistant", "tool")
Read = TypeVar("Read")


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
    re-tokenised. ``logprobs`` has one entry an id for turns a policy sampled, else it is empty. ``experts`` is what the
    policy's routers chose at each id, int16 of shape (ids, layers, experts a token), -1 where an id was never read;
    only where training replays it, and never on disk: it serves the updates right behind its rollout. ``written``
    is the number of tokens of an assistant turn whose ids are not known, as the server that wrote it counted them."""

    role: Literal["prompt", "assistant", "tool"]
    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    evidence: tuple[str, ...] = ()
    error: bool = False
    experts: npt.NDArray[np.int16] | None = field(default=None, compare=False, repr=False)
    written: int = 0


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
    def contexts(self) -> tuple[Trajectory, ...]:
        """The episode once for each context it was lived in: each begins with a prompt, and where the first was full a
        later one has the memory of what came before (``agent/compaction.py``). These are what a model is trained on;
        mostly it is the trajectory alone."""
        starts = [i for i, turn in enumerate(self.turns) if turn.role == "prompt"]
        if len(starts) <= 1:
            return (self,)
        ends = [*starts[1:], len(self.turns)]
        return tuple(replace(self, turns=self.turns[a:b]) for a, b in zip(starts, ends, strict=True))

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
    def experts(self) -> npt.NDArray[np.int16] | None:
        """What the routers chose, aligned with ``ids``: (ids, layers, experts a token); None where nobody recorded."""
        known = next((turn.experts for turn in self.turns if turn.experts is not None), None)
        if known is None:
            return None
        unknown = [np.full((len(turn.ids), *known.shape[1:]), -1, np.int16) for turn in self.turns]
        return np.concatenate([u if t.experts is None else t.experts for t, u in zip(self.turns, unknown, strict=True)])

    def with_experts(self, contexts: Sequence[npt.NDArray[np.int16]]) -> Trajectory:
        """The same with what was recorded in each of its contexts, for the ids that were read there (a policy never
        reads the last that it writes)."""
        turns = list[Turn]()
        for context, experts in zip(self.contexts, contexts, strict=True):
            at = 0
            for turn in context.turns:
                own = np.full((len(turn.ids), *experts.shape[1:]), -1, np.int16)
                found = experts[at : at + len(own)]
                own[: len(found)] = found
                at += len(own)
                turns.append(replace(turn, experts=own))
        return replace(self, turns=tuple(turns))

    @property
    def written(self) -> int:
        """Tokens that the policy produced, whether their ids are known or only their number."""
        return sum(len(turn.ids) or turn.written for turn in self.turns if turn.role == "assistant")

    @property
    def tool_calls(self) -> int:
        return sum(turn.role == "tool" for turn in self.turns)


class Writer:
    """A table written row group by row group, so that no more than one group is held in memory. A context manager.

    A group ends after ``GROUP_ROWS`` rows or ``GROUP_CHARS`` characters: the bytes depend on the rows alone.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._rows: list[dict[str, Any]] = []
        self._chars = 0

    def __enter__(self) -> Self:
        self._file = pq.ParquetWriter(self.path, self.schema, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def add_row(self, row: dict[str, Any]) -> None:
        """One row as ``read_rows`` gives it."""
        self._rows.append(row)
        self._chars += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self._rows) >= GROUP_ROWS or self._chars >= GROUP_CHARS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self.schema))
            self._rows, self._chars = [], 0


class TrajectoryWriter(Writer):
    """One row a trajectory: flat columns to query, and the turns as JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _TRAJECTORY_SCHEMA)

    def add(self, trajectory: Trajectory) -> None:
        self.add_row(trajectory_row(trajectory))


class TaskWriter(Writer):
    """One row a task."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _TASK_SCHEMA)

    def add(self, task: Task) -> None:
        self.add_row({"task": _task_json(task), "domain": task.domain, "id": task.id, "horizon": task.horizon})


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Write all of them; none make an empty table."""
    with TrajectoryWriter(path) as writer:
        for trajectory in trajectories:
            writer.add(trajectory)


def read_trajectories(path: Path) -> list[Trajectory]:
    """Raises ``ValueError`` with the path where the file is missing, truncated or of another schema, and with the row
    where one holds no trajectory."""
    return list(iter_trajectories(path))


def iter_trajectories(path: Path) -> Iterator[Trajectory]:
    """The same one by one, in the memory of one row group."""
    return _each(path, _read(path, _TRAJECTORY_SCHEMA), trajectory_of)


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write all of them; none make an empty table."""
    with TaskWriter(path) as writer:
        for task in tasks:
            writer.add(task)


def read_tasks(path: Path) -> list[Task]:
    """Raises ``ValueError`` as ``read_trajectories`` does."""
    return list(_each(path, _read(path, _TASK_SCHEMA), _task_of))


def iter_tasks(path: Path) -> Iterator[Task]:
    """The tasks of a table of tasks or of trajectories, one by one. Raises ``ValueError`` as ``read_tasks`` does."""
    return _each(path, _read(path, _TASK_SCHEMA, or_more=True), _task_of)


def trajectory_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of trajectories as they are on disk, for ``Writer.add_row``."""
    return _read(path, _TRAJECTORY_SCHEMA)


def task_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The same of tasks."""
    return _read(path, _TASK_SCHEMA)


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


def _read(path: Path, schema: pa.Schema, or_more: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a table, a batch in memory at a time. ``or_more``: it may have other columns, which are not read."""
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            if or_more:
                found = pa.schema([it for it in found if it.name in schema.names])
            if not found.equals(schema):
                raise ValueError(f"{path}: columns {_columns(found)}, expected {_columns(schema)}; run its stage again")
            for batch in file.iter_batches(batch_size=GROUP_ROWS, columns=schema.names):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: missing or damaged ({said}); run its stage again") from error


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{it.name} {it.type}" for it in schema)


def _each(path: Path, rows: Iterable[dict[str, Any]], read: Callable[[dict[str, Any]], Read]) -> Iterator[Read]:
    """What ``read`` makes of each row. Raises ``ValueError`` with the path and the row's number."""
    for number, row in enumerate(rows, start=1):
        try:
            made = read(row)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, row {number}: {str(error)[:200]}; run its stage again") from error
        yield made


def _fields(value: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """``value`` where it is an object that has these keys alone, with values of these types; else ``ValueError``."""
    if not isinstance(value, dict) or value.keys() - kinds.keys():
        raise ValueError(f"{value!r:.60} is no object of {', '.join(kinds)}")
    for key, kind in kinds.items():
        found = value.get(key)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise ValueError(f"{key} is {found!r:.60}")
    return value


def _all(kind: type, values: Iterable[Any], name: str) -> tuple[Any, ...]:
    """Them as a tuple; ``ValueError`` where one is of another type."""
    found = tuple(values)
    if not all(type(it) is kind for it in found):
        raise ValueError(f"{name} holds something else than {kind.__name__}")
    return found


def world_of(row: dict[str, Any]) -> str:
    """The world of a row's task."""
    return _task(row["task"]).world


def _task_json(task: Task) -> str:
    return json.dumps(asdict(task), ensure_ascii=False, sort_keys=True)


_TASK_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("domain", "id", "split", "prompt", "reference", "source"), str),
    **dict.fromkeys(("horizon", "seed"), int),
    **dict.fromkeys(("evidence", "verifiers", "entity_pairs"), list),
    "state": dict,
}
_ROW_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("policy", "status", "reason"), str),
    "seed": int,
    "passed": bool,
    "score": (float, int),
    "answer": (str, type(None)),
}
_TURN_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("role", "text"), str),
    **dict.fromkeys(("ids", "logprobs", "evidence"), list),
    "error": bool,
    "written": int,
}


def _task(text: str) -> Task:
    """Raises ``ValueError`` where the text is no task."""
    value = _fields(json.loads(text), _TASK_FIELDS)
    for key in ("evidence", "verifiers"):
        value[key] = _all(str, value[key], key)
    pairs = value["entity_pairs"]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("entity_pairs holds something else than pairs")
    value["entity_pairs"] = tuple((a, b) for a, b in pairs)
    return Task(**value)


def _task_of(row: Mapping[str, Any]) -> Task:
    """The task of a row; ``ValueError`` where its columns say something else than its JSON."""
    task = _task(row["task"] or "null")
    for key in ("domain", "id", "horizon"):
        if row[key] != getattr(task, key):
            raise ValueError(f"column {key} is {row[key]!r}, the task's {getattr(task, key)!r}")
    return task


def _turn_json(turn: Turn) -> dict[str, Any]:
    value = asdict(replace(turn, experts=None))
    return {key: it for key, it in value.items() if key != "experts" and (key != "written" or it)}


def trajectory_row(trajectory: Trajectory) -> dict[str, Any]:
    """What ``trajectory_of`` reads: flat values and JSON texts."""
    task, verdict = trajectory.task, trajectory.verdict
    return {
        "task": _task_json(task),
        "domain": task.domain,
        "id": task.id,
        "horizon": task.horizon,
        "turns": json.dumps([_turn_json(turn) for turn in trajectory.turns], ensure_ascii=False),
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


def trajectory_of(row: Mapping[str, Any]) -> Trajectory:
    """A row of ``trajectory_rows`` as what it stands for. Raises ``ValueError`` where it is none."""
    _fields({key: row.get(key) for key in _ROW_FIELDS}, _ROW_FIELDS)
    turns, rubric = json.loads(row["turns"] or "null"), json.loads(row["rubric"] or "null")
    if not isinstance(turns, list) or not isinstance(rubric, dict):
        raise ValueError("turns are no list, or the rubric no object")
    if not 0 <= row["score"] <= 1:
        raise ValueError(f"score is {row['score']}")
    verdict = Verdict(row["passed"], row["score"], row["reason"], rubric)
    read = tuple(map(_turn, turns))
    return Trajectory(_task_of(row), read, row["answer"], Status(row["status"]), verdict, row["policy"], row["seed"])


def _turn(value: Any) -> Turn:
    """Raises ``ValueError`` where it is none."""
    found = _fields({"written": 0, **value} if isinstance(value, dict) else value, _TURN_FIELDS)
    ids, logprobs = _all(int, found["ids"], "ids"), _all(float, found["logprobs"], "logprobs")
    evidence = _all(str, found["evidence"], "evidence")
    if found["role"] not in ROLES or min(ids, default=0) < 0 or found["written"] < 0:
        raise ValueError(f"a turn of role {found['role']!r}, or a count below 0")
    if len(logprobs) not in (0, len(ids)):
        raise ValueError(f"{len(logprobs)} log-probabilities of {len(ids)} ids")
    return Turn(found["role"], found["text"], ids, logprobs, evidence, found["error"], written=found["written"])
