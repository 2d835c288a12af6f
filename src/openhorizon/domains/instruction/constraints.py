"""Demands on an answer's form: their sentences, an answer that meets them, and the judgement of one.

Judged by the IFEval instruction classes of ``if-verifiable`` 0.1.2 (Apache-2.0) where it has the rule, always with
explicit arguments (left out, they would be drawn from the global random state). Its IFBench classes are not used: they
are held out with that benchmark. Its upper and lower case rules are not used either: they ask a language detector
whether a list of names is English. Separators and the exact words of an affix are checked here.
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

LAYOUTS = {"brackets": "brackets", "highlights": "asterisks", "commas": "commas", "semicolons": "semicolons"}
EXTRAS = {
    "title": ("begin with the title <<{}>>", ("report", "record", "survey")),
    "keyword": ("introduce them by {}:", ("In short", "In brief", "In sum")),
    "postscript": ("add the postscript P.S. {}", ("checked", "verified", "confirmed")),
    "end": ("end with the phrase {}", ("that is all", "that was it", "that ends it")),
    "quotation": ("wrap all in double quotation {}", ("marks",)),
}
HEADS = ((), ("Also",), ("First", "Then"))  # of the extras' sentences, by how many there are
_ORDER = ("keyword", "title", "postscript", "end", "quotation")  # from the values outwards
CONFLICT = {"postscript", "end"}

_REGISTRY = "if_verifiable.ifeval.instructions_registry"
_SEPARATORS = re.compile(r"[;,\n\[\]*]")


@dataclass(frozen=True)
class Constraint:
    """A demand on the answer's form; ``words`` fills in an extra's sentence."""

    kind: str
    words: str = ""

    def sentence(self) -> str:
        if self.kind in LAYOUTS:
            return f"Write them with {LAYOUTS[self.kind]} {lay_out(('One', 'Two'), self.kind)}"
        return EXTRAS[self.kind][0].format(self.words)


def sentences(constraints: Sequence[Constraint]) -> list[str]:
    """The layout's, then each extra's behind its head."""
    heads = iter(HEADS[sum(c.kind in EXTRAS for c in constraints)])
    return [c.sentence() if c.kind in LAYOUTS else f"{next(heads)} {c.sentence()}" for c in constraints]


def read_sentences(lines: Sequence[str]) -> list[Constraint]:
    """The constraints that ``sentences`` wrote."""
    return [_SENTENCES.get(line) or _SENTENCES[line.partition(" ")[2]] for line in lines]


def draw(rng: random.Random) -> list[Constraint]:
    """A layout and one extra, or seldom two that do not exclude each other, in the order in which they are met."""
    layout = Constraint(rng.choice(list(LAYOUTS)))
    extras = rng.sample(list(EXTRAS), 2)
    kinds = extras[: 1 if set(extras) == CONFLICT or rng.random() < 0.8 else 2]
    return [layout, *(Constraint(kind, rng.choice(EXTRAS[kind][1])) for kind in sorted(kinds, key=_ORDER.index))]


def layout_of(constraints: Sequence[Constraint]) -> str:
    return next((constraint.kind for constraint in constraints if constraint.kind in LAYOUTS), "commas")


def compose(values: Sequence[str], constraints: Sequence[Constraint]) -> str:
    """The answer that gives ``values`` under ``constraints``: title, keyword, values, postscript, end; quoted."""
    words = {constraint.kind: constraint.words for constraint in constraints}
    parts = [
        f"<<{words['title']}>>" if "title" in words else "",
        f"{words['keyword']}:" if "keyword" in words else "",
        lay_out(values, layout_of(constraints)),
        f"P.S. {words['postscript']}" if "postscript" in words else "",
        words.get("end", ""),
    ]
    text = " ".join(part for part in parts if part)
    return f'" {text} "' if "quotation" in words else text


def lay_out(values: Sequence[str], layout: str) -> str:
    match layout:
        case "brackets":
            return " ".join(f"[{value}]" for value in values)
        case "highlights":
            return " ".join(f"*{value}*" for value in values)
        case "commas":
            return ", ".join(values)
    assert layout == "semicolons", layout
    return "; ".join(values)


_SENTENCES = {
    constraint.sentence(): constraint
    for constraint in [
        *(Constraint(kind) for kind in LAYOUTS),
        *(Constraint(kind, words) for kind, (_, choices) in EXTRAS.items() for words in choices),
    ]
}


def body_of(text: str, constraints: Sequence[Constraint]) -> str:
    """The answer without what its constraints ask for around the values."""
    if any(constraint.kind == "quotation" for constraint in constraints):
        text = text.strip('"')
    for constraint in constraints:
        words = constraint.words
        match constraint.kind:
            case "title":
                text = text.replace(f"<<{words}>>", "", 1)
            case "keyword":
                text = re.sub(rf"\b{words}\b:?", "", text)
            case "postscript":
                text = text.replace(f"P.S. {words}", "", 1)
            case "end":
                text = text.replace(words, "", 1)
    return text.strip()


def items_of(body: str) -> list[str]:
    return [item.strip().removeprefix("- ") for item in _SEPARATORS.split(body) if item.strip()]


def follows(constraint: Constraint, text: str, body: str, items: Sequence[str], count: int) -> bool:
    """Whether the answer meets one constraint: the library's rule where it has one, and ours where the sentence in the
    prompt asks for more than that."""
    words = constraint.words
    match constraint.kind:
        case "brackets":
            library = check(text, "detectable_content:number_placeholders", num_placeholders=count)
        case "highlights":
            library = check(text, "detectable_format:number_highlighted_sections", num_highlights=count)
        case "semicolons":
            library = check(text, "punctuation:no_comma")
        case "commas":
            library = True  # it has no rule for a separator
        case "title":
            return check(text, "detectable_format:title") and text.lstrip('" \n').startswith(f"<<{words}>>")
        case "keyword":
            return check(text, "keywords:existence", keywords=(words,))
        case "postscript":
            marked = check(text, "detectable_content:postscript", postscript_marker="P.S.")
            return marked and f"P.S. {words}" in text
        case "end":
            return check(text.strip('" '), "startend:end_checker", end_phrase=words)
        case "quotation":
            return check(text, "startend:quotation")
        case unknown:
            raise AssertionError(unknown)
    return library and "".join(body.split()) == "".join(lay_out(items, constraint.kind).split())


def check(text: str, instruction: str, **arguments: Any) -> bool:
    """Whether if-verifiable's rule ``instruction`` accepts the text; arguments must be hashable (tuples for lists)."""
    return bool(_checker(instruction, tuple(arguments.items())).check_following(text))


@functools.cache
def _checker(instruction: str, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """An instruction object of if-verifiable, built once for its arguments."""
    checker = ifeval_rules()[instruction](instruction)
    checker.build_description(**dict(arguments))
    return checker


class _Later(types.ModuleType):
    """Holds a module's name during an import; asked for an attribute later, it imports the module itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@functools.cache
def ifeval_rules() -> Mapping[str, Any]:
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
        # Without a seed the language of one and the same text is now this and now that.
        importlib.import_module("langdetect").DetectorFactory.seed = 0
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return classes
