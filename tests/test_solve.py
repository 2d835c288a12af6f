"""A policy as solver: rollouts seen by self-play."""

from __future__ import annotations

import random
from dataclasses import replace

from conftest import BUDGET, CountDomain
from test_rollout import ScriptedPolicy
from transformers import PreTrainedTokenizerFast

from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status
from openhorizon.domains.base import Call, Environment, Task
from openhorizon.kag import rules, selfplay
from openhorizon.kag.selfplay import Outcome
from openhorizon.kag.solve import DIED, PolicySolver


def test_a_policy_is_a_solver(tokenizer: PreTrainedTokenizerFast) -> None:
    """The student's place: episodes of ``agent.rollout`` pass the same rules, their text kept and their ids not."""

    def decide(prompt: str, seen: list[str]) -> str:
        if not seen:
            begin = int(prompt.split("from ")[1][:2])
            return write_action(Call("step", {"from": begin if begin % 2 else 13}))
        at = seen[-1].split("now ")[1].split(" done")[0].split("<")[0]
        return f"Answer: {at}" if "done" in seen[-1] else write_action(Call("step", {"from": int(at)}))

    domain = CountDomain()
    solver = PolicySolver({"count": domain}, ScriptedPolicy(tokenizer, decide), {"count": BUDGET}, 1.0)
    tasks = [domain.propose(random.Random(i), "train", 3, i) for i in range(6)]
    episodes = solver.solve([replace(task, prompt=task.prompt) for task in tasks if task], 1)
    for task, episode in zip(tasks, episodes, strict=True):
        assert task is not None
        if int(task.prompt[-2:]) % 2 == 0:
            assert (episode.status, episode.deaths) == (Status.ABORTED, 1)
            continue
        assert episode.status is Status.SOLVED
        assert rules.valid(episode) == rules.process_informative(episode) == ""
        assert len(episode.steps) == 3 and episode.steps[0].observation.evidence
        stored = selfplay.to_trajectory(Outcome(3, "", "", episode))
        assert stored.ids == [] and stored.tool_calls == 3 and stored.policy == "scripted"


def test_a_world_that_does_not_start_aborts_its_rollout_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    class Closed(CountDomain):
        def start(self, task: Task) -> Environment:
            if task.seed == 1:
                raise OSError("closed today")
            return super().start(task)

    domain = Closed()
    policy = ScriptedPolicy(tokenizer, lambda prompt, seen: "Answer: 0")
    tasks = [task for i in range(3) if (task := domain.propose(random.Random(i), "train", 2, i))]
    episodes = PolicySolver({"count": domain}, policy, {"count": BUDGET}, 1.0).solve(tasks, 1)
    assert [e.status for e in episodes] == [Status.FAILED, Status.ABORTED, Status.FAILED]
    assert episodes[1].verdict.reason == f"{DIED}: start: OSError: closed today"
