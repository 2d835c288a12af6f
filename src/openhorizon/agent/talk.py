"""One episode with a model that is served: the messages so far, and the environment behind them.

History goes back as the server wrote it: a call that the server had parsed as ``tool_calls``, a call that it left in
the text as that text, so that a model reads its own turns again.

Token ids are kept only where they are exact. The ids of a turn's prompt must begin with those of all that came before
it; where they do not (a chat template that drops old thoughts, a turn that is tokenized otherwise when it is read
again) nothing of that context is known for sure, and the turns keep text and counts alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from openhorizon.agent.compaction import with_memory
from openhorizon.agent.render import write_action
from openhorizon.agent.reply import Nonsense, Reply, read_reply
from openhorizon.agent.rollout import allowed_calls
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Answer, Call, Domain, EnvironmentDied, Task, Verdict, carry_out
from openhorizon.seeds import derive

FAILED = "endpoint failed"
NONSENSE, REFUSED = "nonsense from the endpoint", "the endpoint refused the request"
CHARS_PER_TOKEN = 3  # of an observation that the server has not counted yet; few, to be on the safe side
MAX_SEED = 2**31 - 1  # what servers take


@dataclass
class Talk:
    """An episode under way; ``status`` is None until it is over."""

    domain: Domain
    task: Task
    seed: int
    policy: str
    budget: BudgetConfig
    status: Status | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict(False, 0.0, "not finished"))
    answer: Answer | None = None

    def __post_init__(self) -> None:
        self.tools = self.domain.tools_for(self.task)
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": self.domain.system},
            {"role": "user", "content": self.task.prompt},
        ]
        self.turns = [Turn("prompt", self.task.prompt)]
        self.ids: tuple[int, ...] | None = ()  # of this context; None: not known for sure
        self.max_calls = allowed_calls(self.budget, self.task.horizon) if self.tools else 0
        try:
            self.environment = self.domain.start(self.task)
        except Exception as error:  # a world's own failure: the boundary of agent/rollout.py
            self.status = Status.ABORTED
            self.verdict = Verdict(False, 0.0, f"environment: start: {type(error).__name__}: {error}")

    def request(self, temperature: float) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "messages": self.messages,
            "temperature": temperature,
            "max_tokens": self.budget.turn_tokens,
            "seed": derive(self.seed, self.task.id, len(self.turns)) % MAX_SEED,
        }
        return asked | ({"tools": [tool.schema() for tool in self.tools]} if self.tools else {})

    def take(self, body: str) -> None:
        """Go on by a reply."""
        try:
            reply = read_reply(body)
        except Nonsense as error:
            self.end(Status.FAILED, f"{NONSENSE}: {error}")
            return
        self._keep(reply)
        if reply.cut or reply.used > self.budget.context_tokens:
            self.end(Status.TRUNCATED)
        elif isinstance(reply.action, Answer):
            self.answer = reply.action
            self.end(None)
        elif len(self.environment.steps) >= self.max_calls:
            self.end(Status.TRUNCATED)
        else:
            self._call(reply.action, reply)

    def refused(self, code: int, reason: str) -> bool:
        """A reply that is an error. Whether it says that the endpoint is not there: 4xx is about this request."""
        there = 400 <= code < 500 and code not in (408, 409, 429)
        if there:
            self.end(Status.TRUNCATED, f"{REFUSED}: {reason}")
        else:
            self.end(Status.ABORTED, f"{FAILED}: {code}: {reason}")
        return not there

    def end(self, status: Status | None, reason: str = "") -> None:
        """Judge and close. An aborted episode is not judged."""
        self.status = status or Status.FAILED
        try:
            if status is not Status.ABORTED:
                self.verdict = self.domain.verify(self.task, self.environment, self.answer)
                if status is None and self.verdict.passed:
                    self.status = Status.SOLVED
            if reason:
                self.verdict = Verdict(False, self.verdict.score, reason, self.verdict.rubric)
        except Exception as error:  # the same boundary
            self.status = Status.ABORTED
            self.verdict = Verdict(False, 0.0, f"environment: verify: {type(error).__name__}: {error}")
        finally:
            self.close()

    def close(self) -> None:
        self.environment.close()

    def trajectory(self) -> Trajectory:
        assert self.status is not None, "an episode was left unfinished"
        answer = self.answer.text if self.answer else None
        return Trajectory(self.task, tuple(self.turns), answer, self.status, self.verdict, self.policy, self.seed)

    def _keep(self, reply: Reply) -> None:
        """The reply's turn, with ids where all of this context's are known."""
        text = write_action(reply.action) if reply.text is None else reply.text
        before = self.ids
        known = before is not None and bool(reply.ids) and reply.prompt_ids[: len(before)] == before
        if before is not None and known and len(reply.prompt_ids) > len(before):
            self.turns[-1] = replace(self.turns[-1], ids=reply.prompt_ids[len(before) :])
            self.turns.append(Turn("assistant", text, reply.ids, reply.logprobs))
            self.ids = reply.prompt_ids + reply.ids
            return
        start = max(i for i, turn in enumerate(self.turns) if turn.role == "prompt")
        self.turns[start:] = [_text_only(turn) for turn in self.turns[start:]]
        self.turns.append(Turn("assistant", text, written=reply.written))
        self.ids = None

    def _call(self, call: Call, reply: Reply) -> None:
        try:
            seen = carry_out(self.environment, call)
        except EnvironmentDied as error:
            self.end(Status.ABORTED, f"environment: {error}")
            return
        self.turns.append(Turn("tool", seen.text, evidence=seen.evidence, error=seen.error))
        name = f"call_{len(self.environment.steps)}"
        written = {"name": call.name or "unknown", "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
        said: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.text is None:
            said["content"] = call.thought or None
            said["tool_calls"] = [{"id": name, "type": "function", "function": written}]
        self.messages += [said, {"role": "tool", "tool_call_id": name, "content": seen.text}]
        if reply.used + len(seen.text) // CHARS_PER_TOKEN + self.budget.turn_tokens >= self.budget.context_tokens:
            self._renew()

    def _renew(self) -> None:
        """A new context in place of a full one, where the world says what to keep (agent/compaction.py)."""
        memory = self.domain.recall(self.environment.steps)
        if memory is None:
            return
        prompt = with_memory(self.task.prompt, memory)
        self.turns.append(Turn("prompt", prompt))
        self.messages[1:] = [{"role": "user", "content": prompt}]
        self.ids = ()


def _text_only(turn: Turn) -> Turn:
    count = len(turn.ids) or turn.written
    return replace(turn, ids=(), logprobs=(), written=count if turn.role == "assistant" else 0)
