"""Self-play expansion (section 2.2.2): propose → solve → verify, and write both verdicts back.

The proposer is the domain's own walk over its corpus or tool graph. The solver is the domain's scripted expert, with
noise, given several tries. The verifier accepts a task with its trajectory only under the paper's five rules, each a
function here that returns "" or the reason of its refusal.

Where we differ from the paper: tasks of horizon 1 are kept, although they are look-ups, as the start of the curriculum
(rules 3 and 5 exempt them). Ambiguity is judged by trying shortcuts: an answer that somebody could give without the
evidence must not be accepted by the answer check alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.domains.base import Answer, Domain, Split, Step, Task, Verdict, solve
from openhorizon.kag.graph import holds, normal, reasoning
from openhorizon.seeds import derive, rng

RULES = ("verifiable", "valid", "process-informative", "evidence-covering", "no shortcut")
BEFORE_RULES = ("no proposal", "duplicate", "shared prompt", "shared pair")  # why a draw never reaches the rules
TRIES = 3  # ours: how often the solver may try a task before its region goes back to the proposer


@dataclass(frozen=True)
class Episode:
    """What the solver did with a task, and what the domain's verifier said of it."""

    task: Task
    steps: tuple[Step, ...]
    answer: Answer | None
    verdict: Verdict
    seed: int

    @property
    def status(self) -> Status:
        if self.answer is None:
            return Status.TRUNCATED
        return Status.SOLVED if self.verdict.passed else Status.FAILED


@dataclass(frozen=True)
class Outcome:
    """One verdict of the verifier: ``rule`` is empty where the episode was accepted. ``episode`` is None where the draw
    did not reach the solver."""

    horizon: int
    rule: str
    reason: str
    episode: Episode | None = None


@dataclass
class Memory:
    """What earlier rounds leave behind for later ones: nothing is proposed twice, no constant answer pays, and nothing
    that ``barred`` holds is used again in another split."""

    max_proposals: int
    proposals: dict[Split, int] = field(default_factory=lambda: {"train": 0, "heldout": 0})
    seen: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    barred_prompts: set[str] = field(default_factory=set)
    barred_pairs: set[tuple[str, str]] = field(default_factory=set)


def expand(
    domain: Domain,
    split: Split,
    horizons: Sequence[int],
    count: int,
    noise: float,
    max_calls: Callable[[int], int],
    seed: int,
    memory: Memory,
) -> Iterator[Outcome]:
    """Every outcome until ``count`` are accepted, the accepted ones' horizons taking turns: any prefix is balanced.

    A rejected region (split and horizon) is proposed again with the next seed. Without noise the episode is the
    reference solution.

    Raises:
        ValueError: ``memory.max_proposals`` were drawn; the message says which rule rejected how many.
    """
    refused: Counter[tuple[int, str]] = Counter()
    for slot in range(count):
        horizon, accepted = horizons[slot % len(horizons)], False
        while not accepted:
            if sum(memory.proposals.values()) >= memory.max_proposals:
                tried = f"after {memory.max_proposals} proposals"
                where = f"generate.{domain.name}: {slot} of {count} {split} tasks {tried}"
                raise ValueError(f"{where}, {_stuck(refused, horizon)}; ask for fewer tasks or other horizons")
            index = memory.proposals[split]
            memory.proposals[split] = index + 1
            task_seed = derive(seed, domain.name, split, index)
            for outcome in _round(domain, split, horizon, noise, max_calls(horizon), task_seed, memory):
                accepted = not outcome.rule
                if not accepted:
                    refused[horizon, outcome.rule] += 1
                yield outcome


def _round(
    domain: Domain, split: Split, horizon: int, noise: float, max_calls: int, seed: int, memory: Memory
) -> Iterator[Outcome]:
    """Propose one task, solve it, verify it. The last outcome is the task's."""
    task = domain.propose(rng(seed, "propose"), split, horizon, seed)
    if task is None:
        yield Outcome(horizon, "no proposal", "the domain found none")
        return
    key = fingerprint(task)
    if key in memory.seen:
        yield Outcome(horizon, "duplicate", "same prompt and state as an earlier task")
        return
    memory.seen.add(key)
    if task.prompt in memory.barred_prompts:
        yield Outcome(horizon, "shared prompt", "the other split has this prompt")
        return
    if not memory.barred_pairs.isdisjoint(task.entity_pairs):
        yield Outcome(horizon, "shared pair", "the other split has one of its entity pairs")
        return
    reference = play(domain, task, seed, 0.0, max_calls)
    constant = memory.answers.most_common(1)[0][0] if memory.answers else ""
    reasons = {"verifiable": verifiable(reference), "no shortcut": no_shortcut(reference, constant)}
    rejected = next((Outcome(horizon, rule, why, reference) for rule, why in reasons.items() if why), None)
    if rejected is not None:
        yield rejected
        return
    for attempt in range(TRIES if noise else 1):
        episode = play(domain, task, derive(seed, "try", attempt), noise, max_calls) if noise else reference
        reasons = {
            "valid": valid(episode),
            "process-informative": process_informative(episode),
            "evidence-covering": evidence_covering(episode, has_tools=bool(domain.tools)),
        }
        rule, why = next(((rule, why) for rule, why in reasons.items() if why), ("", ""))
        if not rule:
            memory.answers[normal(task.reference)] += 1
        yield Outcome(horizon, rule, why, episode)
        if not rule:
            return


