"""Long-context multiple choice over an evidence graph of natural text, with injected local rules and distractors.

A dossier holds ``FILES`` country files of real text, in any order. Files refer to each other on two subjects; the
references of one dossier exist nowhere else. The question names a first file by its capital, follows the letters on one
subject until a file keeps them itself, and asks what that file gives under one heading:

    Archive rule: in files of South Asia, go by the letters on water instead.
    File of Nepal. ... It is filed under South Asia. ... For letters on trade, see the file of Peru. ...
    Question: begin with the file of the country whose capital is Kathmandu. ... What does it give as internet code?
    A) .pe  B) .np  C) .td ...

    <think>File of Nepal, filed under South Asia. A rule for South Asia applies: ...</think>Answer: C
    Files: Nepal > Chad

The horizon is the number of references followed. Every task needs document and rules both: ``propose`` walks once
without the rules and once without the document (the first file's own value, all that knowledge of the world can give),
and keeps a task only where both come to another value; both values stand among the options.

What differs from the paper, whose construction is not published: the answer also names the files of the path, so that
one option in six cannot be guessed right without the evidence.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from openhorizon.domains.corpora.factbook import Profile, load_factbook, sentences

FILES = 14  # of a dossier, whatever the horizon
MAX_HORIZON = 10
OPTIONS = "ABCDEF"
DRAWS = 64  # dossiers tried before a proposal is given up
UNNOTICED = 0.1  # share of the expert's slips that it never corrects: such a trajectory fails
SUBJECTS = ("trade", "water", "roads", "health", "schools", "fishing")
ASKED = ("internet code", "national symbol", "national holiday", "highest point", "area", "population")
TOLD = ("climate", "terrain", "natural resources", "economic overview", "industries", "farm products", "export goods")
REFERENCES = (
    "Letters on {} are kept in the file of {}.",
    "For letters on {}, see the file of {}.",
    "The {} letters went to the file of {}.",
)
KEPT = "Letters on {} are kept in this file."
DETOUR = "Archive rule: in files of {}, go by the letters on {} instead."
INSTEAD = "Archive rule: where the last file is of {}, give its {} instead."

_FILE = re.compile(r"^File of ([^.\n]+)\. (.*)$", re.MULTILINE)
_REGION = re.compile(r"It is filed under ([^.]+)\.")
_REFERENCE = re.compile("|".join(r.replace("{}", r"(\w+)", 1).replace("{}", r"([^.]+)") for r in REFERENCES))
_KEPT = re.compile(KEPT.replace("{}", r"(\w+)"))
_DETOUR = re.compile("^" + DETOUR.replace("{}", "(.+)", 1).replace("{}", r"(\w+)") + "$", re.MULTILINE)
_INSTEAD = re.compile("^" + INSTEAD.replace("{}", "(.+)", 1).replace("{}", "(.+)") + "$", re.MULTILINE)
_GIVES = re.compile(rf"Under ({'|'.join(ASKED)}) it gives: ([^\n]+?) \(end\)")
_QUESTION = re.compile(
    r"Question: begin with the file of the country whose capital is ([^\n]+?)\. From each file go on to the one that "
    r"has its letters on (\w+), until a file keeps them itself\. What does that last file give as (.+)\?"
)
_OPTION = re.compile(r"^([A-F])\) (.+)$", re.MULTILINE)
_CAPITAL = re.compile(r"Its capital is ([^\n]+?) and")


@dataclass(frozen=True)
class File:
    """A file as its reader sees it. ``letters`` maps a subject to the file that has its letters, "" for this one."""

    name: str
    region: str
    capital: str
    gives: Mapping[str, str]
    letters: Mapping[str, str]


@dataclass(frozen=True)
class Rules:
    """``detour``: region → the subject to go by there. ``instead``: region → the heading to give there."""

    detour: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)


def walk(files: Mapping[str, File], start: str, subject: str, rules: Rules) -> list[File] | None:
    """The files from ``start`` to the one that keeps the letters itself; None where the references run in a circle."""
    path = [files[start]]
    while there := path[-1].letters[rules.detour.get(path[-1].region, subject)]:
        if any(there == passed.name for passed in path):
            return None
        path.append(files[there])
    return path


def value_of(last: File, asked: str, rules: Rules) -> str:
    return last.gives[rules.instead.get(last.region, asked)]


class DossierDomain(Domain):
    name = "instruction"
    source = "dossier"
    system = (
        "Answer from the dossier alone, under its archive rules. Think step by step, one file a line. End with the "
        "line Answer: LETTER and a line Files: that names the files of the path, first to last, joined by ' > '."
    )
    tools = ()

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        return tuple(horizon for horizon in horizons if 1 <= horizon <= MAX_HORIZON)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"{self.world}: horizon {horizon} is not between 1 and {MAX_HORIZON}")
        for _ in range(DRAWS):
            task = self._draw(rng, split, horizon, seed)
            if task is not None:
                return task
        return None

    def _draw(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        profiles = rng.sample(_pool(), FILES)
        pair = (profiles[0].name, profiles[horizon].name)
        if split_of(pair) != split:
            return None
        subject, other = rng.sample(SUBJECTS, 2)
        asked, second = rng.sample(ASKED, 2)
        rules = _draw_rules(rng, profiles, horizon, other, second)
        files = _link(rng, profiles, horizon, (subject, other), rules)
        path = walk(files, profiles[0].name, subject, rules)
        assert path is not None and len(path) == horizon + 1, "the path is laid under the rules"
        value = value_of(path[-1], asked, rules)
        plain = walk(files, profiles[0].name, subject, Rules())
        if plain is None:
            return None
        ignoring = {"rules": value_of(plain[-1], asked, Rules()), "document": path[0].gives[asked]}
        options = _options(rng, value, ignoring, asked, rules, list(files.values()))
        if value in ignoring.values() or options is None:
            return None
        letters = {value: letter for letter, value in zip(OPTIONS, options, strict=True)}
        wrong = {
            "rules": write_answer(letters[ignoring["rules"]], plain),
            "document": write_answer(letters[ignoring["document"]], path[:1]),
        }
        by_name = {profile.name: profile for profile in profiles}
        lines = [_write(rng, file, by_name[file.name]) for file in rng.sample(list(files.values()), FILES)]
        for rule in _rule_lines(rules, rng):
            lines.insert(rng.randint(1, len(lines) - 1), rule)
        question = (
            f"Question: begin with the file of the country whose capital is {path[0].capital}. From each file go on to "
            f"the one that has its letters on {subject}, until a file keeps them itself. What does that last file give "
            f"as {asked}?"
        )
        choices = "\n".join(f"{letter}) {option}" for letter, option in zip(OPTIONS, options, strict=True))
        return Task(
            domain=self.name,
            id=f"{self.name}-{self.source}-{split}-{horizon}-{seed}",
            split=split,
            prompt="\n\n".join([f"Dossier {rng.randrange(1000, 10000)}", *lines, f"{question}\n{choices}"]),
            horizon=horizon,
            seed=seed,
            state={"path": [file.name for file in path], "letter": letters[value], "ignoring": wrong},
            evidence=tuple(f"file:{file.name}" for file in path),
            verifiers=("choice", "files"),
            reference=write_answer(letters[value], path),
            entity_pairs=(pair,),
            source=self.source,
        )

    def guesses(self, task: Task) -> tuple[str, ...]:
        """The answers of a reader who ignores the rules, or the document; and every letter without a path."""
        return (*task.state["ignoring"].values(), *(f"Answer: {letter}" for letter in OPTIONS))

    def start(self, task: Task) -> Environment:
        return NoActions(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        """Reads the prompt alone. A slip forgets a rule or reads the other subject's letters; it is corrected at once,
        unless it goes unnoticed."""
        files, rules, capital, subject, asked, options = read_prompt(prompt)
        here = next(file for file in files.values() if file.capital == capital)
        path, thought = [here], [f"{capital} is the capital of {here.name}."]
        while True:
            right = rules.detour.get(here.region, subject)
            taken, line = right, _line(here, right, subject)
            if rng.random() < noise:
                wrong = subject if right != subject else next(s for s in here.letters if s != subject)
                if rng.random() < UNNOTICED:
                    taken, line = wrong, _line(here, wrong, wrong)
                else:
                    line = f"{_line(here, wrong, wrong)} Wait, that is not the one to go by. {line}"
            thought.append(line)
            if not here.letters[taken] or here.letters[taken] in [file.name for file in path]:
                break
            here = files[here.letters[taken]]
            path.append(here)
        heading = rules.instead.get(here.region, asked)
        if heading != asked:
            thought.append(f"A rule for {here.region} applies to the last file: give its {heading}.")
        value = here.gives[heading]
        letter = next((letter for letter, option in options.items() if option == value), OPTIONS[0])
        thought.append(f"Under {heading} it gives {value}: option {letter}.")
        yield Answer(write_answer(letter, path), "\n".join(thought))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """``choice``: the right letter; ``files``: the path that leads there, in order."""
        text = "" if answer is None else answer.text
        letter = re.search(r"^Answer: ([A-F])\s*$", text, re.MULTILINE)
        named = re.search(r"^Files: (.+?)\s*$", text, re.MULTILINE)
        names = [name.strip() for name in named.group(1).split(">")] if named else []
        path: list[str] = task.state["path"]
        rubric = {
            "choice": letter is not None and letter.group(1) == task.state["letter"],
            "files": names == path,
        }
        met = next((i for i, (a, b) in enumerate(zip(names, path, strict=False)) if a != b), min(len(names), len(path)))
        score = (rubric["choice"] + met / len(path)) / 2 if not rubric["files"] else (rubric["choice"] + 1) / 2
        if answer is None:
            reason = "no answer was given"
        elif not rubric["files"]:
            reason = f"the path is right for {met} of {len(path)} files"
        else:
            reason = "the right option with its path" if rubric["choice"] else "the option is wrong"
        return Verdict(all(rubric.values()), score, reason, rubric)


def read_prompt(prompt: str) -> tuple[dict[str, File], Rules, str, str, str, dict[str, str]]:
    """What the text says: files, rules, first capital, subject, heading, options."""
    files = {}
    for name, text in _FILE.findall(prompt):
        region, home = _REGION.search(text), _CAPITAL.search(text)
        assert region is not None and home is not None, text
        letters = dict.fromkeys(_KEPT.findall(text), "")
        for match in _REFERENCE.finditer(text):
            subject, there = (group for group in match.groups() if group is not None)
            letters[subject] = there
        files[name] = File(name, region.group(1), home.group(1), dict(_GIVES.findall(text)), letters)
    rules = Rules(dict(_DETOUR.findall(prompt)), dict(_INSTEAD.findall(prompt)))
    question = _QUESTION.search(prompt)
    assert question is not None, prompt[-400:]
    capital, subject, asked = question.groups()
    return files, rules, capital, subject, asked, dict(_OPTION.findall(prompt[question.end() :]))


def write_answer(letter: str, path: Sequence[File]) -> str:
    return f"Answer: {letter}\nFiles: {' > '.join(file.name for file in path)}"


@functools.cache
def _pool() -> tuple[Profile, ...]:
    """Countries that give something under every heading, short enough for an option, with a capital of their own."""
    profiles = load_factbook().values()
    shared = Counter(profile.fields["capital"] for profile in profiles)
    return tuple(
        profile
        for profile in profiles
        if shared[profile.fields["capital"]] == 1
        and all(0 < len(profile.fields.get(heading, "")) <= 80 for heading in ASKED)
        and all(heading in profile.fields for heading in TOLD)
        and re.fullmatch(r"[A-Za-z' -]+", profile.fields["capital"])
    )


def _draw_rules(rng: random.Random, profiles: Sequence[Profile], horizon: int, other: str, second: str) -> Rules:
    """A detour in the region of a file on the path before its last, or another heading for the last file's; half the
    time a second rule of the other kind, for any region of the dossier."""
    regions = sorted({profile.region for profile in profiles})
    on_path = rng.choice(profiles[:horizon]).region
    if rng.random() < 0.7:
        return Rules({on_path: other}, {rng.choice(regions): second} if rng.random() < 0.5 else {})
    return Rules({rng.choice(regions): other} if rng.random() < 0.5 else {}, {profiles[horizon].region: second})


def _link(
    rng: random.Random, profiles: Sequence[Profile], horizon: int, subjects: tuple[str, str], rules: Rules
) -> dict[str, File]:
    """Letters so that the path under the rules visits the first ``horizon`` + 1 files in order; everything else leads
    somewhere, now and then nowhere further."""
    names = [profile.name for profile in profiles]
    files = {}
    for i, profile in enumerate(profiles):
        others = names[:i] + names[i + 1 :]
        letters = {subject: rng.choice(others) if rng.random() < 0.75 else "" for subject in subjects}
        if i <= horizon:
            letters[rules.detour.get(profile.region, subjects[0])] = names[i + 1] if i < horizon else ""
        gives = {heading: profile.fields[heading] for heading in ASKED}
        files[profile.name] = File(profile.name, profile.region, profile.fields["capital"], gives, letters)
    return files


def _options(
    rng: random.Random, value: str, ignoring: Mapping[str, str], asked: str, rules: Rules, files: Sequence[File]
) -> list[str] | None:
    """The right value, those of who ignores rules or document, and other files' values under the same headings."""
    options = list(dict.fromkeys([value, *ignoring.values()]))
    headings = [asked, *rules.instead.values()]
    pool = sorted({file.gives[heading] for file in files for heading in headings} - set(options))
    if len(pool) < len(OPTIONS) - len(options):
        return None
    options += rng.sample(pool, len(OPTIONS) - len(options))
    return rng.sample(options, len(options))


