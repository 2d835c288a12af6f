"""Demands on a written report: one entry for each IFEval rule, its wording, its arguments and how rules exclude.

Judged by ``if-verifiable``'s classes (``constraints.check``). Of its 25 rules 22 are used. Left out: number_sentences
and capital_word_frequency (they load nltk data that no package carries), and constrained_response (it allows one of
three fixed sentences and nothing else). response_language is used for three languages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openhorizon.domains.instruction.constraints import check

KEYWORDS = (
    "ledger",
    "archive",
    "committee",
    "witness",
    "calendar",
    "inventory",
    "envoy",
    "compass",
    "harvest",
    "bridge",
)
FIRST_WORDS = ("meanwhile", "overall", "besides", "finally", "likewise", "elsewhere")
ENDINGS = ("That is all there is to say.", "No further notes were filed.", "Please file this report.")
LANGUAGES = {"es": "Spanish", "de": "German", "fr": "French"}
FRAMES = (  # at most one of them shapes a report
    "length_constraints:number_paragraphs",
    "length_constraints:nth_paragraph_first_word",
    "detectable_format:number_bullet_lists",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "combination:two_responses",
    "language:response_language",
)
_CASES = ("change_case:english_capital", "change_case:english_lowercase")
EXCLUDES = [  # no two of one set in a task
    set(FRAMES),
    set(_CASES),
    {"startend:end_checker", "detectable_content:postscript"},
    {"startend:end_checker", "detectable_format:json_format"},
    *({"startend:quotation", other} for other in ("detectable_format:json_format", "combination:repeat_prompt")),
    *({"startend:quotation", other} for other in ("detectable_format:title", "combination:two_responses")),
    *({"combination:repeat_prompt", other} for other in (*_CASES, *FRAMES, "punctuation:no_comma")),
    *({"combination:two_responses", other} for other in ("startend:end_checker", "detectable_content:postscript")),
    *(
        {"language:response_language", other}
        for other in (
            *_CASES,
            "keywords:existence",
            "keywords:frequency",
            "keywords:letter_frequency",
            "length_constraints:number_words",
            "detectable_content:number_placeholders",
            "startend:end_checker",
        )
    ),
    {"keywords:existence", "keywords:frequency"},
    *({"detectable_format:multiple_sections", case} for case in _CASES),  # the library's headings keep their case
]


@dataclass(frozen=True)
class Rule:
    """``wording`` has the arguments in braces; ``draw`` gives them; ``plan`` says in the thought how it is met."""

    wording: str
    plan: str
    draw: Callable[[random.Random, Sequence[str]], dict[str, Any]] = lambda rng, words: {}


@dataclass(frozen=True)
class Demand:
    """A rule with its arguments, as they stand in the prompt."""

    rule: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        shown = {
            name: ", ".join(value) if isinstance(value, tuple) else value for name, value in self.arguments.items()
        }
        if self.rule == "language:response_language":
            shown["language"] = LANGUAGES[shown["language"]]
        return RULES[self.rule].wording.format(**shown)

    def met(self, answer: str, request: str) -> bool:
        """The library's judgement; ``request`` is what a report that repeats it has to begin with."""
        arguments = dict(self.arguments)
        if self.rule == "combination:repeat_prompt":
            arguments["prompt_to_repeat"] = request
        return bool(answer.strip()) and check(answer, self.rule, **arguments)


def _count(name: str, least: int, most: int) -> Callable[[random.Random, Sequence[str]], dict[str, Any]]:
    return lambda rng, words: {name: rng.randint(least, most)}


def _draw_letter(rng: random.Random, words: Sequence[str]) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"letter": rng.choice("aeinrst"), "let_frequency": rng.randint(15, 30), "let_relation": "at least"}
    return {"letter": rng.choice("jkqvxz"), "let_frequency": rng.randint(4, 8), "let_relation": "less than"}


def _draw_length(rng: random.Random, words: Sequence[str]) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"relation": "at least", "num_words": rng.randrange(60, 125, 5)}
    return {"relation": "less than", "num_words": rng.randrange(80, 160, 5)}


def _draw_nth(rng: random.Random, words: Sequence[str]) -> dict[str, Any]:
    paragraphs = rng.randint(3, 5)
    nth = rng.randint(2, paragraphs)
    return {"num_paragraphs": paragraphs, "nth_paragraph": nth, "first_word": rng.choice(FIRST_WORDS)}


