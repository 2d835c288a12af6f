"""The graph derived from schemas: its edges, its searches against a slow reference, what is wrong with it by reason."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from openhorizon.domains.tool_calling import desk_tickets as desk
from openhorizon.domains.tool_calling.desk_tickets import Spec, edges, plan
from openhorizon.domains.tool_calling.services.requests import tool_graph
from openhorizon.domains.tool_calling.tool_graph import (
    Edge,
    Graph,
    Leaf,
    Node,
    derive,
    feeds,
    helpful,
    leaves,
    not_executable,
    search,
    unavailable,
    uncovered,
    unreachable,
)

STRING = {"type": "string"}


def schema(*formats: str) -> dict[str, Any]:
    fields = {name: {"type": "string", "format": name} for name in formats}
    return {"type": "object", "properties": fields, "required": list(formats)}


def shop() -> Graph:
    return derive(
        [
            Node("find", schema("name"), schema("customer"), reads=("customers",)),
            Node("verify", schema("customer"), adds=("verified",)),
            Node("orders", schema("customer"), schema("order"), needs=("verified",), reads=("orders",)),
            Node("policy", schema(), schema("clause")),
            Node(
                "cancel",
                schema("order", "clause"),
                schema("receipt"),
                ("verified",),
                ("done",),
                writes=("orders",),
            ),
            Node("mail", schema("customer", "receipt"), needs=("verified",), adds=("mailed",), writes=("mails",)),
        ],
        [Leaf("name", "string", "name")],
    )


def test_edges_come_from_types_effects_and_resources() -> None:
    found = set(shop().edges)
    assert Edge("find", "type", "customer", "orders") in found
    assert Edge("policy", "type", "clause", "cancel") in found
    assert Edge("verify", "effect", "verified", "cancel") in found
    assert Edge("cancel", "resource", "orders", "orders") in found
    assert not any(edge.source == "cancel" and edge.target == "policy" for edge in found)
    assert shop().problems == ()


@pytest.mark.parametrize(
    ("source", "target", "how"),
    [
        (Leaf("a", "string", "id"), Leaf("b", "string", "id"), "format"),
        (Leaf("a", "string", "id"), Leaf("a", "string", "other"), ""),
        (Leaf("a", "string", "id"), Leaf("a", "string"), ""),
        (Leaf("a", "string", values=("x",)), Leaf("b", "string", values=("x", "y")), "enum"),
        (Leaf("a", "string", values=("x", "z")), Leaf("b", "string", values=("x", "y")), ""),
        (Leaf("a", "string"), Leaf("a", "string", values=("x",)), ""),
        (Leaf("a", "string", pattern="^r"), Leaf("b", "string", pattern="^r"), "pattern"),
        (Leaf("a", "string", pattern="^r"), Leaf("a", "string", pattern="^s"), ""),
        (Leaf("a", "string"), Leaf("a", "string"), "name"),
        (Leaf("a", "string"), Leaf("b", "string"), ""),
        (Leaf("a", "integer"), Leaf("a", "number"), "name"),
        (Leaf("a", "number"), Leaf("a", "integer"), ""),
    ],
)
def test_types_match_by_format_enum_pattern_or_name(source: Leaf, target: Leaf, how: str) -> None:
    assert feeds(source, target) == how


def test_leaves_reach_into_objects_and_lists() -> None:
    nested = {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "items": {"type": "object", "properties": {"id": {**STRING, "format": "id"}}}},
            "note": STRING,
        },
        "required": ["note"],
    }
    assert leaves(nested) == (Leaf("id", "string", "id"), Leaf("note", "string"))
    assert leaves(nested, required_only=True) == (Leaf("note", "string"),)


def test_the_shortest_chain_is_found() -> None:
    graph = shop()
    found = search(graph, ["done"])
    assert found.chain == ("find", "verify", "orders", "policy", "cancel") and found.reason == ""
    both = search(graph, ["done", "mailed"])
    assert both.chain is not None and both.chain[-1] == "mail" and len(both.chain) == 6
    known = search(graph, ["done"], [Leaf("order", "string", "order")], ["verified"])
    assert known.chain == ("policy", "cancel")
    assert search(graph, ["verified"], facts=["verified"]).chain == ()
    assert "mail" not in helpful(graph, ["done"])  # no chain does more than it should


def test_search_agrees_with_trying_everything() -> None:
    """Random graphs of six tools against every sequence of calls, shortest first."""
    solved = 0
    for seed in range(120):
        rng = random.Random(seed)
        kinds, facts = ["a", "b", "c", "d"], ["p", "q", "r"]
        nodes = [
            Node(
                f"t{i}",
                schema(*rng.sample(kinds, rng.randint(0, 2))),
                schema(*rng.sample(kinds, rng.randint(0, 2))),
                tuple(rng.sample(facts, rng.randint(0, 1))),
                tuple(rng.sample(facts, rng.randint(0, 1))),
            )
            for i in range(6)
        ]
        graph = derive(nodes, [Leaf("a", "string", "a")])
        found = search(graph, ["r"], max_calls=4)
        assert (found.chain and len(found.chain)) == brute(graph, "r", 4), (seed, found)
        if found.chain:
            solved += 1
            assert unavailable(graph, found.chain) == "" == unreachable(graph, found.chain, ["r"])
        else:
            assert found.reason
    assert 30 < solved < 115


def brute(graph: Graph, goal: str, most: int) -> int | None:
    for length in range(most + 1):
        for chain in itertools.permutations(graph.nodes, length):
            if not unavailable(graph, chain) and not unreachable(graph, chain, [goal]):
                return length
    return None


def reasons(graph: Graph) -> dict[str, str]:
    return {problem.tool: problem.reason for problem in graph.problems}


def test_what_cannot_be_used_is_reported_by_reason() -> None:
    graph = derive(
        [
            Node("hen", schema("egg"), schema("chick")),
            Node("nest", schema("chick"), schema("egg"), adds=("laid",)),
            Node("kitchen", schema("egg"), adds=("omelette",)),
            Node("moon", schema("cheese"), adds=("landed",)),
            Node("dream", schema(), needs=("asleep",), adds=("dreamt",)),
            Node("text", {"type": "string"}),
            Node("hole", {"type": "object", "properties": {"x": None}, "required": ["x"]}),
            Node("link", {"type": "object", "properties": {"x": {"$ref": "#/x"}}, "required": ["x"]}),
            Node("void", {"type": "object", "required": ["x"]}),
            Node("fine", schema(), adds=("done",)),
            Node("fine", schema()),
        ]
    )
    assert reasons(graph) == {
        "hen": "cycle", "nest": "cycle", "kitchen": "unreachable", "moon": "dangling type", "dream": "missing fact",
        "text": "malformed schema", "hole": "malformed schema", "link": "malformed schema", "void": "malformed schema",
        "fine": "malformed schema",
    }  # fmt: skip
    details = {problem.tool: problem.detail for problem in graph.problems}
    assert details["hen"] == "each of hen, nest waits for another of them"
    assert details["moon"] == "no tool gives cheese"
    assert details["link"] == "field 'x' refers to '#/x': write it out"
    for goal, why in [
        ("omelette", "cycle"),
        ("landed", "dangling type"),
        ("dreamt", "missing fact"),
        ("flown", "no tool brings about"),
    ]:
        found = search(graph, [goal])
        assert found.chain is None and why in found.reason, goal
    assert search(graph, ["done"]).chain == ("fine",)


def test_a_cycle_through_facts_is_one() -> None:
    graph = derive([Node("a", schema(), needs=("q",), adds=("p",)), Node("b", schema(), needs=("p",), adds=("q",))])
    assert reasons(graph) == {"a": "cycle", "b": "cycle"}
    assert search(graph, ["p"], facts=["q"]).chain == ("a",)  # unless it is entered from outside


def test_a_schema_without_end_is_malformed() -> None:
    endless: dict[str, Any] = {"type": "object", "properties": {}, "required": ["self"]}
    endless["properties"]["self"] = endless
    assert reasons(derive([Node("loop", endless)])) == {"loop": "malformed schema"}


def test_search_is_bounded() -> None:
    """Twenty independent tools that the goal needs all: 2^20 states, and no more than allowed are looked at."""
    parts = [Node(f"t{i}", schema(), adds=(f"f{i}",)) for i in range(20)]
    graph = derive([*parts, Node("end", schema(), needs=tuple(f"f{i}" for i in range(20)), adds=("end",))])
    found = search(graph, ["end"], max_calls=30, max_states=2000)
    assert (found.chain, found.reason, found.states) == (None, "more than 2000 states", 2000)
    assert search(graph, ["end"], max_calls=3).reason == "more than 3 calls"


def test_screens() -> None:
    graph = shop()
    chain = ("find", "verify", "orders", "policy", "cancel")
    assert unavailable(graph, chain) == "" == unreachable(graph, chain, ["done"])
    assert unavailable(graph, ("find", "cancel")) == "cancel: nothing before it gives order, clause"
    assert unavailable(graph, ("fly",)) == "fly: no such tool"
    assert unreachable(graph, ("find", "orders"), []) == "orders: verified does not hold yet"
    assert unreachable(graph, chain, ["done", "mailed"]) == "not reached: mailed"
    assert not_executable([], 5, 5) == ""
    assert not_executable(["locked", "lost"], 5, 5) == "2 call(s) refused, the first: locked"
    assert not_executable([], 6, 5) == "took 6 calls, not 5"
    assert uncovered(["a", "b"], lambda effect: True) == ""
    assert uncovered(["a", "b"], lambda effect: effect == "a") == "the verifier does not miss b"
    assert uncovered([], lambda effect: True) == "the goal names no effect"


def test_services_have_a_sound_graph_of_all_three_kinds_of_edges() -> None:
    graph = tool_graph()
    assert graph.problems == ()
    assert {edge.kind for edge in graph.edges} == {"type", "effect", "resource"}
    crossing = {(e.source.split("_")[0], e.target.split("_")[0]) for e in graph.edges if e.label == "confirmation"}
    assert ("travel", "office") in crossing and ("retail", "office") in crossing and ("telecom", "office") in crossing


def desk_graph(calm: Mapping[str, desk.Link]) -> Graph:
    """The service desk's own graph in this form: what it gives and needs, and its refusals as tools of their own, which
    give the lock or the bill."""
    kinds = {kind: {**shape, "format": kind} for kind, shape in desk.TYPES.items()}

    def of(names: tuple[str, ...]) -> dict[str, Any]:
        return {"type": "object", "properties": {n: kinds[n] for n in names}, "required": list(names)}

    nodes = [
        Node(n, of(link.needs), of(link.gives), link.after, (link.adds,) if link.adds else ())
        for n, link in calm.items()
    ]
    return derive(nodes, leaves(of(("ticket", "name", "order", "receipt"))))


def test_the_desks_graph_is_the_one_that_its_schemas_give() -> None:
    derived = {(e.source, e.label, e.target) for e in desk_graph(desk.GRAPH).edges if e.kind in ("type", "effect")}
    told = set(edges())
    obstacles = {edge for edge in told if edge[1] in ("lock", "bill") and edge[0] in desk.ACTIONS}
    assert derived == told - obstacles


@pytest.mark.parametrize("goal", desk.ACTIONS)
@pytest.mark.parametrize("given", ["name", "order"])
def test_the_desks_plans_are_found_in_it(goal: str, given: str) -> None:
    kinds = {kind: {**shape, "format": kind} for kind, shape in desk.TYPES.items()}
    nodes = [
        Node(
            name,
            {"type": "object", "properties": {n: kinds[n] for n in link.needs}, "required": list(link.needs)},
            {"type": "object", "properties": {n: kinds[n] for n in link.gives}},
            (desk.GRAPH[goal].adds,) if name == "close_ticket" else (),
            (link.adds,) if link.adds else (),
        )
        for name, link in desk.GRAPH.items()
        if name != "next_ticket" and (name == goal or name not in desk.ACTIONS)
    ]
    known = [Leaf(kind, "string", kind) for kind in desk.GIVEN[given]]
    found = search(derive(nodes, known), ["closed"])
    assert found.chain == plan(Spec(goal, given, False, False, ""))
