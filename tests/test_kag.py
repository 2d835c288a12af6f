"""The knowledge-action graph and the five acceptance rules, on a tiny domain of linked notes."""

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from openhorizon import seeds
from openhorizon.agent.trajectory import Status, Trajectory
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
    split_of,
)
from openhorizon.kag import graph, selfplay, store
from openhorizon.kag.selfplay import Episode, Memory, Outcome

READ = Tool(
    "read",
    "Read a note.",
    {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"], "additionalProperties": False},
)


class Notes(Domain):
    """A chain of notes, each naming the next; the last one holds the word to answer with."""

    name = "notes"
    system = "Follow the notes."
    tools = (READ,)

    def __init__(self, words: int = 500) -> None:
        self.words = words

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        chain = [f"n{i}" for i in rng.sample(range(10_000), horizon)]
        answer = f"word{rng.randrange(self.words)}"
        pair = (chain[0], answer)
        if split_of(pair) != split:
            return None
        prompt = f"Start at {chain[0]}. Which word is at the end?"
        state = {"chain": chain, "answer": answer}
        return Task(
            "notes", f"notes-{seed}", split, prompt, horizon, seed, state, tuple(chain), ("answer",), answer, (pair,)
        )

    def start(self, task: Task) -> Environment:
        return NotesEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        note = prompt.split()[2].rstrip(".")
        while True:
            if rng.random() < noise:
                yield Call("read", {"note": "nowhere"})
            seen = yield Call("read", {"note": note})
            if seen.text.startswith("word: "):
                yield Answer(seen.text.removeprefix("word: "))
                return
            note = seen.text.removeprefix("next: ")

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        right = answer is not None and answer.text == task.reference
        covered = set(task.evidence) <= environment.consulted()
        return Verdict(right and covered, float(right), "right" if right else "wrong word", {"answer": right})


class NotesEnvironment(Environment):
    def execute(self, call: Call) -> Observation:
        chain, note = self.task.state["chain"], call.arguments["note"]
        if note not in chain:
            return Observation("error: no such note", error=True)
        at = chain.index(note)
        text = f"word: {self.task.state['answer']}" if at + 1 == len(chain) else f"next: {chain[at + 1]}"
        return Observation(text, (note,))


def some_task(horizon: int = 3, **changes: object) -> Task:
    chain = tuple(f"n{i}" for i in range(1, horizon + 1))
    state = {"chain": list(chain), "answer": "word7"}
    task = Task(
        "notes",
        "t",
        "train",
        f"Start at {chain[0]}.",
        horizon,
        1,
        state,
        chain,
        ("answer",),
        "word7",
        (("n1", "word7"),),
    )
    return replace(task, **changes)  # type: ignore[arg-type]


def played(task: Task, noise: float = 0.0, max_calls: int = 99, seed: int = 5) -> Episode:
    return selfplay.play(Notes(), task, seed, noise, max_calls)


def trajectory(task: Task | None = None, noise: float = 0.0, seed: int = 5) -> Trajectory:
    return selfplay.to_trajectory(Outcome(3, "", "", played(task or some_task(), noise, seed=seed)))


# Rules: each alone accepts a good case and refuses a bad one.


def test_verifiable() -> None:
    good = played(some_task())
    assert selfplay.verifiable(good) == ""
    assert "no verifier" in selfplay.verifiable(replace(good, task=some_task(verifiers=())))
    assert "more than 2" in selfplay.verifiable(played(some_task(), max_calls=2))
    assert "wrong word" in selfplay.verifiable(played(some_task(reference="word8")))


def test_valid() -> None:
    assert selfplay.valid(played(some_task(), noise=0.3)) == ""
    assert "no answer after 3" in selfplay.valid(played(some_task(), noise=1.0, max_calls=3))
    assert "wrong word" in selfplay.valid(played(some_task(reference="word8")))


def test_process_informative_wants_two_distinct_decisions() -> None:
    good = played(some_task())
    assert selfplay.process_informative(good) == ""
    once = replace(good, steps=good.steps[:1])
    assert "1 distinct" in selfplay.process_informative(once)
    assert "1 distinct" in selfplay.process_informative(replace(good, steps=good.steps[:1] * 4)), (
        "a repeat decides nothing"
    )
    refused = Step(Call("read", {"note": "nowhere"}), Observation("error", error=True))
    assert "1 distinct" in selfplay.process_informative(replace(once, steps=(*once.steps, refused)))
    assert selfplay.process_informative(replace(once, task=some_task(1))) == "", "horizon 1 starts the curriculum"


def test_process_informative_counts_reasoning_where_there_are_no_tools() -> None:
    good = Episode(some_task(2), (), Answer("a", "first step. second step."), Verdict(True, 1.0, ""), 1)
    assert selfplay.process_informative(good) == ""
    assert "1 distinct" in selfplay.process_informative(replace(good, answer=Answer("a", "just so")))
    assert "0 distinct" in selfplay.process_informative(replace(good, answer=Answer("a")))


def test_evidence_covering() -> None:
    good = played(some_task())
    assert selfplay.evidence_covering(good, has_tools=True) == ""
    assert "n2, n3" in selfplay.evidence_covering(replace(good, steps=good.steps[:1]), has_tools=True)


def test_evidence_covering_without_tools_reads_the_rubric() -> None:
    told = Episode(some_task(), (), Answer("a"), Verdict(True, 1.0, "", {"rule 1": True, "rule 2": True}), 1)
    assert selfplay.evidence_covering(told, has_tools=False) == ""
    half = replace(told, verdict=Verdict(True, 0.5, "", {"rule 1": True, "rule 2": False}))
    assert "rule 2" in selfplay.evidence_covering(half, has_tools=False)
    assert "no rubric" in selfplay.evidence_covering(replace(told, verdict=Verdict(True, 1.0, "")), has_tools=False)


def test_no_shortcut() -> None:
    good = played(some_task())
    assert selfplay.no_shortcut(good, "word1") == ""
    assert "most common" in selfplay.no_shortcut(good, "word7")
    assert "prompt" in selfplay.no_shortcut(replace(good, task=some_task(prompt="Is it Word7?")), "")
    assert selfplay.no_shortcut(replace(good, task=some_task(prompt="Is it word77?")), "") == "", "only whole words"
    for form in ("N2", "Answer: n2."):
        assert "first observation" in selfplay.no_shortcut(replace(good, task=some_task(reference=form)), "")
    two = replace(good, task=some_task(2, reference="n2"))
    assert selfplay.no_shortcut(two, "") == "", "at horizon 2 the first observation has to name the end"
    assert selfplay.no_shortcut(replace(good, task=some_task(reference="n3")), "") == "", "n3 is seen only later"
    assert "empty" in selfplay.no_shortcut(replace(good, task=some_task(reference="...")), "")
    one = played(some_task(1))
    assert selfplay.no_shortcut(one, "word7") == "", "horizon 1 is a look-up by intent"


# The loop.


def expand(
    count: int = 40, noise: float = 0.3, words: int = 500, max_proposals: int = 2_000, seed: int = 0
) -> list[Outcome]:
    found = selfplay.expand(
        Notes(words), "train", (1, 2, 4), count, noise, lambda h: h + 2, seed, Memory(max_proposals)
    )
    return list(found)


def test_every_prefix_of_the_accepted_is_balanced_by_horizon() -> None:
    horizons = [outcome.horizon for outcome in expand() if not outcome.rule]
    assert len(horizons) == 40
    for end in range(1, 41):
        counts = Counter(horizons[:end])
        assert max(counts.values()) - min(counts[h] for h in (1, 2, 4)) <= 1


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
    few = [o.episode.task.reference for o in expand(60, words=3) if not o.rule and o.horizon > 1 and o.episode]
    assert max(Counter(few).values()) <= len(few) * 0.45


def test_the_same_task_is_never_accepted_twice() -> None:
    memory = Memory(400)
    first = list(selfplay.expand(Notes(), "train", (2,), 10, 0.0, lambda h: h, 3, memory))
    memory.proposals["train"] = 0  # the same draws once more
    again = selfplay.expand(Notes(), "train", (2,), 1, 0.0, lambda h: h, 3, memory)
    outcomes = [next(again) for _ in range(len(first))]
    assert {o.rule for o in outcomes} == {"duplicate", "no proposal"}


def test_barred_prompts_and_pairs_are_dropped() -> None:
    task = next(o.episode.task for o in expand(1, 0.0) if o.episode and not o.rule)
    for memory in (Memory(50, barred_prompts={task.prompt}), Memory(50, barred_pairs=set(task.entity_pairs))):
        found = list(selfplay.expand(Notes(), "train", (1, 2, 4), 1, 0.0, lambda h: h + 2, 0, memory))
        assert found[-1].rule == ""
        assert found[-1].episode
        assert found[-1].episode.task != task
        assert {"shared prompt", "shared pair"} & {o.rule for o in found}


def test_a_low_yield_raises_with_the_rules_that_refused() -> None:
    with pytest.raises(
        ValueError, match=r"generate\.notes: \d+ of 40 train tasks after 30 proposals.*horizon \d.*valid \d"
    ):
        expand(noise=1.0, max_proposals=30)


def test_the_same_seed_gives_the_same_outcomes_and_another_others() -> None:
    assert expand(seed=7) == expand(seed=7)
    assert expand(seed=7) != expand(seed=8)


def test_seeds_are_fixed_and_names_do_not_run_together() -> None:
    expected = int(hashlib.sha256(b"(0, 'notes', 'train', 1)").hexdigest()[:16], 16) // 2
    assert seeds.derive(0, "notes", "train", 1) == expected
    streams = [("a", "b"), ("ab",), (1,), ("1",), ("a", 1), ("a1",), ()]
    assert len({seeds.derive(0, *names) for names in streams}) == len(streams)
    assert all(0 <= seeds.derive(s, "x") < 2**63 for s in range(100))
    assert seeds.rng(1, "x").random() == random.Random(seeds.derive(1, "x")).random()


# The graph.


def test_graph_of_a_trajectory() -> None:
    built = graph.of_trajectory("t", trajectory())
    assert [node.id for node in built.nodes if node.kind == "action"] == [f"action:t/{i}" for i in range(4)]
    assert {node.id for node in built.nodes if node.kind == "corpus"} == {"corpus:n1", "corpus:n2", "corpus:n3"}
    edges = {(edge.kind, edge.source, edge.target, edge.label) for edge in built.edges}
    assert ("dependency", "observation:t/prompt", "action:t/0", "") in edges, "n1 stands in the question"
    assert ("dependency", "observation:t/0", "action:t/1", "") in edges, "n2 stands in the first observation"
    assert ("dependency", "observation:t/2", "action:t/3", "") in edges, "the answer stands in the last observation"
    assert ("production", "action:t/1", "observation:t/1", "") in edges
    assert ("support", "corpus:n2", "observation:t/1", "") in edges
    assert ("action-transition", "action:t/2", "action:t/3", "") in edges
    assert ("verification", "verifier:answer", "action:t/3", "passed") in edges
    assert [record.verdict for record in built.records] == [None, None, None, True]
    assert built.records[1].state == ("observation:t/0", "corpus:n1")


def test_states_hold_only_what_was_seen_before() -> None:
    built = graph.build([trajectory(noise=0.5, seed=s) for s in range(20)])
    made_by = {edge.target: edge.source for edge in built.edges if edge.kind == "production"}
    for record in built.records:
        for item in record.state:
            if item in made_by:
                name, _, step = made_by[item].removeprefix("action:").rpartition("/")
                assert (name, True) == (record.trajectory, int(step) < record.step)


def test_abilities() -> None:
    task = some_task()
    steps = [("n1", "next: n2"), ("zz", None), ("n1", "next: n2"), ("n2", "next: n3"), ("n1", "next: n2")]
    taken = tuple(
        Step(Call("read", {"note": note}), Observation(text, (note,)) if text else Observation("error", error=True))
        for note, text in steps
    )
    episode = Episode(task, taken, Answer("word1"), Verdict(False, 0.0, "wrong"), 1)
    records = graph.of_trajectory("t", selfplay.to_trajectory(Outcome(3, "valid", "wrong", episode))).records
    assert records[0].abilities == ("information acquisition", "tool calling")
    assert records[1].abilities == ("tool calling",)
    assert records[1].verdict is False
    assert "executable iteration" in records[2].abilities
    assert "evidence verification" in records[2].abilities
    assert "information acquisition" not in records[2].abilities
    assert "constraint tracking" in records[4].abilities, "n1 was last said in the question"
    assert records[5].abilities == ("evidence verification",)
    assert records[5].verdict is False
    assert all(record.abilities for record in records)


def test_without_tools_an_action_is_a_reasoning_step() -> None:
    task = some_task(2, prompt="Facts: n1 is red. n2 is blue.")
    episode = Episode(task, (), Answer("blue", "n1 is red\nn2 is blue"), Verdict(True, 1.0, ""), 1)
    built = graph.of_trajectory("t", selfplay.to_trajectory(Outcome(2, "", "", episode)))
    assert [node.text for node in built.nodes if node.kind == "action"] == ["n1 is red", "n2 is blue", "blue"]
    assert [record.abilities for record in built.records] == [("constraint tracking",)] * 2 + [
        ("evidence verification",)
    ]
    assert graph.Edge("support", "corpus:n1", "observation:t/prompt") in built.edges


def test_failed_and_solved_share_one_graph_and_ids_are_unique() -> None:
    wrong = trajectory(some_task(reference="word8"))
    built = graph.build([trajectory(replace(some_task(), id="u")), wrong])
    assert {edge.label for edge in built.edges if edge.kind == "verification"} == {"passed", "failed"}
    assert len({node.id for node in built.nodes}) == len(built.nodes)
    known = {node.id for node in built.nodes}
    assert all(edge.source in known and edge.target in known for edge in built.edges)
    with pytest.raises(ValueError, match="twice"):
        graph.build([wrong, wrong])


def test_graph_round_trip(tmp_path: Path) -> None:
    built = graph.build([trajectory(noise=0.5, seed=s) for s in range(5)])
    store.write_graph(tmp_path / "graph", built)
    assert store.read_graph(tmp_path / "graph") == built
    store.write_graph(tmp_path / "empty", graph.Graph((), (), ()))
    assert store.read_graph(tmp_path / "empty") == graph.Graph((), (), ())


def test_a_damaged_graph_is_refused_with_its_path(tmp_path: Path) -> None:
    store.write_graph(tmp_path, graph.build([trajectory()]))
    (tmp_path / "edges.parquet").write_bytes((tmp_path / "edges.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"edges\.parquet"):
        store.read_graph(tmp_path)
    (tmp_path / "edges.parquet").write_bytes((tmp_path / "nodes.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"edges\.parquet.*columns"):
        store.read_graph(tmp_path)
