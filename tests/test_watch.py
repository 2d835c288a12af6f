"""What is monitored, against loops over tokens; alarms in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import BUDGET, MACHINE, CountDomain
from test_training import DISTILL, FOUR, OPTIM, Log, as_domain, build_teacher, demonstrations, tasks

from openhorizon.config import AlarmConfig
from openhorizon.losses.divergence import Said, entropy
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train import distillation
from openhorizon.train.objectives import OBJECTIVES
from openhorizon.train.router import Router
from openhorizon.train.scores import score
from openhorizon.train.watch import Watch, alarms


def test_figures_by_domain_turn_and_depth_are_means_over_their_tokens(tiny: Callable[..., Checkpoint]) -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    batch = [as_domain(s, "ab"[i % 2]) for i, s in enumerate(demonstrations(student, 5))]
    never, machine, watch = LocalPolicy(student, 8).never, replace(MACHINE, micro_tokens=150), Watch()
    scores = score([teacher.model], "x", batch, FOUR, never, MACHINE)
    with torch.no_grad():
        list(distillation.losses(student.model, batch, scores, DISTILL, machine, watch))
    slow: dict[str, list[float]] = {}
    for trajectory, said in zip(batch, scores, strict=True):
        trained = torch.tensor(trajectory.loss_mask[1:])
        with torch.no_grad():
            logits = student.model(input_ids=torch.tensor([trajectory.ids]), use_cache=False).logits[0, :-1][trained]
        ids = torch.tensor(trajectory.ids)[1:][trained]
        heard = Said(said.support_NK, said.logprobs_NK, said.tail_mass_N, ids, said.written_logprobs_N)
        loss, rho = OBJECTIVES["sva"].loss(logits, heard, None, "reverse")
        turns = [
            n for n, turn in enumerate([t for t in trajectory.turns if t.role == "assistant"], 1) for _ in turn.ids
        ]
        for at, turn in enumerate(turns):
            depth = next(q for q in (1, 2, 3, 4) if at < q * len(turns) / 4)
            name = trajectory.task.domain
            for where in (name, f"{name}/turn{turn}", f"{name}/depth{depth}"):
                slow.setdefault(f"loss@{where}", []).append(loss[at].item())
                slow.setdefault(f"rho@{where}", []).append(rho[at].item())
                slow.setdefault(f"teacher_mass@{where}", []).append(1 - said.tail_mass_N[at].item())
            slow.setdefault(f"entropy@{name}", []).append(entropy(logits)[at].item())
    assert watch.figures() == pytest.approx({name: sum(v) / len(v) for name, v in slow.items()}, abs=1e-4)


def test_gradient_shares_are_those_of_each_domains_loss_alone(tiny: Callable[..., Checkpoint]) -> None:
    """At the last hidden states: each domain's from a backward pass of its own, by finite parts of the same loss."""
    student, teacher = tiny(seed=0), tiny(seed=1)
    batch = [as_domain(s, "aab"[i % 3]) for i, s in enumerate(demonstrations(student, 6))]
    never = LocalPolicy(student, 8).never
    scores = score([teacher.model], "x", batch, FOUR, never, MACHINE)
    watch = Watch()
    for part in distillation.losses(student.model, batch, scores, DISTILL, replace(MACHINE, micro_tokens=150), watch):
        part.backward()
    shares = {k: v for k, v in watch.figures().items() if k.startswith("gradient_share")}
    weight = student.model.get_output_embeddings().weight.detach()
    norms = {"a": 0.0, "b": 0.0}
    for trajectory, said in zip(batch, scores, strict=True):
        name, trained = trajectory.task.domain, torch.tensor(trajectory.loss_mask[1:])
        inputs = torch.tensor([trajectory.ids])
        with torch.no_grad():
            hidden = student.model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state[0, :-1][trained]
        samples = sum(t.task.domain == name for t in batch)
        for n in range(len(hidden)):
            one = hidden[n : n + 1].clone().requires_grad_()
            row = Said(said.support_NK[n : n + 1].clone(), said.logprobs_NK[n : n + 1].clone(), *(torch.zeros(1),) * 3)
            loss, _ = OBJECTIVES["sva"].loss(one @ weight.T, row, None, "reverse")
            (loss.sum() / (2 * samples * len(hidden))).backward()
            assert one.grad is not None
            norms[name] += one.grad.norm().item()
    total = sum(norms.values())
    assert shares == pytest.approx({f"gradient_share@{n}": norm / total for n, norm in norms.items()}, abs=1e-3)