def _rule_lines(rules: Rules, rng: random.Random) -> list[str]:
    lines = [DETOUR.format(region, subject) for region, subject in rules.detour.items()]
    lines += [INSTEAD.format(region, heading) for region, heading in rules.instead.items()]
    return rng.sample(lines, len(lines))


def _write(rng: random.Random, file: File, profile: Profile) -> str:
    """A file's text: what the factbook says, its headings and its references, in an order of its own."""
    told = [f"{heading.capitalize()}: {' '.join(sentences(profile.fields[heading], 2))}" for heading in TOLD]
    given = [f"Under {heading} it gives: {value} (end)." for heading, value in file.gives.items()]
    letters = [
        rng.choice(REFERENCES).format(subject, there) if there else KEPT.format(subject)
        for subject, there in file.letters.items()
    ]
    facts = [
        f"The country lies here: {profile.fields['location']}.",
        f"It is filed under {profile.region}.",
        f"Its capital is {file.capital} and its government a {profile.fields['government']}.",
    ]
    parts = rng.sample([*told, *given, *letters, *facts], len(told) + len(given) + len(letters) + len(facts))
    return f"File of {file.name}. {' '.join(parts)}"


def _line(file: File, subject: str, asked: str) -> str:
    """One step of the thought: where the file stands, the rule if one applies, the reference as read."""
    rule = f" A rule for {file.region} applies: go by the letters on {subject}." if subject != asked else ""
    there = file.letters[subject]
    found = f"Its letters on {subject} are in the file of {there}." if there else f"It keeps its letters on {subject}."
    return f"File of {file.name}, filed under {file.region}.{rule} {found}"
