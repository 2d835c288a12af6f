"""params.yaml → frozen dataclasses. Recipe values have no default here: each stands in params.yaml with its source.

An unknown or missing key, or a value of a wrong type, raises ``ValueError`` with the key's path. ``machines`` says
where and how fast, never what: no DVC stage lists it.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

STAGES = ("generate", "base", "sft", "teach", "distill", "baseline", "evaluate", "benchmark", "report")
PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class GenerateConfig:
    """Self-play data of one domain (section 2.2, 3)."""

    worlds: tuple[str, ...]  # keys of the registry that tasks are drawn from, in turn; twice: twice the share
    demonstrations: int  # accepted trajectories to write
    prompts: int  # training tasks without a trajectory, for GRPO and OPD
    heldout: int  # evaluation tasks
    horizons: tuple[int, ...]  # tool calls (instruction: reasoning steps) of demonstrations
    heldout_horizons: tuple[int, ...]
    prompt_horizons: tuple[int, ...]
    noise: float  # chance that a step of the expert goes astray
    solver: str  # expert, checkpoint:FOLDER or endpoint:URL#MODEL
    temperature: float  # of a solver that is a model
    tries: int  # how often the solver may try a task; a model always does, so that its solve rate is measured
    solve_rate_min: float  # a model's prompts: kept are tasks of which it solves at least this share of the tries
    solve_rate_max: float  # ... and at most this
    steer_floor: float  # share of an even split over horizons that steering leaves each; 1: not steered
    steer_every: int  # accepted tasks between two looks at the solve rates
    max_proposals: int  # of a shard, before the run stops and says which rule rejected what
    region_proposals: int  # refused in a row before a world's horizon is given up
    min_yield: float  # accepted share of the tasks drawn, below which the run stops likewise
    shards: int  # with seeds of their own; decides the data, and how much of it can be made at once
    ngram: int  # words in a row that a training task may not share with a held-out one or a benchmark
    benchmarks: tuple[str, ...]  # kept out of training; see kag/benchmarks.py


@dataclass(frozen=True)
class ScratchConfig:
    """A model with random weights. ``family`` is a model_type of transformers."""

    family: Literal["lfm2_moe", "qwen3_moe"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of the leading dense layers
    moe_intermediate_size: int
    num_layers: int
    num_dense_layers: int
    attention_layers: tuple[int, ...]  # the others are short convolutions (lfm2_moe only)
    conv_kernel: int  # tokens a short convolution sees, its own included (lfm2_moe only)
    num_heads: int
    num_kv_heads: int
    num_experts: int
    experts_per_token: int
    induction: bool  # start with an induction head (lfm2_moe only; see model/induction.py)


@dataclass(frozen=True)
class RopeConfig:
    """How a checkpoint's positions reach further than it was trained for; see model/rope.py."""

    type: Literal["linear", "yarn", "theta"]
    factor: float  # by which the context grows


@dataclass(frozen=True)
class UpcycleConfig:
    """How a dense checkpoint becomes a mixture of experts; see model/upcycle.py."""

    route: Literal["identical", "shared"]
    experts: int
    top_k: int
    expert_width: int | None  # of a routed expert (shared only); null: the dense MLP's
    symmetry: Literal["noise", "drop"]  # what makes the experts differ
    strength: float  # noise: in standard deviations of a matrix; drop: share of an expert's neurons
    router_std: float


@dataclass(frozen=True)
class ModelConfig:
    """The starting model: from scratch, or a checkpoint, upcycled if it is dense."""

    source: str  # scratch, smollm2 (its package, model/smollm2.py) or the folder of a Hugging Face checkpoint
    max_tokens: int  # the context
    rope: RopeConfig | None  # of a checkpoint; null: its own
    scratch: ScratchConfig  # where source is scratch
    upcycle: UpcycleConfig | None  # of a checkpoint; null: taken as it is


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up. ``schedule`` after the warm-up: cosine to zero, or constant."""

    lr: float
    schedule: Literal["cosine", "constant"]
    warmup: float  # fraction of steps
    weight_decay: float
    grad_clip: float
    batch_tokens: int  # packed: of an update (SFT) or micro-batch (GRPO); distillation takes a minibatch whole


@dataclass(frozen=True)
class RouterConfig:
    """What training does with a mixture's routers, in every training stage; a dense model has none. A coefficient
    holds for each mixture layer's loss, as in its source."""

    balance: float  # of the load-balancing loss (losses/balance.py); 0: none
    z: float  # of the router z loss; 0: none
    replay: bool  # updates on a rollout take the experts that the rollout took (model/routing.py)


