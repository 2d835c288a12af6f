"""Do rollout and training choose the same experts, and what does replaying the rollout's choice change?

    python benchmarks/routing.py [--checkpoint FOLDER] [--out docs/results/routing.json]

A model decodes episodes, token by token through caches; then the packed forward pass of training reads them. Twice:
both in fp32, and the rollout in bf16 before a training pass in fp32, which stands in for engines that compute
differently. For each, right behind the rollout, after one update and after one iteration of the recipe's distillation
(its minibatches, its learning rate, a teacher that is the same model trained further), with the router free and with
the rollout's experts replayed, in the updates too:

    experts    share of (token, layer) whose set of experts is not the rollout's; of tokens, in any layer
    |Δ|        log-probability of a sampled token, training less rollout: mean, largest, mean square
    KL         of the rollout from the training policy, k3 estimate: mean of exp(Δ) - Δ - 1
    ×2         share of sampled tokens whose probability is off by a factor of 2 or more

Without --checkpoint a model of the profile's size is trained on reference solutions first (short, so that it calls
tools and solves some); --deep takes a Mixtral of 12 layers in its place, since differences grow from layer to layer.
"""

from __future__ import annotations

import argparse
import copy
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from student import Said, untrained
from tokens import made
from transformers import MixtralConfig, MixtralForCausalLM

from openhorizon.agent.render import render_trajectory
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.artifacts import read_json, write_json
from openhorizon.config import Config, RouterConfig, load
from openhorizon.domains import DOMAINS
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint, Teacher, load_checkpoint, place
from openhorizon.model.routing import recording, routers
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train.distillation import losses
from openhorizon.train.experts import Experts, packed_experts
from openhorizon.train.objectives import wanted
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import micro_batches, output_layer, pack_trajectories, packed_hidden
from openhorizon.train.router import Router
from openhorizon.train.samples import minibatches
from openhorizon.train.supervised import fit
from openhorizon.train.watch import Watch

WORLDS, HORIZONS = ("search", "science", "tool_calling"), (1, 2, 3, 4, 6, 8)
DEMONSTRATIONS = 150  # a world and horizon
TEMPERATURE = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--deep", action="store_true")
    parser.add_argument(
        "--tokens", type=int, default=1_800_000, help="that a model without a checkpoint is trained for"
    )
    parser.add_argument("--episodes", type=int, default=8, help="a world and horizon")
    parser.add_argument("--name", default="laptop")
    parser.add_argument("--threads", type=int, help="without it, the machine block's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = load()
    torch.set_num_threads(options.threads or config.machine.threads)
    found = [t for world in WORLDS for t in made(DOMAINS[world], HORIZONS, DEMONSTRATIONS, config.seed)]
    if options.checkpoint:
        start = load_checkpoint(options.checkpoint, config.machine)
    else:
        start = trained(config, found, options.tokens, options.deep)
    model = start.model
    teacher = Teacher("", copy.deepcopy(start))
    samples = [render_trajectory(start.renderer, DOMAINS, t) for t in found]
    fit(teacher.checkpoint.model, samples, 300_000, config.sft.optim, config.seed, config.machine, Said())  # type: ignore[arg-type]
    teacher.checkpoint.model.requires_grad_(False)
    weights, rows, facts = copy.deepcopy(model.state_dict()), [], dict[str, Any]()
    for precision in ("fp32", "bf16"):
        model.load_state_dict(weights)
        rolled, seconds = sampled(start, config, options.episodes, precision)
        parts = [part for t in rolled if t.status is not Status.ABORTED for part in t.contexts]
        facts[f"rollout_{precision}"] = {
            "episodes": len(rolled),
            "solved": sum(t.status is Status.SOLVED for t in rolled),
            "tokens": sum(len(t.ids) for t in parts),
            "sampled": sum(sum(t.loss_mask) for t in parts),
            "seconds": seconds,
        }
        print(f"{options.name}, rollout in {precision}: {facts[f'rollout_{precision}']}", flush=True)
        for replay in (False, True):
            model.load_state_dict(weights)
            rows.append(compared(start, config, parts, replay) | {"rollout": precision, "updates": 0})
            seconds = 0.0
            for done, took in updated(start, teacher, config, parts, replay):
                seconds += took
                if done in (1, config.distill.updates):
                    rows.append(compared(start, config, parts, replay) | {"rollout": precision, "updates": done})
            facts[f"updates_{precision}_replay_{replay}_seconds".lower()] = round(seconds, 2)
    show(rows)
    if options.out:
        said = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        machine = {"machine": said.group(1) if said else platform.processor(), "torch": torch.__version__}
        size = {"layers": len(routers(model)), "parameters": sum(p.numel() for p in model.parameters())}
        kept = read_json(options.out) if options.out.exists() else {}
        write_json(options.out, kept | {options.name: machine | size | facts | {"rows": rows}})


def trained(config: Config, found: Sequence[Trajectory], tokens: int, deep: bool) -> Checkpoint:
    student = untrained(config, found, config.seed)
    tokenizer = student.tokenizer
    if deep:
        torch.manual_seed(0)
        model: Any = MixtralForCausalLM._from_config(
            MixtralConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=12,
                num_attention_heads=2, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
                max_position_embeddings=4096, sliding_window=None, tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
            ),
            attn_implementation=SEGMENTS,
        )  # fmt: skip
        place(model, config.machine)
        student = replace(student, model=model)
    samples = [render_trajectory(student.renderer, DOMAINS, t) for t in found]
    fit(student.model, samples, tokens, config.base.optim, config.seed, config.machine, Said())  # type: ignore[arg-type]
    return student


