"""SciCode: its 15 development problems, 50 steps of scientific code, each a function that its tests call.

Data of the package nvidia-scicode. A problem is one conversation: the tool ``submit_step`` takes a step's code and
answers with the next step, which builds on the policy's own code so far, as in the published protocol (without
background texts). A step is solved when all its tests hold, a problem when all its steps are.

The published expected values are in a file that is only downloaded, so the development problems alone can be scored
offline: they come with their authors' code, and what that returns on a test's inputs is what is expected. Everything
that is run, this and a model's code, runs in our sandbox, in processes of their own; no test is shown to a policy.
"""

from __future__ import annotations

import ast
import functools
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Benchmark, Metrics, Value
from openhorizon.bench.public.files import read_lines
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import (
    Action,
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
)
from openhorizon.domains.tool_calling.borrowed import package_folder
from openhorizon.sandbox import Limits, Result, open_workspace

PACKAGE, INSTALL = "scicode", "nvidia-scicode==26.3"
LIMITS = Limits(wall_s=300.0, cpu_s=300, memory_mb=6144, processes=64)  # of a step's tests together
PRELOAD = ("numpy", "scipy.integrate", "scipy.linalg", "scipy.sparse", "scipy.spatial.distance", "scipy.special")
COMPARING = ("scicode/compare/cmp.py", "compare/cmp.py")  # where tests look for it, where it lies in the package
EXPECTED, ARRAYS = "expected.json", "expected.npz"
_HEAD = """
import json, sys
import numpy as np
sys.path.insert(0, "/work")
"""
# A value is written as what JSON has, its arrays and complex numbers by name beside it.
_KEEP = (
    _HEAD
    + """
arrays = {}
def keep(value):
    if isinstance(value, (tuple, list)):
        return {"is": type(value).__name__, "of": [keep(item) for item in value]}
    if value is None or isinstance(value, str):
        return {"is": "plain", "of": value}
    name = f"a{len(arrays)}"
    arrays[name] = np.asarray(value)
    return {"is": "array", "of": name}
space = {"__name__": "program"}
exec(compile(open("program.py").read(), "program.py", "exec"), space)
kept = []
for test in json.load(open("tests.json")):
    space["target"] = None
    exec(compile(test, "test", "exec"), space)
    kept.append(keep(space["target"]))
np.savez("expected.npz", **arrays)
json.dump(kept, open("expected.json", "w"))
"""
)
_TEST = (
    _HEAD
    + """
arrays = np.load("expected.npz")
def read(kept):
    if kept["is"] in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kept["is"]](read(item) for item in kept["of"])
    return arrays[kept["of"]][()] if kept["is"] == "array" else kept["of"]
expected = [read(kept) for kept in json.load(open("expected.json"))]
tests = json.load(open("tests.json"))
space = {"__name__": "program"}
exec(compile(open("program.py").read(), "program.py", "exec"), space)
for number, (test, target) in enumerate(zip(tests, expected), start=1):
    space["target"] = target
    try:
        exec(compile(test, "test", "exec"), space)
    except BaseException as error:
        sys.exit(f"test {number} of {len(tests)}: {type(error).__name__}: {error}")
print("PASSED")
"""
)


@dataclass(frozen=True)
class Tried:
    """What became of one step; ``reason`` is empty where it is solved."""

    reason: str


