"""The scripted solver of the natural-text world: it sees prompt and observations, as a policy does.

It reads the brief for column types and missing values, writes scripts accordingly, remembers what each node scored and
printed, finds a bug by its traceback, and compares scores itself. With chance ``noise`` a step goes astray: a script
with a bug in it (repaired from the traceback), a note with a wrong figure, a call of a node that is not there. Rarely,
it answers with another node than the one that it handed in.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Generator
from dataclasses import dataclass, field

from openhorizon.domains.base import Answer, Call, Expert, Observation
from openhorizon.domains.engineering.grading import better, gain
from openhorizon.domains.engineering.scripts import CLASSES_OF, CV, Recipe, broken, bugs, least_needed, script, without
from openhorizon.domains.engineering.studio import read_survey

Doing = Generator[Call, Observation, str]
RUIN = 0.15  # share of strays at the answer, of ``noise``
REPAIRS = 4  # patches of one script before it is given up
_LEAD = re.compile(r"^Lead: assignment (\d+)\. (.+)$", re.MULTILINE)


def expert(rng: random.Random, noise: float) -> Expert:
    solver = _Solver(rng, noise)
    text = yield from solver.do("read_notes", "The notes have the brief and the first assignment.")
    solver.learn(text)
    tries = 0
    while "that was the last assignment" not in solver.last and tries < REPAIRS:
        before = solver.lead
        yield from solver.work()
        tries = tries + 1 if solver.lead == before else 0
    handed = solver.answer
    if rng.random() < noise * RUIN:
        handed = rng.choice(sorted(solver.nodes))
    score = solver.nodes[handed].score if handed in solver.nodes else "0"
    yield Answer(f"Answer: {handed}, cv {solver.metric} {score}", f"{handed} is handed in, with {score}.")


@dataclass
class _Known:
    """What the solver remembers of a node."""

    code: str
    score: str = ""
    output: str = ""


@dataclass
class _Solver:
    rng: random.Random
    noise: float
    lead: str = ""  # the open assignment
    last: str = ""  # the last observation
    target: str = ""
    metric: str = ""
    kind: str = ""
    positive: str = ""
    numbers: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # numbers with missing values
    nodes: dict[str, _Known] = field(default_factory=dict)
    answer: str = "n0"

    def learn(self, brief: str) -> None:
        """Target, metric, classes and columns, as the brief has them."""
        head = re.search(r"^Predict (\S+)(?: \(.*\))?, scored by (\w+) on private", brief, re.MULTILINE)
        assert head, f"not a brief: {brief[:300]}"
        self.target, self.metric = head.groups()
        classes = re.search(r" Its classes are (.+)\.$", brief, re.MULTILINE)
        listed = classes[1].split(", ") if classes else []
        self.kind = "number" if not listed else "binary" if len(listed) == 2 else "classes"
        self.positive = listed[-1] if listed else ""
        columns = re.findall(r"^- (\S+) \((number|text), \d+ values(, \d+ missing)?\)", brief, re.MULTILINE)
        self.numbers = [name for name, kind, _ in columns if kind == "number"]
        self.words = [name for name, kind, _ in columns if kind == "text"]
        self.missing = [name for name, kind, gaps in columns if kind == "number" and gaps]

    def better(self, a: str, b: str) -> bool:
        return better(self.metric, float(a), float(b))

    def do(self, tool: str, thought: str, /, **values: str) -> Doing:
        """One call; before it, with chance ``noise``, one that leads nowhere."""
        while self.rng.random() < self.noise / 2:
            yield self._stray(tool, values, thought)
        self.last = (yield Call(tool, values, thought)).text
        found = _LEAD.findall(self.last)
        if found:
            self.lead = found[-1][1]
        return self.last

    def _stray(self, tool: str, values: dict[str, str], thought: str) -> Call:
        roll = self.rng.random()
        if "node" in values and roll < 0.5:
            return Call(tool, {**values, "node": f"n{len(self.nodes) + self.rng.randint(20, 40)}"}, thought)
        if values and roll < 0.7:
            return Call(tool, {}, thought)
        if roll < 0.85:
            return Call("get_current_answer", {}, "What is handed in so far?")
        return Call("execute_bash", {"command": "ls -l"}, "Let me see which files there are.")

    def work(self) -> Doing:
        """The open assignment, by its words."""
        lead = self.lead
        if lead.startswith("Write a full script"):
            return (yield from self._model())
        if lead.startswith("A colleague left"):
            return (yield from self._repair())
        if lead.startswith("A colleague reports"):
            return (yield from self._audit())
        if lead.startswith("Look at the report"):
            return (yield from self._ablate())
        if lead.startswith("Is the lead of"):
            return (yield from self._repeat())
        if lead.startswith("Have train.csv analyzed"):
            return (yield from self._survey())
        if lead.startswith("Count the lines"):
            return (yield from self._count())
        if lead.startswith("List the nodes"):
            yield from self.do("list_nodes", "An overview of the tree first.")
            best = self._best()
            return (yield from self._note(f"Review: {best} leads with cv {self.metric} {self.nodes[best].score}."))
        if lead.startswith("Read the notes"):
            return (yield from self.do("read_notes", "The lead wants the notes read again."))
        if lead.startswith("Hand in the node"):
            best = self._best()
            score = self.nodes[best].score
            self.answer = best
            others = [node for node in self.nodes if node != best and self.nodes[node].score]
            if others and self.rng.random() < self.noise:
                yield from self.do("update_answer", "I hand this one in.", node=self.rng.choice(others))
            return (yield from self.do("update_answer", f"{best} leads with {score}: I hand it in.", node=best))
        assert " leads with " in lead, f"not an assignment: {lead}"
        return (yield from self._tune())

    def _best(self) -> str:
        """The first node with the best score, of those that it has run."""
        best = ""
        for node, known in self.nodes.items():
            if known.score and (not best or self.better(known.score, self.nodes[best].score)):
                best = node
        return best

    def _run(self, node: str, thought: str) -> Doing:
        text = yield from self.do("execute_code", thought, node=node)
        found = CV.search(text)
        known = self.nodes[node]
        known.output = text
        known.score = found[2] if found and f"[{node} ok" in text else ""
        return text

    def _write(self, code: str, thought: str) -> Doing:
        text = yield from self.do("write_full_code", thought, code=code)
        node = text.partition(":")[0]
        self.nodes[node] = _Known(code)
        return node

    def _patch(self, node: str, old: str, new: str, thought: str) -> Doing:
        text = yield from self.do("patch_code", thought, old=old, new=new)
        child = text.partition(",")[0]
        self.nodes[child] = _Known(self.nodes[node].code.replace(old, new))
        return child

    def _note(self, text: str) -> Doing:
        if self.rng.random() < self.noise / 2:
            slip = re.sub(r"\d(?=\D*$)", lambda found: str((int(found[0]) + 1) % 10), text, count=1)
            yield from self.do("write_notes", "I note the result.", text=slip)
            if "this is not it yet" not in self.last:
                return self.last
        return (yield from self.do("write_notes", "I note the result.", text=text))

    def _recipe(self, of: str, leave: list[str]) -> Recipe:
        model = next(model for model, names in CLASSES_OF.items() if of in names)
        numbers, words = (tuple(n for n in names if n not in leave) for names in (self.numbers, self.words))
        return Recipe(self.target, self.metric, self.kind, self.positive, numbers, words, model)

    def _model(self) -> Doing:
        found = re.search(r"\((\w+)\) on all columns(?: but (\S+))?, with four-fold", self.lead)
        assert found, self.lead
        recipe = self._recipe(found[1], [found[2]] if found[2] else [])
        code, gaps = script(recipe), [name for name in recipe.numbers if name in self.missing]
        if self.rng.random() < self.noise:
            code = broken(code, self.rng.choice(bugs(recipe, gaps)))
        filled = f"{', '.join(gaps)} have gaps, which the median fills" if gaps else "no number is missing"
        coded = f"{', '.join(recipe.words)} are text and become one column a value" if recipe.words else "none is text"
        thought = (
            f"{recipe.of} on {len(recipe.numbers)} numbers and {len(recipe.words)} text columns: {filled}; {coded}."
        )
        node = yield from self._write(code, thought)
        yield from self._run(node, f"Now {node} runs.")
        node = yield from self._mend(node)
        return (yield from self._note(f"{node}: {found[1]}, cv {self.metric} {self.nodes[node].score}."))

    def _mend(self, node: str) -> Doing:
        """Patches until the node runs; returns the one that does."""
        for _ in range(REPAIRS):
            if self.nodes[node].score:
                break
            repair = self._diagnose(self.nodes[node])
            if repair is None:
                break
            old, new, thought = repair
            node = yield from self._patch(node, old, new, thought)
            yield from self._run(node, f"{node} has the repair; does it run now?")
        return node

    def _diagnose(self, known: _Known) -> tuple[str, str, str] | None:
        """What to patch, from the last lines of what a run printed; None where they say nothing it knows."""
        text, code = known.output[-600:], known.code
        columns = [*self.numbers, *self.words]
        if found := re.search(r"KeyError: .*?'(\S+?)'\]? not in index|KeyError: '(\S+)'", text):
            wrong = found[1] or found[2]
            right = difflib.get_close_matches(wrong, columns, 1, 0)[0]
            return f'"{wrong}"', f'"{right}"', f"There is no column {wrong}; the brief calls it {right}."
        if found := re.search(r"No such file or directory: '(\S+)'", text):
            return f'"{found[1]}"', '"train.csv"', f"The file is called train.csv, not {found[1]}."
        if found := re.search(r"name '(\w+)' is not defined", text):
            name = found[1]
            return "import OneHotEncoder", f"import OneHotEncoder, {name}", f"{name} is used but was never imported."
        if found := re.search(r"unexpected keyword argument '(\w+)'", text):
            wrong = found[1]
            return f"{wrong}=", f"{wrong.rstrip('_')}=", f"The setting is {wrong.rstrip('_')}, not {wrong}."
        if "could not convert string to float" in text:
            return self._text_among_numbers(code)
        if "contains NaN" in text or "missing values" in text:
            old = 'Pipeline([("scale"'
            return (
                old,
                'Pipeline([("fill", fill), ("scale"',
                "The gaps reach the model: the numbers must be filled first.",
            )
        if "the header must be" in text:
            return "test[[TARGET]]", 'test[["id", TARGET]]', "The submission lacks the id column."
        return None

    def _text_among_numbers(self, code: str) -> tuple[str, str, str]:
        lines = re.search(r"^NUMBERS = \[(.*)\]\nWORDS = \[(.*)\]$", code, re.MULTILINE)
        assert lines, code[:300]
        listed = [item for item in lines[1].split(", ") if item]
        moved = [item for item in listed if item.strip('"') in self.words]
        kept = [item for item in listed if item not in moved]
        rest = [item for item in lines[2].split(", ") if item]
        new = f"NUMBERS = [{', '.join(kept)}]\nWORDS = [{', '.join([*moved, *rest])}]"
        return lines[0], new, f"{' and '.join(moved)} hold text by the brief: they belong with the words."

    def _repair(self) -> Doing:
        found = re.search(r"A colleague left (n\d+)", self.lead)
        assert found, self.lead
        node = found[1]
        text = yield from self.do("select_node", f"First I look at {node}.", node=node)
        self.nodes[node] = _Known(text.partition("\n\n")[2].partition("\n\nLead:")[0])
        yield from self._run(node, f"What does {node} say when it runs?")
        node = yield from self._mend(node)
        return (yield from self._note(f"{node}: repaired, cv {self.metric} {self.nodes[node].score}."))

    def _tune(self) -> Doing:
        found = re.search(r"^(n\d+) leads with .* Its (\w+) is (\S+): try \w+=(\S+) and \w+=(\S+), each", self.lead)
        assert found, self.lead
        base, setting, now = found[1], found[2], found[3]
        made = []
        for value in (found[4], found[5]):
            yield from self.do("select_node", f"The patch with {setting}={value} starts from {base}.", node=base)
            thought = f"{setting} goes from {now} to {value}."
            node = yield from self._patch(base, f"{setting}={now}", f"{setting}={value}", thought)
            yield from self._run(node, f"How does {setting}={value} do?")
            made.append(node)
        first, second = (self.nodes[node].score for node in made)
        winner = made[1] if self.better(second, first) else made[0]
        loser = made[0] if winner == made[1] else made[1]
        text = f"Tuning {setting} of {base}: {winner} is better, cv {self.metric} {self.nodes[winner].score}"
        return (yield from self._note(f"{text} against {self.nodes[loser].score} of {loser}."))

    def _ablate(self) -> Doing:
        found = re.search(r"report of (n\d+):", self.lead)
        assert found, self.lead
        base = found[1]
        column = least_needed(self.nodes[base].output)
        yield from self.do("select_node", f"The list in the report of {base} ends with {column}.", node=base)
        old, new = without(self.nodes[base].code, column)
        node = yield from self._patch(base, old, new, f"{column} goes out of the list.")
        yield from self._run(node, f"Does the score hold without {column}?")
        gains = self.better(self.nodes[node].score, self.nodes[base].score)
        verdict = f"gains on {base}" if gains else f"no gain on {base}"
        return (
            yield from self._note(f"{node}: without {column}, cv {self.metric} {self.nodes[node].score}, {verdict}.")
        )

    def _repeat(self) -> Doing:
        found = re.search(r"lead of (n\d+) more.*SEED to (\d+)", self.lead)
        assert found, self.lead
        base, seed = found.groups()
        yield from self.do("select_node", f"I draw the folds of {base} anew.", node=base)
        now = re.search(r"^SEED = \d+$", self.nodes[base].code, re.MULTILINE)
        assert now, base
        node = yield from self._patch(base, now[0], f"SEED = {seed}", f"The seed becomes {seed}.")
        yield from self._run(node, "The same model on other folds.")
        mine, theirs = self.nodes[node].score, self.nodes[base].score
        return (yield from self._note(f"{node} with seed {seed}: cv {self.metric} {mine}; {base} had {theirs}."))

    def _survey(self) -> Doing:
        text = yield from self.do("analyze", "The data first.", about="train.csv")
        rows, missing, target = read_survey(text)
        kind = "mean of the target" if self.kind == "number" else "rows of the rarest class"
        gaps = ", ".join(missing)
        return (
            yield from self._note(f"train.csv: {rows} rows; columns with missing values: {gaps}; {kind}: {target}.")
        )

    def _count(self) -> Doing:
        command = "wc -l train.csv test.csv && head -n 4 train.csv"
        text = yield from self.do("execute_bash", "wc counts lines.", command=command)
        train, test = (re.search(rf"(\d+) {name}\.csv", text) for name in ("train", "test"))
        assert train and test, text
        return (yield from self._note(f"Lines: train.csv {train[1]}, test.csv {test[1]}."))

    def _audit(self) -> Doing:
        found = re.search(r"A colleague reports (n\d+) ", self.lead)
        assert found, self.lead
        node = found[1]
        text = yield from self.do("analyze", f"Would {node} score on answers that mean nothing?", about=f"node {node}")
        figures = re.findall(
            r"^\w+ (?:as logged|on the dealt-out target|of a constant on it): (\S+)$", text, re.MULTILINE
        )
        logged, dealt, constant = map(float, figures)
        if gain(self.metric, dealt, constant) > gain(self.metric, logged, constant) / 2:
            reason = f"It scores {dealt:.5g} on a target that was dealt out: its validation leaks."
            yield from self.do("invalidate_node", reason, node=node, reason="its validation leaks")
            return (yield from self._note(f"{node} leaks: {figures[1]} on a target dealt out to other rows."))
        return (yield from self._note(f"{node} is sound: {figures[1]} on a dealt-out target, like a constant."))
