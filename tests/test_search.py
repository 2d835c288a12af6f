"""The search domain and its corpus: what tasks promise, and that verifier and environment hold them to it."""

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import proposed
import pytest

from openhorizon.domains.base import Answer, Call, Task, solve, split_of
from openhorizon.domains.corpora import facts
from openhorizon.domains.search.trails import MIN_LINKS, Corpus, SearchDomain, _corpus, _read_facts, _slots

DOMAIN = SearchDomain()
make_tasks = partial(proposed.make_tasks, DOMAIN)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """1,000 tasks over horizons 1 to 32, a quarter of them held out."""
    train = [task for h in range(1, 33) for task in make_tasks(h, 24)]
    return train + [task for h in range(1, 33) for task in make_tasks(h, 8, "heldout")]


def test_reference_is_accepted_with_exactly_horizon_calls(tasks: list[Task]) -> None:
    assert len(tasks) >= 1000
    for task in tasks:
        environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task, verdict)
        assert len(environment.steps) == task.horizon
        assert answer is not None and answer.text == task.reference
        assert not any(step.observation.error for step in environment.steps)


def test_no_shortcut_names_a_page_before_it_is_found(tasks: list[Task]) -> None:
    """The horizon is the shortest: what is to be searched was on no page read so far, nor in the prompt."""
    searched = 0
    for task in tasks:
        environment, _ = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        seen = [task.prompt.partition("start at")[2]]
        named: set[str] = set()
        for step, following in zip(environment.steps, [*environment.steps[1:], None], strict=True):
            if step.call.name == "search":
                assert following is not None
                target = following.call.arguments["title"]
                searched += 1
                assert target not in named and target not in step.call.arguments["query"]
                assert f" {target}." not in seen[0]
            else:
                named |= set(_read_facts(step.observation.text.rpartition(" note: ")[0]).values())
    assert searched > 1000


def test_trails_keep_the_papers_filters(tasks: list[Task]) -> None:
    corpus = _corpus()
    for task in tasks:
        stops: list[str] = task.state["stops"]
        assert len(set(stops)) == len(stops)
        for i, stop in enumerate(stops):
            assert not corpus.near[stop] & set(stops[:i])
            assert len({t for titles in corpus.pages[stop].links.values() for t in titles}) >= MIN_LINKS
    assert "Nigeria" in corpus.near["Niger"] and "Niger" in corpus.near["Nigeria"]
    assert "Group 18" not in corpus.near["Group 8"]


def test_masks_fit_one_page_only(tasks: list[Task]) -> None:
    """Against a scan of the whole corpus, with no index."""
    pages = facts.load_facts()
    hops = [hop for task in tasks for hop in zip(task.state["notes"], task.state["stops"][1:], strict=False)]
    notes = {(note.removeprefix("find "), target) for note, target in hops if note.startswith("find ")}
    assert len(notes) > 300
    for mask, target in sorted(notes)[::5]:
        kind, _, text = mask.partition(" with ")
        wanted = [part.split(" ", 1) for part in text.split(" and ")]
        fitting = [
            page.title
            for page in pages.values()
            if page.kind == kind
            and all(value in (*page.links.get(name, ()), page.attributes.get(name)) for name, value in wanted)
        ]
        assert fitting == [target], mask


def test_corrupted_solutions_are_refused(tasks: list[Task]) -> None:
    for task in [task for task in tasks if len(task.evidence) > 1][::7]:
        environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        assert answer is not None
        wrong = DOMAIN.verify(task, environment, Answer(f"Answer: {task.evidence[0]}"))
        assert not wrong.passed and wrong.rubric == {"answer": False, "path": True} and wrong.score == 0.5
        assert not DOMAIN.verify(task, environment, None).passed
        assert not DOMAIN.verify(task, environment, Answer("")).passed
        unread = DOMAIN.verify(task, DOMAIN.start(task), answer)
        assert not unread.passed and unread.rubric == {"answer": True, "path": False} and unread.score == 0.5
        removed = random.Random(task.seed).choice(task.evidence)
        partial = DOMAIN.start(task)
        for step in environment.steps:
            if step.call.arguments.get("title") != removed:
                partial.call(step.call)
        verdict = DOMAIN.verify(task, partial, answer)
        assert not verdict.passed and removed in verdict.reason and 0.5 < verdict.score < 1


