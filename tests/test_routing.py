"""Routers found, recorded and replayed in every family, and their losses against loops and transformers' own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BUDGET, GRPO, HYBRID, MACHINE, CountDomain, RememberingDomain
from settings import laptop
from test_packing import model_of, samples
from test_training import OPTIM, Log, demonstrations, tasks
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from openhorizon.config import RouterConfig
from openhorizon.losses.balance import load_balance, router_z, shares
from openhorizon.model import ragged
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.routing import UNKNOWN, probabilities, recording, replaying, routers
from openhorizon.model.rows import Row
from openhorizon.model.sampler import CACHE_BYTES, LocalPolicy, cache_token_bytes
from openhorizon.train import experts as experts_module
from openhorizon.train import supervised
from openhorizon.train.distillation import distil
from openhorizon.train.experts import DEAD_SHARE, Experts, packed_experts
from openhorizon.train.packing import (
    Pack,
    convolution_gap,
    output_layer,
    pack,
    pack_trajectories,
    packed_hidden,
    recurrent,
)
from openhorizon.train.reinforcement import reinforce
from openhorizon.train.router import Router
from openhorizon.train.supervised import fit
from openhorizon.train.teachers.phases import normalised, outcome

FAMILIES = ["lfm2_moe", "qwen3_moe", "mixtral", "qwen2_moe", HYBRID]
BALANCED = RouterConfig(balance=0.01, z=0.001, replay=False)
REPLAYED = RouterConfig(balance=0.0, z=0.0, replay=True)


def family(tiny: Callable[..., Checkpoint], name: str) -> PreTrainedModel:
    if name != "qwen2_moe":  # the one with a shared expert
        return model_of(tiny, name)
    config = AutoConfig.for_model(
        name, vocab_size=320, hidden_size=32, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0], norm_topk_prob=False, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(6)
    return model.eval()


def packed_of(model: PreTrainedModel, seed: int = 0) -> Pack:
    return pack(samples(seed), 64, convolution_gap(model), 0, recurrent(model))


# --- losses ---------------------------------------------------------------------------------------------------------


def test_load_balance_equals_the_explicit_sum() -> None:
    torch.manual_seed(0)
    layers, tokens, experts, k = 3, 17, 5, 2
    probabilities_LNE = torch.randn(layers, tokens, experts).softmax(-1)
    chosen_LNK = probabilities_LNE.topk(k, dim=-1).indices
    for layer, found in enumerate(load_balance(probabilities_LNE, chosen_LNK).tolist()):
        total = 0.0
        for e in range(experts):
            got = sum(e in row for row in chosen_LNK[layer].tolist()) / (tokens * k)
            total += got * sum(row[e] for row in probabilities_LNE[layer].tolist()) / tokens
        assert found == pytest.approx(experts * total, abs=1e-6)


def test_load_balance_is_transformers_by_layer_over_k() -> None:
    torch.manual_seed(1)
    logits_LNE = 3 * torch.randn(4, 50, 8)
    chosen_LNK = logits_LNE.topk(2, dim=-1).indices
    ours_L = load_balance(logits_LNE.softmax(-1), chosen_LNK)
    theirs = [float(load_balancing_loss_func((layer,), 8, 2)) for layer in logits_LNE]
    assert (2 * ours_L).tolist() == pytest.approx(theirs, abs=1e-5)
    pooled = float(load_balancing_loss_func(tuple(logits_LNE), 8, 2))
    f, p = shares(chosen_LNK, 8).mean(0), logits_LNE.softmax(-1).mean((0, 1))
    assert pooled == pytest.approx(2 * 8 * float((f * p).sum()), abs=1e-5)
    assert pooled < sum(theirs) / 4, "pooling hides a layer's overload behind another's"


def test_load_balance_from_even_to_one_expert() -> None:
    even = torch.full((1, 8, 4), 0.25)
    turns = torch.tensor([[[i % 4, (i + 1) % 4] for i in range(8)]])
    assert load_balance(even, turns).tolist() == [1.0]
    all_one = torch.eye(4)[torch.zeros(8, dtype=torch.long)][None]
    assert load_balance(all_one, torch.zeros(1, 8, 1, dtype=torch.long)).tolist() == [4.0]


def test_router_z_equals_the_explicit_sum() -> None:
    torch.manual_seed(2)
    logits_LNE = 2 * torch.randn(2, 9, 5)
    for layer, found in enumerate(router_z(logits_LNE).tolist()):
        rows = [math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits_LNE[layer].tolist()]
        assert found == pytest.approx(sum(rows) / 9, rel=1e-5)


# --- recording ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_logits_and_experts_are_those_of_the_router(tiny: Callable[..., Checkpoint], name: str) -> None:
    """Against transformers' own output recorder where the family has one for router logits."""
    model = family(tiny, name)
    ids = torch.tensor([[20 + i for i in range(30)]])
    with torch.no_grad(), recording(model) as seen:
        before = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(before, model(input_ids=ids, use_cache=False).logits), "recording changes nothing"
    logits_LNE, chosen_LNK = seen.logits_LNE(), seen.chosen_LNK()
    assert list(routers(model)) == ({"mixtral": [0, 1], "qwen2_moe": [1, 2], HYBRID: [0, 1, 2, 3]}.get(name, [1, 2, 3]))
    assert logits_LNE.shape == (len(routers(model)), 30, 4) and chosen_LNK.shape[2] == 2
    if name != "lfm2_moe":
        with torch.no_grad():
            theirs = model(input_ids=ids, use_cache=False, output_router_logits=True).router_logits
        assert torch.allclose(logits_LNE, torch.stack(list(theirs)), atol=1e-6)
    best = probabilities(model, logits_LNE).topk(2, dim=-1).indices  # no expert bias yet: it starts at 0
    assert torch.equal(best.sort(-1).values, chosen_LNK.sort(-1).values)
    assert torch.equal(seen.chosen_NLK().long(), chosen_LNK.transpose(0, 1))


