"""Self-play and the five acceptance rules, on a tiny domain of linked notes."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from notes import Notes, NotesEnvironment, some_task

from openhorizon import seeds
from openhorizon.agent.trajectory import Status
from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Step,
    Task,
    Tool,
    Verdict,
)
from openhorizon.kag import fingerprints, rules, selfplay
from openhorizon.kag.fingerprints import Fingerprints
from openhorizon.kag.rules import Answers
from openhorizon.kag.selfplay import Bounds, Memory, Outcome, Part, SelfPlay
from openhorizon.kag.solve import DIED, Episode, ExpertSolver, play, survive
from openhorizon.kag.steer import Region, SolveRates, Turns


def played(task: Task, noise: float = 0.0, max_calls: int = 99, seed: int = 5) -> Episode:
    return play(Notes(), task, seed, noise, max_calls)


# Rules: each alone accepts a good case and refuses a bad one.


def test_verifiable() -> None:
    good = played(some_task())
    assert rules.verifiable(good) == ""
    assert "no verifier" in rules.verifiable(replace(good, task=some_task(verifiers=())))
    assert "more than 2" in rules.verifiable(played(some_task(), max_calls=2))
    assert "wrong word" in rules.verifiable(played(some_task(reference="word8")))


def test_valid() -> None:
    assert rules.valid(played(some_task(), noise=0.3)) == ""
    assert "no answer after 3" in rules.valid(played(some_task(), noise=1.0, max_calls=3))
    assert "wrong word" in rules.valid(played(some_task(reference="word8")))


def test_process_informative_wants_two_distinct_decisions() -> None:
    good = played(some_task())
    assert rules.process_informative(good) == ""
    once = replace(good, steps=good.steps[:1])
    assert "1 distinct" in rules.process_informative(once)
    assert "1 distinct" in rules.process_informative(replace(good, steps=good.steps[:1] * 4)), (
        "a repeat decides nothing"
    )
    refused = Step(Call("read", {"note": "nowhere"}), Observation("error", error=True))
    assert "1 distinct" in rules.process_informative(replace(once, steps=(*once.steps, refused)))
    assert rules.process_informative(replace(once, task=some_task(1))) == "", "horizon 1 starts the curriculum"


def test_process_informative_counts_reasoning_where_there_are_no_tools() -> None:
    good = Episode(some_task(2), (), Answer("a", "first step. second step."), Verdict(True, 1.0, ""), 1)
    assert rules.process_informative(good) == ""
    assert "1 distinct" in rules.process_informative(replace(good, answer=Answer("a", "just so")))
    assert "0 distinct" in rules.process_informative(replace(good, answer=Answer("a")))


def test_evidence_covering() -> None:
    good = played(some_task())
    assert rules.evidence_covering(good, has_tools=True) == ""
    assert "n2, n3" in rules.evidence_covering(replace(good, steps=good.steps[:1]), has_tools=True)


def test_evidence_covering_without_tools_reads_the_rubric() -> None:
    told = Episode(some_task(), (), Answer("a"), Verdict(True, 1.0, "", {"rule 1": True, "rule 2": True}), 1)
    assert rules.evidence_covering(told, has_tools=False) == ""
    half = replace(told, verdict=Verdict(True, 0.5, "", {"rule 1": True, "rule 2": False}))
    assert "rule 2" in rules.evidence_covering(half, has_tools=False)
    assert "no rubric" in rules.evidence_covering(replace(told, verdict=Verdict(True, 1.0, "")), has_tools=False)


# The last rule: each way round the work is tried, and found where it exists.


def shortcut(task: Task, domain: Domain | None = None, common: tuple[str, ...] = ()) -> str:
    domain = domain or Notes()
    return rules.no_shortcut(domain, play(domain, task, 5, 0.0, 99), common)


def test_an_honest_task_has_no_shortcut() -> None:
    assert [shortcut(some_task(horizon), common=("word1", "word2")) for horizon in (2, 3, 8)] == [""] * 3


def test_the_answer_in_the_prompt_is_a_shortcut() -> None:
    assert "prompt" in shortcut(some_task(prompt="Start at n1. Is it Word7?"))
    assert shortcut(some_task(prompt="Start at n1. Is it word77?")) == "", "only whole words"
    assert "empty answer" in shortcut(some_task(reference="..."))


def test_words_of_the_prompt_are_given_to_the_verifier() -> None:
    """A verifier that accepts more than the reference's own words: no text is looked for, it is asked."""

    class Lenient(Notes):
        def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
            right = answer is not None and answer.text in (task.reference, "seven")
            return Verdict(right, float(right), "", {"answer": right})

    assert "words of the prompt are right: seven" in shortcut(some_task(prompt="Start at n1. Not seven."), Lenient())
    assert shortcut(some_task(prompt="Start at n1. Not eight."), Lenient()) == ""


