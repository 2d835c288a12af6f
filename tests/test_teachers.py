"""The teachers' recipes: rewards against loops written out, the choice of tasks, and what each recipe trains on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openhorizon import profiles
from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import Config, TeachConfig, load
from openhorizon.domains.base import Answer, Call, Task, Verdict
from openhorizon.train.teachers import RECIPES, search, tool_calling
from openhorizon.train.teachers.phases import (
    Grpo,
    Sft,
    calls_of,
    dealt,
    efficiency_penalty,
    expected_reuse,
    graded,
    mixed,
    near_misses,
    repetition_penalty,
    turn_advantages,
    turn_rewards,
    well_formed,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    profiles.write("laptop", tmp_path)
    return load(tmp_path / "params.yaml")


def episode(calls: Sequence[str], solved: bool, score: float = 0.0, task: str = "t", wrong: int = 0) -> Trajectory:
    """Searches for these words, the first ``wrong`` of them invalid, then an answer."""
    turns = [Turn("prompt", "?")]
    for i, words in enumerate(calls):
        call = write_action(Call("search", {"query": words}, thought=f"thought {i}"))
        turns += [Turn("assistant", call), Turn("tool", f"about {words}", error=i < wrong)]
    turns.append(Turn("assistant", write_action(Answer("Answer: x"))))
    what = Task("search", task, "train", f"prompt {task}", 1, 0, {}, (), (), "x", ())
    status = Status.SOLVED if solved else Status.FAILED
    return Trajectory(what, tuple(turns), "x", status, Verdict(solved, score, ""), "p", 0)


def test_the_first_calls_are_free_then_each_costs_the_same() -> None:
    assert [efficiency_penalty(n, 3, 0.1) for n in (0, 3, 4, 6)] == pytest.approx([0, 0, 0.1, 0.3])


def test_repetition_counts_inside_the_window_up_to_the_cap() -> None:
    calls = list("abcacabbbb")

    def slow(window: int, penalty: float, cap: float) -> float:
        total = 0.0
        for i in range(len(calls)):
            if any(calls[j] == calls[i] for j in range(i) if i - j <= window):
                total += penalty
        return min(total, cap)

    for window in range(6):
        for cap in (0.15, 9.0):
            assert repetition_penalty(calls, window, 0.1, cap) == pytest.approx(slow(window, 0.1, cap))
    assert repetition_penalty(calls, 0, 0.1, 9.0) == 0


def test_a_call_is_the_same_whatever_was_thought_before_it() -> None:
    same, other, again = calls_of(episode(["copper", "zinc", "copper"], True))
    assert same == again != other


def test_search_rewards_short_clean_solutions(config: Config) -> None:
    block = replace(
        config.teach["search"].reward, process_weight=0.5, free_calls=2, call_penalty=0.1, repeat_window=2,
        repeat_penalty=0.2, repeat_cap=0.3, format_weight=0.4,
    )  # fmt: skip
    assert search.reward(episode(["a", "b"], True, 1.0), block) == pytest.approx(1.5 + 0.4)
    assert search.reward(episode(["a", "b", "a"], True, 1.0), block) == pytest.approx(1.5 - 0.1 - 0.2 + 0.4)
    long = episode(["a"] * 8, False, 0.2, wrong=4)
    assert search.reward(long, block) == pytest.approx(0.1 - 0.6 - 0.3 + 0.4 * 0.5)
    assert well_formed(replace(long, answer=None)) == 0.0
    assert graded(block)(replace(episode([], True, 0.6), status=Status.TRUNCATED)) == pytest.approx(0.3)


def test_papo_ranks_failures_and_never_successes() -> None:
    group = [episode([], True, 1.0), episode([], True, 0.5), episode([], False, 0.8), episode([], False, 0.2)]
    found = tool_calling.papo(0.5)(group)
    outcomes = torch.tensor([1.0, 1.0, -1.0, -1.0])  # mean 0.5, deviation 0.5
    assert torch.allclose(found, outcomes + 0.5 * torch.tensor([0.0, 0.0, 1.0, -1.0]), atol=1e-4)


def test_turns_are_told_what_they_did_themselves() -> None:
    what = replace(episode([], True).task, evidence=("zinc", "copper", "iron", "tin"))
    turns = (
        Turn("prompt", "?"),
        Turn("assistant", "a"), Turn("tool", "both", evidence=("zinc", "copper", "lead")),
        Turn("assistant", "b"), Turn("tool", "again", evidence=("zinc",)),
        Turn("assistant", "c"), Turn("tool", "no such call", error=True),
        Turn("assistant", "d"), Turn("tool", "iron", evidence=("iron",)),
        Turn("assistant", "answer"),
    )  # fmt: skip
    one = replace(episode([], True), task=what, turns=turns)
    other = replace(one, turns=turns[:3])
    assert turn_rewards(one) == [0.5, 0.0, -1.0, 0.25, 0.0] and turn_rewards(other) == [0.5]
    found, rewards = turn_advantages([one, other]), torch.tensor([0.5, 0.0, -1.0, 0.25, 0.0, 0.5])
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    assert [len(turns) for turns in found] == [5, 1]
    assert torch.allclose(torch.cat(found), expected, atol=1e-4)


def test_mixed_keeps_tasks_within_reach_and_near_misses_the_nearest_first() -> None:
    always = [episode([], True, 1.0, "always")] * 3
    never = [episode([], False, 0.1, "never")] * 3
    near = [episode([], False, 0.9, "near")] * 3
    both = [episode([], True, 1.0, "both"), episode([], False, 0.5, "both")]
    tried = [always, never, near, both]
    assert [task.id for task in mixed(tried, 5)] == ["both"]
    assert [task.id for task in near_misses(tried, 5)] == ["near", "both", "never"]
    assert [task.id for task in near_misses(tried, 1)] == ["near"]
    assert mixed([], 5) == near_misses([always], 5) == []


def test_expected_reuse_as_in_section_4_2() -> None:
    assert expected_reuse(40, 16, 8, 64) == 80


def test_every_recipe_has_its_phases_in_the_paper_s_order(config: Config) -> None:
    def names(domain: str, **changes: object) -> list[str]:
        block = replace(config.teach[domain], **changes)  # type: ignore[arg-type]
        return [phase.name for phase in RECIPES[block.recipe](block)]

    assert names("search") == names("engineering") == names("scientific_agent") == ["sft", "grpo"]
    assert names("tool_calling") == ["sft", "grpo"]
    assert names("science", first=("science/closed",))[:2] == ["sft_reasoning", "sft_tools"]
    assert names("instruction", tokens=0) == ["grpo_rules", "grpo_match"]
    chosen = {d: {p.select for p in RECIPES[t.recipe](t) if isinstance(p, Grpo)} for d, t in config.teach.items()}
    assert chosen["tool_calling"] == {near_misses} and chosen["search"] == {mixed}


def test_a_budget_is_dealt_over_the_phases_of_its_kind(config: Config) -> None:
    block: TeachConfig = replace(config.teach["instruction"], first_share=0.25)
    phases = RECIPES["instruction"](block)
    assert dealt(1000, phases, Sft) == {"sft": 1000}
    assert dealt(40, phases, Grpo) == {"grpo_rules": 10, "grpo_match": 30}
    assert dealt(1, phases, Grpo) == {"grpo_rules": 1, "grpo_match": 1}
    assert dealt(0, phases, Grpo) == {"grpo_rules": 0, "grpo_match": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": ["search"]}, r"teach\.science\.first: world 'search' is not generated; generate has science"),
        ({"first_share": 1.5}, r"teach\.science\.first_share: 1\.5 is not between 0 and 1"),
        ({"recipe": "papo"}, r"teach\.science\.recipe: 'papo' is none of search, science"),
        ({"grpo": {"group": 1}}, r"teach\.science\.grpo\.group: 1 is less than 2"),
        ({"grpo": {"tries": 1}}, r"teach\.science\.grpo\.tries: 1 is less than 2"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    config: Config, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    import yaml

    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["teach"]["science"] = profiles.merge(params["teach"]["science"], changes)
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "params.yaml")
