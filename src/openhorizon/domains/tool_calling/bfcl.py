"""Tool calling on BFCL's multi-turn tasks: ``tool_calling/bfcl``.

The Berkeley Function-Calling Leaderboard v4 (package bfcl-eval, Apache-2.0) has 800 multi-turn tasks over eight
simulated services, with the calls that its authors hold right. Those gold calls are this world's demonstrations: there
is no scripted expert, because none could read the free text of the requests.

    prompt                               Move 'final_report.pdf' ... to 'temp' directory in document. ...
    cd, mkdir, mv                        {"current_working_directory": "document"} / ...
    next_user_turn "Done."               User: Perform a detailed search using grep ...
    ...
    next_user_turn                       The conversation is over. Closing code: 48210

A user's later turns come through the observation of ``next_user_turn``, the contract's only channel; functions that a
task keeps back (miss_func) are announced there, too, and cannot be called before. Parsed JSON calls are dispatched to
the package's simulators by name; no text is ever evaluated. The verdict is the package's own, after every turn:
``state_checker`` (the simulators equal those of the gold run) and ``response_checker`` (every gold result was seen).

Its 200 scenarios, each in four variants, are split by the scenario's number: one part is the benchmark's and no task is
made of it (``heldout_texts`` is for decontamination), the rest is divided into training and held-out tasks.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openhorizon.domains.base import (
    Action,
    Answer,
    Call,
    Environment,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
    split_of,
)
from openhorizon.domains.published import Published, closing_code, is_code
from openhorizon.domains.tool_calling.borrowed import Library, package_folder

VARIANTS = ("base", "long_context", "miss_func", "miss_param")
BENCHMARK_PERCENT = 25  # of the scenarios: left to the benchmark
CHECKER = "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker"
_CONFIG = "bfcl_eval.constants.executable_backend_config"
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_SIZES = ("exponent", "precision", "decimal_places")  # arguments that a calculation's cost grows with
LARGEST = 1000
NEXT = Tool(
    "next_user_turn",
    "Tell the user what was done, or what is missing, and hear what the user says next.",
    {
        "type": "object",
        "properties": {"message": {"type": "string", "minLength": 1, "maxLength": 600}},
        "required": ["message"],
        "additionalProperties": False,
    },
)


@functools.cache
def bfcl_library() -> Library:
    return Library("bfcl_eval", package_folder("bfcl_eval", "bfcl-eval==2026.3.23"), {})


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """All multi-turn tasks by id, each with its gold calls.

    Raises:
        ValueError: the package is missing, or a file of it is not what it should be.
    """
    data = bfcl_library().folder / "data"
    found: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        name = f"BFCL_v4_multi_turn_{variant}.json"
        gold = {row["id"]: row["ground_truth"] for row in _rows(data / "possible_answer" / name)}
        for row in _rows(data / name):
            if row["id"] not in gold:
                raise ValueError(f"{name}: task {row['id']} has no gold calls")
            found[row["id"]] = row | {"gold": gold[row["id"]], "variant": variant}
    return found


def _rows(path: Any) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"package 'bfcl_eval' has no {path.name}: version 2026.3.23 is needed")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, line {number}: not JSON ({error.msg})") from error
    return rows


def scenario(key: str) -> str:
    """A task's scenario: what its four variants share."""
    return key.rsplit("_", 1)[1]


def reserved(key: str) -> bool:
    """Whether a task belongs to the benchmark's part."""
    digest = hashlib.sha256(f"bfcl benchmark {scenario(key)}".encode()).digest()
    return digest[0] * 100 < BENCHMARK_PERCENT * 256


def part(key: str) -> Split:
    """The split of a task that is not reserved."""
    return split_of(("bfcl", scenario(key)))


def heldout_texts() -> tuple[str, ...]:
    """What users say in the benchmark's part: training data must not contain it."""
    return tuple(
        message["content"]
        for key, entry in entries().items()
        if reserved(key)
        for turn in entry["question"]
        for message in turn
    )


@functools.cache
def class_tools(name: str) -> tuple[Tool, ...]:
    """A simulator's functions as tools."""
    files: Mapping[str, str] = bfcl_library().module(_CONFIG).MULTI_TURN_FUNC_DOC_FILE_MAPPING
    rows = _rows(bfcl_library().folder / "data" / "multi_turn_func_doc" / files[name])
    return tuple(Tool(row["name"], row["description"], _schema(row["parameters"])) for row in rows)


