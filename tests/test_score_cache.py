"""The cache of teacher scores: what it gives is what the teacher says, and a teacher runs for nothing that is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MACHINE
from test_training import FOUR, as_domain, demonstrations

from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train.router import Router
from openhorizon.train.score_cache import ScoreCache
from openhorizon.train.scores import TeacherScores, Wanted, score

WISHES = [
    FOUR,
    replace(FOUR, top_k=2),
    replace(FOUR, top_mass=0.6),
    replace(FOUR, top_k=3, whole=True),
    replace(FOUR, top_k=9),
    replace(FOUR, temperature=2.0),
]


def same(found: list[TeacherScores], expected: list[TeacherScores]) -> bool:
    """Bit by bit."""
    return all(
        a.teacher == b.teacher
        and torch.equal(a.support_NK, b.support_NK)
        and torch.equal(a.logprobs_NK, b.logprobs_NK)
        and torch.equal(a.tail_mass_N, b.tail_mass_N)
        and torch.equal(a.written_logprobs_N, b.written_logprobs_N)
        and len(a.hidden) == len(b.hidden)
        and all(torch.equal(x, y) for x, y in zip(a.hidden, b.hidden, strict=True))
        for a, b in zip(found, expected, strict=True)
    )


def test_scores_read_are_the_teachers_own_whatever_is_wanted(tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    teacher = tiny(seed=1)
    samples, never = demonstrations(teacher, 5), LocalPolicy(teacher, 8).never
    models = [teacher.model]
    for wanted in WISHES:
        direct = score(models, "x", samples, wanted, never, MACHINE)
        for opened in (ScoreCache(tmp_path), ScoreCache(tmp_path)):  # the second reads what is on disk
            found = opened.score(models, "x", samples, wanted, never, MACHINE)
            assert same(found, direct)
            if wanted.whole:
                made = [
                    (heads(hidden), one) for one in found for heads, hidden in zip(one.heads, one.hidden, strict=True)
                ]
                for logits, one in made:
                    logprobs = torch.log_softmax(logits, 1).gather(1, one.support_NK)
                    assert torch.allclose(logprobs, one.logprobs_NK, atol=1e-4)


def test_a_teacher_runs_for_what_is_missing_alone(tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    teacher, other = tiny(seed=1), tiny(seed=2)  # ``other`` under the same name shows by its numbers that it ran
    samples = list({tuple(sample.ids): sample for sample in demonstrations(teacher, 12)}.values())[:6]
    never = LocalPolicy(teacher, 8).never
    first = ScoreCache(tmp_path).score([teacher.model], "x", samples[:4], FOUR, never, MACHINE)
    cache = ScoreCache(tmp_path)

    def again(name: str, wanted: Wanted, never: torch.Tensor = never) -> list[TeacherScores]:
        return cache.score([other.model], name, samples[3::-1], wanted, never, MACHINE)

    def others(name: str, wanted: Wanted, never: torch.Tensor = never) -> list[TeacherScores]:
        return score([other.model], name, samples[3::-1], wanted, never, MACHINE)

    assert same(again("x", FOUR), first[::-1])
    grown = cache.score([other.model], "x", samples, FOUR, never, MACHINE)
    assert same(grown[:4], first)
    assert same(grown[4:], score([other.model], "x", samples[4:], FOUR, never, MACHINE))
    # Each of these asks for what was not stored: another teacher, temperature, wider support, hidden states, other ids.
    for wanted in (replace(FOUR, temperature=0.5), replace(FOUR, top_k=5), replace(FOUR, whole=True)):
        assert same(again("x", wanted), others("x", wanted))
    assert same(again("y", FOUR), others("y", FOUR))
    more = never.clone()
    more[first[0].support_NK[0, 0]] = True
    assert same(again("x", FOUR, more), others("x", FOUR, more))


def test_a_router_with_a_cache_routes_as_without(tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    student, teachers = tiny(seed=0), [Teacher("a", tiny(seed=1)), Teacher("b", tiny(seed=2))]
    samples = [as_domain(sample, "ab"[i % 2]) for i, sample in enumerate(demonstrations(student, 6))]
    never = LocalPolicy(student, 8).never
    plain = Router(student, teachers, ["a", "b"], "hard", 0).score(samples, FOUR, never, MACHINE)
    for _ in range(2):
        router = Router(student, teachers, ["a", "b"], "hard", 0, ScoreCache(tmp_path))
        assert same(router.score(samples, FOUR, never, MACHINE), plain)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]


def test_a_cut_off_file_is_named(tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    teacher = tiny(seed=1)
    samples, never = demonstrations(teacher, 2), LocalPolicy(teacher, 8).never
    ScoreCache(tmp_path).score([teacher.model], "x", samples, FOUR, never, MACHINE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=path.name):
        ScoreCache(tmp_path)
