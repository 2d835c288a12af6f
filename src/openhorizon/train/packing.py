"""Samples of different lengths packed into rows, with nothing seen across samples.

Attention is kept inside a sample, and positions start at 0 again: by a block-diagonal causal mask in rows of at most
``masked_row`` tokens, by the samples' bounds in longer ones (``model/attention.py``). A short convolution sees its last
few inputs whatever the mask, so that samples are separated by ``gap`` padding positions whose inputs the model zeroes:
with gap ≥ kernel - 1 a packed sample gives the same numbers as an unpacked one. The state of a recurrent layer (linear
attention) passes any gap, so that a model with such layers is given each sample in a row of its own, and samples of
like lengths together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.model import slots
from openhorizon.model.attention import bounds
from openhorizon.world import World


@dataclass(frozen=True)
class Pack:
    """R rows of T positions holding S samples. ``sample_RT`` is the sample's index, -1 on padding; ``train_RT`` marks
    positions whose token carries loss (it is predicted from the position before)."""

    ids_RT: torch.Tensor
    position_RT: torch.Tensor
    sample_RT: torch.Tensor
    train_RT: torch.Tensor

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int((self.sample_RT >= 0).sum())


def pack(
    samples: Sequence[tuple[Sequence[int], Sequence[bool]]], row_tokens: int, gap: int, pad_id: int, apart: bool = False
) -> Pack:
    """First-fit decreasing. Each sample is (ids, loss mask); its first token never carries loss. Rows are as long as
    the longest sample or ``row_tokens``, whichever is more, cut to what is used. ``apart``: a row a sample."""
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i][0]), i))
    capacity = max(row_tokens, len(samples[order[0]][0]))
    rows: list[list[tuple[int, int]]] = []  # (sample, start)
    used: list[int] = []
    for i in order:
        length = len(samples[i][0])
        row = None if apart else next((r for r, end in enumerate(used) if end + gap + length <= capacity), None)
        if row is None:
            rows.append([(i, 0)])
            used.append(length)
        else:
            rows[row].append((i, used[row] + gap))
            used[row] += gap + length
    shape = (len(rows), max(used))
    ids, position, sample, train = (
        torch.full(shape, pad_id),
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, -1),
        torch.zeros(shape, dtype=torch.bool),
    )
    for r, placed in enumerate(rows):
        for i, start in placed:
            sample_ids, mask = samples[i]
            span = slice(start, start + len(sample_ids))
            ids[r, span] = torch.tensor(sample_ids)
            position[r, span] = torch.arange(len(sample_ids))
            sample[r, span] = i
            train[r, span] = torch.tensor(mask, dtype=torch.bool)
            train[r, start] = False
    return Pack(ids, position, sample, train)


def convolution_gap(model: PreTrainedModel) -> int:
    """Padding positions between packed samples that this model's convolutions need."""
    return slots.convolution_gap(model.config)


def recurrent(model: PreTrainedModel) -> bool:
    """Whether this model's samples must be kept apart, each in a row of its own."""
    return slots.recurrent(model.config)


def pack_trajectories(model: PreTrainedModel, trajectories: Sequence[Trajectory], machine: MachineConfig) -> Pack:
    """Trajectories as this model and machine take them."""
    samples = [(t.ids, t.loss_mask) for t in trajectories]
    pad_id = int(model.config.pad_token_id or 0)
    return pack(samples, machine.row_tokens, convolution_gap(model), pad_id, recurrent(model))