def test_runs_of_the_prompt_hold_what_is_near_the_reference_and_some_of_all_the_rest() -> None:
    prompt = " ".join(f"w{i}" for i in range(1_000)) + " the red fox."
    found = rules.spans(prompt, "Red Fox")
    assert "red fox" in found
    assert len(found) == rules.SPANS
    assert len(rules.spans(prompt, "none of it")) == rules.SPANS, "where nothing is near, all over the prompt"


def test_a_guess_of_the_domain_is_a_shortcut() -> None:
    class Guessed(Notes):
        def guesses(self, task: Task) -> tuple[str, ...]:
            return ("word1", "word7")

    assert "a guess is right: word7" in shortcut(some_task(), Guessed())
    assert shortcut(some_task(reference="word7", state={"chain": ["n1", "n2", "n3"], "answer": "word7"})) == ""


def test_a_constant_answer_is_a_shortcut() -> None:
    assert "common answer is right: word7" in shortcut(some_task(), common=("word1", "word7"))
    assert Answers(["a"] * 2 + ["b", "c"]).common() == [], "twice is no habit"
    assert Answers(["a", "h"] * 8 + [f"once {i}" for i in range(16)]).common() == ["a", "h"], "several, not one"
    assert Answers(["a", "b"] * 50).common() == [], "of two answers that come equally often none pays"
    assert Answers(["a"] * 5).common() == ["a"], "always the same answer"


def test_the_common_answers_are_counted_in_bounded_memory() -> None:
    answers = Answers()
    for i in range(3 * rules.KEPT_ANSWERS):
        answers.add(f"word{i}")
        answers.add("often")
    assert len(answers.counts) <= rules.KEPT_ANSWERS
    assert answers.common() == ["often"]


def test_an_answer_leaked_early_is_a_shortcut() -> None:
    chain = ("n1", "word7", "n3", "n4", "n5", "n6")
    leaked = some_task(6, state={"chain": list(chain), "answer": "word7"}, evidence=chain)
    assert "observation 1 of 6" in shortcut(leaked)
    late = ("n1", "n2", "n3", "n4", "word7", "n6")
    assert shortcut(replace(leaked, state={"chain": list(late), "answer": "word7"}, evidence=late)) == "", (
        "near the end"
    )
    two = ("n1", "word7")
    task = some_task(2, state={"chain": list(two), "answer": "word7"}, evidence=two)
    assert shortcut(task) == "", "at horizon 2 the first observation may name the end"


def test_one_look_up_that_shows_the_answer_is_a_shortcut() -> None:
    """The reference never asks for the last note by its name, but the prompt tells it."""
    asked = some_task(prompt="Start at n1. Do not read n3.")
    assert 'one call shows the answer: read {"note": "n3"}' in shortcut(asked)
    assert shortcut(some_task(2, prompt="Start at n1. Do not read n2.")) == "", "from horizon 3 on"


