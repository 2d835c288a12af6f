"""A public benchmark from its name to results on disk: who plays, beside what, after having seen what.

Written are, into a folder that appears only when everything is there:

    metrics.json          the benchmark, the player and how it was asked; rates with intervals, reference rows, the
                          authors' figures, what was not judged and why, contamination, cost
    results.jsonl         one task a line, with all its metrics
    records.parquet       the same in the form that ``bench.base`` has for every evaluation, for comparisons
    trajectories.parquet  the episodes, as text

How long it took is written elsewhere (``timing``), since it differs from run to run.

Finished tasks are kept in a journal meanwhile (bench/journal.py), so that what was killed goes on, and a larger
``limit`` plays only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openhorizon.agent.player import Player, PolicyPlayer
from openhorizon.agent.trajectory import Status, iter_tasks, write_trajectories
from openhorizon.artifacts import replace_dir, stage_dir, write_json, write_text
from openhorizon.bench.base import Record, write_records
from openhorizon.bench.journal import code_hash, journal_path
from openhorizon.bench.public import BENCHMARKS
from openhorizon.bench.public.base import FLOOR, GOLD, SAMPLE, Benchmark, Result
from openhorizon.bench.public.folder import open_folder
from openhorizon.bench.public.journal import Journal
from openhorizon.bench.public.reported import reported
from openhorizon.bench.public.run import Sampling, reference, run
from openhorizon.bench.public.summary import LISTED, cost, counts, failures, pace, rates
from openhorizon.config import Config
from openhorizon.domains.base import Task
from openhorizon.kag.exposure import exposure
from openhorizon.players import open_endpoint, open_player, ours

REFERENCES = (GOLD, SAMPLE, FLOOR)
Said = Callable[[str, int, int], None]  # who plays, tasks done, tasks in all


@dataclass(frozen=True)
class Wanted:
    """One run of one benchmark. ``limit``: the first so many tasks; None: all. ``turn_tokens`` and ``calls``: what a
    turn and an episode may have, in place of the benchmark's own bounds. ``user``: URL#MODEL of the language model that
    plays the user, of a benchmark that has one."""

    benchmark: str
    model: str
    limit: int | None
    temperature: float
    turn_tokens: int | None = None
    calls: int | None = None
    user: str | None = None


def find(name: str) -> Benchmark:
    """A benchmark of the registry, or of a user's folder. Raises ``ValueError`` for an unknown name."""
    if Path(name).is_dir():
        return open_folder(Path(name))
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}, or a folder of your own")
    return BENCHMARKS[name]


def bench(
    config: Config, wanted: Wanted, out: Path, timing: Path, said: Said = lambda who, done, total: None
) -> dict[str, Any]:
    """Play, write ``out`` and ``timing``, and return what its metrics.json has, with the timing.

    Raises:
        ValueError, FileNotFoundError: no such benchmark or model, or its data is not there or damaged.
    """
    benchmark = as_asked(find(wanted.benchmark), wanted)
    tasks = list(benchmark.tasks()[: wanted.limit])
    sampling = Sampling(wanted.temperature, config.seed)
    known = wanted.model in REFERENCES
    opened = reference(benchmark, wanted.model) if known else open_player(wanted.model, config.machine)
    player = benchmark.through(opened)
    journals = {wanted.model: _play(benchmark, player, wanted.model, tasks, sampling, said)}
    for name in (name for name in benchmark.references if name != wanted.model):
        journals[name] = _play(benchmark, benchmark.through(reference(benchmark, name)), name, tasks, sampling, said)
    found = {name: [journal.results[task.id] for task in tasks] for name, journal in journals.items()}
    metrics = {
        "benchmark": describe(benchmark) | {"tasks": len(benchmark.tasks()), "limit": wanted.limit},
        "model": wanted.model,
        "player": player.name,
        "sampling": {**asdict(sampling), "turn_tokens": benchmark.budget.turn_tokens, "calls": benchmark.budget.extra},
        "user": wanted.user,
        **summary(benchmark, found[wanted.model], found, config.seed),
        "counts": counts(found[wanted.model]),
        "tools_shown": player.shows_tools(benchmark.domain, tasks[0]) if isinstance(player, PolicyPlayer) else None,
        "cost": cost(found[wanted.model]),
        "contamination": contamination(config, benchmark, wanted.model, tasks),
        "reported": reported(benchmark.name),
    }
    with replace_dir(out) as folder:
        write_json(folder / "metrics.json", metrics)
        write_results(folder, benchmark, wanted.model, found[wanted.model], journals[wanted.model], config.seed)
    taken = {name: pace(results) for name, results in found.items()}
    write_json(timing, taken)
    return {**metrics, "timing": taken[wanted.model]}


