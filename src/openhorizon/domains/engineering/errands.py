"""Engineering in short texts (section 3): a small solution tree worked by errands, each revealed by the one before.

The notes name a real table, its target and the metric, then the first errand; whatever carries out an errand shows the
next. Code is one line of Python against ``lab.py`` and runs in the sandbox for real: scores, refusals (a column's name
is misspelled in an errand; the run's error says what to change) and which columns go with the target are what the run
printed. The tree begins with a colleague's node, a constant, already handed in:

    read_notes                         table Birthwt, target Bwt, metric error. next: write Tree Lwt Smokee
    write_full_code fit('Tree Lwt Smokee')    n58. next: run n58
    execute_code n58                   n58 failed: no column Smokee, change Smokee to Smoke. next: change Smokee to ...
    patch_code Smokee Smoke            n12. next: run n12
    execute_code n12                   n12 error 984, best. next: submit n12
    update_answer n12                  answer n12. no more work, answer n12

An errand is one call, so the horizon is exact. Best and behind are said by the tool: nothing is compared by the model.
The ids of the nodes that errands lead to are dealt with the task; what a detour makes is called ``x``, not ``n``, and
never counts as best. Calls that no errand asked for are carried out, and the errand is said again. The verifier grades
what was handed in on the private answers.

What differs from the paper: texts and tables are cut down (``small.py``: four columns under short names) for a small
model trained from scratch. The world in natural text is ``engineering/tables``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import asdict

from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
    part_of,
)
from openhorizon.domains.engineering.board import Board, Errand, Plan
from openhorizon.domains.engineering.competitions import VALIDATION_PERCENT
from openhorizon.domains.engineering.small import of_split, private, small_competition
from openhorizon.domains.engineering.tree import Node, Tree, TreeError, tools

CODE_CHARS = 120
DRAWS = 50  # plans tried before a proposal is given up
RUIN = 0.15  # share of strays, at an invalidation and at the answer, that hit another node: those episodes fail


class EngineeringDomain(Domain):
    name = "engineering"
    apart = True
    system = "Work on the solution tree with the tools. Do what is next. End with Answer: the node handed in."
    tools = tools(CODE_CHARS)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """Errands for ``horizon`` calls, the reading of the notes included. Behind horizon 2 the first observation does
        not name the node that is handed in last."""
        if horizon < 1:
            raise ValueError(f"engineering: horizon {horizon} is less than 1")
        while part_of(team := ("team", str(rng.randint(1000, 9999))), VALIDATION_PERCENT) != split:
            pass
        for _ in range(DRAWS):
            chosen = rng.choice(of_split(split))
            plan = Plan(small_competition(*chosen), rng, horizon - 1)
            first = plan.errands[0].text if plan.errands else ""
            if horizon <= 2 or plan.tree.answer not in first:
                break
        else:
            return None
        return Task(
            domain=self.name,
            id=f"{self.name}-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Team {team[1]}: read the notes, do what is next, then answer with the node handed in.",
            horizon=horizon,
            seed=seed,
            state={
                "team": team[1],
                "competition": list(chosen),
                "begun": plan.begun,
                "nodes": {node.code: node.id for node in plan.tree.nodes.values()},
                "errands": [asdict(errand) for errand in plan.errands],
            },
            evidence=tuple(f"{team[1]}/{i}" for i in range(horizon)),
            verifiers=("submission format", "private score", "tree", "errands", "named"),
            reference=f"Answer: {plan.tree.answer}",
            entity_pairs=(small_competition(*chosen).pair, team),
        )

    def start(self, task: Task) -> ErrandEnvironment:
        return ErrandEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return _expert(rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: every errand was done, the tree is as the errands leave it, what is handed in has the right format
        and scores in private what the reference scores, and the answer names it."""
        assert isinstance(environment, ErrandEnvironment)
        wanted = _replayed(task)
        tree, small = environment.board.tree, environment.board.small
        handed = tree.nodes.get(tree.answer)
        problem, score = private(small, handed.submission if handed else None)
        reached = private(small, wanted.nodes[wanted.answer].submission)[1]
        named = answer.text.rsplit("Answer:", 1)[-1].strip().rstrip(".") if answer else ""
        rubric = {f"errand {i}": i <= environment.at for i in range(1, len(environment.errands) + 1)}
        rubric |= {
            "notes read": environment.read,
            "submission format": not problem,
            "private score": not problem and score >= reached,
            "tree": tree.answer == wanted.answer
            and all(map(_same, map(tree.nodes.get, wanted.nodes), wanted.nodes.values())),
            # Not called "answer": a node's name stands in many observations and is worth nothing without the work.
            "named": f"Answer: {named}" == task.reference,
        }
        missed = [item for item, met in rubric.items() if not met]
        if answer is None:
            reason = "no answer was given"
        elif missed:
            reason = f"not met: {', '.join(missed[:4])}" + (f" ({problem})" if problem else "")
        else:
            reason = f"all errands done; {tree.answer} has {small.metric} {abs(score):.4g} in private"
        return Verdict(not missed, sum(rubric.values()) / len(rubric), reason, rubric)


