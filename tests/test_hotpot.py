"""Question sheets over Wikipedia's paragraphs: the reader, what tasks promise, and who holds them to it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import proposed
import pytest

from openhorizon.domains.base import Answer, Call, Environment, Observation, Task, solve
from openhorizon.domains.search import programs
from openhorizon.domains.search.hotpot import HotpotDomain, choices, library
from openhorizon.domains.search.hotpot_reader import content, mentioned, read_question, stem, two_options
from openhorizon.domains.search.results import answer_key, write_results

DOMAIN = HotpotDomain()
HORIZONS = (8, 13, 24)
make_tasks = partial(proposed.make_tasks, DOMAIN)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    train = [task for horizon in HORIZONS for task in make_tasks(horizon, 5)]
    return train + [task for horizon in HORIZONS for task in make_tasks(horizon, 2, "heldout")]


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


def read(question: str, pages: dict[str, str]) -> tuple[str, list[Call]]:
    """The reader on a world of its own, in which every search finds all pages; programs are not run but answered."""
    reading, calls, files = read_question(question, random.Random(0), 0.0), list[Call](), dict[str, str]()
    call = next(reading)
    while True:
        calls.append(call)
        if call.name == "search":
            observed = write_results(pages.items())
        elif call.name == "read_page":
            title = call.arguments["title"]
            files[title] = f"page{len(files) + 1}.txt"
            observed = f"# {title}\n\n{pages[title]}\n\nFile: {files[title]}"
        else:
            last = call.arguments["code"]
            years = {title: programs.first_year(pages[title]) for title in files}
            assert all(file in last for file in files.values())
            wanted = max if "max(" in last else min
            observed = f"{years}\n{wanted(years, key=years.__getitem__)}\n"
        try:
            call = reading.send(Observation(observed))
        except StopIteration as end:
            return str(end.value), calls


PEOPLE = {
    "Ada Byron": "Ada Byron (born 1815) was an English mathematician and a writer who lived in London.",
    "Kurt Gold": "Kurt Gold (born 1906) was an Austrian logician and a mathematician. He taught in Vienna.",
    "Gold Prize": "The Gold Prize is a prize of logic, named after Kurt Gold and given since 1993.",
}


@pytest.mark.parametrize(
    ("question", "answer", "tools"),
    [
        ("Who was born first, Ada Byron or Kurt Gold?", "Ada Byron", "search read_page read_page code"),
        ("Who is younger, Ada Byron or Kurt Gold?", "Kurt Gold", "search read_page read_page code"),
        ("Which one taught in Vienna, Ada Byron or Kurt Gold?", "Kurt Gold", "search read_page read_page"),
        ("Were Ada Byron and Kurt Gold of the same nationality?", "no", "search read_page read_page"),
        ("Were Ada Byron and Kurt Gold both mathematicians?", "yes", "search read_page read_page"),
        ("Were Ada Byron and Kurt Gold both logicians?", "no", "search read_page read_page"),
        ("What profession do Ada Byron and Kurt Gold share?", "mathematician", "search read_page read_page"),
        ("After whom is the Gold Prize named?", "Kurt Gold", "search read_page read_page"),
    ],
)
def test_the_reader_answers_from_what_it_read(question: str, answer: str, tools: str) -> None:
    found, calls = read(question, PEOPLE)
    assert found == answer and " ".join(call.name for call in calls) == tools


def test_the_reader_follows_what_the_pages_say() -> None:
    """Exchange two dates, and its answer changes: it knows nothing but what it is shown."""
    swapped = {title: text.translate(str.maketrans("89", "98")) for title, text in PEOPLE.items()}
    assert read("Who was born first, Ada Byron or Kurt Gold?", swapped)[0] == "Kurt Gold"
    undated = {title: text.replace("born 1815", "a person") for title, text in PEOPLE.items()}
    assert read("Who was born first, Ada Byron or Kurt Gold?", undated)[0] == ""


def test_options_and_names_are_found_in_questions() -> None:
    assert two_options("Who is older, Annie Morton or Terry Richardson?") == ("Annie Morton", "Terry Richardson")
    assert two_options("Are Yangzhou and Jiangyan District considered coastal cities?") == (
        "Yangzhou",
        "Jiangyan District",
    )
    assert two_options("what is the capital of the country") is None
    assert mentioned("Ed Wood (film)", "Was Ed Wood a director?") and not mentioned("Ed", "Edward did it")
    assert stem("painters") == stem("painter") == stem("painted") == "paint"
    assert content("Where was the painter born?") == ["paint", "born"]


def test_first_year_is_the_first_plausible_number() -> None:
    assert programs.first_year("In room 4711, 1999 of 2024 people") == 1999
    assert programs.first_year("no year in 3000 or 12345") == 9999


def test_choices_are_what_could_be_guessed() -> None:
    questions = library().questions.values()
    yes = next(question for question in questions if question.answer == "yes")
    assert choices(yes) == ("yes", "no")
    either = replace(yes, text="Who is older, Annie Morton or Terry Richardson?", answer="Terry Richardson")
    assert choices(either) == ("Annie Morton", "Terry Richardson")
    assert choices(replace(yes, text="Who wrote it?", answer="Ada")) is None
    assert choices(replace(yes, text="Was it Ada who wrote it?", answer="Ada")) is not None


def test_reference_is_accepted_with_exactly_horizon_calls(solved: list[tuple[Task, Environment, Answer]]) -> None:
    used: Counter[str] = Counter()
    for task, environment, answer in solved:
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task, verdict)
        assert len(environment.steps) == task.horizon
        assert not any(step.observation.error for step in environment.steps)
        assert [answer_key(part) for part in answer.text.removeprefix("Answer:").split(";")] == [
            answer_key(part) for part in task.reference.removeprefix("Answer:").split(";")
        ]
        used.update(step.call.name for step in environment.steps)
    assert min(used["search"], used["read_page"]) > 50


def corrupted(
    task: Task, environment: Environment, answer: Answer, rng: random.Random
) -> dict[str, tuple[Environment, Answer | None]]:
    """The reference solution spoilt in every way that must not pass."""
    parts = answer.text.removeprefix("Answer: ").split("; ")
    at = rng.randrange(len(parts))
    other = "no" if answer_key(parts[at]) == "yes" else "yes"
    steps = [i for i, step in enumerate(environment.steps) if set(step.observation.evidence) & set(task.evidence)]
    left_out = environment.steps[rng.choice(steps)].call.arguments["title"]
    again = DOMAIN.start(task)
    for step in environment.steps:
        if step.call.name != "code" and step.call.arguments.get("title") != left_out:
            again.call(step.call)
    searched = DOMAIN.start(task)
    for step in environment.steps:
        if step.call.name == "search":
            searched.call(step.call)
    return {
        "wrong answer": (environment, Answer(f"Answer: {'; '.join([*parts[:at], other, *parts[at + 1 :]])}")),
        "a question skipped": (environment, Answer(f"Answer: {'; '.join(parts[:at] + parts[at + 1 :])}")),
        "one answer more": (environment, Answer(f"{answer.text}; yes")),
        "wrong order": (environment, Answer(f"Answer: {'; '.join([*parts[1:], 'nothing'])}")),
        "no answer": (environment, None),
        "empty answer": (environment, Answer("")),
        "no work": (DOMAIN.start(task), answer),
        "a page skipped": (again, answer),
        "only searched": (searched, answer),
    }


def test_corrupted_solutions_are_refused(solved: list[tuple[Task, Environment, Answer]]) -> None:
    for task, environment, answer in solved:
        for name, (spoilt, given) in corrupted(task, environment, answer, random.Random(task.seed)).items():
            verdict = DOMAIN.verify(task, spoilt, given)
            assert not verdict.passed and verdict.score < 1 and not all(verdict.rubric.values()), (name, task)


@pytest.mark.long
def test_a_thousand_references_and_corruptions() -> None:
    accepted = refused = 0
    for horizon in (8, 12, 16, 32, 48):
        for task in make_tasks(horizon, 200):
            environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
            assert answer is not None
            accepted += DOMAIN.verify(task, environment, answer).passed and len(environment.steps) == horizon
            environment.close()
            spoilt = corrupted(task, environment, answer, random.Random(task.seed))
            refused += all(not DOMAIN.verify(task, *episode).passed for episode in spoilt.values())
    assert (accepted, refused) == (1000, 1000)


def test_the_published_answer_is_never_shown_to_the_expert(tasks: list[Task]) -> None:
    """Exchange a task's published answers and gold pages for others: the expert does the same as before."""
    for task in tasks[::7]:
        blind = replace(task, reference="Answer: x", evidence=("x",))
        one, first = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        two, second = solve(DOMAIN, blind, random.Random(0), 0.0, task.horizon)
        assert first == second and [s.call for s in one.steps] == [s.call for s in two.steps]
        one.close()
        two.close()
        for question in (library().questions[number] for number in task.state["questions"]):
            assert question.text in "".join(step.observation.text for step in one.steps)


