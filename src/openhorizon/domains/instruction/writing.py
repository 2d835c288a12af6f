"""Reports under several verifiable constraints at once: natural text, judged by the IFEval rules.

The prompt asks for a short report on a country from notes (real text of the factbook), names the facts that it has to
give, and states ``horizon`` demands, one a line (``demands.py``). Notes get fewer as demands get more, so that the
prompt does not grow with the horizon. An answer passes when the library accepts it under every rule and
every fact is in it.

The expert reads the prompt, plans one line a demand, and writes: facts first, then notes as far as length, letters and
forbidden words allow, then frame, marks and case. A draw whose demands it cannot meet together is not proposed: the
reference has to be accepted.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from openhorizon.domains.instruction.demands import RULES, Demand, draw, read

MAX_HORIZON = 8
NOTES = 14  # notes and demands together, so that the prompt's length stays
DRAWS = 64  # requests tried before a proposal is given up
UNNOTICED = 0.1  # share of the expert's slips that it never corrects: such a trajectory fails
FACTS = {  # heading → its sentence, in English and in the languages of a demand
    "capital": {
        "en": "The capital of {0} is {1}.",
        "es": "La capital del país llamado {0} es la ciudad de {1}.",
        "de": "Die Hauptstadt des Landes {0} ist die Stadt {1}.",
        "fr": "La capitale du pays appelé {0} est la ville de {1}.",
    },
    "area": {
        "en": "The country covers {1} in all.",
        "es": "El país tiene en total una superficie de {1}.",
        "de": "Das Land hat insgesamt eine Fläche von {1}.",
        "fr": "Le pays couvre en tout une superficie de {1}.",
    },
    "population": {
        "en": "It has a population of {1}.",
        "es": "Según las notas viven en el país {1} personas.",
        "de": "Nach den Notizen leben im ganzen Land {1} Menschen.",
        "fr": "Selon les notes le pays compte {1} habitants.",
    },
    "internet code": {
        "en": "Its internet code is {1}.",
        "es": "El código de internet que usa el país es {1}.",
        "de": "Im Internet verwendet das Land die Endung {1}.",
        "fr": "Sur internet le pays utilise le code {1}.",
    },
}
OTHERS = ("location", "climate", "terrain", "natural resources", "natural hazards", "industries", "farm products",
          "export goods", "economic overview", "environmental issues", "religions", "highest point")  # fmt: skip
READERS = ("a school magazine", "a shipping office", "a travel desk", "a new ambassador", "a radio programme")

_REQUEST = "Write a report on {} for {} from the notes below and from nothing else"
_PLACEHOLDERS = ("[name]", "[date]", "[office]")


@dataclass(frozen=True)
class Request:
    """A prompt as its reader sees it."""

    first: str  # its first line
    country: str
    facts: tuple[str, ...]  # headings whose notes the report has to give
    notes: Mapping[str, str]
    demands: tuple[Demand, ...]


class WritingDomain(Domain):
    name = "instruction"
    source = "writing"
    system = "Follow every requirement of the request at once. Plan first, one line a requirement, then answer."
    tools = ()

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        return tuple(horizon for horizon in horizons if 1 <= horizon <= MAX_HORIZON)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        if not 1 <= horizon <= MAX_HORIZON:
            raise ValueError(f"{self.world}: horizon {horizon} is not between 1 and {MAX_HORIZON}")
        profiles = list(load_factbook().values())
        for _ in range(DRAWS):
            task = self._draw(rng, split, horizon, seed, rng.choice(profiles))
            if task is None:
                continue
            if self.verify(task, self.start(task), Answer(task.reference)).passed:
                return task
        return None

    def _draw(self, rng: random.Random, split: Split, horizon: int, seed: int, profile: Profile) -> Task | None:
        facts = tuple(sorted(rng.sample(sorted(FACTS), rng.randint(2, 3))))
        others = [heading for heading in OTHERS if heading in profile.fields]
        chosen = rng.sample(others, min(NOTES - len(facts) - horizon, len(others)))
        notes = {heading: " ".join(sentences(profile.fields[heading], 2)) for heading in chosen}
        notes |= {heading: profile.fields[heading] for heading in facts}
        words = sorted({word for heading in chosen for word in re.findall(r"\b[a-z]{5,9}\b", notes[heading])})
        if len(words) < 2:
            return None
        demands = draw(rng, horizon, words)
        pair = (profile.name, "+".join(sorted(demand.rule for demand in demands)))
        if len(demands) < horizon or split_of(pair) != split:
            return None
        first = _REQUEST.format(profile.name, rng.choice(READERS))
        lines = [first, f"It has to give: {', '.join(facts)}.", "", "Notes"]
        lines += [f"- {heading}: {notes[heading]}" for heading in rng.sample(list(notes), len(notes))]
        lines += ["", "Requirements", *(f"{i}. {demand.text}" for i, demand in enumerate(demands, 1))]
        return Task(
            domain=self.name,
            id=f"{self.name}-{self.source}-{split}-{horizon}-{seed}",
            split=split,
            prompt="\n".join(lines),
            horizon=horizon,
            seed=seed,
            state={"country": profile.name},
            evidence=tuple(f"note:{profile.name}/{heading}" for heading in facts),
            verifiers=(*(demand.rule for demand in demands), "facts"),
            reference=write_report(read_prompt("\n".join(lines)), -1),
            entity_pairs=(pair,),
            source=self.source,
        )

    def guesses(self, task: Task) -> tuple[str, ...]:
        """The notes copied out, which is no report. A single requirement may be met by that."""
        return ("\n".join(read_prompt(task.prompt).notes.values()),) if task.horizon > 1 else ()

    def start(self, task: Task) -> Environment:
        return NoActions(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        """A slip forgets one requirement in the draft; the check at the end finds it, unless it goes unnoticed."""
        request = read_prompt(prompt)
        thought = [f"The report is on {request.country} and has to give {', '.join(request.facts)}."]
        forgotten = -1
        for i, demand in enumerate(request.demands):
            thought.append(f"Requirement {i + 1}: {demand.text} So: {RULES[demand.rule].plan}.")
            if rng.random() < noise / 2:
                forgotten = i
        text = write_report(request, forgotten)
        missed = [i for i, demand in enumerate(request.demands) if not demand.met(text, request.first)]
        if missed and rng.random() >= UNNOTICED:
            thought.append(f"Check: the draft misses requirement {missed[0] + 1}. Wait, once more with it.")
            text = write_report(request, -1)
        else:
            thought.append(f"Check: all {len(request.demands)} requirements and {len(request.facts)} facts are in.")
        yield Answer(text, "\n".join(thought))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """One rubric item a demand, judged by the library, and one a fact (case and punctuation aside)."""
        request = read_prompt(task.prompt)
        text = "" if answer is None else answer.text
        rubric = {demand.rule: demand.met(text, request.first) for demand in request.demands}
        rubric |= {f"fact {heading}": _plain(request.notes[heading]) in _plain(text) for heading in request.facts}
        missed = [item for item, met in rubric.items() if not met]
        reason = "no answer" if not text else f"not met: {', '.join(missed)}" if missed else "all met"
        return Verdict(not missed, 1 - len(missed) / len(rubric), reason, rubric)


def read_prompt(prompt: str) -> Request:
    """What the prompt says."""
    first, rest = prompt.split("\n", 1)
    country = re.fullmatch(re.escape(_REQUEST).replace(r"\{\}", "(.+)"), first)
    facts = re.search(r"^It has to give: (.+)\.$", rest, re.MULTILINE)
    assert country is not None and facts is not None, prompt
    notes = dict(re.findall(r"^- ([a-z ]+): (.+)$", rest, re.MULTILINE))
    demands = tuple(
        read(line) for line in re.findall(r"^\d+\. (.+)$", rest.split("Requirements\n", 1)[1], re.MULTILINE)
    )
    return Request(first, country.group(1), tuple(facts.group(1).split(", ")), notes, demands)


def write_report(request: Request, forgotten: int) -> str:
    """The report under all requirements but number ``forgotten`` (-1: none)."""
    asked = {d.rule: d.arguments for i, d in enumerate(request.demands) if i != forgotten}
    language = asked["language:response_language"]["language"] if "language:response_language" in asked else "en"
    needed = [FACTS[heading][language].format(request.country, request.notes[heading]) for heading in request.facts]
    needed += _extra_sentences(asked)
    extra = [] if language != "en" else _told(request)
    lines = _choose(needed, extra, asked)
    if "detectable_format:number_highlighted_sections" in asked:
        count = asked["detectable_format:number_highlighted_sections"]["num_highlights"]
        lines = [re.sub(r"^(\S+ \S+)", r"*\1*", line) if i < count else line for i, line in enumerate(lines)]
    text = _frame(lines, asked)
    if "detectable_format:title" in asked:
        text = f"<<{request.country}>>\n{text}"
    if "detectable_content:postscript" in asked:
        text = f"{text}\nP.S. {request.country}, {request.notes[request.facts[0]]}."
    if "startend:end_checker" in asked:
        text = f"{text}\n{asked['startend:end_checker']['end_phrase']}"
    if "punctuation:no_comma" in asked:
        text = text.replace(",", "")
    if "change_case:english_capital" in asked:
        text = text.upper()
    if "change_case:english_lowercase" in asked:
        text = text.lower()
    if "detectable_format:json_format" in asked:
        text = json.dumps({"report": text}, ensure_ascii=False)
    if "combination:repeat_prompt" in asked:
        text = f"{request.first}\n{text}"
    return f'"{text}"' if "startend:quotation" in asked else text


def _extra_sentences(asked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences that demands on words call for."""
    found = []
    if "keywords:existence" in asked:
        first, second = asked["keywords:existence"]["keywords"]
        found.append(f"The {first} and the {second} were at hand when this was written.")
    if "keywords:frequency" in asked:
        word, times = asked["keywords:frequency"]["keyword"], asked["keywords:frequency"]["frequency"]
        found.append(f"For the record, {' and '.join(f'the {word}' for _ in range(times))} were consulted.")
    if "detectable_content:number_placeholders" in asked:
        count = asked["detectable_content:number_placeholders"]["num_placeholders"]
        found.append(f"Prepared for {' and '.join(_PLACEHOLDERS[:count])}.")
    return found


