"""Decoding beside transformers' ``generate()``: a step, whole rollouts with tools, long observations.

    python benchmarks/decode.py [--checkpoint FOLDER] [--parts steps rollouts observations] [--threads 1]

Same machine, weights, inputs and run; ours and the peer alternate, ratios are medians over repetitions with their
smallest and largest, and every token that the two wrote is compared. Greedy, since that can be compared.

* steps: a batch of prompts of one length, so that the peer needs no padding; the time of a step is that of 65 tokens
  less that of one, by 64.
* rollouts: the profile's held-out tasks in their environments. The peer is a loop that calls ``generate()`` once a turn
  on all live episodes, left-padded, with each conversation read again; it does so for each turn budget apart, or all at
  once, whichever is faster, and obeys the same budgets.
* observations: a Mixtral-like model reads observations of hundreds of tokens, in chunks and in lock-step.

Without ``--checkpoint`` the profile's student is trained for ``--tokens`` tokens first, so that it calls tools. Writes
docs/results/decode.json.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from student import keep, trained
from transformers import AutoModelForCausalLM, GenerationConfig, MixtralConfig, PreTrainedModel

from openhorizon.agent.rollout import Conversation, Policy, rollout
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.artifacts import read_json, write_json
from openhorizon.config import Config, load
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint, load_checkpoint
from openhorizon.model.rows import Row
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive, rng

OUT = Path("docs/results/decode.json")
PROMPT, STEPS = 128, 64  # tokens of the step's measurement
SEEN = (1, 2, 3)  # of the training


class Fixed:
    """A conversation of fixed turns: so many tokens each, whatever they are, answered by the next observation."""

    def __init__(self, seed: int, prompt: list[int], observations: Sequence[list[int]], turn_tokens: int) -> None:
        self.seed, self.prompt_ids, self.observations, self.turn_tokens = seed, prompt, list(observations), turn_tokens
        self.context_tokens = len(prompt) + sum(map(len, observations)) + turn_tokens * (len(observations) + 1) + 2
        self.written: list[int] = []

    def reply(self, ids: Sequence[int], logprobs: Sequence[float], complete: bool) -> list[int] | None:
        self.written += ids
        return self.observations.pop(0) if self.observations else None


class GenerateLoop:
    """The peer: ``generate()`` once a turn for all live conversations. Satisfies ``agent.rollout.Policy``."""

    def __init__(self, student: Checkpoint, model: PreTrainedModel, never: torch.Tensor, batch: int, apart: bool):
        self.name, self.renderer = student.hash, student.renderer
        self.model, self.batch, self.apart = model, batch, apart
        self.pad, self.end = int(student.tokenizer.pad_token_id), student.renderer.end_id
        self.never = never.nonzero()[:, 0].tolist()

    def converse(
        self, conversations: Sequence[Conversation], temperature: float, progress: Callable[[int, int], None]
    ) -> None:
        assert temperature == 0
        groups: dict[int, list[Conversation]] = {}
        for talk in conversations:
            groups.setdefault(talk.turn_tokens if self.apart else 0, []).append(talk)
        for mine in groups.values():
            rows = [Row(talk) for talk in mine]
            while rows:
                self._turn(rows[: self.batch])  # who is over makes room for the next
                rows = [row for row in rows if not row.over]

    @torch.inference_mode()
    def _turn(self, rows: list[Row]) -> None:
        for row in rows:
            row.read, row.pending = row.read + row.pending, []
        width = max(len(row.read) for row in rows)
        ids = torch.tensor([[self.pad] * (width - len(row.read)) + row.read for row in rows])
        mask = torch.tensor([[0] * (width - len(row.read)) + [1] * len(row.read) for row in rows])
        budget = max(row.conversation.turn_tokens for row in rows)
        settings = GenerationConfig(
            max_new_tokens=budget, do_sample=False, eos_token_id=self.end, pad_token_id=self.pad,
            suppress_tokens=self.never,
        )  # fmt: skip
        written = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
        for row, tokens in zip(rows, written.tolist(), strict=True):
            for token in tokens:
                row.take(token, 0.0, len(row.read), self.end)
                if row.over or not row.written:  # the turn is
                    break
                row.read, row.pending = [*row.read, token], []


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in transformers' own attention; its experts' default."""
    peer: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="sdpa")
    peer.load_state_dict(model.state_dict())
    peer.set_experts_implementation("grouped_mm")
    return peer.to(model.device).eval()