def test_a_dense_model_has_no_routers(tiny: Callable[..., Checkpoint]) -> None:
    model = model_of(tiny, "llama")
    assert routers(model) == {}
    experts = Experts(model, BALANCED)
    hidden, auxiliary = experts.hidden(packed_of(model), MACHINE, 1)
    assert torch.equal(hidden, packed_hidden(model, packed_of(model), MACHINE)) and auxiliary == 0.0
    assert experts.health() == ({}, {})


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_auxiliary_loss_reaches_the_routers_and_is_counted_once(
    tiny: Callable[..., Checkpoint], name: str, checkpointing: bool
) -> None:
    model = family(tiny, name).train()
    packed = packed_of(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    experts = Experts(model, BALANCED)
    hidden_NH, auxiliary = experts.hidden(packed, MACHINE, packed.tokens)
    (hidden_NH.square().mean() + auxiliary).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    curves, worst = experts.health()
    model.zero_grad()
    model.gradient_checkpointing_disable()
    with recording(model) as seen:  # the same by hand
        hidden_NH = packed_hidden(model, packed, MACHINE)
    real = (packed.sample_RT >= 0).flatten()
    logits_LNE, chosen_LNK = seen.logits_LNE()[:, real], seen.chosen_LNK()[:, real]
    assert len(real) > real.sum() == logits_LNE.shape[1]
    balance_L, z_L = load_balance(probabilities(model, logits_LNE), chosen_LNK), router_z(logits_LNE)
    (hidden_NH.square().mean() + 0.01 * balance_L.sum() + 0.001 * z_L.sum()).backward()
    assert all(f"{gate}.weight" in gradients for gate in (n for n, m in model.named_modules() if n.endswith(".gate")))
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[parameter_name], parameter.grad, atol=1e-6, rtol=1e-5), parameter_name
    for i, layer in enumerate(routers(model)):
        assert curves[f"router/balance/layer{layer}"] == pytest.approx(balance_L[i].item(), rel=1e-5)
        assert curves[f"router/z/layer{layer}"] == pytest.approx(z_L[i].item(), rel=1e-5)
        counts = np.bincount(chosen_LNK[i].flatten().numpy(), minlength=4)
        assert curves[f"router/load/layer{layer}"] == pytest.approx(4 * counts.max() / counts.sum())
        assert curves[f"router/dead/layer{layer}"] == (counts < DEAD_SHARE / 4 * counts.sum()).mean()
        p_NE = probabilities(model, logits_LNE)[i].detach().numpy().astype(float)
        entropy = -(p_NE * np.log(np.maximum(p_NE, 1e-30))).sum(1).mean() / math.log(4)
        assert curves[f"router/entropy/layer{layer}"] == pytest.approx(entropy, rel=1e-4)
    assert len(curves) == 5 * len(routers(model))
    assert worst["router_load"] == max(v for k, v in curves.items() if "/load/" in k)
    assert worst["router_entropy"] == min(v for k, v in curves.items() if "/entropy/" in k)


