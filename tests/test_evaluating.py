"""``openhorizon evaluate``: the stage's tasks and seeds, whoever plays."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import Reply, Server
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


KEPT = Path(".openhorizon/bench/heldout")  # the journal's folder


def test_a_killed_evaluation_goes_on(setting: Config, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """SIGKILL while the fifth task is played: the four before it are not asked for again; the result is the same."""
    monkeypatch.setattr(evaluating, "AT_ONCE", 2)
    released, before = threading.Event(), sum(horizon + 1 for horizon in (1, 2, 3, 1))

    def stuck(asked: dict[str, Any]) -> Reply:
        if len(server.seen) > before:
            released.wait(60)
        return count_up(asked)

    server: Server = serve(stuck)
    player, out = Endpoint(server.url, "strong"), stage_dir("evaluate", "strong")
    work = multiprocessing.get_context("fork").Process(
        target=evaluating.evaluate, args=(setting, player, wanted("strong", setting), out)
    )
    work.start()
    while not (found := list(KEPT.glob("*"))) or found[0].read_bytes().count(b"\n") < 5:
        assert work.is_alive()
        time.sleep(0.02)
    work.kill()
    work.join()
    assert not out.exists()
    released.set()
    server.seen.clear()
    evaluating.evaluate(setting, player, wanted("strong", setting), out)
    assert len(server.seen) == 2 + 1, "the fifth task's calls and its answer"
    assert not list(KEPT.iterdir()), "nothing is left of it"
    other = stage_dir("evaluate", "other")
    evaluating.evaluate(setting, Endpoint(serve(count_up).url, "strong"), wanted("strong", setting), other)
    assert read_records(out / "records.parquet") == read_records(other / "records.parquet")
    assert read_trajectories(out / "trajectories.parquet") == read_trajectories(other / "trajectories.parquet")


def test_what_was_aborted_is_played_by_the_next_run(setting: Config, serve: Any) -> None:  # noqa: F811
    closed = True

    def sometimes(asked: dict[str, Any]) -> Reply:
        return (503, b"") if closed and len(asked["messages"]) > 6 else count_up(asked)

    server: Server = serve(sometimes)
    player, out = Endpoint(server.url, "strong", retries=0), stage_dir("evaluate", "strong")
    (first, *_) = evaluating.evaluate(setting, player, wanted("strong", setting), out)
    closed = False
    server.seen.clear()
    (again, *_) = evaluating.evaluate(setting, player, wanted("strong", setting), out)
    assert (first.n, again.n, again.success) == (4, 5, 1.0) and len(server.seen) == 3 + 1
    assert not list(KEPT.iterdir())


def test_a_wave_in_this_process_is_kept(setting: Config, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("MACHINE", "cpu")
    small = replace(setting, machines={"cpu": replace(setting.machines["cpu"], rollout_batch=1)})
    whole, out = stage_dir("evaluate", "whole"), stage_dir("evaluate", "again")
    player = players.open_player("sft", small.machine)
    evaluating.evaluate(small, player, wanted("sft", small), whole)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluating.evaluate(small, player, wanted("sft", small), out, stop)
    log: Any = Log()
    evaluating.evaluate(small, player, wanted("sft", small), out, log.progress)
    assert log.said[0] == (4, 5)
    assert read_trajectories(out / "trajectories.parquet") == read_trajectories(whole / "trajectories.parquet")


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
