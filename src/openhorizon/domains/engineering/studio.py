"""The natural-text world's environment: the solution tree in full words, and a lead who hands out assignments.

A plan is a list of assignments. Each opens when the one before is done and asks for a fixed sequence of
calls that leave a mark (a node with given code that ran, a patch of a given node, a note with given figures), in their
order; calls in between are free. So a reference solution needs as many calls as the plan adds up to, and what an
assignment asks for depends on what the tree holds by then: the best node, a colleague's script and its bug, which of
two settings scored better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from openhorizon.domains.base import Call, Environment, Observation, Task, Tool
from openhorizon.domains.engineering.competitions import Competition, Key, competition
from openhorizon.domains.engineering.grading import LOWER_IS_BETTER, PROBABILITIES, better
from openhorizon.domains.engineering.reports import Analyst, local_analyst
from openhorizon.domains.engineering.runner import bundle, run_bash, run_python
from openhorizon.domains.engineering.scripts import (
    CLASSES_OF,
    CV,
    STYLE,
    WORDS_OF,
    Recipe,
    against_style,
    broken,
    leaky,
    least_needed,
    script,
    tuned,
    without,
)
from openhorizon.domains.engineering.tree import Node, Tree, TreeError

COSTS = {  # kind of assignment → calls that it takes
    "notes": 1,
    "submit": 1,
    "survey": 2,
    "shell": 2,
    "review": 2,
    "sound": 2,
    "model": 3,
    "leak": 3,
    "ablate": 4,
    "repeat": 4,
    "repair": 5,
    "repair twice": 7,
    "tune": 7,
}


@dataclass(frozen=True)
class Mark:
    """A call that an assignment asks for. ``lacks`` is given its arguments and what came back, and says what is
    missing, or ``""``."""

    tool: str
    lacks: Callable[[Mapping[str, Any], str], str]


Opened = tuple[str, list[Mark]]


class TablesEnvironment(Environment):
    """Tree, notes, and the plan with how far it has come."""

    def __init__(self, task: Task, offered: Iterable[Tool], analyst: Analyst) -> None:
        super().__init__(task, tuple(offered))
        self.competition: Competition = competition(Key(*task.state["key"]))
        self.plan: list[dict[str, Any]] = task.state["plan"]
        self.team: str = task.state["team"]
        self.analyst = analyst
        self.tree = Tree(lambda parent, code, count: f"n{count + 1}")
        self.notes: list[str] = []
        self.planted: dict[str, bool] = {}  # node that the lead made → whether its validation leaks
        self.at = -1  # which assignment is open; none until the notes are read
        self.text = ""
        self.marks: list[Mark] = []
        self.met = 0  # marks of the open assignment
        self.work: list[Node] = []  # nodes that its marks were made with

    @property
    def done(self) -> bool:
        return self.at >= len(self.plan)

    def better(self, a: Node, b: Node) -> bool:
        return better(self.competition.key.metric, float(a.score), float(b.score))

    def best(self) -> Node | None:
        """The ok node with the best cross-validated score; of equal ones the first. What a colleague left does not
        count: only what was made of it."""
        found: Node | None = None
        for node in self.tree.nodes.values():
            own = node.status == "ok" and node.id not in self.planted
            if own and (found is None or self.better(node, found)):
                found = node
        return found

    def execute(self, call: Call) -> Observation:
        if call.name == "read_notes" and self.at < 0:
            self._open()
            return Observation(f"{self._do(call)}\n\n{self.text}", (f"{self.team}/brief",))
        try:
            text, error = self._do(call), False
        except TreeError as problem:
            return Observation(f"error: {problem}", error=True)
        if self.at < 0 or self.done:
            return Observation(text, error=error)
        mark = self.marks[self.met]
        missing = mark.lacks(call.arguments, text) if call.name == mark.tool else "-"
        if missing:
            asked = call.name in ("write_notes", "update_answer") and missing != "-"
            return Observation(f"{text}\n\nLead: this is not it yet; {missing}." if asked else text)
        self.met += 1
        evidence = (f"{self.team}/{self.at}.{self.met}",)
        if self.met == len(self.marks):
            self._open()
            text += f"\n\n{self.text}"
        return Observation(text, evidence)

    def _open(self) -> None:
        self.at += 1
        self.met, self.work = 0, []
        if self.done:
            self.text = "Lead: thank you, that was the last assignment. Give the answer."
            return
        given = self.plan[self.at]
        openers: dict[str, Callable[[dict[str, Any]], Opened]] = {
            "notes": self._open_notes,
            "submit": self._open_submit,
            "survey": self._open_survey,
            "shell": self._open_shell,
            "review": self._open_review,
            "sound": self._open_audit,
            "leak": self._open_audit,
            "model": self._open_model,
            "ablate": self._open_ablate,
            "repeat": self._open_repeat,
            "repair": self._open_repair,
            "repair twice": self._open_repair,
            "tune": self._open_tune,
        }
        text, self.marks = openers[given["kind"]](given)
        assert len(self.marks) == COSTS[given["kind"]], given
        self.text = f"Lead: assignment {self.at + 1}. {text}"

    # What the tools do.

    def _do(self, call: Call) -> str:
        tree, values = self.tree, call.arguments
        match call.name:
            case "write_full_code":
                node = tree.write(values["code"])
                return f"{node.id}: {len(node.code.splitlines())} lines, untested. It is the current node."
            case "patch_code":
                node = tree.patch(values["old"], values["new"])
                return f"{node.id}, a patch of {node.parent}: untested. It is the current node."
            case "execute_code":
                return self._run(tree.get(values["node"]))
            case "execute_bash":
                return run_bash(self._files(), values["command"]).output or "(no output)"
            case "list_nodes":
                return "\n".join(map(self._line, tree.nodes.values())) or "no nodes yet"
            case "select_node":
                node = tree.select(values["node"])
                return f"{self._line(node)}. It is the current node:\n\n{node.code}"
            case "invalidate_node":
                node = tree.invalidate(values["node"], values.get("reason", ""))
                return f"{node.id} is invalid now" + (f": {node.why}" if node.why else "")
            case "update_answer":
                node = tree.hand_in(values["node"])
                return f"{node.id} is handed in: {len(self.competition.ids)} predictions, the format is right."
            case "get_current_answer":
                return f"handed in: {self._line(tree.nodes[tree.answer])}" if tree.answer else "nothing is handed in"
            case "write_notes":
                self.notes.append(values["text"])
                return f"noted; the notes have {len(self.notes)} entries of yours"
            case "read_notes":
                return "\n\n".join([brief(self.competition), *(f"Note {i}: {n}" for i, n in enumerate(self.notes, 1))])
            case _:
                return self.analyst(values["about"], self.competition, tree)

    def _files(self) -> Any:
        """The public files, with the current node's code."""
        node = self.tree.nodes.get(self.tree.current)
        if node is None:
            return self.competition.public
        return bundle({**self.competition.public.files, "solution.py": node.code.encode()})

    def _run(self, node: Node) -> str:
        if node.status == "invalid":
            raise TreeError(f"{node.id} is invalid")
        run = run_python(self.competition.public, node.code)
        found = CV.search(run.output)
        problem = self.competition.check(run.submission)[0] if run.ok else "the code did not run to its end"
        problem = problem or against_style(node.code, run.output)
        if problem or found is None:
            node.status, node.why = "failed", problem
            return f"{run.output}\n[{node.id} failed: {problem}]"
        node.status, node.score, node.submission, node.why = "ok", found[2], run.submission, ""
        return f"{run.output}\n[{node.id} ok: the submission's format is right]"

    def _line(self, node: Node) -> str:
        score = f", cv {self.competition.key.metric} {node.score}" if node.score else ""
        why = f" ({node.why})" if node.why else ""
        return f"{node.id} {f'of {node.parent}' if node.parent else 'root'}: {node.status}{why}{score}"

    # What the assignments ask for.

    def _note(self, *wanted: Callable[[], str]) -> Mark:
        """A note that holds these texts."""

        def lacks(values: Mapping[str, Any], text: str) -> str:
            missing = [word for want in wanted if not _holds(values["text"], word := want())]
            return f"the note should also say {' and '.join(missing)}" if missing else ""

        return Mark("write_notes", lacks)

    def _logged(self, which: int) -> list[Callable[[], str]]:
        """Id and score of the assignment's node."""
        return [lambda: self.work[which].id, lambda: self.work[which].score]

    def _made(self, tool: str, fits: Callable[[Node], bool]) -> Mark:
        """A new version of the code, of this kind."""
        return Mark(tool, lambda values, text: "" if fits(self._latest()) else "-")

    def _latest(self) -> Node:
        return list(self.tree.nodes.values())[-1]

    def _ran(self, fits: Callable[[Node], bool], *statuses: str) -> Mark:
        def lacks(values: Mapping[str, Any], text: str) -> str:
            node = self.tree.nodes[values["node"]]
            if node.status not in (statuses or ("ok",)) or not fits(node):
                return "-"
            self.work.append(node)
            return ""

        return Mark("execute_code", lacks)

    def _at(self, tool: str, key: str) -> Mark:
        return Mark(tool, lambda values, text: "" if values["node"] == key else "-")

    def _any(self, tool: str) -> Mark:
        return Mark(tool, lambda values, text: "")

    def _best_node(self) -> Node:
        node = self.best()
        assert node is not None, "a plan begins with a model"
        return node

    def _open_notes(self, given: dict[str, Any]) -> Opened:
        return "Read the notes again before you go on.", [self._any("read_notes")]

    def _open_survey(self, given: dict[str, Any]) -> Opened:
        rows, missing, target = read_survey(local_analyst("train.csv", self.competition, self.tree))
        figure = "how many rows the rarest class has" if self.competition.classes else "the mean of the target"
        text = (
            "Have train.csv analyzed before anything is built on it. Then note how many rows it has, which columns "
            f"have missing values (or none), and {figure}."
        )
        wanted = [rows, target, *missing]
        seen = Mark("analyze", lambda values, text: "" if "train.csv" in values["about"] else "-")
        return text, [seen, self._note(*(lambda word=word: word for word in wanted))]

    def _open_shell(self, given: dict[str, Any]) -> Opened:
        counts = [str(self.competition.public.files[name].count(b"\n")) for name in ("train.csv", "test.csv")]
        text = "Count the lines of train.csv and test.csv with the shell and look at the first rows; note both counts."
        shell = Mark("execute_bash", lambda values, text: "" if all(_holds(text, count) for count in counts) else "-")
        return text, [shell, self._note(lambda: counts[0], lambda: counts[1])]

    def _open_review(self, given: dict[str, Any]) -> Opened:
        text = "List the nodes and note which one leads by its cross-validated score (as: n0 leads), with the score."
        note = self._note(lambda: f"{self._best_node().id} leads", lambda: self._best_node().score)
        return text, [self._any("list_nodes"), note]

    def _open_submit(self, given: dict[str, Any]) -> Opened:
        mark = Mark(
            "update_answer",
            lambda values, text: "" if values["node"] == self._best_node().id else "another node scores better",
        )
        return "Hand in the node that leads by its cross-validated score.", [mark]

    def _open_model(self, given: dict[str, Any]) -> Opened:
        leave, recipe = given["leave"], self.recipe(given["model"], given["leave"])
        columns = f"all columns but {' and '.join(leave)}" if leave else "all columns"
        text = (
            f"Write a full script with {WORDS_OF[given['model']]} ({recipe.of}) on {columns}, with four-fold "
            "cross-validation; run it, and note the node with its score."
        )

        def fits(node: Node) -> bool:
            lists = re.findall(r"^(?:NUMBERS|WORDS) = .*$", node.code, re.MULTILINE)
            listed = " ".join(lists)
            return f"{recipe.of}(" in node.code and all(
                (f'"{column.name}"' in listed) != (column.name in leave) for column in self.competition.features
            )

        return text, [self._made("write_full_code", fits), self._ran(fits), self._note(*self._logged(0))]

    def recipe(self, model: str, leave: Iterable[str] = ()) -> Recipe:
        """As the environment would write it: for the lead's own scripts, and the class that a model's name means."""
        found, left = self.competition, set(leave)
        return Recipe(
            found.key.target,
            found.key.metric,
            found.kind,
            found.positive,
            tuple(column.name for column in found.features if column.numeric and column.name not in left),
            tuple(column.name for column in found.features if not column.numeric and column.name not in left),
            model,
        )

    def _plant(self, code: str) -> Node:
        """A colleague's node; what was current stays so."""
        current = self.tree.current
        node = self.tree.write(code)
        self.tree.current = current
        self.planted[node.id] = False
        return node

    def _open_repair(self, given: dict[str, Any]) -> Opened:
        code = script(self.recipe(given["model"]))
        for bug in given["bugs"]:
            code = broken(code, bug)
        node = self._plant(code)
        text = (
            f"A colleague left {node.id}, which should fit {WORDS_OF[given['model']]} but does not work. Select it, "
            "run it to see what is wrong, repair it with a patch for each problem, run it again each time, and note "
            "the node that works with its score."
        )
        made = CLASSES_OF[given["model"]][2 if self.competition.kind == "number" else 1]

        def fits(other: Node) -> bool:
            return f"{made}(" in other.code and other.id != node.id and other.parent != ""

        marks = [self._at("select_node", node.id), self._ran(lambda other: other.id == node.id, "failed")]
        for i in range(len(given["bugs"])):
            last = i + 1 == len(given["bugs"])
            marks += [self._made("patch_code", fits), self._ran(fits, *([] if last else ["ok", "failed"]))]
        return text, [*marks, self._note(*self._logged(-1))]

    def _open_tune(self, given: dict[str, Any]) -> Opened:
        base = self._best_node()
        setting, now, others = tuned(base.code)
        values = [others[i % len(others)] for i in given["values"]]
        text = (
            f"{base.id} leads with {base.score}. Its {setting} is {now}: try {setting}={values[0]} and {setting}="
            f"{values[1]}, each as a patch of {base.id} (select it first each time), run both, and note which node is "
            "better (as: n0 is better) with its score."
        )
        marks = []
        for value in values:

            def fits(node: Node, value: str = value) -> bool:
                return node.parent == base.id and re.search(rf"\b{setting}={re.escape(value)}\b", node.code) is not None

            marks += [self._at("select_node", base.id), self._made("patch_code", fits), self._ran(fits)]

        def winner() -> Node:
            return self.work[1] if self.better(self.work[1], self.work[0]) else self.work[0]

        return text, [*marks, self._note(lambda: f"{winner().id} is better", lambda: winner().score)]

    def _open_ablate(self, given: dict[str, Any]) -> Opened:
        base = self._best_node()
        column = least_needed(run_python(self.competition.public, base.code).output)
        changed = base.code.replace(*without(base.code, column))
        text = (
            f"Look at the report of {base.id}: which column does its score need least? Select {base.id}, patch that "
            "column out of its list, run it, and note the new node, its score, and whether that gains or is no gain."
        )

        def fits(node: Node) -> bool:
            return node.code == changed and node.parent == base.id

        def word() -> str:
            return "gains" if self.better(self.work[0], base) else "no gain"

        marks = [self._at("select_node", base.id), self._made("patch_code", fits), self._ran(fits)]
        return text, [*marks, self._note(*self._logged(0), word)]

    def _open_repeat(self, given: dict[str, Any]) -> Opened:
        base, seed = self._best_node(), given["seed"]
        text = (
            f"Is the lead of {base.id} more than luck? Select it, patch its SEED to {seed} so that the folds are drawn "
            "anew, run it, and note both nodes with their scores."
        )

        def fits(node: Node) -> bool:
            return node.parent == base.id and f"\nSEED = {seed}\n" in node.code

        marks = [self._at("select_node", base.id), self._made("patch_code", fits), self._ran(fits)]
        return text, [*marks, self._note(*self._logged(0), lambda: base.id, lambda: base.score)]

    def _open_audit(self, given: dict[str, Any]) -> Opened:
        leak = given["kind"] == "leak"
        code = script(self.recipe(given["model"]))
        node = self._plant(leaky(code) if leak else code)
        self._run(node)
        self.planted[node.id] = leak
        text = (
            f"A colleague reports {node.id} with a cross-validated score of {node.score}. Have {node.id} analyzed: if "
            "it scores well on a target that was dealt out to other rows, its validation leaks; then invalidate it. "
            f"Note that {node.id} leaks or that {node.id} is sound."
        )
        looked = Mark("analyze", lambda values, text: "" if re.search(rf"\b{node.id}\b", values["about"]) else "-")
        dropped = [self._at("invalidate_node", node.id)] if leak else []
        word = f"{node.id} leaks" if leak else f"{node.id} is sound"
        return text, [looked, *dropped, self._note(lambda: word)]


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(word)}(?![\w]|\.\d)", text) is not None