def test_z_of_micro_batches_adds_up_and_health_is_that_of_all(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny()
    batch, found = demonstrations(checkpoint, 12), []
    for micro_tokens in (100_000, 60):
        experts = Experts(checkpoint.model, RouterConfig(balance=0.0, z=0.5, replay=False))
        machine = replace(MACHINE, micro_tokens=micro_tokens)
        parts = [part.item() for part in supervised.losses(checkpoint.model, batch, machine, experts)]
        found.append((len(parts), sum(parts), experts.health()[0]))
    assert found[0][0] == 1 and found[1][0] > 3
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-4, abs=1e-6)


def test_without_coefficients_training_is_the_same_to_the_bit(tiny: Callable[..., Checkpoint]) -> None:
    """What watches must not touch: the published results were made without it."""
    weights = []
    for watched in (True, False):
        checkpoint = tiny()
        batch = demonstrations(checkpoint, 12)
        if watched:
            parts: Iterator[torch.Tensor] = supervised.losses(checkpoint.model, batch, MACHINE)
        else:
            packed = pack_trajectories(checkpoint.model, batch, MACHINE)
            targets_N = packed.ids_RT[packed.train_RT]
            hidden_NH = packed_hidden(checkpoint.model, packed, MACHINE)
            logits_NV = checkpoint.model.get_output_embeddings()(hidden_NH)
            nll_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
            parts = iter([nll_N.sum() / len(targets_N)])
        for part in parts:
            part.backward()
        weights.append({n: p.grad for n, p in checkpoint.model.named_parameters() if p.grad is not None})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_balance_loss_evens_the_load(tiny: Callable[..., Checkpoint]) -> None:
    loads = []
    for balance in (0.0, 0.3):
        checkpoint, log = tiny("qwen3_moe"), Log()
        router = RouterConfig(balance=balance, z=0.0, replay=False)
        figures = fit(
            checkpoint.model, demonstrations(checkpoint, 40), 20_000, OPTIM, 0, MACHINE, log, router=router  # type: ignore[arg-type]
        )  # fmt: skip
        loads.append(figures["router_load"])
        assert figures["router_load"] == max(v for k, v in log.rows[-1].items() if k.startswith("router/load/"))
    assert loads[1] < loads[0] - 0.2, loads


def test_looks_at_a_long_stage_are_few(tiny: Callable[..., Checkpoint]) -> None:
    experts = Experts(tiny().model, BALANCED)
    for steps in (1, 7, 49, 50, 51, 391, 5000):
        looks = [step for step in range(steps) if experts.due(step, steps)]
        assert len(looks) <= 50 and looks[-1] == steps - 1


# --- replay ---------------------------------------------------------------------------------------------------------


def chosen_of(model: PreTrainedModel, packed: Pack, experts_NLK: torch.Tensor | None = None) -> tuple[Any, Any]:
    told = nullcontext() if experts_NLK is None else replaying(model, experts_NLK)
    with torch.no_grad(), told, recording(model) as seen:
        hidden_NH = packed_hidden(model, packed, MACHINE)
    return seen.chosen_NLK(), hidden_NH


