"""Instruction following: one long turn (think, then answer) under verifiable constraints and injected local rules.

The opposite pattern to the tool domains (section 3): no tools, no observations; everything stands in the prompt. A
document of ``LINES`` real facts, one entity a line, links its entities by ``next``. The question walks it from a start
to ``stop``; the horizon is the number of entities on the walk. The other lines are distractors, so that neither the
document nor the prompt grows with the horizon. One or two rules stand between the lines and change how facts are read
inside this document; two or three constraints say how the answer must look.

No answer can be had without the document: the walk exists nowhere else. None can be had without the rules: ``propose``
keeps only tasks whose first rule changes the expected values, so plain world knowledge along the right walk is refused.

Where we differ from the paper: an answer is a list of values, not multiple choice; documents are short, for small
models trained from scratch; and each value has a rubric item of its own, so that the score is dense.

Constraints are judged by the IFEval instruction classes of ``if-verifiable`` 0.1.2 (Apache-2.0) where it has the rule,
always with explicit arguments (left out, they would be drawn from the global random state). Its IFBench classes are
not used: they are held out with that benchmark. Its upper and lower case rules are not used either: they ask a language
detector whether a list of names is English. Separators and the exact words of an affix are checked here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import random
import re
import sys
import types
from collections.abc import Mapping, Sequence
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
    Verdict,
    split_of,
)
from openhorizon.domains.facts import Page, load_facts

LINES = 5  # entities of a document
MAX_HORIZON = LINES - 1  # so that every document has a distractor
DRAWS = 64  # documents tried before a proposal is given up
MAX_LETTERS = 12
UNNOTICED = 0.1  # share of the expert's slips that it never corrects: such a trajectory fails
STOP, NOTHING = "stop", "nothing"

THEMES = (("country", "capital", "currency"), ("country", "capital", "language"), ("country", "currency", "language"))
ELEMENTS = ("element", "symbol", "number")

LAYOUTS = {
    "bullets": "Give each as a * bullet point.",
    "brackets": "Put each in square brackets.",
    "highlights": "Put each between asterisks.",
    "commas": "Separate them by commas.",
    "semicolons": "Separate them by semicolons, never commas.",
}
EXTRAS = {
    "title": ("Begin with the title <<{}>>.", ("report", "record", "survey")),
    "keyword": ("Include the keyword {}.", ("verdict", "summary", "outcome")),
    "twice": ("Write the keyword {} twice.", ("verdict", "summary", "outcome")),
    "postscript": ("Add the postscript P.S. {}.", ("checked", "verified", "confirmed")),
    "end": ("End with the phrase {}.", ("that is all", "end of list", "nothing more follows")),
    "quotation": ("Wrap all in double quotation {}.", ("marks",)),
}
CONFLICTS = (frozenset({"keyword", "twice"}), frozenset({"postscript", "end"}))

_LINE = re.compile(r"^(\w+) in ([^;\n]+); \1 (\w+) ([^;\n]+); \1 (\w+) ([^;\n]+); \1 next (\w+)$", re.MULTILINE)
_RULE = re.compile(r"^Rule: (?:for ([\w ]+), give (?:the (\w+)|no value)|read every (\w+) as (\w+))\.$", re.MULTILINE)
_QUESTION = re.compile(r"^Start at (\w+)\. Follow next until stop\. Give the (\w+) of each\.$", re.MULTILINE)
_REGISTRY = "if_verifiable.ifeval.instructions_registry"
_SEPARATORS = re.compile(r"[;,\n\[\]*]")


@dataclass(frozen=True)
class Entity:
    """One line of a document. ``values`` maps its two fields to what the line says of them."""

    name: str
    group: str
    values: Mapping[str, str]
    next: str = STOP

    def line(self) -> str:
        facts = "; ".join(f"{self.name} {field} {value}" for field, value in self.values.items())
        return f"{self.name} in {self.group}; {facts}; {self.name} next {self.next}"


@dataclass(frozen=True)
class Rule:
    """``switch``: entities of group ``when`` give field ``give``. ``skip``: they give no value. ``rename``: the value
    ``when`` is read as ``give``."""

    kind: str
    when: str
    give: str = ""

    def line(self) -> str:
        if self.kind == "rename":
            return f"Rule: read every {self.when} as {self.give}."
        return f"Rule: for {self.when}, give {f'the {self.give}' if self.kind == 'switch' else 'no value'}."


@dataclass(frozen=True)
class Reading:
    """What one entity of the walk contributes; ``field`` is NOTHING where it is skipped, ``value`` is as renamed."""

    entity: Entity
    field: str
    printed: str
    value: str

    def line(self, earlier: Sequence[str]) -> str:
        """The thought about this entity: its group, the fact it gives, where it leads, and the list so far. A thought
        that keeps the list needs to look no further back than one line, like an agent's notes."""
        read = "" if self.value == self.printed else f" read {self.value}"
        name = self.entity.name
        what = NOTHING if self.field == NOTHING else f"{name} {self.field} {self.printed}{read}"
        values = [*earlier, self.value] if self.field != NOTHING else earlier
        return (
            f"{name} in {self.entity.group}; give {what}; {name} next {self.entity.next}; "
            f"list {', '.join(values) or NOTHING}"
        )