@dataclass(frozen=True)
class BaseConfig:
    """Tokenizer and base model: short horizons only, so that later stages have something to lengthen."""

    tokenizer_trajectories: int  # a domain
    max_horizon: int
    demonstrations: int  # a domain
    tokens: int
    optim: OptimConfig


@dataclass(frozen=True)
class SftConfig:
    """Full-domain SFT (section 4.1)."""

    domains: tuple[str, ...] | None  # trained on, each as often as among all, with its share of `tokens`; null: all
    max_horizon: int | None  # of demonstrations; null: all
    padding: int  # distractor turns between two steps, without loss (train/padding.py); 0: none
    demonstrations: int  # a domain
    tokens: int
    optim: OptimConfig


@dataclass(frozen=True)
class GrpoConfig:
    """GRPO (section 4.2)."""

    iterations: int  # at most; 0: no GRPO
    prompts: int  # an iteration
    group: int
    updates: int  # minibatches an iteration
    clip_low: float
    clip_high: float
    kl: float
    entropy: float
    temperature: float
    dynamic_sampling: bool
    turn_weight: float  # of the turns' own advantages beside the sample's; 0: none
    normalise: Literal["token", "sequence"]  # what weighs alike in an update
    tries: int  # at each prompt before, by which the recipe chooses; 0: all prompts are taken
    tried_prompts: int
    kept_prompts: int  # of the chosen, at most
    validate_every: int  # iterations between two looks at the validation tasks
    stop_drop: float  # ends when validation success falls by more than this below the best
    dead_stop: int  # ends after so many iterations in a row without a group of unlike rewards
    max_horizon: int
    optim: OptimConfig


@dataclass(frozen=True)
class RewardConfig:
    """What a sample is rewarded by beside its outcome; a recipe takes what it knows (train/teachers)."""

    process_weight: float  # of the process score: in the reward, or among failures (tool_calling's λ_neg)
    free_calls: int  # search: K, behind which each call costs `call_penalty`
    call_penalty: float
    repeat_window: int  # search: calls back in which the same call counts as repeated
    repeat_penalty: float
    repeat_cap: float
    format_weight: float  # search: of the share of valid calls


@dataclass(frozen=True)
class TeachConfig:
    """A teacher of one domain: the phases of its recipe."""

    recipe: Literal["search", "science", "instruction", "tool_calling", "graded"]  # a file in train/teachers
    init: Literal["base", "sft"]
    first: tuple[str, ...]  # worlds of a two-stage recipe's first stage
    then: tuple[str, ...]  # and of its second; empty: all
    first_share: float  # of the tokens (science) or iterations (instruction)
    demonstrations: int
    tokens: int
    sft_optim: OptimConfig
    reward: RewardConfig
    validation: int  # training-split tasks, used for nothing else, that choose the checkpoint to keep
    grpo: GrpoConfig


@dataclass(frozen=True)
class CurriculumConfig:
    """How many turns an episode may have: ``turns`` at first, one more every ``every`` iterations."""

    turns: int
    every: int


@dataclass(frozen=True)
class AlarmConfig:
    """When a distillation says that it goes wrong: a domain against its own first iteration."""

    rho_drop: float  # ρ falls by more
    length_growth: float  # tokens written an episode grow by more than this factor
    stop: bool  # whether it ends there, with an error