@pytest.mark.parametrize("name", FAMILIES)
def test_replayed_experts_are_the_recorded_ones_whatever_the_weights(
    tiny: Callable[..., Checkpoint], name: str
) -> None:
    model = family(tiny, name)
    packed = packed_of(model)
    recorded, hidden = chosen_of(model, packed)
    again, same = chosen_of(model, packed, recorded)
    assert torch.equal(again, recorded) and torch.allclose(hidden, same, atol=1e-6)
    changed = copy.deepcopy(model)
    torch.manual_seed(3)
    for parameter in changed.parameters():
        parameter.data += 0.3 * parameter.std() * torch.randn_like(parameter)
    own, _ = chosen_of(changed, packed)
    assert (own.sort(-1).values != recorded.sort(-1).values).any(-1).float().mean() > 0.05, "nothing to replay"
    replayed, _ = chosen_of(changed, packed, recorded)
    assert torch.equal(replayed, recorded)
    assert torch.equal(chosen_of(changed, packed)[0], own), "the routers are left as they were"


@pytest.mark.parametrize("name", FAMILIES)
def test_replayed_weights_are_those_of_todays_logits(tiny: Callable[..., Checkpoint], name: str) -> None:
    model = family(tiny, name)
    router = next(iter(routers(model).values()))
    torch.manual_seed(0)
    hidden, forced = torch.randn(11, 32), torch.stack([torch.randperm(4)[:2] for _ in range(11)])
    bias = {"expert_bias": torch.tensor([5.0, 0.0, 0.0, 0.0])} if name == "lfm2_moe" else {}
    with replaying(model, forced[:, None].repeat(1, len(routers(model)), 1)):
        logits, weights, chosen = router(hidden, **bias)
    assert torch.equal(chosen, forced)
    for n in range(11):
        row = logits[n].tolist()
        if name == "lfm2_moe":  # the bias chooses, but does not weigh
            scores = [1 / (1 + math.exp(-x)) for x in row]
        else:
            scores = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        taken = [scores[e] for e in forced[n].tolist()]
        total = 1.0 if name == "qwen2_moe" else sum(taken)  # norm_topk_prob false there
        assert weights[n].tolist() == pytest.approx([t / total for t in taken], abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_router_through_replayed_experts(
    tiny: Callable[..., Checkpoint], name: str, checkpointing: bool
) -> None:
    """Replaying a model's own choice gives its own gradient, in the backward pass that computes again, too."""
    model = family(tiny, name).train()
    packed = packed_of(model)
    recorded, _ = chosen_of(model, packed)
    found = []
    for replay in (False, True):
        if checkpointing and replay:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with replaying(model, recorded) if replay else nullcontext():
            packed_hidden(model, packed, MACHINE).square().mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    gates = [n for n in found[0] if n.endswith(".gate.weight")]
    assert len(gates) == len(routers(model)) and all(found[1][n].abs().max() > 0 for n in gates)
    for parameter_name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][parameter_name], atol=1e-6, rtol=1e-4), parameter_name


def test_an_unknown_choice_is_the_routers_own(tiny: Callable[..., Checkpoint]) -> None:
    model = tiny().model
    packed = packed_of(model)
    own, _ = chosen_of(model, packed)
    partly = (own + 1) % 4
    partly[::2] = UNKNOWN
    replayed, _ = chosen_of(model, packed, partly)
    assert torch.equal(replayed[1::2], partly[1::2])
    assert torch.equal(replayed[::2, 0], own[::2, 0]), "the first layer sees the same"


def test_a_record_of_another_model_or_pass_is_refused(tiny: Callable[..., Checkpoint]) -> None:
    model = tiny().model
    packed = packed_of(model)
    with pytest.raises(ValueError, match="2 layers cannot be replayed in a model with 3"):
        chosen_of(model, packed, torch.zeros(packed.ids_RT.numel(), 2, 2))
    with pytest.raises(ValueError, match="cannot be replayed in a pass"):
        chosen_of(model, packed, torch.zeros(5, 3, 2))
    assert torch.equal(chosen_of(model, packed)[0], chosen_of(model, packed)[0]), "refused, and left as it was"


def with_own_experts(model: PreTrainedModel, trajectory: Trajectory) -> Trajectory:
    with torch.no_grad(), recording(model) as seen:
        model(input_ids=torch.tensor([trajectory.ids]), use_cache=False)
    return trajectory.with_experts([seen.chosen_NLK()[:-1].numpy()])


