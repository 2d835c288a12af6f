"""Time, memory and money of a profile's stages on a machine, from measured rates or stated assumptions.

A measured machine (``kind: measured``) has the rates of one run of ours, whose results file is named: tokens a second
in training (``base`` and ``sft``) and in rollouts (``evaluate@sft``), scaled by the parameters that compute a token. A
stage of one thread is taken to be as fast as one of two: for models of this size it was (teachers train with one thread
at the rate at which SFT trains with two). An assumed one has a peak, the share of it that training and reading reach,
and how many tokens a GPU writes a second.

FLOPs a token: 6 (N + A T) trained, 2 (N + A T) read (Kaplan et al. 2020, table 1), N the active parameters, T the mean
length of the episodes, A the width of all full-attention layers together: layers · heads · head size. A mean token
looks back at T / 2 others, twice (scores, values), which cancels the 2 of a multiplication and an addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhorizon.artifacts import read_json
from openhorizon.forecast.work import Work

SCORED_AS = 3.0  # times the rate of training: a third of its FLOPs
BYTES = {"weights (fp32)": 4, "gradients (fp32)": 4, "Adam's moments (fp32)": 8, "bf16 copy of the weights": 2}


@dataclass(frozen=True)
class Size:
    """Of a model: parameters, those that compute a token, and the width A of its attention."""

    total: int
    active: int
    attention: int

    def token(self, context: float) -> float:
        """Multiplications and additions of a token's forward pass, halved."""
        return self.active + self.attention * context


@dataclass(frozen=True)
class Cost:
    """A stage's prediction. ``seconds`` are of the wall clock if nothing else ran; ``dollars`` None where nothing is
    paid by the hour."""

    stage: str
    seconds: float
    flops: float
    dollars: float | None


@dataclass(frozen=True)
class Measured:
    """Rates of a machine with cores, for a model of so many active parameters."""

    train_tokens_s: float
    roll_tokens_s: float
    generated_s: float  # tasks a second
    active: int
    cores: int

    def seconds(self, work: Work, size: Size) -> float:
        """Whatever runs beside it, on a core of its own."""
        trained = work.trained + work.scored / SCORED_AS
        model_s = trained / self.train_tokens_s + work.rolled / self.roll_tokens_s
        return model_s * size.active / self.active + work.generated / self.generated_s


@dataclass(frozen=True)
class Assumed:
    """GPUs by their peak and what is reached of it."""

    gpus: int
    memory_gib: float
    price_hour: float
    peak_flops: float
    train_share: float
    read_share: float
    written_tokens_s: float
    idle_share: float

    def seconds(self, work: Work, size: Size) -> float:
        peak = self.peak_flops * self.gpus
        token = size.token(work.context)
        train_s = 6 * token * work.trained / (peak * self.train_share)
        read = work.scored + work.rolled - work.written
        read_s = 2 * token * read / (peak * self.read_share)
        write_s = work.written / (self.written_tokens_s * self.gpus) / (1 - self.idle_share)
        return train_s + read_s + write_s


Machine = Measured | Assumed


def measured(block: Mapping[str, Any], root: Path) -> Measured:
    """The rates in a results file of ours (``reports/results.json``, ``docs/results/laptop.json``).

    Raises:
        FileNotFoundError, ValueError: no such file, or it lacks a stage that is needed.
    """
    path = root / str(block["results"])
    stages = {row["stage"]: row for row in read_json(path)["stages"]}
    needed = ("base", "sft", "evaluate@sft")
    if lacking := [name for name in needed if not (stages.get(name) or {}).get("seconds")]:
        raise ValueError(f"{path}: no time of {', '.join(lacking)}")
    trained = [stages[name] for name in ("base", "sft")]
    made = [row["seconds"] for name, row in stages.items() if name.startswith("generate@") and row["seconds"]]
    return Measured(
        train_tokens_s=sum(row["tokens"] for row in trained) / sum(row["seconds"] for row in trained),
        roll_tokens_s=stages["evaluate@sft"]["tokens"] / stages["evaluate@sft"]["seconds"],
        generated_s=len(made) * int(block["tasks"]) / sum(made) if made else float("inf"),
        active=int(block["active"]),
        cores=int(block["cores"]),
    )


def costs(found: Iterable[Work], machine: Machine, size: Size) -> list[Cost]:
    """A prediction for each stage."""
    made = []
    for work in found:
        seconds = machine.seconds(work, size)
        flops = size.token(work.context) * (6 * work.trained + 2 * (work.scored + work.rolled))
        price = machine.gpus * machine.price_hour / 3600 * seconds if isinstance(machine, Assumed) else None
        made.append(Cost(work.stage, seconds, flops, price))
    return made


def wall_seconds(found: Iterable[Work], made: Iterable[Cost], machine: Machine) -> float:
    """Of the whole recipe: stages that are alone one by one; the others side by side where there are several cores."""
    at_once = machine.cores if isinstance(machine, Measured) else 1
    return sum(cost.seconds / (1 if work.alone else at_once) for work, cost in zip(found, made, strict=True))


def memory(size: Size, machine: Machine) -> dict[str, float]:
    """GiB a process of what is kept throughout training; FSDP2 shards all of it over the GPUs. Activations, keys and
    values, and teachers come on top."""
    over = machine.gpus if isinstance(machine, Assumed) else 1
    kinds = BYTES if isinstance(machine, Assumed) else {k: v for k, v in BYTES.items() if "bf16" not in k}
    return {name: size.total * count / over / 2**30 for name, count in kinds.items()}