@dataclass(frozen=True)
class DistillConfig:
    """Domain-routed on-policy distillation with SVA (sections 2.3, 4.3); docs/distillation.md has every option."""

    iterations: int
    prompts: int  # a domain and iteration
    shares: dict[str, float] | None  # of `prompts` that a domain gives, 1 where it is not named; null: all alike
    updates: int  # minibatches an iteration
    support_loss: Literal["sva", "gen_kl", "tail", "full", "sampled"]
    direction: Literal["reverse", "forward"]  # KL(student | teacher), or the other way round
    top_k: int  # tokens of the support; with top_mass, at most
    top_mass: float | None  # the teacher's mass that the support reaches; null: always top_k tokens
    routing: Literal["hard", "mixture", "shuffled", "merged"]
    aggregation: Literal["domain", "token", "sample", "dn_sigma", "budget"]
    scale_bounds: tuple[float, ...]  # least and most of a domain's scale (dn_sigma, budget)
    loss_temperature: float  # of both distributions in the loss
    temperature: float  # of the rollouts
    on_policy: float  # share of the samples that the student writes; the others are verified demonstrations
    turn_curriculum: CurriculumConfig | None  # null: episodes are as long as their budgets from the start
    truncated: Literal["keep", "drop"]  # episodes that a budget ended
    alarm: AlarmConfig
    min_headroom: float | None  # by which a teacher must beat the SFT model in validation; null: it is reported
    max_horizon: int
    optim: OptimConfig


@dataclass(frozen=True)
class ContinuedConfig:
    """SFT goes on from the SFT model."""

    demonstrations: int  # a domain
    optim: OptimConfig


@dataclass(frozen=True)
class SeqkdConfig:
    """SFT on what the teachers write on the prompts of distillation (Kim & Rush 2016)."""

    samples: Literal["verified", "all"]
    share: float  # of the FLOPs for the teachers' rollouts; the others are for training
    prompts: int  # a domain, rolled out at once
    temperature: float
    optim: OptimConfig


@dataclass(frozen=True)
class ArithmeticConfig:
    """Task arithmetic (Ilharco et al. 2023)."""

    scales: tuple[float, ...]  # λ: the one that does best on validation tasks


@dataclass(frozen=True)
class MixedGrpoConfig:
    """One GRPO over the prompts of all domains."""

    process_weight: float  # of the process score in the reward, for every domain
    grpo: GrpoConfig  # iterations: at most; the FLOPs end it


@dataclass(frozen=True)
class BaselinesConfig:
    """What distillation is held against, at its FLOPs; docs/baselines.md."""

    run: tuple[Literal["continued", "seqkd", "average", "arithmetic", "mixed_grpo", "best_teacher"], ...]
    validation: int  # tasks a domain that choose among models: the first of those of teach.DOMAIN.validation
    continued: ContinuedConfig
    seqkd: SeqkdConfig
    arithmetic: ArithmeticConfig
    mixed_grpo: MixedGrpoConfig