def test_answers_are_compared_after_normalisation() -> None:
    task = make_tasks(4, 1)[0]
    environment, _ = solve(DOMAIN, task, random.Random(0), 0.0, 4)
    for text in (
        f"answer:  {task.evidence[-1].upper()} .",
        f"It is clear. Answer: {task.evidence[-1]}",
        task.evidence[-1],
    ):
        assert DOMAIN.verify(task, environment, Answer(text)).passed, text


def test_notes_show_in_order_only() -> None:
    task = next(task for task in make_tasks(6, 20) if len(task.evidence) >= 4)
    first, second, third, *_ = task.evidence
    environment = DOMAIN.start(task)

    def note(title: str) -> str:
        return environment.call(Call("read_page", {"title": title})).text.rpartition(" note: ")[2]

    assert note(second) == "off trail"
    assert note(first) == task.state["notes"][0]
    assert note(third) == f"off trail, back to {first}"
    assert note(second) == task.state["notes"][1]
    assert note(first) == task.state["notes"][0], "re-reading an earlier stop shows its note again"
    assert note(third.lower()) == task.state["notes"][2], "and loses no progress"


def test_prompt_length_does_not_grow_with_the_horizon(tasks: list[Task]) -> None:
    def mean_words(low: int, high: int) -> float:
        lengths = [len(task.prompt.split()) for task in tasks if low <= task.horizon <= high]
        return sum(lengths) / len(lengths)

    assert abs(mean_words(2, 8) - mean_words(25, 32)) < 0.5
    assert max(len(task.prompt.split()) for task in tasks) <= 30


def test_a_masked_start_is_not_named(tasks: list[Task]) -> None:
    masked = [task for task in tasks if "start at the " in task.prompt]
    assert 0.3 * len(tasks) < len(masked) < 0.7 * len(tasks)
    for task in masked:
        assert f" {task.evidence[0]}." not in task.prompt and f" {task.evidence[0]} " not in task.prompt


def test_noisy_expert_goes_astray_and_mostly_recovers() -> None:
    batch = make_tasks(8, 200)
    passed = longer = missed = 0
    for i, task in enumerate(batch):
        environment, answer = solve(DOMAIN, task, random.Random(i), 0.2, 24)
        passed += DOMAIN.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        missed += any(step.observation.error for step in environment.steps)
    assert 0.85 * len(batch) < passed < len(batch)
    assert longer > len(batch) / 2 and missed > len(batch) / 10


def test_thoughts_look_up_what_the_call_needs() -> None:
    """A thought repeats the note's verb and names the page; a wrong page is left as its note says."""
    returns = 0
    for i, task in enumerate(make_tasks(8, 60)):
        environment, _ = solve(DOMAIN, task, random.Random(i), 0.2, 40)
        note = ""
        for step in environment.steps:
            call = step.call
            if call.name == "search":
                assert call.thought.startswith("find ")
            elif not step.observation.error:
                assert call.thought.endswith(f" {call.arguments['title']}")
            if note.startswith("follow"):
                assert call.thought.startswith("follow ")
            elif note.startswith("off trail, "):
                returns += 1
                assert call.thought == note.removeprefix("off trail, ")
            _, shown, last = step.observation.text.rpartition(" note: ")
            note = last if shown else note if step.observation.error else ""
    assert returns > 20


def test_a_pair_belongs_to_one_split(tasks: list[Task]) -> None:
    train = {pair for task in tasks if task.split == "train" for pair in task.entity_pairs}
    heldout = {pair for task in tasks if task.split == "heldout" for pair in task.entity_pairs}
    assert train and heldout and not train & heldout
    assert all(split_of(pair) == task.split for task in tasks for pair in task.entity_pairs)
    assert len({task.prompt for task in tasks}) > 0.9 * len(tasks)