def test_packed_experts_stand_where_their_tokens_do(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny()
    made = [with_own_experts(checkpoint.model, t) for t in demonstrations(checkpoint, 9)]
    packed = pack_trajectories(checkpoint.model, made, MACHINE)
    placed = packed_experts(packed, made).reshape(*packed.ids_RT.shape, 3, 2)
    for r in range(len(placed)):
        for t in range(placed.shape[1]):
            i, at = int(packed.sample_RT[r, t]), int(packed.position_RT[r, t])
            experts = made[i].experts if i >= 0 else None
            expected = np.full((3, 2), UNKNOWN) if experts is None else experts[at]
            assert (placed[r, t].numpy() == expected).all()
    assert (made[0].experts[-1] == UNKNOWN).all()  # type: ignore[index]
    with pytest.raises(ValueError, match="were not recorded"):
        packed_experts(packed, demonstrations(checkpoint, 9))


def test_experts_stay_off_the_disk(tiny: Callable[..., Checkpoint], tmp_path: Any) -> None:
    checkpoint = tiny()
    made = demonstrations(checkpoint, 3)
    known = [with_own_experts(checkpoint.model, t) for t in made]
    for name, trajectories in (("plain", made), ("known", known)):
        write_trajectories(tmp_path / name, trajectories)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "known").read_bytes()
    assert read_trajectories(tmp_path / "known") == known and read_trajectories(tmp_path / "known")[0].experts is None


def rolled(
    checkpoint: Checkpoint, count: int = 10, domain: CountDomain | None = None, context: int = 256, how: str = "ragged"
) -> list[Trajectory]:
    token_bytes = cache_token_bytes(checkpoint.model.config, 4)
    policy = LocalPolicy(checkpoint, 4, 256 * token_bytes if how == "little room" else CACHE_BYTES)
    policy.records_experts, policy.ragged = True, how != "lock-step"
    budget = replace(BUDGET, context_tokens=context)
    return rollout({"count": domain or CountDomain()}, tasks(count, 3), policy, {"count": budget}, 1.0, 0)


