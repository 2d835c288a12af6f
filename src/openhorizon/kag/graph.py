"""The knowledge-action graph G_d = (C_d, A_d, O_d, V_d) of section 2.2, built from trajectories.

Nodes are typed (corpus, action, observation, verifier), and so are edges:

* support: corpus → observation, the evidence that an observation shows;
* dependency: observation → action, an argument of the action stands in it (in the latest one that has it);
* production: action → observation, what the action brought about;
* action-transition: action → the next action;
* verification: verifier → the action it judged, labelled with the outcome.

One record (s_t, a_t, o_t, v_t) stands for each action. The state s_t holds the observations that the action depends
on, the latest observation and the corpus items these show, so s_t ⊆ C_d ∪ O_<t. The question is the observation before
the first action. v_t is None (the paper's ⊥) except where a verifier fired: an environment's refusal, and the final
verdict. Failed trajectories are kept beside successful ones, for credit assignment.

Ours: the paper names the five atomic abilities that label a record but not how; ``abilities_of`` says what we take each
to mean, without knowledge of any domain. In a domain without tools an action is a reasoning step: one line of the
thought, then the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openhorizon.agent.render import read_action, write_action
from openhorizon.agent.trajectory import Trajectory
from openhorizon.domains.base import Answer, Call

NodeKind = Literal["corpus", "action", "observation", "verifier"]
EdgeKind = Literal["support", "dependency", "production", "verification", "action-transition"]
Ability = Literal[
    "information acquisition", "tool calling", "executable iteration", "evidence verification", "constraint tracking"
]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Node:
    id: str
    kind: NodeKind
    text: str


@dataclass(frozen=True)
class Edge:
    kind: EdgeKind
    source: str
    target: str
    label: str = ""  # of a verification: passed or failed


@dataclass(frozen=True)
class Record:
    """(s_t, a_t, o_t, v_t): node ids, and whether the verifier that fired was content (None: none fired)."""

    trajectory: str
    step: int
    state: tuple[str, ...]
    action: str
    observation: str | None
    verdict: bool | None
    abilities: tuple[Ability, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes, edges and records, each once, in order of appearance."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class _Event:
    """One action as the graph sees it: its text, the values it uses and what came back."""

    text: str
    values: tuple[str, ...]
    is_call: bool
    observation: str | None
    evidence: tuple[str, ...]
    error: bool


def build(trajectories: Iterable[Trajectory]) -> Graph:
    """The graph of these trajectories, failed and successful. A trajectory's id is its task's id and its seed.

    Raises:
        ValueError: two trajectories have one id.
    """
    nodes: dict[str, Node] = {}
    edges: dict[Edge, None] = {}
    records: list[Record] = []
    seen: set[str] = set()
    for trajectory in trajectories:
        name = f"{trajectory.task.id}/{trajectory.seed}"
        if name in seen:
            raise ValueError(f"trajectory {name}: twice in one graph")
        seen.add(name)
        part = of_trajectory(name, trajectory)
        nodes.update((node.id, node) for node in part.nodes)
        edges.update((edge, None) for edge in part.edges)
        records.extend(part.records)
    return Graph(tuple(nodes.values()), tuple(edges), tuple(records))


def of_trajectory(name: str, trajectory: Trajectory) -> Graph:
    """The part of the graph that one trajectory contributes."""
    task, events = trajectory.task, _events(trajectory)
    prompt = Node(f"observation:{name}/prompt", "observation", task.prompt)
    nodes, edges, records = [prompt], [], []
    shown: list[tuple[str, str, tuple[str, ...]]] = [(prompt.id, normal(task.prompt), ())]
    if not any(event.is_call for event in events):  # without tools, the question's text holds the evidence
        shown[0] = (prompt.id, shown[0][1], task.evidence)
    nodes += [Node(f"corpus:{item}", "corpus", item) for item in shown[0][2]]
    edges += [Edge("support", f"corpus:{item}", prompt.id) for item in shown[0][2]]
    known = set(shown[0][2])
    for t, event in enumerate(events):
        action = Node(f"action:{name}/{t}", "action", event.text)
        nodes.append(action)
        sources = _sources(event.values, shown)
        edges += [Edge("dependency", shown[i][0], action.id) for i in sources]
        if t + 1 < len(events):
            edges.append(Edge("action-transition", action.id, f"action:{name}/{t + 1}"))
        in_state = sorted({*sources, len(shown) - 1})
        state = [shown[i][0] for i in in_state]
        state += [f"corpus:{item}" for item in dict.fromkeys(item for i in in_state for item in shown[i][2])]
        is_last, after_error = t + 1 == len(events), t > 0 and events[t - 1].error
        final = is_last and not event.is_call
        verdict = trajectory.verdict.passed if final else False if event.error else None
        observation = None
        if event.observation is not None:
            observation = f"observation:{name}/{t}"
            nodes.append(Node(observation, "observation", event.observation))
            edges.append(Edge("production", action.id, observation))
            for item in event.evidence:
                nodes.append(Node(f"corpus:{item}", "corpus", item))
                edges.append(Edge("support", f"corpus:{item}", observation))
            shown.append((observation, normal(event.observation), event.evidence))
        if final:
            for verifier in task.verifiers:
                nodes.append(Node(f"verifier:{verifier}", "verifier", verifier))
                label = "passed" if trajectory.verdict.passed else "failed"
                edges.append(Edge("verification", f"verifier:{verifier}", action.id, label))
        reached_back = any(i < len(shown) - 1 - (observation is not None) for i in sources)
        abilities = abilities_of(event.is_call, event.evidence, known, after_error, reached_back, final)
        known.update(event.evidence)
        records.append(Record(name, t, tuple(state), action.id, observation, verdict, abilities))
    return Graph(tuple({node.id: node for node in nodes}.values()), tuple(dict.fromkeys(edges)), tuple(records))


def abilities_of(
    is_call: bool, evidence: Sequence[str], known: set[str], after_error: bool, reached_back: bool, final: bool
) -> tuple[Ability, ...]:
    """Which atomic abilities an action draws on, at least one each.

    Tool calling: it calls a tool. Information acquisition: it brings evidence not shown before. Evidence verification:
    it looks again at evidence already shown, or commits to an answer. Executable iteration: it follows a refusal, so it
    repairs. Constraint tracking: it uses what an observation before the latest one said (or reasons without a tool).
    """
    found: list[Ability] = []
    if set(evidence) - known:
        found.append("information acquisition")
    if is_call:
        found.append("tool calling")
    if after_error:
        found.append("executable iteration")
    if final or set(evidence) & known:
        found.append("evidence verification")
    if reached_back or (not is_call and not final):
        found.append("constraint tracking")
    return tuple(found)


def _events(trajectory: Trajectory) -> list[_Event]:
    """The actions of a trajectory with what they brought about, read from its turns."""
    turns, events = trajectory.turns, []
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        action = read_action(turn.text)
        if isinstance(action, Call):
            after = turns[i + 1] if i + 1 < len(turns) and turns[i + 1].role == "tool" else None
            values = tuple(_leaves(action.arguments))
            text = write_action(action)
            if after is None:  # cut off before the tool answered
                events.append(_Event(text, values, True, None, (), False))
            else:
                events.append(_Event(text, values, True, after.text, after.evidence, after.error))
        else:
            if trajectory.tool_calls == 0:
                events += [_Event(s, tuple(_WORD.findall(s)), False, None, (), False) for s in reasoning(action)]
            events.append(_Event(action.text, (action.text,), False, None, (), False))
    return events


def reasoning(action: Answer) -> list[str]:
    """The steps of a thought: its lines, or its sentences where it is one line."""
    lines = [line.strip() for line in action.thought.splitlines()]
    if len(lines) == 1:
        lines = [part.strip() for part in re.split(r"(?<=[.;])\s+", lines[0])]
    return [line for line in lines if line]


def _sources(values: Sequence[str], shown: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[int]:
    """For each value the latest of ``shown`` that has it as whole words; in order, without repeats."""
    found: set[int] = set()
    for value in sorted({normal(value) for value in values}):
        found.update([i for i in range(len(shown)) if holds(shown[i][1], value)][-1:])
    return sorted(found)


def _leaves(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if isinstance(value, bool) or value is None else [str(value)]


def normal(text: str) -> str:
    """What an answer check compares: case, punctuation, spacing and the form's own "Answer:" taken away."""
    return " ".join(_WORD.findall(text.casefold().strip().removeprefix("answer:")))


def holds(text: str, value: str) -> bool:
    """Whether ``value`` stands in ``text`` as whole words; both are normalised already."""
    return bool(value) and f" {value} " in f" {text} "