def _same(found: Node | None, wanted: Node) -> bool:
    return found is not None and found.status == wanted.status


def _replayed(task: Task) -> Tree:
    """The tree that the errands leave behind."""
    board = Board(small_competition(*task.state["competition"]), task.state["begun"], task.state["nodes"])
    for errand in task.state["errands"]:
        board.do(Call(errand["tool"], errand["arguments"]))
    return board.tree


class ErrandEnvironment(Environment):
    """The tree, the errands and how many of them are done."""

    def __init__(self, task: Task, offered: Iterable[Tool]) -> None:
        super().__init__(task, tuple(offered))
        self.errands = [Errand(**errand) for errand in task.state["errands"]]
        self.board = Board(small_competition(*task.state["competition"]), task.state["begun"], task.state["nodes"])
        self.team: str = task.state["team"]
        self.read = False
        self.at = 0

    def execute(self, call: Call) -> Observation:
        evidence: tuple[str, ...] = ()
        base = self.board.tree.current
        try:
            text, error = self.board.do(call), False
        except TreeError as problem:
            text, error = f"error: {problem}", True
        if self.read and not error and self._done(call, base, text):
            self.at += 1
            evidence = (f"{self.team}/{self.at}",)
        elif call.name == "read_notes":
            self.read = True
            evidence = (f"{self.team}/0",)
        return Observation(f"{text}. {self._next()}" if self.read else text, evidence, error)

    def _done(self, call: Call, base: str, text: str) -> bool:
        """Whether the call is what the open errand asks for."""
        if self.at == len(self.errands):
            return False
        errand = self.errands[self.at]
        if errand.base not in ("", base) or (errand.gives and errand.gives != text):
            return False
        return call.name == errand.tool and dict(call.arguments) == dict(errand.arguments)

    def _next(self) -> str:
        if self.at == len(self.errands):
            return f"no more work, answer {self.board.tree.answer or 'none'}"
        errand = self.errands[self.at]
        astray = errand.base not in ("", self.board.tree.current)
        return f"next: select {errand.base}" if astray else f"next: {errand.text}"


_NEXT = re.compile(r"next: (.+)$")
_CALLS = (  # how an errand is read
    (r"write (?P<code>.+)", "write_full_code"),
    (r"run (?P<node>\S+)", "execute_code"),
    (r"change (?P<old>\S+) to (?P<new>\S+)", "patch_code"),
    (r"select (?P<node>\S+)", "select_node"),
    (r"drop (?P<node>\S+)", "invalidate_node"),
    (r"submit (?P<node>\S+)", "update_answer"),
    (r"bash (?P<command>.+)", "execute_bash"),
    (r"analyze (?P<about>\S+)", "analyze"),
    (r"note (?P<text>.+)", "write_notes"),
    (r"list nodes", "list_nodes"),
    (r"show answer", "get_current_answer"),
    (r"read notes", "read_notes"),
)


def _read(errand: str) -> Call:
    """The call that an errand asks for; the errand is the thought."""
    for pattern, tool in _CALLS:
        found = re.fullmatch(pattern, errand)
        if found:
            values = found.groupdict()
            return Call(tool, {**values, "code": f"fit('{values['code']}')"} if "code" in values else values, errand)
    raise AssertionError(f"not an errand: {errand}")


def _expert(rng: random.Random, noise: float) -> Expert:
    """Does what is next, over and over. A call goes astray with chance ``noise``, again and again with the same chance:
    most strays are refused or change nothing that the next errand does not mend; few drop a node that is needed."""
    errand, text, old = "read notes", "", list[str]()
    while True:
        call = _read(errand)
        wrong = _slip(call, old, rng) if rng.random() < noise else None
        text = (yield wrong or call).text
        if wrong is None:
            old += [value for name, value in call.arguments.items() if name == "node" and value not in old]
        found = _NEXT.search(text)
        if found:
            errand = found[1]
        elif "no more work" in text:
            break
    handed = text.split()[-1]
    others = [node for node in old if node != handed]
    yield Answer(f"Answer: {rng.choice(others) if others and rng.random() < noise * RUIN else handed}")


def _slip(call: Call, old: list[str], rng: random.Random) -> Call:
    """The call with an earlier node, with a letter lost or twice, without an argument; or the notes read again."""
    if not call.arguments:
        return Call(call.name, {"node": "n"}, call.thought)
    name, value = rng.choice(sorted(call.arguments.items()))
    others = [node for node in old if node != value]
    roll = rng.random()
    if roll < 0.25:
        return Call("read_notes", {}, "read notes")
    if roll < 0.35 or name == "command":  # a misspelled command would be run for real, and each only once
        return Call(call.name, {}, call.thought)
    if name == "node" and others:
        harmless = call.name != "invalidate_node" or rng.random() < RUIN
        return Call(call.name if harmless else "execute_code", {"node": rng.choice(others)}, call.thought)
    at = rng.randrange(len(value))
    return Call(call.name, {**call.arguments, name: value[:at] + value[at] + value[at:]}, call.thought)
