"""A chat completion's body, read: the action it asks for, and whatever the server says of tokens.

Servers differ. Some parse calls into ``tool_calls``, some leave them in the text; vLLM gives token ids on request
(``return_token_ids``), others write them into ``logprobs`` (``token_id:7``), most give a count alone. What is missing
or of a wrong type is left empty; only what is no chat completion at all is ``Nonsense``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openhorizon.agent.render import read_action
from openhorizon.domains.base import Action, Answer, Call

ID_PREFIX = "token_id:"  # how a server names a token whose id it was asked for


class Nonsense(ValueError):
    """A reply that is none; the message says what was wrong with it."""


@dataclass(frozen=True)
class Reply:
    """One reply. Counts are the server's, 0 where it gives none; ids and log-probabilities are empty where it gives
    none, and of one length where it gives both."""

    action: Action
    cut: bool = False  # by a token limit
    used: int = 0  # tokens of the whole conversation, this reply included
    written: int = 0  # tokens of this reply
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    text: str | None = None  # all that was written; None where the server had taken a call or thoughts out of it


def read_reply(body: str) -> Reply:
    """Read a body.

    A call whose name or arguments cannot be read becomes a call of the tool ``""``, which every environment refuses in
    words. Of several calls the first is taken.

    Raises:
        Nonsense: this is no chat completion.
    """
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Nonsense(f"not JSON: {body[:60]!r}") from error
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Nonsense("no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Nonsense("no message")
    content, calls = message.get("content"), message.get("tool_calls")
    if content is not None and not isinstance(content, str):
        raise Nonsense(f"content is a {type(content).__name__}")
    if calls is not None and not isinstance(calls, list):
        raise Nonsense(f"tool_calls is a {type(calls).__name__}")
    reasoning = next((message[key] for key in ("reasoning_content", "reasoning") if message.get(key)), None)
    action = _action(content or "", calls, reasoning if isinstance(reasoning, str) else "")
    ids, logprobs = _tokens(choice)
    return Reply(
        action,
        choice.get("finish_reason") == "length",
        _count(value, "total_tokens"),
        len(ids) or _count(value, "completion_tokens"),
        _ids(value.get("prompt_token_ids") or choice.get("prompt_token_ids")),
        ids,
        logprobs,
        None if calls or reasoning else content,
    )


def _action(content: str, calls: list[Any] | None, reasoning: str) -> Action:
    said = read_action(content)
    if reasoning and not said.thought:
        said = _thinking(said, reasoning.strip())
    if not calls:
        return said
    return _read_call(calls[0], said.thought or (said.text if isinstance(said, Answer) else ""))


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


def _tokens(choice: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities of what was written."""
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, dict) else None
    listed = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
    names = [str(entry.get("token")) for entry in listed]
    ids = _ids(choice.get("token_ids"))
    numbered = [name.removeprefix(ID_PREFIX) for name in names if name.startswith(ID_PREFIX)]
    if not ids and len(numbered) == len(names) and all(number.isdecimal() for number in numbered):
        ids = tuple(map(int, numbered))
    logprobs = [entry.get("logprob") for entry in listed]
    numbers = tuple(float(it) for it in logprobs if isinstance(it, int | float))
    return ids, numbers if len(numbers) == len(ids) else ()


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) and all(type(it) is int for it in value) else ()


def _count(value: Mapping[str, Any], key: str) -> int:
    usage = value.get("usage")
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0
