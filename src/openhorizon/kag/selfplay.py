"""Self-play expansion (section 2.2.2): propose → solve → verify, and write both verdicts back.

The proposer is a world's own walk over its corpus or tool graph, in the region whose turn it is (``steer``). The task's
reference solution passes the rules that are about the task (verifiable, no shortcut); then a solver tries the task
(``solve``), and its episodes pass those that are about a trajectory (valid, process-informative, evidence-covering).
A rejected region is proposed again with the next seed, within bounds: ``region_proposals`` refusals in a row close a
region, ``max_proposals`` end the run, and so does a yield under ``min_yield``.

Everything streams: outcomes are handed out one by one, and what is remembered of them (fingerprints, common answers,
solve rates) takes a few bytes a task or none.

Where we differ from the paper: tasks of horizon 1 are kept, although they are look-ups, as the start of the curriculum.
Without noise the expert's episode is the reference solution itself.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.domains.base import Domain, EnvironmentDied, Split, Task, Verdict
from openhorizon.kag.fingerprints import Fingerprints, digest
from openhorizon.kag.rules import (
    Answers,
    evidence_covering,
    no_shortcut,
    process_informative,
    valid,
    verifiable,
)
from openhorizon.kag.solve import DEATH_TRIES, DIED, UNREACHED, Episode, Solver, play, survive, turns_of
from openhorizon.kag.steer import Region, SolveRates, Turns
from openhorizon.seeds import derive, rng

PartName = Literal["heldout", "validation", "demonstrations", "prompts"]
BEFORE_RULES = ("no proposal", "duplicate", "shared prompt", "shared pair", "contaminated")  # a draw met no rule
BESIDE_RULES = ("solve rate", DIED, UNREACHED)  # refused by no rule either
TRIED = "tried"  # no refusal: an episode that only measures how often the solver succeeds
WARM_UP = 100  # tasks drawn before a yield says anything
DIED_IN_ROW = 10  # episodes; more of them mean that the world does not work here at all


@dataclass(frozen=True)
class Outcome:
    """One verdict of the verifier: ``rule`` is empty where the episode was accepted. ``episode`` is None where the draw
    did not reach the solver; ``attempt``: it is the solver's own, not the reference solution."""

    horizon: int
    rule: str
    reason: str
    episode: Episode | None = None
    world: str = ""
    attempt: bool = False


@dataclass(frozen=True)
class Bounds:
    """When self-play stops without what was asked for."""

    max_proposals: int
    region_proposals: int
    min_yield: float


@dataclass(frozen=True)
class Part:
    """What is to be made: ``count`` tasks over ``regions``. ``tries`` 0: the reference solution is enough; otherwise
    the solver tries a task that often. A prompt is kept where the share that it solved lies in ``solve_rate``."""

    name: PartName
    count: int
    regions: tuple[Region, ...]
    tries: int = 0
    floor: float = 1.0  # share of an even split that steering leaves to every region; 1: no steering
    every: int = 100  # slots between two looks at the solve rates
    solve_rate: tuple[float, float] = (0.0, 1.0)

    @property
    def split(self) -> Split:
        return self.name if self.name == "heldout" or self.name == "validation" else "train"


@dataclass
class Memory:
    """What earlier rounds leave behind for later ones: nothing is proposed twice, no constant answer pays, and nothing
    that ``barred`` holds or ``contaminated`` finds is used in another split than the held-out one."""

    proposals: dict[Split, int] = field(default_factory=lambda: {"train": 0, "validation": 0, "heldout": 0})
    seen: Fingerprints = field(default_factory=Fingerprints)
    answers: dict[str, Answers] = field(default_factory=dict)  # by world
    rates: SolveRates = field(default_factory=SolveRates)
    closed: list[str] = field(default_factory=list)  # regions that ran dry, in words
    barred_prompts: set[str] = field(default_factory=set)
    barred_pairs: set[tuple[str, str]] = field(default_factory=set)
    contaminated: Callable[[Task], str] | None = None
    deaths: int = 0  # how often an environment broke, whether another try mended it or not
    died_in_row: int = 0

    def bar(self, tasks: Iterable[Task]) -> None:
        """Nothing that is proposed from here on may have a prompt or an entity pair of theirs, but held-out tasks."""
        for task in tasks:
            self.barred_prompts.add(task.prompt)
            self.barred_pairs.update(task.entity_pairs)


