"""What a teacher says at each trainable position of a trajectory: its top-k, with what other losses need
(``score_cache.py`` keeps it on disk).

Several teachers are scored as one, the mean of their distributions (the ablation that hard routing is held against).

N positions, C of a chunk, V vocabulary, K support, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.losses.chunked import CHUNK_LOGITS, by_chunks
from openhorizon.train.packing import (
    convolution_gap,
    output_layer,
    pack_trajectories,
    packed_hidden,
    passes,
    recurrent,
)
from openhorizon.world import World

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states (N, H) → logits (N, V)
LEAST = 2  # tokens of a support chosen by mass: of one, renormalised, nothing can be learned


@dataclass(frozen=True)
class Wanted:
    """What a loss has to know of a teacher. ``whole``: its last hidden states, too, which stand for all it said."""

    top_k: int  # tokens of the support, at most
    top_mass: float | None  # the support is the fewest tokens with this mass; None: top_k always
    temperature: float  # of the teacher's distribution
    whole: bool


@dataclass(frozen=True)
class TeacherScores:
    """For the n trainable tokens of one trajectory, in order: K valid token ids with the teacher's log-probabilities
    (over its whole vocabulary; -inf where the support is shorter), the mass left outside, and the log-probability of
    the token that is there. ``teacher`` is the teacher's weight hash. ``hidden`` and ``heads`` hold a teacher's last
    hidden states (n, H) and its output layer, one a teacher, where the whole distribution is wanted."""

    teacher: str
    support_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    tail_mass_N: torch.Tensor
    written_logprobs_N: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()
    heads: tuple[Head, ...] = ()


class Scorer(Protocol):
    """Whoever says what a teacher would: ``score`` below, by another way."""

    def score(
        self,
        models: Sequence[PreTrainedModel],
        teacher: str,
        trajectories: Sequence[Trajectory],
        wanted: Wanted,
        invalid_V: torch.Tensor,
        machine: MachineConfig,
    ) -> list[TeacherScores]: ...


@torch.no_grad()
def score(
    models: Sequence[PreTrainedModel],
    teacher: str,
    trajectories: Sequence[Trajectory],
    wanted: Wanted,
    invalid_V: torch.Tensor,
    machine: MachineConfig,
) -> list[TeacherScores]:
    """Scores of each trajectory by the mean distribution of ``models``, mostly one. ``invalid_V`` marks ids that no
    policy can generate: they are never in the support. Of several processes each scores its share, and all have all."""
    device, vocabulary = models[0].device, models[0].config.vocab_size
    invalid_V = invalid_V.to(device)
    heads = tuple(output_layer(model, machine) for model in models)

    def salient(
        logits_CV: torch.Tensor, written_C: torch.Tensor, *others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        every = [logits_CV, *(head(hidden_CH) for head, hidden_CH in zip(heads[1:], others, strict=True))]
        if wanted.temperature != 1:
            every = [logits / wanted.temperature for logits in every]
        scores_CV = every[0] if len(every) == 1 else said_by(every)
        total_C1 = torch.logsumexp(scores_CV, dim=1, keepdim=True)
        top = scores_CV.masked_fill(invalid_V, -torch.inf).topk(wanted.top_k, dim=1)
        written_C = scores_CV.gather(1, written_C[:, None])[:, 0] - total_C1[:, 0]
        return top.indices, top.values - total_C1, written_C

    results: dict[int, TeacherScores] = {}
    strictest = max(models, key=lambda model: (recurrent(model), convolution_gap(model)))  # what keeps all from leaking
    for turn in passes(trajectories, machine.micro_tokens, recurrent(strictest)):
        part = turn.samples
        packed = pack_trajectories(strictest, [trajectories[i] for i in part], machine)
        hidden = [packed_hidden(model, packed, machine) for model in models]
        rows = (packed.ids_RT[packed.train_RT].to(device), *hidden[1:])
        size = CHUNK_LOGITS // len(models)
        indices_NK, logprobs_NK, written_N = by_chunks(
            heads[0], hidden[0], vocabulary, salient, *rows, chunk_logits=size
        )
        if wanted.top_mass is not None:
            logprobs_NK = enough(logprobs_NK, wanted.top_mass)
        tail_N = 1 - logprobs_NK.exp().sum(1)
        sample_N = packed.sample_RT[packed.train_RT].to(device)
        for i, place in enumerate(part) if turn.counts else ():
            mine = sample_N == i
            kept = tuple(hidden_NH[mine] for hidden_NH in hidden) if wanted.whole else ()
            results[place] = TeacherScores(
                teacher, indices_NK[mine], logprobs_NK[mine], tail_N[mine], written_N[mine], kept
            )
    every = shared(results)
    return [replace(every[i], heads=heads if wanted.whole else ()) for i in range(len(trajectories))]


def shared(mine: dict[int, TeacherScores]) -> dict[int, TeacherScores]:
    """Those of all processes, by place; of several, in main memory."""
    world = World.here()
    if world.size == 1:
        return mine
    sent = {i: _in_main_memory(one) for i, one in mine.items()}
    return {i: one for share in world.gather(sent) for i, one in share.items()}


def _in_main_memory(one: TeacherScores) -> TeacherScores:
    return TeacherScores(
        one.teacher,
        one.support_NK.cpu(),
        one.logprobs_NK.cpu(),
        one.tail_mass_N.cpu(),
        one.written_logprobs_N.cpu(),
        tuple(hidden.cpu() for hidden in one.hidden),
    )


def said_by(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Log-probabilities (C, V) of the mean of the distributions that ``logits`` (C, V) are of."""
    logprobs = [torch.log_softmax(logits_CV, dim=1) for logits_CV in logits]
    if len(logprobs) == 1:
        return logprobs[0]
    return torch.logsumexp(torch.stack(logprobs), dim=0) - math.log(len(logprobs))


def enough(logprobs_NK: torch.Tensor, mass: float) -> torch.Tensor:
    """The fewest tokens, from the likeliest on, whose mass is at least ``mass`` (or all), but ``LEAST``; -inf in place
    of the others. ``logprobs_NK`` falls along K."""
    probabilities_NK = logprobs_NK.exp()
    before_NK = probabilities_NK.cumsum(1) - probabilities_NK
    kept_NK = before_NK < mass
    kept_NK[:, :LEAST] = True
    return logprobs_NK.masked_fill(~kept_NK, -torch.inf)