@dataclass(frozen=True)
class BudgetConfig:
    """What bounds an episode (section 4.3); past it, it is TRUNCATED."""

    slack: float  # tool calls allowed = ceil(slack * horizon) + extra
    extra: int
    turn_tokens: int  # a generated turn
    context_tokens: int


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out evaluation: pass@1 (section 5)."""

    tasks: int  # a domain
    temperature: float


@dataclass(frozen=True)
class BenchmarksConfig:
    """Public benchmarks that a reproduction runs; docs/benchmarks.md."""

    run: tuple[
        Literal["bfcl", "bfcl-heldout", "ifbench", "ifeval", "hotpotqa", "scienceworld", "scicode-dev"],
        ...,
    ]
    models: tuple[str, ...]  # base, sft, student, teacher@DOMAIN
    limit: int | None  # the first so many tasks of each
    temperature: float
    turn_tokens: int | None  # what a turn may have; null: each benchmark's own bound


@dataclass(frozen=True)
class ReportConfig:
    title: str


@dataclass(frozen=True)
class MachineConfig:
    """Where and how fast: changes no result on one machine kind, so no stage lists it."""

    device: Literal["cpu", "cuda"]
    threads: int  # of one stage
    stages: int  # independent stages at once
    rollout_batch: int  # conversations at once, fewer where their keys and values need more than
    cache_gib: float  # which on a GPU is at most most of its free memory
    precision: Literal["fp32", "bf16"]  # of matrix products; weights, losses and optimizer are fp32
    row_tokens: int  # of a packed row, or its longest sample's
    masked_row: int  # longest row with a (T×T) mask: one attention for all its samples, which pays while they are many
    micro_tokens: int  # whose graph is held at once: an update goes through its batch in such parts
    checkpointing: bool  # activations are computed again in the backward pass instead of kept
    experts: Literal["auto", "eager", "grouped_mm", "batched_mm", "megablocks", "megablocks_dmoe"]
    checkpoint_s: float = 60.0  # between two saves of unfinished work, by which a killed stage goes on
    checkpoint_steps: int | None = None  # at most so many steps between two; null: time alone
    processes: int = 1  # that train one model together on this machine, on CUDA with a GPU each (docs/scale-out.md)
    torchrun: tuple[str, ...] | None = None  # arguments to join several machines; null: this one alone
    expert_parallel: bool = False  # each process owns whole experts, and tokens travel to them


@dataclass(frozen=True)
class LimitConfig:
    """What the flow does about a stage; changes no result, so no stage lists it."""

    retries: int  # how often a stage that failed is tried again
    timeout_s: float | None  # how long a stage may take; null: as long as it likes


@dataclass(frozen=True)
class Config:
    profile: str
    seed: int
    domains: tuple[str, ...]
    generate: dict[str, GenerateConfig]
    budget: dict[str, BudgetConfig]
    model: ModelConfig
    router: RouterConfig
    base: BaseConfig
    sft: SftConfig
    teach: dict[str, TeachConfig]
    distill: DistillConfig
    baselines: BaselinesConfig
    evaluate: EvaluateConfig
    benchmarks: BenchmarksConfig
    report: ReportConfig
    flow: dict[str, LimitConfig]  # by the stage's word, over `default`
    machines: dict[str, MachineConfig]

    @property
    def machine(self) -> MachineConfig:
        """The block that MACHINE names; without it, the one that fits what is found.

        Raises:
            ValueError: MACHINE names no block.
        """
        name = os.environ.get("MACHINE") or ("h200" if Path("/dev/nvidia0").exists() else "cpu")
        if name not in self.machines:
            raise ValueError(f"MACHINE={name}: no such block under machines; known are {', '.join(self.machines)}")
        return self.machines[name]


def load(path: Path = PARAMS_FILE) -> Config:
    """Read and check a params file.

    Raises:
        ValueError: not YAML, an unknown or missing key, or a value of a wrong type; the message has the key's path.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run from the project's root, or `openhorizon profile laptop`")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    config: Config = _build(Config, raw, path.name)
    _check(config, path.name)
    return config


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a block of keys, got {value!r}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(hints))}")
        for key in hints:
            if key not in value:
                raise ValueError(f"{where}: missing key {key!r}")
        return kind(  # type: ignore[operator]
            **{
                key: _build(hint, value[key], f"{where}:{key}" if ":" not in where else f"{where}.{key}")
                for key, hint in hints.items()
            }
        )
    if origin is dict:
        if not isinstance(value, dict) or not value:
            raise ValueError(f"{where}: expected a block of names, got {value!r}")
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        return None if value is None and type(None) in arguments else _build(arguments[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _check(config: Config, where: str) -> None:
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
        _check_teach(config.teach[name], config.generate[name].worlds, f"{where}:teach.{name}")
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


def _check_teach(block: TeachConfig, worlds: tuple[str, ...], where: str) -> None:
    """Stages on data that is not there, and counts that would train on nothing."""
    for key in ("first", "then"):
        for world in getattr(block, key):
            if world not in worlds:
                raise ValueError(f"{where}.{key}: world {world!r} is not generated; generate has {', '.join(worlds)}")
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
