"""Episodes played by any OpenAI-compatible endpoint: chat completions with tools, such as a strong model behind vLLM.

Requests of many episodes run side by side in threads; environments are stepped by the calling thread alone, as a world
need not be thread-safe. What comes back is text only: an endpoint says neither token ids nor log-probabilities that
training could use.

Nonsense is data. A call that cannot be parsed, or of no known tool, becomes an observation, as for every policy; a
reply that is no reply (no choices, wrong types) ends the episode as FAILED with the reason. What times out, breaks or
answers 429 or 5xx is asked again by the client, ``retries`` times, then the episode is ABORTED; an endpoint that aborts
``GIVE_UP`` episodes in a row is not there, and the run stops. Of several calls in one reply the first is taken.

The server counts the tokens (``usage``); where the next turn might pass ``budget.DOMAIN.context_tokens`` and the world
keeps a memory, the conversation goes on in a new context, as a local policy's does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openhorizon.agent.compaction import with_memory
from openhorizon.agent.render import read_action, write_action
from openhorizon.agent.rollout import allowed_calls
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Domain, EnvironmentDied, Task, Verdict, carry_out

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENHORIZON_API_KEY"
FAILED = "endpoint failed"
GIVE_UP = 16
CHARS_PER_TOKEN = 3  # of an observation that the server has not counted yet; few, to be on the safe side
MAX_SEED = 2**31 - 1  # what servers take


class _Nonsense(ValueError):
    """A reply that is none; the message says what was wrong with it."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. The key is read from the environment variable ``key_variable``; a server of one's own
    mostly asks for none."""

    url: str
    model: str
    key_variable: str = KEY_VARIABLE
    timeout_s: float = 120.0
    retries: int = 2
    parallel: int = 16

    @property
    def name(self) -> str:
        """As ``agent.player.Player`` has it."""
        return f"{self.url}#{self.model}"

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
    ) -> list[Trajectory]:
        """One trajectory a task, in the order of ``tasks``.

        Raises:
            ValueError: the endpoint refuses the key or the model, or is not there at all.
        """
        from openai import APIStatusError, OpenAIError

        client = self._client()
        talks = [
            _Talk(domains[task.world], task, own, self.model, budgets[task.domain])
            for task, own in zip(tasks, seeds, strict=True)
        ]
        aborted = 0
        with ThreadPoolExecutor(self.parallel) as pool:
            live: dict[Future[Any], _Talk] = {}
            for talk in talks:
                if talk.status is None:
                    live[pool.submit(self._ask, client, talk.request(temperature))] = talk
            try:
                while live:
                    ready, _ = wait(live, return_when=FIRST_COMPLETED)
                    for future in sorted(ready, key=lambda it: live[it].seed):
                        talk = live.pop(future)
                        try:
                            talk.take(future.result())
                            aborted = 0
                        except APIStatusError as error:
                            if error.status_code in (401, 403, 404):
                                raise ValueError(f"endpoint {self.url}, model {self.model}: {_line(error)}") from error
                            aborted += talk.refused(error.status_code, _line(error))
                        except OpenAIError as error:  # a timeout, a connection that broke
                            talk.end(Status.ABORTED, f"{FAILED}: {type(error).__name__}: {_line(error)}")
                            aborted += 1
                        if aborted >= GIVE_UP:
                            raise ValueError(f"endpoint {self.url}: {aborted} requests in a row {talk.verdict.reason}")
                        if talk.status is None:
                            live[pool.submit(self._ask, client, talk.request(temperature))] = talk
            finally:
                for future, talk in live.items():
                    future.cancel()
                    talk.close()
        return [talk.trajectory() for talk in talks]

    def _client(self) -> OpenAI:
        try:
            from openai import OpenAI
        except ModuleNotFoundError as error:
            raise ValueError("an endpoint as solver needs the package openai: pip install openai") from error
        key = os.environ.get(self.key_variable) or "none"
        return OpenAI(base_url=self.url, api_key=key, timeout=self.timeout_s, max_retries=self.retries)

    def _ask(self, client: OpenAI, request: Mapping[str, Any]) -> str:
        """The body of the reply as it came: the client's own types take whatever a server writes for granted."""
        options: Any = {"model": self.model, **request}
        return str(client.chat.completions.with_raw_response.create(**options).http_response.text)


