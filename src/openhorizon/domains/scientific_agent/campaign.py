"""Scientific agentic work, short texts (section 3): a screening campaign over a shelf of real molecules.

A lab's plan is a queue of steps; each is shown when the one before it is done. A step assays a molecule (its measured
boiling point says hot, warm or cold) or keeps one in the lab's notes, and it says which: by name, by a note taken
earlier, or by what an instrument must find among a batch. Assays are budgeted, to the last one:

    open_plan {}                                budget 2. step keep like furan of b31 as red
    similar {"to": "furan", "batch": "b31"}     like furan of b31: pyrrole 33, acetone 6, octane 0
    remember {"key": "red", "molecule": ...}    kept pyrrole as red. step assay high mass of b12
    rank {"order": "high", "by": "mass", ...}   high mass of b12: anisole 108, hexane 86, ethanol 46
    assay {"molecule": "anisole"}               anisole is warm. step if hot assay octane, if warm assay note red
    recall {"key": "red"}                       note red: pyrrole
    assay {"molecule": "pyrrole"}               error: pyrrole not pure
    purify, assay                               pyrrole is warm. done. hit pyrrole

rdkit computes what the instruments show (``instruments``), on structures and boiling points of ``molecules``. What must
be done cannot be known in advance: steps are hidden, which branch holds an assay decides, which sample is impure shows
when it is assayed. So the horizon is exact. An assay off the plan is carried out like any other and spends the budget,
so that a later one cannot be paid: the episode is lost. A molecule counts as found only when what points to it was
looked up before it was used; a guess that happens to be right fails the verifier.

What differs from the paper: its scientific tools are large code bases (MatTools, MolBench); here five instruments with
short answers, for a small model. No pair of molecules that training compares is compared in held-out tasks.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from openhorizon.domains.corpora.molecules import load_molecules
from openhorizon.domains.scientific_agent.clerk import expert
from openhorizon.domains.scientific_agent.instruments import GROUPS, descriptor, matches, similarity

BATCH = 3  # molecules in a batch
VALIDATION_PERCENT = 25  # of the pairs that are not held out: fewer make too few batches
IMPURE = 0.2  # chance that an assay's sample is, where the horizon leaves room
FORK = 0.3  # chance that a step behind an assay depends on its outcome
DRAWS = 40  # tried for one pick
COLD_K, HOT_K = 350.0, 430.0  # boiling points below are cold, above hot
OUTCOMES = ("cold", "warm", "hot")
KEYS = ("red", "blue", "green", "gold", "pink", "teal", "gray", "lime")
SCALES = {"mass": "MolWt", "polar": "TPSA", "atoms": "HeavyAtomCount", "bends": "NumRotatableBonds"}
SHELF_GROUPS = ("nitrogen", "oxygen", "sulfur", "ring", "alcohol", "aldehyde", "alkene", "ether", "aromatic")

_NAME = {"type": "string", "pattern": "^[a-z]{3,8}$"}
_BATCH = {"type": "string", "pattern": "^b[0-9]{2}$"}
_KEY = {"type": "string", "enum": list(KEYS)}


@dataclass(frozen=True)
class Pick:
    """How a step says which molecule: ``furan``, ``note red``, or ``high mass of b12``. ``found`` is what it means."""

    text: str
    found: str

    @property
    def looked_up(self) -> bool:
        """Whether something must be looked up before the molecule is used."""
        return " " in self.text


@dataclass(frozen=True)
class Step:
    """One step of a plan. ``key`` is where a kept molecule goes, ``impure`` says that the sample must be purified
    first;
    ``fork`` is what the plan says for the other outcome, behind an assay."""

    do: str  # assay or keep
    pick: Pick
    key: str = ""
    impure: bool = False
    fork: tuple[tuple[str, str], ...] = ()  # (outcome, pick) as shown, the right one among them

    @property
    def cost(self) -> int:
        return 1 + self.pick.looked_up + 2 * self.impure

    @property
    def text(self) -> str:
        if self.fork:
            return "step " + ", ".join(f"if {outcome} assay {pick}" for outcome, pick in self.fork)
        return f"step {self.do} {self.pick.text}" + (f" as {self.key}" if self.key else "")


class CampaignDomain(Domain):
    name = "scientific_agent"
    apart = True
    system = "Work off the plan with the instruments. Assays are budgeted. End with Answer: molecule."

    def __init__(self) -> None:
        scale = {"type": "string", "enum": list(SCALES)}
        order = {"type": "string", "enum": ["high", "low"]}
        group = {"type": "string", "enum": list(SHELF_GROUPS)}
        self.tools = tuple(
            Tool(
                name,
                description,
                {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                    "additionalProperties": False,
                },
            )
            for name, description, properties in (
                ("open_plan", "Show the step to do.", {}),
                ("list_batch", "The molecules of a batch.", {"batch": _BATCH}),
                ("rank", "Rank a batch by a property.", {"order": order, "by": scale, "batch": _BATCH}),
                ("similar", "Rank a batch by likeness to a molecule.", {"to": _NAME, "batch": _BATCH}),
                ("match", "The molecules of a batch with a group.", {"group": group, "batch": _BATCH}),
                ("assay", "Measure a molecule; spends budget.", {"molecule": _NAME}),
                ("purify", "Purify the sample of a molecule.", {"molecule": _NAME}),
                ("remember", "Keep a molecule in the notes.", {"molecule": _NAME, "key": _KEY}),
                ("recall", "Read a note.", {"key": _KEY}),
            )
        )

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A plan whose steps cost ``horizon`` calls with the ``open_plan`` before them."""
        if horizon < 1:
            raise ValueError(f"scientific_agent: horizon {horizon} is less than 1")
        draw = _Draw(rng, split)
        lab = draw.lab()
        steps = draw.steps(horizon - 1)
        if steps is None:
            return None
        end, hit = draw.end(steps, horizon - 1 - sum(step.cost for step in steps), horizon)
        looked_up = [step.pick.text for step in steps if step.pick.looked_up]
        looked_up += [end.split("hit ")[1]] if " note " in end else []
        return Task(
            domain=self.name,
            id=f"scientific_agent-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Lab {lab}: work off the plan step by step, then answer with the hit.",
            horizon=horizon,
            seed=seed,
            state={"lab": lab, "steps": [_to_json(step) for step in steps], "batches": draw.batches, "end": end},
            evidence=(*dict.fromkeys(f"{lab}/{item}" for item in looked_up), f"{lab}/end"),
            verifiers=("answer", "plan", "budget"),
            reference=f"Answer: {hit}",
            entity_pairs=tuple(dict.fromkeys(draw.pairs)),
        )

    def start(self, task: Task) -> Lab:
        return Lab(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return expert(prompt, rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: every step was done on what was looked up for it, no assay went elsewhere, the notes are as planned
        and the answer is the hit. The rubric has an item a step."""
        assert isinstance(environment, Lab)
        named = answer.text.rsplit("Answer:", 1)[-1].strip().rstrip(".").lower() if answer else ""
        rubric = {f"step {i}": done for i, done in enumerate(environment.grounded(), start=1)}
        rubric |= {
            "budget": environment.spent == environment.planned(),
            "notes": environment.notes == environment.planned_notes(),
            "hit": environment.hit_looked_up(),
            "answer": named == task.reference.removeprefix("Answer: "),
        }
        missing = next((item for item, met in rubric.items() if not met), "")
        reason = f"not as planned: {missing}" if missing else "every step was done as planned and the answer is the hit"
        if answer is None:
            reason = "no answer was given"
        return Verdict(not missing and answer is not None, sum(rubric.values()) / len(rubric), reason, rubric)


class Lab(Environment):
    """The shelf, the plan, the notes and the budget."""

    def __init__(self, task: Task, tools: Iterable[Tool]) -> None:
        super().__init__(task, tuple(tools))
        self.lab: str = task.state["lab"]
        self.plan = [_from_json(step) for step in task.state["steps"]]
        self.batches: Mapping[str, Sequence[str]] = task.state["batches"]
        self.end: str = task.state["end"]
        self.budget = len(self.planned())
        self.at = 0
        self.done: list[bool] = []  # of each step done: whether what it uses had been looked up
        self.refused: set[str] = set()  # samples that an assay of this step found impure
        self.pure: set[str] = set()
        self.notes: dict[str, str] = {}
        self.spent: list[str] = []  # molecules assayed
        self.shown: set[str] = set()  # since the step was shown

    def planned(self) -> list[str]:
        return [step.pick.found for step in self.plan if step.do == "assay"]

    def planned_notes(self) -> dict[str, str]:
        return {step.key: step.pick.found for step in self.plan if step.key}

    def grounded(self) -> list[bool]:
        return self.done + [False] * (len(self.plan) - len(self.done))

    def hit_looked_up(self) -> bool:
        """Whether the end of the plan was read, and the note that it names."""
        ended = f"{self.lab}/end" in self.consulted()
        return (
            ended
            and self.at == len(self.plan)
            and (" note " not in self.end or self.end.split("hit ")[1] in self.shown)
        )

    def execute(self, call: Call) -> Observation:
        values = call.arguments
        if "batch" in values and values["batch"] not in self.batches:
            return _error("no such batch")
        for name in (values.get("molecule"), values.get("to")):
            if name is not None and name not in shelf():
                return _error("no such molecule")
        batch = self.batches.get(values.get("batch", ""), ())
        match call.name:
            case "open_plan":
                head = f"budget {self.budget - len(self.spent)}. " if not self.at else ""
                return self._next(head)
            case "list_batch":
                return Observation(f"{values['batch']}: {', '.join(batch)}")
            case "rank":
                return self._look(f"{values['order']} {values['by']} of {values['batch']}", batch)
            case "similar":
                return self._look(f"like {values['to']} of {values['batch']}", batch)
            case "match":
                return self._look(f"with {values['group']} of {values['batch']}", batch)
            case "recall":
                key = values["key"]
                self.shown.add(f"note {key}")
                if key not in self.notes:
                    return _error(f"note {key} is empty")
                return Observation(f"note {key}: {self.notes[key]}", (f"{self.lab}/note {key}",))
            case "remember":
                return self._keep(values["molecule"], values["key"])
            case "purify":
                if values["molecule"] not in self.refused:
                    return _error("pure already")
                self.pure.add(values["molecule"])
                return Observation(f"pure now: {values['molecule']}")
            case _:
                return self._assay(values["molecule"])

    def _look(self, text: str, batch: Sequence[str]) -> Observation:
        self.shown.add(text)
        ranked = ", ".join(f"{name} {value}".strip() for name, value in measure(text, batch))
        return Observation(f"{text}: {ranked or 'none'}", (f"{self.lab}/{text}",))

    def _assay(self, name: str) -> Observation:
        step = self.plan[self.at] if self.at < len(self.plan) else None
        planned = step is not None and step.do == "assay" and step.pick.found == name
        if planned and step is not None and step.impure and name not in self.pure:
            self.refused.add(name)
            return _error(f"{name} not pure")
        if len(self.spent) >= self.budget:
            return _error("no assays left")
        self.spent.append(name)
        said = f"{name} is {outcome(name)}"
        if not planned:
            return Observation(f"{said}. off plan, budget {self.budget - len(self.spent)}")
        return self._advance(f"{said}. ")

    def _keep(self, name: str, key: str) -> Observation:
        step = self.plan[self.at] if self.at < len(self.plan) else None
        planned = step is not None and step.do == "keep" and (step.key, step.pick.found) == (key, name)
        self.notes[key] = name
        return self._advance(f"kept {name} as {key}. ") if planned else Observation(f"kept {name} as {key}. off plan")

    def _advance(self, said: str) -> Observation:
        pick = self.plan[self.at].pick
        self.done.append(pick.text in self.shown or not pick.looked_up)
        self.at += 1
        self.shown = set()
        self.pure, self.refused = set(), set()
        return self._next(said)

    def _next(self, said: str) -> Observation:
        if self.at < len(self.plan):
            return Observation(said + self.plan[self.at].text, (f"{self.lab}/step {self.at + 1}",))
        return Observation(said + self.end, (f"{self.lab}/end",))


def measure(text: str, batch: Sequence[str]) -> list[tuple[str, str]]:
    """What the instrument shows for ``high mass of b12`` and its like: molecules with short values, best first."""
    first, second, *_ = text.split()
    smiles = {name: shelf()[name][0] for name in batch}
    if first == "with":
        return [(name, "") for name in batch if matches(smiles[name], GROUPS[second])]
    if first == "like":
        values = {name: round(100 * similarity(shelf()[second][0], smiles[name])) for name in batch}
    else:
        values = {name: round(descriptor(smiles[name], SCALES[second])) for name in batch}
    sign = 1 if first == "low" else -1
    ranked = sorted(values.items(), key=lambda item: (sign * item[1], batch.index(item[0])))
    return [(name, str(value)) for name, value in ranked]


def outcome(name: str) -> str:
    kelvin = shelf()[name][1]
    return OUTCOMES[(kelvin >= COLD_K) + (kelvin >= HOT_K)]


@functools.cache
def shelf() -> Mapping[str, tuple[str, float]]:
    """Short name → (SMILES, measured boiling point)."""
    known = {
        molecule.name.lower(): (molecule.smiles, molecule.measured["boiling point"])
        for molecule in load_molecules().values()
        if "boiling point" in molecule.measured and re.fullmatch("[A-Za-z]{3,8}", molecule.name)
    }
    return dict(sorted(known.items()))


class _Draw:
    """Draws the parts of one task. Every two molecules of a batch, and a molecule and what is likened to it, are a pair
    of
    the split."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self.batches: dict[str, list[str]] = {}
        self.notes: dict[str, str] = {}
        self.pairs: list[tuple[str, str]] = []

    def lab(self) -> str:
        """Labs belong to a split like pairs do: so no prompt is in both."""
        while part_of(pair := ("lab", str(self.rng.randint(1000, 9999))), VALIDATION_PERCENT) != self.split:
            pass
        self.pairs.append(pair)
        return pair[1]

    def steps(self, cost: int) -> list[Step] | None:
        """Steps that cost ``cost`` calls in all, or one less: then the end is to cost it."""
        steps: list[Step] = []
        while cost and not (cost == 1 and self.notes and self.rng.random() < 0.5):
            step = self._step(cost, steps[-1] if steps else None)
            if step is None:
                return None
            if step.key:
                self.notes[step.key] = step.pick.found
            steps.append(step)
            cost -= step.cost
        return steps

    def end(self, steps: Sequence[Step], left: int, horizon: int) -> tuple[str, str]:
        """What is shown behind the last step, and the hit. From horizon 3 on the hit is not in the first
        observation."""
        rng = self.rng
        first = steps[0].text.split() if steps and horizon > 2 else []
        if left:
            keys = [key for key, name in self.notes.items() if name not in first] or list(self.notes)
            key = rng.choice(keys)
            return f"done. hit note {key}", self.notes[key]
        used = list(dict.fromkeys(step.pick.found for step in steps if step.pick.found not in first))
        hit = rng.choice(used or [name for name in shelf() if name not in first])
        return f"done. hit {hit}", hit

    def _step(self, cost: int, before: Step | None) -> Step | None:
        """One step of at most ``cost`` calls."""
        rng = self.rng
        free = [key for key in KEYS if key not in self.notes]
        impure = cost >= 3 and rng.random() < IMPURE
        room = cost - 2 * impure
        if free and not impure and rng.random() < 0.3:
            pick = self._pick(room, note=False)
            return Step("keep", pick, key=rng.choice(free)) if pick else None
        pick = self._pick(room, note=True)
        if pick is None:
            return None
        fork: tuple[tuple[str, str], ...] = ()
        if before is not None and before.do == "assay" and rng.random() < FORK:
            other = self._pick(room, note=True)
            if other is not None and other.text != pick.text:
                seen = outcome(before.pick.found)
                branches = [(seen, pick.text), (rng.choice([o for o in OUTCOMES if o != seen]), other.text)]
                rng.shuffle(branches)
                fork = tuple(branches)
        return Step("assay", pick, impure=impure, fork=fork)

    def _pick(self, room: int, note: bool) -> Pick | None:
        """A way to say which molecule, that takes one look-up where there is room for it (most of the time)."""
        rng = self.rng
        roll = rng.random()
        if room < 2 or roll < 0.15:
            return Pick(name := rng.choice(list(shelf())), name)
        if note and self.notes and roll < 0.45:
            key = rng.choice(list(self.notes))
            return Pick(f"note {key}", self.notes[key])
        for _ in range(DRAWS):
            pick = self._batch_pick(rng.choice(("high", "low", "like", "with")))
            if pick is not None:
                return pick
        return None

    def _batch_pick(self, kind: str) -> Pick | None:
        """A new batch in which ``kind`` of look-up finds one molecule; None where this draw has none."""
        rng = self.rng
        names = _clique(rng, self.split, BATCH + (kind == "like"))
        if names is None:
            return None
        *members, other = names
        batch = [*members, other] if kind != "like" else members
        while (key := f"b{rng.randint(10, 99)}") in self.batches:
            pass
        second = {"like": other, "with": rng.choice(SHELF_GROUPS)}.get(kind) or rng.choice(list(SCALES))
        text = f"{kind} {second} of {key}"
        shown = measure(text, batch)
        clear = len(shown) == 1 if kind == "with" else shown[0][1] != shown[1][1]
        if not clear:
            return None
        self.batches[key] = batch
        self.pairs += [(a, b) for a in sorted(names) for b in sorted(names) if a < b]
        return Pick(text, shown[0][0])


def _clique(rng: random.Random, split: Split, size: int) -> list[str] | None:
    """Molecules of which every two are a pair of the split."""
    names = [rng.choice(list(shelf()))]
    common = set(_partners(split)[names[0]])
    while len(names) < size:
        if not common:
            return None
        names.append(rng.choice(sorted(common)))
        common &= _partners(split)[names[-1]]
    return names


@functools.cache
def _partners(split: Split) -> Mapping[str, frozenset[str]]:
    of = {name: set[str]() for name in shelf()}
    for a in shelf():
        for b in shelf():
            if a < b and part_of((a, b), VALIDATION_PERCENT) == split:
                of[a].add(b)
                of[b].add(a)
    return {name: frozenset(others) for name, others in of.items()}


def _to_json(step: Step) -> dict[str, Any]:
    return {
        "do": step.do,
        "pick": [step.pick.text, step.pick.found],
        "key": step.key,
        "impure": step.impure,
        "fork": [list(branch) for branch in step.fork],
    }


def _from_json(value: Mapping[str, Any]) -> Step:
    text, found = value["pick"]
    fork = tuple((seen, pick) for seen, pick in value["fork"])
    return Step(value["do"], Pick(text, found), value["key"], value["impure"], fork)


def _error(text: str) -> Observation:
    return Observation(f"error: {text}", error=True)
