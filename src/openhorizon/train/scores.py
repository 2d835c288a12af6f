"""What a teacher says at each trainable position of a trajectory: its top-k, cached with what other losses need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.train.packing import convolution_gap, pack, packed_logits

ROW_TOKENS = 512
CHUNK_TOKENS = 32768


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
    model: PreTrainedModel, teacher: str, trajectories: Sequence[Trajectory], top_k: int, invalid_V: torch.Tensor
) -> list[TeacherScores]:
    """Scores of each trajectory. ``invalid_V`` marks ids that no policy can generate: they are never in the support."""
    results: list[TeacherScores] = []
    for chunk in chunks(trajectories, CHUNK_TOKENS):
        packed = pack(
            [(t.ids, t.loss_mask) for t in chunk],
            ROW_TOKENS,
            convolution_gap(model),
            int(model.config.pad_token_id or 0),
        )
        logprobs_NV = torch.log_softmax(packed_logits(model, packed).float(), dim=1)
        top = logprobs_NV.masked_fill(invalid_V.to(logprobs_NV.device), -torch.inf).topk(top_k, dim=1)
        tail_N = 1 - top.values.exp().sum(1)
        sample_N = packed.sample_RT[packed.train_RT]
        for i in range(len(chunk)):
            mine = sample_N == i
            # inference tensors cannot enter autograd: clone outside of it happens at the caller's cat
            results.append(TeacherScores(teacher, top.indices[mine], top.values[mine], tail_N[mine]))
    return results


def chunks(trajectories: Sequence[Trajectory], tokens: int) -> list[list[Trajectory]]:
    """Consecutive groups of at most ``tokens`` tokens (one trajectory at least)."""
    groups: list[list[Trajectory]] = [[]]
    size = 0
    for trajectory in trajectories:
        if groups[-1] and size + len(trajectory.ids) > tokens:
            groups.append([])
            size = 0
        groups[-1].append(trajectory)
        size += len(trajectory.ids)
    return [group for group in groups if group]
