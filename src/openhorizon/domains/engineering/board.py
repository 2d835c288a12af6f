"""The short-text world's tree in few words, and the plan of errands that is drawn by carrying it out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openhorizon.domains.base import Call
from openhorizon.domains.engineering.lab import MODELS
from openhorizon.domains.engineering.runner import run_bash
from openhorizon.domains.engineering.small import Small, misspelled, private, specs
from openhorizon.domains.engineering.tree import Node, Tree, TreeError

COMMANDS = ("wc -l train.csv", "wc -l test.csv", "ls")


@dataclass(frozen=True)
class Errand:
    """One call that is asked for. ``base`` is the node that has to be current, ``gives`` the node that comes of it,
    where there is one."""

    tool: str
    arguments: Mapping[str, str]
    text: str
    base: str = ""
    gives: str = ""


class Board:
    """What calls do to the tree, in short words. ``begun`` is the code of the colleague's node; ``names`` maps the code
    of planned nodes to their ids, and is empty for the proposer, whose nodes are dealt their ids by ``deal``."""

    def __init__(
        self, small: Small, begun: str, names: Mapping[str, str], deal: Callable[[], str] | None = None
    ) -> None:
        self.small, self.names, self.deal = small, names, deal
        self.tree = Tree(self._name)
        self.notes: list[str] = []
        for code in ("fit('Mean')", begun):
            self._run(self.tree.write(code))
        self.tree.hand_in(next(iter(self.tree.nodes)))

    def _name(self, parent: str, code: str, count: int) -> str:
        known = next((node.id for node in self.tree.nodes.values() if node.code == code), None)
        if known or code in self.names:
            return known or self.names[code]
        return self.deal() if self.deal else f"x{count + 10}"

    def best(self) -> str:
        """The planned ok node with the best score; of equal ones the first."""
        best: Node | None = None
        for node in self.tree.nodes.values():
            if node.status == "ok" and node.id[0] == "n" and (not best or self.small.beats(node.score, best.score)):
                best = node
        return best.id if best else ""

    def _run(self, node: Node) -> str:
        if node.status == "invalid":
            raise TreeError(f"{node.id} is invalid")
        run = self.small.run(node.code)
        line = run.output.splitlines()[-1] if run.output else "no output"
        problem = private(self.small, run.submission)[0] if run.ok else ""
        if not run.ok or problem or not re.fullmatch(r"\d{1,4}", line):
            node.status, node.why = "failed", (problem or line)[:80]
            return f"{node.id} failed: {node.why}"
        node.status, node.score, node.submission = "ok", line, run.submission
        place = "best" if self.best() == node.id else f"behind {self.best() or 'none'}"
        return f"{node.id} {self.small.metric} {line}, {place}"

    def do(self, call: Call) -> str:
        """Carry the call out.

        Raises:
            TreeError: it cannot be.
        """
        tree, values = self.tree, call.arguments
        match call.name:
            case "write_full_code":
                return tree.write(values["code"]).id
            case "patch_code":
                return tree.patch(values["old"], values["new"]).id
            case "execute_code":
                return self._run(tree.get(values["node"]))
            case "execute_bash":
                return _line(run_bash(self.small.public, values["command"]).output)
            case "list_nodes":
                best = self.best()
                rest = [node for node in tree.nodes.values() if node.id != best]
                lines = [f"{node.id} {node.score if node.status == 'ok' else node.status}" for node in rest]
                return ", ".join([f"best {best or 'none'}", *lines[-4:]])
            case "select_node":
                node = tree.select(values["node"])
                return f"at {node.id} {node.code}"
            case "invalidate_node":
                return f"{tree.invalidate(values['node'], values.get('reason', '')).id} is invalid"
            case "update_answer":
                return f"answer {tree.hand_in(values['node']).id}"
            case "get_current_answer":
                return f"answer {tree.answer} {tree.nodes[tree.answer].score}" if tree.answer else "no answer"
            case "write_notes":
                self.notes.append(values["text"])
                return "noted"
            case "read_notes":
                small = self.small
                head = f"table {small.name}, target {small.target}, metric {small.metric}"
                return head + "".join(f". {note}" for note in self.notes[-1:])
            case _:
                about = values["about"]
                if about not in (self.small.target, *self.small.columns):
                    raise TreeError(f"no column {about[:12]}")
                return f"{about} goes with {_line(self.small.run(f'show({about!r})').output)}"


def _line(output: str) -> str:
    """Output as one short line."""
    return " ".join(output.split())[:100] or "no output"


class Plan:
    """Draws errands for ``calls`` calls, carrying each out on the way: what a run gives decides what comes next. The
    last errand hands in the best node, unless there is no errand."""

    def __init__(self, small: Small, rng: random.Random, calls: int) -> None:
        self.small, self.rng, self.left = small, rng, calls
        deck = [f"n{number}" for number in rng.sample(range(10, 100), 90)]
        ok = [spec for spec in specs(small) if small.beats(_score(small, spec), _score(small, "Mean"))]
        self.begun = f"fit('{rng.choice(ok)}')"
        self.board = Board(small, self.begun, {}, deck.pop)
        self.tree = self.board.tree
        self.errands: list[Errand] = []
        while self.left:
            self._draw()

    @property
    def pending(self) -> bool:
        return self.board.best() != self.tree.answer

    def _ask(self, tool: str, text: str, /, **arguments: str) -> str:
        base = self.tree.current if tool == "patch_code" else ""
        result = self.board.do(Call(tool, arguments))
        gives = result if tool in ("write_full_code", "patch_code") else ""
        self.errands.append(Errand(tool, arguments, text, base, gives))
        self.left -= 1
        return result

    def _draw(self) -> None:
        choices: list[tuple[int, Callable[[], None]]] = []  # weight, what
        if self.pending:
            choices.append((20 if self.left == 1 else 2, self._submit))
        if self.left > self.pending:
            choices.append((2, self._look))
        fresh = [spec for spec in specs(self.small) if self._known(spec) is None and self._fits(spec)]
        if fresh:
            choices.append((6, lambda: self._try(self.rng.choice(fresh))))
        if fresh and self._fits(fresh[0], extra=2):
            choices.append((5, lambda: self._typo(fresh[0])))
        changed = [spec for spec in self._changes() if self._known(spec) is None and self._fits(spec)]
        if changed:
            choices.append((5, lambda: self._change(self.rng.choice(changed))))
        self.rng.choices([what for _, what in choices], [weight for weight, _ in choices])[0]()

    def _known(self, spec: str) -> Node | None:
        return next((node for node in self.tree.nodes.values() if node.code == f"fit('{spec}')"), None)

    def _fits(self, spec: str, extra: int = 0) -> bool:
        """Whether there are calls enough left to make, run and follow up on ``spec``, and to hand in the best."""
        wins = self.small.beats(_score(self.small, spec), self.tree.nodes[self.board.best()].score)
        return 2 + extra + (not wins) + (wins or self.pending) <= self.left

    def _submit(self) -> None:
        if self.left > 1 and self.rng.random() < 0.4:
            self._ask("list_nodes", "list nodes")
        self._ask("update_answer", f"submit {self.board.best()}", node=self.board.best())

    def _look(self) -> None:
        """One call that changes nothing but the notes."""
        best, target = self.board.best(), self.small.target
        command, note = self.rng.choice(COMMANDS), f"{best} {self.tree.nodes[best].score}"
        looks: list[tuple[str, str, dict[str, str]]] = [
            ("get_current_answer", "show answer", {}),
            ("list_nodes", "list nodes", {}),
            ("read_notes", "read notes", {}),
            ("execute_bash", f"bash {command}", {"command": command}),
            ("analyze", f"analyze {target}", {"about": target}),
            ("write_notes", f"note {note}", {"text": note}),
        ]
        asked = self.errands[-1].tool if self.errands else "read_notes"  # twice in a row would be no errand
        tool, text, arguments = self.rng.choice([look for look in looks if look[0] != asked])
        self._ask(tool, text, **arguments)

    def _try(self, spec: str) -> None:
        if self.rng.random() < 0.4 and self._fits(spec, extra=1):
            self._ask("analyze", f"analyze {spec.split()[1]}", about=spec.split()[1])
        self._run(self._ask("write_full_code", f"write {spec}", code=f"fit('{spec}')"))

    def _typo(self, spec: str) -> None:
        wrong = misspelled(spec)
        key = self._ask("write_full_code", f"write {wrong}", code=f"fit('{wrong}')")
        text = self._ask("execute_code", f"run {key}", node=key)
        old, new = re.findall(r"change (\w+) to (\w+)", text)[0]
        self._run(self._ask("patch_code", f"change {old} to {new}", old=old, new=new))

    def _changes(self) -> list[str]:
        """What the current node's code could become by another model's name."""
        node = self.tree.nodes.get(self.tree.current)
        found = node and re.fullmatch(r"fit\('(\w+)( \w+ \w+)'\)", node.code)
        if not found or node is None or node.status != "ok":
            return []
        return [model + found[2] for model in MODELS[1:] if model != found[1]]

    def _change(self, spec: str) -> None:
        old, new = self.tree.nodes[self.tree.current].code.removeprefix("fit('").split()[0], spec.split()[0]
        self._run(self._ask("patch_code", f"change {old} to {new}", old=old, new=new))

    def _run(self, key: str) -> None:
        """Runs the node; from one that is behind, the best is gone back to, or it is dropped."""
        self._ask("execute_code", f"run {key}", node=key)
        best = self.board.best()
        if key != best:
            tool, verb, node = self.rng.choice([("select_node", "select", best), ("invalidate_node", "drop", key)])
            self._ask(tool, f"{verb} {node}", node=node)


def _score(small: Small, spec: str) -> str:
    """What a run of ``spec`` prints."""
    return small.run(f"fit('{spec}')").output
