"""A tool-dependency graph derived from schemas, and constrained search over it (section 3, tool calling).

A ``Node`` is a tool with the JSON Schema of what it takes and of what it returns, the facts that it needs and brings
about, and the resources (tables) that it reads and writes. ``derive`` draws three kinds of edges from that alone:

* type: a field of the one's return value feeds a required parameter of the other. Two fields match by ``format``, by
  ``enum`` (the source's values are among the target's), by ``pattern``, or else by name and type;
* effect: a fact that the one brings about is a precondition of the other;
* resource: the one writes a table that the other reads or writes.

    find_customer --customer-id--> list_orders --order-id--> cancel_order
    verify_customer --verified--> list_orders             get_policy --retail-clause--> cancel_order

``search`` finds the shortest chain of calls that brings about a set of facts. A graph with a malformed schema, a type
that nobody gives, a fact that nobody brings about, or tools that wait for one another is no crash: ``problems`` names
each by its reason, and the search, which is bounded, says why it found nothing.

A task made from a chain is screened by four functions, each "" or the reason of its refusal: ``unavailable`` (an
argument that nothing before it gives), ``unreachable``, ``not_executable`` (replayed in the simulator), ``uncovered``
(an effect that the verifier would not miss).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 12  # of a schema
MAX_STATES = 20_000  # of a search
TYPES = {"string", "integer", "number", "boolean"}


@dataclass(frozen=True)
class Leaf:
    """A scalar field: what may feed, or be fed. ``values`` are those of an enum."""

    name: str
    type: str
    format: str = ""
    pattern: str = ""
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.format or ("|".join(self.values) if self.values else self.pattern or f"{self.name}: {self.type}")


@dataclass(frozen=True)
class Node:
    """A tool, or one use of it, in the graph."""

    name: str
    parameters: Mapping[str, Any]
    returns: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    needs: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edge:
    source: str
    kind: str  # type, effect, resource
    label: str
    target: str


@dataclass(frozen=True)
class Problem:
    """Why a tool cannot be used as declared."""

    reason: str  # malformed schema, dangling type, missing fact, cycle, unreachable
    tool: str
    detail: str


@dataclass(frozen=True)
class Found:
    """What a search came to: a chain, or why there is none."""

    chain: tuple[str, ...] | None
    reason: str
    states: int


@dataclass(frozen=True)
class Graph:
    """``given`` is what a caller has from the start or can always write himself (a message, a name in the request)."""

    nodes: Mapping[str, Node]
    inputs: Mapping[str, tuple[Leaf, ...]]  # required ones
    outputs: Mapping[str, tuple[Leaf, ...]]
    given: frozenset[Leaf]
    facts: frozenset[str]
    edges: tuple[Edge, ...]
    problems: tuple[Problem, ...]


def feeds(source: Leaf, target: Leaf) -> str:
    """How a field's value can stand for a parameter: "format", "enum", "pattern", "name", or "" where it cannot."""
    numeric = source.type == "integer" and target.type == "number"
    if source.type != target.type and not numeric:
        return ""
    if source.format or target.format:
        return "format" if source.format == target.format else ""
    if target.values:
        return "enum" if source.values and set(source.values) <= set(target.values) else ""
    if source.pattern or target.pattern:
        return "pattern" if source.pattern == target.pattern else ""
    return "name" if source.name == target.name else ""


def leaves(schema: Mapping[str, Any], required_only: bool = False) -> tuple[Leaf, ...]:
    """The scalar fields of an object's schema, those of nested objects and lists, too.

    Raises:
        ValueError: what it holds is no schema of objects, lists and scalars.
    """
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        raise ValueError("not an object's schema")
    found: list[Leaf] = []
    _walk("", schema, required_only, 0, found)
    return tuple(dict.fromkeys(found))


def _walk(name: str, schema: Any, required_only: bool, depth: int, found: list[Leaf]) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if not isinstance(schema, Mapping):
        raise ValueError(f"field {name!r} has no schema")
    if "$ref" in schema:
        raise ValueError(f"field {name!r} refers to {schema['$ref']!r}: write it out")
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        if not isinstance(properties, Mapping):
            raise ValueError(f"properties of {name!r} are no object")
        wanted = schema.get("required", ()) if required_only else properties
        for key in wanted:
            if key not in properties:
                raise ValueError(f"field {key!r} is required but not declared")
            _walk(key, properties[key], required_only, depth + 1, found)
    elif kind == "array":
        _walk(name, schema.get("items"), required_only, depth + 1, found)
    elif kind in TYPES:
        values = schema.get("enum", [schema["const"]] if "const" in schema else ())
        pattern, form = schema.get("pattern", ""), schema.get("format", "")
        found.append(Leaf(name, kind, form, "" if form else pattern, tuple(str(v) for v in values)))
    else:
        raise ValueError(f"field {name!r} has type {kind!r}")


