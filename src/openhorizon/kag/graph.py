"""The knowledge-action graph G_d = (C_d, A_d, O_d, V_d) of section 2.2, built from trajectories.

Nodes are typed (corpus, action, observation, verifier), and so are edges:

* support: corpus → observation, the evidence that an observation shows;
* dependency: observation → action, an argument of the action stands in it (in the latest one that has it);
* production: action → observation, what the action brought about;
* action-transition: action → the next action;
* verification: verifier → the action it judged, labelled with the outcome.

Actions, records and edges are labelled with the five atomic abilities. A production edge has those of its action, an
action-transition edge those of the action it leads to. A support edge is information acquisition where the evidence is
new to the trajectory and evidence verification where it is not; a dependency edge is constraint tracking where it
reaches back behind the latest observation; a verification edge is evidence verification.

One record (s_t, a_t, o_t, v_t) stands for each action. The state s_t holds the observations that the action depends
on, the latest observation and the corpus items these show, so s_t ⊆ C_d ∪ O_<t. The question is the observation before
the first action. v_t is None (the paper's ⊥) except where a verifier fired: an environment's refusal, and the final
verdict. Failed trajectories are kept beside successful ones, for credit assignment.

Ours: the paper names the five atomic abilities but not how a label is found; ``abilities_of`` says what we take each
to mean, without knowledge of any domain. In a domain without tools an action is a reasoning step: one line of the
thought, then the answer. Corpus items and verifiers of two worlds are different nodes, also where their names agree.

A graph on disk, of many trajectories, is ``store``'s; here is the part of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from openhorizon.agent.render import read_action, write_action
from openhorizon.agent.trajectory import Trajectory
from openhorizon.domains.base import Answer, Call
from openhorizon.kag.phrases import WORD, Phrases
from openhorizon.kag.phrases import holds as holds  # self-play's rules look for answers in the same way
from openhorizon.kag.phrases import normal as normal

NodeKind = Literal["corpus", "action", "observation", "verifier"]
EdgeKind = Literal["support", "dependency", "production", "verification", "action-transition"]
Ability = Literal[
    "information acquisition", "tool calling", "executable iteration", "evidence verification", "constraint tracking"
]
NODE_KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
EDGE_KINDS: tuple[EdgeKind, ...] = get_args(EdgeKind)
ABILITIES: tuple[Ability, ...] = get_args(Ability)


@dataclass(frozen=True)
class Node:
    """``step`` is an action's or observation's place in its trajectory; -1 for the question and for what trajectories
    share (corpus, verifier)."""

    id: str
    kind: NodeKind
    text: str
    step: int = -1
    abilities: tuple[Ability, ...] = ()  # of an action


@dataclass(frozen=True)
class Edge:
    kind: EdgeKind
    source: str
    target: str
    label: str = ""  # of a verification: passed or failed
    abilities: tuple[Ability, ...] = ()


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
class Part:
    """What one trajectory contributes: nodes, edges and records, each once, in order of appearance."""

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


def of_trajectory(name: str, trajectory: Trajectory) -> Part:
    """The part of the graph that one trajectory contributes; ``name`` tells its nodes from other trajectories'."""
    task, events = trajectory.task, _events(trajectory)
    scope = f"{task.source}/" if task.source else ""
    prompt = Node(f"observation:{name}/prompt", "observation", task.prompt)
    nodes, edges, records = [prompt], [], []
    # Without tools the question's text holds the evidence.
    evidence = [() if any(event.is_call for event in events) else task.evidence]
    shown, texts = [prompt.id], Phrases()  # what was seen so far; shown, texts and evidence run in step
    texts.add(normal(task.prompt))
    known: set[str] = set()

    def support(items: Sequence[str], observation: str) -> None:
        for item in items:
            ability: Ability = "evidence verification" if item in known else "information acquisition"
            nodes.append(Node(f"corpus:{scope}{item}", "corpus", item))
            edges.append(Edge("support", f"corpus:{scope}{item}", observation, abilities=(ability,)))
        known.update(items)

    support(evidence[0], prompt.id)
    for t, event in enumerate(events):
        action, latest = f"action:{name}/{t}", len(shown) - 1
        sources = _sources(event.values, texts)
        final = t + 1 == len(events) and not event.is_call
        after_error, reached_back = t > 0 and events[t - 1].error, bool(sources) and sources[0] < latest
        abilities = abilities_of(event.is_call, event.evidence, known, after_error, reached_back, final)
        nodes.append(Node(action, "action", event.text, t, abilities))
        for i in sources:
            edges.append(Edge("dependency", shown[i], action, abilities=("constraint tracking",) if i < latest else ()))
        if t > 0:
            edges.append(Edge("action-transition", f"action:{name}/{t - 1}", action, abilities=abilities))
        in_state = sorted({*sources, latest})
        state = [shown[i] for i in in_state]
        state += dict.fromkeys(f"corpus:{scope}{item}" for i in in_state for item in evidence[i])
        verdict = trajectory.verdict.passed if final else False if event.error else None
        observation = None
        if event.observation is not None:
            observation = f"observation:{name}/{t}"
            nodes.append(Node(observation, "observation", event.observation, t))
            edges.append(Edge("production", action, observation, abilities=abilities))
            support(event.evidence, observation)
            shown.append(observation)
            texts.add(normal(event.observation))
            evidence.append(event.evidence)
        if final:
            for verifier in task.verifiers:
                nodes.append(Node(f"verifier:{scope}{verifier}", "verifier", verifier))
                label = "passed" if trajectory.verdict.passed else "failed"
                edges.append(
                    Edge("verification", f"verifier:{scope}{verifier}", action, label, ("evidence verification",))
                )
        records.append(Record(name, t, tuple(state), action, observation, verdict, abilities))
    return Part(tuple({node.id: node for node in nodes}.values()), tuple(dict.fromkeys(edges)), tuple(records))


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
                events += [_Event(s, tuple(WORD.findall(s)), False, None, (), False) for s in reasoning(action)]
            events.append(_Event(action.text, (action.text,), False, None, (), False))
    return events


def reasoning(action: Answer) -> list[str]:
    """The steps of a thought: its lines, or its sentences where it is one line."""
    lines = [line.strip() for line in action.thought.splitlines()]
    if len(lines) == 1:
        lines = [part.strip() for part in re.split(r"(?<=[.;])\s+", lines[0])]
    return [line for line in lines if line]


def _sources(values: Sequence[str], shown: Phrases) -> list[int]:
    """For each value the latest of ``shown`` that has it as whole words; in order, without repeats."""
    latest = {shown.latest(value) for value in {normal(value) for value in values}}
    return sorted(i for i in latest if i is not None)


def _leaves(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if isinstance(value, bool) or value is None else [str(value)]
