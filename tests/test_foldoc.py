"""Trails through the dictionary: every filter, what tasks promise, and who holds them to it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import proposed
import pytest

from openhorizon.domains.base import Answer, Call, Environment, Task, solve, split_of
from openhorizon.domains.corpora.foldoc import Article, plain
from openhorizon.domains.corpora.fulltext import tokens
from openhorizon.domains.search import filters, foldoc_walk, programs
from openhorizon.domains.search.foldoc import END, FoldocDomain, FoldocEnvironment, part_ids
from openhorizon.domains.search.foldoc_walk import DESCRIPTION, choose, clozes, library, split_parts
from openhorizon.domains.search.results import cut, read_results, write_results
from openhorizon.domains.search.titles import near_duplicates

DOMAIN = FoldocDomain()
HORIZONS = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32)
make_tasks = partial(proposed.make_tasks, DOMAIN)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    train = [task for horizon in HORIZONS for task in make_tasks(horizon, 9)]
    return train + [task for horizon in HORIZONS for task in make_tasks(horizon, 3, "heldout")]


@pytest.fixture(scope="module")
def solved(tasks: list[Task]) -> list[tuple[Task, Environment, Answer]]:
    """Each task with the reference solution's environment and answer."""
    found = []
    for task in tasks:
        environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        assert answer is not None
        environment.close()
        found.append((task, environment, answer))
    return found


def article(*paragraphs: str, title: str = "x", labels: tuple[str, ...] = ()) -> Article:
    return Article(title, (), labels, paragraphs, (), "")


def test_visited_pages_are_left_out() -> None:
    assert filters.unvisited(["a", "b", "c"], {"b"}) == ["a", "c"]
    assert filters.unvisited(["a"], ["a"]) == []


def test_near_duplicate_titles_are_kept_apart() -> None:
    for a, b in (
        ("Guinea", "Guinea-Bissau"),
        ("Niger", "Nigeria"),
        ("PORTAL", "portal"),
        ("bit stuffing", "bit-stuffing"),
    ):
        assert near_duplicates(a, b) and near_duplicates(b, a)
    for a, b in (("Group 8", "Group 18"), ("recursion", "grammar"), ("C", "Java"), ("!", "?")):
        assert not near_duplicates(a, b)
    assert not filters.unlike_all("Nigeria", ["France", "Niger"]) and filters.unlike_all("Nigeria", ["France"])


def test_disambiguation_pages_are_known() -> None:
    assert filters.is_disambiguation(article("1. <a> One.", "2. <b> Two."))
    assert not filters.is_disambiguation(article("1. Only one sense."))
    assert not filters.is_disambiguation(article("A text.", "2. A second point."))
    assert filters.is_disambiguation(library().articles["abstraction"])


@pytest.mark.parametrize(
    ("paragraph", "listed"),
    [
        ("See also {a}, {b}.", True),
        ("[See {a}?]", True),
        ("Compare {this}.", True),
        ("{one}, {two three}, {four}", True),
        ("a  b\nc  d", True),
        ("cat.   wires", True),
        ("A {protocol} which guarantees that the receiver can recover the clock.", False),
        ("No link at all here.", False),
    ],
)
def test_list_paragraphs_are_known(paragraph: str, listed: bool) -> None:
    assert filters.is_list(paragraph) is listed


def test_list_paragraphs_are_no_way_on() -> None:
    """No stop is reached through a link that stands in list paragraphs only."""
    lib = library()
    for title in lib.starts:
        kept = " ".join(lib.prose[title])
        for target in lib.exits[title]:
            assert any(text for text, to in lib.articles[title].links if to == target and f"{{{text}}}" in kept)


def test_limits_of_length_and_degree() -> None:
    least, most = filters.MIN_WORDS, filters.MAX_WORDS
    good = (least, filters.MIN_LINKS, filters.MAX_ENTRIES)
    assert filters.fits_limits(*good) and filters.fits_limits(most, filters.MAX_LINKS, 0)
    for bad in ((least - 1, 5, 5), (most + 1, 5, 5), (100, filters.MIN_LINKS - 1, 5), (100, filters.MAX_LINKS + 1, 5)):
        assert not filters.fits_limits(*bad)
    assert not filters.fits_limits(100, 5, filters.MAX_ENTRIES + 1)


