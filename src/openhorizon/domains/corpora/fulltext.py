"""A full-text index over a corpus' pages: SQLite's FTS5, ranked by BM25, built once and kept in the user's cache.

The file's name holds a hash of what is in it, so that a changed corpus or layout gets a file of its own and nothing is
ever invalidated. It is built under a temporary name and renamed: two processes that build at once both succeed, and the
later one's equal file replaces the earlier. A file that turns out damaged is built again.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import os
import re
import sqlite3
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

LAYOUT = "1"  # raise it when the tables change
TITLE_WEIGHT = 4.0  # of a word in a title against one in the text, for BM25
COMMON = 0.03  # share of pages beyond which a word is ignored in a query: 0.08 finds 3% more at twice the time
FEW = 50  # pages: a word of no more is never too common
QUERY_WORDS = 16  # the rarest of a query are looked up
_WORD = re.compile(r"\w+")


def tokens(text: str) -> list[str]:
    """Words as the index knows them, but for accents."""
    return _WORD.findall(text.casefold())


class FullText:
    """Pages by words: (title, text) rows, found by ``search``. Read-only, so that processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = _open(path)
        self.count: int = self._connection.execute("select count(*) from pages").fetchone()[0]
        self._pages_with = functools.lru_cache(maxsize=200_000)(self._count_pages)
        self.search = functools.lru_cache(maxsize=50_000)(self._search)

    def text(self, title: str) -> str | None:
        """The text of a page by its exact title."""
        row = self._connection.execute(
            "select text from pages where rowid = (select page from titles where title = ?)", (title,)
        ).fetchone()
        return None if row is None else str(row[0])

    def titles(self) -> list[str]:
        return [row[0] for row in self._connection.execute("select title from titles order by title")]

    def _search(self, query: str, results: int) -> tuple[str, ...]:
        """Titles, best first. Any of the query's words may match; the very common ones are ignored."""
        wanted = self.telling(query)
        if not wanted:
            return ()
        match = " OR ".join(f'"{word}"' for word in wanted)
        rows = self._connection.execute(
            "select title from pages where pages match ? order by bm25(pages, ?, 1.0), rowid limit ?",
            (match, TITLE_WEIGHT, results),
        )
        return tuple(row[0] for row in rows)

    def telling(self, query: str) -> list[str]:
        """The query's words that are looked up: known, not common, the rarest of them, in the query's order."""
        most = max(COMMON * self.count, FEW)
        found = [word for word in dict.fromkeys(tokens(query)) if 0 < self._pages_with(word) <= most]
        rarest = set(heapq.nsmallest(QUERY_WORDS, found, key=lambda word: (self._pages_with(word), word)))
        return [word for word in found if word in rarest]

    def _count_pages(self, word: str) -> int:
        # The vocabulary holds words without accents; FTS5 itself folds a query's.
        folded = self._connection.execute("select doc from vocabulary where term = ?", (_fold(word),)).fetchone()
        return int(folded[0]) if folded else 0


def build(name: str, pages: Sequence[tuple[str, str]], folder: Path | None = None) -> FullText:
    """The index of ``pages`` (title, text), from the cache where it was built before.

    Raises:
        ValueError: two pages have one title.
    """
    digest = hashlib.sha256(LAYOUT.encode())
    for title, text in pages:
        digest.update(f"{len(title)} {len(text)} {title}{text}".encode())
    path = (folder or cache_folder()) / f"{name}-{digest.hexdigest()[:16]}.sqlite"
    if path.is_file():
        try:
            return FullText(path)
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        _write(Path(temporary), pages)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return FullText(path)


def cache_folder() -> Path:
    """Where what can be built again is kept: $OPENHORIZON_CACHE, or the user's cache."""
    own = os.environ.get("OPENHORIZON_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openhorizon"


def _write(path: Path, pages: Iterable[tuple[str, str]]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma journal_mode = off")  # a failed build is thrown away
        connection.execute("pragma synchronous = off")
        connection.execute(
            "create virtual table pages using fts5(title, text, tokenize = 'unicode61 remove_diacritics 2')"
        )
        connection.execute("create table titles (title text primary key, page integer) without rowid")
        connection.execute("create virtual table vocabulary using fts5vocab(pages, 'row')")
        for page, (title, text) in enumerate(pages, start=1):
            connection.execute("insert into pages (rowid, title, text) values (?, ?, ?)", (page, title, text))
            try:
                connection.execute("insert into titles values (?, ?)", (title, page))
            except sqlite3.IntegrityError as error:
                raise ValueError(f"two pages with the title {title!r}") from error
        connection.execute("insert into pages (pages) values ('optimize')")
        connection.commit()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    try:
        pages, size = (connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
        if pages * size != path.stat().st_size:
            raise sqlite3.DatabaseError(f"{path}: cut off")
        connection.execute("select title from titles limit 1").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


@functools.lru_cache(maxsize=200_000)
def _fold(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
