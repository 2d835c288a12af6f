"""The generate stage end to end on a tiny domain: what it writes, that it repeats, its shards, and what it refuses."""

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from notes import Notes, some_task
from settings import laptop

from openhorizon import config as configs
from openhorizon.agent.render import read_action
from openhorizon.agent.trajectory import Status, Trajectory, read_tasks, read_trajectories
from openhorizon.artifacts import read_json, stage_dir
from openhorizon.config import BudgetConfig, Config, GenerateConfig
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Expert, Split, Task
from openhorizon.kag.shards import Disjoint
from openhorizon.kag.store import open_graph
from openhorizon.stages import generate

REPO = Path(__file__).parents[1]
SMALL = GenerateConfig(
    worlds=("notes",),
    demonstrations=30,
    prompts=12,
    validation=6,
    heldout=12,
    horizons=(1, 2, 4),
    heldout_horizons=(2, 8),
    prompt_horizons=(1, 2, 4),
    noise=0.3,
    solver="expert",
    temperature=1.0,
    tries=3,
    solve_rate_min=0.0,
    solve_rate_max=1.0,
    steer_floor=1.0,
    steer_every=50,
    max_proposals=5_000,
    region_proposals=1_000,
    min_yield=0.05,
    shards=1,
    ngram=13,
    benchmarks=(),
)


