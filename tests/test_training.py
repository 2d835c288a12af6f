"""The training loops on a tiny domain: they lower their loss, route by domain, and leave teachers alone."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import BUDGET, GRPO, MACHINE, CountDomain
from settings import laptop

from openhorizon.agent.render import render_trajectory, write_action
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import CurriculumConfig, DistillConfig, OptimConfig
from openhorizon.domains.base import Answer, Call, Task, Verdict
from openhorizon.losses.sva import sva
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive
from openhorizon.train import distillation, supervised
from openhorizon.train.compute import Meter
from openhorizon.train.distillation import distil
from openhorizon.train.kept import Kept
from openhorizon.train.objectives import AGGREGATIONS, OBJECTIVES
from openhorizon.train.optim import Optimizer
from openhorizon.train.reinforcement import chosen_prompts, reinforce, token_weights
from openhorizon.train.router import Router
from openhorizon.train.samples import first_turns, in_turn, minibatches, prompt_stream
from openhorizon.train.scores import Wanted, score
from openhorizon.train.supervised import fit
from openhorizon.train.teachers.phases import mixed, normalised, outcome
from openhorizon.train.watch import Watch

OPTIM = OptimConfig(lr=5e-3, schedule="constant", warmup=0.0, weight_decay=0.0, grad_clip=1.0, batch_tokens=512)
DISTILL = laptop().distill
BUDGETS = {"count": BUDGET}
FOUR = Wanted(top_k=4, top_mass=None, temperature=1.0, whole=False)


class Log:
    """What a stage's log collects, without MLflow."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.timings: list[dict[str, float]] = []

    def metrics(self, step: int, **values: float) -> None:
        self.rows.append(values)

    def timing(self, step: int, **values: float) -> None:
        self.timings.append(values)

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def tokens(self, count: int) -> None: ...


def tasks(count: int, horizon: int = 1) -> list[Task]:
    made = [CountDomain().propose(random.Random(n), "train", horizon, n) for n in range(count)]
    return [task for task in made if task is not None]


def demonstrations(checkpoint: Checkpoint, count: int, giving_up: bool = False) -> list[Trajectory]:
    """One a task; with ``giving_up`` every other one ends with a wrong answer."""
    domain, made = CountDomain(), []
    for i, task in enumerate(tasks(count)):
        begin = int(task.prompt.split()[-1])
        answer = "Answer: 0" if giving_up and i % 2 else f"Answer: {begin + 1}"
        turns = (
            Turn("prompt", task.prompt),
            Turn("assistant", write_action(Call("step", {"from": begin}))),
            Turn("tool", f"now {begin + 1} done"),
            Turn("assistant", write_action(Answer(answer))),
        )
        plain = Trajectory(task, turns, str(begin + 1), Status.SOLVED, Verdict(True, 1.0, ""), "expert", 0)
        made.append(render_trajectory(checkpoint.renderer, {domain.name: domain}, plain))
    return made


def as_domain(trajectory: Trajectory, name: str) -> Trajectory:
    return replace(trajectory, task=replace(trajectory.task, domain=name))


def test_fit_lowers_the_loss_and_is_reproducible(tiny: Callable[..., Checkpoint]) -> None:
    logs, weights = [], []
    for _ in range(2):
        checkpoint, log = tiny(), Log()
        fit(checkpoint.model, demonstrations(checkpoint, 40), 20_000, OPTIM, 0, MACHINE, log)  # type: ignore[arg-type]
        logs.append(log.rows)
        weights.append(checkpoint.model.get_input_embeddings().weight.detach().clone())
    assert logs[0][-1]["loss"] < 0.5 * logs[0][0]["loss"]
    assert logs[0] == logs[1] and torch.equal(weights[0], weights[1])


