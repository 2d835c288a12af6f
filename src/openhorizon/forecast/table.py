"""A plan as a person reads it, and as a script does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from openhorizon.config import Config
from openhorizon.forecast.cost import Assumed, Cost, Machine, Size, costs, measured, memory, wall_seconds
from openhorizon.forecast.work import Length, Work, works
from openhorizon.model.load import sizes_of
from openhorizon.model.upcycle import parameter_table
from openhorizon.progress import duration

SHIPPED = Path(__file__).with_name("assumptions.yaml")


@dataclass(frozen=True)
class Plan:
    """What a profile takes on a machine."""

    profile: str
    machine: str
    size: Size
    found: Sequence[Work]
    made: Sequence[Cost]
    hours: float  # of the wall clock
    dollars: float | None
    memory_gib: Mapping[str, float]  # a process
    room_gib: float | None

    def as_json(self) -> dict[str, Any]:
        stages = [asdict(work) | asdict(cost) for work, cost in zip(self.found, self.made, strict=True)]
        kept = asdict(self) | {"stages": stages}
        return {name: value for name, value in kept.items() if name not in ("found", "made")}


def rendered(plan: Plan) -> Table:
    """A row a stage, the sums in the caption."""
    size, paid = plan.size, plan.dollars is not None
    millions = f"{size.total / 1e6:,.1f}M parameters, {size.active / 1e6:,.1f}M active"
    title = f"plan of {plan.profile} on {plan.machine}: {millions}"
    table = Table(title=title, title_justify="left", caption=summary(plan), caption_justify="left")
    table.add_column("stage")
    for column in ("rolled", "scored", "trained", "FLOPs", "time", *(["dollars"] if paid else [])):
        table.add_column(column, justify="right")
    for work, cost in zip(plan.found, plan.made, strict=True):
        tokens = [f"{count / 1e6:,.2f}M" if count else "" for count in (work.rolled, work.scored, work.trained)]
        took = duration(cost.seconds) if cost.seconds else "–"
        price = [f"{cost.dollars:,.0f}"] if cost.dollars is not None else []
        table.add_row(work.stage, *tokens, f"{cost.flops:.1e}" if cost.flops else "", took, *price)
    return table


def summary(plan: Plan) -> str:
    """Hours, money and memory in words."""
    money = f", {plan.dollars:,.0f} dollars" if plan.dollars is not None else ""
    kept = sum(plan.memory_gib.values())
    parts = ", ".join(f"{name} {gib:,.2f}" for name, gib in plan.memory_gib.items())
    room = f" of {plan.room_gib:,.0f}" if plan.room_gib is not None else ""
    return (
        f"{duration(3600 * plan.hours)} of the wall clock{money}; {kept:,.2f} GiB{room} a process are kept throughout "
        f"training ({parts}); activations, keys and values, and teachers come on top. A stage without a time runs on "
        "CPUs beside the others."
    )


def plan(config: Config, machine: str, lengths: str, given: Path | None, root: Path) -> Plan:
    """``machine`` and ``lengths`` are names in the assumptions.

    Raises:
        ValueError: no such name, or a block of the assumptions that is not complete.
    """
    known = assumptions(given)
    of_machine, of_lengths = _one(known, "machines", machine), _one(known, "lengths", lengths)
    try:
        found = works(config, {name: Length(**row) for name, row in of_lengths.items()}, known["dead_groups"])
        block = {key: value for key, value in of_machine.items() if key != "kind"}
        on: Machine = measured(block, root) if of_machine["kind"] == "measured" else Assumed(**block)
    except (KeyError, TypeError) as error:
        raise ValueError(f"plan: assumptions of {machine} or {lengths} are not complete: {error}") from error
    size = model_size(config, known["architectures"])
    made = costs(found, on, size)
    return Plan(
        profile=config.profile,
        machine=machine,
        size=size,
        found=found,
        made=made,
        hours=wall_seconds(found, made, on) / 3600,
        dollars=sum(cost.dollars or 0.0 for cost in made) if isinstance(on, Assumed) else None,
        memory_gib=memory(size, on),
        room_gib=on.memory_gib if isinstance(on, Assumed) else None,
    )


def assumptions(given: Path | None) -> dict[str, Any]:
    """The shipped ones, with the blocks of a user's file in the place of theirs."""
    known: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    if given is None:
        return known
    own = yaml.safe_load(given.read_text(encoding="utf-8"))
    if not isinstance(own, dict) or not own.keys() <= known.keys():
        raise ValueError(f"{given}: expected blocks among {', '.join(known)}")
    for name, block in own.items():
        if not isinstance(block, dict):
            raise ValueError(f"{given}: {name} is {block!r}, expected a block: {', '.join(known[name])}")
    return {name: value | own.get(name, {}) for name, value in known.items()}


def model_size(config: Config, architectures: Mapping[str, str]) -> Size:
    """Of the model that a profile trains; no weights are made or loaded.

    Raises:
        ValueError: neither its folder nor its architecture is known.
    """
    source, block = config.model.source, config.model.scratch
    if source == "scratch":
        hf = AutoConfig.for_model(block.family, **sizes_of(config.model, block.vocab_size))
    elif config.model.upcycle is None and Path(source).is_dir():
        hf = AutoConfig.from_pretrained(source, local_files_only=True).get_text_config()
    elif config.profile in architectures:
        hf = AutoConfig.for_model(architectures[config.profile])
    else:
        raise ValueError(
            f"plan: {source} is not here, and no architecture of profile {config.profile} is among the assumptions"
        )
    with torch.device("meta"):
        table = parameter_table(AutoModelForCausalLM.from_config(hf))
    kinds = getattr(hf, "layer_types", None) or ["full_attention"] * hf.num_hidden_layers
    heads = hf.num_attention_heads
    width = heads * (getattr(hf, "head_dim", None) or hf.hidden_size // heads)
    return Size(table["all"]["total"], table["all"]["active"], kinds.count("full_attention") * width)


def _one(known: Mapping[str, Any], block: str, name: str) -> dict[str, Any]:
    if name not in known[block]:
        raise ValueError(f"plan: no {block} {name!r} among the assumptions; known are {', '.join(known[block])}")
    found: dict[str, Any] = known[block][name]
    return found