RULES: dict[str, Rule] = {
    "keywords:existence": Rule(
        "Work in the words {keywords}.",
        "one sentence names them",
        lambda rng, words: {"keywords": tuple(sorted(rng.sample(KEYWORDS, 2)))},
    ),
    "keywords:frequency": Rule(
        "Use the word {keyword} {relation} {frequency} times.",
        "one sentence counts it out",
        lambda rng, words: {"keyword": rng.choice(KEYWORDS), "relation": "at least", "frequency": rng.randint(2, 4)},
    ),
    "keywords:forbidden_words": Rule(
        "Avoid the words {forbidden_words} throughout.",
        "what needs them stays out",
        lambda rng, words: {"forbidden_words": tuple(sorted(rng.sample(list(words), 2)))},
    ),
    "keywords:letter_frequency": Rule(
        "Let the letter {letter} appear {let_relation} {let_frequency} times.",
        "sentences are chosen by it",
        _draw_letter,
    ),
    "language:response_language": Rule(
        "Write the whole answer in {language} and in no other language.",
        "only that language, the facts alone",
        lambda rng, words: {"language": rng.choice(sorted(LANGUAGES))},
    ),
    "length_constraints:number_words": Rule(
        "Stay at {relation} {num_words} words in all.", "the number of sentences follows from it", _draw_length
    ),
    "length_constraints:number_paragraphs": Rule(
        "Divide it into {num_paragraphs} paragraphs, with the divider *** between two of them.",
        "the sentences are dealt out and divided",
        _count("num_paragraphs", 2, 4),
    ),
    "length_constraints:nth_paragraph_first_word": Rule(
        "Write {num_paragraphs} paragraphs with an empty line between two of them; paragraph {nth_paragraph} starts "
        "with the word {first_word}.",
        "that paragraph opens with it",
        _draw_nth,
    ),
    "detectable_content:number_placeholders": Rule(
        "Leave at least {num_placeholders} placeholders in square brackets, such as [name].",
        "a line for who prepared it",
        _count("num_placeholders", 1, 3),
    ),
    "detectable_content:postscript": Rule(
        "Close with a postscript that starts with {postscript_marker}",
        "a postscript follows",
        lambda rng, words: {"postscript_marker": "P.S."},
    ),
    "detectable_format:number_bullet_lists": Rule(
        "Give exactly {num_bullets} bullet points, each a line that starts with an asterisk.",
        "that many sentences become bullets",
        _count("num_bullets", 2, 4),
    ),
    "detectable_format:number_highlighted_sections": Rule(
        "Set at least {num_highlights} phrases in *asterisks*.",
        "the first words of sentences",
        _count("num_highlights", 1, 3),
    ),
    "detectable_format:multiple_sections": Rule(
        "Split it into {num_sections} sections, each under a line {section_spliter} 1, {section_spliter} 2 and so on.",
        "the sentences are dealt out under headings",
        lambda rng, words: {"num_sections": rng.randint(2, 4), "section_spliter": rng.choice(["Section", "Part"])},
    ),
    "detectable_format:json_format": Rule("Return everything as one JSON object.", "the report is a field of it"),
    "detectable_format:title": Rule("Put a title in double angular brackets on top.", "<<...>> comes first"),
    "combination:two_responses": Rule(
        "Offer two different versions, with ****** between them.", "the second tells it in another order"
    ),
    "combination:repeat_prompt": Rule(
        "Before anything else, repeat the first line of this request word for word.", "that line comes first"
    ),
    "startend:end_checker": Rule(
        "End with exactly this sentence: {end_phrase}",
        "it comes last",
        lambda rng, words: {"end_phrase": rng.choice(ENDINGS)},
    ),
    "change_case:english_capital": Rule("Use capital letters only.", "all in capitals"),
    "change_case:english_lowercase": Rule("Use small letters only.", "all in small letters"),
    "punctuation:no_comma": Rule("Do without any comma.", "commas are dropped, in numbers too"),
    "startend:quotation": Rule("Wrap the entire answer in double quotation marks.", "quotation marks around it all"),
}


def draw(rng: random.Random, count: int, words: Sequence[str]) -> list[Demand]:
    """``count`` demands that do not exclude each other; ``words`` may be forbidden."""
    chosen: list[str] = []
    for rule in rng.sample(list(RULES), len(RULES)):
        if len(chosen) < count and not any(rule in pair and not pair.isdisjoint(chosen) for pair in EXCLUDES):
            chosen.append(rule)
    return [Demand(rule, RULES[rule].draw(rng, words)) for rule in chosen]


def read(line: str) -> Demand:
    """The demand that a line of the prompt states.

    Raises:
        ValueError: no rule is worded so.
    """
    for rule, pattern in _PATTERNS.items():
        match = pattern.fullmatch(line)
        if match:
            return Demand(rule, {name: _value(name, text) for name, text in match.groupdict().items()})
    raise ValueError(f"no rule is worded so: {line!r}")


_NUMBERS = {"frequency", "let_frequency", "nth_paragraph"} | {
    f"num_{what}" for what in ("words", "paragraphs", "placeholders", "bullets", "highlights", "sections")
}


def _value(name: str, text: str) -> Any:
    if name in ("keywords", "forbidden_words"):
        return tuple(text.split(", "))
    if name == "language":
        return next(code for code, language in LANGUAGES.items() if language == text)
    return int(text) if text.isdigit() else text


def _pattern(wording: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", wording)
    seen: set[str] = set()
    out = ""
    for i, part in enumerate(parts):
        if i % 2 == 0:
            out += re.escape(part)
        else:
            form = "at least|less than" if part.endswith("relation") else r"\d+" if part in _NUMBERS else ".+?"
            out += f"(?P={part})" if part in seen else f"(?P<{part}>{form})"
            seen.add(part)
    return re.compile(out)


_PATTERNS = {rule: _pattern(entry.wording) for rule, entry in RULES.items()}
