"""An environment with the tool ``code``: programs run in the sandbox beside the pages that were read."""

from __future__ import annotations

from collections.abc import Sequence

from openhorizon.domains.base import Environment, Task, Tool
from openhorizon.sandbox import Workspace, open_workspace

CODE = Tool(
    "code",
    "Run a Python program. The files of the pages that were read lie beside it. Returns what it prints.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "minLength": 1, "maxLength": 20000}},
        "required": ["code"],
        "additionalProperties": False,
    },
)


class Notebook(Environment):
    """Keeps pages as files for the programs of one episode. The sandbox is opened with the first program."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.files: dict[str, str] = {}  # title → file
        self._unwritten: dict[str, bytes] = {}
        self._workspace: Workspace | None = None

    def keep(self, title: str, text: str) -> str:
        """Keep a page's text; the file's name, which tells nothing but the order of reading."""
        if title not in self.files:
            self.files[title] = f"page{len(self.files) + 1}.txt"
            self._unwritten[self.files[title]] = text.encode()
        return self.files[title]

    def run(self, code: str) -> tuple[str, bool]:
        """What a program printed, and whether it failed."""
        if self._workspace is None:
            self._workspace = open_workspace()
        for name, data in self._unwritten.items():
            self._workspace.write(name, data)
        self._unwritten.clear()
        result = self._workspace.python(code)
        if result.timed_out:
            return f"error: the program ran too long\n{result.output}", True
        if result.exit_code != 0:
            return f"error: exit status {result.exit_code}\n{result.output}", True
        return result.output or "no output", False

    def close(self) -> None:
        if self._workspace is not None:
            self._workspace.close()
            self._workspace = None
