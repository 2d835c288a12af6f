"""The paper's five acceptance rules (section 2.2.2), each a function that returns "" or the reason of its refusal.

The last one, no shortcut, really tries to get the answer without the work, in four ways, each a function of its own:

* ``leaked_early``: a tool output of the reference episode shows the answer long before the end;
* ``from_prompt``: the prompt alone, that is the empty answer, runs of its words, and the domain's own ``guesses``;
* ``constant_guess``: the most common answers so far;
* ``one_call``: a single look-up with what the prompt says.

A guess counts as right where the domain's verifier says so of an episode without steps: it passes, or its rubric's
"answer" is met. Whether a text shows the answer is asked only where that item exists, so where an answer can be right
on its own. Every attempt is bounded, as each costs a verdict or a call.

Ours: the paper names the rules but not how they are checked. Tasks of horizon 1 are look-ups by intent, kept as the
start of the curriculum: the third and the fifth rule exempt them.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from openhorizon.domains.base import Answer, Call, Domain, Environment, Task, Tool, carry_out, open_environment
from openhorizon.kag.graph import reasoning
from openhorizon.kag.phrases import holds, normal
from openhorizon.kag.solve import Episode, judge

RULES = ("verifiable", "valid", "process-informative", "evidence-covering", "no shortcut")
LATE = 0.5  # share of an episode's steps, the last ones, in which the answer may be seen
SPANS = 16  # runs of a prompt's words that are tried as answers
SPAN_WORDS = 4  # words of such a run, where the answer has no more
LOOK_UPS = 12  # calls that are tried on a task
LOOK_UPS_A_TOOL = 6
COMMON = 5  # constant answers that are tried
FAIR = 1.25  # an answer is common that came this many times as often as answers did on average
TELLING = 3  # letters: a shorter answer stands in many texts by chance, so it is shown where it stands alone
KEPT_ANSWERS = 4096  # different answers that are counted
PROGRAMS = frozenset({"code", "command", "script", "patch"})  # arguments that no phrase of a prompt can be

_QUOTED = re.compile(r'"([^"]{1,80})"')
_NAME = re.compile(r"[A-Z][\w'-]*(?: (?:of |the |and )?[A-Z0-9][\w'-]*)*|\w*\d\w*")
_EDGES = " \t\n.,;:!?()[]\"'"


def verifiable(reference: Episode) -> str:
    """Rule 1: the task has verifiers, and they accept its reference solution."""
    if not reference.task.verifiers:
        return "the task names no verifier"
    if reference.answer is None:
        return f"the reference solution needs more than {len(reference.steps)} tool calls"
    return "" if reference.verdict.passed else f"the reference solution is refused: {reference.verdict.reason}"


def valid(episode: Episode) -> str:
    """Rule 2: this trajectory reaches an answer that the verifier accepts."""
    if episode.answer is None:
        return f"no answer after {len(episode.steps)} tool calls"
    return "" if episode.verdict.passed else f"wrong: {episode.verdict.reason}"


def process_informative(episode: Episode) -> str:
    """Rule 3: at least two distinct decisions (calls not refused, or reasoning steps). Horizon 1 is exempt."""
    if episode.task.horizon < 2:
        return ""
    decisions = {
        json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True)
        for step in episode.steps
        if not step.observation.error
    }
    if episode.answer is not None and not episode.steps:
        decisions |= set(reasoning(episode.answer))
    return "" if len(decisions) >= 2 else f"{len(decisions)} distinct decision(s) for horizon {episode.task.horizon}"


def evidence_covering(episode: Episode, has_tools: bool) -> str:
    """Rule 4: every required piece of evidence was consulted. Without tools the evidence stands in the question, and
    the verdict's rubric says whether each piece was used."""
    if not has_tools:
        failed = sorted(item for item, met in episode.verdict.rubric.items() if not met)
        if not episode.verdict.rubric:
            return "the verdict has no rubric"
        return f"rubric not met: {', '.join(failed)}" if failed else ""
    shown = {item for step in episode.steps for item in step.observation.evidence}
    missing = sorted(set(episode.task.evidence) - shown)
    return f"not consulted: {', '.join(missing)}" if missing else ""


