"""Episodes for a person: a checkpoint solves a task turn by turn in the terminal, or a person takes its place; and the
same look at an episode that was played before.

Nothing is played here that an evaluation would not play: the same environment, budget, verifier and, for a checkpoint,
the same sampling (``agent/rollout.py``). A person sees what a policy sees, and types what a policy would write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from openhorizon.agent.render import read_action, write_action
from openhorizon.agent.rollout import Episode, Policy, allowed_calls
from openhorizon.agent.trajectory import Status, Trajectory, Turn, iter_trajectories, read_tasks
from openhorizon.artifacts import stage_dir
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Task,
    Tool,
    Verdict,
    carry_out,
    open_environment,
)

COLOURS = {Status.SOLVED: "green", Status.FAILED: "red", Status.TRUNCATED: "yellow", Status.ABORTED: "magenta"}
HELP = "TOOL {JSON}, or TOOL name=value …; =ANSWER gives the answer; ? lists the tools; an empty line gives up"


class Watched:
    """A conversation that shows each turn of its episode as it happens. Satisfies ``agent.rollout.Conversation``."""

    def __init__(self, episode: Episode, show: Callable[[Turn], None]) -> None:
        self.episode, self.show = episode, show
        self._shown = 0
        self.begin()
        self._catch_up()

    def begin(self) -> None:
        """Be the conversation of the context that the episode is in."""
        self.seed, self.prompt_ids = self.episode.seed, self.episode.prompt_ids
        self.turn_tokens, self.context_tokens = self.episode.turn_tokens, self.episode.context_tokens

    def reply(self, ids: Sequence[int], logprobs: Sequence[float], complete: bool) -> list[int] | None:
        fed = self.episode.reply(ids, logprobs, complete)
        self._catch_up()
        return fed

    def routed(self, experts: Any) -> None:
        self.episode.routed(experts)

    def _catch_up(self) -> None:
        for turn in self.episode.turns[self._shown :]:
            self.show(turn)
        self._shown = len(self.episode.turns)


def watch(
    policy: Policy,
    domain: Domain,
    task: Task,
    budget: BudgetConfig,
    temperature: float,
    seed: int,
    show: Callable[[Turn], None],
) -> Trajectory:
    """A policy's episode, each turn shown when it is over.

    Raises:
        EnvironmentDied: the world does not start.
    """
    episode = Episode(domain, task, policy.renderer, budget, policy.name, seed)
    watched = Watched(episode, show)
    while episode.waiting:  # in its first context, then in those that follow a full one
        watched.begin()
        policy.converse([watched], temperature, lambda done, total: None)
    return episode.trajectory()


def take(
    domain: Domain,
    task: Task,
    budget: BudgetConfig,
    ask: Callable[[str], str],
    say: Callable[[str], None],
    show: Callable[[Turn], None],
) -> Trajectory:
    """A person's episode; an end of input or an empty line gives up. Raises as ``watch`` does."""
    environment = open_environment(domain, task)
    tools = {tool.name: tool for tool in domain.tools_for(task)}
    most = allowed_calls(budget, task.horizon) if domain.tools else 0
    turns = [Turn("prompt", task.prompt)]
    show(turns[0])
    say(_tool_lines(tools.values()) if tools else "no tools")
    say(HELP)
    try:
        while True:
            try:
                line = ask(f"{len(environment.steps)}/{most} calls> ").strip()
            except EOFError:
                line = ""
            if line == "?":
                say(_tool_lines(tools.values()))
                continue
            if not line:
                return _ended(domain, task, environment, turns, None, Status.TRUNCATED)
            try:
                action = typed(line)
            except ValueError as error:
                say(str(error))
                continue
            turns.append(Turn("assistant", write_action(action)))
            if isinstance(action, Answer):
                return _ended(domain, task, environment, turns, action, None)
            if len(environment.steps) >= most:
                say(f"the budget of {most} calls is spent")
                return _ended(domain, task, environment, turns, None, Status.TRUNCATED)
            seen = carry_out(environment, action)
            turns.append(Turn("tool", seen.text, (), (), seen.evidence, seen.error))
            show(turns[-1])
    finally:
        environment.close()


def typed(line: str) -> Call | Answer:
    """What a person means: ``=TEXT`` an answer, else a tool with its arguments; a value is JSON where it can be read as
    such. Raises ``ValueError`` where the arguments are neither a JSON object nor pairs."""
    if line.startswith("="):
        return Answer(line[1:].strip())
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if rest.startswith("{"):
        try:
            arguments = json.loads(rest)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg} at column {len(name) + 1 + error.colno}") from error
        return Call(name, arguments)
    arguments = {}
    for pair in rest.split():
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ValueError(f"{pair!r} is no name=value; {HELP}")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return Call(name, arguments)


