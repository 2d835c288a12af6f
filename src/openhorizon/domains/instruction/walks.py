"""Instruction following: one long turn (think, then answer) under verifiable constraints and injected local rules.

The opposite pattern to the tool domains (section 3): no tools, no observations; everything stands in the prompt. A
document of real facts on ``ENTITIES`` countries, one fact a line, links them by ``next``. The question walks it from a
start to ``stop``; the horizon is the number of countries on the walk. The others are distractors, so that neither the
document nor the prompt grows with the horizon. One or two rules stand between the countries and change what is given
for those of a group inside this document; two or three constraints say how the answer must look.

No answer can be had without the document: the walk exists nowhere else. None can be had without the rules: ``propose``
keeps only tasks whose first rule changes the expected values, so plain world knowledge along the right walk is refused.

Facts, rules, thoughts and demands are worded alike, so that every step of a thought is a look-up by the words just
written: ``in Africa give`` leads to a rule's line where there is one and otherwise to ``Otherwise give``; ``Chad
capital`` leads to the fact. A model of half a million parameters learns that; it does not learn rules that are worded
in one way and applied in another.

Where we differ from the paper: an answer is a list of values, not multiple choice; documents are short, for small
models trained from scratch; and each value has a rubric item of its own, so that the score is dense.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openhorizon.domains.base import (
    Answer,
    Domain,
    Environment,
    Expert,
    NoActions,
    Split,
    Task,
    Verdict,
    split_of,
)
from openhorizon.domains.corpora.facts import Page, load_facts
from openhorizon.domains.instruction.constraints import (
    LAYOUTS,
    Constraint,
    body_of,
    compose,
    draw,
    follows,
    items_of,
    read_sentences,
    sentences,
)

ENTITIES = 5  # of a document
MAX_HORIZON = ENTITIES - 1  # so that every document has a distractor
DRAWS = 256  # documents tried before a proposal is given up
MAX_LETTERS = 8  # of a name or value: a rare word costs a small vocabulary a piece for every two letters
UNNOTICED = 0.1  # share of the expert's slips that it never corrects: such a trajectory fails
STOP, NOTHING = "stop", "nothing"

THEMES = (("capital", "currency"), ("capital", "language"), ("currency", "language"))

_ENTITY = re.compile(r"^(\w+) in ([\w ]+)\n\1 (\w+) (\w+)\n\1 (\w+) (\w+)\n\1 next (\w+)$", re.MULTILINE)
_RULE = re.compile(r"^Rule: in ([\w ]+) give (\w+)$", re.MULTILINE)
_QUESTION = re.compile(
    r"^Start at (\w+)\nFollow next until stop, the last comes first\. Otherwise give (\w+)$", re.MULTILINE
)


@dataclass(frozen=True)
class Entity:
    """A country of a document. ``values`` maps its two fields to what the document says of them."""

    name: str
    group: str
    values: Mapping[str, str]
    next: str = STOP

    def paragraph(self) -> str:
        facts = [f"{field} {value}" for field, value in self.values.items()]
        return "\n".join(f"{self.name} {fact}" for fact in (f"in {self.group}", *facts, f"next {self.next}"))


@dataclass(frozen=True)
class Rule:
    """In group ``when``, ``switch``: give field ``give``; ``skip``: give no value; ``replace``: give the word ``give``,
    whatever the fact is."""

    kind: str
    when: str
    give: str = NOTHING

    def line(self) -> str:
        return f"Rule: in {self.when} give {self.give}"


@dataclass(frozen=True)
class Reading:
    """What one entity of the walk contributes: ``give`` is a field, NOTHING or a rule's word; ``field`` the fact that
    is looked up, if one is; ``value`` what it comes to, empty where it is skipped."""

    entity: Entity
    give: str
    field: str
    value: str

    def lines(self) -> list[str]:
        """The group and what to give in it, then the fact where a field is given: each looked up by the words before
        it, in the same way whether a rule or the question decides."""
        given = f"{self.entity.name} in {self.entity.group} give {self.give}"
        return [given, f"{self.entity.name} {self.field} {self.value}"] if self.field else [given]


def read(entity: Entity, asked: str, rules: Sequence[Rule]) -> Reading:
    """Apply the rules to one entity."""
    give = next((rule.give for rule in rules if rule.when == entity.group), asked)
    if give in entity.values:
        return Reading(entity, give, give, entity.values[give])
    return Reading(entity, give, "", "" if give == NOTHING else give)


def values_of(readings: Sequence[Reading]) -> list[str]:
    """The last first: a longer list then is one value more and the shorter list as it was."""
    return [reading.value for reading in reversed(readings) if reading.value]


def walk(entities: Mapping[str, Entity], start: str) -> list[Entity]:
    path = [entities[start]]
    while path[-1].next != STOP:
        path.append(entities[path[-1].next])
    return path


class InstructionDomain(Domain):
    name = "instruction"
    system = "Obey the rules in the document. Look up one line at a time, then answer."
    tools = ()

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        return tuple(horizon for horizon in horizons if 1 <= horizon <= MAX_HORIZON)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"instruction: horizon {horizon} is not between 1 and {MAX_HORIZON}")
        for _ in range(DRAWS):
            theme = rng.choice(THEMES)
            pool = _pool(theme)
            drawn = rng.sample(pool, ENTITIES)
            pair = (drawn[0].name, drawn[horizon - 1].name)
            if split_of(pair) != split:
                continue
            entities = _link(rng, drawn, horizon)
            asked = rng.choice(theme)
            rules = _draw_rules(rng, entities, horizon, asked, pool)
            if rules is not None:
                break
        else:
            return None
        path = entities[:horizon]
        values = values_of([read(entity, asked, rules) for entity in path])
        constraints = draw(rng)
        lines = [entity.paragraph() for entity in rng.sample(entities, ENTITIES)]
        for rule in rng.sample(rules, len(rules)):
            lines.insert(rng.randint(1, len(lines)), rule.line())
        lines.append(f"Start at {path[0].name}\nFollow next until stop, the last comes first. Otherwise give {asked}")
        lines.extend(sentences(constraints))
        return Task(
            domain=self.name,
            id=f"{self.name}-{split}-{horizon}-{seed}",
            split=split,
            prompt="\n".join(lines),
            horizon=horizon,
            seed=seed,
            state={
                "values": values,
                "constraints": [[constraint.kind, constraint.words] for constraint in constraints],
                "rules": [rule.line() for rule in rules],
            },
            evidence=tuple(f"entity:{entity.name}" for entity in path),
            verifiers=(*(constraint.kind for constraint in constraints), "values", "nothing else"),
            reference=compose(values, constraints),
            entity_pairs=(pair,),
        )

    def start(self, task: Task) -> Environment:
        return NoActions(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        """Reads the prompt. A slip forgets a rule or reads the other fact; ``wait:`` corrects it, unless it
        goes unnoticed. As seldom, the last constraint is forgotten."""
        rules, asked, path, constraints = _parse(prompt)
        readings: list[Reading] = []
        thought = [f"Start at {path[0].name}"]
        for entity in path:
            reading = read(entity, asked, rules)
            lines = reading.lines()
            if rng.random() < noise:
                wrong = _slip(reading, asked)
                if rng.random() < UNNOTICED:
                    reading, lines = wrong, wrong.lines()
                else:
                    lines = _corrected(lines, wrong.lines())
            readings.append(reading)
            thought += [*lines, _draft(readings, constraints[:1]), f"{entity.name} next {entity.next}"]
        demands = sentences(constraints)
        if rng.random() < noise * UNNOTICED:
            del constraints[-1], demands[-1]
        for met, demand in enumerate(demands[1:], 2):
            thought += [demand, _draft(readings, constraints[:met])]
        thought.append(_cue(constraints))
        yield Answer(compose(values_of(readings), constraints), "\n".join(thought))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """One rubric item a constraint, one a value at its place, and one for saying nothing else."""
        constraints = [Constraint(kind, words) for kind, words in task.state["constraints"]]
        values: list[str] = task.state["values"]
        text = "" if answer is None else answer.text.strip()
        body = body_of(text, constraints)
        items = items_of(body)
        rubric = {c.kind: bool(text) and follows(c, text, body, items, len(values)) for c in constraints}
        for i, value in enumerate(values):
            rubric[f"value {i + 1}"] = items[i : i + 1] == [value]
        rubric["nothing else"] = len(items) == len(values) and set(items) <= set(values)
        missed = [item for item, met in rubric.items() if not met]
        reason = "no answer" if not text else f"not met: {', '.join(missed)}" if missed else "all met"
        return Verdict(not missed, 1 - len(missed) / len(rubric), reason, rubric)


@functools.cache
def _pool(fields: tuple[str, str]) -> tuple[Entity, ...]:
    """The countries whose name and two values are single short words and whose group is known."""
    facts = load_facts()
    pool = []
    for page in facts.values():
        if page.kind != "country":
            continue
        group = _group(page, facts)
        values = {field: _value(page, field) for field in fields}
        if group and all(word.isalnum() and len(word) <= MAX_LETTERS for word in (page.title, *values.values())):
            pool.append(Entity(page.title, group, values))
    return tuple(pool)


def _group(page: Page, facts: Mapping[str, Page]) -> str:
    """What rules speak of: the continent of a country's region (its first, where the corpus names several). A country
    without a region (South America has none below it) is left out."""
    region = page.links.get("region")
    return facts[region[0]].links["continent"][0] if region else ""


def _value(page: Page, field: str) -> str:
    """A field's value without the code that tells currencies of one name apart: ``Franc XAF`` → ``Franc``."""
    title = page.links.get(field, ("",))[0]
    return re.sub(r" [A-Z]{3}$", "", title) if field == "currency" else title


