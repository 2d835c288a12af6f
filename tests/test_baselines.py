"""Baselines on a tiny domain: what each makes, against loops written out; what it spends, by hand; what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUDGET, GRPO, MACHINE, CountDomain
from settings import laptop
from test_compute import by_hand
from test_resume import EVERY_STEP, Killed
from test_training import OPTIM, Log, as_domain, demonstrations, tasks

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory, write_tasks
from openhorizon.artifacts import checkpoint_dir, read_json, stage_dir, write_json
from openhorizon.config import BaselinesConfig
from openhorizon.domains.base import Task
from openhorizon.model.load import Checkpoint, load_checkpoint, save_checkpoint
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive
from openhorizon.stages import baseline
from openhorizon.train.baselines import BASELINES, mixed_grpo, seqkd
from openhorizon.train.baselines import given as given_module
from openhorizon.train.baselines.given import Given
from openhorizon.train.compute import Meter
from openhorizon.train.experts import UNTOUCHED
from openhorizon.train.merging import mean_weights, task_arithmetic
from openhorizon.train.resume import Resume
from openhorizon.train.supervised import fit
from openhorizon.unfinished import Unfinished

DOMAINS = ("near", "far")
WORLDS: Any = {name: CountDomain() for name in DOMAINS}


def of(name: str, given: Sequence[Task]) -> list[Task]:
    return [replace(task, domain=name, id=f"{name}-{task.id}") for task in given]


def make(start: Checkpoint, teachers: Mapping[str, Checkpoint], flops: float, **changes: Any) -> Given:
    """Two domains that are the same world; ``changes`` are of the params block."""
    block = laptop().baselines
    block = replace(
        block,
        continued=replace(block.continued, demonstrations=20, optim=OPTIM),
        seqkd=replace(block.seqkd, prompts=16, share=0.2, temperature=1.0, optim=OPTIM),
        mixed_grpo=replace(block.mixed_grpo, grpo=replace(GRPO, iterations=99, prompts=4, max_horizon=1)),
        arithmetic=replace(block.arithmetic, scales=(0.25, 0.5, 1.0)),
    )

    def shown(count: int) -> list[Trajectory]:
        return [as_domain(sample, name) for name in DOMAINS for sample in demonstrations(start, count)]

    log: Any = Log()
    return Given(
        start=start, teachers=lambda: teachers, demonstrations=shown,
        prompts={name: of(name, tasks(20)) for name in DOMAINS},
        validation={"near": of("near", tasks(30)[24:]), "far": of("far", tasks(30)[26:])}, worlds=WORLDS,
        budgets=dict.fromkeys(DOMAINS, BUDGET), config=replace(block, **changes), temperature=0.7, routers=UNTOUCHED,
        seed=5, machine=MACHINE, log=log, flops=flops, meter=Meter(), saved=Resume(),
    )  # fmt: skip


def taught(fresh: Callable[[int], Checkpoint], giving_up: bool = False) -> Checkpoint:
    """Solves its tasks, or gives up in about half of them."""
    made = fresh(1)
    samples = demonstrations(made, 60, giving_up)
    fit(made.model, samples, 30_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    return made


def state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return copy.deepcopy(checkpoint.model.state_dict())


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read(episodes: Sequence[Trajectory]) -> int:
    return sum(len(turn.ids) for episode in episodes for turn in episode.turns)


def solved(given: Given, checkpoint: Checkpoint) -> tuple[float, int]:
    """Success on validation, domain by domain, and the tokens that it took."""
    shares, tokens = [], 0
    for tasks_ in given.validation.values():
        episodes = rollout(
            WORLDS, tasks_, LocalPolicy(checkpoint, 8), given.budgets, 0.7, derive(given.seed, "validation")
        )
        shares.append(sum(e.status is Status.SOLVED for e in episodes) / len(episodes))
        tokens += read(episodes)
    return sum(shares) / len(shares), tokens


def test_every_name_has_its_algorithm() -> None:
    named = {field.name: field.type for field in dataclasses.fields(BaselinesConfig)}["run"]
    assert str(list(BASELINES))[1:-1] in str(named).replace('"', "'")


def test_merged_weights_are_those_of_a_loop(tiny: Callable[..., Checkpoint]) -> None:
    start, models = tiny(seed=0).model, {name: tiny(seed=1 + i).model for i, name in enumerate("abc")}
    mean, sum_ = mean_weights(models), task_arithmetic(start, models, 0.3)
    origin = dict(start.state_dict())
    assert origin.keys() == mean.keys() == sum_.keys()
    for name, first in origin.items():
        flat_mean, flat_sum, flat = mean[name].flatten(), sum_[name].flatten(), first.flatten()
        theirs = [model.state_dict()[name].flatten() for model in models.values()]
        for i in range(0, len(flat), 97):
            total, moved = 0.0, float(flat[i])
            for other in theirs:
                total += float(other[i])
                moved += 0.3 * (float(other[i]) - float(flat[i]))
            assert float(flat_mean[i]) == pytest.approx(total / 3, abs=1e-5)
            assert float(flat_sum[i]) == pytest.approx(moved, abs=1e-5)
    third = task_arithmetic(start, models, 1 / 3)
    assert all(torch.allclose(third[name], mean[name], atol=1e-5) for name in mean)


def test_average_is_the_teachers_mean_and_costs_nothing(tiny: Callable[..., Checkpoint]) -> None:
    given = make(tiny(seed=0), {"near": tiny(seed=1), "far": tiny(seed=2)}, 1e9)
    before = {name: state(teacher) for name, teacher in given.teachers().items()}
    made, figures = BASELINES["average"](given)
    expected = {key: (value + before["far"][key]) / 2 for key, value in before["near"].items()}
    assert same(made.model.state_dict(), expected) and figures == {} and given.meter.flops == 0
    assert all(same(before[name], teacher.model.state_dict()) for name, teacher in given.teachers().items())


def test_arithmetic_takes_the_scale_that_validates_best(fresh: Callable[[int], Checkpoint]) -> None:
    """One teacher knows the task, one is as the start: λ = 1 is the first, less is on the way to it."""
    start = fresh(1)
    given = make(start, {"near": taught(fresh), "far": fresh(1)}, 1e12)
    origin, models = copy.deepcopy(start.model), {name: t.model for name, t in given.teachers().items()}
    made, figures = BASELINES["arithmetic"](given)
    found, tokens = {}, 0
    for scale in (0.25, 0.5, 1.0):
        trial = replace(start, model=copy.deepcopy(origin))
        trial.model.load_state_dict(task_arithmetic(origin, models, scale))
        found[scale], spent = solved(given, trial)
        tokens += spent
    assert found[1.0] > found[0.25]
    best = max(found, key=lambda scale: found[scale])
    assert figures == {f"validation_scale_{s:g}": v for s, v in found.items()} | {"kept": f"scale_{best:g}"}
    assert same(made.model.state_dict(), task_arithmetic(origin, models, best))
    assert given.meter.flops == 2 * by_hand(start) * tokens


def test_the_best_teacher_is_the_one_that_validates_best_everywhere(fresh: Callable[[int], Checkpoint]) -> None:
    given = make(fresh(2), {"near": fresh(3), "far": taught(fresh)}, 1e12)
    before = state(given.teachers()["far"])
    made, figures = BASELINES["best_teacher"](given)
    checks = {name: solved(given, teacher) for name, teacher in given.teachers().items()}
    assert made is given.teachers()["far"] and same(made.model.state_dict(), before)
    assert figures == {f"validation_{name}": share for name, (share, _) in checks.items()} | {"kept": "far"}
    assert checks["far"][0] > checks["near"][0]
    assert given.meter.figures()["spent_tokens@validation"] == sum(tokens for _, tokens in checks.values())


def test_continued_spends_what_distillation_spent_on_the_demonstrations(
    fresh: Callable[[int], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = fresh(1)
    given = make(start, {}, flops=30_000 * 6 * by_hand(start))
    seen: list[Trajectory] = []

    def watched(model: Any, samples: Sequence[Trajectory], *rest: Any, **options: Any) -> dict[str, float]:
        seen.extend(samples)
        return fit(model, samples, *rest, **options)

    monkeypatch.setattr(given_module, "fit", watched)
    before = solved(given, start)[0]
    made, figures = BASELINES["continued"](given)
    assert [(s.task.domain, s.ids) for s in seen] == [(s.task.domain, s.ids) for s in given.demonstrations(20)]
    spent = given.meter.figures()
    assert (
        spent["spent_flops"] == 6 * by_hand(start) * spent["spent_tokens_trained"] and not spent["spent_tokens_forward"]
    )
    assert abs(spent["spent_tokens_trained"] - 30_000) < OPTIM.batch_tokens
    assert figures["samples"] == 40 and figures["epochs"] == pytest.approx(spent["spent_tokens_trained"] / read(seen))
    assert made is start and solved(given, made)[0] > before + 0.3


@pytest.mark.parametrize("samples", ["verified", "all"])
def test_seqkd_trains_on_what_each_domains_own_teacher_wrote(
    fresh: Callable[[int], Checkpoint], monkeypatch: pytest.MonkeyPatch, samples: str
) -> None:
    start, teachers = fresh(2), {"near": taught(fresh, giving_up=True), "far": replace(taught(fresh), hash="other")}
    flops = 20_000 * 6 * by_hand(start)
    block = make(start, teachers, flops).config.seqkd
    given = make(start, teachers, flops, seqkd=replace(block, samples=samples))
    rolled: list[Trajectory] = []
    trained: list[Trajectory] = []

    def watched_rollout(worlds: Any, tasks_: Any, policy: LocalPolicy, *rest: Any) -> list[Trajectory]:
        rolled.extend(rollout(worlds, tasks_, policy, *rest))
        return rolled[-len(tasks_) :]

    def watched_fit(model: Any, given_: Sequence[Trajectory], *rest: Any, **options: Any) -> dict[str, float]:
        trained.extend(given_)
        return fit(model, given_, *rest, **options)

    monkeypatch.setattr(seqkd, "rollout", watched_rollout)
    monkeypatch.setattr(given_module, "fit", watched_fit)
    before = state(teachers["near"])
    _, figures = BASELINES["seqkd"](given)
    assert {(t.task.domain, t.policy) for t in rolled} == {("near", teachers["near"].hash), ("far", "other")}
    assert {t.task.id for t in rolled} <= {task.id for mine in given.prompts.values() for task in mine}
    kept = [t for t in rolled if t.status is Status.SOLVED or samples == "all"]
    assert sorted(t.ids for t in trained) == sorted(t.ids for t in kept)
    assert len(kept) < len(rolled) or samples == "all"
    for name in DOMAINS:
        assert figures[f"written@{name}"] == len(rolled) / 2
        assert figures[f"kept@{name}"] == sum(t.task.domain == name for t in kept)
    spent, n = given.meter.figures(), by_hand(start)
    assert spent["spent_tokens@rollout"] == read(rolled)
    assert spent["spent_flops"] == 2 * n * read(rolled) + 6 * n * spent["spent_tokens@update"]
    assert 0.2 * flops <= 2 * n * read(rolled) and abs(spent["spent_flops"] - flops) < 6 * n * OPTIM.batch_tokens
    wave = read(rolled[-32:])
    assert 2 * n * (read(rolled) - wave) < 0.2 * flops, "no wave too many"
    assert same(before, teachers["near"].model.state_dict())


def test_seqkd_without_a_verified_sequence_is_refused(
    tiny: Callable[..., Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    start = tiny()
    given = make(start, {"near": tiny(seed=1), "far": tiny(seed=2)}, flops=20_000 * 6 * by_hand(start))
    with pytest.raises(ValueError, match=r"seqkd\.samples=verified: none of \d+ episodes of the teachers is"):
        BASELINES["seqkd"](given)
    assert "episodes of far is verified" in capsys.readouterr().out


def test_mixed_grpo_learns_all_domains_until_its_flops_are_spent(fresh: Callable[[int], Checkpoint]) -> None:
    start = taught(fresh, giving_up=True)
    flops = 60_000 * 6 * by_hand(start)
    grpo = replace(GRPO, iterations=99, prompts=8, group=8, updates=2, max_horizon=1, validate_every=3)
    block = make(start, {}, flops).config.mixed_grpo
    given = make(start, {}, flops, mixed_grpo=replace(block, grpo=grpo))
    first, tokens = solved(given, start)
    made, figures = BASELINES["mixed_grpo"](given)
    assert figures["validation_start"] == first
    log: Any = given.log
    rows = log.rows
    assert figures["steps"] == len(rows) < 99 and {"reward@near", "reward@far", "success@near"} <= set(rows[0])
    assert sum(row["reward"] for row in rows[-3:]) > sum(row["reward"] for row in rows[:3])
    spent, n = given.meter.figures(), by_hand(start)
    assert spent["spent_flops"] == n * (2 * spent["spent_tokens_forward"] + 6 * spent["spent_tokens_trained"])
    assert spent["spent_tokens@reference"] == spent["spent_tokens@update"] == spent["spent_tokens_trained"]
    looks = sum(name.startswith("validation_") for name in figures)
    assert spent["spent_tokens@validation"] > 0 and looks >= 3 and tokens > 0
    assert flops <= spent["spent_flops"] < 1.5 * flops
    best = max(value for name, value in figures.items() if name.startswith("validation_"))
    assert solved(given, made)[0] == best == figures[f"validation_{figures['kept']}"]


def test_teachers_of_another_shape_cannot_be_merged_but_can_write(tiny: Callable[..., Checkpoint]) -> None:
    others = {"near": tiny(seed=1), "far": tiny("qwen3_moe", seed=2)}
    for name in ("average", "arithmetic"):
        with pytest.raises(ValueError, match="one shape; that of 'far' is another"):
            BASELINES[name](make(tiny(), others, 1e9))
    alike = {name: tiny("qwen3_moe", seed=2) for name in DOMAINS}
    with pytest.raises(ValueError, match="one shape; that of 'near' is another than that of 'sft'"):
        BASELINES["average"](make(tiny(), alike, 1e9))
    assert BASELINES["best_teacher"](make(tiny(), others, 1e9))[0] in others.values()


class Dying(Unfinished):
    """Work that is saved once, and then the process ends."""

    def save(self, *arguments: Any, **named: Any) -> bool:
        super().save(*arguments, **named)
        raise Killed


class KeptLog(Log):
    """A log that can be taken up."""

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def take_up(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


@pytest.mark.parametrize(
    ("name", "flops", "every", "scopes"),
    [
        ("continued", 4_000, 3, [()]),
        ("seqkd", 8_000, 2, [("rollouts",), ()]),
        ("arithmetic", 1, 1, [()]),
        ("mixed_grpo", 13_000, 1, [("grpo",)]),
        ("best_teacher", 1, 1, [()]),
    ],
)
def test_killed_behind_each_save_it_ends_with_the_same_bits(
    fresh: Callable[[int], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    flops: float,
    every: int,
    scopes: list[tuple[str, ...]],
) -> None:
    """``scopes``: where (train/resume.py) it is killed, in turn. Models that solve nothing have to do: whatever was
    written is trained on, rewards are made up, and the last state of GRPO is the best."""
    monkeypatch.setattr(mixed_grpo, "outcome", lambda trajectory: float(sum(trajectory.ids) % 7))
    monkeypatch.setattr(mixed_grpo, "mixed", lambda groups, count: [group[0].task for group in groups])
    monkeypatch.setattr(mixed_grpo, "success", lambda *of: given_module.success(*of) + (of[2] == "grpo"))
    machine, teachers = replace(EVERY_STEP, checkpoint_steps=every), {"near": fresh(2), "far": fresh(3)}
    n = by_hand(teachers["far"])
    block = make(teachers["far"], {}, 0).config
    grpo = replace(GRPO, iterations=99, prompts=2, tries=2, tried_prompts=4, max_horizon=1, validate_every=2)
    changes: dict[str, Any] = {
        "seqkd": replace(block.seqkd, prompts=2, samples="all"),
        "mixed_grpo": replace(block.mixed_grpo, grpo=grpo),
    }

    def run(unfinished: Unfinished | None) -> tuple[Any, ...]:
        given = make(fresh(1), teachers, flops * 6 * n, **changes)
        log: Any = KeptLog()
        given = replace(given, log=log, saved=Resume(unfinished, machine, log, meter=given.meter))
        made, figures = BASELINES[name](given)
        return state(made), figures, given.meter.figures(), log.rows

    killed, ended = list[tuple[str, ...]](), tuple[Any, ...]()
    while not ended:
        dying = Dying("baseline", "same", tmp_path)
        try:
            ended = run(dying)
        except Killed:
            saved = json.loads(json.loads((dying.folder / "state.json").read_text())["body"])
            killed.append(tuple(saved["values"]["scope"]))
    weights, *rest = run(None)
    assert same(ended[0], weights) and list(ended[1:]) == rest
    assert list(dict.fromkeys(killed)) == scopes and len(killed) >= 2
    assert name == "best_teacher" or not same(weights, state(fresh(1)))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Checkpoint]) -> Path:
    """What a run of two domains has left when a baseline starts."""
    monkeypatch.chdir(tmp_path)
    for i, model in enumerate(("sft", "teacher@search", "teacher@instruction")):
        checkpoint = tiny(seed=i)
        save_checkpoint(checkpoint.model, checkpoint.tokenizer, checkpoint_dir(model))
    for name in ("search", "instruction"):
        stage_dir("generate", name).mkdir(parents=True)
        made = of(name, tasks(100, horizon=2))
        write_tasks(stage_dir("generate", name) / "prompts.parquet", made[96:])
        write_tasks(stage_dir("generate", name) / "validation.parquet", made[:96])
    write_json(stage_dir("distill") / "metrics.json", {"spent_flops": 123})
    return tmp_path


def test_the_stage_writes_the_model_and_what_it_spent(project: Path) -> None:
    class StageLog(Log):
        def save_curves(self, folder: Path) -> None:
            (folder / "curves.jsonl").write_text("")

    log: Any = StageLog()
    config = laptop(("search", "instruction"))
    baseline.run(config, "average", log)
    made = load_checkpoint(checkpoint_dir("baseline@average"), MACHINE)
    teachers = {n: load_checkpoint(checkpoint_dir(f"teacher@{n}"), MACHINE).model for n in config.domains}
    assert all(torch.equal(made.model.state_dict()[key], value) for key, value in mean_weights(teachers).items())
    metrics = read_json(stage_dir("baseline", "average") / "metrics.json")
    assert metrics == {"spent_flops": 0, "spent_tokens_forward": 0, "spent_tokens_trained": 0, "distill_flops": 123}


def test_validation_and_prompts_are_those_of_teachers_and_distillation(project: Path) -> None:
    log: Any = Log()
    config = laptop(("search", "instruction"))
    given = baseline.collect(config, "seqkd", log)
    every = [task.id for task in of("search", tasks(100, horizon=2))]
    assert [task.id for task in given.validation["search"]] == every[:32]
    assert [task.id for task in given.prompts["search"]] == every[96:]
    short = replace(config, distill=replace(config.distill, max_horizon=1))
    assert baseline.collect(short, "seqkd", log).prompts == {"search": [], "instruction": []}
    assert given.flops == 123


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: write_json(stage_dir("distill") / "metrics.json", {}), ValueError, "what distillation spent"),
        (lambda: (checkpoint_dir("teacher@search") / "config.json").unlink(), ValueError, "not a usable checkpoint"),
        (lambda: checkpoint_dir("teacher@search").rename("gone"), FileNotFoundError, r"teach/search: missing"),
    ],
)
def test_what_is_not_there_is_named(project: Path, wrong: Callable[[], Any], error: Any, said: str) -> None:
    wrong()
    log: Any = Log()
    with pytest.raises(error, match=said):
        baseline.run(laptop(("search", "instruction")), "average", log)
    assert not stage_dir("baseline", "average").exists()


def test_a_target_and_a_count_that_cannot_be_are_refused(project: Path) -> None:
    log: Any = Log()
    config = laptop(("search", "instruction"))
    with pytest.raises(ValueError, match=r"unknown target 'soup'; known are continued, seqkd, average"):
        baseline.run(config, "soup", log)
    many = replace(config, baselines=replace(config.baselines, validation=97))
    with pytest.raises(ValueError, match=r"baselines\.validation=97: teach\.search\.validation has 96 tasks"):
        baseline.run(many, "average", log)
