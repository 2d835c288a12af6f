"""Messages ↔ text ↔ token ids: the only place that knows the chat format.

An assistant turn is ``<think>…</think>`` (optional), then either one
``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` or the answer's text. Generated ids are kept, never
re-tokenised: what stands between two generated turns is the difference of two renderings of the tokenizer's own
chat template, so that any Hugging Face chat model can take a seat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from openhorizon.agent.trajectory import Trajectory, Turn
from openhorizon.domains.base import Action, Answer, Call, Domain, Tool

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


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    eos_token: str

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class Renderer:
    """Text → ids by a tokenizer's own chat template; ids → text of generated turns."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self.end_id: int = tokenizer.eos_token_id
        self._tool_head, self._tool_tail = self._between_turns()

    def prompt(self, system: str, tools: Sequence[Tool], prompt: str) -> list[int]:
        """System and user message, up to where the assistant's first turn begins. ``tools`` go through the template
        where it renders them; a template without tools leaves them to the system prompt."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        schemas = [tool.schema() for tool in tools] or None
        text = self.tokenizer.apply_chat_template(messages, tools=schemas, add_generation_prompt=True, tokenize=False)
        return self.encode(text)

    def tool(self, observation: str) -> list[int]:
        """From behind the assistant's end-of-turn token to where its next turn begins."""
        return self.encode(self._tool_head + observation + self._tool_tail)

    def assistant(self, text: str) -> list[int]:
        """A given assistant turn with its end-of-turn token, as a policy would have generated it."""
        return [*self.encode(text), self.end_id]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def text(self, ids: Sequence[int]) -> str:
        """A generated turn's text, without its end-of-turn token."""
        return self.tokenizer.decode(ids[:-1] if ids and ids[-1] == self.end_id else ids, skip_special_tokens=False)

    def _between_turns(self) -> tuple[str, str]:
        messages = [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": "ANSWER"},
            {"role": "tool", "content": "OBSERVATION"},
        ]
        text: str = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        behind = text.split("ANSWER", 1)[-1]
        if "ANSWER" not in text or "OBSERVATION" not in behind or self.tokenizer.eos_token not in behind:
            raise ValueError(
                "the tokenizer's chat template does not render a tool message behind an assistant turn that ends with "
                f"{self.tokenizer.eos_token!r}; rendered: {text!r}"
            )
        head, tail = behind.split(self.tokenizer.eos_token, 1)[1].split("OBSERVATION", 1)
        return head, tail


def render_trajectory(renderer: Renderer, domains: Mapping[str, Domain], trajectory: Trajectory) -> Trajectory:
    """A text-only trajectory (a demonstration) with the token ids that its text has under this tokenizer. ``domains``
    is by world."""
    domain = domains[trajectory.task.world]

    def ids(turn: Turn) -> list[int]:
        if turn.role == "prompt":
            return renderer.prompt(domain.system, domain.tools_for(trajectory.task), turn.text)
        return renderer.tool(turn.text) if turn.role == "tool" else renderer.assistant(turn.text)

    return replace(trajectory, turns=tuple(replace(turn, ids=tuple(ids(turn))) for turn in trajectory.turns))