def learned(fresh: Callable[[int], Checkpoint]) -> Checkpoint:
    """One that makes calls, so that there are observations to read."""
    checkpoint = fresh(1)
    fit(checkpoint.model, demonstrations(checkpoint, 60), 12_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    return checkpoint


@pytest.mark.parametrize("how", ["ragged", "lock-step", "little room"])
def test_a_rollouts_experts_are_those_of_the_whole_sequence(
    fresh: Callable[[int], Checkpoint], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in chunks or token by token, read again after a slot was lost."""
    checkpoint, again = learned(fresh), list[Row]()
    forget = Row.forget

    def watched(row: Row) -> None:
        again.append(row)
        forget(row)

    monkeypatch.setattr(Row, "forget", watched)
    monkeypatch.setattr(ragged, "LADDER", (64, 1.5))
    found = rolled(checkpoint, how=how)
    assert bool(again) == (how == "little room")
    assert any(t.tool_calls for t in found)
    differ = count = 0
    for trajectory in found:
        experts = trajectory.experts
        assert experts is not None and len(experts) == len(trajectory.ids)
        assert (experts[:-1] >= 0).all() and (experts[-1] == UNKNOWN).all(), "all but the last, which is never read"
        whole = with_own_experts(checkpoint.model, trajectory).experts
        assert whole is not None
        differ += int((np.sort(experts[:-1]) != np.sort(whole[:-1])).any(-1).sum())
        count += experts[:-1, :, 0].size
    assert differ <= 0.001 * count, (differ, count)  # ties to the last bit


def test_each_context_of_a_renewed_episode_carries_its_own(fresh: Callable[[int], Checkpoint]) -> None:
    checkpoint = learned(fresh)
    found = rolled(checkpoint, 12, RememberingDomain(), 96)
    contexts = [t.contexts for t in found]
    assert any(len(parts) > 1 for parts in contexts)
    for part in (part for parts in contexts for part in parts):
        experts, whole = part.experts, with_own_experts(checkpoint.model, part).experts
        assert experts is not None and whole is not None
        known = (experts >= 0).all((1, 2))
        assert known.sum() >= len(experts) - 1 - len(part.turns[-1].ids)  # an observation that no turn followed
        assert (np.sort(experts[known]) == np.sort(whole)[known]).mean() > 0.999


@pytest.mark.parametrize("after_updates", [False, True])
def test_training_takes_the_rollouts_experts(fresh: Callable[[int], Checkpoint], after_updates: bool) -> None:
    """In packed rows: with the weights of the rollout, its log-probabilities, too."""
    checkpoint = learned(fresh)
    found = [part for t in rolled(checkpoint) for part in t.contexts]
    model = checkpoint.model
    if after_updates:
        fit(model, demonstrations(checkpoint, 60), 8_000, OPTIM, 1, MACHINE, Log())  # type: ignore[arg-type]
    model.train()
    packed = pack_trajectories(model, found, MACHINE)
    told_NLK = packed_experts(packed, found)
    known = (told_NLK >= 0).all((1, 2))
    own, _ = chosen_of(model, packed)
    differ = (own.sort(-1).values != told_NLK.sort(-1).values).any(-1)[known].float().mean()
    experts = Experts(model, REPLAYED)
    with experts.replayed(packed, found), recording(model) as seen:
        hidden_NH, auxiliary = experts.hidden(packed, MACHINE, packed.tokens)
        (hidden_NH.square().mean() + auxiliary).backward()
    assert torch.equal(seen.chosen_NLK()[known], told_NLK[known])
    gates = [p for n, p in model.named_parameters() if n.endswith(".gate.weight")]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in gates)
    if after_updates:
        assert differ > 0.01, "the updates have changed no choice"
        return
    logits_NV = output_layer(model, MACHINE)(hidden_NH).masked_fill(LocalPolicy(checkpoint, 4).never, -torch.inf)
    targets_N = packed.ids_RT[packed.train_RT]
    said_N = torch.log_softmax(logits_NV, 1).gather(1, targets_N[:, None])[:, 0]
    order = torch.unique_consecutive(packed.sample_RT[packed.train_RT]).tolist()
    sampled = [p for i in order for p, mine in zip(found[i].logprobs, found[i].loss_mask, strict=True) if mine]
    assert torch.allclose(said_N, torch.tensor(sampled), atol=1e-5)


def test_the_loops_replay_where_the_recipe_says_so(fresh: Callable[[int], Checkpoint]) -> None:
    start = learned(fresh)
    domains: Any = {"count": CountDomain()}
    reference = copy.deepcopy(start.model).requires_grad_(False)
    grpo = replace(GRPO, dynamic_sampling=False)
    teacher = Teacher("count", copy.deepcopy(start))
    distillation = replace(
        laptop().distill,
        iterations=1,
        prompts=6,
        updates=1,
        top_k=16,
        temperature=1.0,
        max_horizon=3,
        optim=replace(OPTIM, lr=5e-4),
    )
    machine, advantage = replace(MACHINE, micro_tokens=300), normalised(lambda t: outcome(t) + 0.5 * t.verdict.score)
    told: list[int] = []

    def counted(model: Any, experts_NLK: torch.Tensor) -> Any:
        told.append(int((experts_NLK[:, 0, 0] >= 0).sum()))
        return replaying(model, experts_NLK)

    for router in (replace(BALANCED, replay=True), REPLAYED, BALANCED):
        for loop in ("grpo", "distill"):
            student, log = copy.deepcopy(start), Log()
            policy = LocalPolicy(student, 16)
            told.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(experts_module, "replaying", counted)
                if loop == "grpo":
                    reinforce(
                        policy, reference, domains, tasks(9, 3), {"count": BUDGET}, grpo, advantage, 0, machine,
                        log, router,  # type: ignore[arg-type]
                    )  # fmt: skip
                else:
                    teachers = Router(student, [teacher], ["count"], "hard", 0)
                    distil(
                        policy, teachers, domains, {"count": tasks(9, 3)}, {"count": BUDGET}, distillation, 0, machine,
                        log, router,  # type: ignore[arg-type]
                    )  # fmt: skip
            assert bool(told) == router.replay
            assert not policy.records_experts, "whoever rolls out next does not pay for it"
            assert {"router_load", "router/load/layer1", "router/dead/layer3"} <= set(log.rows[-1])
            assert not any("forward" in vars(r) for r in routers(student.model).values()), "given back"
