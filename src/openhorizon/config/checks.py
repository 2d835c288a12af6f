"""What types cannot say of params.yaml: every domain has its blocks, counts are positive, options go together."""

from __future__ import annotations

from openhorizon.config.blocks import (
    STAGES,
    BaselinesConfig,
    BenchmarksConfig,
    Config,
    DistillConfig,
    GenerateConfig,
    GrpoConfig,
    LimitConfig,
    MachineConfig,
    ModelConfig,
    TeachConfig,
)


def check(config: Config, where: str) -> None:
    """What types cannot say: every domain has its blocks, counts are positive."""
    from openhorizon.domains import DOMAINS

    _check_model(config.model, f"{where}:model")
    _check_distill(config.distill, f"{where}:distill")
    for name, share in (config.distill.shares or {}).items():
        if name not in config.domains or not 0 < share <= 1:
            raise ValueError(f"{where}:distill.shares.{name}: {share} is no share in (0, 1] of a domain")
    for name in config.sft.domains or ():
        if name not in config.domains:
            raise ValueError(f"{where}:sft.domains: {name!r} is none of {', '.join(config.domains)}")
    if config.sft.domains == ():
        raise ValueError(f"{where}:sft.domains: empty; null means all")
    if config.sft.padding < 0:
        raise ValueError(f"{where}:sft.padding: {config.sft.padding} is less than 0")
    _check_baselines(config.baselines, f"{where}:baselines")
    _check_flow(config.flow, f"{where}:flow")
    _check_benchmarks(config.benchmarks, config.domains, f"{where}:benchmarks")
    for name, machine in config.machines.items():
        _check_machine(machine, f"{where}:machines.{name}")
    if config.router.replay and config.distill.on_policy < 1:
        raise ValueError(
            f"{where}:distill.on_policy: {config.distill.on_policy} is less than 1, and router.replay has the experts "
            "of rollouts alone"
        )
    for key in ("balance", "z"):
        if getattr(config.router, key) < 0:
            raise ValueError(f"{where}:router.{key}: {getattr(config.router, key)} is less than 0")
    for name in config.domains:
        known = sorted({domain.name for domain in DOMAINS.values()})
        if name not in known:
            raise ValueError(f"{where}:domains: unknown domain {name!r}; known are {', '.join(known)}")
        for block in ("generate", "budget", "teach"):
            if name not in getattr(config, block):
                raise ValueError(f"{where}:{block}: missing key {name!r} (a domain under `domains`)")
        _check_generate(config.generate[name], f"{where}:generate.{name}")
        _check_teach(config.teach[name], config.generate[name], f"{where}:teach.{name}")
        for world in config.generate[name].worlds or ("",):
            if world not in DOMAINS or DOMAINS[world].name != name:
                mine = ", ".join(sorted(key for key, domain in DOMAINS.items() if domain.name == name))
                raise ValueError(f"{where}:generate.{name}.worlds: no world {world!r} of {name}; known are {mine}")


def _check_benchmarks(block: BenchmarksConfig, domains: tuple[str, ...], where: str) -> None:
    """What would run twice, nothing, or before its model is there."""
    for i, name in enumerate(block.run):
        if name in block.run[:i]:
            raise ValueError(f"{where}.run: {name} is there twice")
    known = ("base", "sft", "student", *(f"teacher@{name}" for name in domains))
    for model in block.models:
        if model not in known:
            raise ValueError(f"{where}.models: {model!r} is none of {', '.join(known)}")
    if block.run and not block.models:
        raise ValueError(f"{where}.models: empty, but {', '.join(block.run)} are to be run")
    for key in ("limit", "turn_tokens"):
        value = getattr(block, key)
        if value is not None and value < 1:
            raise ValueError(f"{where}.{key}: {value} is less than 1; null bounds nothing")


def _check_flow(limits: dict[str, LimitConfig], where: str) -> None:
    if "default" not in limits:
        raise ValueError(f"{where}: missing key 'default'")
    for name, limit in limits.items():
        if name not in ("default", *STAGES):
            raise ValueError(f"{where}: unknown stage {name!r}; known are {', '.join(STAGES)}")
        if limit.retries < 0 or (limit.timeout_s is not None and limit.timeout_s <= 0):
            raise ValueError(f"{where}.{name}: retries {limit.retries}, timeout_s {limit.timeout_s}: too small")