def test_guesses_never_pass(tasks: list[Task]) -> None:
    """One question of a sheet at least is open, and always choosing the same way fails."""
    for task in tasks:
        environment = DOMAIN.start(task)
        assert not all(choices(library().questions[number]) for number in task.state["questions"])
        assert len(DOMAIN.guesses(task)) == 2
        for guess in DOMAIN.guesses(task):
            assert not DOMAIN.verify(task, environment, Answer(guess)).rubric["answer"]


def test_splits_share_no_question_and_no_gold_page(tasks: list[Task]) -> None:
    lib = library()
    pages: dict[str, set[str]] = {"train": set(), "validation": set(), "heldout": set()}
    for question in lib.questions.values():
        pages[question.split] |= set(question.pages)
    for one, other in combinations(pages.values(), 2):
        assert one and other and not one & other
    share = sum(question.split == "heldout" for question in lib.questions.values()) / len(lib.questions)
    assert 0.2 < share < 0.3
    for task in tasks:
        asked = [lib.questions[number] for number in task.state["questions"]]
        assert {question.split for question in asked} == {task.split}
        assert set(task.evidence) == {page for question in asked for page in question.pages}
        assert len(task.evidence) == 2 * len(asked), "no two questions of a sheet share a page"
    assert len({json.dumps(task.state["questions"]) for task in tasks}) == len(tasks)


