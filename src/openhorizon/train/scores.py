"""What a teacher says at each trainable position of a trajectory: its top-k, cached with what other losses need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.losses.chunked import by_chunks
from openhorizon.train.packing import micro_batches, output_layer, pack_trajectories, packed_hidden


@dataclass(frozen=True)
class TeacherScores:
    """For the n trainable tokens of one trajectory, in order: K valid token ids with the teacher's log-probabilities
    (over its whole vocabulary), and the mass left outside. ``teacher`` is the teacher's weight hash."""

    teacher: str
    support_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    tail_mass_N: torch.Tensor


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    teacher: str,
    trajectories: Sequence[Trajectory],
    top_k: int,
    invalid_V: torch.Tensor,
    machine: MachineConfig,
) -> list[TeacherScores]:
    """Scores of each trajectory. ``invalid_V`` marks ids that no policy can generate: they are never in the support."""
    invalid_V = invalid_V.to(model.device)
    head = output_layer(model, machine)

    def salient(logits_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total_C = torch.logsumexp(logits_CV, dim=1, keepdim=True)
        top = logits_CV.masked_fill(invalid_V, -torch.inf).topk(top_k, dim=1)
        return top.indices, top.values - total_C

    results: list[TeacherScores] = []
    for part in micro_batches(trajectories, machine.micro_tokens):
        packed = pack_trajectories(model, [trajectories[i] for i in part], machine)
        hidden_NH = packed_hidden(model, packed, machine)
        indices_NK, logprobs_NK = by_chunks(head, hidden_NH, model.config.vocab_size, salient)
        tail_N = 1 - logprobs_NK.exp().sum(1)
        sample_N = packed.sample_RT[packed.train_RT].to(model.device)
        for i in range(len(part)):
            mine = sample_N == i
            # inference tensors cannot enter autograd: clone outside of it happens at the caller's cat
            results.append(TeacherScores(teacher, indices_NK[mine], logprobs_NK[mine], tail_N[mine]))
    return results
