"""Which tasks of a public benchmark a model may have seen in training: the check of ``decontaminate.py``, turned round.

There a training task that comes too close to a benchmark is dropped before training; here the training tasks of a model
that is measured are held against the benchmark's texts, whatever was dropped, and the benchmark's tasks that they touch
are named. Prompts and entity pairs are compared, not what an episode's tools returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openhorizon.domains.base import Task
from openhorizon.kag.decontaminate import Contamination

NGRAM = 13
LISTED = 50  # matches that are written out


def exposure(training: Iterable[Task], texts: Mapping[str, Sequence[str]], ngram: int = NGRAM) -> dict[str, Any]:
    """``texts`` are the benchmark's by task. {training_tasks, ngram, tasks: those that were touched, touching: how many
    training tasks do, matches: [{training, kind, what, tasks}]}, the first ``LISTED`` of them."""
    owners: list[str] = [task for task, mine in texts.items() for _ in mine]
    contamination = Contamination([], {"the benchmark": [text for mine in texts.values() for text in mine]}, ngram)
    seen, touched, touching, matches = 0, set[str](), 0, list[dict[str, Any]]()
    for task in training:
        seen += 1
        kinds: dict[str, tuple[str, set[str]]] = {}
        for _, kind, reason, which in contamination.overlaps(task):
            kinds.setdefault(kind, (reason, set()))[1].update(owners[i] for i in which)
        touching += bool(kinds)
        touched.update(*(mine for _, mine in kinds.values()))
        matches += [
            {"training": task.id, "kind": kind, "what": reason, "tasks": sorted(mine)}
            for kind, (reason, mine) in kinds.items()
        ]
    return {
        "training_tasks": seen,
        "ngram": ngram,
        "tasks": sorted(touched),
        "touching": touching,
        "matches": matches[:LISTED],
    }