def test_an_alarm_names_domain_numbers_and_key() -> None:
    first = {"rho@a": 0.95, "rho@b": 0.9, "rho@a/turn1": 0.99, "length@a": 40.0, "length@b": 10.0, "loss@a": 1.0}
    now = {"rho@a": 0.89, "rho@b": 0.87, "rho@a/turn1": 0.1, "length@a": 79.0, "length@b": 21.0, "loss@a": 9.0}
    config = AlarmConfig(rho_drop=0.05, length_growth=2.0, stop=False)
    found = alarms(now, first, config)
    assert len(found) == 2
    assert (
        "length" in found[0] and "of b grew from 10 to 21" in found[0] and "distill.alarm.length_growth=2.0" in found[0]
    )
    assert "ρ of a fell from 0.950 to 0.890" in found[1] and "distill.alarm.rho_drop=0.05" in found[1]
    assert alarms(first, first, config) == [] and alarms({}, first, config) == []


@pytest.mark.parametrize("stop", [False, True])
def test_a_falling_rho_is_said_logged_and_stops_where_configured(
    fresh: Callable[[int], Checkpoint], capsys: pytest.CaptureFixture[str], stop: bool
) -> None:
    """A learning rate that wrecks the student, so that it leaves the teacher's support."""
    student = fresh(1)
    teacher = build_teacher(student)
    config = replace(
        DISTILL, iterations=3, prompts=4, updates=2, top_k=200, temperature=1.0, optim=replace(OPTIM, lr=3.0),
        alarm=AlarmConfig(rho_drop=0.02, length_growth=1000.0, stop=stop),
    )  # fmt: skip
    router = Router(student, [Teacher("count", teacher)], ["count"], "hard", 0)
    domains: Any = {"count": CountDomain()}
    log: Any = Log()
    prompts, budgets = {"count": tasks(9)}, {"count": BUDGET}
    arguments = (LocalPolicy(student, 8), router, domains, prompts, budgets, config, 0, MACHINE, log)
    if stop:
        with pytest.raises(ValueError, match=r"distill\.alarm: stopped at iteration \d: ρ of count fell"):
            distillation.distil(*arguments)
    else:
        distillation.distil(*arguments)
        assert len(log.rows) == 3
    assert log.rows[0]["alarms"] == 0 and any(row["alarms"] == 1 for row in log.rows)
    assert "distill: iteration" in capsys.readouterr().out


def test_every_quantity_is_logged_and_seconds_are_not_among_the_curves(tiny: Callable[..., Checkpoint]) -> None:
    student = tiny()
    teachers = [Teacher("count", tiny(seed=3))]
    config = replace(DISTILL, iterations=1, prompts=4, updates=2, top_k=4, temperature=1.0, optim=OPTIM)
    log: Any = Log()
    domains: Any = {"count": CountDomain()}
    router = Router(student, teachers, ["count"], "hard", 0)
    distillation.distil(
        LocalPolicy(student, 8), router, domains, {"count": tasks(9)}, {"count": BUDGET}, config, 0, MACHINE, log
    )
    (row,) = log.rows
    expected = {f"{q}@count{place}" for q in ("loss", "rho", "teacher_mass") for place in ("", "/turn1", "/depth4")}
    expected |= {f"{q}@count" for q in ("entropy", "gradient_share", "success", "length", "truncated", "aborted")}
    assert expected | {"alarms", "tokens_rollout", "tokens_scoring", "tokens_update"} <= set(row)
    assert row["gradient_share@count"] == pytest.approx(1) and not any("seconds" in name for name in row)
    assert set(log.timings[0]) == {"seconds_rollout", "seconds_scoring", "seconds_update"}
    assert all(seconds > 0 for seconds in log.timings[0].values())
