"""How many tokens each stage of a profile rolls out, scores and trains: counted from params alone.

An episode's tokens are ``fixed + per_call * calls``, its calls those of its task's shortest solution. What a policy
wastes, and what it does not finish, is not known before a run. D domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from openhorizon.config import Config, GrpoConfig

VALIDATED_PHASES = 2  # a teacher's start and what follows its SFT


@dataclass(frozen=True)
class Length:
    """Tokens of an episode."""

    fixed: float
    per_call: float
    written: float  # share that the policy writes

    def tokens(self, calls: float) -> float:
        return self.fixed + self.per_call * calls


@dataclass(frozen=True)
class Work:
    """What a stage does, in tokens; ``generated`` is a count of tasks. ``context`` is the mean length of what is rolled
    and trained, ``alone``: nothing runs beside it."""

    stage: str
    context: float = 0.0
    rolled: float = 0.0
    written: float = 0.0  # of those rolled
    scored: float = 0.0  # read once by a teacher, a reference
    trained: float = 0.0
    generated: int = 0
    alone: bool = False


def works(config: Config, lengths: Mapping[str, Length], dead_groups: Mapping[str, float]) -> list[Work]:
    """Every stage that runs a model or makes data, in the recipe's order; baselines are not counted. ``dead_groups`` of
    GRPO are not trained on: of prompts ``chosen`` by tries, and of ``all``.

    Raises:
        ValueError: a domain without a length.
    """
    missing = [name for name in config.domains if name not in lengths]
    if missing:
        raise ValueError(f"plan: no episode length for {', '.join(missing)}; name a file that has it: --assumptions")
    found = [
        Work(f"generate@{name}", generated=block.demonstrations + block.prompts + block.validation + block.heldout)
        for name, block in config.generate.items()
    ]
    every = fmean(lengths[name].tokens(fmean(config.generate[name].horizons)) for name in config.domains)
    found.append(Work("base", every, trained=config.base.tokens, alone=True))
    found.append(Work("sft", every, trained=config.sft.tokens, alone=True))
    found += [
        _teacher(config, name, lengths[name], dead_groups["chosen" if config.teach[name].grpo.tries else "all"])
        for name in config.domains
    ]
    found.append(_distillation(config, lengths))
    heldout = {
        name: config.evaluate.tasks * lengths[name].tokens(fmean(config.generate[name].heldout_horizons))
        for name in config.domains
    }
    for model in ("base", "sft", "student"):
        found.append(_evaluation(f"evaluate@{model}", config.evaluate.tasks, heldout, lengths))
    return found + [
        _evaluation(f"evaluate@teacher@{name}", config.evaluate.tasks, {name: heldout[name]}, lengths)
        for name in config.domains
    ]


def _evaluation(stage: str, tasks: int, tokens: Mapping[str, float], lengths: Mapping[str, Length]) -> Work:
    written = sum(count * lengths[name].written for name, count in tokens.items())
    context = sum(tokens.values()) / max(tasks * len(tokens), 1)
    return Work(stage, context, sum(tokens.values()), written)


def _teacher(config: Config, name: str, length: Length, dead_groups: float) -> Work:
    recipe = config.teach[name]
    prompts = config.generate[name].prompt_horizons
    looks = VALIDATED_PHASES + looks_within(recipe.grpo)
    rolled = looks * recipe.validation * length.tokens(fmean(prompts))
    trained = reinforced = 0.0
    if recipe.grpo.iterations:
        calls = _up_to(prompts, recipe.grpo.max_horizon)
        reinforced = recipe.grpo.iterations * recipe.grpo.prompts * recipe.grpo.group * length.tokens(calls)
        rolled += reinforced
        if recipe.grpo.tries:
            rolled += recipe.grpo.tried_prompts * recipe.grpo.tries * length.tokens(calls)
        trained = reinforced * (1 - dead_groups)
    context = length.tokens(fmean(config.generate[name].horizons))
    return Work(f"teach@{name}", context, rolled, rolled * length.written, trained, recipe.tokens + trained)


def looks_within(grpo: GrpoConfig) -> int:
    """How often success on validation tasks is measured in and behind GRPO."""
    return (grpo.iterations - 1) // grpo.validate_every + 1 if grpo.iterations else 0


def _distillation(config: Config, lengths: Mapping[str, Length]) -> Work:
    block = config.distill
    rolled = written = shown = 0.0
    episodes = 0
    for name in config.domains:
        share = 1.0 if block.shares is None else block.shares.get(name, 1.0)
        calls = _up_to(config.generate[name].prompt_horizons, block.max_horizon)
        prompts = block.iterations * max(round(block.prompts * share), 1)
        mine = prompts * lengths[name].tokens(calls)
        episodes += prompts
        rolled += mine
        tried = block.warm_up.prompts * lengths[name].tokens(calls) if block.warm_up else 0.0
        shown += tried
        written += (mine + tried) * lengths[name].written
    trained = rolled + (block.warm_up.tokens if block.warm_up else 0)
    return Work("distill", rolled / episodes, rolled + shown, written, rolled, trained, alone=True)


def _up_to(horizons: Sequence[int], limit: int) -> float:
    return fmean([h for h in horizons if h <= limit] or [min(horizons)])