def test_each_sample_goes_to_the_teacher_of_its_own_domain(tiny: Callable[..., Checkpoint]) -> None:
    student = tiny(seed=0)
    teachers = [Teacher("a", tiny(seed=1)), Teacher("b", tiny(seed=2))]
    samples = demonstrations(student, 6)
    mixed = [as_domain(sample, "ab"[i % 2]) for i, sample in enumerate(samples)]
    never = LocalPolicy(student, 8).never
    routed = Router(student, teachers, ["a", "b"], "hard", 0).score(mixed, replace(FOUR, top_k=5), never, MACHINE)
    for i, (sample, scores) in enumerate(zip(mixed, routed, strict=True)):
        own = teachers[i % 2].checkpoint
        assert scores.teacher == own.hash
        with torch.no_grad():
            logits = own.model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0, :-1]
        logprobs = torch.log_softmax(logits[torch.tensor(sample.loss_mask[1:])], dim=1)
        expected = logprobs.masked_fill(never, -torch.inf).topk(5, dim=1)
        assert torch.equal(scores.support_NK, expected.indices)
        assert torch.allclose(scores.logprobs_NK, expected.values, atol=1e-4)
        assert torch.allclose(scores.tail_mass_N, 1 - expected.values.exp().sum(1), atol=1e-4)


def test_distillation_approaches_the_teacher_and_leaves_it_unchanged(fresh: Callable[[int], Checkpoint]) -> None:
    teacher = fresh(1)
    fit(teacher.model, demonstrations(teacher, 60), 40_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    teacher.model.requires_grad_(False)
    before = copy.deepcopy(teacher.model.state_dict())
    student = fresh(1)
    fit(student.model, demonstrations(student, 60), 5_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    config = replace(
        DISTILL,
        iterations=25, prompts=12, updates=3, top_k=16, temperature=1.0, max_horizon=1,
        optim=replace(OPTIM, lr=2e-3),
    )  # fmt: skip
    log = Log()
    domains: Any = {"count": CountDomain()}
    router = Router(student, [Teacher("count", teacher)], ["count"], "hard", 0)
    distil(LocalPolicy(student, 16), router, domains, {"count": tasks(80)}, {"count": BUDGET}, config, 0, MACHINE, log)  # type: ignore[arg-type]
    losses = [row["loss"] for row in log.rows]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3]), losses
    assert all(0 <= row["rho@count"] <= 1 + 1e-5 for row in log.rows)
    assert all(torch.equal(before[name], value) for name, value in teacher.model.state_dict().items())
    assert {"rho@count/turn1", "teacher_mass@count", "success@count", "truncated@count", "aborted@count"} <= set(
        log.rows[0]
    )


@pytest.mark.parametrize("aggregation", list(AGGREGATIONS))
def test_an_update_weighs_its_tokens_as_the_aggregation_says(tiny: Callable[..., Checkpoint], aggregation: str) -> None:
    """Against a loop over tokens, with scales that the log-ratios of unpacked whole logits give."""
    student, teachers = tiny(), {"a": tiny(seed=4), "b": tiny(seed=5)}
    batch = [as_domain(s, "aab"[i % 3]) for i, s in enumerate(demonstrations(student, 7))]
    never, machine = LocalPolicy(student, 8).never, replace(MACHINE, micro_tokens=150)
    scores = [score([teachers[t.task.domain].model], "x", [t], FOUR, never, MACHINE)[0] for t in batch]
    config, chosen = replace(DISTILL, aggregation=aggregation), AGGREGATIONS[aggregation]  # type: ignore[arg-type]
    ratios = distillation.log_ratios(student.model, batch, scores, FOUR, never, machine)
    slow: dict[str, list[float]] = {"a": [], "b": []}
    tokens = []
    for trajectory, said in zip(batch, scores, strict=True):
        trained = torch.tensor(trajectory.loss_mask[1:])
        ids = torch.tensor(trajectory.ids)[1:][trained]
        both = []
        for checkpoint in (teachers[trajectory.task.domain], student):
            with torch.no_grad():
                logits = checkpoint.model(input_ids=torch.tensor([trajectory.ids]), use_cache=False).logits[0, :-1]
            both.append(logits[trained])
        one, two = (torch.log_softmax(x, 1).gather(1, ids[:, None])[:, 0] for x in both)
        slow[trajectory.task.domain] += (one - two).tolist()
        tokens.append(sva(both[1], said.support_NK, said.logprobs_NK)[0].tolist())
    for name, values in slow.items():
        assert torch.allclose(ratios[name], torch.tensor(values), atol=1e-3)
    first = {name: 2 * r for name, r in ratios.items()} | {"b": ratios["b"] / 2}
    scales = chosen.scales(ratios, first, (0.25, 4.0))
    assert (len(set(scales.values())) == 2) == chosen.measured
    domain = torch.tensor([0 if t.task.domain == "a" else 1 for t in batch])
    weight = chosen.weights(domain, torch.tensor([len(v) for v in tokens])).tolist()
    expected = sum(w * scales[t.task.domain] * sum(v) for w, t, v in zip(weight, batch, tokens, strict=True))
    with torch.no_grad():
        parts = distillation.losses(student.model, batch, scores, config, machine, Watch(), None, scales)
        assert sum(part.item() for part in parts) == pytest.approx(expected, rel=1e-3)