class SciCodeWorld(Domain):
    name = "science"
    source = "scicode"
    system = (
        "You solve a scientific problem in Python, step by step. Each step is a function with a given header. Write "
        "its code, and nothing else, with submit_step; what you wrote for earlier steps can be called. Import nothing "
        "but the given dependencies. After the last step end with Answer: done."
    )
    tools = (
        Tool(
            "submit_step",
            "Hand in the code of the present step, and read the next one.",
            {
                "type": "object",
                "properties": {"code": {"type": "string", "minLength": 1, "maxLength": 20_000}},
                "required": ["code"],
                "additionalProperties": False,
            },
        ),
    )
    scripted = False

    def start(self, task: Task) -> Steps:
        return Steps(task, self.tools)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        assert isinstance(environment, Steps)
        steps = problems()[task.state["problem"]]["sub_steps"]
        rubric, reason = dict[str, bool](), ""
        for i, step in enumerate(steps):
            why = "no code was handed in"
            if i < len(environment.codes):
                why = tried(task.state["problem"], i, tuple(environment.codes[: i + 1])).reason
            rubric[step["step_number"]] = not why
            reason = reason or (f"step {step['step_number']}: {why}" if why else "")
        return Verdict(not reason, sum(rubric.values()) / len(rubric), reason or "all tests hold", rubric)

    def propose(self, rng: Any, split: Split, horizon: int, seed: int) -> Task | None:
        return None

    def expert(self, prompt: str, rng: Any, noise: float) -> Expert:
        raise ValueError(f"{self.world} has no scripted expert: its solutions are its authors' code")


class Steps(Environment):
    """The steps of one problem, and the code that was handed in."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.problem = problems()[task.state["problem"]]
        self.codes: list[str] = []

    def execute(self, call: Call) -> Observation:
        if len(self.codes) == len(self.problem["sub_steps"]):
            return Observation("error: that was the last step, give your answer", error=True)
        self.codes.append(unfenced(call.arguments["code"]))
        if len(self.codes) == len(self.problem["sub_steps"]):
            return Observation("That was the last step.")
        return Observation(asked(self.problem, len(self.codes)))


def folder() -> Path:
    return package_folder(PACKAGE, INSTALL)


@functools.cache
def problems() -> Mapping[str, Mapping[str, Any]]:
    """By number, those that have their authors' code.

    Raises:
        ValueError: the package is missing, or its file is not what it should be.
    """
    fields: Mapping[str, type] = {"problem_id": str, "problem_description_main": str, "sub_steps": list}
    return {row["problem_id"]: row for row in read_lines(folder() / "data" / "problems_dev.jsonl", fields)}


def asked(problem: Mapping[str, Any], step: int) -> str:
    """A step as a policy is asked for it."""
    at = problem["sub_steps"][step]
    head = f"Step {step + 1} of {len(problem['sub_steps'])}: {at['step_description_prompt'].strip()}"
    return f"{head}\n\n{at['function_header'].rstrip()}\n\n{at['return_line']}"


def unfenced(code: str) -> str:
    """Code without the fence that a policy may have put around it."""
    lines = code.strip().split("\n")
    return "\n".join(lines[1:-1]) if lines[0].startswith("```") and lines[-1].strip() == "```" else code


@functools.lru_cache(maxsize=1024)
def tried(number: str, step: int, codes: tuple[str, ...]) -> Tried:
    """Run a step's tests on the last of ``codes``, which may call those before it."""
    tests = problems()[number]["sub_steps"][step]["test_cases"]
    told = secrets.token_hex(16)  # an early exit of the code under test proves nothing
    files = {**expected(number, step), "tests.json": json.dumps(tests).encode(), "program.py": _program(number, codes)}
    result, _ = _run(files, _TEST.replace("PASSED", told), ())
    if result.timed_out:
        return Tried(f"the tests took more than {LIMITS.wall_s:.0f} s")
    last = (result.output.strip().splitlines() or ["no output"])[-1]
    return Tried("" if result.exit_code == 0 and last == told else last[:200])


@functools.cache
def expected(number: str, step: int) -> Mapping[str, bytes]:
    """What the authors' code returns on the tests' inputs, as files.

    Raises:
        ValueError: that code does not run here.
    """
    steps = problems()[number]["sub_steps"]
    codes = tuple(at["ground_truth_code"] for at in steps[: step + 1])
    tests = [recording(test) for test in steps[step]["test_cases"]]
    files = {"tests.json": json.dumps(tests).encode(), "program.py": _program(number, codes)}
    result, made = _run(files, _KEEP, (EXPECTED, ARRAYS))
    if result.exit_code:
        raise ValueError(f"SciCode, step {number}.{step + 1}: its authors' code fails here: {result.output[-300:]}")
    return made


