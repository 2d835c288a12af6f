"""Episodes: statuses, budgets, retries, masks; with a scripted policy, so without a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import BUDGET, CountDomain
from transformers import PreTrainedTokenizerFast

from openhorizon.agent.render import Renderer, read_action, render_trajectory, write_action
from openhorizon.agent.rollout import Conversation, rollout
from openhorizon.agent.trajectory import Status, Trajectory, Turn, read_trajectories, write_trajectories
from openhorizon.domains.base import Answer, Call, Task, Verdict


class ScriptedPolicy:
    """Writes what ``decide(prompt, observations)`` says, or runs out of turn tokens where it says None."""

    name = "scripted"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, decide: Callable[[str, list[str]], str | None]) -> None:
        self.renderer, self.decide = Renderer(tokenizer), decide

    def converse(
        self,
        conversations: Sequence[Conversation],
        temperature: float,
        progress: Any,
    ) -> None:
        for talk in conversations:
            prompt, seen = self.renderer.text(talk.prompt_ids), []
            while True:
                text = self.decide(prompt, seen)
                ids = self.renderer.assistant(text or "cut")
                fed = talk.reply(ids if text else ids[:-1], [-0.5] * (len(ids) - (text is None)), text is not None)
                if fed is None:
                    break
                seen.append(self.renderer.text(fed))


def count_up(prompt: str, seen: list[str]) -> str:
    if seen and "done" in seen[-1]:
        return f"Answer: {seen[-1].split('now ')[1].split(' done')[0]}"
    at = int(seen[-1].split("now ")[1].split("<")[0]) if seen else int(prompt.split("from ")[1].split("<")[0])
    return write_action(Call("step", {"from": at}))


def task(domain: CountDomain, horizon: int, begin: int = 40) -> Task:
    made = domain.propose(random.Random(begin), "train", horizon, begin)
    assert made is not None
    return made


def run(
    tokenizer: PreTrainedTokenizerFast, decide: Callable[[str, list[str]], str | None], tasks: list[Task]
) -> list[Trajectory]:
    return rollout({"count": CountDomain()}, tasks, ScriptedPolicy(tokenizer, decide), {"count": BUDGET}, 1.0, 0)


def test_solved_failed_truncated(tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain) -> None:
    one = [task(count_domain, 3)]
    assert run(tokenizer, count_up, one)[0].status is Status.SOLVED
    assert run(tokenizer, lambda p, s: "Answer: 1", one)[0].status is Status.FAILED
    assert run(tokenizer, lambda p, s: None, one)[0].status is Status.TRUNCATED
    again = write_action(Call("step", {"from": 30}))
    looping = run(tokenizer, lambda p, s: again, one)[0]
    assert looping.status is Status.TRUNCATED and looping.tool_calls == 7  # ceil(1.5 * 3) + 2


def test_a_seed_depends_on_the_task_and_its_samples_alone(
    tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain
) -> None:
    a, b = task(count_domain, 2, 40), task(count_domain, 3, 41)
    together, alone = run(tokenizer, count_up, [a, b, a]), run(tokenizer, count_up, [b])
    assert together[1].seed == alone[0].seed
    assert len({t.seed for t in together}) == 3


def test_a_limit_of_turns_ends_an_episode_before_its_budget(
    tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain
) -> None:
    tasks = [task(count_domain, horizon, begin) for horizon, begin in ((1, 40), (2, 30), (3, 20))]
    policy, budgets, domains = ScriptedPolicy(tokenizer, count_up), {"count": BUDGET}, {"count": count_domain}
    whole = rollout(domains, tasks, policy, budgets, 1.0, 0)
    limited = rollout(domains, tasks, policy, budgets, 1.0, 0, max_turns=3)
    assert [t.status for t in whole] == [Status.SOLVED] * 3
    assert [t.status for t in limited] == [Status.SOLVED, Status.SOLVED, Status.TRUNCATED]
    assert limited[:2] == whole[:2]
    assert sum(turn.role == "assistant" for turn in limited[2].turns) == 3
    assert limited[2].turns == whole[2].turns[: len(limited[2].turns)]


def test_a_broken_environment_is_retried_and_then_aborted(
    tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain
) -> None:
    tries: list[int] = []

    def breaks_twice(prompt: str, seen: list[str]) -> str:
        if not seen:
            tries.append(1)
        return write_action(Call("step", {"from": 13})) if len(tries) <= 2 else count_up(prompt, seen)

    assert run(tokenizer, breaks_twice, [task(count_domain, 2)])[0].status is Status.SOLVED
    aborted = run(tokenizer, lambda p, s: write_action(Call("step", {"from": 13})), [task(count_domain, 2)])[0]
    assert aborted.status is Status.ABORTED and "the world broke" in aborted.verdict.reason


@pytest.mark.parametrize(
    "text",
    ["<tool_call>{not json}</tool_call>", "<tool_call>", '<tool_call>{"name": "step"}</tool_call>',
     '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
     '<tool_call>{"name": "step", "arguments": {"from": "x"}}</tool_call>', "<tool_call>" + "[" * 9999],
)  # fmt: skip
def test_an_invalid_call_is_an_observation(
    tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain, text: str
) -> None:
    result = run(tokenizer, lambda p, s: text if not s else "Answer: 0", [task(count_domain, 2)])[0]
    assert [turn.error for turn in result.turns if turn.role == "tool"] == [True]


def test_loss_mask_marks_generated_tokens_only(tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain) -> None:
    result = run(tokenizer, count_up, [task(count_domain, 2)])[0]
    trained = [token for token, mask in zip(result.ids, result.loss_mask, strict=True) if mask]
    assert trained == [token for turn in result.turns if turn.role == "assistant" for token in turn.ids]
    assert len(result.logprobs) == len(result.ids)
    assert all((logprob != 0) == mask for logprob, mask in zip(result.logprobs, result.loss_mask, strict=True))


def test_a_demonstration_renders_to_the_ids_of_its_episode(
    tokenizer: PreTrainedTokenizerFast, count_domain: CountDomain, tmp_path: Any
) -> None:
    """The same text gives the same ids whether it was rolled out or written by the expert: no template drift."""
    result = run(tokenizer, count_up, [task(count_domain, 3)])[0]
    bare = Trajectory(
        result.task, tuple(Turn(t.role, t.text) for t in result.turns), result.answer, result.status,
        Verdict(True, 1.0, ""), "expert", 0,
    )  # fmt: skip
    write_trajectories(tmp_path / "t.parquet", [bare, result])
    read = read_trajectories(tmp_path / "t.parquet")
    assert read == [bare, result]
    assert render_trajectory(Renderer(tokenizer), {"count": count_domain}, read[0]).ids == result.ids
    whole = tokenizer.apply_chat_template(
        [{"role": "system", "content": count_domain.system}, {"role": "user", "content": result.task.prompt}]
        + [{"role": t.role, "content": t.text} for t in result.turns[1:]],
        tokenize=False,
    )
    assert tokenizer.encode(whole, add_special_tokens=False) == result.ids


@pytest.mark.parametrize(
    "action",
    [Answer("Answer: Paris"), Answer("two", "one"), Call("find", {"name": 'A "B"', "n": 3}), Call("x", {}, "because")],
)
def test_actions_survive_writing_and_reading(action: Any) -> None:
    assert read_action(write_action(action)) == action


def test_a_truncated_file_is_named(tmp_path: Any) -> None:
    path = tmp_path / "t.parquet"
    write_trajectories(path, [])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"t\.parquet"):
        read_trajectories(path)
