"""Hard routing (section 4.3): each sample is supervised by the teacher of its own domain, never by a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig
from openhorizon.model.load import Teacher
from openhorizon.train.scores import TeacherScores, Wanted, score


class Router:
    """The teachers by domain. A trajectory carries its domain, so there is no list that could fall out of step.

    Raises:
        ValueError: a domain without a teacher, or a teacher whose tokenizer is not the student's.
    """

    def __init__(self, teachers: Sequence[Teacher], domains: Sequence[str], student_vocab: Mapping[str, int]) -> None:
        self.teachers = {teacher.domain: teacher for teacher in teachers}
        for domain in domains:
            if domain not in self.teachers:
                raise ValueError(f"distill: domain {domain!r} has no teacher")
            if self.teachers[domain].checkpoint.tokenizer.get_vocab() != student_vocab:
                raise ValueError(f"distill: the teacher of {domain!r} has another vocabulary than the student")

    def score(
        self, trajectories: Sequence[Trajectory], wanted: Wanted, invalid_V: torch.Tensor, machine: MachineConfig
    ) -> list[TeacherScores]:
        """Scores in the order of ``trajectories``; samples are grouped so that each teacher runs once."""
        results: dict[int, TeacherScores] = {}
        for domain, teacher in self.teachers.items():
            mine = [i for i, trajectory in enumerate(trajectories) if trajectory.task.domain == domain]
            checkpoint = teacher.checkpoint
            theirs = [trajectories[i] for i in mine]
            scored = score([checkpoint.model], checkpoint.hash, theirs, wanted, invalid_V, machine)
            results.update(zip(mine, scored, strict=True))
        return [results[i] for i in range(len(trajectories))]