def play(domain: Domain, task: Task, seed: int, noise: float, max_calls: int) -> Episode:
    """One run of the scripted expert under a budget of tool calls, judged by the domain's verifier."""
    environment, answer = solve(domain, task, rng(seed, "expert"), noise, max_calls)
    return Episode(task, tuple(environment.steps), answer, domain.verify(task, environment, answer), seed)


def verifiable(reference: Episode) -> str:
    """Rule 1: the task has verifiers, and they accept its reference solution."""
    if not reference.task.verifiers:
        return "the task names no verifier"
    if reference.answer is None:
        return f"the reference solution needs more than {len(reference.steps)} tool calls"
    return "" if reference.verdict.passed else f"the reference solution is refused: {reference.verdict.reason}"


def valid(episode: Episode) -> str:
    """Rule 2: this trajectory reaches an answer that the verifier accepts."""
    if episode.answer is None:
        return f"no answer after {len(episode.steps)} tool calls"
    return "" if episode.verdict.passed else f"wrong: {episode.verdict.reason}"


def process_informative(episode: Episode) -> str:
    """Rule 3: at least two distinct decisions (calls not refused, or reasoning steps). Horizon 1 is exempt."""
    if episode.task.horizon < 2:
        return ""
    decisions = {
        json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True)
        for step in episode.steps
        if not step.observation.error
    }
    if episode.answer is not None and not episode.steps:
        decisions |= set(reasoning(episode.answer))
    return "" if len(decisions) >= 2 else f"{len(decisions)} distinct decision(s) for horizon {episode.task.horizon}"


def evidence_covering(episode: Episode, has_tools: bool) -> str:
    """Rule 4: every required piece of evidence was consulted. Without tools the evidence stands in the question, and
    the verdict's rubric says whether each piece was used."""
    if not has_tools:
        failed = sorted(item for item, met in episode.verdict.rubric.items() if not met)
        if not episode.verdict.rubric:
            return "the verdict has no rubric"
        return f"rubric not met: {', '.join(failed)}" if failed else ""
    shown = {item for step in episode.steps for item in step.observation.evidence}
    missing = sorted(set(episode.task.evidence) - shown)
    return f"not consulted: {', '.join(missing)}" if missing else ""


def no_shortcut(reference: Episode, constant: str) -> str:
    """Rule 5: nothing that can be guessed before the evidence was consulted is the answer. Horizon 1 is exempt.

    Tried are the empty answer, ``constant`` (the most common answer so far), every run of words of the prompt, and of
    the first observation from horizon 3 on: at horizon 2 that is the last step but one, which has to name what the last
    step is to confirm.
    """
    task = reference.task
    if task.horizon < 2:
        return ""
    answer = normal(task.reference)
    if not answer:
        return "the empty answer is right"
    if holds(normal(task.prompt), answer):
        return "the answer stands in the prompt"
    first = reference.steps[0].observation.text if task.horizon > 2 and reference.steps else ""
    if holds(normal(first), answer):
        return "the answer stands in the first observation"
    return "the most common answer is right" if answer == constant else ""


def fingerprint(task: Task) -> str:
    """Two tasks with one fingerprint are duplicates: same prompt and same world."""
    return hashlib.sha256(json.dumps([task.prompt, task.state], sort_keys=True).encode()).hexdigest()


def to_trajectory(outcome: Outcome) -> Trajectory:
    """The trajectory to store; a rejected one's verdict starts its reason with the rule that refused it. Token ids are
    empty: the tokenizer is trained on these texts later."""
    episode = outcome.episode
    assert episode is not None, "a draw that never reached the solver has no trajectory"
    turns = [Turn("prompt", episode.task.prompt)]
    for step in episode.steps:
        observation = step.observation
        turns.append(Turn("assistant", write_action(step.call)))
        turns.append(Turn("tool", observation.text, evidence=observation.evidence, error=observation.error))
    if episode.answer is not None:
        turns.append(Turn("assistant", write_action(episode.answer)))
    text = None if episode.answer is None else episode.answer.text
    verdict = episode.verdict
    if outcome.rule:
        verdict = replace(verdict, reason=f"{outcome.rule}: {outcome.reason}")
    return Trajectory(episode.task, tuple(turns), text, episode.status, verdict, "expert", episode.seed)


def _stuck(refused: Counter[tuple[int, str]], horizon: int) -> str:
    """In words: which rule rejected how many, where it stopped and in all."""
    here: Counter[str] = Counter({rule: n for (h, rule), n in refused.items() if h == horizon})
    total: Counter[str] = Counter()
    for (_, rule), n in refused.items():
        total[rule] += n
    return f"stuck at horizon {horizon}, refused there: {_counts(here)}; in all: {_counts(total)}"


def _counts(counts: Counter[str]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{rule} {n}" for rule, n in ranked) or "none"
