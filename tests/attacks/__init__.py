"""Programs that a model might write to get out of the sandbox, to see what it must not, or to bring the machine down.

One text file a category. A program begins with a line ``=== python NAME`` or ``=== bash NAME``; after a bar may stand
``wall SECONDS`` (for what only a limit ends) and what the parent does afterwards: ``read "NAME"``, ``write "NAME"``.

``test_sandbox.py`` runs every one and judges by facts outside of it: listeners that nobody reached, canaries unchanged,
secrets not in the output, no process left, the wall limit kept, the next calls in this workspace and in another one
unharmed. Besides, a program prints HARM where it has itself seen a forbidden act succeed.

@NAME@ stands for something of the machine under test: @PORT@ and @UDP@ (listeners on loopback), @HOST@ (an address of
this machine), @SOCKET@ and @ABSTRACT@ (UNIX listeners), @SECRET@ (a file with a secret), @CANARY@ (a file that must not
change), @FOLDER@ (where both lie), @CHECKOUT@, @PID@ (the test's process), @OTHER@ (another workspace's number); and
@call:NAME@ for the number of a system call.
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from openhorizon.sandbox.filter import ARCHITECTURES, DENIED

WALL_S = 8.0  # for what should end by itself at once
NO_CALL = 10**6


@dataclass(frozen=True)
class Attack:
    name: str
    category: str
    kind: str  # python or bash
    code: str
    wall_s: float = WALL_S
    after: tuple[tuple[str, str], ...] = ()  # (read | write, name): what the parent then does


def _number(match: re.Match[str]) -> str:
    column = ARCHITECTURES[platform.machine()][0] if platform.machine() in ARCHITECTURES else 0
    return str(DENIED[match[1]][column] or NO_CALL)


def _parse(category: str, text: str) -> list[Attack]:
    found = []
    for part in ("\n" + text).split("\n=== ")[1:]:
        head, code = part.split("\n", 1)
        title, *options = head.split(" | ")
        kind, name = title.split(" ", 1)
        wall_s, after = WALL_S, []
        for option in options:
            word, value = option.split(" ", 1)
            if word == "wall":
                wall_s = float(value)
            else:
                after.append((word, json.loads(value)))
        code = re.sub(r"@call:(\w+)@", _number, code)
        found.append(Attack(name, category, kind, code, wall_s, tuple(after)))
    return found


ATTACKS: list[Attack] = [
    *(a for path in sorted(Path(__file__).parent.glob("*.txt")) for a in _parse(path.stem, path.read_text("utf-8"))),
    Attack("zero byte", "protocol", "python", "x = 1\0"),
    Attack("zero byte", "protocol", "bash", "echo a\0b"),
    Attack("deep syntax", "protocol", "python", "(" * 5000),
    Attack("very long code", "protocol", "python", "x = 1\n" * 200_000),
    Attack("very long command", "protocol", "bash", "true " + "x" * 200_000),
]