@dataclass
class _Talk:
    """One episode: the messages so far, and the environment behind them."""

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
            "seed": self.seed % MAX_SEED,
        }
        return asked | ({"tools": [tool.schema() for tool in self.tools]} if self.tools else {})

    def take(self, body: str) -> None:
        """Go on by a reply."""
        try:
            action, cut, used = read_reply(body)
        except _Nonsense as error:
            self.end(Status.FAILED, f"nonsense from the endpoint: {error}")
            return
        self.turns.append(Turn("assistant", write_action(action)))
        if cut:
            self.end(Status.TRUNCATED)
        elif isinstance(action, Answer):
            self.answer = action
            self.end(None)
        elif len(self.environment.steps) >= self.max_calls:
            self.end(Status.TRUNCATED)
        else:
            self._call(action, used)

    def refused(self, code: int, reason: str) -> bool:
        """A reply that is an error. Whether it says that the endpoint is not there: 4xx is about this request."""
        there = 400 <= code < 500 and code not in (408, 409, 429)
        if there:
            self.end(Status.TRUNCATED, f"the endpoint refused the request: {reason}")
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

    def _call(self, call: Call, used: int) -> None:
        try:
            seen = carry_out(self.environment, call)
        except EnvironmentDied as error:
            self.end(Status.ABORTED, f"environment: {error}")
            return
        self.turns.append(Turn("tool", seen.text, evidence=seen.evidence, error=seen.error))
        name = f"call_{len(self.environment.steps)}"
        written = {"name": call.name or "unknown", "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
        self.messages += [
            {
                "role": "assistant",
                "content": call.thought or None,
                "tool_calls": [{"id": name, "type": "function", "function": written}],
            },
            {"role": "tool", "tool_call_id": name, "content": seen.text},
        ]
        if used + len(seen.text) // CHARS_PER_TOKEN + self.budget.turn_tokens >= self.budget.context_tokens:
            self._renew()

    def _renew(self) -> None:
        """A new context in place of a full one, where the world says what to keep (agent/compaction.py)."""
        memory = self.domain.recall(self.environment.steps)
        if memory is None:
            return
        prompt = with_memory(self.task.prompt, memory)
        self.turns.append(Turn("prompt", prompt))
        self.messages[1:] = [{"role": "user", "content": prompt}]


def read_reply(body: str) -> tuple[Action, bool, int]:
    """The action that a chat completion's body asks for, whether a token limit cut it off, and the tokens of the whole
    conversation by the server's count (0 where it gives none).

    A call whose name or arguments cannot be read becomes a call of the tool ``""``, which every environment refuses in
    words. A server that leaves calls in the text is understood, too.

    Raises:
        _Nonsense: this is no chat completion.
    """
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _Nonsense(f"not JSON: {body[:60]!r}") from error
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _Nonsense("no choices")
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise _Nonsense("no message")
    content, calls = message.get("content"), message.get("tool_calls")
    if content is not None and not isinstance(content, str):
        raise _Nonsense(f"content is a {type(content).__name__}")
    if calls is not None and not isinstance(calls, list):
        raise _Nonsense(f"tool_calls is a {type(calls).__name__}")
    reasoning = message.get("reasoning_content")
    said = read_action(content or "")
    if isinstance(reasoning, str) and reasoning and not said.thought:
        said = _thinking(said, reasoning.strip())
    cut = choices[0].get("finish_reason") == "length"
    usage = value.get("usage")
    used = usage.get("total_tokens") if isinstance(usage, dict) else None
    used = used if isinstance(used, int) else 0
    if not calls:
        return said, cut, used
    thought = said.thought or (said.text if isinstance(said, Answer) else "")
    return _read_call(calls[0], thought), cut, used


def _read_call(call: Any, thought: str) -> Call:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (json.JSONDecodeError, RecursionError):
            arguments = None
    if isinstance(name, str) and isinstance(arguments, dict):
        return Call(name, arguments, thought)
    return Call("", {}, thought)


def _thinking(action: Action, thought: str) -> Action:
    return Answer(action.text, thought) if isinstance(action, Answer) else Call(action.name, action.arguments, thought)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
