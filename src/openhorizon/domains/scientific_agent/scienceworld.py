"""Scientific agentic work in ScienceWorld (section 3): a school's science lab as a text world.

ScienceWorld (Wang et al. 2022, Apache-2.0, package ``scienceworld`` 1.2.3) simulates ten rooms with instruments,
substances, plants and animals; 30 kinds of tasks ask to boil, mix, grow, measure or classify, and its own score says
how far one came. One tool, ``act``, takes a command in English:

    act {"command": "open door to kitchen"}      The door is now open.
    act {"command": "go to kitchen"}             You move to the kitchen.
    act {"command": "pick up thermometer"}       You move the thermometer to the inventory.
    act {"command": "focus on thermometer"}      You focus on the thermometer.

A task is (kind, variation). Its solution is the simulator's own gold path, which knows where things lie: it is a
``demonstration`` and no expert, there is no scripted expert here, and the horizon is its number of commands up to the
one that completes the task (behind it the path waits). Paths are worked out once, by scripts/index-scienceworld, and
lie in ``gold_paths.json``, each replayed to the full score; of dev variations it has the lengths alone.

The split is the package's own: our training tasks are its train variations, our held-out tasks its dev variations; its
test variations are left to a benchmark. A pair is (kind, variation), so none is in both. Unlike elsewhere horizons are
what the gold paths have: ``offers`` takes the asked ones as a range.

Verified by the world's own score: 1 is passed, anything less is the score of a failure. The rubric has the world's
subgoals, which are guides and not conditions: a passed task may have left one out. No answer is asked for but that the
work is done.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from openhorizon.domains.base import (
    Action,
    Answer,
    Call,
    Environment,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
)
from openhorizon.domains.published import Published
from openhorizon.domains.scientific_agent.simulator import Session, simulator

SPLITS: Mapping[Split, str] = {"train": "train", "heldout": "dev"}
ENOUGH_TRAIN, ENOUGH_HELDOUT = 2, 1  # variations of one length
PATHS = Path(__file__).with_name("gold_paths.json")
DONE = "Answer: done"
COMPLETED = "The task is completed."
LOST = "The task has failed and cannot be completed any more."
UNKNOWN = "No known action matches that input."

_PLACE = re.compile(r"(?:This room is called the|You move to the|This outside location is called the) ([a-z ]+)")
_GOAL = re.compile(r"^\d+\s+(true|false)\s+\w+\s+(.+)$", re.MULTILINE)

TEST_TEXTS = 3  # test variations of a kind of task that stand for the others in decontamination


class ScienceWorldDomain(Published):
    name = "scientific_agent"
    source = "scienceworld"
    system = (
        "You are in a house with a workshop, a foundry, a greenhouse and a garden, and you carry out a science task "
        "with the tool act. Commands: look around, look at OBJECT, look in OBJECT, inventory, task, open OBJECT, close "
        "OBJECT, go to LOCATION, pick up OBJECT, put down OBJECT, move OBJECT to OBJECT, pour OBJECT into OBJECT, "
        "dunk OBJECT into OBJECT, mix OBJECT, activate OBJECT, deactivate OBJECT, use OBJECT on OBJECT, "
        "connect OBJECT to OBJECT, disconnect OBJECT, read OBJECT, eat OBJECT, flush OBJECT, wait, wait1, and "
        "focus on OBJECT, which commits you to what the task is about: a wrong focus fails the task. Where a command "
        "is ambiguous you are asked to choose by number. When the task is completed, end with Answer: done."
    )
    tools = (
        Tool(
            "act",
            "Do one thing in the world, said in English.",
            {
                "type": "object",
                "properties": {"command": {"type": "string", "minLength": 1, "maxLength": 200}},
                "required": ["command"],
                "additionalProperties": False,
            },
        ),
    )

    def by_horizon(self, split: Split) -> Mapping[int, Sequence[tuple[str, int]]]:
        return by_length(split)

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        """The lengths of gold paths within the range of ``horizons``. A length that few variations have is left out:
        horizons take turns, and the tasks of one would run out."""
        train, heldout = by_length("train"), by_length("heldout")
        lengths = [n for n in train if len(train[n]) >= ENOUGH_TRAIN and len(heldout.get(n, ())) >= ENOUGH_HELDOUT]
        return tuple(n for n in lengths if min(horizons) <= n <= max(horizons)) if horizons else ()

    def heldout_texts(self) -> tuple[str, ...]:
        """The task's text in some test variations of each kind, asked of the simulator: a tenth of a second each."""
        with closing(simulator().open("boil", 0)) as session:
            kinds = session.kinds()
        found = []
        for kind in kinds:
            with closing(simulator().open(kind, 0)) as session:
                test = session.variations("test")
            for variation in test[:: max(len(test) // TEST_TEXTS, 1)][:TEST_TEXTS]:
                with closing(simulator().open(kind, variation)) as session:
                    found.append(session.question())
        return tuple(found)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """One of the variations of ``split`` whose gold path has ``horizon`` commands.

        Raises:
            ValueError: Java or a package is missing.
        """
        found = by_length(split).get(horizon)
        if not found:
            return None
        kind, variation = rng.choice(found)
        session = simulator().open(kind, variation)
        question = session.question()
        session.close()
        gold = gold_paths()["train"][kind][str(variation)] if split == "train" else []
        return Task(
            domain=self.name,
            id=f"scienceworld-{split}-{kind}-{variation}-{seed}",
            split=split,
            prompt=f"{kind.replace('-', ' ')}, variation {variation}. {question}",
            horizon=horizon,
            seed=seed,
            state={"kind": kind, "variation": variation, "gold": gold},
            evidence=(),
            verifiers=("score",),
            reference=DONE,
            entity_pairs=((kind, str(variation)),),
            source=self.source,
        )

    def start(self, task: Task) -> House:
        return House(task, self.tools)

    def demonstration(self, task: Task) -> tuple[Action, ...] | None:
        """The gold path; None for a held-out task, whose path is not kept."""
        if task.split != "train":
            return None
        return (*(Call("act", {"command": command}) for command in task.state["gold"]), Answer(DONE))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: the world's own score is full, and the policy said that it is done."""
        assert isinstance(environment, House)
        score = environment.score
        if answer is None:
            reason = f"no answer was given; the world's score is {100 * score:.0f} of 100"
        elif score < 1:
            missing = next((goal for goal, met in environment.goals.items() if not met), "")
            reason = f"the world's score is {100 * score:.0f} of 100; not reached: {missing or 'the first goal'}"
        else:
            reason = "the world's score is 100 of 100"
        return Verdict(score == 1 and answer is not None, score, reason, environment.goals)


class House(Environment):
    """One simulation. It is opened by the first command: a policy's many episodes start at once but run in turn.

    Where the simulator dies, ``execute`` raises: the episode cannot go on, and it is not the policy's fault.
    """

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.score = 0.0
        self.goals: dict[str, bool] = {}
        self.over = False
        self._session: Session | None = None

    def execute(self, call: Call) -> Observation:
        if self.over:
            return Observation("error: the task is over, give your answer", error=True)
        if self._session is None:
            self._session = simulator().open(self.task.state["kind"], self.task.state["variation"])
        session = self._session
        text = session.step(call.arguments["command"])
        self.score, self.over, self.goals = session.score(), session.over(), read_goals(session.goals())
        seen = f"{self.task.state['kind']}/{self.task.state['variation']}"
        places = tuple(f"{seen}/{place.strip()}" for place in _PLACE.findall(text))
        if self.over:
            text = f"{text}\n\n{COMPLETED if self.score == 1 else LOST}"
        return Observation(text, places, error=text.startswith(UNKNOWN))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


def read_goals(text: str) -> dict[str, bool]:
    """The world's subgoals by number and name, and whether each was met."""
    return {f"{i}. {name.strip()}": met == "true" for i, (met, name) in enumerate(_GOAL.findall(text), start=1)}


@functools.cache
def gold_paths() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """``train`` or ``dev`` → kind → variation → commands, or their number for dev.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        value: dict[str, dict[str, dict[str, Any]]] = json.loads(PATHS.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{PATHS}: missing or damaged ({error}); run scripts/index-scienceworld") from error
    return {split: value[split] for split in SPLITS.values()}


@functools.cache
def by_length(split: Split) -> Mapping[int, tuple[tuple[str, int], ...]]:
    """Length of the gold path → the (kind, variation) of ``split`` that have it."""
    found: dict[int, list[tuple[str, int]]] = {}
    for kind, variations in gold_paths()[SPLITS[split]].items():
        for variation, path in variations.items():
            length = path if isinstance(path, int) else len(path)
            found.setdefault(length, []).append((kind, int(variation)))
    return {length: tuple(pairs) for length, pairs in sorted(found.items())}