def _link(rng: random.Random, drawn: Sequence[Entity], horizon: int) -> list[Entity]:
    """The first ``horizon`` entities form the walk; each distractor leads to any other entity, never to the stop."""
    names = [entity.name for entity in drawn]
    linked = []
    for i, entity in enumerate(drawn):
        target = rng.choice(names[:i] + names[i + 1 :]) if i >= horizon else names[i + 1] if i + 1 < horizon else STOP
        linked.append(Entity(entity.name, entity.group, entity.values, target))
    return linked


def _draw_rules(
    rng: random.Random, entities: Sequence[Entity], horizon: int, asked: str, pool: Sequence[Entity]
) -> list[Rule] | None:
    """One rule that changes the answer, and half the time one for another group; None where this draw gives none.

    A walk of one gives one of its facts, never a rule's own word. A longer one gives two values or more (a single one
    could be copied without walking), none of them twice (each then tells which country it is of).
    """
    path = entities[:horizon]
    kinds = ["switch", "replace", "skip"][:horizon]
    first = _draw_rule(rng, rng.choice(kinds), rng.choice(path), asked, entities, pool)
    rules = [first]
    if rng.random() < 0.5:
        others = [entity for entity in entities if entity.group != first.when]
        if not others:
            return None
        kind = rng.choice([kind for kind in ("switch", "replace", "skip") if kind != first.kind])
        rules.append(_draw_rule(rng, kind, rng.choice(others), asked, entities, pool))
    values = values_of([read(entity, asked, rules) for entity in path])
    without = values_of([read(entity, asked, rules[1:]) for entity in path])
    distinct = len(set(values)) == len(values)
    return rules if distinct and values != without and len(values) >= min(horizon, 2) else None


