"""Teachers that a server scores: the top-k log-probabilities of given ids, in the place of running the teacher here.

A server that gives ``prompt_logprobs`` (vLLM, started with ``--max-logprobs`` of at least ``SPARE`` more than the
support) is sent the ids of a sample and says, for each, what the likeliest tokens there were. What it serves is checked
once: the first sample is scored by the teacher in this process, too, and the two must agree, so that no other model is
taken for the teacher.

``OPENHORIZON_TEACHERS`` says where: ``search=http://host:8000/v1#teacher-search,science=…``. Where scores are computed
is no part of a result's identity, and their last digits are the server's. Of several processes each asks for its share,
and all have the same answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from openhorizon.agent.endpoint import Endpoint, client, line
from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.model.load import Teacher
from openhorizon.train.scores import TeacherScores, Wanted, enough, score, shared
from openhorizon.world import World

VARIABLE = "OPENHORIZON_TEACHERS"
SPARE = 8  # likeliest tokens asked for beyond the support, in the place of those that no policy can write
AGREE = 0.05  # nats by which the log-probabilities of what was written may differ in the mean; bf16 is well inside

Said = Mapping[str, Mapping[str, Any]]  # token id → its log-probability and rank, at one position


@dataclass(frozen=True)
class RemoteScorer:
    """Scores by the servers of some teachers, by their hash; the others run here. ``score`` is ``train.scores.score``,
    so that ``Router`` takes it."""

    servers: Mapping[str, Endpoint]
    checked: set[str] = field(default_factory=set)

    def score(
        self,
        models: Sequence[PreTrainedModel],
        teacher: str,
        trajectories: Sequence[Trajectory],
        wanted: Wanted,
        invalid_V: torch.Tensor,
        machine: MachineConfig,
    ) -> list[TeacherScores]:
        """Raises ``ValueError``: the loss needs more than a top-k, or the server is not there, refuses, or serves
        another model."""
        if teacher not in self.servers or not trajectories:
            return score(models, teacher, trajectories, wanted, invalid_V, machine)
        if wanted.whole or wanted.temperature != 1:
            raise ValueError(
                f"{VARIABLE}: a server gives the teacher's top tokens at temperature 1 alone; distill.support_loss "
                "full and another distill.loss_temperature need the teacher here"
            )
        endpoint = self.servers[teacher]
        asking, mine = client(endpoint), World.here().deal(range(len(trajectories)))
        with ThreadPoolExecutor(endpoint.parallel) as pool:
            said = pool.map(lambda i: _ask(asking, endpoint, trajectories[i].ids, wanted.top_k + SPARE), mine)
            answered = dict(zip(mine, said, strict=True))
        every = shared({i: _scores(teacher, trajectories[i], it, wanted, invalid_V) for i, it in answered.items()})
        found = [every[i] for i in range(len(trajectories))]
        if teacher not in self.checked:
            (here,) = score(models, teacher, trajectories[:1], wanted, invalid_V, machine)
            apart = float((found[0].written_logprobs_N - here.written_logprobs_N.cpu()).abs().mean())
            if not apart <= AGREE:
                raise ValueError(
                    f"endpoint {endpoint.url}, model {endpoint.model}: not the teacher {teacher}: what a sample's "
                    f"tokens have for log-probabilities differs by {apart:.3f} in the mean"
                )
            self.checked.add(teacher)
        device = models[0].device
        return [
            TeacherScores(
                teacher, it.support_NK.to(device), it.logprobs_NK.to(device), it.tail_mass_N.to(device),
                it.written_logprobs_N.to(device),
            )
            for it in found
        ]  # fmt: skip


def remote_scorer(teachers: Sequence[Teacher]) -> RemoteScorer | None:
    """What ``OPENHORIZON_TEACHERS`` asks for; None where it is not set.

    Raises:
        ValueError: it names no teacher, or no endpoint.
    """
    asked = os.environ.get(VARIABLE, "")
    if not asked:
        return None
    hashes, servers = {it.domain: it.checkpoint.hash for it in teachers}, dict[str, Endpoint]()
    for part in asked.split(","):
        domain, _, address = part.strip().partition("=")
        url, _, model = address.partition("#")
        if domain not in hashes or not url.startswith(("http://", "https://")) or not model:
            raise ValueError(
                f"{VARIABLE}: {part.strip()!r} is not DOMAIN=URL#MODEL with a domain of {', '.join(sorted(hashes))}"
            )
        servers[hashes[domain]] = Endpoint(url, model)
    return RemoteScorer(servers)


def _ask(asking: Any, endpoint: Endpoint, ids: Sequence[int], count: int) -> list[Said | None]:
    """What the server says at each of ``ids``."""
    from openai import OpenAIError

    request: dict[str, Any] = {"model": endpoint.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
    request["extra_body"] = {"prompt_logprobs": count}
    where = f"endpoint {endpoint.url}, model {endpoint.model}"
    try:
        body = str(asking.completions.with_raw_response.create(**request).http_response.text)
        found = json.loads(body)["choices"][0]["prompt_logprobs"]
    except OpenAIError as error:
        raise ValueError(f"{where}: {line(error)} (vLLM wants --max-logprobs {count} or more)") from error
    except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{where}: gives no prompt_logprobs, so it cannot score for a teacher") from error
    if not isinstance(found, list) or len(found) != len(ids):
        raise ValueError(f"{where}: log-probabilities of {len(found or ())} ids for {len(ids)}")
    return found


def _scores(
    teacher: str, trajectory: Trajectory, said: Sequence[Said | None], wanted: Wanted, invalid_V: torch.Tensor
) -> TeacherScores:
    """As ``train.scores.score`` has them: -inf where fewer tokens than the support are valid."""
    never, ids = invalid_V.cpu(), trajectory.ids
    support, logprobs, written = list[list[int]](), list[list[float]](), list[float]()
    for at in (i for i, trained in enumerate(trajectory.loss_mask) if trained and i):
        here = said[at] or {}
        written.append(float(here[str(ids[at])]["logprob"]))
        # What was written is told in any case, and is among the likeliest only by its rank.
        top = sorted((-float(it["logprob"]), int(token)) for token, it in here.items() if _among(it, wanted.top_k))
        valid = [(token, -minus) for minus, token in top if not never[token]][: wanted.top_k]
        lacking = wanted.top_k - len(valid)
        support.append([token for token, _ in valid] + [0] * lacking)
        logprobs.append([logprob for _, logprob in valid] + [-torch.inf] * lacking)
    logprobs_NK = torch.tensor(logprobs, dtype=torch.float32).reshape(-1, wanted.top_k)
    if wanted.top_mass is not None:
        logprobs_NK = enough(logprobs_NK, wanted.top_mass)
    support_NK = torch.tensor(support, dtype=torch.long).reshape(-1, wanted.top_k)
    return TeacherScores(teacher, support_NK, logprobs_NK, 1 - logprobs_NK.exp().sum(1), torch.tensor(written))


def _among(said: Mapping[str, Any], top_k: int) -> bool:
    rank = said.get("rank")
    return rank is None or int(rank) <= top_k + SPARE
