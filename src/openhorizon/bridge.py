"""Our held-out tasks for another program, in another environment: a line of JSON in, a line of JSON out.

    {"do": "tasks", "domain": "search", "count": 20}        → {"tasks": [{id, system, prompt, tools, calls, …}, …]}
    {"do": "start", "episode": 1, "task": ID}               → {}
    {"do": "call", "episode": 1, "name": …, "arguments": …} → {"text": …, "error": false}
    {"do": "end", "episode": 1, "answer": "…" or null}      → {"passed": true, "score": 1.0, "reason": …}

What cannot be done is answered by {"failed": why}: an unknown task, or a world that broke, which says nothing of who
acted in it. ``interop/inspect_heldout.py`` is such a program. It sees what a policy sees, never reference or state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from openhorizon.agent.rollout import allowed_calls
from openhorizon.bench.evaluation import heldout_tasks
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Environment, EnvironmentDied, Task, carry_out, open_environment


@dataclass
class Bridge:
    """What has been asked for so far."""

    config: Config
    tasks: dict[str, Task] = field(default_factory=dict)
    episodes: dict[int, Environment] = field(default_factory=dict)

    def answer(self, line: str) -> dict[str, Any]:
        """The reply to one line."""
        try:
            asked = json.loads(line)
            act = {"tasks": self._tasks, "start": self._start, "call": self._call, "end": self._end}[asked["do"]]
            return act(asked)
        except (EnvironmentDied, ValueError) as error:
            return {"failed": str(error)}
        except (KeyError, TypeError) as error:
            return {"failed": f"not understood: {type(error).__name__}: {error}"}

    def close(self) -> None:
        for environment in self.episodes.values():
            environment.close()
        self.episodes.clear()

    def _tasks(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        domain = str(asked["domain"])
        if domain not in self.config.domains:
            raise ValueError(f"unknown domain {domain!r}; known are {', '.join(self.config.domains)}")
        found = heldout_tasks([domain], int(asked["count"]))
        self.tasks |= {task.id: task for task in found}
        return {"tasks": [self._shown(task) for task in found]}

    def _shown(self, task: Task) -> dict[str, Any]:
        domain, budget = DOMAINS[task.world], self.config.budget[task.domain]
        tools = domain.tools_for(task)
        return {
            "id": task.id,
            "world": task.world,
            "horizon": task.horizon,
            "system": domain.system,
            "prompt": task.prompt,
            "tools": [tool.schema()["function"] for tool in tools],
            "calls": allowed_calls(budget, task.horizon) if tools else 0,
            "turn_tokens": budget.turn_tokens,
            "temperature": self.config.evaluate.temperature,
        }

    def _start(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        task = self.tasks[asked["task"]]
        self.episodes[int(asked["episode"])] = open_environment(DOMAINS[task.world], task)
        return {}

    def _call(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        seen = carry_out(self.episodes[int(asked["episode"])], Call(str(asked["name"]), dict(asked["arguments"])))
        return {"text": seen.text, "error": seen.error}

    def _end(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        environment = self.episodes.pop(int(asked["episode"]))
        answer = None if asked["answer"] is None else Answer(str(asked["answer"]))
        try:
            verdict = DOMAINS[environment.task.world].verify(environment.task, environment, answer)
        except Exception as error:  # a world's own failure: the boundary of agent/rollout.py
            raise EnvironmentDied(f"verify: {type(error).__name__}: {error}") from error
        finally:
            environment.close()
        return {"passed": verdict.passed, "score": verdict.score, "reason": verdict.reason}


def replies(config: Config, lines: IO[str]) -> Iterator[str]:
    """A reply a line, until there are no more."""
    bridge = Bridge(config)
    try:
        for line in lines:
            yield json.dumps(bridge.answer(line), ensure_ascii=False)
    finally:
        bridge.close()