def test_low_degree_pages_are_removed_again_and_again() -> None:
    """When d goes, c is left with one link and goes, too; a and b hold each other."""
    exits = {"a": ["b", "b2"], "b": ["a", "b2"], "b2": ["a", "b"], "c": ["a", "d"], "d": ["a"]}
    assert filters.prune(exits, lambda title, links, entries: links >= 2) == {"a", "b", "b2"}
    assert filters.prune(exits, lambda title, links, entries: entries <= 2) == {"b", "b2", "c", "d"}
    lib = library()
    for title in lib.starts:
        entries = sum(title in lib.exits[other] for other in lib.entries[title])
        assert filters.fits_limits(lib.words[title], len(lib.exits[title]), entries)
        assert not filters.is_disambiguation(lib.articles[title])


def test_dead_ends_are_known() -> None:
    assert filters.is_dead_end([], ["a"]) and filters.is_dead_end(["a", "b"], ["a", "b"])
    assert filters.is_dead_end(["Nigeria"], ["Niger"]), "only a near-duplicate is left"
    assert not filters.is_dead_end(["a", "grammar"], ["a"])


def test_a_walk_that_dies_takes_an_auxiliary_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every page that the walk comes to second be a dead end: it goes back and tries others, within a bound."""
    original, stuck = foldoc_walk._next_hop, list[str]()

    def dying(lib, rng, stops, dead, left):  # type: ignore[no-untyped-def]
        if len(stops) == 2 and len(stuck) < 3:
            stuck.append(stops[-1])
            return None
        assert not set(stops) & set(dead)
        return original(lib, rng, stops, dead, left)

    monkeypatch.setattr(foldoc_walk, "_next_hop", dying)
    trails = []
    for seed in range(40):
        stuck.clear()
        trail = foldoc_walk.walk(library(), random.Random(seed), 12)
        if trail is not None and len(stuck) == 3:
            trails.append(trail)
            assert not set(stuck) & set(trail.stops[:2]), "the dead branch is not taken again"
            assert sum(hop.calls for hop in trail.hops) <= 12
    assert len(trails) > 20
    monkeypatch.setattr(foldoc_walk, "_next_hop", lambda *_: None)
    assert foldoc_walk.walk(library(), random.Random(0), 12) is None


def test_topic_shifts() -> None:
    a, b, c = article(labels=("language",)), article(labels=("person",)), article(labels=("tool", "language"))
    assert filters.shifts_topic(a, b) and not filters.shifts_topic(a, c) and not filters.shifts_topic(a, article())


def test_names_are_masked() -> None:
    network = library().articles["artificial neural network"]
    hidden = filters.names(network)
    assert hidden[0] == "artificial neural network" and {"NN", "neural nets"} <= set(hidden)
    assert filters.mask("An artificial neural network, or NN; neural networks learn. NNx", hidden) == (
        "An ___, or ___; ___ learn. NNx"
    )


def test_clozes_point_at_one_link() -> None:
    page = (
        "A {bit} is the smallest unit of all information there is. It is stored in a {cell} or in a {latch} somewhere."
        "\n\nSee also {byte}."
    )
    assert clozes(page) == {
        "A ___ is the smallest unit of all information there is.": "bit",
        "It is stored in a ___ or in a latch somewhere.": "cell",
        "It is stored in a cell or in a ___ somewhere.": "latch",
    }
    assert clozes("One may see a {cat} here and then. One may see a {dog} here and then.") == {}, "two would fit"


def test_pages_are_cut_between_paragraphs() -> None:
    text = "\n\n".join(" ".join(["word"] * n) for n in (300, 150, 100, 700, 20))
    parts = split_parts(text)
    assert "\n\n".join(parts) == text and [len(part.split()) for part in parts] == [450, 100, 700, 20]


def test_results_read_back() -> None:
    found = [("a: b", "x [y] z"), ("C (language)", "1. first")]
    assert read_results(write_results(found)) == found
    assert cut("a b c", 2) == "a b …" and cut("a b", 2) == "a b" and choose("no results", "a b") == ""


def test_reference_is_accepted_with_exactly_horizon_calls(solved: list[tuple[Task, Environment, Answer]]) -> None:
    used: Counter[str] = Counter()
    for task, environment, answer in solved:
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task, verdict)
        assert len(environment.steps) == task.horizon and answer.text == task.reference
        assert not any(step.observation.error for step in environment.steps)
        used.update(step.call.name for step in environment.steps)
    assert used["search"] > 200 and used["code"] > 40 and used["read_page"] > 600


def corrupted(
    task: Task, environment: Environment, answer: Answer, rng: random.Random
) -> dict[str, tuple[Environment, Answer | None]]:
    """The reference solution spoilt in every way that must not pass."""
    lib, stops = library(), task.state["stops"]
    others = [title for title in lib.starts if title != stops[-1]]
    found: dict[str, tuple[Environment, Answer | None]] = {
        "wrong answer": (environment, Answer(f"Answer: {rng.choice(others)}")),
        "an earlier stop": (environment, Answer(f"Answer: {stops[-2]}" if len(stops) > 1 else "Answer: none")),
        "no answer": (environment, None),
        "empty answer": (environment, Answer("")),
        "no work": (DOMAIN.start(task), answer),
    }
    shortcut = DOMAIN.start(task)
    shortcut.call(Call("read_page", {"title": stops[-1]}))
    if len(task.evidence) > 1:
        found["only the end read"] = (shortcut, answer)
    for name, tool in (("page skipped", "read_page"), ("program skipped", "code")):
        steps = [i for i, step in enumerate(environment.steps) if step.call.name == tool]
        if steps:
            left_out, again = rng.choice(steps), DOMAIN.start(task)
            for i, step in enumerate(environment.steps):
                if i != left_out and (step.call.name != "code" or tool == "read_page"):
                    again.call(step.call)
            again.close()
            found[name] = (again, answer)
    return found


def test_corrupted_solutions_are_refused(solved: list[tuple[Task, Environment, Answer]]) -> None:
    refused: Counter[str] = Counter()
    for task, environment, answer in solved:
        for name, (spoilt, given) in corrupted(task, environment, answer, random.Random(task.seed)).items():
            verdict = DOMAIN.verify(task, spoilt, given)
            assert not verdict.passed and verdict.score < 1 and not all(verdict.rubric.values()), (name, task)
            refused[name] += 1
    assert min(refused.values()) > 20 and refused.total() > 700


@pytest.mark.long
def test_a_thousand_references_and_corruptions() -> None:
    accepted = refused = 0
    for horizon in (2, 4, 8, 16, 32):
        for task in make_tasks(horizon, 200):
            environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
            assert answer is not None
            accepted += DOMAIN.verify(task, environment, answer).passed
            environment.close()
            spoilt = corrupted(task, environment, answer, random.Random(task.seed))
            refused += all(not DOMAIN.verify(task, *episode).passed for episode in spoilt.values())
    assert (accepted, refused) == (1000, 1000)


def test_a_program_counts_only_when_it_printed_the_result(solved: list[tuple[Task, Environment, Answer]]) -> None:
    task, environment, _ = next(item for item in solved if any(item[0].state["results"]))
    at = next(i for i, step in enumerate(environment.steps) if step.call.name == "code")
    again = DOMAIN.start(task)
    for step in environment.steps[:at]:
        again.call(step.call)
    result = environment.steps[at].observation.text.strip()
    assert not again.call(Call("code", {"code": "print('something else')"})).evidence
    broken = again.call(Call("code", {"code": f"print({result!r})\n1 / 0"}))
    assert broken.error and "ZeroDivisionError" in broken.text and not broken.evidence
    stop = next(i for i, text in enumerate(task.state["results"]) if text)
    assert again.call(environment.steps[at].call).evidence == (f"program {stop + 1}",)
    again.close()


def test_programs_say_what_the_functions_say(solved: list[tuple[Task, Environment, Answer]]) -> None:
    """Against a computation from the whole texts, with no program."""
    lib, checked = library(), Counter[str]()
    for task, _, _ in solved:
        for i, note in enumerate(task.state["notes"]):
            if not task.state["results"][i]:
                continue
            here = lib.texts[task.state["stops"][i]]
            others = [lib.texts[title] for title in re.findall(r'"([^"]+)"', note.rpartition("Pages: ")[2])]
            links = list(dict.fromkeys(re.findall(r"\{([^{}]+)\}", here)))
            if "count of all words" in note:
                expected = links[sum(len(re.findall(r"\w+", text)) for text in (here, *others)) % len(links)]
            elif "days between" in note:
                ordinals = [
                    programs.date.fromisoformat(lib.articles[title].updated).toordinal()
                    for title in (task.state["stops"][i], task.state["stops"][i - 1])
                ]
                expected = links[abs(ordinals[0] - ordinals[1]) % len(links)]
            else:
                every = sorted(
                    {t for text in (here, *others) for t in re.findall(r"\{([^{}]+)\}", text)}, key=str.lower
                )
                middle = every[len(every) // 2].lower()
                expected = min(
                    (t for t in links if t.lower() > middle), key=str.lower, default=min(links, key=str.lower)
                )
            assert task.state["results"][i] == expected
            checked[next(kind for kind, (_, text) in foldoc_walk.COMPUTED.items() if text in note)] += 1
    assert len(checked) == 3 and checked.total() > 40


def test_trails_keep_the_filters(tasks: list[Task]) -> None:
    lib = library()
    for task in tasks:
        stops: list[str] = task.state["stops"]
        assert len(set(stops)) == len(stops) and set(stops) <= lib.walkable
        for i, stop in enumerate(stops):
            assert not any(near_duplicates(stop, other) for other in stops[:i])


def test_what_is_searched_was_named_nowhere(tasks: list[Task]) -> None:
    """The horizon is the shortest: what a note describes is linked from no page read so far, and is not named."""
    lib, searched, shifted = library(), 0, 0
    for task in tasks:
        stops = task.state["stops"]
        for i, note in enumerate(task.state["notes"][:-1]):
            said = DESCRIPTION.search(note)
            if not said:
                continue
            target = stops[i + 1]
            searched += 1
            assert all(target != to for stop in stops[: i + 1] for _, to in lib.articles[stop].links)
            assert all(filters.mask(said[1], [name]) == said[1] for name in filters.names(lib.articles[target]))
            if "something else" in note:
                shifted += 1
                assert filters.shifts_topic(lib.articles[stops[i]], lib.articles[target])
            else:
                assert stops[i] in [to for _, to in lib.articles[target].links]
    assert searched > 150 and shifted > 20


def test_the_end_is_not_shown_early(solved: list[tuple[Task, Environment, Answer]]) -> None:
    for task, environment, _ in solved:
        if task.horizon < 3:
            continue
        end = f" {' '.join(tokens(task.state['stops'][-1]))} "
        early = task.horizon - max(2, round(task.horizon / 2))
        shown = [task.prompt, *(step.observation.text for step in environment.steps[: max(early, 1)])]
        assert not any(end in f" {' '.join(tokens(text))} " for text in shown), task


def test_gaps_do_not_name_what_fills_them(tasks: list[Task]) -> None:
    lib = library()
    for task in tasks:
        for note, target in zip(task.state["notes"], task.state["stops"][1:], strict=False):
            if "fills the gap" in note:
                assert all(filters.mask(note, [name]) == note for name in filters.names(lib.articles[target]))


def test_guesses_never_pass(tasks: list[Task]) -> None:
    for task in [task for task in tasks if task.horizon > 1]:
        environment = DOMAIN.start(task)
        for guess in DOMAIN.guesses(task):
            assert not DOMAIN.verify(task, environment, Answer(guess)).rubric["answer"]


def test_prompt_length_does_not_grow_with_the_horizon(tasks: list[Task]) -> None:
    """Of those that describe their start and of those that name it; at least a quarter of each."""

    def mean_words(low: int, high: int, described: bool) -> float:
        prompts = [task.prompt for task in tasks if low <= task.horizon <= high]
        lengths = [len(prompt.split()) for prompt in prompts if ("that says" in prompt) is described]
        assert len(lengths) > len(prompts) / 4
        return sum(lengths) / len(lengths)

    assert abs(mean_words(4, 11, True) - mean_words(16, 32, True)) < 6
    assert abs(mean_words(4, 11, False) - mean_words(16, 32, False)) < 2
    assert max(len(task.prompt.split()) for task in tasks) <= 75


def test_answers_are_compared_by_the_article_they_lead_to() -> None:
    task = make_tasks(4, 1)[0]
    environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, 4)
    environment.close()
    end = task.state["stops"][-1]
    for text in (f"answer:  {end} .", f"It is clear. Answer: {end}", f'"{end}"', end):
        assert DOMAIN.verify(task, environment, Answer(text)).passed, text
    for alias in library().articles[end].aliases:
        if library().dictionary.find(alias) == end:
            assert DOMAIN.verify(task, environment, Answer(f"Answer: {alias}")).passed
    assert not DOMAIN.verify(task, environment, Answer(f"{answer and answer.text}, I think")).passed


def test_notes_show_in_order_only() -> None:
    task = next(t for t in make_tasks(8, 20) if len(t.evidence) >= 4 and not any("(1)" in item for item in t.evidence))
    first, second, third, *_ = task.state["stops"]
    environment = DOMAIN.start(task)

    def note(title: str) -> str:
        return environment.call(Call("read_page", {"title": title})).text.rpartition("\nNote: ")[2]

    assert note(second) == "off the trail, before its start"
    assert note(first) == task.state["notes"][0]
    assert note(third) == f'off the trail; the last stop was "{first}"'
    assert note(second) == task.state["notes"][1]
    assert note(first) == task.state["notes"][0], "re-reading an earlier stop shows its note again"
    assert note(third) == task.state["notes"][2], "and loses no progress"


def test_long_pages_come_in_parts() -> None:
    lib = library()
    title = next(title for title in lib.starts if len(lib.parts(title)) == 3)
    task = make_tasks(1, 1)[0]
    task = replace(task, state={"stops": [title], "notes": [END], "results": [""]}, evidence=tuple(part_ids(title, 3)))
    environment = DOMAIN.start(task)
    assert isinstance(environment, FoldocEnvironment)
    seen = []
    for part in (1, 2, 3):
        observation = environment.call(Call("read_page", {"title": title, "part": part}))
        assert observation.evidence == (f"{title} ({part})",)
        assert observation.text.endswith(END if part == 3 else f"Note: the page goes on in part {part + 1}")
        seen.append(observation.text.split("\n\n", 1)[1].rpartition("\n\nFile: ")[0])
        passed = DOMAIN.verify(task, environment, Answer(f"Answer: {title}")).passed
        assert passed is (part == 3)
    assert "\n\n".join(seen) == lib.texts[title]
    assert environment.call(Call("read_page", {"title": title, "part": 4})).error
    assert plain(lib.texts[title]) == lib.index.text(title)


def test_noisy_expert_goes_astray_and_mostly_recovers() -> None:
    batch = make_tasks(8, 60)
    passed = longer = missed = repaired = 0
    for i, task in enumerate(batch):
        environment, answer = solve(DOMAIN, task, random.Random(i), 0.2, 32)
        passed += DOMAIN.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        missed += any(step.observation.error for step in environment.steps)
        repaired += any(step.observation.error and step.call.name == "code" for step in environment.steps)
        environment.close()
    assert 0.85 * len(batch) < passed <= len(batch)
    assert longer > len(batch) / 2 and missed > len(batch) / 10 and repaired


@pytest.mark.parametrize(
    "call",
    [
        Call("search", {}),
        Call("search", {"query": ""}),
        Call("read_page", {"title": ["C"]}),
        Call("read_page", {"title": "no such article at all"}),
        Call("read_page", {"title": "C", "part": 0}),
        Call("code", {"program": "print(1)"}),
        Call("open", {"title": "C"}),
        Call("", {}),
    ],
)
def test_invalid_calls_are_observations(call: Call) -> None:
    environment = DOMAIN.start(make_tasks(3, 1)[0])
    observation = environment.call(call)
    assert observation.error and observation.text.startswith("error: ") and not observation.evidence
    assert len(environment.steps) == 1
    environment.close()


def test_state_survives_json_and_files_outlive_no_episode() -> None:
    task = make_tasks(9, 1)[0]
    again = replace(task, state=json.loads(json.dumps(task.state)))
    environment, answer = solve(DOMAIN, again, random.Random(0), 0.0, 9)
    shown = environment.call(Call("code", {"code": "import os; print(sorted(os.listdir()))"}))
    assert "page1.txt" in shown.text
    environment.close()
    environment.close()
    assert DOMAIN.verify(again, environment, answer).passed, "a verdict needs no open environment"


def test_a_pair_belongs_to_one_split(tasks: list[Task]) -> None:
    train = {pair for task in tasks if task.split == "train" for pair in task.entity_pairs}
    heldout = {pair for task in tasks if task.split == "heldout" for pair in task.entity_pairs}
    assert train and heldout and not train & heldout
    assert all(split_of(pair) == task.split for task in tasks for pair in task.entity_pairs)
    assert len({task.prompt for task in tasks}) == len(tasks)


def test_a_horizon_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


def test_the_report_says_what_was_dropped() -> None:
    report = library().report
    assert report["dropped: disambiguation"] > 500 and report["list paragraphs"] > 1000
    assert (
        report["walkable"] + report["dropped: disambiguation"] + report["dropped: length or degree"]
        == report["articles"]
    )


def digest() -> str:
    """Of tasks, and of noisy episodes on them."""
    parts: list[str] = []
    for task in [task for horizon in (1, 5, 13) for task in make_tasks(horizon, 4)]:
        environment, answer = solve(DOMAIN, task, random.Random(task.seed), 0.3, 60)
        environment.close()
        parts.append(json.dumps([asdict(task), [asdict(step) for step in environment.steps], answer and answer.text]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_same_seed_gives_the_same_tasks_in_every_process() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    command = [sys.executable, "-c", "from test_foldoc import digest\nprint(digest())"]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest()
