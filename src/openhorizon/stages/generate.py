"""Generate one domain's data by self-play: demonstrations, prompts, held-out tasks and the knowledge-action graph.

Section 2.2 in one process. Held-out tasks come first; training tasks that share a prompt or an entity pair with them
are dropped, and the stage raises if anything is shared after all. Demonstrations are finite in number and imperfect:
the expert strays with chance ``noise``, and what it then fails to finish inside its budget is kept as rejected.

Held-out tasks and their rejections stay out of the graph and of rejected.parquet: both are training data.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openhorizon.agent.rollout import allowed_calls
from openhorizon.agent.trajectory import Status, Trajectory, write_tasks, write_trajectories
from openhorizon.artifacts import replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Domain, Split, Task
from openhorizon.kag.graph import Graph, build
from openhorizon.kag.selfplay import BEFORE_RULES, RULES, Memory, Outcome, expand, to_trajectory
from openhorizon.kag.store import write_graph

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

PROGRESS_S = 1.0
Item = TypeVar("Item")


def run(config: Config, target: str, log: StageLog) -> None:
    """Write ``artifacts/generate/TARGET``; layout in ``artifacts.py``.

    Raises:
        ValueError: no such domain, a yield too low for ``max_proposals``, or training and held-out tasks overlap.
    """
    if target not in DOMAINS or target not in config.generate:
        raise ValueError(f"generate: unknown domain {target!r}; known are {', '.join(sorted(DOMAINS))}")
    with replace_dir(stage_dir("generate", target)) as folder:
        metrics = write_data(config, DOMAINS[target], folder, log)
    counts = metrics["counts"]
    log.metrics(0, words_mean=float(metrics["words"].get("mean", 0)), **{name: float(n) for name, n in counts.items()})
    for horizon, row in metrics["expert"].items():
        log.metrics(int(horizon), expert_success=row["success"])


def write_data(config: Config, domain: Domain, folder: Path, log: StageLog) -> dict[str, Any]:
    """Fill ``folder``; returns what it wrote to metrics.json."""
    wanted = config.generate[domain.name]
    budget = partial(allowed_calls, config.budget[domain.name])
    memory = Memory(wanted.max_proposals)
    total = wanted.heldout + wanted.demonstrations + wanted.prompts
    progress = _Progress(log, total)

    def outcomes(part: str, split: Split, horizons: Sequence[int], count: int, noise: float) -> list[Outcome]:
        if count and not horizons:
            raise ValueError(f"generate.{domain.name}: {count} {part} asked for, but no horizons")
        found = expand(domain, split, horizons, count, noise, budget, config.seed, memory)
        return list(progress.watch(part, found))

    heldout = outcomes("heldout", "heldout", wanted.heldout_horizons, wanted.heldout, 0.0)
    heldout_tasks = [_task(outcome) for outcome in heldout if not outcome.rule]
    memory.barred_prompts = {task.prompt for task in heldout_tasks}
    memory.barred_pairs = {pair for task in heldout_tasks for pair in task.entity_pairs}
    solved = outcomes("demonstrations", "train", wanted.horizons, wanted.demonstrations, wanted.noise)
    proposed = outcomes("prompts", "train", wanted.prompt_horizons, wanted.prompts, 0.0)

    prompts = [_task(outcome) for outcome in proposed if not outcome.rule]
    accepted = [to_trajectory(outcome) for outcome in solved if not outcome.rule]
    rejected = [to_trajectory(outcome) for outcome in [*solved, *proposed] if outcome.rule and outcome.episode]
    progress.say("graph")
    shared = check_disjoint(heldout_tasks, [*(trajectory.task for trajectory in accepted), *prompts])
    graph = build(progress.watch("graph", [*accepted, *rejected]))
    progress.say("writing")
    write_graph(folder / "graph", graph)
    write_trajectories(folder / "demonstrations.parquet", progress.watch("writing", accepted))
    write_trajectories(folder / "rejected.parquet", progress.watch("writing", rejected))
    write_tasks(folder / "prompts.parquet", progress.watch("writing", prompts))
    write_tasks(folder / "heldout.parquet", progress.watch("writing", heldout_tasks))
    parts = {"heldout": heldout, "demonstrations": solved, "prompts": proposed}
    dropped = Counter(outcome.rule for outcome in [*solved, *proposed])
    metrics = {
        "domain": domain.name,
        "seed": config.seed,
        "proposals": dict(memory.proposals),
        "counts": {
            "demonstrations": len(accepted),
            "rejected": len(rejected),
            "prompts": len(prompts),
            "heldout": len(heldout_tasks),
        },
        "acceptance": {part: _acceptance(found) for part, found in parts.items()},
        "by_horizon": {part: _by_horizon(found) for part, found in parts.items()},
        "duplicates_removed": sum(outcome.rule == "duplicate" for found in parts.values() for outcome in found),
        "decontamination": {
            **shared,
            "pairs_dropped": dropped["shared pair"],
            "prompts_dropped": dropped["shared prompt"],
        },
        "reference_calls_off_horizon": _off_horizon([*heldout, *proposed]) if domain.tools else 0,
        "expert": _expert(solved),
        "tool_calls": _spread([trajectory.tool_calls for trajectory in accepted]),
        "words": _spread([words(trajectory) for trajectory in accepted]),
        "graph": _describe(graph),
    }
    write_json(folder / "metrics.json", metrics)
    return metrics


def check_disjoint(heldout: Sequence[Task], train: Sequence[Task]) -> dict[str, int]:
    """How much the two splits share, by kind: nothing.

    Raises:
        ValueError: they share an entity pair, a seed or a prompt; the message has one of each.
    """
    shared: dict[str, set[Any]] = {
        "shared_pairs": _pairs(heldout) & _pairs(train),
        "shared_seeds": {task.seed for task in heldout} & {task.seed for task in train},
        "shared_prompts": {task.prompt for task in heldout} & {task.prompt for task in train},
    }
    found = [f"{name} {len(items)} (such as {min(items)!r})" for name, items in shared.items() if items]
    if found:
        raise ValueError(f"training and held-out tasks overlap: {', '.join(found)}")
    return {name: len(items) for name, items in shared.items()} | {
        "heldout_pairs": len(_pairs(heldout)),
        "train_pairs": len(_pairs(train)),
    }


def words(trajectory: Trajectory) -> int:
    """Words in all turns: what stands for length until there is a tokenizer."""
    return sum(len(turn.text.split()) for turn in trajectory.turns)


class _Progress:
    """Tells the log how many tasks of all parts are done, about once a second."""

    def __init__(self, log: StageLog, total: int) -> None:
        self.log, self.total, self.done, self.last = log, total, 0, 0.0

    def watch(self, note: str, items: Iterable[Item]) -> Iterable[Item]:
        """The same items; an accepted outcome is a task done."""
        for item in items:
            self.done += isinstance(item, Outcome) and not item.rule
            if time.monotonic() - self.last >= PROGRESS_S:
                self.say(note)
            yield item

    def say(self, note: str) -> None:
        self.last = time.monotonic()
        self.log.progress(self.done, self.total, note)


def _task(outcome: Outcome) -> Task:
    assert outcome.episode is not None, "an accepted outcome has an episode"
    return outcome.episode.task


def _pairs(tasks: Sequence[Task]) -> set[tuple[str, str]]:
    return {pair for task in tasks for pair in task.entity_pairs}


def _acceptance(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Outcomes by what decided them; every rule is listed, also where it refused nothing."""
    counts = Counter(outcome.rule or "accepted" for outcome in outcomes)
    return {name: counts[name] for name in ("accepted", *BEFORE_RULES, *RULES)}