def _check_machine(machine: MachineConfig, where: str) -> None:
    """Processes that would be none, or in each other's way."""
    if machine.processes < 1:
        raise ValueError(f"{where}.processes: {machine.processes} is less than 1")
    if machine.stages > 1 and machine.torchrun is not None:
        raise ValueError(f"{where}.stages: {machine.stages} at once would meet at one endpoint (torchrun); must be 1")
    if machine.stages > 1 and machine.processes > 1 and machine.device == "cuda":
        raise ValueError(f"{where}.stages: {machine.stages} at once would share GPUs (processes); must be 1")
    if machine.expert_parallel and machine.experts.startswith("megablocks"):
        raise ValueError(
            f"{where}.expert_parallel: {machine.experts} needs all experts of a layer in one process; experts must be "
            "auto or grouped_mm"
        )


def _check_teach(block: TeachConfig, data: GenerateConfig, where: str) -> None:
    """Stages on data that is not there, and counts that would train on nothing."""
    for key in ("first", "then"):
        for world in getattr(block, key):
            if world not in data.worlds:
                have = ", ".join(data.worlds)
                raise ValueError(f"{where}.{key}: world {world!r} is not generated; generate has {have}")
    if block.validation > data.validation:
        raise ValueError(f"{where}.validation: {block.validation} of {data.validation} tasks that generate makes")
    if not 0 <= block.first_share <= 1:
        raise ValueError(f"{where}.first_share: {block.first_share} is not between 0 and 1")
    _check_grpo(block.grpo, f"{where}.grpo")


def _check_grpo(grpo: GrpoConfig, where: str) -> None:
    """Counts that would train on nothing."""
    least = {"prompts": 1, "group": 2, "updates": 1, "validate_every": 1, "dead_stop": 1, "iterations": 0, "tries": 0}
    if grpo.tries:
        least |= {"tries": 2, "tried_prompts": 1, "kept_prompts": 1}
    for key, value in least.items():
        if getattr(grpo, key) < value:
            raise ValueError(f"{where}.{key}: {getattr(grpo, key)} is less than {value}")


def _check_model(block: ModelConfig, where: str) -> None:
    """What does not go together in the start."""
    if block.source == "scratch":
        for key in ("rope", "upcycle"):
            if getattr(block, key) is not None:
                raise ValueError(f"{where}.{key}: is for a checkpoint; with source scratch it must be null")
    if block.max_tokens < 1:
        raise ValueError(f"{where}.max_tokens: {block.max_tokens} is less than 1")
    if block.rope and block.rope.factor <= 1:
        raise ValueError(f"{where}.rope.factor: {block.rope.factor} is not more than 1")
    if block.upcycle is None:
        return
    above = {"noise": float("inf"), "drop": 1.0}[block.upcycle.symmetry]
    if not 0 < block.upcycle.strength <= above:
        raise ValueError(f"{where}.upcycle.strength: {block.upcycle.strength} is not above 0 and at most {above}")
    if not 1 <= block.upcycle.top_k <= block.upcycle.experts:
        raise ValueError(f"{where}.upcycle.top_k: {block.upcycle.top_k} of {block.upcycle.experts} experts cannot be")
    if block.upcycle.router_std <= 0:
        raise ValueError(f"{where}.upcycle.router_std: {block.upcycle.router_std} is not above 0")
    if block.upcycle.route == "identical" and block.upcycle.expert_width is not None:
        raise ValueError(f"{where}.upcycle.expert_width: route identical copies the whole MLP; it must be null")


