"""Stage ``teach``: one domain's teacher, by SFT on its demonstrations and GRPO against its verifier (section 4.2).

What differs from the paper: a teacher sees more demonstrations of its domain than the student ever does (as a team
with private data would have), and of its three candidates (start, after SFT, after GRPO) the one is kept that solves
most of a set of training-split tasks used for nothing else. Held-out tasks choose nothing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, read_tasks, read_trajectories
from openhorizon.artifacts import checkpoint_dir, replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.model.load import load_checkpoint, save_checkpoint
from openhorizon.model.sampler import local_policy
from openhorizon.seeds import derive
from openhorizon.train.reinforcement import group_advantage, papo_advantage, reinforce
from openhorizon.train.supervised import fit, sizes

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

ADVANTAGES = {"group": group_advantage, "papo": papo_advantage}


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/teach/TARGET``. Raises ``ValueError`` for an unknown domain or too few prompts."""
    if target not in config.domains:
        raise ValueError(f"teach: unknown domain {target!r}; known are {', '.join(config.domains)}")
    recipe, budget = config.teach[target], config.budget[target]
    seed = derive(config.seed, "teach", target)
    start = load_checkpoint(checkpoint_dir(recipe.init), config.machine)
    policy = local_policy(start, config.machine)
    prompts = read_tasks(stage_dir("generate", target) / "prompts.parquet")
    validation = prompts[: recipe.validation]
    training = [task for task in prompts[recipe.validation :] if task.horizon <= recipe.grpo.max_horizon]
    if len(validation) < recipe.validation or not training:
        raise ValueError(f"generate.{target}.prompts={len(prompts)}: too few for teach.{target}.validation and GRPO")

    def validate(what: str) -> float:
        def progress(done: int, total: int) -> None:
            log.progress(done, total, f"validating {what}")

        temperature = config.evaluate.temperature
        tried = rollout(DOMAINS, validation, policy, config.budget, temperature, derive(seed, "validation"), progress)
        return sum(t.status is Status.SOLVED for t in tried) / len(tried)

    model = start.model
    candidates = {"start": (validate("the start"), copy.deepcopy(model.state_dict()))}
    demonstrations = read_trajectories(stage_dir("generate", target) / "demonstrations.parquet")
    demonstrations = demonstrations[: recipe.demonstrations]
    limit = config.model.max_tokens
    samples = [s for t in demonstrations for s in render_contexts(start.renderer, DOMAINS, t, limit)]
    figures = fit(
        model, samples, recipe.tokens, recipe.sft_optim, derive(seed, "sft"), config.machine, log, "sft_", config.router
    )
    candidates["sft"] = (validate("SFT"), copy.deepcopy(model.state_dict()))
    reference = copy.deepcopy(model).requires_grad_(False)
    advantage = ADVANTAGES[recipe.advantage](recipe.process_weight)
    figures |= reinforce(
        policy,
        reference,
        DOMAINS,
        training,
        budget,
        recipe.grpo,
        advantage,
        derive(seed, "grpo"),
        config.machine,
        log,
        config.router,
    )
    candidates["grpo"] = (validate("GRPO"), copy.deepcopy(model.state_dict()))
    kept = max(candidates, key=lambda name: candidates[name][0])  # the earliest of equals
    model.load_state_dict(candidates[kept][1])
    with replace_dir(stage_dir("teach", target)) as folder:
        save_checkpoint(model, start.tokenizer, folder)
        log.save_curves(folder)
        chosen = {f"validation_{name}": success for name, (success, _) in candidates.items()}
        write_json(folder / "metrics.json", figures | chosen | {"kept": kept} | sizes(demonstrations, samples))
