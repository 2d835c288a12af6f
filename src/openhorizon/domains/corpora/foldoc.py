"""The Free On-line Dictionary of Computing as hyperlinked articles, read from Debian's ``dict-foldoc``.

Two files in dictd's format: an index of tab-separated (headword, offset, length), the numbers in dictd's base 64, and
the articles, gzipped. An article begins with its headlines, the first of which is its title; the body's paragraphs are
indented. ``{braces}`` mark a cross-link, whose text is the headline it leads to; a regular plural finds its singular. A
link that leads nowhere is no error: the editor marks every term that one might look for. It stays in the text.

Malformed entries are left out and counted by reason in ``Dictionary.report``; a file that is damaged as a whole (not
gzip, cut off, more than ``MAX_BAD`` of its entries malformed) is refused.

Data: FOLDOC, http://foldoc.org/, editor Denis Howe, GNU Free Documentation License; nothing of it is stored here.
"""

from __future__ import annotations

import functools
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

FOLDER = Path("/usr/share/dictd")
MAX_BAD = 0.02  # share of malformed entries beyond which the files are refused

_DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
_EXTERNAL = re.compile(r"\(?\s*(?:https?|ftp|mailto|news|gopher|telnet|file):", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_LABEL = re.compile(r"<([a-z][a-z ,/-]*)>")
_DATE = re.compile(r"\((\d{4}-\d\d-\d\d)\)$")
PROSE_LINE = 40  # letters: a paragraph with shorter inner lines is a table or a listing and keeps its lines


@dataclass(frozen=True)
class Article:
    """One article. ``paragraphs`` keep their links in braces; ``links`` are those that lead to an article, each once,
    as (text, title). ``labels`` are the subject fields, ``updated`` the date of the last change (ISO) or empty."""

    title: str
    aliases: tuple[str, ...]
    labels: tuple[str, ...]
    paragraphs: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    updated: str


@dataclass(frozen=True)
class Dictionary:
    """Title → article, sorted by title; ``find`` knows headlines and regular plurals."""

    articles: Mapping[str, Article]
    headlines: Mapping[str, str]  # headline, and headline in lower case → title
    report: Mapping[str, int]  # what was read and what was left out, by reason

    def find(self, name: str) -> str | None:
        """The title of the article that ``name`` leads to."""
        return _resolve(self.headlines, name)


@functools.cache
def load_foldoc(folder: Path = FOLDER) -> Dictionary:
    """Both files, read once; the same in every process.

    Raises:
        ValueError: a file is missing or damaged; the message names it.
    """
    index, data = folder / "foldoc.index", folder / "foldoc.dict.dz"
    for path in (index, data):
        if not path.is_file():
            raise ValueError(f"{path}: not there; install FOLDOC: apt-get install dict-foldoc")
    try:
        body = gzip.decompress(data.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{data}: damaged ({error}); run: apt-get install --reinstall dict-foldoc") from error
    report: Counter[str] = Counter()
    entries = list(_entries(index.read_bytes(), body, report))
    bad = sum(n for reason, n in report.items() if reason.startswith("malformed"))
    if not entries or bad > MAX_BAD * (len(entries) + bad):
        raise ValueError(f"{index}: damaged: {bad} of {len(entries) + bad} entries are malformed: {dict(report)}")
    drafts = _drafts(entries, report)
    headlines = _headlines(drafts)
    articles = {title: _article(title, *drafts[title], headlines, report) for title in sorted(drafts)}
    report["articles"] = len(articles)
    return Dictionary(MappingProxyType(articles), MappingProxyType(headlines), MappingProxyType(dict(report)))


def plain(text: str) -> str:
    """A text without the braces of its links."""
    return _BRACES.sub(r"\1", text)


def link_texts(text: str) -> list[str]:
    """What stands in braces, in order, with repeats."""
    return _BRACES.findall(text)


def _entries(index: bytes, body: bytes, report: Counter[str]) -> Iterator[str]:
    """The text of every article once, in the order of the data; several headwords share one."""
    spans: set[tuple[int, int]] = set()
    for line in index.splitlines():
        report["index entries"] += 1
        fields = line.split(b"\t")
        if len(fields) != 3:
            report["malformed: index entry without three fields"] += 1
            continue
        offset, length = (_number(field.decode("ascii", "replace")) for field in fields[1:])
        if offset is None or length is None:
            report["malformed: number is not base 64"] += 1
        elif offset + length > len(body) or not length:
            report["malformed: span outside the data"] += 1
        elif fields[0].startswith(b"00-database"):
            report["left out: about the dictionary itself"] += 1
        else:
            spans.add((offset, length))
    for offset, length in sorted(spans):
        try:
            yield body[offset : offset + length].decode()
        except UnicodeDecodeError:
            report["malformed: text is not UTF-8"] += 1


def _number(text: str) -> int | None:
    number = 0
    for digit in text:
        if digit not in _DIGITS:
            return None
        number = number * 64 + _DIGITS[digit]
    return number if text else None


def _drafts(entries: list[str], report: Counter[str]) -> dict[str, tuple[tuple[str, ...], list[str]]]:
    """Title → (aliases, paragraphs)."""
    drafts: dict[str, tuple[tuple[str, ...], list[str]]] = {}
    for entry in entries:
        head, _, body = entry.partition("\n\n")
        lines = [" ".join(line.split()) for line in head.split("\n") if line.strip()]
        paragraphs = [_reflow(part) for part in re.split(r"\n\s*\n", body) if part.strip()]
        if not lines or not paragraphs:
            report["left out: no headline or no text"] += 1
        elif head.startswith(" ") or not body.startswith(" "):
            report["left out: not laid out as an article"] += 1
        elif lines[0] in drafts:
            report["left out: second article of one title"] += 1
        else:
            drafts[lines[0]] = (tuple(lines[1:]), paragraphs)
    return drafts


def _reflow(paragraph: str) -> str:
    """Prose on one line; tables and listings keep their lines and inner indentation. A link never breaks."""
    joined = _BRACES.sub(lambda match: _brace(match[1]), paragraph.expandtabs())
    lines = joined.rstrip().split("\n")
    if all(len(line) >= PROSE_LINE and not line.startswith("     ") for line in lines[:-1]):
        return " ".join(joined.split())
    return "\n".join(line.removeprefix("   ").rstrip() for line in lines)


def _brace(text: str) -> str:
    text = " ".join(text.split())
    return text if _EXTERNAL.search(text) or not text else f"{{{text}}}"


def _key(name: str) -> str:
    return " ".join(name.split())


def _headlines(drafts: Mapping[str, tuple[tuple[str, ...], list[str]]]) -> dict[str, str]:
    """Titles as they are written (``portal`` and ``PORTAL`` are two), then aliases, then both in lower case: no title
    is hidden by another article's alias."""
    named = [(title, title) for title in sorted(drafts)]
    named += [(alias, title) for title in sorted(drafts) for alias in drafts[title][0]]
    found: dict[str, str] = {}
    for name, title in [*named, *((name.casefold(), title) for name, title in named)]:
        found.setdefault(_key(name), title)
    return found


def _resolve(headlines: Mapping[str, str], name: str) -> str | None:
    key = _key(name)
    candidates = [key, key.casefold()]
    for plural in ("s", "es"):
        if key.casefold().endswith(plural):
            candidates += [key[: -len(plural)], key[: -len(plural)].casefold()]
    return next((headlines[candidate] for candidate in candidates if candidate in headlines), None)


def _article(
    title: str, aliases: tuple[str, ...], paragraphs: list[str], headlines: Mapping[str, str], report: Counter[str]
) -> Article:
    links: dict[str, str] = {}
    for text in [text for paragraph in paragraphs for text in link_texts(paragraph)]:
        target = _resolve(headlines, text)
        report["links" if target else "broken links"] += 1
        if target and target != title:
            links.setdefault(text, target)
    labels = [part.strip() for match in _LABEL.findall(" ".join(paragraphs)) for part in match.split(",")]
    dated = _DATE.search(paragraphs[-1])
    return Article(
        title,
        aliases,
        tuple(dict.fromkeys(label for label in labels if label)),
        tuple(paragraphs),
        tuple(links.items()),
        dated[1] if dated else "",
    )