def no_shortcut(domain: Domain, reference: Episode, common: Sequence[str]) -> str:
    """Rule 5: no attempt to do without the work gets the answer. ``common`` are constant answers worth trying.

    Raises:
        EnvironmentDied: the world broke while it was tried.
    """
    task = reference.task
    if task.horizon < 2:
        return ""
    return (
        leaked_early(reference)
        or from_prompt(domain, reference)
        or constant_guess(domain, task, common)
        or one_call(domain, reference)
    )


def leaked_early(reference: Episode) -> str:
    """The answer stands in a tool output before the last steps (``LATE`` of all, at least two): at horizon 2 the first
    output has to name what the second confirms."""
    if not _stands_alone(reference):
        return ""
    early = reference.task.horizon - max(2, round(LATE * reference.task.horizon))
    shown = functools.partial(_shows, answer=normal(reference.task.reference))
    step = next((i for i, it in enumerate(reference.steps[: max(early, 0)], 1) if shown(it.observation.text)), 0)
    return f"the answer stands in observation {step} of {len(reference.steps)}" if step else ""


def from_prompt(domain: Domain, reference: Episode) -> str:
    """The empty answer, the domain's own guesses, what the prompt says."""
    task = reference.task
    if _stands_alone(reference):
        if not normal(task.reference):
            return "the empty answer is right"
        if holds(normal(task.prompt), normal(task.reference)):
            return "the answer stands in the prompt"
    head = "Answer: " if task.reference.startswith("Answer:") else ""
    tried: dict[str, str] = {"": "the empty answer is right"}
    tried |= {guess: f"a guess is right: {guess[:40]}" for guess in domain.guesses(task)}
    tried |= {head + span: f"words of the prompt are right: {span[:40]}" for span in spans(task.prompt, task.reference)}
    return _first_right(domain, task, tried)


def constant_guess(domain: Domain, task: Task, common: Sequence[str]) -> str:
    """Answers that were right of other tasks."""
    return _first_right(domain, task, {answer: f"a common answer is right: {answer[:40]}" for answer in common})


def one_call(domain: Domain, reference: Episode) -> str:
    """A single call, its arguments taken from the prompt, shows the answer. Exempt are horizons under 3, where the
    start may name the end.

    All calls are made in one environment; what shows the answer there is made again alone, in a fresh one.
    """
    task = reference.task
    if task.horizon < 3 or not _stands_alone(reference):
        return ""
    calls = list(islice(look_ups(domain.tools_for(task), task.prompt), LOOK_UPS))
    answer = normal(task.reference)
    if not calls:
        return ""
    with closing(open_environment(domain, task)) as environment:
        found = [call for call in calls if _shows(carry_out(environment, call).text, answer)]
    for call in found:
        with closing(open_environment(domain, task)) as environment:
            if _shows(carry_out(environment, call).text, answer):
                return f"one call shows the answer: {call.name} {json.dumps(dict(call.arguments))[:80]}"
    return ""


