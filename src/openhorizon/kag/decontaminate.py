"""Is a training task too close to a held-out task or to a public benchmark? By words and by entities.

A task is contaminated by

* *prompt*: its whole prompt is a held-out task's or a benchmark's text, case and punctuation aside, or stands inside a
  benchmark's text and has ``WORDING`` words or more;
* *n-gram*: its prompt shares ``ngram`` consecutive words with one, or holds the whole of one that is shorter and has
  ``WORDING`` words or more;
* *entity*: one of its entity pairs is a held-out task's, in either order, or both names of a pair stand in one text of
  a benchmark.

What is no evidence: words that everybody uses. A run of words that stands in more than ``COMMON_TEXTS`` texts of a
benchmark is its boilerplate. A run of ``WORDING`` words that stands in ``WORDING_PROMPTS`` prompts of our own (held-out
ones and those given as ``wording``) is how a world puts its questions. An n-gram that has such a run inside shows the
same world, or one document of its corpus, not the same task: there the whole prompt and the entities decide. An entity
counts against a benchmark where it is a name: four letters or more, one of them a capital, or else "red" and "2" would
stand in every text.

The paper does not say how it decontaminates. n = 13 and dropping what is common are what others report for large
training sets; the lengths of wording and names are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from openhorizon.domains.base import Domain, Task
from openhorizon.kag.phrases import Phrases, normal
from openhorizon.seeds import derive, rng

COMMON_TEXTS = 10
WORDING, WORDING_PROMPTS = 5, 3
NAME_LETTERS = 4
EXAMPLES = 3  # kept of each source and kind
HELDOUT = "held-out tasks"
NOT_CHECKED = "not installed, not checked"


class Contamination:
    """What must not be trained on, and what was found so far.

    ``benchmarks`` are texts by the benchmark's name (none: not installed); ``wording`` are further prompts of our own,
    such as ``usual_prompts`` draws, since a handful of held-out tasks does not show how a world words its questions.

    Raises:
        ValueError: an n-gram shorter than what we take for wording.
    """

    def __init__(
        self,
        heldout: Sequence[Task],
        benchmarks: Mapping[str, Iterable[str]],
        ngram: int,
        wording: Iterable[str] = (),
    ) -> None:
        if ngram <= WORDING:
            raise ValueError(f"decontamination n-gram={ngram}: must be more than {WORDING}")
        self.ngram = ngram
        ours = {normal(task.prompt): task.id for task in reversed(heldout)}
        self._prompts = ours
        self._wording = _common((*ours, *{normal(prompt) for prompt in wording}), WORDING, WORDING_PROMPTS - 1)
        self._pairs = {_pair(pair): task.id for task in reversed(heldout) for pair in task.entity_pairs}
        self._grams: dict[str, tuple[str, str]] = {}  # n-gram → source, which text
        self._texts = {name: Phrases() for name in benchmarks}
        for name, texts in benchmarks.items():
            for text in texts:
                self._texts[name].add(normal(text))
            whole = [text.strip() for text in self._texts[name].texts]
            common = _common(whole, ngram, COMMON_TEXTS)
            for i, text in enumerate(whole):
                for gram in self._runs(text):
                    if gram not in common:
                        self._grams.setdefault(gram, (name, f"text {i + 1} of {name}"))
        for text, task_id in ours.items():
            self._grams |= dict.fromkeys(self._runs(text), (HELDOUT, f"held-out task {task_id}"))
        self._lengths = sorted({gram.count(" ") + 1 for gram in self._grams})
        self._checked = 0
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[str]] = {}

    def check(self, task: Task) -> str:
        """ "" for a clean task, or what it shares with what; counted for ``report``."""
        self._checked += 1
        found = next(self.overlaps(task), None)
        if found is None:
            return ""
        source, kind, reason, _ = found
        self._dropped[source, kind] += 1
        examples = self._examples.setdefault((source, kind), [])
        if len(examples) < EXAMPLES:
            examples.append(f"{task.id}: {reason}")
        return reason

    def report(self) -> dict[str, Any]:
        """What was looked for and what was dropped: {checked, ngram, sources {source: texts or "not installed, not
        checked"}, dropped {source: {kind: tasks}}, examples [{source, kind, what}]}; every source is listed."""
        sources: dict[str, int | str] = {HELDOUT: len(self._prompts)}
        sources |= {name: len(texts.texts) or NOT_CHECKED for name, texts in self._texts.items()}
        dropped: dict[str, dict[str, int]] = {name: {} for name in sources}
        for (source, kind), n in sorted(self._dropped.items()):
            dropped[source][kind] = n
        return {
            "checked": self._checked,
            "ngram": self.ngram,
            "sources": sources,
            "dropped": dropped,
            "examples": [
                {"source": source, "kind": kind, "what": what}
                for (source, kind), examples in sorted(self._examples.items())
                for what in examples
            ],
        }

    def _runs(self, text: str) -> Iterator[str]:
        """What of a text tells that it was copied: its n-grams, or the whole of a shorter one."""
        length = text.count(" ") + 1
        return _grams(text, min(length, self.ngram)) if length >= WORDING else iter(())

    def overlaps(self, task: Task) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
        """Every overlap as (source, kind, reason, which of a benchmark's texts have it)."""
        prompt = normal(task.prompt)
        if prompt in self._prompts:
            yield HELDOUT, "prompt", f"prompt of held-out task {self._prompts[prompt]}", ()
        for a, b in task.entity_pairs:
            if _pair((a, b)) in self._pairs:
                reason = f"entity pair {a} / {b} of held-out task {self._pairs[_pair((a, b))]}"
                yield HELDOUT, "entity", reason, ()
        for gram in (gram for length in reversed(self._lengths) for gram in _grams(prompt, length)):
            if gram in self._grams and not any(run in self._wording for run in _grams(gram, WORDING)):
                source, which = self._grams[gram]
                having = tuple(sorted(self._texts[source].holding(gram))) if source in self._texts else ()
                yield source, "n-gram", f"{gram.count(' ') + 1} words of {which}: {gram!r}", having
        for name, texts in self._texts.items():
            for i in texts.holding(prompt):
                if prompt.count(" ") + 1 >= WORDING or texts.texts[i].strip() == prompt:
                    yield name, "prompt", f"the whole prompt stands in text {i + 1} of {name}", (i,)
            for a, b in task.entity_pairs:
                if is_name(a) and is_name(b) and normal(a) != normal(b):
                    both = set(texts.holding(normal(a))) & set(texts.holding(normal(b)))
                    for i in sorted(both):
                        yield name, "entity", f"entity pair {a} / {b} in text {i + 1} of {name}", (i,)


def usual_prompts(domain: Domain, horizons: Sequence[int], count: int, seed: int) -> list[str]:
    """Prompts of ``count`` draws of a world's training tasks, horizons taking turns; the same for the same seed. Draws
    that give no task are left out."""
    prompts = []
    for i in range(count if horizons else 0):
        own = derive(seed, "wording", domain.world, i)
        task = domain.propose(rng(own, "propose"), "train", horizons[i % len(horizons)], own)
        prompts += [task.prompt] if task else []
    return prompts


def merge_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several shards, which looked for the same.

    Raises:
        ValueError: they did not, or there is none.
    """
    if not reports:
        raise ValueError("no decontamination report to merge")
    first = reports[0]
    merged: dict[str, Any] = {"checked": 0, "ngram": first["ngram"], "sources": dict(first["sources"])}
    dropped: dict[str, Counter[str]] = {source: Counter() for source in first["sources"]}
    examples: dict[tuple[str, str], list[dict[str, str]]] = {}
    for report in reports:
        if (report["ngram"], report["sources"]) != (merged["ngram"], merged["sources"]):
            raise ValueError(f"decontamination: shards looked for different texts: {report['sources']}")
        merged["checked"] += report["checked"]
        for source, counts in report["dropped"].items():
            dropped[source].update(counts)
        for example in report["examples"]:
            examples.setdefault((example["source"], example["kind"]), []).append(example)
    merged["dropped"] = {source: dict(sorted(counts.items())) for source, counts in dropped.items()}
    merged["examples"] = [example for _, found in sorted(examples.items()) for example in found[:EXAMPLES]]
    return merged


def is_name(entity: str) -> bool:
    """Whether an entity says something by itself: enough letters, one of them a capital."""
    return sum(letter.isalpha() for letter in entity) >= NAME_LETTERS and entity != entity.lower()


def _pair(pair: tuple[str, str]) -> tuple[str, str]:
    a, b = sorted(map(normal, pair))
    return a, b


def _grams(text: str, n: int) -> Iterator[str]:
    """Every run of n words of a normalised text."""
    words = text.split()
    return (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def _common(texts: Iterable[str], n: int, limit: int) -> set[str]:
    """Runs of n words that stand in more than ``limit`` texts."""
    counts = Counter(gram for text in texts for gram in set(_grams(text, n)))
    return {gram for gram, count in counts.items() if count > limit}