class SelfPlay:
    """One shard's rounds of propose, solve, verify; ``expand`` is called once a part."""

    def __init__(
        self,
        worlds: Mapping[str, Domain],
        solver: Solver,
        max_calls: Callable[[int], int],
        bounds: Bounds,
        seed: int,
        shard: int = 0,
        memory: Memory | None = None,
    ) -> None:
        self.worlds, self.solver, self.max_calls, self.bounds = worlds, solver, max_calls, bounds
        self.seed, self.shard = seed, shard
        self.memory = memory or Memory()
        self._name = next(iter(worlds.values())).name
        self._refused: Counter[tuple[Region, str]] = Counter()
        self._example: dict[str, str] = {}
        self._in_row: Counter[Region] = Counter()
        self._accepted: Counter[Region] = Counter()
        self._drawn = self._lost = 0  # tasks, and those of them that were refused

    def expand(self, part: Part) -> Iterator[Outcome]:
        """Every outcome until ``part.count`` tasks are accepted. With even turns any prefix of the accepted is balanced
        over the regions, but for what one batch of the solver holds.

        Raises:
            ValueError: a bound was met; the message says which rule refused how many, and one reason of each.
        """
        if not part.count:
            return
        if not part.regions:
            raise ValueError(f"generate.{self._name}: {part.count} {part.name} asked for, but no horizons")
        self._refused.clear()
        self._example.clear()
        self._in_row.clear()
        self._accepted.clear()
        self._drawn = self._lost = 0
        turns = Turns(part.regions, part.floor, part.every, self.memory.rates)
        again: deque[Region] = deque()
        while (missing := part.count - self._accepted.total()) > 0:
            size = min(self.solver.batch if part.tries else 1, missing)
            wave = [again.popleft() if again else turns.next() for _ in range(size)]
            drawn = []
            for region in wave:
                reference = None
                while reference is None and region in turns.open:
                    self._check(part, turns, region)
                    if region in turns.open:
                        reference = yield from self._draw(part, region)
                if reference is not None:
                    drawn.append((region, reference))
            solved = set[int]()
            for i, outcome in self._solve(part, drawn):
                if not outcome.rule:
                    solved.add(i)
                yield self._note(drawn[i][0], outcome)
            unsolved = [region for i, (region, _) in enumerate(drawn) if i not in solved]
            self._lost += len(unsolved)
            again.extend(region for region in unsolved if region in turns.open)

    def _draw(self, part: Part, region: Region) -> Generator[Outcome, None, Episode | None]:
        """Propose one task and look at it before anybody tries it; returns its reference solution if it is fit."""
        memory, domain = self.memory, self.worlds[region.world]
        index = memory.proposals[part.split]
        memory.proposals[part.split] = index + 1
        seed = derive(self.seed, region.world, part.split, self.shard, index)
        split: Split = "train" if part.split == "validation" and not domain.apart else part.split
        task = domain.propose(rng(seed, "propose"), split, region.horizon, seed)
        rule, why = ("no proposal", "the domain found none") if task is None else self._known(part, task)
        self._drawn += task is not None
        self._lost += bool(rule) and task is not None
        if rule:
            yield self._note(region, Outcome(region.horizon, rule, why, None, region.world))
            return None
        assert task is not None
        reference, rule, why = self._fit(domain, task)
        if rule:
            self._lost += 1
            yield self._note(region, Outcome(region.horizon, rule, why, reference, region.world))
            return None
        return reference

    def _known(self, part: Part, task: Task) -> tuple[str, str]:
        """Whether the task, or what it is made of, was used before."""
        memory = self.memory
        if not memory.seen.add(fingerprint(task)):
            return "duplicate", "same prompt and state as an earlier task"
        if part.split != "heldout":
            if task.prompt in memory.barred_prompts:
                return "shared prompt", "another split has this prompt"
            if not memory.barred_pairs.isdisjoint(task.entity_pairs):
                return "shared pair", "another split has one of its entity pairs"
            why = memory.contaminated(task) if memory.contaminated else ""
            if why:
                return "contaminated", why
        return "", ""

    def _fit(self, domain: Domain, task: Task) -> tuple[Episode, str, str]:
        """The reference solution, and what speaks against the task: the rule and the reason."""
        if not domain.scripted and domain.demonstration(task) is None:
            taken = Verdict(False, 0.0, "not tried: taken as the benchmark's authors wrote it")
            return Episode(task, (), None, taken, task.seed), "", ""
        max_calls = self.max_calls(task.horizon)
        reference = survive(task, task.seed, lambda: play(domain, task, task.seed, 0.0, max_calls))
        self.memory.deaths += reference.deaths
        if reference.status is Status.ABORTED:
            return reference, DIED, reference.verdict.reason
        why = verifiable(reference)
        if why:
            return reference, "verifiable", why
        common = self.memory.answers.setdefault(task.world, Answers()).common()
        reason = ""
        for _ in range(DEATH_TRIES):
            try:
                why = no_shortcut(domain, reference, common)
            except EnvironmentDied as error:
                self.memory.deaths += 1
                reason = str(error)
            else:
                return reference, "no shortcut" if why else "", why
        return replace(reference, ended=Status.ABORTED), DIED, reason

    def _solve(self, part: Part, drawn: Sequence[tuple[Region, Episode]]) -> Iterator[tuple[int, Outcome]]:
        """The solver's episodes of the tasks with their verdicts, and of each task whose episode is accepted."""
        if not part.tries:
            for i, (region, reference) in enumerate(drawn):
                self._keep(reference)
                yield i, Outcome(region.horizon, "", "", reference, region.world)
            return
        if self.solver.persistent:
            tasks = [reference.task for _, reference in drawn for _ in range(part.tries)]
            tried = self.solver.solve(tasks, derive(self.seed, "solver", self.shard)) if tasks else []
            groups = [tried[i * part.tries : (i + 1) * part.tries] for i in range(len(drawn))]
            for i, (region, reference) in enumerate(drawn):
                yield from ((i, it) for it in self._judge(part, region, reference, iter(groups[i])))
            return
        for i, (region, reference) in enumerate(drawn):
            one_by_one = (
                self.solver.solve([reference.task], derive(self.seed, "try", attempt))[0]
                for attempt in range(part.tries)
            )
            yield from ((i, it) for it in self._judge(part, region, reference, one_by_one))

    def _judge(self, part: Part, region: Region, reference: Episode, episodes: Iterator[Episode]) -> Iterator[Outcome]:
        """Verdicts over a task's episodes, one of which at most is accepted (for prompts the reference is, which stands
        for the task). A solver that is not persistent is not asked again once the task is solved."""
        has_tools, accepted, tries, solved = bool(self.worlds[region.world].tools), False, 0, 0
        for episode in episodes:
            self.memory.deaths += episode.deaths
            aborted = episode.status is Status.ABORTED
            if aborted:
                rule = DIED if episode.verdict.reason.startswith(DIED) else UNREACHED
                why = episode.verdict.reason
            else:
                rule, why = _refusal(episode, has_tools)
                tries, solved = tries + 1, solved + episode.verdict.passed
                self.memory.rates.add(region, episode.verdict.passed)
            fine = not rule
            if fine and (accepted or part.name == "prompts"):
                rule = TRIED
            accepted = accepted or (fine and part.name == "demonstrations")
            if fine and not rule:
                self._keep(episode)
            yield Outcome(region.horizon, rule, why, episode, region.world, attempt=True)
            if fine and not self.solver.persistent:
                break
        if part.name == "prompts" and tries:
            low, high = part.solve_rate
            if low <= solved / tries <= high:
                self._keep(reference)
                yield Outcome(region.horizon, "", "", reference, region.world)
            else:
                yield Outcome(region.horizon, "solve rate", f"solved {solved} of {tries} times", None, region.world)

    def _keep(self, episode: Episode) -> None:
        self.memory.answers.setdefault(episode.task.world, Answers()).add(episode.task.reference)

    def _note(self, region: Region, outcome: Outcome) -> Outcome:
        """Count an outcome for the bounds; it is handed on as it is."""
        if outcome.rule == DIED:
            self.memory.died_in_row += 1
            if self.memory.died_in_row >= DIED_IN_ROW:
                died = f"{self.memory.died_in_row} episodes in a row died with their environment"
                raise ValueError(f"generate.{self._name}: {died}; the last: {outcome.reason}")
        elif outcome.episode is not None:
            self.memory.died_in_row = 0
        if not outcome.rule:
            self._accepted[region] += 1
            self._in_row[region] = 0
        elif outcome.rule != TRIED:
            self._refused[region, outcome.rule] += 1
            self._example.setdefault(outcome.rule, outcome.reason)
            self._in_row[region] += 1
        return outcome

    def _check(self, part: Part, turns: Turns, region: Region) -> None:
        """Hold the bounds before another proposal in ``region``; a region that ran dry is closed.

        Raises:
            ValueError: a bound of the run is met, or a region gave nothing at all.
        """
        done, bounds = self._accepted.total(), self.bounds
        where = f"generate.{self._name}: {done} of {part.count} {part.name}"
        spent = sum(self.memory.proposals.values())
        if spent >= bounds.max_proposals:
            stuck = self._stuck(region)
            raise ValueError(f"{where} after {spent} proposals, {stuck}; ask for fewer tasks or other horizons")
        if self._drawn >= WARM_UP and self._lost > (1 - bounds.min_yield) * self._drawn:
            share = (
                f"{self._lost} of {self._drawn} tasks refused, so that the yield is under min_yield={bounds.min_yield}"
            )
            raise ValueError(f"{where}: {share}, {self._stuck(region)}")
        if self._in_row[region] < bounds.region_proposals:
            return
        dry = f"{region} gave {self._accepted[region]} {part.name}, then {self._in_row[region]} refusals in a row"
        if not self._accepted[region] or len(turns.open) == 1:
            raise ValueError(f"{where}: {dry}, {self._stuck(region)}; leave it out of the horizons")
        self.memory.closed.append(f"{dry} ({self._by_rule(region)})")
        turns.close(region)

    def _stuck(self, region: Region) -> str:
        """In words: which rule refused how many, where it stopped and in all, with a reason of each."""
        reasons = "; ".join(f"{rule}: {why[:120]}" for rule, why in sorted(self._example.items()))
        return (
            f"stuck at {region}, refused there: {self._by_rule(region)}; in all: {self._by_rule(None)}"
            f"{f' (such as {reasons})' if reasons else ''}"
        )

    def _by_rule(self, region: Region | None) -> str:
        counts: Counter[str] = Counter()
        for (where, rule), n in self._refused.items():
            if region is None or where == region:
                counts[rule] += n
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{rule} {n}" for rule, n in ranked) or "none"