def steps(student: Checkpoint, batches: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds of a decoding step, ours and ``generate()``'s."""
    peer, rows = stock(student.model), []
    for batch in batches:
        draw = random.Random(batch)
        prompts = [[draw.randrange(300, len(student.tokenizer)) for _ in range(PROMPT)] for _ in range(batch)]
        policy = LocalPolicy(student, batch)
        policy.never[policy.renderer.end_id] = True  # every row writes to the end

        def ours(tokens: int, prompts: list[list[int]] = prompts, policy: LocalPolicy = policy) -> list[list[int]]:
            talks = [Fixed(n, prompt, [], tokens) for n, prompt in enumerate(prompts)]
            policy.converse(talks, 0.0, lambda done, total: None)
            return [talk.written for talk in talks]

        @torch.inference_mode()
        def theirs(tokens: int, prompts: list[list[int]] = prompts, policy: LocalPolicy = policy) -> list[list[int]]:
            settings = GenerationConfig(
                max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None,
                pad_token_id=student.tokenizer.pad_token_id, suppress_tokens=policy.never.nonzero()[:, 0].tolist(),
            )  # fmt: skip
            written = peer.generate(input_ids=torch.tensor(prompts), generation_config=settings)
            return written[:, PROMPT:].tolist()

        same = share(ours(STEPS + 1), theirs(STEPS + 1))
        timed = [[seconds(run, STEPS + 1) - seconds(run, 1) for run in (ours, theirs)] for _ in range(repeats)]
        rows.append({"batch": batch, "same_tokens": same, **compared(timed, STEPS)})
        row = rows[-1]
        print(
            f"step, batch {batch:>4}: ours {row['ours_s'] * 1e3:6.2f} ms, generate() {row['peer_s'] * 1e3:6.2f} ms, "
            f"{said(row)}, same tokens {same:.4f}",
            flush=True,
        )
    return rows


def rollouts(student: Checkpoint, config: Config, count: int, batch: int, repeats: int) -> dict[str, Any]:
    """Episodes a second, ours and the loop's."""
    tasks = [task for name in config.domains for task in proposed(config, name, count)]
    policy = LocalPolicy(student, batch)
    peers = {
        "by turn budget": GenerateLoop(student, stock(student.model), policy.never, batch, True),
        "all at once": GenerateLoop(student, stock(student.model), policy.never, batch, False),
    }

    def played(who: Policy) -> list[Trajectory]:
        return rollout(DOMAINS, tasks, who, config.budget, 0.0, config.seed)

    mine = played(policy)
    once = {name: seconds(lambda who=peer: played(who)) for name, peer in peers.items()}  # type: ignore[misc]
    best = min(once, key=lambda name: once[name])
    theirs = played(peers[best])
    same = share([t.ids for t in mine], [t.ids for t in theirs])
    differing = [
        apart(student.model, policy.never, one, other)
        for one, other in zip(mine, theirs, strict=True)
        if one.ids != other.ids
    ]
    timed = [[seconds(lambda who=who: played(who)) for who in (policy, peers[best])] for _ in range(repeats)]  # type: ignore[misc]
    row = {
        "episodes": len(tasks),
        "domains": list(config.domains),
        "horizons": {name: list(config.generate[name].heldout_horizons) for name in config.domains},
        "batch": batch,
        "tokens": sum(len(t.ids) for t in mine),
        "written_tokens": sum(sum(t.loss_mask) for t in mine),
        "tool_calls": sum(t.tool_calls for t in mine),
        "solved": sum(t.status is Status.SOLVED for t in mine),
        "peer": best,
        "same_episodes": sum(a.ids == b.ids for a, b in zip(mine, theirs, strict=True)) / len(mine),
        "same_tokens": same,
        "gaps_where_they_part": differing,
        **compared(timed, 1),
    }
    row |= {f"{who}_episodes_per_s": len(tasks) / row[f"{who}_s"] for who in ("ours", "peer")}
    print(
        f"rollouts, {len(tasks)} episodes, {row['tool_calls']} calls: ours {row['ours_episodes_per_s']:.1f}/s, "
        f"generate() a turn ({best}) {row['peer_episodes_per_s']:.1f}/s, {said(row)}, "
        f"same episodes {row['same_episodes']:.4f}, tokens {same:.4f}, gaps where they part {differing}",
        flush=True,
    )
    return row


def observations(student: Checkpoint, lengths: Sequence[int], batch: int, repeats: int) -> list[dict[str, Any]]:
    """Tokens a second of a Mixtral-like model whose observations are about so long: in chunks, and in lock-step."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(student.tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        max_position_embeddings=32768, initializer_range=0.2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS).eval()
    mixtral, rows = replace(student, model=model), []
    for length in lengths:

        def played(in_chunks: bool, length: int = length) -> list[Fixed]:
            draw = random.Random(length)
            policy = LocalPolicy(mixtral, batch)
            assert policy.ragged
            policy.ragged = in_chunks
            policy.never[policy.renderer.end_id] = True
            talks = []
            for n in range(batch):
                texts = [
                    [draw.randrange(300, config.vocab_size) for _ in range(draw.randrange(length // 2, 2 * length))]
                    for _ in range(4)
                ]
                talks.append(Fixed(n, texts[0], texts[1:], 24))
            policy.converse(talks, 0.0, lambda done, total: None)
            return talks

        mine, theirs = played(True), played(False)
        tokens = sum(talk.context_tokens - 2 for talk in mine)
        same = share([talk.written for talk in mine], [talk.written for talk in theirs])
        timed = [[seconds(played, way) for way in (True, False)] for _ in range(repeats)]
        row = {"mean_observation": length * 1.25, "batch": batch, "tokens": tokens, "same_tokens": same}
        row |= compared(timed, 1)
        row |= {"chunks_tokens_per_s": tokens / row["ours_s"], "lockstep_tokens_per_s": tokens / row["peer_s"]}
        rows.append(row)
        print(
            f"observations of {row['mean_observation']:,.0f} tokens, {batch} conversations: in chunks "
            f"{row['chunks_tokens_per_s']:,.0f} tokens/s, lock-step {row['lockstep_tokens_per_s']:,.0f}, {said(row)}, "
            f"same tokens {same:.4f}",
            flush=True,
        )
    return rows


def proposed(config: Config, domain: str, count: int) -> list[Task]:
    """Held-out tasks of the profile's horizons, as ``evaluate`` has them."""
    world, found, i = DOMAINS[domain], list[Task](), 0
    horizons = config.generate[domain].heldout_horizons
    while len(found) < count:
        own = derive(config.seed, "decode", domain, i)
        task = world.propose(rng(own, "propose"), "heldout", horizons[i % len(horizons)], own)
        found += [task] if task else []
        i += 1
    return found


def apart(model: PreTrainedModel, never: torch.Tensor, one: Trajectory, other: Trajectory) -> float:
    """How far the two tokens where two greedy episodes part are from each other, in logits of the plain forward."""
    at = next(i for i, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one.ids[:at]]), use_cache=False).logits[0, -1]
    return abs(float(logits[one.ids[at]] - logits[other.ids[at]]))


