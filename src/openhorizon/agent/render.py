"""Messages ↔ text ↔ token ids: the only place that knows the chat format.

An assistant turn is ``<think>…</think>`` (optional), then either one
``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` or the answer's text. Generated ids are kept, never
re-tokenised: what stands between two generated turns is the difference of two renderings of the tokenizer's own
chat template, so that any Hugging Face chat model can take a seat.
"""

from __future__ import annotations

import json
import re

from openhorizon.domains.base import Action, Answer, Call

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


def write_action(action: Action) -> str:
    """The assistant turn that ``read_action`` reads back as ``action``."""
    thought = f"<think>{action.thought}</think>" if action.thought else ""
    if isinstance(action, Answer):
        return thought + action.text
    body = json.dumps({"name": action.name, "arguments": dict(action.arguments)}, ensure_ascii=False)
    return f"{thought}<tool_call>{body}</tool_call>"


def read_action(text: str) -> Action:
    """Parse a generated turn. A malformed call becomes a call of the tool ``""``, which the environment refuses in
    words: what a policy writes is data, never a crash."""
    thinking = _THINK.search(text)
    thought = thinking.group(1).strip() if thinking else ""
    rest = _THINK.sub("", text).strip()
    if "<tool_call>" not in rest:
        return Answer(rest, thought)
    match = _CALL.search(rest)
    try:
        body = json.loads(match.group(1)) if match else None
    except (json.JSONDecodeError, RecursionError):
        body = None
    if isinstance(body, dict) and isinstance(body.get("name"), str) and isinstance(body.get("arguments"), dict):
        return Call(body["name"], body["arguments"], thought)
    return Call("", {}, thought)