def _refusal(episode: Episode, has_tools: bool) -> tuple[str, str]:
    """The first rule about trajectories that refuses, with its reason."""
    reasons = {
        "valid": valid(episode),
        "process-informative": process_informative(episode),
        "evidence-covering": evidence_covering(episode, has_tools),
    }
    return next(((rule, why) for rule, why in reasons.items() if why), ("", ""))


def fingerprint(task: Task) -> int:
    """Two tasks with one fingerprint are duplicates: same prompt and same world."""
    text = json.dumps([task.world, task.prompt, task.state], sort_keys=True)
    return digest(text)


def to_trajectory(outcome: Outcome) -> Trajectory:
    """The trajectory to store; a rejected one's verdict starts its reason with the rule that refused it. Token ids are
    empty: the tokenizer is trained on these texts later."""
    episode = outcome.episode
    assert episode is not None, "a draw that never reached the solver has no trajectory"
    text = None if episode.answer is None else episode.answer.text
    verdict = episode.verdict
    if outcome.rule:
        verdict = replace(verdict, reason=f"{outcome.rule}: {outcome.reason}")
    return Trajectory(episode.task, turns_of(episode), text, episode.status, verdict, episode.policy, episode.seed)


def is_stored(outcome: Outcome) -> bool:
    """Whether the outcome is written back: accepted and refused episodes are; what an aborted one did says nothing of
    anybody, and of several solved tries of a task one is kept."""
    episode = outcome.episode
    return episode is not None and outcome.rule != TRIED and episode.status is not Status.ABORTED