def micro_batches(trajectories: Sequence[Trajectory], tokens: int, apart: bool = False) -> list[list[int]]:
    """Indices of consecutive groups of at most ``tokens`` tokens (one trajectory at least): an update's parts, whose
    graphs are held one at a time. ``apart``: rows are of one sample, and the padding to the longest counts, too."""
    groups: list[list[int]] = []
    size = longest = 0
    for i, length in enumerate(len(trajectory.ids) for trajectory in trajectories):
        longest = max(longest, length)
        grown = (len(groups[-1]) + 1) * longest if groups and apart else size + length
        if not groups or grown > tokens:
            groups.append([])
            grown = longest = length
        groups[-1].append(i)
        size = grown
    return groups


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over these samples. It may not count, and be made so that others need not wait."""

    samples: list[int]
    counts: bool = True


def passes(trajectories: Sequence[Trajectory], tokens: int, apart: bool = False) -> list[Pass]:
    """This process's share of an update, in ``micro_batches``, ``apart`` long samples first. All processes make as many
    passes, since they put the layers together for each other; who has fewer makes some that do not count."""
    world, lengths = World.here(), [len(trajectory.ids) for trajectory in trajectories]
    shares = [list(range(len(trajectories)))] if world.size == 1 else _dealt(lengths, world.size)
    if apart:
        shares = [sorted(share, key=lambda i: -lengths[i]) for share in shares]
    every = [
        [Pass([share[i] for i in part]) for part in micro_batches([trajectories[i] for i in share], tokens, apart)]
        for share in shares
    ]
    mine, most = every[world.rank], max(len(made) for made in every)
    shortest = min(range(len(trajectories)), key=lengths.__getitem__, default=0)
    return mine + [Pass([shortest], counts=False)] * (most - len(mine))


def _dealt(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places dealt into ``size`` shares, long ones first, each to the share with the least so far; in order in each."""
    shares, loads = [list[int]() for _ in range(size)], [0] * size
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += lengths[i]
    return [sorted(share) for share in shares]


def counted(loss: torch.Tensor, part: Pass) -> torch.Tensor:
    """The loss of a pass; 0, with all its gradients, where that does not count."""
    return loss if part.counts else 0.0 * loss


def trained_tokens(trajectory: Trajectory) -> int:
    """How many of its tokens carry loss: those that the policy wrote, but never the first."""
    return sum(trajectory.loss_mask[1:])


def packed_hidden(model: PreTrainedModel, packed: Pack, machine: MachineConfig) -> torch.Tensor:
    """Last hidden states (N, H) behind which the N trainable tokens are predicted, in row-major order (the order of
    ``packed.train_RT``). The output layer makes logits of them: ``losses/chunked.py``."""
    device = next(model.parameters()).device
    sample_RT = packed.sample_RT.to(device)
    length = sample_RT.shape[1]
    if length > machine.masked_row:
        mask = bounds(_segments(packed.sample_RT))
    else:
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        same_RTT = sample_RT[:, :, None] == sample_RT[:, None, :]  # padding sees padding: no empty rows, no NaN
        mask = (same_RTT & causal_TT)[:, None]
    masks = {"full_attention": mask, "conv": sample_RT >= 0} if convolution_gap(model) else mask
    with autocast(machine):
        hidden_RTH = model.get_decoder()(
            input_ids=packed.ids_RT.to(device),
            position_ids=packed.position_RT.to(device),
            attention_mask=masks,
            use_cache=False,
        ).last_hidden_state
    before_RT = packed.train_RT.to(device).roll(-1, dims=1)
    before_RT[:, -1] = False
    hidden_NH: torch.Tensor = hidden_RTH[before_RT]
    return hidden_NH


def output_layer(model: PreTrainedModel, machine: MachineConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Hidden states (N, H) → logits (N, V) in fp32."""

    def logits(hidden_NH: torch.Tensor) -> torch.Tensor:
        with autocast(machine):
            made: torch.Tensor = model.get_output_embeddings()(hidden_NH)
        return made.float()

    return logits


def autocast(machine: MachineConfig) -> torch.autocast:
    """Matrix products in bf16 over fp32 weights where the machine says so; the decorated code is plain fp32 else."""
    return torch.autocast(machine.device, dtype=torch.bfloat16, enabled=machine.precision == "bf16")


def _segments(sample_RT: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, start, end) of every sample."""
    found = []
    for row, sample_T in enumerate(sample_RT):
        values, counts = torch.unique_consecutive(sample_T, return_counts=True)
        end = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            start, end = end, end + count
            if value >= 0:
                found.append((row, start, end))
    return found