def recording(test: str) -> str:
    """The test with its assertion on ``target`` turned into an assignment to it of what is compared.

    Raises:
        ValueError: the assertion compares in a way that is not known.
    """

    class Recording(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.stmt:
            if not _names_target(node.test):
                return node
            return ast.Assign(targets=[ast.Name("target", ast.Store())], value=_compared(node.test))

    return ast.unparse(ast.fix_missing_locations(Recording().visit(ast.parse(test))))


def _compared(node: ast.expr) -> ast.expr:
    match node:
        case ast.Call(args=[value, ast.Name(id="target")]):
            return value
        case ast.Compare(left=value, ops=[ast.Eq()], comparators=[ast.Name(id="target")]):
            return value
        case ast.BoolOp(op=ast.And(), values=terms):
            return ast.Tuple([_item(term, i) for i, term in enumerate(terms)], ast.Load())
    raise ValueError(f"SciCode: a test compares in an unknown way: {ast.unparse(node)}")


def _item(node: ast.expr, i: int) -> ast.expr:
    match node:
        case ast.Call(args=[value, ast.Subscript(ast.Name(id="target"), ast.Constant(value=at))]) if at == i:
            return value
    raise ValueError(f"SciCode: a test compares in an unknown way: {ast.unparse(node)}")


def _names_target(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id == "target" for inner in ast.walk(node))


def _program(number: str, codes: Sequence[str]) -> bytes:
    return "\n\n".join([problems()[number]["required_dependencies"], *codes]).encode("utf-8", "replace")


def _run(files: Mapping[str, bytes], script: str, wanted: Sequence[str]) -> tuple[Result, dict[str, bytes]]:
    """The result, and the files that were wanted of the workspace where it went well."""
    there, inside = COMPARING[0], (folder() / COMPARING[1]).read_bytes()
    with open_workspace({**files, there: inside}, LIMITS, PRELOAD) as workspace:
        result = workspace.python(script)
        return result, {name: workspace.read(name) for name in (wanted if result.exit_code == 0 else ())}


@functools.cache
def tasks() -> list[Task]:
    """In the order of the file, which goes by number."""
    return [
        Task(
            domain="science",
            id=f"scicode-{number}",
            split="heldout",
            prompt=f"{problem['problem_description_main'].strip()}\n\nDependencies:\n"
            f"{problem['required_dependencies']}\n\n{asked(problem, 0)}",
            horizon=len(problem["sub_steps"]),
            seed=0,
            state={"problem": number},
            evidence=(),
            verifiers=("tests",),
            reference="",
            entity_pairs=(),
            source="scicode",
        )
        for number, problem in problems().items()
    ]


def gold(task: Task) -> Sequence[Action]:
    steps = problems()[task.state["problem"]]["sub_steps"]
    return (*(Call("submit_step", {"code": step["ground_truth_code"]}) for step in steps), Answer("Answer: done"))


def measure(trajectory: Trajectory) -> Metrics:
    verdict = trajectory.verdict
    return {"problem": Value(float(verdict.passed)), "step": Value(verdict.score, len(verdict.rubric))}


def texts(task: Task) -> tuple[str, ...]:
    problem = problems()[task.state["problem"]]
    steps = (step["step_description_prompt"] for step in problem["sub_steps"])
    return ("\n".join([problem["problem_description_main"], *steps]),)


SCICODE = Benchmark(
    name="scicode-dev",
    title="SciCode, development problems",
    package="nvidia-scicode",
    licence="Apache-2.0",
    split="dev, 15 problems of 50 steps; expected values from the authors' code",
    protocol="a tool call a step, on the policy's own earlier code, without background; the 65 test problems need a "
    "file that is only downloaded",
    domain=SciCodeWorld(),
    budget=BudgetConfig(slack=1.0, extra=2, turn_tokens=2048, context_tokens=32_768),
    primary="problem",
    tasks=tasks,
    group=lambda task: "1 step" if task.horizon == 1 else "2 steps and more",
    measure=measure,
    texts=texts,
    gold=gold,
)
