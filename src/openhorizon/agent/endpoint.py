"""Episodes played by any OpenAI-compatible endpoint: chat completions with tools, such as a strong model behind vLLM.

Requests of many episodes run side by side in threads; environments are stepped by the calling thread alone, as a world
need not be thread-safe. A server is asked for token ids and log-probabilities, too; one that refuses such a request is
asked without (``agent/talk.py`` says when they are kept). Log-probabilities are the server's: vLLM's are of temperature
1 unless it is started otherwise.

Nonsense is data. A call that cannot be parsed, or of no known tool, becomes an observation, as for every policy; a
reply that is no reply (no choices, wrong types) ends the episode as FAILED with the reason. What times out, breaks or
answers 429 or 5xx is asked again by the client, ``retries`` times, then the episode is ABORTED; an endpoint that aborts
``GIVE_UP`` episodes in a row is not there, and one that has refused as many and never answered wants something else:
the run stops. Of several calls in one reply the first is taken.

The server counts the tokens (``usage``); where the next turn might pass ``budget.DOMAIN.context_tokens`` and the world
keeps a memory, the conversation goes on in a new context, as a local policy's does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openhorizon.agent.talk import FAILED, Talk
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Domain, Task

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENHORIZON_API_KEY"
GIVE_UP = 16
DETAILS: Mapping[str, Any] = {"logprobs": True, "extra_body": {"return_token_ids": True}}
UNKNOWN_FIELD = (400, 422)  # how servers answer a field that they do not know


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
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Trajectory]:
        """One trajectory a task, in the order of ``tasks``.

        Raises:
            ValueError: the endpoint refuses the key or the model, or is not there at all.
        """
        from openai import APIStatusError, OpenAIError

        asking = Asking(self)
        talks = [
            Talk(domains[task.world], task, own, self.model, budgets[task.domain])
            for task, own in zip(tasks, seeds, strict=True)
        ]
        aborted, refused, answered = 0, 0, False
        with ThreadPoolExecutor(self.parallel) as pool:
            live: dict[Future[Any], Talk] = {}
            for talk in talks:
                if talk.status is None:
                    live[pool.submit(asking.ask, talk.request(temperature))] = talk
            try:
                while live:
                    ready, _ = wait(live, return_when=FIRST_COMPLETED)
                    for future in sorted(ready, key=lambda it: live[it].seed):
                        talk = live.pop(future)
                        try:
                            talk.take(future.result())
                            aborted, answered = 0, True
                        except APIStatusError as error:
                            said = f"{line(error)}: {' '.join(error.response.text.split())[:200]}"
                            refused += not answered
                            if error.status_code in (401, 403, 404) or refused >= GIVE_UP:
                                raise ValueError(f"endpoint {self.url}, model {self.model}: {said}") from error
                            aborted += talk.refused(error.status_code, said)
                        except OpenAIError as error:  # a timeout, a connection that broke
                            talk.end(Status.ABORTED, f"{FAILED}: {type(error).__name__}: {line(error)}")
                            aborted += 1
                        if aborted >= GIVE_UP:
                            raise ValueError(f"endpoint {self.url}: {aborted} requests in a row {talk.verdict.reason}")
                        if talk.status is None:
                            live[pool.submit(asking.ask, talk.request(temperature))] = talk
                    progress(len(talks) - len(live), len(talks))
            finally:
                for future, talk in live.items():
                    future.cancel()
                    talk.close()
        return [talk.trajectory() for talk in talks]


class Asking:
    """Requests to one endpoint, with ``details`` of tokens; remembers where it refuses them."""

    def __init__(self, endpoint: Endpoint, details: bool = True) -> None:
        self.model, self.client = endpoint.model, client(endpoint)
        self.details = details

    def ask(self, request: Mapping[str, Any]) -> str:
        """The body of the reply as it came: the client's own types take whatever a server writes for granted."""
        from openai import APIStatusError

        if self.details:
            try:
                return self._post({**request, **DETAILS})
            except APIStatusError as error:
                if error.status_code not in UNKNOWN_FIELD:
                    raise
        body = self._post(request)
        self.details = False  # the same request went through without them
        return body

    def _post(self, request: Mapping[str, Any]) -> str:
        options: Any = {"model": self.model, **request}
        return str(self.client.chat.completions.with_raw_response.create(**options).http_response.text)


def client(endpoint: Endpoint) -> OpenAI:
    """The OpenAI client for it. Raises ``ValueError`` where its package is not installed."""
    try:
        from openai import OpenAI
    except ModuleNotFoundError as error:
        raise ValueError("an endpoint needs the package openai: pip install openai") from error
    key = os.environ.get(endpoint.key_variable) or "none"
    return OpenAI(base_url=endpoint.url, api_key=key, timeout=endpoint.timeout_s, max_retries=endpoint.retries)


def line(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(str(error).split())[:200]