@dataclass(frozen=True)
class Constraint:
    """A demand on the answer's form; ``words`` fills in an extra's sentence."""

    kind: str
    words: str = ""

    def sentence(self) -> str:
        return LAYOUTS[self.kind] if self.kind in LAYOUTS else EXTRAS[self.kind][0].format(self.words)


def read(entity: Entity, asked: str, rules: Sequence[Rule]) -> Reading:
    """Apply the rules to one line: first which field, then renaming."""
    field = asked
    for rule in rules:
        if rule.kind != "rename" and rule.when == entity.group:
            field = rule.give if rule.kind == "switch" else NOTHING
    if field == NOTHING:
        return Reading(entity, NOTHING, "", "")
    printed = entity.values[field]
    names = {rule.when: rule.give for rule in rules if rule.kind == "rename"}
    return Reading(entity, field, printed, names.get(printed, printed))


def values_of(readings: Sequence[Reading]) -> list[str]:
    return [reading.value for reading in readings if reading.field != NOTHING]


def walk(entities: Mapping[str, Entity], start: str) -> list[Entity]:
    path = [entities[start]]
    while path[-1].next != STOP:
        path.append(entities[path[-1].next])
    return path


def compose(values: Sequence[str], constraints: Sequence[Constraint]) -> str:
    """The answer that gives ``values`` under ``constraints``: title, keyword, values, postscript, end; quoted."""
    words = {constraint.kind: constraint.words for constraint in constraints}
    layout = next((kind for kind in words if kind in LAYOUTS), "commas")
    keyword = words.get("keyword") or " ".join([words["twice"]] * 2 if "twice" in words else [])
    parts = [
        f"<<{words['title']}>>" if "title" in words else "",
        f"{keyword}:" if keyword else "",
        lay_out(values, layout),
        f"P.S. {words['postscript']}" if "postscript" in words else "",
        words.get("end", ""),
    ]
    gap = "\n" if layout == "bullets" else " "
    text = gap.join(part for part in parts if part)
    first = "\n" if layout == "bullets" else ""  # a bullet opens its line
    return f'"{first}{text}"' if "quotation" in words else text


def lay_out(values: Sequence[str], layout: str) -> str:
    match layout:
        case "bullets":
            return "\n".join(f"* {value}" for value in values)
        case "brackets":
            return " ".join(f"[{value}]" for value in values)
        case "highlights":
            return " ".join(f"*{value}*" for value in values)
        case "commas":
            return ", ".join(values)
    assert layout == "semicolons", layout
    return "; ".join(values)


class InstructionEnvironment(Environment):
    """There is nothing to act on: no tool passes ``call``'s validation."""

    def execute(self, call: Call) -> Observation:
        raise AssertionError(f"the instruction domain has no tool {call.name}")


