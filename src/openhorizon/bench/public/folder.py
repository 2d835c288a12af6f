"""A benchmark out of a user's folder: questions with answers, in the form that Agents-A1's evaluation takes them.

For what cannot be had from a package: GAIA, BrowseComp, SEAL-0, XBench, HLE, LongBench v2, MatTools, MolBench.

    benchmark.yaml   name and how it is played (``Settings``); every key but ``name`` and ``licence`` has a default
    questions.jsonl  {"question": …, "answer": …} a line; other keys may name a group
    judge.txt        the judge's prompt, where one is asked
    tools.py         the user's own tools, if any: ``TOOLS``, a list of domains.base.Tool, and ``call(name, arguments)``

A final answer stands in ``<answer></answer>``. Turns, context and time are bounded; past its time a task's calls are
refused in words, so that it can still be answered. With ``discard`` a context that is full is thrown away and the
question is asked anew while turns and time last. Without it the episode ends there.

``tools.py`` is the user's program and runs with the user's rights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Benchmark, Metrics, Value
from openhorizon.bench.public.files import read_objects
from openhorizon.bench.public.judge import CORRECT, JUDGED, KEY_VARIABLE, Judge, exact, read_prompt
from openhorizon.config import BudgetConfig, read_yaml
from openhorizon.domains.base import (
    Action,
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Step,
    Task,
    Tool,
    Verdict,
)

SETTINGS, TOOLS = "benchmark.yaml", "tools.py"
TIME_OVER = "error: the time for this task is over; answer now"
DOMAIN = "folder"


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how its reply is read."""

    url: str
    model: str
    prompt: str = "judge.txt"
    verdict: str = r"correct:\W*(yes|no)"
    accepts: str = "yes"
    timeout_s: float = 120.0
    parallel: int = 16


@dataclass(frozen=True)
class Settings:
    """benchmark.yaml. Turns, temperature and context are Agents-A1's where its paper gives them."""

    name: str
    licence: str
    title: str = ""
    questions: str = "questions.jsonl"
    group: str = ""  # key of a question that rates are given by
    system: str = "Work on the question step by step. Give the final answer in <answer></answer>."
    turns: int = 300
    turn_tokens: int = 8192
    context_tokens: int = 131_072
    time_s: float = 9000.0
    discard: bool = False
    judge: JudgeSettings | None = None  # none: exact match


@dataclass(frozen=True)
class FolderDomain(Domain):
    """Questions of one folder. ``act`` carries out a call of the user's tools."""

    settings: Settings
    system: str
    tools: tuple[Tool, ...]
    act: Callable[[str, dict[str, Any]], Any]
    name: str = DOMAIN
    source: str = ""
    scripted: bool = False
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)

    def propose(self, rng: Random, split: Split, horizon: int, seed: int) -> Task | None:
        return None

    def start(self, task: Task) -> Environment:
        return FolderEnvironment(task, self)

    def expert(self, prompt: str, rng: Random, noise: float) -> Expert:
        raise NotImplementedError("a benchmark's questions have no scripted solver")

    def recall(self, steps: Sequence[Step]) -> str | None:
        return "" if self.settings.discard else None

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        return Verdict(False, 0.0, "not judged yet" if answer else "no answer", {JUDGED: False})


class FolderEnvironment(Environment):
    """The user's tools, under the task's time."""

    def __init__(self, task: Task, domain: FolderDomain) -> None:
        super().__init__(task, domain.tools)
        self.domain, self.began = domain, domain.clock()

    def execute(self, call: Call) -> Observation:
        if self.domain.clock() - self.began > self.domain.settings.time_s:
            return Observation(TIME_OVER, error=True)
        try:
            return Observation(str(self.domain.act(call.name, dict(call.arguments))))
        except Exception as error:  # of the user's tool: the model sees it, as it would see a page that does not load
            return Observation(f"error: {type(error).__name__}: {error}", error=True)


def open_folder(path: Path) -> Benchmark:
    """The benchmark that a folder holds.

    Raises:
        ValueError: a file is missing or of a wrong form; the message has the path and, of questions, the line.
    """
    settings = read_settings(path / SETTINGS)
    questions = path / settings.questions
    tasks = read_questions(questions, settings)
    tools = _tools(path / TOOLS)
    files = [path / SETTINGS, questions]
    judge: Callable[[Sequence[Trajectory]], list[Trajectory]] = exact
    if settings.judge is not None:
        files.append(path / settings.judge.prompt)
        judge = _judge(settings.judge, read_prompt(path / settings.judge.prompt))
    if tools is not None:
        files.append(path / TOOLS)
    digest = _digest(files)
    by = f"judged by {settings.judge.model}" if settings.judge else "exact match"
    full = "a full context is discarded and the question asked anew" if settings.discard else "a full context ends it"
    return Benchmark(
        name=settings.name,
        title=settings.title or settings.name,
        package="",
        licence=settings.licence,
        split=f"{questions}, {len(tasks)} questions",
        protocol=f"answers in <answer></answer>, {by}; at most {settings.turns} calls, {settings.time_s:g} s; {full}",
        domain=FolderDomain(
            settings, settings.system, tuple(tools.TOOLS) if tools else (), tools.call if tools else _no_tools
        ),
        budget=BudgetConfig(0.0, settings.turns, settings.turn_tokens, settings.context_tokens),
        primary="accuracy",
        tasks=lambda: tasks,
        group=lambda task: str(task.state["group"]),
        measure=measure,
        texts=lambda task: (task.prompt,),
        gold=gold,
        judge=judge,
        edition=lambda: f"folder {path.name}, {digest}",
    )