def _by_horizon(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return _named(Counter(outcome.horizon for outcome in outcomes if not outcome.rule))


def _off_horizon(references: Sequence[Outcome]) -> int:
    """Accepted tasks whose reference solution takes more or fewer calls than their horizon says."""
    return sum(not o.rule and o.episode is not None and len(o.episode.steps) != o.horizon for o in references)


def _expert(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Success of the noisy expert by horizon, over all its tries."""
    tries = [o for o in outcomes if o.episode is not None and o.rule not in ("verifiable", "no shortcut")]
    report = {}
    for horizon in sorted({outcome.horizon for outcome in tries}):
        status = Counter(o.episode.status for o in tries if o.horizon == horizon and o.episode is not None)
        report[str(horizon)] = {
            "tries": status.total(),
            "solved": status[Status.SOLVED],
            "truncated": status[Status.TRUNCATED],
            "success": round(status[Status.SOLVED] / status.total(), 4),
        }
    return report


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    ranked = sorted(values)
    at = {f"p{q}": float(ranked[min(len(ranked) * q // 100, len(ranked) - 1)]) for q in (5, 50, 95)}
    return {"mean": round(sum(ranked) / len(ranked), 3), "min": ranked[0], "max": ranked[-1], **at}


def _describe(graph: Graph) -> dict[str, Any]:
    return {
        "nodes": _named(Counter(node.kind for node in graph.nodes)),
        "edges": _named(Counter(edge.kind for edge in graph.edges)),
        "records": len(graph.records),
        "abilities": _named(Counter(ability for record in graph.records for ability in record.abilities)),
    }


def _named(counts: Counter[Any]) -> dict[str, int]:
    return {str(name): n for name, n in sorted(counts.items())}