def derive(nodes: Iterable[Node], given: Iterable[Leaf] = (), facts: Iterable[str] = ()) -> Graph:
    """The graph of these tools; a tool whose schemas cannot be read is left out and reported."""
    kept: dict[str, Node] = {}
    inputs: dict[str, tuple[Leaf, ...]] = {}
    outputs: dict[str, tuple[Leaf, ...]] = {}
    problems: list[Problem] = []
    for node in nodes:
        try:
            takes, gives = leaves(node.parameters, required_only=True), leaves(node.returns)
        except ValueError as error:
            problems.append(Problem("malformed schema", node.name, str(error)))
            continue
        if node.name in kept:
            problems.append(Problem("malformed schema", node.name, "declared twice"))
            continue
        kept[node.name], inputs[node.name], outputs[node.name] = node, takes, gives
    have, start = frozenset(given), frozenset(facts)
    edges = tuple(_edges(kept, inputs, outputs))
    problems += _stuck(kept, inputs, outputs, have, start)
    return Graph(kept, inputs, outputs, have, start, edges, tuple(problems))


def _edges(
    nodes: Mapping[str, Node], inputs: Mapping[str, tuple[Leaf, ...]], outputs: Mapping[str, tuple[Leaf, ...]]
) -> Iterable[Edge]:
    for source, giver in nodes.items():
        for target, taker in nodes.items():
            labels = [str(leaf) for leaf in inputs[target] if any(feeds(out, leaf) for out in outputs[source])]
            yield from (Edge(source, "type", label, target) for label in dict.fromkeys(labels))
            yield from (Edge(source, "effect", fact, target) for fact in giver.adds if fact in taker.needs)
            if source != target:
                touched = (*taker.reads, *taker.writes)
                yield from (Edge(source, "resource", table, target) for table in giver.writes if table in touched)


def _stuck(
    nodes: Mapping[str, Node],
    inputs: Mapping[str, tuple[Leaf, ...]],
    outputs: Mapping[str, tuple[Leaf, ...]],
    given: frozenset[Leaf],
    facts: frozenset[str],
) -> list[Problem]:
    """Everything that can never be called, by the reason that comes first."""
    usable: set[str] = set()
    known, true = set(given), set(facts)
    while True:
        new = [
            name
            for name, node in nodes.items()
            if name not in usable and true.issuperset(node.needs) and _fed(inputs[name], known)
        ]
        if not new:
            break
        for name in new:
            usable.add(name)
            known.update(outputs[name])
            true.update(nodes[name].adds)
    found: list[Problem] = []
    waits: dict[str, set[str]] = {}  # tool that is stuck → tools that could help it
    anywhere = set(given).union(*outputs.values()) if outputs else set(given)
    for name, node in nodes.items():
        if name in usable:
            continue
        dangling = [str(leaf) for leaf in inputs[name] if not _fed((leaf,), anywhere)]
        nobody = [f for f in node.needs if f not in facts and not any(f in other.adds for other in nodes.values())]
        if dangling:
            found.append(Problem("dangling type", name, f"no tool gives {', '.join(dangling)}"))
        elif nobody:
            found.append(Problem("missing fact", name, f"no tool brings about {', '.join(nobody)}"))
        else:
            lacking = [leaf for leaf in inputs[name] if not _fed((leaf,), known)]
            wanted = [fact for fact in node.needs if fact not in true]
            waits[name] = {
                other
                for other in nodes
                if any(feeds(out, leaf) for out in outputs[other] for leaf in lacking)
                or any(fact in nodes[other].adds for fact in wanted)
            }
    for name in waits:
        reached = _reached(name, waits)
        reason, detail = "unreachable", f"waits for {', '.join(sorted(waits[name]))}, which cannot be called"
        if name in reached:
            members = sorted(other for other in reached if name in _reached(other, waits))
            reason, detail = "cycle", f"each of {', '.join(members)} waits for another of them"
        found.append(Problem(reason, name, detail))
    return found


