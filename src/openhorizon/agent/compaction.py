"""Context compaction: a long run cut into segments, each a trajectory of its own within a limit (section 3).

A run that is longer than a context is written down as several, each of which starts with the prompt and what the agent
would have kept of what came before: a *memory*, written from the turns so far by a function of the domain's
(``Recall``; ``domains/engineering/memory.py`` keeps brief, notes, tree and open assignment). Nothing goes into it that
the agent has not seen, so a policy is run the same way (``agent/rollout.py``): when the next turn might pass the limit,
its context is replaced by ``with_memory(prompt, recall(steps))`` and the conversation goes on; what it then generates
is distributed as what it was trained on. ``Domain.recall`` is that function; worlds without one are not compacted.

Every turn of the run is in exactly one segment, in its order, and a segment is only cut in front of an assistant's
turn: what carries loss once carries it once. A segment keeps task, status, verdict and answer of the whole run, since
it is the whole run that was verified; sizes are counted by ``measure``, in words or, given a renderer, in tokens.

Where we differ from the paper: it compacts by a model's summary; here the memory is exact and made by code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from openhorizon.agent.render import Renderer, read_action, render_trajectory
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.domains.base import Call, Domain, Observation, Step

Recall = Callable[[Sequence[Step]], str | None]  # calls and observations so far → what is kept of them
MEMORY = "What you know so far:"


def words(turn: Turn) -> int:
    """A turn's size where no tokenizer is at hand."""
    return len(turn.text.split())


def with_memory(prompt: str, memory: str | None) -> str:
    """The prompt of a segment."""
    return f"{prompt}\n\n{MEMORY}\n{memory}" if memory else prompt


def compact(
    trajectory: Trajectory, recall: Recall, limit: int, measure: Callable[[Turn], int] = words
) -> list[Trajectory]:
    """The trajectory in segments of at most ``limit``; itself alone where it fits.

    Token ids belong to a text as it was rendered: the new prompts have none, and are rendered with the others.

    Raises:
        ValueError: the prompt with its memory, one turn and its observation do not fit; the message has the sizes.
    """
    prompt, *turns = trajectory.turns
    assert prompt.role == "prompt", "a trajectory begins with its prompt"
    segments: list[Trajectory] = []
    head, body, size = prompt, list[Turn](), measure(prompt)
    for start, stop in _steps(turns):
        step = turns[start:stop]
        cost = sum(map(measure, step))
        if body and size + cost > limit:
            segments.append(replace(trajectory, turns=(head, *body)))
            text = with_memory(prompt.text, recall(read_steps(turns[:start])))
            head, body = Turn("prompt", text), []
            size = measure(head)
        if size + cost > limit:
            raise ValueError(
                f"compaction of {trajectory.task.id}: a prompt of {size} and a step of {cost} do not fit into {limit}"
            )
        body += step
        size += cost
    return [*segments, replace(trajectory, turns=(head, *body))]


def render_contexts(
    renderer: Renderer, domains: Mapping[str, Domain], trajectory: Trajectory, limit: int
) -> list[Trajectory]:
    """A text-only trajectory (a demonstration) with token ids: its contexts, each of at most ``limit`` tokens.

    Where the whole is longer it is compacted; where its world keeps no memory, or it was compacted to another limit
    before, it is cut behind the last whole turn that fits (a valid prefix, as of an episode that ran out of context).

    Raises:
        ValueError: not even a context's first turn fits, or not a prompt with its memory and one turn.
    """
    rendered = [render_trajectory(renderer, domains, context) for context in trajectory.contexts]
    if all(len(context.ids) <= limit for context in rendered):
        return rendered
    domain, task = domains[trajectory.task.world], trajectory.task

    def measure(turn: Turn) -> int:
        return len(turn.ids or renderer.prompt(domain.system, domain.tools_for(task), turn.text))

    if len(rendered) == 1 and domain.recall([]) is not None:
        segments = compact(rendered[0], domain.recall, limit, measure)
        return [render_trajectory(renderer, domains, segment) for segment in segments]
    return [_prefix(context, limit) for context in rendered]


def _prefix(rendered: Trajectory, limit: int) -> Trajectory:
    sizes = accumulate(len(turn.ids) for turn in rendered.turns)
    kept = [turn for turn, size in zip(rendered.turns, sizes, strict=True) if size <= limit]
    if len(kept) == len(rendered.turns):
        return rendered
    if len(kept) < 2:
        raise ValueError(f"model.max_tokens={limit}: not even the first turn of {rendered.task.id} fits")
    if kept[-1].role == "tool":  # an observation that nobody answers teaches nothing
        kept.pop()
    return replace(rendered, turns=tuple(kept), answer=None, status=Status.TRUNCATED)


def read_steps(turns: Sequence[Turn]) -> list[Step]:
    """The calls of these turns, each with what came back."""
    steps = []
    for start, stop in _steps(turns):
        action = read_action(turns[start].text)
        if isinstance(action, Call):
            steps.append(Step(action, Observation("\n".join(turn.text for turn in turns[start + 1 : stop]))))
    return steps


def _steps(turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """Borders of an assistant's turn with the observation that answers it."""
    starts = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    assert not turns or starts[:1] == [0], "an assistant's turn comes first"
    return list(zip(starts, [*starts[1:], len(turns)], strict=True))
