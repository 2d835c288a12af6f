"""A tiny domain that several tests share: a chain of notes. No torch, so that it starts at once."""

from __future__ import annotations

import random
from dataclasses import replace

from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
    split_of,
)

READ = Tool(
    "read",
    "Read a note.",
    {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"], "additionalProperties": False},
)


class Notes(Domain):
    """A chain of notes, each naming the next; the last one holds the word to answer with."""

    name = "notes"
    system = "Follow the notes."
    tools = (READ,)

    def __init__(self, words: int = 500) -> None:
        self.words = words

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        chain = [f"n{i}" for i in rng.sample(range(10_000), horizon)]
        answer = f"word{rng.randrange(self.words)}"
        pair = (chain[0], answer)
        if split_of(pair) != split:
            return None
        prompt = f"Start at {chain[0]}. Which word is at the end?"
        state = {"chain": chain, "answer": answer}
        return Task(
            "notes", f"notes-{seed}", split, prompt, horizon, seed, state, tuple(chain), ("answer",), answer, (pair,)
        )

    def start(self, task: Task) -> Environment:
        return NotesEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        note = prompt.split()[2].rstrip(".")
        while True:
            if rng.random() < noise:
                yield Call("read", {"note": "nowhere"})
            seen = yield Call("read", {"note": note})
            if seen.text.startswith("word: "):
                yield Answer(seen.text.removeprefix("word: "))
                return
            note = seen.text.removeprefix("next: ")

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        right = answer is not None and answer.text == task.reference
        covered = set(task.evidence) <= environment.consulted()
        return Verdict(right and covered, float(right), "right" if right else "wrong word", {"answer": right})


class NotesEnvironment(Environment):
    def execute(self, call: Call) -> Observation:
        chain, note = self.task.state["chain"], call.arguments["note"]
        if note not in chain:
            return Observation("error: no such note", error=True)
        at = chain.index(note)
        text = f"word: {self.task.state['answer']}" if at + 1 == len(chain) else f"next: {chain[at + 1]}"
        return Observation(text, (note,))


def some_task(horizon: int = 3, **changes: object) -> Task:
    chain = tuple(f"n{i}" for i in range(1, horizon + 1))
    state = {"chain": list(chain), "answer": "word7"}
    task = Task(
        "notes",
        "t",
        "train",
        f"Start at {chain[0]}.",
        horizon,
        1,
        state,
        chain,
        ("answer",),
        "word7",
        (("n1", "word7"),),
    )
    return replace(task, **changes)  # type: ignore[arg-type]