def test_a_look_up_is_refuted_where_it_only_works_after_others() -> None:
    """All calls share an environment; what shows the answer there must show it alone, too."""

    class Counting(NotesEnvironment):
        def execute(self, call: Call) -> Observation:
            seen = super().execute(call)
            return Observation("word: word7") if len(self.steps) == 1 and seen.error else seen

    class Stateful(Notes):
        def start(self, task: Task) -> Environment:
            return Counting(task, self.tools)

    assert shortcut(some_task(), Stateful()) == ""


def test_look_ups_follow_the_schema() -> None:
    def tool(name: str, **properties: object) -> Tool:
        return Tool(name, "", {"type": "object", "properties": properties, "required": list(properties)})

    tools = (
        tool("find", query={"type": "string"}),
        tool("order", id={"type": "string", "pattern": "^o[0-9]+$"}),
        tool("ask", about={"enum": ["city", "code"]}, times={"type": "integer", "minimum": 2}),
        tool("run", code={"type": "string"}),
        tool("list"),
    )
    calls = list(rules.look_ups(tools, 'Order o17 of "Ana Lopez" from Bern.'))
    assert {"query": "Ana Lopez"} in [dict(call.arguments) for call in calls if call.name == "find"]
    assert [dict(call.arguments) for call in calls if call.name == "order"] == [{"id": "o17"}]
    assert {call.arguments["about"] for call in calls if call.name == "ask"} == {"city", "code"}
    assert all(call.arguments["times"] == 2 for call in calls if call.name == "ask")
    assert not [call for call in calls if call.name == "run"], "no phrase is a program"
    assert [dict(call.arguments) for call in calls if call.name == "list"] == [{}]


def test_short_answers_leak_only_where_they_stand_alone() -> None:
    assert rules._shows("note 7 of 12", "7") is False
    assert rules._shows("7.", "7") is True
    assert rules._shows("the word is word7", "word7") is True


def test_horizon_1_is_a_look_up_by_intent() -> None:
    assert shortcut(some_task(1, prompt="Start at n1. It is word7."), common=("word7",)) == ""


# The loop.

EASY = Bounds(max_proposals=4_000, region_proposals=500, min_yield=0.0)


def regions(*horizons: int) -> tuple[Region, ...]:
    return tuple(Region("notes", horizon) for horizon in horizons)


def self_play(
    domain: Domain | None = None, noise: float = 0.3, seed: int = 0, bounds: Bounds = EASY, memory: Memory | None = None
) -> SelfPlay:
    worlds = {"notes": domain or Notes()}
    return SelfPlay(worlds, ExpertSolver(worlds, noise, lambda h: h + 2), lambda h: h + 2, bounds, seed, 0, memory)


def demonstrations(count: int = 40, horizons: tuple[int, ...] = (1, 2, 4), **changes: object) -> Part:
    return replace(Part("demonstrations", count, regions(*horizons), tries=3), **changes)  # type: ignore[arg-type]


def expand(count: int = 40, noise: float = 0.3, seed: int = 0, domain: Domain | None = None) -> list[Outcome]:
    return list(self_play(domain, noise, seed).expand(demonstrations(count)))


def test_every_prefix_of_the_accepted_is_balanced_by_horizon() -> None:
    horizons = [outcome.horizon for outcome in expand() if not outcome.rule]
    assert len(horizons) == 40
    for end in range(1, 41):
        counts = Counter(horizons[:end])
        assert max(counts.values()) - min(counts[h] for h in (1, 2, 4)) <= 1


def test_worlds_take_turns_and_get_equal_shares() -> None:
    found = [Region("a", 1), Region("b", 1), Region("a", 2), Region("a", 3)]
    turns = Turns(found, 1.0, 10, SolveRates())
    dealt = Counter(turns.next() for _ in range(600))
    assert dealt == {found[0]: 100, found[1]: 300, found[2]: 100, found[3]: 100}


@pytest.mark.parametrize("floor", [1.0, 0.5])
def test_a_world_named_twice_gets_twice_the_share(floor: float) -> None:
    found = [Region("a", 1), Region("b", 1), Region("b", 1), Region("a", 2), Region("b", 3), Region("b", 3)]
    turns = Turns(found, floor, 10, SolveRates())
    dealt = Counter(turns.next().world for _ in range(600))
    assert dealt == {"a": 200, "b": 400}