class Log:
    """What the stage uses of a StageLog."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int, str]] = []
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, **values: float) -> None:
        self.points.append((step, values))

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.said.append((done, total, note))


def some_config(wanted: GenerateConfig = SMALL, seed: int = 0) -> Config:
    base = laptop()
    budget = BudgetConfig(slack=1.0, extra=2, turn_tokens=64, context_tokens=512)
    return replace(base, seed=seed, generate={"notes": wanted}, budget={"notes": budget})


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DOMAINS, "notes", Notes())
    monkeypatch.setattr(generate, "_processes", lambda _: 1)  # a process would not know the notes


def run(config: Config) -> Path:
    generate.run(config, "notes", Log())  # type: ignore[arg-type]
    return stage_dir("generate", "notes")


def test_what_is_written() -> None:
    folder = run(some_config())
    demonstrations = read_trajectories(folder / "demonstrations.parquet")
    rejected = read_trajectories(folder / "rejected.parquet")
    assert [t.task.horizon for t in demonstrations] == [1, 2, 4] * 10
    assert {t.status for t in demonstrations} == {Status.SOLVED}
    assert rejected
    assert {t.status for t in rejected} == {Status.TRUNCATED}
    assert all(t.verdict.reason.startswith("valid: ") for t in rejected)
    assert any(turn.error for t in demonstrations for turn in t.turns), "the expert strays"
    for trajectory in demonstrations:
        roles = [turn.role for turn in trajectory.turns]
        assert roles == ["prompt"] + ["assistant", "tool"] * trajectory.tool_calls + ["assistant"]
        assert trajectory.turns[0].text == trajectory.task.prompt
        assert read_action(trajectory.turns[-1].text) == Answer(trajectory.task.reference)
        assert trajectory.ids == []
        assert trajectory.tool_calls <= trajectory.task.horizon + 2
    assert Counter(t.horizon for t in read_tasks(folder / "prompts.parquet")) == {1: 4, 2: 4, 4: 4}
    heldout = read_tasks(folder / "heldout.parquet")
    assert Counter(t.horizon for t in heldout) == {2: 6, 8: 6}
    assert {t.split for t in heldout} == {"heldout"}
    graph = open_graph(folder / "graph")
    assert set(graph.trajectories.column("name").to_pylist()) == {
        f"{t.task.id}/{t.seed}" for t in [*demonstrations, *rejected]
    }
    assert not Path(".openhorizon/shards/notes").exists(), "the shards went into the artifact"


def taught() -> list[Trajectory]:
    return read_trajectories(stage_dir("generate", "notes") / "demonstrations.parquet")


def test_metrics_agree_with_the_files() -> None:
    folder = run(some_config())
    metrics = read_json(folder / "metrics.json")
    rejected = read_trajectories(folder / "rejected.parquet")
    assert metrics["counts"] == {
        "demonstrations": 30, "heldout": 12, "validation": 6, "prompts": 12, "rejected": len(rejected)
    }  # fmt: skip
    solved = metrics["acceptance"]["demonstrations"]
    assert solved["accepted"] == 30
    assert solved["valid"] == len(rejected)
    assert metrics["reference_calls_off_horizon"] == 0
    rates = metrics["solve_rates"]
    assert sum(row["tries"] for row in rates["by_horizon"].values()) == 30 + len(rejected)
    assert rates["by_horizon"]["4"]["success"] == round(10 / rates["by_horizon"]["4"]["tries"], 4)
    assert rates["by_region"]["notes@4"] == rates["by_horizon"]["4"]
    assert metrics["by_world"]["notes"]["acceptance"] == metrics["acceptance"]
    assert metrics["yield"]["demonstrations"] == round(30 / (30 + len(rejected)), 4)
    assert metrics["environment_deaths"] == {"all": 0, "given_up": 0}
    assert metrics["graph"]["records"] == sum(t.tool_calls + (t.answer is not None) for t in [*taught(), *rejected])
    seen = metrics["decontamination"]
    assert (seen["shared_pairs"], seen["shared_seeds"], seen["shared_prompts"]) == (0, 0, 0)
    assert (seen["heldout_pairs"], seen["train_pairs"]) == (12, 42)
    assert (seen["pairs_dropped"], seen["prompts_dropped"], seen["contaminated_dropped"]) == (0, 0, 0)
    assert metrics["contamination"]["checked"] > 0 and metrics["closed_regions"] == []
    demonstrations = taught()
    assert metrics["tool_calls"]["mean"] == round(sum(t.tool_calls for t in demonstrations) / 30, 3)
    assert metrics["words"]["max"] == max(sum(len(turn.text.split()) for turn in t.turns) for t in demonstrations)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_in_processes_with_other_hash_seeds() -> None:
    script = "import test_generate as t; t.DOMAINS['notes'] = t.Notes(); t.run(t.some_config())"
    path = os.pathsep.join([str(REPO / "src"), str(REPO / "tests")])
    found = []
    for name in ("1", "2"):
        Path(name).mkdir()
        env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": name}
        subprocess.run([sys.executable, "-c", script], cwd=name, env=env, check=True)
        found.append(digests(Path(name) / stage_dir("generate", "notes")))
    assert found[0] == found[1]
    assert len(found[0]) == 10
    other = digests(run(some_config(seed=1)))
    assert all(other[name] != found[0][name] for name in other)


def test_what_validation_stands_on_no_training_task_stands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 pairs most would be in both by chance; nor does validation take anything of the held-out tasks."""

    class Few(Notes):
        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            task = super().propose(rng, split, horizon, seed)
            return task and replace(task, entity_pairs=((split.replace("heldout", "train"), str(seed % 30)),))

    monkeypatch.setitem(DOMAINS, "notes", Few())
    folder = run(some_config(replace(SMALL, shards=2)))
    tasks = {name: read_tasks(folder / f"{name}.parquet") for name in ("heldout", "validation", "prompts")}
    tasks["train"] = [*tasks.pop("prompts"), *(t.task for t in taught())]
    assert Counter(t.horizon for t in tasks["validation"]) == {1: 2, 2: 2, 4: 2}
    assert [len(tasks[name]) for name in ("heldout", "validation", "train")] == [12, 6, 42]
    for one, other in combinations(tasks.values(), 2):
        assert {p for t in one for p in t.entity_pairs}.isdisjoint(p for t in other for p in t.entity_pairs)
    metrics = read_json(folder / "metrics.json")
    assert metrics["decontamination"]["pairs_dropped"] > 0 < metrics["acceptance"]["validation"]["shared pair"]
    assert metrics["decontamination"]["validation_pairs"] == len({t.entity_pairs for t in tasks["validation"]})