def _schema(declared: Mapping[str, Any]) -> dict[str, Any]:
    """The package's parameter notation as JSON Schema."""
    found: dict[str, Any] = {key: declared[key] for key in ("description", "enum", "default") if key in declared}
    kind = _TYPES.get(declared.get("type", "any"), declared.get("type", "any"))
    if kind != "any":
        found["type"] = kind
    if "items" in declared:
        found["items"] = _schema(declared["items"])
    if kind == "object" and "properties" in declared:
        found["properties"] = {name: _schema(value) for name, value in declared["properties"].items()}
        found["required"] = list(declared.get("required", ()))
        found["additionalProperties"] = False
    return found


class Simulators:
    """The services of one task, from its initial state on."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        config = bfcl_library().module(_CONFIG)
        self.instances: dict[str, Any] = {}
        self.methods: dict[str, Callable[..., Any]] = {}
        for name in entry["involved_classes"]:
            instance = getattr(bfcl_library().module(config.CLASS_FILE_PATH_MAPPING[name]), name)()
            if name not in config.STATELESS_CLASSES:
                state = copy.deepcopy(entry["initial_config"].get(name, {}))
                instance._load_scenario(state, long_context=entry["variant"] == "long_context")
            self.instances[name] = instance
            for method, bound in inspect.getmembers(instance, predicate=inspect.ismethod):
                if not method.startswith("_"):
                    self.methods[method] = bound

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result as the benchmark writes it. What a simulator raises is its answer, as there; numbers with which
        the calculator would not come back are refused. Arguments are copied, since a simulator keeps and changes them.
        """
        huge = next((key for key in _SIZES if _too_large(arguments.get(key))), "")
        if huge:
            return f"Error during execution: {huge} is more than {LARGEST}"
        try:
            result = self.methods[name](**copy.deepcopy(dict(arguments)))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            return f"Error during execution: {error}"
        if isinstance(result, dict):
            try:
                return json.dumps(result)
            except TypeError:
                return str(result)
        return str(result)

    def read(self, text: str) -> Call:
        """A gold call, which is written as Python, as a parsed call; its arguments are literals."""
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError(f"bfcl: not a call: {text!r}")
        names = list(inspect.signature(self.methods[node.func.id]).parameters)
        values = dict(zip(names, (ast.literal_eval(value) for value in node.args), strict=False))
        values |= {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
        arguments: dict[str, Any] = json.loads(json.dumps(values))
        return Call(node.func.id, arguments)


class BfclDomain(Published):
    name = "tool_calling"
    source = "bfcl"
    system = (
        "You work with the tools for a user who says more in the course of the conversation. Do what the user asks, "
        "with as few calls as it takes; ask with next_user_turn where something is missing. When the conversation is "
        "over, end with Answer: and the closing code."
    )

    @functools.cached_property
    def tools(self) -> tuple[Tool, ...]:  # type: ignore[override]  # read from the package when first asked for
        names = dict.fromkeys(name for entry in entries().values() for name in entry["involved_classes"])
        found = {tool.name: tool for name in sorted(names) for tool in class_tools(name)}
        return (NEXT, *found.values())

    def tools_for(self, task: Task) -> tuple[Tool, ...]:
        """Those of the task's services, less what the task leaves out or announces later."""
        entry = entries()[task.state["id"]]
        later = {name for names in entry.get("missed_function", {}).values() for name in names}
        return (NEXT, *(tool for tool in _offered(entry) if tool.name not in later))

    def by_horizon(self, split: Split) -> Mapping[int, Sequence[str]]:
        return _by_horizon(split)

    def heldout_texts(self) -> tuple[str, ...]:
        return heldout_texts()

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """One of the split's tasks that has ``horizon`` gold calls and turns; None where there is none."""
        if horizon < 1:
            raise ValueError(f"tool_calling/bfcl: horizon {horizon} is less than 1")
        keys = _by_horizon(split).get(horizon)
        if not keys:
            return None
        key = rng.choice(keys)
        entry, code = entries()[key], _code(key)
        return Task(
            domain=self.name,
            id=f"tool_calling/bfcl-{key}-{seed}",
            split=split,
            prompt=said(entry, 0),
            horizon=horizon,
            seed=seed,
            state={"id": key},
            evidence=tuple(f"{key}/turn {i + 1}" for i in range(len(entry["gold"]))),
            verifiers=("state", "response", "answer"),
            reference=code,
            entity_pairs=(("bfcl", scenario(key)),),
            source=self.source,
        )

    def start(self, task: Task) -> Environment:
        return BfclEnvironment(task, self.tools_for(task))

    def demonstration(self, task: Task) -> tuple[Action, ...] | None:
        if task.split != "train":
            return None
        entry = entries()[task.state["id"]]
        simulators, actions = Simulators(entry), list[Action]()
        for calls in entry["gold"]:
            actions += [simulators.read(text) for text in calls]
            message = "That is done." if calls else "I cannot do that yet: something that I need for it is missing."
            actions.append(Call(NEXT.name, {"message": message}))
        return (*actions, Answer(f"Answer: {task.reference}"))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """The package's checks after every turn, and the closing code."""
        assert isinstance(environment, BfclEnvironment)
        turns = len(entries()[task.state["id"]]["gold"])
        rubric: dict[str, bool] = {}
        for i in range(turns):
            held = environment.checked[i] if i < len(environment.checked) else ("the turn was not finished",) * 2
            rubric[f"turn {i + 1} state"], rubric[f"turn {i + 1} response"] = (not why for why in held)
        rubric["answer"] = is_code(answer, task.reference)
        wrong = next((item for item, met in rubric.items() if not met), "")
        why = next((why for pair in environment.checked for why in pair if why), "a turn was not finished")
        reason = "every turn ends as the gold run does" if not wrong else why
        if answer is None:
            reason = "no answer was given"
        elif wrong == "answer":
            reason = "the answer is not the closing code"
        return Verdict(not wrong and answer is not None, sum(rubric.values()) / len(rubric), reason, rubric)


class BfclEnvironment(Environment):
    """The simulators as the policy leaves them, beside those of the gold run."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.entry = entries()[task.state["id"]]
        self.simulators, self.gold = Simulators(self.entry), Simulators(self.entry)
        self.turn = 0
        self.results: list[str] = []
        self.checked: list[tuple[str, str]] = []  # a turn → what the state and the response checker say against it

    def execute(self, call: Call) -> Observation:
        if call.name == NEXT.name:
            return self._next()
        result = self.simulators.call(call.name, call.arguments)
        self.results.append(result)
        return Observation(result, error=result.startswith(("Error", '{"error"')))

    def _next(self) -> Observation:
        turns = len(self.entry["gold"])
        if self.turn < turns:
            self._check()
            self.turn += 1
        key = self.task.state["id"]
        evidence = (f"{key}/turn {self.turn}",)
        if self.turn == turns:
            return Observation(f"The conversation is over. Closing code: {_code(key)}", evidence)
        text = f"User: {said(self.entry, self.turn)}"
        for tool in announced(self.entry, self.turn):
            self.tools[tool.name] = tool
            text += "\n" + json.dumps(tool.schema()["function"])
        return Observation(text, evidence)

    def _check(self) -> None:
        """Run the turn's gold calls and compare, as the benchmark does; a turn without gold calls has nothing to be
        compared."""
        checker = bfcl_library().module(CHECKER)
        calls = [self.gold.read(text) for text in self.entry["gold"][self.turn]]
        expected = [self.gold.call(call.name, call.arguments) for call in calls]
        if not expected:
            self.checked.append(("", ""))
            return
        state = checker.state_checker(self.simulators.instances, self.gold.instances)
        response = checker.response_checker(self.results, expected, self.turn)
        self.checked.append((state.get("error_message", ""), response.get("error_message", "")))


def _offered(entry: Mapping[str, Any]) -> tuple[Tool, ...]:
    excluded = set(entry.get("excluded_function", ()))
    found = {tool.name: tool for name in entry["involved_classes"] for tool in class_tools(name)}
    return tuple(tool for tool in found.values() if tool.name not in excluded)


def announced(entry: Mapping[str, Any], turn: int) -> tuple[Tool, ...]:
    """Functions that a user hands over at the beginning of a turn (from 0), which the task kept back until then."""
    names = entry.get("missed_function", {}).get(str(turn), ())
    return tuple(next(tool for tool in _offered(entry) if tool.name == name) for name in names)


def said(entry: Mapping[str, Any], turn: int) -> str:
    """The user's words at the beginning of a turn."""
    words = " ".join(message["content"] for message in entry["question"][turn])
    return words or "Here is another function that you can use for what I asked."


def _code(key: str) -> str:
    return closing_code(f"bfcl close {key}")


def _too_large(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > LARGEST


def consistent(entry: Mapping[str, Any]) -> bool:
    """Whether the gold calls use only what has been announced by then (one task of 800 does not)."""
    later = {name: int(turn) for turn, names in entry.get("missed_function", {}).items() for name in names}
    return all(turn >= later.get(text.split("(")[0], 0) for turn, calls in enumerate(entry["gold"]) for text in calls)


@functools.cache
def _by_horizon(split: Split) -> dict[int, tuple[str, ...]]:
    """Gold calls and turns → the split's tasks."""
    found: dict[int, tuple[str, ...]] = {}
    for key, entry in entries().items():
        if not reserved(key) and part(key) == split and consistent(entry):
            horizon = sum(len(calls) + 1 for calls in entry["gold"])
            found[horizon] = (*found.get(horizon, ()), key)
    return found
