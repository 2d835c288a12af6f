"""Whether an answer is right: by exact match, or by a model that is asked with the benchmark's own prompt.

A judge that refuses, that cannot be reached, or whose reply holds no verdict has not judged: the task is in no rate, is
counted with that reason, and is put before the judge again by the next run.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from openhorizon.agent.endpoint import Asking, Endpoint, line
from openhorizon.agent.reply import Nonsense, read_reply
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.bench.public.files import read_text
from openhorizon.domains.base import Answer, Verdict

KEY_VARIABLE = "OPENHORIZON_JUDGE_KEY"
JUDGED, CORRECT = "judged", "correct"  # of a verdict's rubric
NO_ANSWER = "no answer in <answer></answer>"
NO_VERDICT = "the judge gave no verdict"
PLACES = ("{question}", "{answer}", "{response}")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Judge:
    """``prompt`` has ``PLACES``; ``verdict`` finds the judge's word in its reply, ``accepts`` is the one for right."""

    endpoint: Endpoint
    prompt: str
    verdict: str
    accepts: str
    max_tokens: int = 1024

    def __call__(self, played: Sequence[Trajectory]) -> list[Trajectory]:
        """With verdicts, asked for side by side."""
        asking = Asking(self.endpoint, details=False)
        with ThreadPoolExecutor(self.endpoint.parallel) as pool:
            return list(pool.map(lambda it: judged(it, self._ask(asking, it)), played))

    def _ask(self, asking: Asking, played: Trajectory) -> Verdict:
        from openai import OpenAIError

        answer = given(played)
        if answer is None:
            return unanswered(played)
        values = dict(zip(PLACES, (played.task.prompt, played.task.reference, answer), strict=True))
        text = re.sub("|".join(map(re.escape, PLACES)), lambda found: values[found.group(0)], self.prompt)
        request = {
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
        }
        try:
            said = read_reply(asking.ask(request)).action
        except OpenAIError as error:
            return _verdict(None, f"the judge could not be asked ({line(error)})")
        except Nonsense as error:
            return _verdict(None, f"{NO_VERDICT} ({error})")
        reply = said.text if isinstance(said, Answer) else ""
        words = re.findall(self.verdict, reply, re.IGNORECASE)
        if not words:
            return _verdict(None, f"{NO_VERDICT} ({' '.join(reply.split())[:120]})")
        right = words[-1].casefold() == self.accepts.casefold()
        return _verdict(right, f"the judge says {words[-1]}")


def exact(played: Sequence[Trajectory]) -> list[Trajectory]:
    """The answer is the reference but for case, width of characters, and space."""
    verdicts = []
    for it in played:
        answer = given(it)
        right = answer is not None and plain(answer) == plain(it.task.reference)
        said = "as the reference" if right else "not the reference"
        verdicts.append(unanswered(it) if answer is None else _verdict(right, said))
    return [judged(it, verdict) for it, verdict in zip(played, verdicts, strict=True)]


def unanswered(played: Trajectory) -> Verdict:
    """Wrong, for the reason that the episode ended with."""
    return _verdict(False, played.verdict.reason if played.answer is None else NO_ANSWER)


def given(played: Trajectory) -> str | None:
    """What stands between the last ``<answer></answer>`` of the final answer."""
    found = _ANSWER.findall(played.answer or "")
    return found[-1].strip() if found else None


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def judged(played: Trajectory, verdict: Verdict) -> Trajectory:
    """The episode with this verdict; one that a budget ended stays TRUNCATED."""
    status = Status.SOLVED if verdict.passed else played.status
    return replace(played, verdict=verdict, status=status)


def read_prompt(path: Path) -> str:
    """Raises ``ValueError`` where the file is missing or lacks one of ``PLACES``."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; it is the judge's prompt, with {', '.join(PLACES)} in it")
    text = read_text(path)
    lacking = [place for place in PLACES if place not in text]
    if lacking:
        raise ValueError(f"{path}: lacks {', '.join(lacking)}; without it the judge would judge something else")
    return text


def _verdict(right: bool | None, reason: str) -> Verdict:
    rubric = {JUDGED: right is not None} | ({} if right is None else {CORRECT: right})
    return Verdict(bool(right), float(bool(right)), reason, rubric)
