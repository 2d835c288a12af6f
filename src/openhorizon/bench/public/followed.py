"""What IFBench and IFEval share: a prompt with verifiable instructions, one answer, four rates.

*Prompt level* is the share of prompts all of whose instructions were followed, *instruction level* that of
instructions. *Strict* judges the answer as it is; *loose* also without its first line, its last one or both, and
without asterisks, and takes the best of these. The rules and what strict and loose mean come from the packages.

An answer that the token limit cut off is judged as far as it came; what stands inside ``<think></think>`` is no part
of it.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openhorizon.agent.render import read_action
from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Metrics, Value, shuffled
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Answer, Domain, Environment, Expert, NoActions, Split, Task, Verdict

STRICT, LOOSE = "strict", "loose"
PRIMARY = "prompt_loose"
BUDGET = BudgetConfig(slack=0.0, extra=0, turn_tokens=2048, context_tokens=16_384)
PROTOCOL = "one turn, no tools; system prompt of one sentence; at most 2,048 tokens"
NLTK_DATA = ("llama_index.core", "_static/nltk_cache")  # punkt_tab and stopwords, in a package that is not imported
TAGGER = "taggers/averaged_perceptron_tagger_eng"
KEPT = 1024  # answers whose judgement is kept, of a few kB each
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "key": (str, int),
    "prompt": str,
    "instruction_id_list": list,
    "kwargs": list,
}
Judge = Callable[[Mapping[str, Any], str], tuple[list[bool], list[bool]]]  # row, answer → followed strictly, loosely


class Following(Domain):
    """Prompts of one benchmark; ``rows`` are its own, by task."""

    name = "instruction"
    system = "You are a helpful assistant."
    tools = ()
    scripted = False

    def __init__(self, source: str, rows: Callable[[], Mapping[str, Mapping[str, Any]]], judge: Judge) -> None:
        self.source, self.rows, self.judge = source, rows, judge
        self._judged = functools.lru_cache(maxsize=KEPT)(self._judge)  # verify asks first, measure asks again

    def tasks(self) -> list[Task]:
        return shuffled(self._task(key, row) for key, row in self.rows().items())

    def start(self, task: Task) -> Environment:
        return NoActions(task, ())

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        strict, loose = self.judged(task, answer.text if answer else "")
        rules = self.rows()[task.id]["instruction_id_list"]
        named = zip((STRICT, LOOSE), (strict, loose), strict=True)
        rubric = {f"{how} {i + 1} {rules[i]}": met for how, mets in named for i, met in enumerate(mets)}
        missed = [rules[i] for i, met in enumerate(strict) if not met]
        reason = f"not followed: {', '.join(missed)}" if missed else "all instructions were followed"
        return Verdict(all(strict), sum(strict) / len(strict), reason, rubric)

    def measure(self, trajectory: Trajectory) -> Metrics:
        strict, loose = self.judged(trajectory.task, final_text(trajectory))
        return {
            f"{level}_{how}": value
            for how, met in ((STRICT, strict), (LOOSE, loose))
            for level, value in (
                ("prompt", Value(float(all(met)))),
                ("instruction", Value(sum(met) / len(met), len(met))),
            )
        }

    def judged(self, task: Task, text: str) -> tuple[list[bool], list[bool]]:
        """Strictly and loosely followed, an item an instruction. Arguments that a rule would draw are drawn from a seed
        of the task's, and the process's own random state is left as it was."""
        return self._judged(task.id, text)

    def _judge(self, key: str, text: str) -> tuple[list[bool], list[bool]]:
        with seeded(key):
            return self.judge(self.rows()[key], text)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        return None

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        raise ValueError(f"{self.world} has no scripted expert")

    def _task(self, key: str, row: Mapping[str, Any]) -> Task:
        rules = tuple(row["instruction_id_list"])
        return Task(
            self.name, key, "heldout", row["prompt"], len(rules), 0, {}, (), tuple(dict.fromkeys(rules)), "", (),
            source=self.source,
        )  # fmt: skip


def final_text(trajectory: Trajectory) -> str:
    """The answer, or what there is of one that was cut off."""
    if trajectory.answer is not None:
        return trajectory.answer
    last = next((turn for turn in reversed(trajectory.turns) if turn.role == "assistant"), None)
    action = read_action(last.text) if last else None
    return action.text if isinstance(action, Answer) else ""


@functools.cache
def nltk_with_data() -> Any:
    """nltk, which finds its tokenizer's and stop words' data where a package holds them.

    Raises:
        ValueError: no such package.
    """
    import nltk

    package, folder = NLTK_DATA
    top = importlib.util.find_spec(package.partition(".")[0])
    places = (
        [Path(place, *package.split(".")[1:], folder) for place in (top.submodule_search_locations or ())]
        if top
        else []
    )
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ValueError(
            "nltk's data: the package llama-index-core is not installed; pip install --no-deps llama-index-core"
        )
    nltk.data.path.append(str(found))
    return nltk


def has_tagger() -> bool:
    """Whether nltk's tagger of parts of speech is there: no package has it, a user's own nltk data may."""
    try:
        nltk_with_data().data.find(TAGGER)
    except LookupError:
        return False
    return True


@contextmanager
def seeded(key: str) -> Iterator[None]:
    state = random.getstate()
    random.seed(key)
    try:
        yield
    finally:
        random.setstate(state)


def texts(task: Task) -> Sequence[str]:
    return (task.prompt,)
