"""ScienceWorld: its test variations, 30 kinds of tasks, by the world's own score.

The simulator, tool and score are those of domains/scientific_agent/scienceworld.py, whose training tasks are train
variations and whose held-out tasks are dev variations: a test variation is in neither. Kinds take turns, so that any
beginning has each as often. The published solution of a variation is the simulator's own gold path, worked out anew
(seconds each), up to the command that completes the task.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing

from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Benchmark, Lazy, Metrics, Value
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Task
from openhorizon.domains.scientific_agent.scienceworld import DONE, ScienceWorldDomain
from openhorizon.domains.scientific_agent.simulator import simulator
from openhorizon.seeds import derive

COMMANDS = 200  # of an episode; the longest gold path that is known has 178


@functools.cache
def tasks() -> Lazy:
    """Raises ``ValueError``: Java or the package is missing."""
    with closing(simulator().open("boil", 0)) as session:
        kinds = sorted(session.kinds())
    ordered = []
    for kind in kinds:
        with closing(simulator().open(kind, 0)) as session:
            mine = sorted(session.variations("test"), key=lambda number: derive(0, "bench", kind, number))
        ordered += [(turn, kind, number) for turn, number in enumerate(mine)]
    return Lazy([(kind, number) for _, kind, number in sorted(ordered)], _task)


def gold(task: Task) -> Sequence[Action]:
    return gold_path(task.state["kind"], task.state["variation"])


@functools.cache
def gold_path(kind: str, variation: int) -> Sequence[Action]:
    """The gold path, cut behind the command that completes the task: what follows is a wait."""
    with closing(simulator().open(kind, variation, gold=True)) as session:
        path = session.gold()
    with closing(simulator().open(kind, variation)) as session:
        taken = list[Action]()
        for command in path:
            if session.over():
                break
            session.step(command)
            taken.append(Call("act", {"command": command}))
    return (*taken, Answer(DONE))


def measure(trajectory: Trajectory) -> Metrics:
    score = trajectory.verdict.score
    return {"score": Value(score), "completed": Value(float(score == 1))}


def _task(key: tuple[str, int]) -> Task:
    kind, variation = key
    with closing(simulator().open(kind, variation)) as session:
        question = session.question()
    return Task(
        domain="scientific_agent",
        id=f"scienceworld-test-{kind}-{variation}",
        split="heldout",
        prompt=f"{kind.replace('-', ' ')}, variation {variation}. {question}",
        horizon=0,  # known to the gold path alone
        seed=0,
        state={"kind": kind, "variation": variation, "gold": []},
        evidence=(),
        verifiers=("score",),
        reference=DONE,
        entity_pairs=((kind, str(variation)),),
        source="scienceworld",
    )


SCIENCEWORLD = Benchmark(
    name="scienceworld",
    title="ScienceWorld",
    package="scienceworld",
    licence="Apache-2.0",
    split="test variations",
    protocol=f"one command a turn through the tool act, at most {COMMANDS}; commands are listed in the system prompt",
    domain=ScienceWorldDomain(),
    budget=BudgetConfig(slack=0.0, extra=COMMANDS, turn_tokens=256, context_tokens=32_768),
    primary="score",
    tasks=tasks,
    group=lambda task: str(task.state["kind"]),
    measure=measure,
    texts=lambda task: (task.prompt,),
    gold=gold,
)