def test_aborted_episodes_are_counted_and_never_trained_on(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    import openhorizon.train.distillation as module

    student, trained = tiny(), []

    def half_aborted(*arguments: Any, **keys: Any) -> list[Trajectory]:
        rolled = rollout(*arguments, **keys)
        return [replace(t, status=Status.ABORTED) if i % 2 else t for i, t in enumerate(rolled)]

    def watch(model: Any, trajectories: list[Trajectory], *others: Any) -> Any:
        trained.extend(trajectories)
        return losses(model, trajectories, *others)

    losses = module.losses
    monkeypatch.setattr(module, "rollout", half_aborted)
    monkeypatch.setattr(module, "losses", watch)
    config = replace(DISTILL, iterations=1, prompts=8, updates=2, top_k=4, temperature=1.0, max_horizon=1, optim=OPTIM)
    log = Log()
    router = Router(student, [Teacher("count", tiny(seed=3))], ["count"], "hard", 0)
    domains: Any = {"count": CountDomain()}
    distil(LocalPolicy(student, 8), router, domains, {"count": tasks(9)}, {"count": BUDGET}, config, 0, MACHINE, log)  # type: ignore[arg-type]
    assert log.rows[0]["aborted@count"] == 0.5
    assert len(trained) == 4 and all(t.status is not Status.ABORTED for t in trained)


def trained_on(
    student: Checkpoint, config: DistillConfig, monkeypatch: pytest.MonkeyPatch, horizon: int = 1, **given: Any
) -> tuple[list[list[Trajectory]], Log]:
    """What each iteration's updates were made on."""
    seen: list[list[Trajectory]] = []

    def watch(model: Any, trajectories: list[Trajectory], *others: Any) -> Any:
        seen.append(list(trajectories))
        return losses(model, trajectories, *others)

    losses = distillation.losses
    router = Router(student, [Teacher("count", build_teacher(student))], ["count"], "hard", 0)
    domains: Any = {"count": CountDomain()}
    prompts, log = {"count": tasks(30, horizon)}, Log()
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "losses", watch)
        distil(
            LocalPolicy(student, 8), router, domains, prompts, {"count": BUDGET}, config, 0, MACHINE, log, **given  # type: ignore[arg-type]
        )  # fmt: skip
    return seen, log


def build_teacher(student: Checkpoint) -> Checkpoint:
    """Another model: the student's, moved."""
    teacher = replace(student, model=copy.deepcopy(student.model), hash="moved")
    for parameter in teacher.model.parameters():
        parameter.data.mul_(1.1)
    teacher.model.requires_grad_(False)
    return teacher