class InstructionDomain(Domain):
    name = "instruction"
    system = "Obey the rules in the document. Think one line for each entity, then answer."
    tools = ()

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"instruction: horizon {horizon} is not between 1 and {MAX_HORIZON}")
        for _ in range(DRAWS):
            theme = ELEMENTS if rng.random() < 0.25 else rng.choice(THEMES)
            pool = _pool(theme)
            drawn = rng.sample(pool, LINES)
            pair = (drawn[0].name, drawn[horizon - 1].name)
            if split_of(pair) != split:
                continue
            entities = _link(rng, drawn, horizon)
            asked = rng.choice(theme[1:])
            rules = _draw_rules(rng, entities, horizon, asked, pool)
            if rules is not None:
                break
        else:
            return None
        path = entities[:horizon]
        values = values_of([read(entity, asked, rules) for entity in path])
        constraints = _draw_constraints(rng)
        lines = [entity.line() for entity in rng.sample(entities, LINES)]
        for rule in rng.sample(rules, len(rules)):
            lines.insert(rng.randint(1, len(lines)), rule.line())
        lines.append(f"Start at {path[0].name}. Follow next until stop. Give the {asked} of each.")
        lines.extend(constraint.sentence() for constraint in constraints)
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
            evidence=tuple(f"line:{entity.name}" for entity in path),
            verifiers=(*(constraint.kind for constraint in constraints), "values", "nothing else"),
            reference=compose(values, constraints),
            entity_pairs=(pair,),
        )

    def start(self, task: Task) -> Environment:
        return InstructionEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        """Reads the prompt. A slip forgets the rule on a line, or reads another line; ``wait:`` corrects it, unless it
        goes unnoticed. As seldom, a constraint is forgotten."""
        entities, rules, asked, path, constraints = _parse(prompt)
        thought: list[str] = []
        readings: list[Reading] = []
        for entity in path:
            reading = read(entity, asked, rules)
            earlier = values_of(readings)
            noticed = True
            if rng.random() < noise:
                wrong = _slip(rng, reading, list(entities.values()), asked)
                thought.append(wrong.line(earlier))
                noticed = rng.random() >= UNNOTICED
                if noticed:
                    thought.append(f"wait: {reading.line(earlier)}")
                else:
                    reading = wrong
            else:
                thought.append(reading.line(earlier))
            readings.append(reading)
        if rng.random() < noise * UNNOTICED:
            constraints.remove(rng.choice([constraint for constraint in constraints if constraint.kind in EXTRAS]))
        yield Answer(compose(values_of(readings), constraints), "\n".join(thought))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """One rubric item a constraint, one a value at its place, and one for saying nothing else."""
        constraints = [Constraint(kind, words) for kind, words in task.state["constraints"]]
        values: list[str] = task.state["values"]
        text = "" if answer is None else answer.text.strip()
        body = _body(text, constraints)
        items = _items(body)
        rubric = {c.kind: bool(text) and _follows(c, text, body, items, len(values)) for c in constraints}
        for i, value in enumerate(values):
            rubric[f"value {i + 1}"] = items[i : i + 1] == [value]
        rubric["nothing else"] = len(items) == len(values) and set(items) <= set(values)
        missed = [item for item, met in rubric.items() if not met]
        reason = "no answer" if not text else f"not met: {', '.join(missed)}" if missed else "all met"
        return Verdict(not missed, 1 - len(missed) / len(rubric), reason, rubric)


@functools.cache
def _pool(theme: tuple[str, ...]) -> tuple[Entity, ...]:
    """The entities that fit a line: names and both values are single short words, and the group is known."""
    kind, *fields = theme
    facts = load_facts()
    pool = []
    for page in facts.values():
        if page.kind != kind:
            continue
        group = _group(page, facts)
        values = {field: _value(page, field) for field in fields}
        if group and all(word.isalnum() and len(word) <= MAX_LETTERS for word in (page.title, *values.values())):
            pool.append(Entity(page.title, group, values))
    return tuple(pool)


