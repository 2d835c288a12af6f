"""The description of a domain's data: what is counted, merged and carried between processes."""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter

import pytest

from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.domains.base import Task, Verdict
from openhorizon.kag.describe import BINS, Description, spread
from openhorizon.kag.graph import ABILITIES, of_trajectory

CALL = '<tool_call>{{"name": "read", "arguments": {{"note": "n{}"}}}}</tool_call>'


def episode(horizon: int, source: str = "", seed: int = 0) -> Trajectory:
    task = Task("notes", "t", "train", "Start at n0 now", horizon, 1, {}, (), ("a",), "x", (), source)
    turns = [Turn("prompt", task.prompt)]
    for i in range(horizon):
        turns += [Turn("assistant", CALL.format(i)), Turn("tool", f"next n{i + 1}", evidence=(f"n{i}",))]
    turns.append(Turn("assistant", f"n{horizon}"))
    return Trajectory(task, tuple(turns), "x", Status.SOLVED, Verdict(True, 1.0, ""), "expert", seed)


def described(part: range) -> Description:
    found = Description()
    for i in part:
        rule = ("", "", "valid", "no shortcut")[i % 4]
        found.add(episode(1 + i % 7, ("", "deep")[i % 3 == 0]), not rule, rule)
        if i % 5 == 0:
            found.refuse("notes", "duplicate", 2)
    return found


def test_figures_say_what_was_added() -> None:
    figures = described(range(40)).figures()
    assert list(figures["worlds"]) == ["notes", "notes/deep"]
    whole = figures["all"]
    assert whole["rules"] == {"accepted": 20, "duplicate": 16, "no shortcut": 10, "valid": 10}
    assert (whole["accepted"], whole["refused"]) == (20, 36)
    kept = [1 + i % 7 for i in range(40) if i % 4 < 2]
    assert whole["horizons"] == {str(h): n for h, n in sorted(Counter(kept).items())}
    assert whole["tried"] == {str(h): n for h, n in sorted(Counter(1 + i % 7 for i in range(40)).items())}
    lengths = [4 + 7 * h + 1 for h in kept]
    assert whole["words"]["mean"] == pytest.approx(statistics.mean(lengths))
    assert whole["words"]["max"] == max(lengths)
    assert whole["tool_calls"]["mean"] == pytest.approx(statistics.mean(kept))
    assert whole["abilities"]["tool calling"] == sum(kept)
    assert whole["covered"]["tool calling"] == 20
    assert list(whole["abilities"]) == list(ABILITIES)
    for name in ("accepted", "refused"):
        assert sum(world[name] for world in figures["worlds"].values()) == whole[name]


def test_records_that_were_made_already_give_the_same() -> None:
    trajectory, first, second = episode(5), Description(), Description()
    first.add(trajectory, True)
    second.add(trajectory, True, records=of_trajectory("other", trajectory).records)
    assert first.figures() == second.figures()


def test_shards_merge_into_what_one_would_have_counted() -> None:
    whole, merged = described(range(60)), Description()
    for part in (range(0, 13), range(13, 13), range(13, 60)):
        shard = Description.from_json(json.loads(json.dumps(described(part).to_json())))
        merged.merge(shard)
    assert merged.to_json() == whole.to_json()
    assert merged.figures() == whole.figures()
    assert json.loads(json.dumps(merged.figures())) == merged.figures()


def test_nothing_accepted_is_described_too() -> None:
    none = Description()
    none.add(episode(3), False, "valid")
    figures = none.figures()["all"]
    assert figures["words"] == {}
    assert figures["horizons"] == {}
    assert figures["abilities"] == dict.fromkeys(ABILITIES, 0)
    assert Description().figures()["all"]["accepted"] == 0


def test_an_accepted_trajectory_has_no_rule_and_a_refused_one_has() -> None:
    for accepted, rule in ((True, "valid"), (False, "")):
        with pytest.raises(ValueError, match=f"accepted={accepted}"):
            Description().add(episode(1), accepted, rule)


def test_spread_agrees_with_a_sorted_list() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        values = sorted(draw.randrange(10 ** draw.randrange(1, 6)) for _ in range(draw.randrange(1, 300)))
        found = spread(Counter(values))
        assert [found[f"p{q}"] for q in (5, 50, 95)] == [values[len(values) * q // 100] for q in (5, 50, 95)]
        assert found["mean"] == pytest.approx(statistics.mean(values), abs=1e-3)
        assert (found["min"], found["max"]) == (values[0], values[-1])
        assert len(found["bins"]) <= BINS
        assert [n for _, _, n in found["bins"]] == [sum(a <= v <= b for v in values) for a, b, _ in found["bins"]]
        assert sum(n for _, _, n in found["bins"]) == len(values)
    assert spread({}) == {}
