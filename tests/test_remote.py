"""Teachers behind a server: the same scores as here, from a real HTTP server with a real model's log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MACHINE
from servers import Reply, Server
from test_training import FOUR, as_domain, demonstrations

from openhorizon.agent.endpoint import Endpoint
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train.remote import SPARE, VARIABLE, RemoteScorer, remote_scorer
from openhorizon.train.router import Router
from openhorizon.train.scores import TeacherScores, score


def scoring(checkpoint: Checkpoint) -> Callable[[dict[str, Any]], Reply]:
    """vLLM's answer to a completion with ``prompt_logprobs``: the likeliest tokens, and the one that is there."""

    def answer(asked: dict[str, Any]) -> Reply:
        ids, count = asked["prompt"], asked["prompt_logprobs"]
        with torch.no_grad():
            logits = checkpoint.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        logprobs, said = torch.log_softmax(logits, dim=1), list[Any]([None])
        for at in range(1, len(ids)):
            before = logprobs[at - 1]
            ranked = before.argsort(descending=True).tolist()
            told = dict.fromkeys([*ranked[:count], ids[at]])
            said.append({str(t): {"logprob": float(before[t]), "rank": ranked.index(t) + 1} for t in told})
        return 200, json.dumps({"choices": [{"text": "", "prompt_logprobs": said}]}).encode()

    return answer


def alike(ours: list[TeacherScores], theirs: list[TeacherScores]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.support_NK, other.support_NK)
        for name in ("logprobs_NK", "tail_mass_N", "written_logprobs_N"):
            assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-4)
        assert one.teacher == other.teacher


@pytest.mark.parametrize("mass", [None, 0.6])
def test_a_server_scores_as_the_teacher_here(tiny: Callable[..., Checkpoint], serve: Any, mass: float | None) -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    server: Server = serve(scoring(teacher))
    samples, wanted = demonstrations(student, 5), replace(FOUR, top_mass=mass)
    never = LocalPolicy(student, 8).never
    remote = RemoteScorer({teacher.hash: Endpoint(server.url, "t")})
    there = remote.score([teacher.model], teacher.hash, samples, wanted, never, MACHINE)
    alike(there, score([teacher.model], teacher.hash, samples, wanted, never, MACHINE))
    assert len(server.seen) == 5 and {asked["prompt_logprobs"] for asked in server.seen} == {4 + SPARE}
    assert not any(never[token] for it in there for row in it.support_NK.tolist() for token in row)


def test_the_router_asks_the_server_of_the_sample(
    tiny: Callable[..., Checkpoint],
    serve: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, teachers = tiny(), [Teacher("a", tiny(seed=1)), Teacher("b", tiny(seed=2))]
    server: Server = serve(scoring(teachers[1].checkpoint))
    mixed = [as_domain(sample, "ab"[i % 2]) for i, sample in enumerate(demonstrations(student, 6))]
    never = LocalPolicy(student, 8).never
    here = Router(student, teachers, ["a", "b"], "hard", 0).score(mixed, FOUR, never, MACHINE)
    monkeypatch.setenv(VARIABLE, f"b={server.url}#t")
    router = Router(student, teachers, ["a", "b"], "hard", 0, remote_scorer(teachers))
    alike(router.score(mixed, FOUR, never, MACHINE), here)
    assert len(server.seen) == 3


def test_another_model_is_noticed(tiny: Callable[..., Checkpoint], serve: Any) -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    remote = RemoteScorer({teacher.hash: Endpoint(serve(scoring(tiny(seed=2))).url, "t")})
    never = LocalPolicy(student, 8).never
    with pytest.raises(ValueError, match=f"not the teacher {teacher.hash}"):
        remote.score([teacher.model], teacher.hash, demonstrations(student, 1), FOUR, never, MACHINE)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((400, b'{"error": {"message": "too many"}}'), r"--max-logprobs 12"),
        ((200, b'{"choices": [{"text": "x"}]}'), "gives no prompt_logprobs"),
        ((200, b'{"choices": [{"prompt_logprobs": [null]}]}'), r"log-probabilities of 1 ids for \d+"),
        ((200, b"nonsense"), "gives no prompt_logprobs"),
    ],
)
def test_servers_that_cannot(tiny: Callable[..., Checkpoint], serve: Any, reply: Reply, reason: str) -> None:
    student = tiny(seed=0)
    remote = RemoteScorer({"t": Endpoint(serve(lambda asked: reply).url, "t", retries=0)})
    never = LocalPolicy(student, 8).never
    with pytest.raises(ValueError, match=reason):
        remote.score([student.model], "t", demonstrations(student, 1), FOUR, never, MACHINE)
    with pytest.raises(ValueError, match="support_loss full"):
        remote.score([student.model], "t", demonstrations(student, 1), replace(FOUR, whole=True), never, MACHINE)


def test_where_teachers_are_served_is_checked(tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = [Teacher("a", tiny(seed=1))]
    monkeypatch.delenv(VARIABLE, raising=False)
    assert remote_scorer(teachers) is None
    for asked in ("b=http://x/v1#t", "a=x#t", "a=http://x/v1", "a"):
        monkeypatch.setenv(VARIABLE, asked)
        with pytest.raises(ValueError, match=r"is not DOMAIN=URL#MODEL with a domain of a"):
            remote_scorer(teachers)
