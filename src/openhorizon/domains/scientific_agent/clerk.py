"""The expert of the short-text campaign: it reads the step, looks up what the step names, and does it.

Every thought repeats the words that the call then copies, behind the words that decide them: a small model learns the
step by looking up.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator

from openhorizon.domains.base import Answer, Call, Expert, Observation

RUIN = 0.06  # share of strays that spend the budget elsewhere: those episodes fail
_STEP = re.compile(r"step (?P<do>assay|keep) (?P<pick>.+?)(?: as (?P<key>\w+))?$")
_FORK = re.compile(r"if (\w+) assay ([^,]+)")
_BATCH_PICK = re.compile(r"(?P<first>high|low|like|with) (?P<second>\w+) of (?P<batch>b\d\d)")

Saying = Generator[Call, Observation, str]


def expert(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Works off the plan. A call goes astray with chance ``noise``, again and again with the same chance: it looks at a
    batch first, asks for a note that is empty or a batch that is not there; few strays assay the wrong molecule."""
    assert prompt.startswith("Lab "), f"not a scientific_agent prompt: {prompt}"
    hand = _Hand(rng, noise)
    text = yield from hand.do(Call("open_plan", {}))
    while "done. hit " not in text:
        match, seen = _STEP.search(text), re.search(r"^\w+ is (\w+)\. step if", text)
        thought = ""
        if seen:
            pick, do, key = dict(_FORK.findall(text))[seen[1]], "assay", None
            thought = f"is {seen[1]}. if {seen[1]} assay {pick}"
        else:
            assert match, f"no step: {text}"
            do, pick, key = match["do"], match["pick"], match["key"]
            thought = f"{do} {pick}" + (f" as {key}" if key else "")
        name, thought, others = yield from hand.find(do, pick, thought)
        if do == "keep":
            thought = f"{thought} as {key}" if " " in pick else thought
            text = yield from hand.do(Call("remember", {"molecule": name, "key": key}, thought))
            continue
        if others and rng.random() < noise * RUIN:
            yield Call("assay", {"molecule": rng.choice(others)}, thought)
        text = yield from hand.do(Call("assay", {"molecule": name}, thought))
        if text == f"error: {name} not pure":
            yield from hand.do(Call("purify", {"molecule": name}, f"{name} not pure"))
            text = yield from hand.do(Call("assay", {"molecule": name}, f"pure now: {name}. assay {name}"))
        if text.startswith("error: "):  # the budget is gone: nothing can be found any more
            yield Answer("Answer: none", "no assays left")
            return
    hit = text.split("done. hit ")[1]
    name, thought, _ = yield from hand.find("hit", hit, f"hit {hit}")
    yield Answer(f"Answer: {name}", thought)


class _Hand:
    """Makes the calls; remembers which notes and batches there are, for its strays."""

    def __init__(self, rng: random.Random, noise: float) -> None:
        self.rng, self.noise = rng, noise
        self.batch = ""

    def do(self, call: Call) -> Saying:
        while self.rng.random() < self.noise:
            yield self._slip(call)
        return (yield call).text

    def find(self, do: str, pick: str, thought: str) -> Generator[Call, Observation, tuple[str, str, list[str]]]:
        """The molecule that ``pick`` means, the thought that names it, and what else was in sight."""
        if pick.startswith("note "):
            text = yield from self.do(Call("recall", {"key": pick.split()[1]}, thought))
            name = text.rsplit(" ", 1)[1]
            return name, f"{do} {pick}: {name}", []
        match = _BATCH_PICK.fullmatch(pick)
        if match is None:
            return pick, thought, []
        first, second, self.batch = match.groups()
        tool, values = {
            "like": ("similar", {"to": second, "batch": self.batch}),
            "with": ("match", {"group": second, "batch": self.batch}),
        }.get(first, ("rank", {"order": first, "by": second, "batch": self.batch}))
        text = yield from self.do(Call(tool, values, thought))
        names = [word.split()[0] for word in text.split(": ", 1)[1].split(", ")]
        return names[0], f"{do} {pick}: {names[0]}", names[1:]

    def _slip(self, call: Call) -> Call:
        """A needless look, a batch that is not there, or arguments that the tool does not take."""
        roll = self.rng.random()
        if roll < 0.3 and self.batch:
            return Call("list_batch", {"batch": self.batch}, f"list {self.batch}")
        if roll < 0.55:
            return Call("open_plan", {}, "open plan")
        if roll < 0.8 and "batch" in call.arguments:
            return Call(call.name, {**call.arguments, "batch": f"b0{self.rng.randint(0, 9)}"}, call.thought)
        short = {key: str(value)[:2] for key, value in call.arguments.items()}
        return Call(call.name, short, call.thought) if short else Call("list_batch", {"batch": "b00"}, "list b00")
