"""Which stock family should the small student be? The candidates on the same data, tokens, seeds and machine.

    python benchmarks/architecture.py [--tokens 600000] [--seeds 2]      (reads artifacts/generate of `make reproduce`)

Trains each candidate like the base stage does (horizon ≤ base.max_horizon, loss on assistant tokens) and prints loss,
speed and success on training-split tasks that no stage trains on; writes docs/results/architecture.json.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

from openhorizon.agent.render import Renderer, render_trajectory
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, read_tasks, read_trajectories
from openhorizon.artifacts import stage_dir, write_json
from openhorizon.config import load
from openhorizon.domains import DOMAINS
from openhorizon.model.load import Checkpoint, new_model
from openhorizon.model.sampler import LocalPolicy
from openhorizon.model.tokenizer import train_tokenizer
from openhorizon.seeds import derive
from openhorizon.train.supervised import fit

CANDIDATES = {
    "lfm2_moe, induction start": {"family": "lfm2_moe", "induction": True},
    "lfm2_moe, random start": {"family": "lfm2_moe", "induction": False},
    "qwen3_moe, random start": {"family": "qwen3_moe", "induction": False},
}
TASKS = 60  # a domain


class Quiet:
    """Keeps the loss; prints nothing."""

    def metrics(self, step: int, **values: float) -> None: ...
    def progress(self, done: int, total: int, note: str = "") -> None: ...
    def tokens(self, count: int) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    config = load()
    limit = config.base.max_horizon
    demonstrations = {n: read_trajectories(stage_dir("generate", n) / "demonstrations.parquet") for n in config.domains}
    tokenizer = train_tokenizer(
        (
            text
            for n, found in demonstrations.items()
            for t in found[: config.base.tokenizer_trajectories]
            for text in (DOMAINS[t.task.world].system, *(turn.text for turn in t.turns))
        ),
        config.model.scratch.vocab_size,
        config.model.max_tokens,
    )
    renderer = Renderer(tokenizer)
    samples = [
        render_trajectory(renderer, DOMAINS, t)
        for n, found in demonstrations.items()
        for t in [t for t in found if t.task.horizon <= limit][: config.base.demonstrations]
    ]
    tasks = {
        n: [t for t in read_tasks(stage_dir("generate", n) / "prompts.parquet") if t.horizon <= limit][:TASKS]
        for n in config.domains
    }
    rows = []
    print(f"{'candidate':28}{'parameters':>11}{'tokens/s':>10}{'loss':>8}  success by domain", flush=True)
    for name, choice in CANDIDATES.items():
        losses, rates, success, parameters = [], [], {n: [] for n in config.domains}, 0
        start = replace(config.model, scratch=replace(config.model.scratch, **choice))
        for seed in range(options.seeds):
            model = new_model(start, tokenizer, derive(seed, "architecture") % 2**32)
            parameters = sum(p.numel() for p in model.parameters())
            began = time.perf_counter()
            figures = fit(model, samples, options.tokens, config.base.optim, seed, config.machine, Quiet())
            rates.append(options.tokens / (time.perf_counter() - began))
            losses.append(figures["final_loss"])
            policy = LocalPolicy(Checkpoint(model, tokenizer, renderer, name), config.machine.rollout_batch)
            for n in config.domains:
                tried = rollout(DOMAINS, tasks[n], policy, config.budget, config.evaluate.temperature, seed)
                success[n].append(sum(t.status is Status.SOLVED for t in tried) / len(tried))
        row = {
            "candidate": name,
            "parameters": parameters,
            "tokens_per_s": statistics.median(rates),
            "loss": losses,
            "success": success,
        }
        rows.append(row)
        shown = "  ".join(f"{n} {statistics.mean(found):.2f}" for n, found in success.items())
        print(
            f"{name:28}{parameters:>11,}{row['tokens_per_s']:>10,.0f}{statistics.mean(losses):>8.3f}  {shown}",
            flush=True,
        )
    write_json(
        Path("docs/results/architecture.json"),
        {"rows": rows, "tokens": options.tokens, "seeds": options.seeds, "tasks": TASKS, "machine": platform.machine()},
    )


if __name__ == "__main__":
    main()
