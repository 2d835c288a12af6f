"""``openhorizon evaluate``: the stage's tasks and seeds, whoever plays."""

from __future__ import annotations

from typing import Any

import pytest
from servers import Server
from test_endpoint import count_up
from test_heldout import Log, setting  # noqa: F401 (a fixture)

from openhorizon import evaluating, players
from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.trajectory import Status, read_trajectories
from openhorizon.artifacts import read_json, stage_dir
from openhorizon.bench.base import read_records
from openhorizon.config import Config
from openhorizon.evaluating import Wanted
from openhorizon.stages import evaluate


def wanted(model: str, config: Config, **changes: Any) -> Wanted:
    options: dict[str, Any] = {"domains": config.domains, "tasks": 5, "temperature": 0.7, **changes}
    return Wanted(model, **options)


def test_a_checkpoint_gives_what_its_stage_gives(setting: Config, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("MACHINE", "cpu")
    log: Any = Log()
    evaluate.run(setting, "sft", log)
    player, out = players.open_player("sft", setting.machine), stage_dir("evaluate", "again")
    evaluating.evaluate(setting, player, wanted("sft", setting), out, log.progress)
    stage = stage_dir("evaluate", "sft")
    assert read_records(out / "records.parquet") == read_records(stage / "records.parquet")
    assert read_trajectories(out / "trajectories.parquet") == read_trajectories(stage / "trajectories.parquet")
    ours, theirs = read_json(out / "metrics.json"), read_json(stage / "metrics.json")
    assert ours == {**theirs, "temperature": 0.7}
    assert log.said[-1] == (5, 5)


def test_a_served_model_meets_the_same_tasks(setting: Config, serve: Any) -> None:  # noqa: F811
    server: Server = serve(count_up)
    player = players.open_player(f"{server.url}#strong", setting.machine)
    assert player == Endpoint(server.url, "strong") and player.name == f"{server.url}#strong"
    out = stage_dir("evaluate", "strong")
    (row, *_) = evaluating.evaluate(setting, player, wanted("strong", setting), out)
    assert (row.model, row.n, row.success) == ("strong", 5, 1.0)
    assert {record.status for record in read_records(out / "records.parquet")} == {Status.SOLVED}
    assert {asked["temperature"] for asked in server.seen} == {0.7}
    assert len({asked["seed"] for asked in server.seen}) == len(server.seen), "noise of its own for every turn"


def test_who_cannot_play_is_refused(setting: Config, serve: Any) -> None:  # noqa: F811
    out = stage_dir("evaluate", "x")
    player = Endpoint(serve(count_up).url, "strong")
    with pytest.raises(ValueError, match="unknown domain 'chess'"):
        evaluating.evaluate(setting, player, wanted("x", setting, domains=("chess",)), out)
    with pytest.raises(ValueError, match="6 held-out tasks"):
        evaluating.evaluate(setting, player, wanted("x", setting, tasks=7), out)
    for reference in ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1#"):
        with pytest.raises(ValueError, match="URL#MODEL"):
            players.open_player(reference, setting.machine)
    with pytest.raises(ValueError, match=r"unknown model 'ensemble'.*URL#MODEL"):
        players.open_player("ensemble", setting.machine)
    with pytest.raises(FileNotFoundError, match="artifacts/distill"):
        players.open_player("student", setting.machine)
    assert not out.exists()