def read_survey(report: str) -> tuple[str, list[str], str]:
    """Rows, columns with missing values (``["none"]`` where there are none), and the figure of the target."""
    rows = re.search(r"^train\.csv: (\d+) rows", report, re.MULTILINE)
    missing = re.search(r"^columns with missing values: (.+)$", report, re.MULTILINE)
    target = re.search(r"^(?:mean of the target: (\S+)|rarest class: .* with (\d+) rows)$", report, re.MULTILINE)
    if not (rows and missing and target):
        raise ValueError(f"not a report on train.csv: {report[:200]}")
    return rows[1], missing[1].split(", "), target[1] or target[2]


def brief(found: Competition) -> str:
    """The competition in words: what is public of it."""
    key = found.key
    order = "lower is better" if key.metric in LOWER_IS_BETTER else "higher is better"
    if key.metric in PROBABILITIES:
        what = f"the probability that {key.target} is {found.positive}"
    else:
        what = f"the class of {key.target}" if found.classes else f"the number {key.target}"
    lines = [
        f"Competition: {found.title}",
        found.about,
        f"Predict {key.target}"
        + (f" ({found.target_note})" if found.target_note else "")
        + f", scored by {key.metric} "
        f"on private answers; {order}." + (f" Its classes are {', '.join(found.classes)}." if found.classes else ""),
        f"Files: train.csv ({found.train_rows} rows, with {key.target}), test.csv ({len(found.ids)} rows, without), "
        f"sample_submission.csv. Hand in a submission.csv with the header id,{key.target} and {what} for each id of "
        "test.csv.",
        STYLE,
        "Columns:",
    ]
    for column in found.features:
        kind = "number" if column.numeric else "text"
        missing = f", {column.missing} missing" if column.missing else ""
        note = f": {column.note}" if column.note else ""
        lines.append(f"- {column.name} ({kind}, {column.values} values{missing}){note}")
    return "\n".join(line for line in lines if line)