def sampled(
    start: Checkpoint, config: Config, episodes: int, precision: str
) -> tuple[list[Trajectory], dict[str, float]]:
    """Episodes with their experts, and what they took with recording and without."""
    tasks = [t.task for world in WORLDS for t in made(DOMAINS[world], HORIZONS, episodes, config.seed + 1)]
    seconds, rolled = {}, []
    for recorded in (False, False, True):  # the first has to warm up
        policy = LocalPolicy(start, config.machine.rollout_batch, precision=precision)
        policy.records_experts = recorded
        began = time.perf_counter()
        rolled = rollout(DOMAINS, tasks, policy, config.budget, TEMPERATURE, config.seed)
        seconds["recorded" if recorded else "plain"] = round(time.perf_counter() - began, 2)
    return rolled, seconds


def updated(
    start: Checkpoint, teacher: Teacher, config: Config, parts: Sequence[Trajectory], replay: bool
) -> Iterator[tuple[int, float]]:
    """One iteration's updates of the recipe's distillation at its full learning rate: how many are done, and the
    seconds of each."""
    model = start.model
    teachers = [Teacher(name, teacher.checkpoint) for name in sorted({t.task.domain for t in parts})]
    router = Router(start, teachers, [t.domain for t in teachers], "hard", config.seed)
    never = LocalPolicy(start, 1).never
    scores = router.score(parts, wanted(config.distill), never, config.machine)
    optimizer = Optimizer(model, config.distill.optim, config.distill.updates * config.distill.iterations)
    optimizer.done = round(optimizer.steps * config.distill.optim.warmup)  # behind the warm-up
    experts = Experts(model, RouterConfig(balance=0.0, z=0.0, replay=replay))
    for done, batch in enumerate(minibatches(parts, config.distill.updates, config.seed), 1):
        model.train()
        chosen, began = [parts[i] for i in batch], time.perf_counter()
        optimizer.step(
            losses(model, chosen, [scores[i] for i in batch], config.distill, config.machine, Watch(), experts)
        )
        model.eval()
        yield done, time.perf_counter() - began


@torch.no_grad()
def compared(start: Checkpoint, config: Config, parts: Sequence[Trajectory], replay: bool) -> dict[str, Any]:
    """The training pass against what the rollout chose and said."""
    model, machine = start.model, config.machine
    never = LocalPolicy(start, 1).never
    experts = Experts(model, RouterConfig(balance=0.0, z=0.0, replay=replay))
    differ, deltas = [], []
    for part in micro_batches(parts, machine.micro_tokens):
        chosen = [parts[i] for i in part]
        packed = pack_trajectories(model, chosen, machine)
        with experts.replayed(packed, chosen), recording(model) as seen:
            hidden_NH = packed_hidden(model, packed, machine)
        told_NLK = packed_experts(packed, chosen)
        known_N = (told_NLK >= 0).all(2).all(1)
        now_NLK = seen.chosen_NLK()
        differ.append((now_NLK[known_N].sort(-1).values != told_NLK[known_N].sort(-1).values).any(-1))
        logits_NV = output_layer(model, machine)(hidden_NH).masked_fill(never, -torch.inf) / TEMPERATURE
        targets_N = packed.ids_RT[packed.train_RT]
        now_N = torch.log_softmax(logits_NV, 1).gather(1, targets_N[:, None])[:, 0]
        order = torch.unique_consecutive(packed.sample_RT[packed.train_RT]).tolist()
        pairs = [pair for i in order for pair in zip(chosen[i].logprobs, chosen[i].loss_mask, strict=True)]
        deltas.append(now_N - torch.tensor([logprob for logprob, trained in pairs if trained]))
    differ_NL, delta_N = torch.cat(differ).float(), torch.cat(deltas).double()
    return {
        "replay": replay,
        "experts_differ": differ_NL.mean().item(),
        "experts_differ_by_layer": differ_NL.mean(0).tolist(),
        "tokens_differ": differ_NL.amax(1).mean().item(),
        "logprob_mean": delta_N.abs().mean().item(),
        "logprob_max": delta_N.abs().max().item(),
        "logprob_mean_square": delta_N.square().mean().item(),
        "kl": (delta_N.exp() - delta_N - 1).mean().item(),
        "off_by_2": (delta_N.abs() >= torch.tensor(2.0).log()).double().mean().item(),
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'rollout':>8}{'updates':>8}{'replay':>8}{'experts':>10}{'tokens':>9}{'mean |Δ|':>11}{'max |Δ|':>10}", end=""
    )
    print(f"{'KL':>11}{'×2':>9}")
    for row in rows:
        print(
            f"{row['rollout']:>8}{row['updates']:>8}{row['replay']!s:>8}{row['experts_differ']:>10.3%}"
            f"{row['tokens_differ']:>9.2%}{row['logprob_mean']:>11.2e}{row['logprob_max']:>10.2e}{row['kl']:>11.2e}"
            f"{row['off_by_2']:>9.3%}"
        )


if __name__ == "__main__":
    main()
