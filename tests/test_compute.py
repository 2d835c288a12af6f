"""What training says that it spent, against a count by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import BUDGET, MACHINE, CountDomain
from test_training import DISTILL, OPTIM, Log, tasks

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Trajectory
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train import distillation
from openhorizon.train.compute import Meter, active_parameters
from openhorizon.train.router import Router


def by_hand(checkpoint: Checkpoint) -> int:
    """Parameters that compute a token: 2 of the 4 experts, all of the rest."""
    model = checkpoint.model
    experts = sum(
        p.numel() for name, p in model.named_parameters() if "experts.gate_up" in name or "experts.down" in name
    )
    every = sum(p.numel() for p in model.parameters())
    return every - experts + experts * 2 // 4


def test_two_of_four_experts_compute_a_token(tiny: Callable[..., Checkpoint]) -> None:
    for family in ("lfm2_moe", "qwen3_moe"):
        checkpoint = tiny(family)
        assert active_parameters(checkpoint.model) == by_hand(checkpoint) < checkpoint.model.num_parameters()


def test_forward_costs_two_a_parameter_and_training_six(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint, meter = tiny(), Meter()
    meter.forward("rollout", checkpoint.model, 10)
    meter.forward("scoring", checkpoint.model, 3)
    meter.trained("update", checkpoint.model, 7)
    assert meter.figures() == {
        "spent_flops": (2 * 10 + 2 * 3 + 6 * 7) * by_hand(checkpoint), "spent_tokens_forward": 13,
        "spent_tokens_trained": 7, "spent_tokens@rollout": 10, "spent_tokens@scoring": 3, "spent_tokens@update": 7,
    }  # fmt: skip


@pytest.mark.parametrize("aggregation", ["domain", "dn_sigma"])
def test_distillation_counts_rollouts_scores_and_updates(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch, aggregation: str
) -> None:
    """The teacher is of another family, so that its parameters count for what it read; dn_sigma reads once more."""
    student, teacher = tiny(), tiny("qwen3_moe", seed=3)
    seen: list[Trajectory] = []

    def watched(*arguments: Any, **options: Any) -> list[Trajectory]:
        seen.extend(rollout(*arguments, **options))
        return seen[-4:]

    monkeypatch.setattr(distillation, "rollout", watched)
    config = replace(DISTILL, iterations=2, prompts=4, updates=2, top_k=4, aggregation=aggregation, optim=OPTIM)
    router, meter = Router(student, [Teacher("count", teacher)], ["count"], "hard", 0), Meter()
    domains: Any = {"count": CountDomain()}
    log: Any = Log()
    distillation.distil(
        LocalPolicy(student, 8), router, domains, {"count": tasks(9)}, {"count": BUDGET}, config, 0, MACHINE, log,
        meter=meter,
    )  # fmt: skip
    read = 0
    for trajectory in seen:
        for turn in trajectory.turns:
            read += len(turn.ids)
    measured = read if aggregation == "dn_sigma" else 0
    n, own = by_hand(student), by_hand(teacher)
    assert len(seen) == 8 and n != own
    assert meter.figures() == {
        "spent_flops": 2 * n * read + 2 * own * read + 2 * n * measured + 6 * n * read,
        "spent_tokens_forward": 2 * read + measured, "spent_tokens_trained": read, "spent_tokens@rollout": read,
        "spent_tokens@scoring": read + measured, "spent_tokens@update": read,
    }  # fmt: skip