def _check_distill(block: DistillConfig, where: str) -> None:
    """Numbers without a meaning, and options that do not go together."""
    for key in ("iterations", "prompts", "updates"):
        if getattr(block, key) < 1:
            raise ValueError(f"{where}.{key}: {getattr(block, key)} is less than 1")
    for key in ("prompts", "tokens"):
        if block.warm_up and getattr(block.warm_up, key) < 1:
            raise ValueError(f"{where}.warm_up.{key}: {getattr(block.warm_up, key)} is less than 1")
    if block.top_k < 2:
        raise ValueError(f"{where}.top_k: {block.top_k} is less than 2; renormalised, one token teaches nothing")
    if block.top_mass is not None and not 0 < block.top_mass <= 1:
        raise ValueError(f"{where}.top_mass: {block.top_mass} is not above 0 and at most 1")
    if block.loss_temperature <= 0:
        raise ValueError(f"{where}.loss_temperature: {block.loss_temperature} is not above 0")
    if len(block.scale_bounds) != 2 or not 0 < block.scale_bounds[0] <= 1 <= block.scale_bounds[1]:
        raise ValueError(f"{where}.scale_bounds: {list(block.scale_bounds)} are not two numbers around 1")
    if block.support_loss == "sampled" and block.direction == "forward":
        raise ValueError(f"{where}.direction: forward cannot be estimated from what the student samples (sampled)")
    if not 0 <= block.on_policy <= 1:
        raise ValueError(f"{where}.on_policy: {block.on_policy} is not between 0 and 1")
    if block.staleness < 0:
        raise ValueError(f"{where}.staleness: {block.staleness} is less than 0")
    if block.support_loss == "sampled" and block.staleness:
        raise ValueError(f"{where}.staleness: {block.staleness}; sampled needs the student's present samples, 0")
    if block.support_loss == "sampled" and block.on_policy < 1:
        raise ValueError(f"{where}.on_policy: {block.on_policy}; sampled needs the student's own samples alone, 1")
    if block.min_headroom is not None and not -1 <= block.min_headroom <= 1:
        raise ValueError(f"{where}.min_headroom: {block.min_headroom} is not between -1 and 1")
    if not 0 < block.alarm.rho_drop <= 1:
        raise ValueError(f"{where}.alarm.rho_drop: {block.alarm.rho_drop} is not above 0 and at most 1")
    if block.alarm.length_growth <= 1:
        raise ValueError(f"{where}.alarm.length_growth: {block.alarm.length_growth} is not more than 1")
    if block.turn_curriculum:
        for key in ("turns", "every"):
            if getattr(block.turn_curriculum, key) < 1:
                raise ValueError(f"{where}.turn_curriculum.{key}: {getattr(block.turn_curriculum, key)} is less than 1")
        if block.truncated == "drop":
            raise ValueError(f"{where}.truncated: drop leaves nothing of the episodes that turn_curriculum ends")


def _check_baselines(block: BaselinesConfig, where: str) -> None:
    """What would choose by nothing, train on nothing, or not end where its FLOPs end."""
    for i, name in enumerate(block.run):
        if name in block.run[:i]:
            raise ValueError(f"{where}.run: {name} is there twice")
    counts = {
        "validation": block.validation,
        "continued.demonstrations": block.continued.demonstrations,
        "seqkd.prompts": block.seqkd.prompts,
        "mixed_grpo.grpo.iterations": block.mixed_grpo.grpo.iterations,
    }
    for key, count in counts.items():
        if count < 1:
            raise ValueError(f"{where}.{key}: {count} is less than 1")
    if not 0 < block.seqkd.share < 1:
        raise ValueError(f"{where}.seqkd.share: {block.seqkd.share} is not between 0 and 1")
    if not block.arithmetic.scales or min(block.arithmetic.scales) <= 0:
        raise ValueError(f"{where}.arithmetic.scales: {list(block.arithmetic.scales)} are not numbers above 0")
    _check_grpo(block.mixed_grpo.grpo, f"{where}.mixed_grpo.grpo")
    if block.mixed_grpo.grpo.optim.schedule != "constant":
        raise ValueError(f"{where}.mixed_grpo.grpo.optim.schedule: must be constant, as the FLOPs say when it ends")


def _check_generate(block: GenerateConfig, where: str) -> None:
    """Numbers that would make no data, or never end."""
    for key in ("tries", "steer_every", "max_proposals", "region_proposals", "shards"):
        if getattr(block, key) < 1:
            raise ValueError(f"{where}.{key}: {getattr(block, key)} is less than 1")
    for key in ("noise", "solve_rate_min", "solve_rate_max", "steer_floor", "min_yield"):
        if not 0 <= getattr(block, key) <= 1:
            raise ValueError(f"{where}.{key}: {getattr(block, key)} is not between 0 and 1")
    if block.solve_rate_min > block.solve_rate_max:
        raise ValueError(f"{where}.solve_rate_min: {block.solve_rate_min} is more than solve_rate_max")
    if block.solver != "expert" and not block.solver.startswith(("checkpoint:", "endpoint:")):
        raise ValueError(f"{where}.solver: {block.solver!r} is none of expert, checkpoint:FOLDER, endpoint:URL#MODEL")