def _ended(
    domain: Domain,
    task: Task,
    environment: Environment,
    turns: Sequence[Turn],
    answer: Answer | None,
    status: Status | None,
) -> Trajectory:
    verdict: Verdict = domain.verify(task, environment, answer)
    status = status or (Status.SOLVED if verdict.passed else Status.FAILED)
    return Trajectory(task, tuple(turns), answer.text if answer else None, status, verdict, "person", task.seed)


def _tool_lines(tools: Any) -> str:
    def line(tool: Tool) -> str:
        named, required = tool.parameters.get("properties", {}), tool.parameters.get("required", ())
        shown = ", ".join(f"{key}: {_kind(value)}{'' if key in required else '?'}" for key, value in named.items())
        return f"  {tool.name}({shown})  {tool.description}"

    return "\n".join(map(line, tools))


def _kind(schema: dict[str, Any]) -> str:
    return "|".join(map(str, schema["enum"])) if "enum" in schema else str(schema.get("type", "any"))


def heldout_task(domain: str, wanted: str | None, horizon: int | None, nth: int) -> Task:
    """A held-out task by id, or the ``nth`` of a horizon. Raises ``ValueError`` where there is none."""
    path = stage_dir("generate", domain) / "heldout.parquet"
    tasks = read_tasks(path)
    if wanted is not None:
        found = [task for task in tasks if task.id == wanted]
        if not found:
            raise ValueError(f"{path}: no task {wanted}; the first is {tasks[0].id if tasks else 'none'}")
        return found[0]
    fitting = [task for task in tasks if horizon is None or task.horizon == horizon]
    if nth >= len(fitting) or nth < 0:
        horizons = ", ".join(map(str, sorted({task.horizon for task in tasks})))
        raise ValueError(f"{path}: {len(fitting)} tasks fit, --nth {nth} is none of them; horizons: {horizons}")
    return fitting[nth]


def find(path: Path, wanted: str | None, domain: str | None, status: str | None, nth: int) -> Trajectory:
    """The ``nth`` episode of a file that fits. Raises ``ValueError`` where there are not so many."""
    seen = 0
    for found in iter_trajectories(path):
        fits = (
            (wanted is None or found.task.id == wanted)
            and (domain is None or found.task.domain == domain)
            and (status is None or found.status.value == status.upper())
        )
        if fits and seen == nth:
            return found
        seen += fits
    raise ValueError(f"{path}: {seen} episodes fit, --nth {nth} is none of them")


def shower(console: Console, delay_s: float = 0.0) -> Callable[[Turn], None]:
    """Turns as a person reads them: the question in a frame, thoughts dim, calls and what came back."""

    def show(turn: Turn) -> None:
        if turn.role == "prompt":
            console.print(Panel(Text(turn.text), title="task", title_align="left"))
        elif turn.role == "tool":
            console.print(Text(turn.text, style="red" if turn.error else "cyan"))
        else:
            action = read_action(turn.text)
            if action.thought:
                console.print(Text(action.thought, style="dim italic"))
            if isinstance(action, Answer):
                console.print(Text.assemble(("answer  ", "bold"), action.text))
            elif action.name:
                arguments = json.dumps(dict(action.arguments), ensure_ascii=False)
                console.print(Text.assemble(("→ ", "bold"), (action.name, "bold"), " ", arguments))
            else:
                console.print(Text.assemble(("→ no valid call: ", "bold red"), turn.text))
            if delay_s:
                time.sleep(delay_s)

    return show


def show_end(console: Console, trajectory: Trajectory) -> None:
    """How it ended and why, and what the task would have needed."""
    task, verdict = trajectory.task, trajectory.verdict
    lines = Text.assemble((trajectory.status.value, f"bold {COLOURS[trajectory.status]}"), f"  {verdict.reason}")
    lines.append(f"\nscore {verdict.score:.2f}, {trajectory.tool_calls} calls; a shortest solution has {task.horizon}")
    if verdict.rubric:
        marks = "  ".join(f"{'✓' if met else '✗'} {item}" for item, met in verdict.rubric.items())
        lines.append(f"\n{marks}")
    lines.append(f"\n{task.world}, task {task.id}, by {trajectory.policy[:16]}, seed {trajectory.seed}", style="dim")
    console.print(Panel(lines, title="verdict", title_align="left"))


def as_json(trajectory: Trajectory) -> dict[str, Any]:
    """An episode for a script: what was said and how it was judged, without token ids."""
    turns = [{"role": t.role, "text": t.text, "error": t.error, "evidence": list(t.evidence)} for t in trajectory.turns]
    return {
        "task": trajectory.task.id,
        "world": trajectory.task.world,
        "horizon": trajectory.task.horizon,
        "status": trajectory.status.value,
        "answer": trajectory.answer,
        "verdict": asdict(trajectory.verdict),
        "tool_calls": trajectory.tool_calls,
        "policy": trajectory.policy,
        "seed": trajectory.seed,
        "turns": turns,
    }