def share(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of our tokens that stand at the same place in the other's."""
    same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False))
    return same / sum(map(len, ours))


def seconds(run: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


def compared(timed: Sequence[Sequence[float]], per: int) -> dict[str, Any]:
    """Medians of both, and the ratio peer / ours with its spread over repetitions."""
    ratios = [theirs / ours for ours, theirs in timed]
    ours, theirs = (statistics.median(values) / per for values in zip(*timed, strict=True))
    spread = {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    return {"ours_s": ours, "peer_s": theirs, **spread, "repeats": len(ratios)}


def said(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f}x [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}] n={row['repeats']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--keep", type=Path, help="save the student that is trained here")
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--parts", nargs="+", default=["steps", "rollouts", "observations"])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--episodes", type=int, default=24, help="a domain")
    parser.add_argument("--batch", type=int, default=128, help="of the rollouts")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[64, 256, 1024], help="of observations, at the median"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load()
    if options.checkpoint:
        student = load_checkpoint(options.checkpoint, config.machine)
    else:
        student = trained(config, config.domains, SEEN, 200, options.tokens)
        if options.keep:
            keep(student, options.keep)
    result: dict[str, Any] = read_json(OUT) if OUT.exists() else {}
    if "steps" in options.parts:
        result["steps"] = steps(student, options.batches, options.repeats)
    if "rollouts" in options.parts:
        result["rollouts"] = rollouts(student, config, options.episodes, options.batch, options.repeats)
    if "observations" in options.parts:
        result["observations"] = observations(student, options.lengths, 16, options.repeats)
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
    write_json(OUT, result)


if __name__ == "__main__":
    main()