def _group(page: Page, facts: Mapping[str, Page]) -> str:
    """What rules speak of: an element's period, or the continent of a country's region (its first, where the corpus
    names several). A country without a region (South America has none below it) is left out."""
    if page.kind == "element":
        return page.links["row"][0].lower()
    region = page.links.get("region")
    return facts[region[0]].links["continent"][0] if region else ""


def _value(page: Page, field: str) -> str:
    """A field's value without the code that tells currencies of one name apart: ``Franc XAF`` → ``Franc``."""
    if page.kind == "element":
        return str(page.attributes[field])
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
    """One rule that changes the answer, and half the time a second one that may; None where this draw gives none.

    At least two values are left on a walk of two or more: a single one could be copied without walking.
    """
    path = entities[:horizon]
    kinds = ["switch", "rename", "skip"] if horizon > 2 else ["switch", "rename"]
    first = _draw_rule(rng, rng.choice(kinds), rng.choice(path), asked, entities, pool)
    rules = [first]
    if rng.random() < 0.5:
        others = [entity for entity in entities if entity.group != first.when]
        kind = rng.choice([kind for kind in ("switch", "rename", "skip") if kind != first.kind])
        if not others:
            return None
        rules.append(_draw_rule(rng, kind, rng.choice(others), asked, entities, pool))
    values = values_of([read(entity, asked, rules) for entity in path])
    without = values_of([read(entity, asked, rules[1:]) for entity in path])
    return rules if values != without and len(values) >= min(horizon, 2) else None


def _draw_rule(
    rng: random.Random, kind: str, entity: Entity, asked: str, entities: Sequence[Entity], pool: Sequence[Entity]
) -> Rule:
    """A rule that touches ``entity``. A new name is one of the same kind that the document does not have."""
    if kind == "skip":
        return Rule("skip", entity.group)
    if kind == "switch":
        return Rule("switch", entity.group, next(field for field in entity.values if field != asked))
    printed = {value for other in entities for value in other.values.values()}
    while (name := rng.choice(pool).values[asked]) in printed:
        pass
    return Rule("rename", entity.values[asked], name)


def _draw_constraints(rng: random.Random) -> list[Constraint]:
    """A layout and one extra, or seldom two that do not exclude each other."""
    constraints = [Constraint(rng.choice(list(LAYOUTS)))]
    extras = rng.sample(list(EXTRAS), 2)
    for kind in extras[: 1 if frozenset(extras) in CONFLICTS or rng.random() < 0.8 else 2]:
        constraints.append(Constraint(kind, rng.choice(EXTRAS[kind][1])))
    return constraints


def _parse(prompt: str) -> tuple[dict[str, Entity], list[Rule], str, list[Entity], list[Constraint]]:
    """The prompt as its reader sees it: lines, rules, the asked field, the walk and the constraints."""
    entities = {
        name: Entity(name, group, {field1: value1, field2: value2}, target)
        for name, group, field1, value1, field2, value2, target in _LINE.findall(prompt)
    }
    rules = []
    for group, field, old, new in _RULE.findall(prompt):
        if old:
            rules.append(Rule("rename", old, new))
        else:
            rules.append(Rule("switch", group, field) if field else Rule("skip", group))
    question = _QUESTION.search(prompt)
    assert question is not None, prompt
    start, asked = question.groups()
    constraints = [_SENTENCES[line] for line in prompt[question.end() :].splitlines() if line]
    return entities, rules, asked, walk(entities, start), constraints


_SENTENCES = {
    constraint.sentence(): constraint
    for constraint in [
        *(Constraint(kind) for kind in LAYOUTS),
        *(Constraint(kind, words) for kind, (_, choices) in EXTRAS.items() for words in choices),
    ]
}


def _slip(rng: random.Random, right: Reading, entities: Sequence[Entity], asked: str) -> Reading:
    """The rule forgotten where one applies, otherwise the fact of another line."""
    plain = read(right.entity, asked, ())
    if plain != right:
        return plain
    others = [entity.values[asked] for entity in entities if entity.values[asked] != right.printed]
    wrong = rng.choice(others) if others else next(v for f, v in right.entity.values.items() if f != asked)
    return Reading(right.entity, asked, wrong, wrong)