def as_asked(benchmark: Benchmark, wanted: Wanted) -> Benchmark:
    """With the user and the bounds that are asked for. Raises ``ValueError`` for what cannot be."""
    for option in ("limit", "turn_tokens", "calls"):
        value = getattr(wanted, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')}: {value} is less than 1")
    budget = benchmark.budget
    if wanted.turn_tokens is not None:
        budget = replace(budget, turn_tokens=wanted.turn_tokens)
    if wanted.calls is not None:
        budget = replace(budget, slack=0.0, extra=wanted.calls)
    if wanted.user is None:
        return replace(benchmark, budget=budget)
    if benchmark.with_user is None:
        raise ValueError(f"--user: in {benchmark.name} no language model plays the user")
    return replace(benchmark.with_user(benchmark, open_endpoint(wanted.user)), budget=budget)


def describe(benchmark: Benchmark) -> dict[str, Any]:
    """What a reader has to know of a benchmark besides its figures."""
    names = ("name", "title", "version", "licence", "split", "protocol", "primary", "gold_score", "no_gold")
    return {name: getattr(benchmark, name) for name in names}


def summary(
    benchmark: Benchmark, mine: Sequence[Result], by_player: dict[str, list[Result]], seed: int
) -> dict[str, Any]:
    """Rates and reference rows; no rates of a benchmark whose own solution fails."""
    wrong = failures(benchmark, by_player.get(GOLD, []))
    return {
        "broken": {"failures": len(wrong), "tasks": wrong[:LISTED]} if wrong else None,
        "rates": [] if wrong else [asdict(rate) for rate in rates(benchmark, mine, seed)],
        "references": {
            name: [asdict(rate) for rate in rates(benchmark, results, seed) if rate.metric == benchmark.primary]
            for name, results in by_player.items()
            if name in REFERENCES
        },
    }


def contamination(config: Config, benchmark: Benchmark, model: str, tasks: Sequence[Task]) -> dict[str, Any]:
    """What training saw of these tasks; of a model that was not trained here nobody knows."""
    if model in REFERENCES or not ours(model):
        return {"checked": False, "why": "not trained here: what its training data holds is not known"}
    paths = [
        stage_dir("generate", domain) / f"{part}.parquet"
        for domain in config.domains
        for part in ("demonstrations", "prompts")
    ]
    training = (task for path in paths for task in iter_tasks(path))
    return {"checked": True, **exposure(training, {task.id: benchmark.texts(task) for task in tasks})}


def write_results(
    folder: Path, benchmark: Benchmark, model: str, results: Sequence[Result], journal: Journal, seed: int
) -> None:
    """All but metrics.json."""
    rows = ({k: v for k, v in asdict(it).items() if k != "seconds"} for it in results)
    write_text(folder / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_records(folder / "records.parquet", [_record(benchmark, model, it, seed) for it in results])
    played = [journal.trajectories[it.task] for it in results if it.task in journal.trajectories]
    write_trajectories(folder / "trajectories.parquet", played)


def _play(
    benchmark: Benchmark, player: Player, name: str, tasks: Sequence[Task], sampling: Sampling, said: Said
) -> Journal:
    identity = {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "player": player.name,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "budget": asdict(benchmark.budget),
        "code": code_hash(),
    }
    journal = Journal(journal_path(identity), identity)
    run(benchmark, player, tasks, sampling, journal, lambda done, total: said(name, done, total))
    return journal


def _record(benchmark: Benchmark, model: str, result: Result, seed: int) -> Record:
    return Record(
        task=result.task,
        domain=benchmark.name,
        horizon=result.horizon,
        seed=seed,
        model=model,
        status=result.status or Status.ABORTED,
        success=result.success,
        score=result.metrics[benchmark.primary].value if result.metrics else 0.0,
        reason=result.reason,
        tool_calls=result.tool_calls,
        first_failing_turn=None,
        tokens=result.tokens,
        answer=result.answer,
    )
