"""One GRPO over the prompts of all domains, in turn, from the SFT model, until the FLOPs of distillation are spent.

The reward is the outcome and a share of the process score in every domain. As with a teacher, the state is kept that
solves most validation tasks, among them the start; what looking costs is spent, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from openhorizon.domains.base import Task
from openhorizon.model.sampler import LocalPolicy, local_policy
from openhorizon.model.sharding import duplicate
from openhorizon.seeds import derive
from openhorizon.train.baselines.given import Figures, Given, Made, success
from openhorizon.train.kept import Kept
from openhorizon.train.reinforcement import chosen_prompts, reinforce
from openhorizon.train.resume import Weights
from openhorizon.train.teachers.phases import mixed, normalised, outcome


def run(given: Given) -> Made:
    """Raises ``ValueError`` where no prompt is short enough, or none has mixed outcomes where these are asked for."""
    block, policy = given.config.mixed_grpo, local_policy(given.start, given.machine)
    kept = Kept(given.start.model, lambda name: success(given, given.start, name), block.grpo.stop_drop)
    given.saved.keep(model=Weights(given.start.model), kept=kept)
    kept.offer("start")
    given.saved.tick()
    prompts = list[Task]()
    for name, tasks in given.prompts.items():
        short = {task.id: task for task in tasks if task.horizon <= block.grpo.max_horizon}
        if short:
            choose = partial(chosen, given, policy, name, list(short.values()))
            prompts += [short[task] for task in given.saved.once(f"tries@{name}", choose)]
    if not prompts:
        raise ValueError(f"baselines.mixed_grpo.grpo.max_horizon={block.grpo.max_horizon}: no prompts to train on")
    figures = given.saved.once("grpo", partial(reinforced, given, policy, prompts, kept))
    kept.restore()
    found = {f"validation_{name}": solved for name, solved in kept.found.items()}
    return given.start, {**figures, **found, "kept": kept.name}


def chosen(given: Given, policy: LocalPolicy, name: str, tasks: Sequence[Task]) -> list[str]:
    """The ids of a domain's prompts to train on."""
    block, seed = given.config.mixed_grpo, derive(given.seed, "tries", name)
    found = chosen_prompts(policy, given.worlds, tasks, given.budgets, block.grpo, mixed, seed, meter=given.meter)
    return [task.id for task in found]


def reinforced(given: Given, policy: LocalPolicy, prompts: Sequence[Task], kept: Kept) -> Figures:
    """GRPO until the FLOPs are spent, and a last look at what came of it."""
    block = given.config.mixed_grpo
    advantage = normalised(lambda t: outcome(t) + block.process_weight * t.verdict.score)
    reference = duplicate(given.start.model).requires_grad_(False)
    figures = reinforce(
        policy, reference, given.worlds, prompts, given.budgets, block.grpo, advantage, given.seed, given.machine,
        given.log, given.routers, lambda iteration: kept.offer(f"grpo_{iteration}"), meter=given.meter,
        flops=given.flops, saved=given.saved,
    )  # fmt: skip
    kept.offer("grpo")
    return {**figures}