def spans(prompt: str, reference: str) -> list[str]:
    """Up to ``SPANS`` runs of the prompt's words: those that share words with the reference answer first, then others
    from all over the prompt."""
    words = prompt.split()
    wanted = set(normal(reference).split())
    near = [i for i, word in enumerate(words) if wanted & set(normal(word).split())]
    sizes = range(1, max(SPAN_WORDS, min(len(wanted), 12)) + 1)
    around = ((start, size) for i in near for size in sizes for start in range(max(i - size + 1, 0), i + 1))
    stride = max(1, len(words) * 2 // SPANS)
    across = ((start, size) for size in (1, 2) for start in range(0, len(words), stride))
    runs = (" ".join(words[a : a + n]).strip(_EDGES) for several in (around, across) for a, n in several)
    return list(islice(dict.fromkeys(run for run in runs if run), SPANS))


def look_ups(tools: Sequence[Tool], prompt: str) -> Iterator[Call]:
    """Calls that somebody could make who has read the prompt alone, the tools taking turns."""
    texts = phrases(prompt)
    of_tools = [list(_calls(tool, texts)) for tool in tools]
    for i in range(LOOK_UPS_A_TOOL):
        yield from (calls[i] for calls in of_tools if i < len(calls))


def phrases(prompt: str) -> list[str]:
    """What a reader would look up: quotations, names and numbers, then the prompt itself."""
    found = [*_QUOTED.findall(prompt[:4000]), *_NAME.findall(prompt[:4000])]
    return list(dict.fromkeys([*sorted(found, key=len, reverse=True)[:16], prompt[:160].strip(_EDGES)]))


def _calls(tool: Tool, texts: Sequence[str]) -> Iterator[Call]:
    """Calls of a tool whose required arguments are filled from ``texts``; none where one cannot be."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    required: Sequence[str] = tool.parameters.get("required", ())
    if PROGRAMS & set(required):
        return
    values = {name: _values(properties.get(name, {}), texts) for name in required}
    made = [{name: found[i % len(found)] for name, found in values.items() if found} for i in range(LOOK_UPS_A_TOOL)]
    seen: list[dict[str, Any]] = []
    for arguments in made:
        if len(arguments) == len(required) and arguments not in seen:
            seen.append(arguments)
            yield Call(tool.name, arguments)


def _values(schema: Mapping[str, Any], texts: Sequence[str]) -> list[Any]:
    """What fits a JSON Schema, of the texts where it asks for text."""
    kind = schema.get("type")
    if "enum" in schema:
        return list(schema["enum"])
    if kind == "string":
        pattern, least, most = schema.get("pattern"), schema.get("minLength", 0), schema.get("maxLength", 10_000)
        return [t for t in texts if least <= len(t) <= most and (pattern is None or re.search(pattern, t))]
    if kind in ("integer", "number"):
        numbers = [int(text) for text in texts if text.isdecimal()]
        low, high = schema.get("minimum", -1e18), schema.get("maximum", 1e18)
        return [n for n in numbers if low <= n <= high] or [schema.get("minimum", 1)]
    if kind == "array":
        return [[item] for item in _values(schema.get("items", {"type": "string"}), texts)]
    if kind == "boolean":
        return [False, True]
    return [{}] if kind == "object" and not schema.get("required") else []


def _first_right(domain: Domain, task: Task, tried: Mapping[str, str]) -> str:
    """The value of the first key that the domain's verifier accepts as an answer given without a step."""
    if not tried:
        return ""
    with closing(open_environment(domain, task)) as environment:
        return next((why for text, why in tried.items() if _is_right(domain, task, environment, text)), "")


def _is_right(domain: Domain, task: Task, environment: Environment, text: str) -> bool:
    verdict = judge(domain, task, environment, Answer(text))
    return verdict.passed or verdict.rubric.get("answer", False)


def _stands_alone(reference: Episode) -> bool:
    """Whether the verifier knows an answer that can be right by itself."""
    return "answer" in reference.verdict.rubric


def _shows(text: str, answer: str) -> bool:
    found = normal(text)
    return holds(found, answer) if len(answer) >= TELLING else bool(answer) and found == answer


class Answers:
    """How often each answer was right so far, of at most ``KEPT_ANSWERS`` answers: the rarest are forgotten."""

    def __init__(self, answers: Iterable[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._common: list[str] = []
        self._added = 0
        for answer in answers:
            self.add(answer)

    def add(self, answer: str) -> None:
        self.counts[answer] += 1
        if len(self.counts) > KEPT_ANSWERS:
            self.counts = Counter(dict(self.counts.most_common(KEPT_ANSWERS // 2)))
        self._added += 1
        if self._added % min(16, self._added) == 0:  # all of the first, then now and then: it costs a look at every one
            average = self.counts.total() / max(len(self.counts), 2)
            ranked = self.counts.most_common(COMMON)
            self._common = [answer for answer, n in ranked if n >= 3 and n > FAIR * average]

    def common(self) -> list[str]:
        """Answers that pay to repeat: the most common ones, where they came clearly more often than the average."""
        return self._common
