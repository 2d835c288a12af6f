"""What is kept of a long run when its context is cut: made of what the agent itself called and was shown, nothing else.

``recall`` gives the brief, the agent's notes, the nodes with status, score and the column that each needs least, the
current node's code, the open assignment with what was done for it, and the end of the last output: enough to go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from openhorizon.domains.base import Step
from openhorizon.domains.engineering.scripts import CV, least_needed

TAIL_LINES = 8  # of the last output
_LEAD = re.compile(r"^Lead: .+$", re.MULTILINE)


@dataclass
class _Version:
    """A node as its user knows it."""

    code: str = ""
    parent: str = ""
    status: str = "untested"
    least: str = ""

    def line(self, key: str) -> str:
        parent = f" of {self.parent}" if self.parent else ""
        return f"{key}{parent}: {self.status}" + (f", needs {self.least} least" if self.least else "")


def recall(steps: Sequence[Step]) -> str:
    """The memory behind these calls and observations; empty before the first."""
    brief, notes, done = "", list[str](), list[str]()
    nodes: dict[str, _Version] = {}
    lead = current = handed = ""
    for step in steps:
        name, values, text = step.call.name, step.call.arguments, step.observation.text
        own = text.partition("\n\nLead: ")[0]
        refused = text.startswith("error: ")
        if not refused:
            done.append(" ".join([name, *([values["node"]] if "node" in values else [])]))
        if name == "read_notes" and not refused:
            brief = own.partition("\n\nNote 1: ")[0]
        elif name == "write_notes" and not refused:
            notes.append(values["text"])
        elif name == "write_full_code" and not refused:
            current = own.partition(":")[0]
            nodes[current] = _Version(values["code"])
        elif name == "patch_code" and not refused:
            parent, current = current, own.partition(",")[0]
            code = nodes[parent].code if parent in nodes else ""
            nodes[current] = _Version(code.replace(values["old"], values["new"]), parent)
        elif name == "select_node" and not refused:
            current = values["node"]
            nodes.setdefault(current, _Version()).code = own.partition("\n\n")[2]
        elif name == "invalidate_node" and not refused:
            nodes.setdefault(values["node"], _Version()).status = "invalid"
            current = "" if current == values["node"] else current
        elif name == "update_answer" and not refused:
            handed = values["node"]
        elif name == "execute_code" and not refused:
            _learn(nodes.setdefault(values["node"], _Version()), own)
        found = _LEAD.findall(text)
        if found and "this is not it yet" not in found[-1]:
            lead, done = found[-1], []
    if not steps:
        return ""
    parts = [
        brief,
        "\n".join(["Notes:", *(f"- {note}" for note in notes)]) if notes else "",
        "\n".join(["Nodes:", *(version.line(key) for key, version in nodes.items())]) if nodes else "",
        f"{current} is the current node:\n{nodes[current].code}" if current in nodes else "",
        f"Handed in: {handed}" if handed else "",
        lead + (f"\nDone for it so far: {', '.join(done)}" if done else ""),
        "The last output ended:\n" + "\n".join(steps[-1].observation.text.splitlines()[-TAIL_LINES:]),
    ]
    return "\n\n".join(part for part in parts if part)


def _learn(version: _Version, output: str) -> None:
    ended = re.search(r"\[n\d+ (ok|failed)(: .+)?\]$", output)
    found = CV.search(output)
    if ended and ended[1] == "ok" and found:
        version.status, version.least = f"ok, cv {found[1]} {found[2]}", least_needed(output)
    elif ended:
        version.status = f"failed{ended[2] or ''}"
