"""What several tests share: a tiny domain with one tool, its tokenizer and a tiny model of each family."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from servers import serve  # noqa: F401 (a fixture of several tests)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from openhorizon.agent.render import Renderer
from openhorizon.config import BudgetConfig, GrpoConfig, MachineConfig, ModelConfig, OptimConfig, ScratchConfig
from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Step,
    Task,
    Tool,
    Verdict,
)
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint, new_model
from openhorizon.model.tokenizer import train_tokenizer

HYBRID = "qwen3_5_moe_text"  # linear attention in most layers, and a shared expert
MACHINE = MachineConfig(
    device="cpu", threads=1, stages=1, rollout_batch=8, cache_gib=1.0, experts="auto",
    precision="fp32", row_tokens=64, masked_row=1024, micro_tokens=4096, checkpointing=False,
)  # fmt: skip
BUDGET = BudgetConfig(slack=1.5, extra=2, turn_tokens=24, context_tokens=256)
GRPO = GrpoConfig(
    iterations=1, prompts=3, group=4, updates=1, clip_low=0.2, clip_high=0.28, kl=0.001, entropy=0.0, temperature=1.0,
    dynamic_sampling=True, turn_weight=0.0, normalise="token", tries=0, tried_prompts=8, kept_prompts=8,
    validate_every=100, stop_drop=1.0, dead_stop=100, max_horizon=3,
    optim=OptimConfig(
        lr=5e-4, schedule="constant", warmup=0.0, weight_decay=0.0, grad_clip=1.0, batch_tokens=512
    ),
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first: side by side, the last to start decides when all are over."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class CountEnvironment(Environment):
    """A counter that ``step`` raises until the goal is reached."""

    def execute(self, call: Call) -> Observation:
        if call.arguments["from"] == 13:
            raise RuntimeError("the world broke")
        at = call.arguments["from"] + 1
        return Observation(f"now {at}" + (" done" if at == self.task.state["goal"] else ""), (f"at{at}",))


class CountDomain(Domain):
    """Count up to a hidden goal: the smallest domain that needs tools and several turns."""

    name = "count"
    system = "Count. Tools: step"
    tools = (
        Tool(
            "step",
            "one further",
            {
                "type": "object",
                "properties": {"from": {"type": "integer"}},
                "required": ["from"],
                "additionalProperties": False,
            },
        ),
    )

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        begin = rng.randrange(20, 60)
        return Task(
            "count", f"count-{seed}", split, f"count from {begin}", horizon, seed, {"goal": begin + horizon}, (),
            ("goal",), str(begin + horizon), ((str(begin), str(horizon)),),
        )  # fmt: skip

    def start(self, task: Task) -> Environment:
        return CountEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        at = int(prompt.split()[-1])
        while True:
            observation = yield Call("step", {"from": at})
            at = int(observation.text.split()[1])
            if observation.text.endswith("done"):
                yield Answer(f"Answer: {at}")

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        right = answer is not None and answer.text == f"Answer: {task.reference}"
        return Verdict(right, float(right), "right" if right else "wrong", {"answer": right})


class RememberingDomain(CountDomain):
    """The same with a memory: where the count stands."""

    def recall(self, steps: Sequence[Step]) -> str:
        return steps[-1].observation.text if steps else ""


@pytest.fixture
def count_domain() -> CountDomain:
    return CountDomain()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return count_tokenizer()


def count_tokenizer() -> PreTrainedTokenizerFast:
    texts = [
        f'count from {i} <tool_call>{{"name": "step", "arguments": {{"from": {i}}}}}</tool_call>' for i in range(99)
    ]
    return train_tokenizer([*texts, "now 7 done", "Answer: 31", CountDomain.system], 320, 512)


def build(tokenizer: PreTrainedTokenizerFast, family: Any, seed: int, heads: int, induction: bool) -> Checkpoint:
    scratch = ScratchConfig(
        family=family, vocab_size=320, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_layers=4,
        num_dense_layers=1, attention_layers=(1, 3), conv_kernel=4, num_heads=heads, num_kv_heads=2, num_experts=4,
        experts_per_token=2, induction=induction,
    )  # fmt: skip
    config = ModelConfig(source="scratch", max_tokens=512, rope=None, scratch=scratch, upcycle=None)
    model = hybrid(tokenizer, seed) if family == HYBRID else new_model(config, tokenizer, seed)
    return Checkpoint(model.eval(), tokenizer, Renderer(tokenizer), f"tiny{seed}")


def hybrid(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """The paper's family, which profile a1 loads and none builds, as small as the others."""
    config = AutoConfig.for_model(
        HYBRID, vocab_size=len(tokenizer), hidden_size=32, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"] * 2, num_hidden_layers=4, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS).float()
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data.sub_(3)  # a decay near 1: the state remembers
    return model


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Checkpoint]:
    """``tiny(family, seed)``: a random model with weights large enough that its outputs differ clearly."""

    def random_model(family: Any = "lfm2_moe", seed: int = 0) -> Checkpoint:
        checkpoint = build(tokenizer, family, seed, 4, False)
        for parameter in checkpoint.model.parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(6)
        return checkpoint

    return random_model


@pytest.fixture(scope="session")
def fresh(tokenizer: PreTrainedTokenizerFast) -> Callable[[int], Checkpoint]:
    """``fresh(seed)``: a model as the base stage starts it, which learns in seconds."""
    return lambda seed: build(tokenizer, "lfm2_moe", seed, 2, True)