def test_the_prompt_is_the_same_for_every_horizon(tasks: list[Task]) -> None:
    assert {len(task.prompt.split()) for task in tasks} == {len(tasks[0].prompt.split())}
    assert DOMAIN.offers((1, 4, 8, 16, 128)) == (8, 16, 128)
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


def test_a_sheet_shows_one_question_a_part(tasks: list[Task]) -> None:
    task = next(task for task in tasks if len(task.state["questions"]) >= 3)
    environment, sheet = DOMAIN.start(task), task.state["sheet"]
    first = environment.call(Call("read_page", {"title": sheet}))
    assert "Question 1 of " in first.text and "Note: the next question is part 2" in first.text
    last = environment.call(Call("read_page", {"title": sheet.lower(), "part": len(task.state["questions"])}))
    assert last.text.endswith("this was the last question") and not last.evidence
    beyond = environment.call(Call("read_page", {"title": sheet, "part": len(task.state["questions"]) + 1}))
    assert beyond.error and "part(s)" in beyond.text


def test_answers_are_compared_after_normalisation(solved: list[tuple[Task, Environment, Answer]]) -> None:
    task, environment, answer = solved[0]
    text = answer.text.removeprefix("Answer: ")
    for same in (f"answer: {text.upper()}.", f"I think so. Answer: the {text}", text.replace("; ", " ;")):
        assert DOMAIN.verify(task, environment, Answer(same)).passed, same
    assert answer_key("The U.S.-born  Ace") == "us born ace" and answer_key("An answer!") == "answer"


def test_noisy_expert_goes_astray_and_mostly_recovers() -> None:
    batch, passed, longer, missed = make_tasks(8, 30), 0, 0, 0
    for i, task in enumerate(batch):
        environment, answer = solve(DOMAIN, task, random.Random(i), 0.2, 32)
        passed += DOMAIN.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        missed += any(step.observation.error for step in environment.steps)
        environment.close()
    assert 0.75 * len(batch) < passed < len(batch)
    assert longer > len(batch) / 2 and missed > len(batch) / 10


@pytest.mark.parametrize(
    "call",
    [
        Call("search", {}),
        Call("search", {"query": ""}),
        Call("read_page", {"title": ["C"]}),
        Call("read_page", {"title": "no such page at all"}),
        Call("read_page", {"title": "Ed Wood", "part": 2}),
        Call("code", {"code": "1 / 0"}),
        Call("submit", {"answer": "yes"}),
    ],
)
def test_invalid_calls_are_observations(call: Call, tasks: list[Task]) -> None:
    environment = DOMAIN.start(tasks[0])
    observation = environment.call(call)
    assert observation.error and observation.text.startswith("error: ") and not observation.evidence
    environment.close()


def test_state_survives_json(tasks: list[Task]) -> None:
    again = replace(tasks[0], state=json.loads(json.dumps(tasks[0].state)))
    environment, answer = solve(DOMAIN, again, random.Random(0), 0.0, again.horizon)
    environment.close()
    assert DOMAIN.verify(again, environment, answer).passed


def digest() -> str:
    """Of tasks, and of noisy episodes on them."""
    parts: list[str] = []
    for task in make_tasks(8, 6):
        environment, answer = solve(DOMAIN, task, random.Random(task.seed), 0.3, 60)
        environment.close()
        parts.append(json.dumps([asdict(task), [asdict(step) for step in environment.steps], answer and answer.text]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_same_seed_gives_the_same_tasks_in_every_process() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    command = [sys.executable, "-c", "from test_hotpot import digest\nprint(digest())"]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest()
