"""Engineering in natural text (section 3): competitions over real tables, worked with full Python scripts.

A team works through a lead's assignments on one competition (``competitions.py``): survey the data, write scripts with
given models, repair what a colleague broke, tune, leave out columns, look whether a lead is luck, find validations that
leak, and hand in what is best. Scripts of 60 to 70 lines run in the sandbox; outputs and tracebacks come back as they
are. The next assignment shows when one is done, and names nodes, scores and settings of that run's own tree.

    read_notes                        brief: columns, metric, files. Lead: assignment 1. Write a full script with …
    write_full_code, execute_code     fold by fold, columns, worst rows, cv rmse 411.98 +- 54
    write_notes n1, cv rmse 411.98    noted. Lead: assignment 2. A colleague left n2, … does not work. …
    select_node, execute_code         KeyError: "['loww'] not in index"
    patch_code, execute_code, …       … Lead: that was the last assignment. Give the answer.
    Answer: n6, cv rmse 395.02

The verifier grades what was handed in on the private answers: it must be in format and beat the share of the
leaderboard (``leaderboard.py``) that the prompt demands; its percentile is in the verdict's reason. It must be the best
node of the tree, every assignment must be done, nothing sound may be invalidated, and the answer must name the node and
its score. A demand is the largest of ``DEMANDS`` that the reference solution meets.

What differs from the paper: the competitions are small (900 rows), so that a run takes tenths of a second; there is no
agent that proposes what to try, but a lead, so that a task has an exact horizon; ``analyze`` runs code rather than a
sub-agent (``reports.py`` has the seam). Long runs are compacted (``memory.py``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openhorizon.domains.base import (
    Answer,
    Domain,
    Environment,
    Expert,
    Split,
    Step,
    Task,
    Verdict,
    part_of,
    solve,
)
from openhorizon.domains.engineering.competitions import (
    VALIDATION_PERCENT,
    Competition,
    candidates,
    competition,
    tables_of,
)
from openhorizon.domains.engineering.grading import LOWER_IS_BETTER
from openhorizon.domains.engineering.leaderboard import measure
from openhorizon.domains.engineering.memory import recall
from openhorizon.domains.engineering.reports import Analyst, local_analyst
from openhorizon.domains.engineering.scripts import CLASSES_OF, Recipe, bugs
from openhorizon.domains.engineering.solver import expert
from openhorizon.domains.engineering.studio import COSTS, TablesEnvironment
from openhorizon.domains.engineering.tree import tools

CODE_CHARS = 12_000
MIN_HORIZON = 5  # read, write, run, note, hand in
FEATURES = (4, 20)  # of a competition
DEMANDS = (75, 60, 50, 40, 25)  # percentiles
TRIES = 8  # competitions drawn before a proposal is given up
WEIGHTS = {  # how often an assignment is drawn, where it fits
    "notes": 0.2,
    "survey": 2,
    "shell": 0.5,
    "review": 0.7,
    "sound": 0.7,
    "model": 4,
    "leak": 1,
    "ablate": 2,
    "repeat": 1.5,
    "repair": 2.5,
    "repair twice": 2,
    "tune": 3,
}
ONCE = ("survey", "shell")
LEAVE = 0.35  # chance that a model's assignment leaves a column out
LEAKING = ("tree", "forest", "boosting")  # models that take a leak up whatever the target is


class TablesDomain(Domain):
    name = "engineering"
    apart = True
    source = "tables"
    system = (
        "You are a machine learning engineer. Work on the solution tree with the tools: each node is a version of the "
        "code. Do what the lead asks for, one assignment after the other, and look at what your runs print."
    )
    tools = tools(CODE_CHARS)

    def __init__(self, analyst: Analyst = local_analyst) -> None:
        self.analyst = analyst

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        return tuple(horizon for horizon in horizons if horizon >= MIN_HORIZON)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A sound competition with assignments for ``horizon`` calls, solved once for the answer and the demand."""
        if horizon < MIN_HORIZON:
            raise ValueError(f"engineering/tables: horizon {horizon} is less than {MIN_HORIZON}")
        while part_of(team := ("team", str(rng.randint(1000, 9999))), VALIDATION_PERCENT) != split:
            pass
        found = _draw_competition(rng, split)
        if found is None:
            return None
        key, plan = found.key, _draw_plan(rng, found, horizon - 2)
        marks = [f"{team[1]}/{i}.{m + 1}" for i, given in enumerate(plan) for m in range(COSTS[given["kind"]])]
        task = Task(
            domain=self.name,
            id=f"{self.name}-{self.source}-{split}-{horizon}-{seed}",
            split=split,
            prompt="",
            horizon=horizon,
            seed=seed,
            state={
                "team": team[1],
                "key": [key.table, key.target, key.metric, key.edition],
                "plan": plan,
                "percentile": 0,
            },
            evidence=(f"{team[1]}/brief", *marks),
            verifiers=("submission format", "leaderboard percentile", "tree", "assignments", "answer"),
            reference="",
            entity_pairs=(key.pair, team),
            source=self.source,
        )
        return self._demand(replace(task, prompt=_prompt(team[1], found, 0)), found)

    def _demand(self, task: Task, found: Competition) -> Task | None:
        """The task with its reference answer and the percentile that it must reach; None where the reference reaches
        none, or what the lead planted does not show as it should."""
        try:
            environment, answer = solve(self, task, random.Random(0), 0.0, task.horizon)
        except ValueError:  # the table has something that scripts or reports do not read: no competition for this world
            return None
        assert isinstance(environment, TablesEnvironment)
        environment.close()
        if answer is None or not environment.done or len(environment.steps) != task.horizon:
            return None
        reached = percentile(environment)
        demand = next((percent for percent in DEMANDS if reached >= percent), None)
        if demand is None:
            return None
        return replace(
            task,
            prompt=_prompt(task.state["team"], found, demand),
            state={**task.state, "percentile": demand},
            reference=answer.text,
        )

    def recall(self, steps: Sequence[Step]) -> str:
        return recall(steps)

    def start(self, task: Task) -> TablesEnvironment:
        return TablesEnvironment(task, self.tools, self.analyst)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return expert(rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        assert isinstance(environment, TablesEnvironment)
        tree, best = environment.tree, environment.best()
        handed = tree.nodes.get(tree.answer)
        problem = environment.competition.check(handed.submission if handed else None)[0]
        reached = percentile(environment) if not problem else 0
        named = re.search(r"Answer:\s*(n\d+), cv \w+ ([\d.e+-]+?)\.?\s*$", answer.text) if answer else None
        wrongly = [
            node.id
            for node in tree.nodes.values()
            if node.status == "invalid" and node.score and not environment.planted.get(node.id)
        ]
        rubric = {f"assignment {i + 1}": i < environment.at for i in range(len(environment.plan))}
        rubric |= {
            "submission format": not problem,
            "percentile": not problem and reached >= task.state["percentile"],
            "best node handed in": handed is not None and handed is best,
            "nothing sound invalidated": not wrongly,
            "answer": named is not None and handed is not None and named.groups() == (handed.id, handed.score),
        }
        missed = [item for item, met in rubric.items() if not met]
        place = f"percentile {reached} of the leaderboard, {task.state['percentile']} demanded"
        if answer is None:
            reason = f"no answer was given; {place}"
        elif missed:
            reason = f"not met: {', '.join(missed[:4])}; {problem or place}"
        else:
            reason = f"{tree.answer} reaches {place}"
        return Verdict(not missed, sum(rubric.values()) / len(rubric), reason, rubric)


def percentile(environment: TablesEnvironment) -> int:
    """Where what is handed in stands on the leaderboard; 0 for nothing."""
    found = environment.competition
    handed = environment.tree.nodes.get(environment.tree.answer)
    problem, predictions = found.check(handed.submission if handed else None)
    if problem:
        return 0
    return measure(found.key).percentile(found.key.metric, found.grade(predictions))


def _prompt(team: str, found: Competition, demand: int) -> str:
    key = found.key
    order = "lower" if key.metric in LOWER_IS_BETTER else "higher"
    return (
        f"Team {team} has entered the competition '{found.title}': predict {key.target}; scored by {key.metric}, "
        f"{order} is better. The notes hold the brief and, behind it, the lead's first assignment; the next shows "
        f"when one is done. What is handed in must beat {demand}% of the leaderboard on answers that nobody sees. "
        "When there are no more assignments, answer with the node that is handed in and its cross-validated score, as "
        f"in 'Answer: n0, cv {key.metric} 0.5'."
    )


def _draw_competition(rng: random.Random, split: Split) -> Competition | None:
    low, high = FEATURES
    for _ in range(TRIES):
        keys = candidates(rng.choice(tables_of(split)))
        if keys:
            key = rng.choice(keys)
            found = competition(key)
            if low <= len(found.features) <= high and not measure(key).problem:
                return found
    return None


def _draw_plan(rng: random.Random, found: Competition, calls: int) -> list[dict[str, Any]]:
    """Assignments for so many calls, and the one to hand in. A model comes first, or second behind the survey."""
    plan: list[dict[str, Any]] = []
    ablations = len(found.features) - 3
    while calls:
        built = any(given["kind"] == "model" for given in plan)
        weights = {kind: weight for kind, weight in WEIGHTS.items() if COSTS[kind] <= calls}
        for kind in list(weights):
            twice = kind in ONCE and any(given["kind"] == kind for given in plan)
            early = not built and kind != "model" and (kind != "survey" or plan or calls < 5)
            again = kind in ("notes", "review") and plan and plan[-1]["kind"] == kind
            spent = kind == "ablate" and ablations <= sum(given["kind"] == "ablate" for given in plan)
            if twice or early or spent or (again and len(weights) > 1):
                del weights[kind]
        kind = rng.choices(list(weights), list(weights.values()))[0]
        plan.append(_draw_assignment(rng, found, kind))
        calls -= COSTS[kind]
    return [*plan, {"kind": "submit"}]


def _draw_assignment(rng: random.Random, found: Competition, kind: str) -> dict[str, Any]:
    given: dict[str, Any] = {"kind": kind}
    if kind in ("model", "sound", "repair", "repair twice"):
        given["model"] = rng.choice(sorted(CLASSES_OF))
    match kind:
        case "model":
            names = [column.name for column in found.features]
            given["leave"] = [rng.choice(names)] if len(names) > 4 and rng.random() < LEAVE else []
        case "leak":
            given["model"] = rng.choice(LEAKING)
        case "repeat":
            given["seed"] = rng.randint(1, 9)
        case "tune":
            given["values"] = rng.sample(range(3), 2)
        case "repair" | "repair twice":
            words = tuple(column.name for column in found.features if not column.numeric)
            missing = [column.name for column in found.features if column.numeric and column.missing]
            recipe = Recipe(found.key.target, found.key.metric, found.kind, "", (), words, given["model"])
            given["bugs"] = rng.sample(bugs(recipe, missing), 1 if kind == "repair" else 2)
    return given
