"""The blocks of params.yaml as frozen dataclasses. Recipe values have no default here: each stands in params.yaml with
its source. ``machines`` says where and how fast, never what: no DVC stage lists it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STAGES = ("generate", "base", "sft", "teach", "distill", "baseline", "evaluate", "benchmark", "report")
PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class GenerateConfig:
    """Self-play data of one domain (section 2.2, 3)."""

    worlds: tuple[str, ...]  # keys of the registry that tasks are drawn from, in turn; twice: twice the share
    demonstrations: int  # accepted trajectories to write
    prompts: int  # training tasks without a trajectory, for GRPO and OPD
    validation: int  # tasks that choose a teacher's state: they share no entity pair with any of the above
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
    validation: int  # how many of generate.DOMAIN.validation choose the checkpoint to keep
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
class WarmUpConfig:
    """SFT of the student on what the teachers solve, before it is distilled into (``train/warm_up.py``)."""

    prompts: int  # a domain, each tried once
    tokens: int
    optim: OptimConfig


@dataclass(frozen=True)
class DistillConfig:
    """Domain-routed on-policy distillation with SVA (sections 2.3, 4.3); docs/distillation.md has every option."""

    warm_up: WarmUpConfig | None  # null: the student starts from SFT as it is
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
    staleness: int  # iterations that the weights which write rollouts are behind (train/ahead.py); 0: on-policy
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
        Literal[
            "bfcl", "bfcl-heldout", "ifbench", "ifeval", "hotpotqa", "scienceworld", "scicode-dev", "tau2-scripted"
        ],
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