def test_accepted_episodes_pass_and_rejected_ones_say_why() -> None:
    outcomes = expand()
    assert {o.rule for o in outcomes} >= {"", "valid", "no proposal"}
    for outcome in outcomes:
        if not outcome.rule:
            assert outcome.episode is not None
            assert outcome.episode.status is Status.SOLVED
            assert len(outcome.episode.steps) <= outcome.horizon + 2
        else:
            assert outcome.reason
    truncated = next(o for o in outcomes if o.rule == "valid")
    stored = selfplay.to_trajectory(truncated)
    assert stored.status is Status.TRUNCATED
    assert stored.answer is None
    assert stored.verdict.reason.startswith("valid: no answer")


def test_no_answer_is_common_enough_to_guess() -> None:
    class Skewed(Notes):
        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            self.words = 1 if rng.random() < 0.8 else 3
            return super().propose(rng, split, horizon, seed)

    few = [o.episode.task.reference for o in expand(90, domain=Skewed()) if not o.rule and o.horizon > 1 and o.episode]
    assert max(Counter(few).values()) <= len(few) * 0.6


def test_the_same_task_is_never_accepted_twice() -> None:
    memory = Memory()
    part = demonstrations(10, (2,))
    first = list(self_play(noise=0.0, memory=memory).expand(part))
    memory.proposals["train"] = 0  # the same draws once more
    again = self_play(noise=0.0, memory=memory).expand(part)
    outcomes = [next(again) for _ in range(len(first))]
    assert {o.rule for o in outcomes} == {"duplicate", "no proposal"}


def test_fingerprints_are_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "PENDING", 7)
    drawn = [random.Random(random.Random(i).randrange(900)).getrandbits(64) for i in range(2000)]
    found, plain = Fingerprints(), set[int]()
    for value in drawn:
        assert found.add(value) == (value not in plain)
        plain.add(value)
    assert len(found) == len(plain) > 400 and len(found._runs) < 6


def test_barred_prompts_and_pairs_are_dropped() -> None:
    task = next(o.episode.task for o in expand(1, 0.0) if o.episode and not o.rule)
    barring = {
        "shared prompt": Memory(barred_prompts={task.prompt}),
        "shared pair": Memory(barred_pairs=set(task.entity_pairs)),
        "contaminated": Memory(contaminated=lambda found: "seen" if found.prompt == task.prompt else ""),
    }
    for rule, memory in barring.items():
        found = list(self_play(noise=0.0, memory=memory).expand(demonstrations(1)))
        assert found[-1].rule == ""
        assert found[-1].episode
        assert found[-1].episode.task != task
        assert rule in {o.rule for o in found}


def test_the_same_seed_gives_the_same_outcomes_and_another_others() -> None:
    assert expand(seed=7) == expand(seed=7)
    assert expand(seed=7) != expand(seed=8)


# Bounds: each stops the run, in words.


def stopped(match: str, bounds: Bounds, part: Part | None = None, **changes: object) -> None:
    play = self_play(bounds=bounds, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=match):
        list(play.expand(part or demonstrations()))


def test_too_many_proposals_stop_the_run_with_the_rules_that_refused() -> None:
    stopped(
        r"generate\.notes: \d+ of 40 demonstrations after 30 proposals, stuck at notes at .*valid \d.*such as",
        replace(EASY, max_proposals=30),
        noise=1.0,
    )


def test_a_low_yield_stops_the_run_with_the_rules_that_refused() -> None:
    match = r"yield is under min_yield=0\.5.*in all: valid \d+.*no answer after"
    stopped(match, replace(EASY, min_yield=0.5), demonstrations(400), noise=0.9)


def test_a_region_that_gives_nothing_stops_the_run() -> None:
    class Short(Notes):
        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            return super().propose(rng, split, horizon, seed) if horizon < 4 else None

    stopped(
        r"notes at horizon 4 gave 0 demonstrations, then 50 refusals",
        replace(EASY, region_proposals=50),
        domain=Short(),
    )