def _body(text: str, constraints: Sequence[Constraint]) -> str:
    """The answer without what its constraints ask for around the values."""
    if any(constraint.kind == "quotation" for constraint in constraints):
        text = text.strip('"')
    for constraint in constraints:
        words = constraint.words
        match constraint.kind:
            case "title":
                text = text.replace(f"<<{words}>>", "", 1)
            case "keyword" | "twice":
                text = re.sub(rf"\b{words}\b:?", "", text)
            case "postscript":
                text = text.replace(f"P.S. {words}", "", 1)
            case "end":
                text = text.replace(words, "", 1)
    return text.strip()


def _items(body: str) -> list[str]:
    return [item.strip().removeprefix("- ") for item in _SEPARATORS.split(body) if item.strip()]


def _follows(constraint: Constraint, text: str, body: str, items: Sequence[str], count: int) -> bool:
    """Whether the answer meets one constraint: the library's rule where it has one, and ours where the sentence in the
    prompt asks for more than that."""
    words = constraint.words
    match constraint.kind:
        case "bullets":
            library = _check(text, "detectable_format:number_bullet_lists", num_bullets=count)
        case "brackets":
            library = _check(text, "detectable_content:number_placeholders", num_placeholders=count)
        case "highlights":
            library = _check(text, "detectable_format:number_highlighted_sections", num_highlights=count)
        case "semicolons":
            library = _check(text, "punctuation:no_comma")
        case "commas":
            library = True  # it has no rule for a separator
        case "title":
            return _check(text, "detectable_format:title") and text.lstrip('" \n').startswith(f"<<{words}>>")
        case "keyword":
            return _check(text, "keywords:existence", keywords=(words,))
        case "twice":
            return _check(text, "keywords:frequency", keyword=words, frequency=2, relation="at least") and _check(
                text, "keywords:frequency", keyword=words, frequency=3, relation="less than"
            )
        case "postscript":
            marked = _check(text, "detectable_content:postscript", postscript_marker="P.S.")
            return marked and f"P.S. {words}" in text
        case "end":
            return _check(text, "startend:end_checker", end_phrase=words)
        case "quotation":
            return _check(text, "startend:quotation")
        case unknown:
            raise AssertionError(unknown)
    return library and "".join(body.split()) == "".join(lay_out(items, constraint.kind).split())


def _check(text: str, instruction: str, **arguments: Any) -> bool:
    return bool(_checker(instruction, tuple(arguments.items())).check_following(text))


@functools.cache
def _checker(instruction: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """An instruction object of if-verifiable, built once for its arguments."""
    checker = _instructions()[instruction](instruction)
    checker.build_description(**dict(arguments))
    return checker


class _Later(types.ModuleType):
    """Holds a module's name during an import; asked for an attribute later, it imports the module itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@functools.cache
def _instructions() -> Mapping[str, Any]:
    """if-verifiable's IFEval classes by instruction id.

    Two imports that no rule used here needs are kept out: the package's own ``__init__`` imports ``datasets``, so its
    folder is entered past it; and only rules on words and sentences call nltk, whose import takes seconds where
    scikit-learn is installed, so it is put off to that call. Stand-ins hold both names during the import only.

    Raises:
        ModuleNotFoundError: a package is not installed; the message says what to do.
    """
    for name in ("if_verifiable", "langdetect", "immutabledict"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            how = "pip install langdetect immutabledict && pip install --no-deps if-verifiable==0.1.2"
            raise ModuleNotFoundError(f"package {name!r} is not installed; run: {how}", name=name)
    stand_ins = {name: _Later(name) for name in ("if_verifiable", "nltk") if name not in sys.modules}
    if "if_verifiable" in stand_ins:
        spec = importlib.util.find_spec("if_verifiable")
        assert spec is not None and spec.submodule_search_locations is not None
        stand_ins["if_verifiable"].__path__ = list(spec.submodule_search_locations)
    sys.modules.update(stand_ins)
    try:
        classes: Mapping[str, Any] = importlib.import_module(_REGISTRY).INSTRUCTION_DICT
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return classes