def test_a_share_of_the_samples_are_demonstrations(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(DISTILL, iterations=4, prompts=5, updates=1, top_k=4, temperature=1.0, optim=OPTIM)
    unique = {one.task.prompt: one for one in demonstrations(tiny(), 9)}
    shown = {"count": [[one] for one in list(unique.values())[:6]]}
    texts = {one.turns for (one,) in shown["count"]}
    for share, counts in ((1.0, [5, 5, 5, 5]), (0.7, [4, 3, 4, 3]), (0.0, [0, 0, 0, 0])):
        mixed = replace(config, on_policy=share)
        seen, log = trained_on(tiny(), mixed, monkeypatch, demonstrations=shown if share < 1 else None)
        assert [sum(t.turns not in texts for t in batch) for batch in seen] == counts
        assert all(len(batch) == 5 for batch in seen)
        assert all(("success@count" in row) == bool(count) for row, count in zip(log.rows, counts, strict=True))
        given = [t.turns for batch in seen for t in batch if t.turns in texts]
        assert share != 0.7 or set(given) == texts  # six in all, each once an epoch
        again, _ = trained_on(tiny(), mixed, monkeypatch, demonstrations=shown if share < 1 else None)
        assert [[t.turns for t in batch] for batch in again] == [[t.turns for t in batch] for batch in seen]
    with pytest.raises(ValueError, match=r"on_policy: 0\.5 needs demonstrations of count"):
        trained_on(tiny(), replace(config, on_policy=0.5), monkeypatch)


def test_a_curriculum_lets_episodes_grow(fresh: Callable[[int], Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    student = fresh(1)
    fit(student.model, demonstrations(student, 60), 30_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    still = replace(OPTIM, lr=1e-9)
    config = replace(
        DISTILL, iterations=5, prompts=6, updates=1, top_k=4, temperature=1.0, optim=still,
        turn_curriculum=CurriculumConfig(turns=1, every=2), on_policy=0.5,
    )  # fmt: skip
    shown = {"count": [[one] for one in demonstrations(student, 6)]}
    seen, _ = trained_on(student, config, monkeypatch, 3, demonstrations=shown)
    longest = [max(sum(turn.role == "assistant" for turn in t.turns) for t in batch) for batch in seen]
    assert longest == [1, 1, 2, 2, 3]
    whole = demonstrations(student, 1)[0]
    pieces = list(first_turns([whole, whole], 3))
    assert pieces[0] is whole and pieces[1].turns == whole.turns[:2]
    assert list(first_turns([whole, whole], 2)) == [whole] and list(first_turns([whole], None)) == [whole]


def test_truncated_episodes_can_be_left_out(tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """A random student: most episodes are truncated, and an iteration without a sample is survived."""
    config = replace(DISTILL, iterations=4, prompts=4, updates=1, top_k=4, temperature=1.0, optim=OPTIM)
    kept, log = trained_on(tiny(), config, monkeypatch)
    assert [len(batch) for batch in kept] == [4] * 4
    assert any(t.status is Status.TRUNCATED for batch in kept for t in batch)
    still = replace(config, truncated="drop", optim=replace(OPTIM, lr=1e-9))
    dropped, log = trained_on(tiny(), still, monkeypatch)
    left = [round(4 * (1 - row["truncated@count"])) for row in log.rows]
    assert [len(batch) for batch in dropped] == [n for n in left if n] and min(left) == 0
    assert [("loss" in row) for row in log.rows] == [n > 0 for n in left]
    assert all(t.status is not Status.TRUNCATED for batch in dropped for t in batch)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_rollouts_are_written_by_the_weights_of_so_many_iterations_before(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch, lag: int
) -> None:
    """Each episode is written once more by what is known to have been the weights then, and is the same; with a lag of
    0, by the student itself and in no other thread."""
    config = replace(DISTILL, iterations=4, prompts=4, updates=2, top_k=4, temperature=1.0, optim=OPTIM, staleness=lag)
    student, weights, threads = tiny(), list[dict[str, torch.Tensor]](), set[str]()

    def told(model: Any, trajectories: list[Trajectory], *others: Any) -> Any:
        if len(seen) % config.updates == 0:
            weights.append({name: value.clone() for name, value in model.state_dict().items()})
        seen.append(trajectories)
        return losses(model, trajectories, *others)

    def known(domains: Any, tasks: Any, policy: LocalPolicy, *others: Any) -> list[Trajectory]:
        threads.add(threading.current_thread().name)
        assert (policy.checkpoint.model is student.model) == (lag == 0)
        return rollout(domains, tasks, policy, *others)

    seen, losses = list[list[Trajectory]](), distillation.losses
    monkeypatch.setattr(distillation, "losses", told)
    monkeypatch.setattr(distillation, "rollout", known)
    router = Router(student, [Teacher("count", build_teacher(student))], ["count"], "hard", 0)
    domains: Any = {"count": CountDomain()}
    prompts, log = {"count": tasks(30)}, Log()
    distil(LocalPolicy(student, 8), router, domains, prompts, BUDGETS, config, 0, MACHINE, log)  # type: ignore[arg-type]
    assert threads == {"rollouts" if lag else "MainThread"} and "rollouts" not in {
        t.name for t in threading.enumerate()
    }
    assert [row.get("staleness") for row in log.rows] == ([min(i, lag) for i in range(4)] if lag else [None] * 4)
    writer, differ = tiny(), 0
    for i, wish in enumerate(distillation.asked(config, 0, prompts, {})):
        mine = {t.turns for batch in seen[2 * i : 2 * i + 2] for t in batch}
        for behind in range(min(i, 3) + 1):
            writer.model.load_state_dict(weights[i - behind])
            again = rollout(domains, wish.tasks, LocalPolicy(writer, 8), BUDGETS, 1.0, derive(0, "rollout", i))
            same = {t.turns for t in again} == mine
            assert same or behind != min(i, lag)
            differ += not same
    assert differ > 3, "whose weights write shows"
    for times in log.timings:
        assert times["seconds_rollout"] > 0 and ("seconds_waited" in times) == (lag > 0)
        assert not lag or (times["seconds_idle"] >= 0 and 0 <= times["rollout_hidden"] <= 1)


def test_what_fails_beside_training_is_raised_in_it(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[int]()

    def broken(*arguments: Any) -> list[Trajectory]:
        made.append(1)
        if len(made) == 3:
            raise ValueError("the third cannot be written")
        return rollout(*arguments)

    monkeypatch.setattr(distillation, "rollout", broken)
    config = replace(DISTILL, iterations=4, prompts=2, updates=1, top_k=4, optim=OPTIM, staleness=1)
    with pytest.raises(ValueError, match="the third cannot be written"):
        trained_on(tiny(), config, monkeypatch)
    assert "rollouts" not in {thread.name for thread in threading.enumerate()}


def test_a_run_without_a_single_sample_is_an_error(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def aborted(*arguments: Any, **keys: Any) -> list[Trajectory]:
        return [replace(t, status=Status.ABORTED) for t in rollout(*arguments, **keys)]

    monkeypatch.setattr(distillation, "rollout", aborted)
    config = replace(DISTILL, iterations=2, prompts=2, updates=1, top_k=4, optim=OPTIM)
    with pytest.raises(ValueError, match="no sample to train on in 2 iterations"):
        trained_on(tiny(), config, monkeypatch)


def test_a_frozen_teacher_cannot_be_trained(tiny: Callable[..., Checkpoint]) -> None:
    with pytest.raises(AssertionError, match="nothing to train"):
        Optimizer(tiny().model.requires_grad_(False), OPTIM, 1)


def uneven(fresh: Callable[[int], Checkpoint]) -> Checkpoint:
    """Sometimes right, sometimes giving up."""
    start = fresh(1)
    fit(start.model, demonstrations(start, 60, giving_up=True), 30_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    return start


def test_grpo_raises_the_reward(fresh: Callable[[int], Checkpoint]) -> None:
    start = uneven(fresh)
    reference = copy.deepcopy(start.model).requires_grad_(False)
    config = replace(GRPO, iterations=14, prompts=8, group=8, updates=2, max_horizon=1)
    log = Log()
    reinforce(
        LocalPolicy(start, 64), reference, {"count": CountDomain()}, tasks(80), BUDGETS, config, normalised(outcome), 0,
        MACHINE, log,  # type: ignore[arg-type]
    )  # fmt: skip
    rewards = [row["reward"] for row in log.rows]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.4, rewards
    assert {"kl", "entropy", "clip_fraction", "dead_groups"} <= set().union(*log.rows)


def test_an_update_weighs_tokens_or_sequences_alike() -> None:
    assert token_weights([1, 3], "token") == [0.25, 0.25]
    assert token_weights([1, 3], "sequence") == [0.5, 1 / 6]


def test_prompts_are_chosen_by_what_comes_of_several_tries(fresh: Callable[[int], Checkpoint]) -> None:
    policy, domains, config = LocalPolicy(uneven(fresh), 64), {"count": CountDomain()}, replace(GRPO, tries=4)
    chosen = chosen_prompts(policy, domains, tasks(80), BUDGETS, config, mixed, 7)
    tasks_8 = list({task.prompt: task for task in tasks(80)}.values())[:8]
    repeated = [task for task in tasks_8 for _ in range(4)]
    rolled = rollout(domains, repeated, policy, BUDGETS, 1.0, derive(7, "tries"))
    by_task: dict[str, set[float]] = {}
    for trajectory in rolled:
        by_task.setdefault(trajectory.task.id, set()).add(outcome(trajectory))
    assert [task.id for task in chosen] == [name for name, outcomes in by_task.items() if len(outcomes) == 2]
    assert 0 < len(chosen) <= 8
    assert len(chosen_prompts(policy, domains, tasks(80), BUDGETS, GRPO, mixed, 7)) == 80


def test_grpo_stops_where_nothing_is_learned_or_all_is_lost(fresh: Callable[[int], Checkpoint]) -> None:
    start = uneven(fresh)
    before = copy.deepcopy(start.model.state_dict())
    reference, domains = copy.deepcopy(start.model).requires_grad_(False), {"count": CountDomain()}

    def steps(config: Any, advantage: Any, collapsed: Any = lambda iteration: False) -> int:
        log = Log()
        reinforce(
            LocalPolicy(start, 64), reference, domains, tasks(9), BUDGETS, config, advantage, 0, MACHINE, log,
            collapsed=collapsed,  # type: ignore[arg-type]
        )  # fmt: skip
        return len(log.rows)

    many = replace(GRPO, iterations=6, dead_stop=2, validate_every=3)
    assert steps(many, normalised(lambda trajectory: 1.0)) == 2
    assert all(torch.equal(a, b) for a, b in zip(before.values(), start.model.state_dict().values(), strict=True))
    asked: list[int] = []

    def collapsed(iteration: int) -> bool:
        asked.append(iteration)
        return True

    assert steps(many, normalised(lambda t: outcome(t) + t.seed % 7), collapsed) == 3 and asked == [3]
    with pytest.raises(ValueError, match=r"a reward of task count-\d+ of count is not finite"):
        steps(many, normalised(lambda trajectory: float("nan")))


def test_the_best_state_is_kept() -> None:
    model = torch.nn.Linear(1, 1)
    scores = iter([0.3, 0.5, 0.5, 0.38])
    kept = Kept(model, lambda name: next(scores), 0.1)
    lost = []
    for name in ("start", "a", "b", "c"):
        with torch.no_grad():
            model.weight.fill_(len(lost))
        lost.append(kept.offer(name))
    kept.restore()
    assert lost == [False, False, False, True] and kept.name == "a" and model.weight.item() == 1


def test_minibatches_hold_every_domain_and_every_sample_once(tiny: Callable[..., Checkpoint]) -> None:
    samples = [as_domain(s, "abc"[min(i // 8, 2)]) for i, s in enumerate(demonstrations(tiny(), 24))]
    dealt = minibatches(samples, 4, 0)
    assert sorted(i for batch in dealt for i in batch) == list(range(24))
    assert all({samples[i].task.domain for i in batch} == {"a", "b", "c"} for batch in dealt)


def test_prompts_are_deduplicated_and_each_comes_once_an_epoch() -> None:
    doubled = tasks(5) + tasks(5)
    unique = {task.prompt for task in doubled}
    stream = prompt_stream(doubled, 0)
    assert sorted(next(stream).prompt for _ in unique) == sorted(unique)


def test_scores_do_not_depend_on_packing(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny()
    samples, never = demonstrations(checkpoint, 8), LocalPolicy(checkpoint, 8).never
    together = score([checkpoint.model], "x", samples, FOUR, never, MACHINE)
    alone = [score([checkpoint.model], "x", [sample], FOUR, never, MACHINE)[0] for sample in samples]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a.logprobs_NK, b.logprobs_NK, atol=1e-4) and torch.equal(a.support_NK, b.support_NK)


@pytest.mark.parametrize("loss", ["nll", *OBJECTIVES])
def test_an_update_in_parts_is_the_update_at_once(tiny: Callable[..., Checkpoint], loss: str) -> None:
    checkpoint = tiny()
    model, batch = checkpoint.model.train(), demonstrations(checkpoint, 12)
    batch = [as_domain(sample, "aab"[i % 3]) for i, sample in enumerate(batch)]
    never = LocalPolicy(checkpoint, 8).never
    scores = score([tiny(seed=4).model], "x", batch, replace(FOUR, whole=True), never, MACHINE)
    found = []
    for micro_tokens in (100_000, 60):
        machine, watch = replace(MACHINE, micro_tokens=micro_tokens), Watch()
        parts = (
            supervised.losses(model, batch, machine)
            if loss == "nll"
            else distillation.losses(model, batch, scores, replace(DISTILL, support_loss=loss), machine, watch)
        )
        total = count = 0.0
        for part in parts:
            part.backward()
            total, count = total + part.item(), count + 1
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        found.append((count, total, gradients, watch.figures()))
    (one, total, gradients, seen), (many, total_parts, gradients_parts, seen_parts) = found
    assert one == 1 and many > 3
    assert total == pytest.approx(total_parts, abs=1e-5) and seen == pytest.approx(seen_parts, abs=1e-4)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_parts[name], atol=1e-5, rtol=1e-4), name


def test_grpo_of_several_domains_takes_them_in_turn_and_says_how_each_does(fresh: Callable[[int], Checkpoint]) -> None:
    """``far`` is a domain of its own, with its own world, budget and prompts of another horizon."""
    start, log, meter = uneven(fresh), Log(), Meter()
    reference = copy.deepcopy(start.model).requires_grad_(False)
    near = list({task.prompt: task for task in tasks(9)}.values())[:6]
    far = [replace(task, domain="far", id=f"far-{task.id}") for task in tasks(3, horizon=2)]
    budgets = {"count": BUDGET, "far": replace(BUDGET, slack=0.0, extra=0)}  # no call at all
    config = replace(GRPO, iterations=9, prompts=3, group=4)
    seen: list[Task] = []

    def advantage(group: Any) -> torch.Tensor:
        seen.append(group[0].task)
        return normalised(lambda trajectory: outcome(trajectory) + trajectory.seed % 7)(group)

    worlds: Any = {"count": CountDomain(), "far": CountDomain()}
    figures = reinforce(
        LocalPolicy(start, 64), reference, worlds, [*near, *far], budgets, config, advantage, 0, MACHINE, log,  # type: ignore[arg-type]
        meter=meter, flops=1.0,
    )  # fmt: skip
    assert figures["steps"] == 1 and meter.flops > 1, "the budget was reached in the first iteration"
    assert [task.domain for task in seen] == ["count", "far", "count"]
    (row,) = log.rows
    assert row["success@far"] == 0 and row["success"] == pytest.approx(2 / 3 * row["success@count"])
    assert row["reward"] == pytest.approx((2 * row["reward@count"] + row["reward@far"]) / 3)
    stream = in_turn([*near, *far], ["count", "far"], 3)
    drawn = [next(stream) for _ in range(12)]
    assert [task.domain for task in drawn] == ["count", "far"] * 6
    assert {task.id for task in drawn[::2]} == {task.id for task in near}
    assert sorted(task.id for task in drawn[1::2]) == sorted(2 * [task.id for task in far])
