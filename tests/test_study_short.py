"""Short forms of studies, through the real flow: the effect's direction, what is shared and what is not done again.

One checkout serves all; each takes some minutes, and is run once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_pipeline import PARTS, ROOT, command

from openhorizon.report.claims import Claim, read_claims

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without artifacts."""
    root = tmp_path_factory.mktemp("studies")
    for part in (*PARTS, "studies"):
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, target)
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    return root


def claims(root: Path, study: str) -> dict[str, Claim]:
    return {claim.id.removeprefix(f"{study}/"): claim for claim in read_claims(root) if claim.study == study}


def test_horizon_points_the_right_way(project: Path) -> None:
    """The same model trained long is ahead on long tasks of itself, and of twice its size, trained short."""
    printed = command(project, "-m", "openhorizon", "study", "horizon", "--short")
    found = claims(project, "horizon")
    assert found.keys() == {"P_short", "2P_short"}
    for claim in found.values():
        assert claim.effect > 0, claim
        assert claim.tasks == 40 and claim.seeds == 1 and claim.tokens and claim.flops
        assert (project / claim.figure).read_text().startswith("<svg")
    runs = [line for line in printed.splitlines() if ": done in" in line]
    for stage, times in (("generate@science", 1), ("base", 2), ("sft", 3)):  # a base of each size
        assert sum(f" {stage}: done" in line for line in runs) == times, f"{stage}: shared by the arms that can"


def test_recover_points_the_right_way(project: Path) -> None:
    """Where the teachers' lead is theirs, distillation recovers some of it. Whether SFT that goes on with as many FLOPs
    does better depends on how long SFT had been (docs/results/README.md), so it has to be there, either way."""
    command(project, "-m", "openhorizon", "study", "recover", "--short")
    found = claims(project, "recover")
    assert found["private/headroom"].effect > 0.1 and found["private/gain"].effect > 0, found
    assert "private/continued" in found
    assert "P_short" in claims(project, "horizon"), "claims of another study stay"


@pytest.mark.long
def test_objective_points_the_right_way(project: Path) -> None:
    """Distillation improves on SFT, and a wrong teacher is far worse than the right one."""
    printed = command(project, "-m", "openhorizon", "study", "objective", "--short")
    found = claims(project, "objective")
    assert found["gain/sft"].effect > 0 and found["routing/shuffled"].effect > 0.3, found
    runs = [line for line in printed.splitlines() if ": done in" in line]
    for stage in ("base", "sft", "teach@science", "generate@science"):
        assert sum(f" {stage}: done" in line for line in runs) == 1, f"{stage} is shared by all arms"


def test_what_is_done_is_not_done_again_and_what_is_lost_is_restored(project: Path) -> None:
    """What an interrupted or cleaned workspace lacks comes back from the cache; nothing is trained again."""
    shutil.rmtree(project / ".openhorizon/studies/recover/short/private-10/artifacts/distill")
    before = {claim.id: claim.effect for claim in read_claims(project)}
    costs = {path.name: path.read_text() for path in (project / ".openhorizon/studies/costs").iterdir()}
    printed = command(project, "-m", "openhorizon", "study", "recover", "--short")
    assert ": done in" not in printed and "private-10 distill: restored" in printed
    assert "private-10 sft: up to date" in printed
    assert {claim.id: claim.effect for claim in read_claims(project)} == before
    assert {path.name: path.read_text() for path in (project / ".openhorizon/studies/costs").iterdir()} == costs
    assert all(json.loads(text)["tokens"] for name, text in costs.items() if "sft" in text)
