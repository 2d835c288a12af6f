"""What the model benchmarks run on: the profile's student, and real demonstrations made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokens import made

from openhorizon.agent.render import Renderer, render_trajectory
from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.model.load import Checkpoint, new_model, place, save_checkpoint, weights_hash
from openhorizon.model.tokenizer import train_tokenizer
from openhorizon.seeds import derive
from openhorizon.train.supervised import fit


class Said:
    """What a training loop uses of a log."""

    def metrics(self, step: int, **values: float) -> None: ...
    def timing(self, step: int, **seconds: float) -> None: ...
    def tokens(self, count: int) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        if done % 25 == 0 or done == total:
            print(f"student: {done}/{total} {note}", flush=True)


def demonstrations(domains: Sequence[str], horizons: Sequence[int], count: int, seed: int) -> list[Trajectory]:
    """``count`` reference solutions of training tasks a domain and horizon."""
    return [t for domain in domains for t in made(DOMAINS[domain], horizons, count, seed)]


def untrained(config: Config, found: Sequence[Trajectory], seed: int) -> Checkpoint:
    """A tokenizer of these trajectories, and the profile's model as its base stage starts it."""
    texts = [text for t in found for text in (DOMAINS[t.task.world].system, *(turn.text for turn in t.turns))]
    tokenizer = train_tokenizer(texts, config.model.scratch.vocab_size, config.model.max_tokens)
    model = new_model(config.model, tokenizer, derive(seed, "weights") % 2**32)
    place(model, config.machine)
    return Checkpoint(model, tokenizer, Renderer(tokenizer), "untrained")


def trained(config: Config, domains: Sequence[str], horizons: Sequence[int], count: int, tokens: int) -> Checkpoint:
    """The same, trained for ``tokens`` tokens: enough to call tools, not to solve much."""
    found = demonstrations(domains, horizons, count, config.seed)
    student = untrained(config, found, config.seed)
    samples = [render_trajectory(student.renderer, DOMAINS, t) for t in found]
    fit(student.model, samples, tokens, config.base.optim, config.seed, config.machine, Said())  # type: ignore[arg-type]
    return student


def keep(student: Checkpoint, folder: Path) -> str:
    """Save a checkpoint and return the hash of its weights."""
    save_checkpoint(student.model, student.tokenizer, folder)
    return weights_hash(folder)
