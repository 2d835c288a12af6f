"""Every horizon that profile h200 asks for is one that its worlds can serve: tasks are proposed, solved and judged by
all five rules, as the real stage does it. What it costs is the length of its trajectories, hence `slow` or `long`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml

from openhorizon import profiles
from openhorizon.agent.rollout import allowed_calls
from openhorizon.config import Config, build
from openhorizon.domains import DOMAINS
from openhorizon.kag.selfplay import Bounds, Memory, Part, SelfPlay
from openhorizon.kag.solve import ExpertSolver
from openhorizon.stages.generate import regions

FOLDER = Path(__file__).parents[1] / "profiles"
TASKS = 2  # of each world, horizon and part
LONG = ("engineering",)  # runs every script of a trajectory in the sandbox, twice
REFUSALS = 20  # in a row, proposals that gave no task among them: a region worse than that is none


def h200() -> Config:
    base, changes = (yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("base", "h200"))
    config: Config = build(Config, profiles.fill(profiles.merge(base, changes)), "h200")
    return config


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LONG else pytest.mark.slow) for name in h200().domains],
)
def test_every_world_serves_every_horizon_it_is_asked_for(name: str) -> None:
    config = h200()
    wanted, calls = config.generate[name], partial(allowed_calls, config.budget[name])
    worlds = {world: DOMAINS[world] for world in wanted.worlds}
    bounds = Bounds(10_000, REFUSALS, 0.0)
    for part, horizons, tries, noise in (
        ("heldout", wanted.heldout_horizons, 0, 0.0),
        ("prompts", wanted.prompt_horizons, 0, 0.0),
        ("demonstrations", wanted.horizons, wanted.tries, wanted.noise),
    ):
        for region in dict.fromkeys(regions(worlds, tuple(worlds), horizons, part)):
            play = SelfPlay(worlds, ExpertSolver(worlds, noise, calls), calls, bounds, config.seed, 0, Memory())
            made = [it for it in play.expand(Part(part, TASKS, (region,), tries)) if not it.rule]  # type: ignore[arg-type]
            assert len(made) == TASKS
            assert all(it.episode and it.episode.task.horizon == region.horizon for it in made)
