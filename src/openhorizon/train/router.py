"""Which teacher supervises a sample. Hard routing (section 4.3): that of its own domain, never a mixture.

The others are what hard routing is held against:

    mixture   the mean of all teachers' distributions
    shuffled  another domain's teacher, by a seeded permutation that leaves none at home
    merged    one teacher, whose weights are the mean of all teachers'
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sharding import duplicate
from openhorizon.seeds import rng
from openhorizon.train.compute import tokens_of
from openhorizon.train.merging import mean_weights
from openhorizon.train.scores import Scorer, TeacherScores, Wanted, score

Teachers = Mapping[str, Checkpoint]
Routes = dict[str, tuple[Checkpoint, ...]]  # domain → teachers, of whose distributions the mean is taken


class Router:
    """The teachers by domain. A trajectory carries its domain, so there is no list that could fall out of step. Who
    scores, if not the teachers here, is a ``scorer``: what was scored before (``score_cache.py``), a server
    (``remote.py``).

    Raises:
        ValueError: a domain without a teacher, a teacher whose tokenizer or vocabulary is not the student's, or that is
            the student; teachers of several shapes where they are to be merged.
    """

    def __init__(
        self,
        student: Checkpoint,
        teachers: Sequence[Teacher],
        domains: Sequence[str],
        routing: str,
        seed: int,
        scorer: Scorer | None = None,
    ) -> None:
        self.routes = ROUTINGS[routing](by_domain(student, teachers, domains), seed)
        self.run = scorer.score if scorer else score

    def score(
        self, trajectories: Sequence[Trajectory], wanted: Wanted, invalid_V: torch.Tensor, machine: MachineConfig
    ) -> list[TeacherScores]:
        """Scores in the order of ``trajectories``; samples are grouped so that each teacher runs once."""
        results: dict[int, TeacherScores] = {}
        for domain, teachers in self.routes.items():
            mine = [i for i, trajectory in enumerate(trajectories) if trajectory.task.domain == domain]
            models, name = [teacher.model for teacher in teachers], "+".join(teacher.hash for teacher in teachers)
            scored = self.run(models, name, [trajectories[i] for i in mine], wanted, invalid_V, machine)
            results.update(zip(mine, scored, strict=True))
        return [results[i] for i in range(len(trajectories))]

    def read(self, trajectories: Sequence[Trajectory]) -> list[tuple[PreTrainedModel, int]]:
        """How many tokens each teacher reads to score these; one that several domains share is there several times."""
        tokens = {name: tokens_of(t for t in trajectories if t.task.domain == name) for name in self.routes}
        return [(teacher.model, tokens[name]) for name, teachers in self.routes.items() for teacher in teachers]


def hard(teachers: Teachers, seed: int) -> Routes:
    """Each domain its own."""
    return {domain: (teacher,) for domain, teacher in teachers.items()}


def mixture(teachers: Teachers, seed: int) -> Routes:
    """Each domain all of them."""
    return dict.fromkeys(teachers, tuple(teachers.values()))


def shuffled(teachers: Teachers, seed: int) -> Routes:
    """Each domain the next one's in a shuffled ring: a wrong teacher for all, each teaches once."""
    if len(teachers) < 2:
        raise ValueError("distill.routing: shuffled needs two domains or more")
    ring = sorted(teachers)
    rng(seed, "shuffled").shuffle(ring)
    after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return {domain: (teachers[after[domain]],) for domain in teachers}


def merged(teachers: Teachers, seed: int) -> Routes:
    """Each domain the same, with the mean of every weight (Wortsman et al. 2022, "Model soups", arXiv 2203.05482)."""
    first = next(iter(teachers.values()))
    model = duplicate(first.model)
    model.load_state_dict(mean_weights({domain: teacher.model for domain, teacher in teachers.items()}))
    names = "+".join(teacher.hash for teacher in teachers.values())
    soup = replace(first, model=model.requires_grad_(False), hash=hashlib.sha256(names.encode()).hexdigest())
    return dict.fromkeys(teachers, (soup,))


ROUTINGS: dict[str, Callable[[Teachers, int], Routes]] = {
    "hard": hard,
    "mixture": mixture,
    "shuffled": shuffled,
    "merged": merged,
}


def by_domain(student: Checkpoint, teachers: Sequence[Teacher], domains: Sequence[str]) -> dict[str, Checkpoint]:
    """The teacher of each of ``domains``, in their order.

    Raises:
        ValueError: a domain without a teacher, a teacher whose tokenizer or vocabulary is not the student's, or that is
            the student.
    """
    own = {teacher.domain: teacher.checkpoint for teacher in teachers}
    for domain in domains:
        if domain not in own:
            raise ValueError(f"domain {domain!r} has no teacher; there are {', '.join(sorted(own))}")
        _check_fit(student, own[domain], domain)
    return {domain: own[domain] for domain in domains}


def _check_fit(student: Checkpoint, teacher: Checkpoint, domain: str) -> None:
    theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    if theirs != ours:
        differ = len(set(theirs.items()) ^ set(ours.items()))
        raise ValueError(
            f"the teacher of {domain!r} has another vocabulary than the student: {len(theirs)} tokens "
            f"against {len(ours)}, {differ} entries differ; train it from the same base"
        )
    width, own = teacher.model.config.vocab_size, student.model.config.vocab_size
    if width != own:
        raise ValueError(f"the teacher of {domain!r} has {width} logits, the student {own}")
    if {id(p) for p in teacher.model.parameters()} & {id(p) for p in student.model.parameters()}:
        raise ValueError(f"the teacher of {domain!r} is the student: they share weights")