def test_a_domain_may_set_apart_what_validation_stands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Apart(Notes):
        apart = True
        asked: ClassVar[set[str]] = set()

        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            self.asked.add(split)
            task = super().propose(rng, "train" if split == "validation" else split, horizon, seed)
            return task and replace(task, split=split)

    monkeypatch.setitem(DOMAINS, "notes", Apart())
    validation = read_tasks(run(some_config()) / "validation.parquet")
    assert Apart.asked == {"train", "validation", "heldout"}
    assert {task.split for task in validation} == {"validation"}


def test_more_prompts_leave_the_demonstrations_as_they_are() -> None:
    before = digests(run(some_config()))
    after = digests(run(some_config(replace(SMALL, prompts=20))))
    assert before["demonstrations.parquet"] == after["demonstrations.parquet"]
    assert before["heldout.parquet"] == after["heldout.parquet"]
    assert before["prompts.parquet"] != after["prompts.parquet"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompt": "p", "entity_pairs": (("a", "b"),)}, "seeds"),
        ({"seed": 2, "entity_pairs": (("a", "b"),)}, "prompts"),
        ({"seed": 2, "prompt": "p"}, "pairs"),
    ],
)
def test_an_overlap_raises(change: dict[str, object], name: str) -> None:
    held = some_task()
    with pytest.raises(ValueError, match=rf"overlap: task t: shared {name} \(such as "):
        Disjoint([held]).add(replace(held, **change))  # type: ignore[arg-type]
    fine = Disjoint([held])
    fine.add(replace(held, seed=2, prompt="p", entity_pairs=(("a", "b"), ("a", "c"))))
    assert fine.report()["shared_pairs"] == 0
    assert (fine.report()["heldout_pairs"], fine.report()["train_pairs"]) == (1, 2)


def test_a_leaking_domain_stops_the_stage_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky(Notes):
        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            task = super().propose(rng, split, horizon, seed)
            return task and replace(task, seed=7)

    monkeypatch.setitem(DOMAINS, "notes", Leaky())
    with pytest.raises(ValueError, match=r"overlap: .*shared seeds"):
        run(some_config())
    assert not list(Path("artifacts").rglob("*.parquet"))


def test_a_low_yield_says_which_rule_refused_and_keeps_the_last_good_artifact() -> None:
    before = digests(run(some_config()))
    match = (
        r"30 demonstrations: \d+ of \d+ tasks refused, so that the yield is under min_yield=0.05, stuck at .*valid \d+"
    )
    with pytest.raises(ValueError, match=match):
        run(some_config(replace(SMALL, noise=1.0)))
    assert digests(stage_dir("generate", "notes")) == before


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(ValueError, match="unknown domain 'weather'"):
        generate.run(some_config(), "weather", Log())  # type: ignore[arg-type]


def test_the_log_gets_progress_counts_and_the_solve_rate_by_horizon() -> None:
    log = Log()
    generate.run(some_config(), "notes", log)  # type: ignore[arg-type]
    assert log.said[-1][:2] == (42, 42)
    assert (0, 12, "heldout") in log.said
    metrics = read_json(stage_dir("generate", "notes") / "metrics.json")
    assert log.points[0] == (0, {**metrics["counts"], "words_mean": metrics["words"]["mean"]})
    rates = metrics["solve_rates"]["by_horizon"]
    assert log.points[1:] == [(h, {"solve_rate": rates[str(h)]["success"]}) for h in (1, 2, 4)]


# Worlds.


class Diary(Notes):
    """Another world of the same domain, which has tasks of two horizons only."""

    source = "diary"

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        return tuple(h for h in horizons if h in (2, 3))

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        task = super().propose(rng, split, horizon, seed)
        return task and replace(task, id=f"diary-{seed}", source="diary", prompt=f"Diary. {task.prompt}")

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return super().expert(prompt.removeprefix("Diary. "), rng, noise)


def test_tasks_of_several_worlds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "notes/diary", Diary())
    run(some_config(replace(SMALL, worlds=("notes", "notes/diary"))))
    found = Counter((t.task.world, t.task.horizon) for t in taught())
    assert found == {("notes", 1): 5, ("notes", 2): 5, ("notes", 4): 5, ("notes/diary", 2): 15}
    metrics = read_json(stage_dir("generate", "notes") / "metrics.json")
    assert metrics["by_world"]["notes/diary"]["by_horizon"]["demonstrations"] == {"2": 15}
    assert metrics["by_horizon"]["demonstrations"] == {"1": 5, "2": 20, "4": 5}
    assert set(metrics["description"]["worlds"]) == {"notes", "notes/diary"}