@pytest.mark.parametrize(
    "call",
    [
        Call("search", {}),
        Call("search", {"query": 7}),
        Call("search", {"query": ""}),
        Call("search", {"query": "Paris", "limit": 3}),
        Call("read_page", {"title": ["Paris"]}),
        Call("read_page", {"title": "Atlantis"}),
        Call("open", {"title": "Paris"}),
        Call("", {}),
    ],
)
def test_invalid_calls_are_observations(call: Call) -> None:
    task = make_tasks(3, 1)[0]
    environment = DOMAIN.start(task)
    observation = environment.call(call)
    assert observation.error and observation.text.startswith("error: ") and not observation.evidence
    assert len(environment.steps) == 1


def test_search_ranks_like_a_full_scan() -> None:
    corpus = _corpus()
    for query in ("capital Paris", "currency Euro and language Slovak", "near Lyon", "Xe", "country", "zzz ?"):
        words = set(query.lower().split())
        scores = {
            title: sum(weight for word in words for held, weight in corpus.postings.get(word, []) if held == title)
            for title in corpus.pages
        }
        ranked = sorted(
            (title for title in scores if scores[title] > 0), key=lambda title: (-round(scores[title], 9), title)
        )
        assert list(corpus.search(query)) == ranked[:3], query
    assert DOMAIN.start(make_tasks(1, 1)[0]).call(Call("search", {"query": "zzz"})).text == "no results"
    assert corpus.search("capital Paris")[:2] == ("Paris", "France")


def test_state_survives_json() -> None:
    task = make_tasks(9, 1)[0]
    again = replace(task, state=json.loads(json.dumps(task.state)))
    environment, answer = solve(DOMAIN, again, random.Random(0), 0.0, 9)
    assert DOMAIN.verify(again, environment, answer).passed


def test_every_page_reads_back() -> None:
    corpus = _corpus()
    for title, text in corpus.texts.items():
        links = corpus.pages[title].links
        assert _read_facts(text) == {slot: t for relation, ts in links.items() for slot, t in _slots(relation, ts)}
        assert len(text.split()) <= 60


def test_facts_are_real_and_well_formed() -> None:
    pages = facts.load_facts()
    assert pages["France"].links["capital"] == ("Paris",) and pages["France"].links["currency"] == ("Euro",)
    assert pages["Singapore"].links["capital"] == ("Singapore City",)
    assert pages["Iron"].links["next"] == ("Cobalt",) and pages["Iron"].attributes["symbol"] == "Fe"
    assert pages["Gallium"].links["discovery"] == ("France",)
    kinds = [page.kind for page in pages.values()]
    assert kinds.count("element") == 118 and 150 < kinds.count("country") < 200
    assert all(kinds.count(kind) > 0 for kind in ("capital", "city", "language", "currency", "region", "continent"))
    for title, page in pages.items():
        assert title == page.title and title.isascii() and " and " not in title and "." not in title
        assert page.links and all(target in pages for titles in page.links.values() for target in titles)
    assert len({title.lower() for title in pages}) == len(pages)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mendeleev" else found(name))
    with pytest.raises(
        ModuleNotFoundError, match=r"'mendeleev' is not installed; run: pip install .*mendeleev"
    ) as caught:
        facts.load_facts.__wrapped__()
    assert "\n" not in str(caught.value)


def test_a_horizon_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


_DIGEST = """
from test_search import digest
print(digest())
"""


def digest() -> str:
    """Of tasks, and of noisy episodes on them."""
    parts: list[str] = []
    for task in [task for horizon in (1, 5, 13) for task in make_tasks(horizon, 10)]:
        environment, answer = solve(DOMAIN, task, random.Random(task.seed), 0.3, 60)
        parts.append(json.dumps([asdict(task), [asdict(step) for step in environment.steps], answer and answer.text]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_same_seed_gives_the_same_tasks_in_every_process() -> None:
    digests = set()
    for seed in ("1", "2"):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", _DIGEST]
        digests.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert digests == {digest()}


def test_two_corpora_agree() -> None:
    """A corpus has no state: one that served searches describes pages as a fresh one does."""
    used, fresh = _corpus(), Corpus(facts.load_facts())
    used.search("capital Paris")
    for title in used.walkable[:40]:
        assert used.describe(title, None) == fresh.describe(title, None)
