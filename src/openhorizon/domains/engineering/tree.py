"""The solution tree and the paper's twelve tools for it (section 3, engineering), shared by both worlds.

A node is a version of the code. It is *untested* until it has run, then *ok* (it ran to its end and its submission has
the right format) or *failed*; *invalid* is what the agent itself declared. A patch makes a child of the current node.
Only an ok node can be handed in, and what is handed in is the submission that its own run wrote: no file that was
copied or edited elsewhere. Private answers are no part of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openhorizon.domains.base import Tool

NodeStatus = Literal["untested", "ok", "failed", "invalid"]


class TreeError(ValueError):
    """What the agent asked of the tree cannot be done; the text says why."""


@dataclass
class Node:
    """A version of the code, with what its run gave."""

    id: str
    parent: str
    code: str
    status: NodeStatus = "untested"
    score: str = ""  # of the public data, as the code printed it
    submission: str | None = None
    why: str = ""  # it is invalid or failed


class Tree:
    """Nodes by id, in the order they were made. ``name`` gives a new node its id, from its parent, its code and how
    many nodes there are; the same id again is the same node."""

    def __init__(self, name: Callable[[str, str, int], str]) -> None:
        self.nodes: dict[str, Node] = {}
        self.current = ""
        self.answer = ""
        self._name = name

    def write(self, code: str, parent: str = "") -> Node:
        """A node with this code, made current."""
        key = self._name(parent, code, len(self.nodes))
        node = self.nodes.setdefault(key, Node(key, parent, code))
        if node.status != "invalid":
            self.current = key
        return node

    def patch(self, old: str, new: str) -> Node:
        """A child of the current node in which ``old``, which must be there exactly once, became ``new``."""
        node = self.get(self.current) if self.current else None
        if node is None:
            raise TreeError("no node is selected")
        if node.code.count(old) != 1:
            raise TreeError(f"the old text is {node.code.count(old)} times in {node.id}, not once")
        return self.write(node.code.replace(old, new), node.id)

    def get(self, key: str) -> Node:
        if key not in self.nodes:
            raise TreeError(f"no node {key[:12]}")
        return self.nodes[key]

    def select(self, key: str) -> Node:
        node = self.get(key)
        if node.status == "invalid":
            raise TreeError(f"{key} is invalid")
        self.current = key
        return node

    def invalidate(self, key: str, why: str) -> Node:
        """Nothing can be built on the node any more, and it cannot be handed in. Its children stay as they are."""
        node = self.get(key)
        if node.status == "invalid":
            raise TreeError(f"{key} is invalid already")
        node.status, node.why = "invalid", why
        if self.current == key:
            self.current = ""
        if self.answer == key:
            self.answer = ""
        return node

    def hand_in(self, key: str) -> Node:
        node = self.get(key)
        if node.status != "ok":
            raise TreeError(f"{key} is {node.status}" + (f": {node.why}" if node.why else ""))
        self.answer = key
        return node


def _tool(name: str, description: str, required: Mapping[str, int], optional: Mapping[str, int] | None = None) -> Tool:
    """Arguments are texts; the number is how many characters they may have."""
    limits = {**required, **(optional or {})}
    properties: dict[str, Any] = {
        argument: {"type": "string", "minLength": 1, "maxLength": limit} for argument, limit in limits.items()
    }
    if "new" in properties:  # a patch may delete
        properties["new"]["minLength"] = 0
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return Tool(name, description, schema)


def tools(code_chars: int) -> tuple[Tool, ...]:
    """The paper's twelve, by name."""
    return (
        _tool("write_full_code", "Make a new node of the solution tree with this code.", {"code": code_chars}),
        _tool(
            "patch_code",
            "Make a child of the current node: old, which must stand there once, becomes new.",
            {"old": code_chars, "new": code_chars},
        ),
        _tool("execute_code", "Run a node's code beside the competition's public files.", {"node": 12}),
        _tool("execute_bash", "Run a shell command beside the same files.", {"command": 400}),
        _tool("list_nodes", "The tree: nodes with parents, status and score.", {}),
        _tool("select_node", "Make a node the current one; shows its code.", {"node": 12}),
        _tool("invalidate_node", "Declare a node invalid.", {"node": 12}, {"reason": 400}),
        _tool("update_answer", "Hand in the submission that a node's run wrote.", {"node": 12}),
        _tool("get_current_answer", "Which node is handed in.", {}),
        _tool("write_notes", "Add to the notes.", {"text": 1200}),
        _tool("read_notes", "The notes.", {}),
        _tool("analyze", "Have data or a node looked at apart from the tree; gives a report.", {"about": 200}),
    )