def measure(trajectory: Trajectory) -> Metrics:
    """Nothing where there was no verdict."""
    rubric = trajectory.verdict.rubric
    if not rubric.get(JUDGED):
        return {}
    out_of_time = any(turn.role == "tool" and turn.text == TIME_OVER for turn in trajectory.turns)
    answered = trajectory.answer is not None and "<answer>" in trajectory.answer
    return {
        "accuracy": Value(float(rubric[CORRECT])),
        "answered": Value(float(answered)),
        "out of time": Value(float(out_of_time)),
    }


def gold(task: Task) -> tuple[Action, ...]:
    return (Answer(f"<answer>{task.reference}</answer>"),)


def read_settings(path: Path) -> Settings:
    """Raises ``ValueError`` for a missing file, an unknown or missing key, or a value of a wrong type."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; a benchmark's folder needs it (docs/serving.md)")
    values = dict(_checked(Settings, read_yaml(path), f"{path}"))
    if values.get("judge") is not None:
        values["judge"] = _judge_settings(values["judge"], f"{path}:judge")
    settings = Settings(**values)
    name = settings.name
    if not name.strip(".") or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise ValueError(f"{path}:name: {name!r} is to be letters, digits, - _ and . alone")
    _above_zero(settings, ("turns", "turn_tokens", "context_tokens", "time_s"), f"{path}")
    return settings


def _judge_settings(found: Any, where: str) -> JudgeSettings:
    judge = JudgeSettings(**_checked(JudgeSettings, found, where))
    _above_zero(judge, ("timeout_s", "parallel"), where)
    try:
        groups = re.compile(judge.verdict).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}:verdict: {judge.verdict!r} is no regular expression ({error})") from error
    if groups > 1:
        raise ValueError(f"{where}:verdict: {judge.verdict!r} has {groups} groups; the one is the judge's word")
    return judge


def _above_zero(settings: Settings | JudgeSettings, keys: Sequence[str], where: str) -> None:
    for key in keys:
        if not 0 < getattr(settings, key) < math.inf:
            raise ValueError(f"{where}:{key}: {getattr(settings, key)} is not above 0")


def _checked(kind: type[Any], found: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: not a mapping of keys to values")
    fields = {it.name: it for it in dataclasses.fields(kind)}
    for key, value in found.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(fields)}")
        default = fields[key].default
        wanted = str if default is dataclasses.MISSING else type(default)
        accepted = (int, float) if wanted is float else (wanted,)
        if default is not None and (not isinstance(value, accepted) or isinstance(value, bool) != (wanted is bool)):
            raise ValueError(f"{where}:{key}: {value!r} is no {wanted.__name__}")
    lacking = [name for name, it in fields.items() if it.default is dataclasses.MISSING and name not in found]
    if lacking:
        raise ValueError(f"{where}: missing key {lacking[0]!r}")
    return found


def read_questions(path: Path, settings: Settings) -> list[Task]:
    """One task a line, in an order that the file's own does not decide, so that a limit is a fair sample.

    Raises:
        ValueError: the file is missing or empty, or a line is no question; the message has its number.
    """
    if not path.is_file():
        raise ValueError(f'{path}: missing; one {{"question": …, "answer": …}} a line')
    tasks, seen = list[Task](), dict[str, str]()
    for where, found in read_objects(path):
        task = _question(found, where, settings)
        if task.id in seen:
            raise ValueError(f"{where}: the question of {seen[task.id]} again")
        seen[task.id] = where.rpartition(", ")[2]
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{path}: no questions in it")
    return sorted(tasks, key=lambda task: task.id)


def _question(found: Mapping[str, Any], where: str, settings: Settings) -> Task:
    question, answer = found.get("question"), found.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: no question: {str(question)[:40]!r}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f"{where}: no answer: {str(answer)[:40]!r}")
    if settings.group and settings.group not in found:
        raise ValueError(f"{where}: no {settings.group!r}, by which {SETTINGS} groups")
    name = hashlib.sha256(question.encode()).hexdigest()[:16]
    state = {"group": found[settings.group] if settings.group else settings.name}
    return Task(
        DOMAIN, f"{settings.name}-{name}", "heldout", question, 1, 0, state, (), (CORRECT,), str(answer), ()
    )  # fmt: skip


def _judge(settings: JudgeSettings, prompt: str) -> Judge:
    endpoint = Endpoint(
        settings.url, settings.model, KEY_VARIABLE, timeout_s=settings.timeout_s, parallel=settings.parallel
    )
    return Judge(endpoint, prompt, settings.verdict, settings.accepts)


def _tools(path: Path) -> ModuleType | None:
    """The user's module. Raises ``ValueError`` where it cannot be imported or lacks TOOLS or call."""
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"openhorizon_tools_{_digest([path])}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of the user's program, whatever it is
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    given = vars(module)
    tools = given.get("TOOLS")
    if not isinstance(tools, list | tuple) or not all(isinstance(it, Tool) for it in tools) or not tools:
        raise ValueError(f"{path}: TOOLS is to be a list of openhorizon.domains.base.Tool")
    if not callable(given.get("call")):
        raise ValueError(f"{path}: has no function call(name, arguments)")
    return module


def _no_tools(name: str, arguments: dict[str, Any]) -> str:
    raise AssertionError(f"{name}: no tools")


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
