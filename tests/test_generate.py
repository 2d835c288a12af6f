"""The generate stage end to end on a tiny domain: what it writes, that it repeats, and what it refuses."""

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_kag import Notes, some_task

from openhorizon import config as configs
from openhorizon.agent.render import read_action
from openhorizon.agent.trajectory import Status, read_tasks, read_trajectories
from openhorizon.artifacts import read_json, stage_dir
from openhorizon.config import BudgetConfig, Config, GenerateConfig
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Split, Task
from openhorizon.kag.store import read_graph
from openhorizon.stages import generate

REPO = Path(__file__).parents[1]
SMALL = GenerateConfig(
    worlds=("notes",),
    demonstrations=30,
    prompts=12,
    heldout=12,
    horizons=(1, 2, 4),
    heldout_horizons=(2, 8),
    prompt_horizons=(1, 2, 4),
    noise=0.3,
    max_proposals=5_000,
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
    raw = yaml.safe_load((REPO / "profiles" / "base.yaml").read_text())
    base: Config = configs._build(Config, raw, "base.yaml")
    budget = BudgetConfig(slack=1.0, extra=2, turn_tokens=64, context_tokens=512)
    return replace(base, seed=seed, generate={"notes": wanted}, budget={"notes": budget})


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DOMAINS, "notes", Notes())


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
    graph = read_graph(folder / "graph")
    assert {record.trajectory for record in graph.records} == {
        f"{t.task.id}/{t.seed}" for t in [*demonstrations, *rejected]
    }


def test_metrics_agree_with_the_files() -> None:
    folder = run(some_config())
    metrics = read_json(folder / "metrics.json")
    rejected = read_trajectories(folder / "rejected.parquet")
    assert metrics["counts"] == {"demonstrations": 30, "heldout": 12, "prompts": 12, "rejected": len(rejected)}
    solved = metrics["acceptance"]["demonstrations"]
    assert solved["accepted"] == 30
    assert solved["valid"] == len(rejected)
    assert metrics["reference_calls_off_horizon"] == 0
    tries = sum(row["tries"] for row in metrics["expert"].values())
    assert tries == 30 + len(rejected)
    assert metrics["expert"]["4"]["success"] == round(10 / metrics["expert"]["4"]["tries"], 4)
    seen = metrics["decontamination"]
    assert (seen["shared_pairs"], seen["shared_seeds"], seen["shared_prompts"]) == (0, 0, 0)
    assert (seen["heldout_pairs"], seen["train_pairs"]) == (12, 42)
    demonstrations = read_trajectories(folder / "demonstrations.parquet")
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
    assert len(found[0]) == 8
    other = digests(run(some_config(seed=1)))
    assert all(other[name] != found[0][name] for name in other)


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
    train = some_task()
    with pytest.raises(ValueError, match=rf"overlap: shared_{name} 1 \(such as "):
        generate.check_disjoint([replace(train, **change)], [train])  # type: ignore[arg-type]
    apart = replace(train, seed=2, prompt="p", entity_pairs=(("a", "b"),))
    assert generate.check_disjoint([apart], [train])["shared_pairs"] == 0


def test_a_leaking_domain_stops_the_stage_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky(Notes):
        def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
            task = super().propose(rng, split, horizon, seed)
            return task and replace(task, seed=7)

    monkeypatch.setitem(DOMAINS, "notes", Leaky())
    with pytest.raises(ValueError, match="overlap: shared_seeds 1"):
        run(some_config())
    assert not any(Path("artifacts/generate").iterdir())


def test_a_low_yield_says_which_rule_refused_and_keeps_the_last_good_artifact() -> None:
    before = digests(run(some_config()))
    with pytest.raises(
        ValueError, match=r"train tasks after 200 proposals, stuck at horizon \d, refused there: .*valid \d+"
    ):
        run(some_config(replace(SMALL, noise=1.0, max_proposals=200)))
    assert digests(stage_dir("generate", "notes")) == before


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(ValueError, match="unknown domain 'weather'"):
        generate.run(some_config(), "weather", Log())  # type: ignore[arg-type]


def test_the_log_gets_progress_counts_and_the_experts_success_by_horizon() -> None:
    log = Log()
    generate.run(some_config(), "notes", log)  # type: ignore[arg-type]
    assert log.said[-1][:2] == (54, 54)
    metrics = read_json(stage_dir("generate", "notes") / "metrics.json")
    assert log.points[0] == (0, {**metrics["counts"], "words_mean": metrics["words"]["mean"]})
    assert log.points[1:] == [(h, {"expert_success": metrics["expert"][str(h)]["success"]}) for h in (1, 2, 4)]