def _told(request: Request) -> list[str]:
    """The other notes, a sentence for each of theirs."""
    found = []
    for heading, text in request.notes.items():
        if heading not in request.facts:
            found += [f"On {heading}, the notes say: {part[0].lower()}{part[1:]}" for part in sentences(text, 2)]
    return found


def _choose(needed: Sequence[str], extra: Sequence[str], asked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The needed sentences and as many others as length, letters and forbidden words allow; twelve at most unless the
    length asks for more."""
    forbidden = set(asked.get("keywords:forbidden_words", {}).get("forbidden_words", ()))
    letter, length = asked.get("keywords:letter_frequency", {}), asked.get("length_constraints:number_words", {})
    rare = letter["letter"] if letter.get("let_relation") == "less than" else ""
    most = length["num_words"] - 20 if length.get("relation") == "less than" else 10**6
    least = length["num_words"] if length.get("relation") == "at least" else 0
    chosen = list(needed)
    for sentence in extra:
        if forbidden & set(re.findall(r"\w+", sentence.lower())) or (rare and rare in sentence.lower()):
            continue
        if sum(len(line.split()) for line in [*chosen, sentence]) > most:
            continue
        if len(chosen) >= 9 and sum(len(line.split()) for line in chosen) >= least:
            break
        chosen.append(sentence)
    return chosen


def _frame(lines: Sequence[str], asked: Mapping[str, Mapping[str, Any]]) -> str:
    """The sentences in the one shape that is asked for."""

    def dealt(count: int) -> list[str]:
        return [" ".join(lines[len(lines) * i // count : len(lines) * (i + 1) // count]) for i in range(count)]

    if "length_constraints:number_paragraphs" in asked:
        return "\n***\n".join(dealt(asked["length_constraints:number_paragraphs"]["num_paragraphs"]))
    if "length_constraints:nth_paragraph_first_word" in asked:
        wanted = asked["length_constraints:nth_paragraph_first_word"]
        parts = dealt(wanted["num_paragraphs"])
        nth = wanted["nth_paragraph"] - 1
        parts[nth] = f"{str(wanted['first_word']).capitalize()}, there is this to add. {parts[nth]}"
        return "\n\n".join(parts)
    if "detectable_format:number_bullet_lists" in asked:
        count = asked["detectable_format:number_bullet_lists"]["num_bullets"]
        head, tail = lines[:-count], lines[-count:]
        return "\n".join([" ".join(head), *(f"* {line}" for line in tail)]).strip()
    if "detectable_format:multiple_sections" in asked:
        wanted = asked["detectable_format:multiple_sections"]
        parts = dealt(wanted["num_sections"])
        return "\n".join(f"{wanted['section_spliter']} {i}\n{part}" for i, part in enumerate(parts, 1))
    if "combination:two_responses" in asked:
        return f"{' '.join(lines)}\n******\n{' '.join(reversed(lines))}"
    return " ".join(lines)


def _plain(text: str) -> str:
    """Letters and digits only, in small letters."""
    return re.sub(r"[\W_]+", "", text.casefold())