def _reached(start: str, waits: Mapping[str, set[str]]) -> set[str]:
    """Everything that ``start`` waits for, directly or not; itself, where it is on a cycle."""
    seen: set[str] = set()
    waiting = sorted(waits.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += sorted(waits.get(name, ()))
    return seen


def _fed(wanted: Iterable[Leaf], known: Collection[Leaf]) -> bool:
    return all(any(_feeds(have, leaf) for have in known) for leaf in wanted)


_feeds = functools.lru_cache(maxsize=None)(feeds)


def helpful(graph: Graph, goals: Collection[str]) -> list[str]:
    """The tools that can have a part in bringing about ``goals``, in the graph's order: a tool with an effect of its
    own that no goal asks for is not among them. This is the search's constraint: no chain does more than it should."""
    wanted_facts, wanted = set(goals), set[Leaf]()
    chosen: set[str] = set()
    while True:
        new = [
            name
            for name, node in graph.nodes.items()
            if name not in chosen
            and (
                not wanted_facts.isdisjoint(node.adds)
                or (not node.writes and any(_feeds(out, leaf) for out in graph.outputs[name] for leaf in wanted))
            )
        ]
        if not new:
            return [name for name in graph.nodes if name in chosen]
        for name in new:
            chosen.add(name)
            wanted_facts.update(graph.nodes[name].needs)
            wanted.update(graph.inputs[name])


def search(
    graph: Graph,
    goals: Collection[str],
    known: Collection[Leaf] = (),
    facts: Collection[str] = (),
    max_calls: int = 16,
    max_states: int = MAX_STATES,
) -> Found:
    """The shortest chain of calls after which all of ``goals`` hold, starting with what is ``known`` and true besides
    what the graph gives; of several the first in the graph's order. Breadth-first over (fields known, facts)."""
    missing = [goal for goal in goals if goal not in facts and not any(goal in n.adds for n in graph.nodes.values())]
    if missing:
        return Found(None, f"no tool brings about {', '.join(sorted(missing))}", 0)
    tools = helpful(graph, goals)
    true, have = graph.facts.union(facts), graph.given.union(known)
    wanted = list(dict.fromkeys(leaf for name in tools for leaf in graph.inputs[name]))  # a bit of a state each
    matter = sorted({*goals, *(fact for name in tools for fact in graph.nodes[name].needs)})
    needs, gives = {}, {}
    for name in tools:
        node, out = graph.nodes[name], graph.outputs[name]
        needs[name] = _bits(wanted, set(graph.inputs[name])), _bits(matter, set(node.needs))
        fed = {leaf for leaf in wanted if any(_feeds(leaf_out, leaf) for leaf_out in out)}
        gives[name] = _bits(wanted, fed), _bits(matter, set(node.adds))
    target = _bits(matter, set(goals))
    begin = _bits(wanted, {leaf for leaf in wanted if _fed((leaf,), have)}), _bits(matter, true)
    chains: dict[tuple[int, int], tuple[str, ...]] = {begin: ()}
    waiting = deque([begin])
    while waiting:
        state = waiting.popleft()
        if state[1] & target == target:
            return Found(chains[state], "", len(chains))
        if len(chains[state]) >= max_calls:
            return Found(None, f"more than {max_calls} calls", len(chains))
        for name in tools:
            if any(need & ~held for need, held in zip(needs[name], state, strict=True)):
                continue
            after = state[0] | gives[name][0], state[1] | gives[name][1]
            if after in chains:
                continue
            if len(chains) >= max_states:
                return Found(None, f"more than {max_states} states", len(chains))
            chains[after] = (*chains[state], name)
            waiting.append(after)
    stuck = [f"{p.tool} ({p.reason}: {p.detail})" for p in graph.problems if p.tool in tools]
    return Found(
        None, f"no chain reaches {', '.join(sorted(goals))}; {'; '.join(stuck) or 'not with these givens'}", len(chains)
    )


def _bits(items: Sequence[Any], held: Collection[Any]) -> int:
    return sum(1 << i for i, item in enumerate(items) if item in held)


def unavailable(graph: Graph, chain: Sequence[str], known: Collection[Leaf] = ()) -> str:
    """Screen 1, argument availability: everything that a call takes is given or returned by a call before it."""
    have = set(graph.given).union(known)
    for name in chain:
        if name not in graph.nodes:
            return f"{name}: no such tool"
        lacking = [str(leaf) for leaf in graph.inputs[name] if not _fed((leaf,), have)]
        if lacking:
            return f"{name}: nothing before it gives {', '.join(lacking)}"
        have.update(graph.outputs[name])
    return ""


def unreachable(graph: Graph, chain: Sequence[str], goals: Collection[str], facts: Collection[str] = ()) -> str:
    """Screen 2, reachability: every precondition holds when its turn comes, and the goals hold in the end."""
    true = set(graph.facts).union(facts)
    for name in chain:
        lacking = [fact for fact in graph.nodes[name].needs if fact not in true]
        if lacking:
            return f"{name}: {', '.join(lacking)} does not hold yet"
        true.update(graph.nodes[name].adds)
    left = sorted(set(goals) - true)
    return f"not reached: {', '.join(left)}" if left else ""


def not_executable(refusals: Sequence[str], calls: int, horizon: int) -> str:
    """Screen 3, executability, of a replay in the simulator: nothing was refused, and it took as many calls as told."""
    if refusals:
        return f"{len(refusals)} call(s) refused, the first: {refusals[0]}"
    return "" if calls == horizon else f"took {calls} calls, not {horizon}"


def uncovered(effects: Sequence[str], refused_without: Callable[[str], bool]) -> str:
    """Screen 4, verifier coverage: ``refused_without(effect)`` is asked of each effect that the goal names whether the
    verifier refuses an end state that lacks it."""
    if not effects:
        return "the goal names no effect"
    blind = [effect for effect in effects if not refused_without(effect)]
    return f"the verifier does not miss {', '.join(blind)}" if blind else ""