def _draw_rule(
    rng: random.Random, kind: str, entity: Entity, asked: str, entities: Sequence[Entity], pool: Sequence[Entity]
) -> Rule:
    """A rule for the group of ``entity``. A word is a value of the asked kind that the document does not have."""
    if kind == "skip":
        return Rule("skip", entity.group)
    if kind == "switch":
        return Rule("switch", entity.group, next(field for field in entity.values if field != asked))
    printed = {value for other in entities for value in other.values.values()}
    while (word := rng.choice(pool).values[asked]) in printed:
        pass
    return Rule("replace", entity.group, word)


def _parse(prompt: str) -> tuple[list[Rule], str, list[Entity], list[Constraint]]:
    """The prompt as its reader sees it: rules, the asked field, the walk and the constraints."""
    entities = {
        name: Entity(name, group, {field1: value1, field2: value2}, target)
        for name, group, field1, value1, field2, value2, target in _ENTITY.findall(prompt)
    }
    fields = {field for entity in entities.values() for field in entity.values}
    rules = [
        Rule("skip" if give == NOTHING else "switch" if give in fields else "replace", group, give)
        for group, give in _RULE.findall(prompt)
    ]
    question = _QUESTION.search(prompt)
    assert question is not None, prompt
    start, asked = question.groups()
    constraints = read_sentences(prompt[question.end() + 1 :].splitlines())
    return rules, asked, walk(entities, start), constraints


def _slip(right: Reading, asked: str) -> Reading:
    """The rule forgotten where one applies, otherwise the other fact looked up."""
    plain = read(right.entity, asked, ())
    if plain != right:
        return plain
    field, value = next((field, value) for field, value in right.entity.values.items() if field != asked)
    return Reading(right.entity, asked, field, value)


def _corrected(right: Sequence[str], wrong: Sequence[str]) -> list[str]:
    """The first line that went wrong, corrected at once, and the rest as it is right."""
    at = next(i for i, line in enumerate(right) if line != wrong[i])
    return [*right[:at], wrong[at], f"wait: {right[at]}", *right[at + 1 :]]


def _draft(readings: Sequence[Reading], constraints: Sequence[Constraint]) -> str:
    """The answer as far as it has come: the next is this one and one thing more. Without the words behind it, where a
    copy ends and where something is to be added would look the same."""
    written = compose(values_of(readings), constraints) if values_of(readings) else ""
    return f"{_cue(constraints)}\n{' '.join(filter(None, (written, 'so far')))}"


def _cue(constraints: Sequence[Constraint]) -> str:
    """What stands before each draft and, as the thought's last line, before the answer, which is the last draft."""
    return f"with {LAYOUTS[constraints[0].kind]}"