def test_a_world_with_none_of_the_horizons_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "notes/diary", Diary())
    wanted = replace(SMALL, worlds=("notes", "notes/diary"), heldout_horizons=(8,))
    with pytest.raises(ValueError, match=r"notes\.heldout_horizons: world notes/diary has tasks of none of \[8\]"):
        run(some_config(wanted))


# Shards.


def test_shards_have_tasks_of_their_own_and_share_the_heldout_ones() -> None:
    one = run(some_config())
    before = digests(one)
    config = some_config(replace(SMALL, shards=3))
    folder = run(config)
    assert digests(folder)["heldout.parquet"] == before["heldout.parquet"]
    demonstrations = taught()
    assert Counter(t.task.horizon for t in demonstrations) == {1: 10, 2: 10, 4: 10}
    assert len({t.task.seed for t in demonstrations}) == 30
    metrics = read_json(folder / "metrics.json")
    assert metrics["shards"] == 3
    assert metrics["counts"]["prompts"] == 12
    assert metrics["description"]["all"]["accepted"] == 30
    assert metrics["graph"]["records"] > 0
    graph = open_graph(folder / "graph")
    rejected = read_trajectories(folder / "rejected.parquet")
    assert graph.trajectories.num_rows == 30 + len(rejected)


def test_shards_made_apart_in_any_order_give_the_same_bytes() -> None:
    """As a flow makes them; what is finished is not made again, and an interrupted run goes on from there."""
    config = some_config(replace(SMALL, shards=3))
    together = digests(run(config))
    for shard in ("2", "heldout", "0"):
        generate.run_shard(config, "notes", shard, lambda done, total, note: None)
    work = generate.work_folder(config, "notes")
    made = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
    assert {path.relative_to(work).parts[0] for path in made} == {"2", "heldout", "0"}
    generate.run_shard(config, "notes", "2", lambda done, total, note: None)
    assert made == {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
    assert digests(run(config)) == together


def test_shards_side_by_side_in_processes_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = yaml.safe_load((REPO / "params.yaml").read_text())
    small = {"demonstrations": 24, "prompts": 8, "validation": 4, "heldout": 8, "shards": 3, "benchmarks": []}
    raw["generate"]["tool_calling"] |= small | {"horizons": [1, 2, 3], "heldout_horizons": [2]}
    raw["teach"]["tool_calling"]["validation"] = 4
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    config = configs.load()
    monkeypatch.setenv("PYTHONPATH", str(REPO / "src"))
    found = []
    for processes in (1, 2):
        monkeypatch.setattr(generate, "_processes", lambda _, processes=processes: processes)
        generate.run(config, "tool_calling", Log())  # type: ignore[arg-type]
        found.append(digests(stage_dir("generate", "tool_calling")))
    assert found[0] == found[1]


def test_a_shard_that_fails_in_its_process_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = yaml.safe_load((REPO / "params.yaml").read_text())
    small = {"demonstrations": 24, "validation": 0, "heldout": 0, "shards": 2, "benchmarks": [], "max_proposals": 3}
    raw["generate"]["tool_calling"] |= small
    raw["teach"]["tool_calling"]["validation"] = 0
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("PYTHONPATH", str(REPO / "src"))
    monkeypatch.setattr(generate, "_processes", lambda _: 2)
    with pytest.raises(ValueError, match=r"shard \d: generate.tool_calling: \d of 12 demonstrations after 3 proposals"):
        generate.run(configs.load(), "tool_calling", Log())  # type: ignore[arg-type]


def test_what_two_shards_came_upon_is_dropped_at_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    class Few(Notes):
        """So few chains that shards must meet."""

        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            if split == "heldout":
                return super().propose(rng, split, horizon, seed)
            number = rng.randrange(60)
            chain = [f"n{number}x{i}" for i in range(horizon)]
            state = {"chain": chain, "answer": f"word{number}"}
            task = super().propose(random.Random(0), "train", horizon, seed) or super().propose(
                random.Random(1), "train", horizon, seed
            )
            assert task is not None
            pairs = ((chain[0], state["answer"]),)
            return replace(
                task, prompt=f"Start at {chain[0]}. Which word?", state=state, evidence=tuple(chain),
                reference=f"word{number}", entity_pairs=pairs,
            )  # fmt: skip

    monkeypatch.setitem(DOMAINS, "notes", Few())
    folder = run(some_config(replace(SMALL, shards=3, demonstrations=60, prompts=30, noise=0.0)))
    demonstrations, prompts = taught(), read_tasks(folder / "prompts.parquet")
    rejected = read_trajectories(folder / "rejected.parquet")
    every = [t.task.prompt for t in demonstrations] + [task.prompt for task in prompts]
    worlds = [str(t.task.state) for t in demonstrations] + [str(task.state) for task in prompts]
    assert len(set(zip(every, worlds, strict=True))) == len(every)
    metrics = read_json(folder / "metrics.json")
    assert len(demonstrations) < 60 and len(prompts) < 30
    doubles = [t for t in rejected if t.verdict.reason.startswith("duplicate: an earlier shard")]
    assert len(doubles) == 60 - len(demonstrations)
    assert metrics["counts"]["demonstrations"] == metrics["acceptance"]["demonstrations"]["accepted"]
    assert metrics["counts"]["prompts"] == metrics["acceptance"]["prompts"]["accepted"]
    assert metrics["description"]["all"]["accepted"] == len(demonstrations)
    assert sum(metrics["description"]["all"]["horizons"].values()) == len(demonstrations)
    assert sum(low_high[2] for low_high in metrics["description"]["all"]["words"]["bins"]) == len(demonstrations)


def test_other_params_or_code_make_other_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = some_config()
    folder = generate.work_folder(config, "notes")
    assert generate.work_folder(some_config(), "notes") == folder
    assert generate.work_folder(some_config(seed=1), "notes") != folder
    assert generate.work_folder(some_config(replace(SMALL, noise=0.1)), "notes") != folder
    monkeypatch.setattr(generate, "DECIDING_CODE", ("kag",))
    assert generate.work_folder(config, "notes") != folder


def test_an_unknown_shard_is_named() -> None:
    for shard in ("3", "-1", "all"):
        with pytest.raises(ValueError, match=f"no shard '{shard}'"):
            generate.run_shard(some_config(replace(SMALL, shards=3)), "notes", shard, lambda done, total, note: None)


# Solvers.


@pytest.mark.parametrize("solver", ["endpoint:http://127.0.0.1:1/v1", "checkpoint:", "oracle", "endpoint:#model"])
def test_an_unknown_solver_is_named(solver: str) -> None:
    with pytest.raises(ValueError, match=r"solver: .* is none of expert, checkpoint:FOLDER, endpoint:URL#MODEL"):
        run(some_config(replace(SMALL, solver=solver)))


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(some_config(replace(SMALL, solver="checkpoint:nowhere")))


def test_a_checkpoint_solves_and_its_hash_names_the_policy(
    tiny: Callable[..., Any],
) -> None:
    """A random student solves nothing: the run says which rule refused what, and the checkpoint did write turns."""
    from openhorizon.model.load import save_checkpoint, weights_hash

    checkpoint = tiny()
    save_checkpoint(checkpoint.model, checkpoint.tokenizer, Path("student"))
    config = some_config(replace(SMALL, solver="checkpoint:student", tries=2, horizons=(1,), region_proposals=20))
    with pytest.raises(ValueError, match=r"30 demonstrations: notes at horizon 1 gave 0 .*valid \d+"):
        run(config)
    solver = generate.make_solver(config, "notes", {"notes": Notes()})
    (episode,) = solver.solve([some_task()], 0)
    assert episode.policy == weights_hash(Path("student"))
    assert episode.turns[1].text and not episode.turns[1].ids
