"""Our held-out tasks as an Inspect task (https://inspect.aisi.org.uk), run in Inspect's own environment:

    .openhorizon/inspect/bin/inspect eval interop/inspect_heldout.py -T domain=search -T tasks=20 --model …

Nothing of openhorizon is imported here: the tasks, their environments and their verifiers stay in a process of the
project's own environment (``openhorizon bridge``): ``OPENHORIZON_ROOT`` names the checkout (default: this file's),
``OPENHORIZON_PYTHON`` its interpreter (default: .venv/bin/python there).
Budgets are ours: calls of an episode, tokens of a turn. Of several calls in one turn the first is taken.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageTool, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, TaskState, solver
from inspect_ai.tool import ToolInfo, ToolParams

ONE_CALL = "error: one call a turn; this one was not carried out"


class Worlds:
    """The process that holds the environments. Requests take turns."""

    def __init__(self) -> None:
        root = Path(os.environ.get("OPENHORIZON_ROOT") or Path(__file__).resolve().parents[1])
        python = os.environ.get("OPENHORIZON_PYTHON") or str(root / ".venv" / "bin" / "python")
        command = [python, "-m", "openhorizon", "bridge"]
        self.process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.numbers = itertools.count()
        self.lock: asyncio.Lock | None = None

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"openhorizon bridge ended with {self.process.wait()}; it says why on stderr")
        reply: dict[str, Any] = json.loads(line)
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply

    async def soon(self, **request: Any) -> dict[str, Any]:
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            return await asyncio.to_thread(lambda: self.ask(**request))


@task
def heldout(domain: str = "search", tasks: int = 20) -> Task:
    """The first ``tasks`` held-out tasks of ``domain``, as `openhorizon evaluate` takes them."""
    worlds = Worlds()
    found = worlds.ask(do="tasks", domain=domain, count=tasks)["tasks"]
    samples = [
        Sample(
            input=[ChatMessageSystem(content=it["system"]), ChatMessageUser(content=it["prompt"])],
            target="accepted by its verifier",
            id=it["id"],
            metadata=it,
        )
        for it in found
    ]
    dataset = MemoryDataset(samples, name=f"openhorizon {domain}")
    config = GenerateConfig(temperature=found[0]["temperature"], max_tokens=found[0]["turn_tokens"])
    return Task(dataset=dataset, solver=episode(worlds), scorer=verifier(), config=config)


@solver
def episode(worlds: Worlds) -> Any:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        about, number = state.metadata, next(worlds.numbers)
        await worlds.soon(do="start", episode=number, task=about["id"])
        answer = None
        for turn in range(about["calls"] + 1):
            state.output = await get_model().generate(state.messages, tools=[offered(it) for it in about["tools"]])
            said = state.output.message
            state.messages.append(said)
            if not said.tool_calls:
                answer = None if state.output.stop_reason == "max_tokens" else said.text
                break
            if turn < about["calls"]:
                state.messages += await observed(worlds, number, said.tool_calls)
        state.metadata["verdict"] = await worlds.soon(do="end", episode=number, answer=answer)
        state.completed = True
        return state

    return solve


async def observed(worlds: Worlds, number: int, calls: list[Any]) -> list[ChatMessageTool]:
    first, *others = calls
    name, arguments = ("", {}) if first.parse_error else (first.function, first.arguments)
    seen = await worlds.soon(do="call", episode=number, name=name, arguments=arguments)
    made = [ChatMessageTool(content=seen["text"], tool_call_id=first.id, function=first.function)]
    return made + [ChatMessageTool(content=ONE_CALL, tool_call_id=it.id, function=it.function) for it in others]


def offered(function: dict[str, Any]) -> ToolInfo:
    return ToolInfo(
        name=function["name"],
        description=function["description"],
        parameters=ToolParams.model_validate(function["parameters"]),
    )


@scorer(metrics=[accuracy(), stderr()])
def verifier() -> Any:
    async def score(state: TaskState, target: Target) -> Score:
        verdict = state.metadata["verdict"]
        return Score(value=CORRECT if verdict["passed"] else INCORRECT, explanation=verdict["reason"])

    return score