def test_a_region_that_runs_dry_is_closed_and_the_others_go_on() -> None:
    class Few(Notes):
        left = 3

        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            task = super().propose(rng, split, horizon, seed)
            if task is not None and horizon == 4:
                self.left -= 1
            return task if self.left >= 0 or horizon < 4 else None

    play = self_play(Few(), noise=0.0, bounds=replace(EASY, region_proposals=50))
    accepted = Counter(o.horizon for o in play.expand(demonstrations(40)) if not o.rule)
    assert accepted.total() == 40
    assert accepted[4] == 3
    assert "notes at horizon 4 gave 3 demonstrations" in play.memory.closed[0]
    assert "no proposal" in play.memory.closed[0]


def test_nothing_asked_of_no_region_is_refused() -> None:
    stopped("no horizons", EASY, demonstrations(horizons=()))


# Worlds that break.


class Breaking(Notes):
    """Breaks at the calls, or starts, whose number is in ``at``."""

    def __init__(self, at: set[int], start: bool = False) -> None:
        super().__init__()
        self.at, self.breaks_at_start, self.count, self.open = at, start, 0, 0

    def start(self, task: Task) -> Environment:
        if self.breaks_at_start and self._hit():
            raise OSError("no world today")
        self.open += 1
        return BreakingEnvironment(task, self)

    def _hit(self) -> bool:
        self.count += 1
        return self.count in self.at


class BreakingEnvironment(NotesEnvironment):
    def __init__(self, task: Task, domain: Breaking) -> None:
        super().__init__(task, domain.tools)
        self.domain = domain

    def execute(self, call: Call) -> Observation:
        if not self.domain.breaks_at_start and self.domain._hit():
            raise RuntimeError("the world broke")
        return super().execute(call)

    def close(self) -> None:
        self.domain.open -= 1


@pytest.mark.parametrize("start", [False, True])
def test_a_world_that_breaks_once_changes_nothing_but_the_count_of_deaths(start: bool) -> None:
    whole = expand()
    domain, memory = Breaking({5, 40, 90}, start), Memory()
    broken = list(self_play(domain, memory=memory).expand(demonstrations()))
    assert [replace(o, episode=o.episode and replace(o.episode, deaths=0)) for o in broken] == whole
    assert memory.deaths == 3
    assert domain.open == 0, "every environment was closed"


def test_a_world_that_keeps_breaking_is_counted_and_the_region_proposed_again() -> None:
    domain = Breaking(set(range(50, 56)))
    outcomes = expand(domain=domain)
    assert sum(not o.rule for o in outcomes) == 40
    died = [o for o in outcomes if o.rule == DIED]
    assert died
    assert all("the world broke" in o.reason and not selfplay.is_stored(o) for o in died)
    assert domain.open == 0


def test_a_world_that_always_breaks_stops_the_run() -> None:
    with pytest.raises(ValueError, match=r"10 episodes in a row died with their environment.*no world today"):
        expand(domain=Breaking(set(range(9_999)), start=True))


def test_a_verifier_that_breaks_is_a_world_that_breaks() -> None:
    class Unjudged(Notes):
        def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
            raise KeyError("grader")

    episode = survive(some_task(), 1, lambda: play(Unjudged(), some_task(), 1, 0.0, 9))
    assert episode.status is Status.ABORTED
    assert "verify: KeyError" in episode.verdict.reason


def test_a_demonstration_that_came_with_the_task_is_replayed() -> None:
    class Given(Notes):
        def demonstration(self, task: Task) -> tuple[Call | Answer, ...] | None:
            return (*(Call("read", {"note": note}) for note in task.state["chain"]), Answer("word7"))

        def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
            raise AssertionError("nobody asks the expert")

    episode = play(Given(), some_task(), 1, 0.5, 99)
    assert (episode.status, episode.policy, len(episode.steps)) == (Status.SOLVED, "dataset", 3)


# Solvers that are models, and steering.


class Failing:
    """Solves a task with a chance that falls with its horizon; tries all of them at once, as a model does."""

    batch, persistent = 16, True

    def __init__(self, domain: Domain, chances: dict[int, float]) -> None:
        self.domain, self.chances = domain, chances

    def solve(self, tasks: Sequence[Task], seed: int) -> list[Episode]:
        found = []
        for i, task in enumerate(tasks):
            own = seeds.derive(seed, task.id, i)
            episode = play(self.domain, task, own, 0.0, 99)
            if random.Random(own).random() >= self.chances[task.horizon]:
                episode = replace(episode, answer=Answer("no"), verdict=Verdict(False, 0.0, "wrong", {"answer": False}))
            found.append(episode)
        return found


def model_play(chances: dict[int, float], seed: int = 0) -> SelfPlay:
    domain = Notes()
    return SelfPlay({"notes": domain}, Failing(domain, chances), lambda h: h + 2, EASY, seed)


def test_proposals_move_to_where_outcomes_are_mixed() -> None:
    chances = {1: 1.0, 2: 1.0, 4: 0.5, 8: 0.03}
    play = model_play(chances)
    part = Part("prompts", 240, regions(1, 2, 4, 8), tries=5, floor=0.2, every=20)
    tried = Counter(o.horizon for o in play.expand(part) if o.attempt)
    assert tried[4] > 1.5 * max(tried[1], tried[2], tried[8]), tried
    assert min(tried.values()) > 0.05 * tried.total() / 4, "every region keeps its floor"
    even = Counter(o.horizon for o in model_play(chances).expand(replace(part, floor=1.0)) if o.attempt)
    assert max(even.values()) == min(even.values())


def test_a_models_prompts_are_tasks_of_mixed_outcome() -> None:
    play = model_play({1: 1.0, 2: 1.0, 4: 0.5, 8: 0.03})
    part = Part("prompts", 40, regions(1, 4, 8), tries=5, solve_rate=(0.2, 0.8))
    outcomes = []
    with pytest.raises(ValueError, match=r"notes at horizon 1 gave 0 prompts, then \d+ refusals.*solve rate \d+"):
        outcomes.extend(play.expand(part))
    play = model_play({4: 0.5, 8: 0.2})
    outcomes = list(play.expand(replace(part, regions=regions(4, 8))))
    solved: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.attempt and outcome.episode:
            solved[outcome.episode.task.id] += outcome.episode.verdict.passed
    kept = [o.episode.task.id for o in outcomes if not o.rule and o.episode]
    assert len(kept) == 40
    assert {solved[name] for name in kept} <= {1, 2, 3, 4}
    assert {n for name, n in solved.items() if name not in kept} <= {0, 5}


def test_a_models_demonstrations_keep_one_solved_try_and_all_failures() -> None:
    outcomes = list(model_play({2: 0.5}).expand(Part("demonstrations", 30, regions(2), tries=5)))
    kept = Counter(o.episode.task.id for o in outcomes if not o.rule and o.episode)
    assert set(kept.values()) == {1} and len(kept) == 30
    stored = [o for o in outcomes if selfplay.is_stored(o)]
    assert {o.rule for o in stored} == {"", "valid"}
    assert sum(o.rule == selfplay.TRIED for o in outcomes) > 10, "further solved tries only measure"


def test_seeds_are_fixed_and_names_do_not_run_together() -> None:
    expected = int(hashlib.sha256(b"(0, 'notes', 'train', 1)").hexdigest()[:16], 16) // 2
    assert seeds.derive(0, "notes", "train", 1) == expected
    streams = [("a", "b"), ("ab",), (1,), ("1",), ("a", 1), ("a1",), ()]
    assert len({seeds.derive(0, *names) for names in streams}) == len(streams)
    assert all(0 <= seeds.derive(s, "x") < 2**63 for s in range(100))
    assert seeds.rng(1, "x").random() == random.Random(seeds.derive(1, "x")).random()
