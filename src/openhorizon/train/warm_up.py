"""A student's warm-up before on-policy distillation: SFT on what each teacher solves of its own domain.

Sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947) of verified samples, which then leaves to distillation
what only the student's own states can teach; Qwen3 (arXiv 2505.09388, section 4.5) has an off-policy phase before the
on-policy one, too. Agents-A1 has none: its student starts from SFT alone (section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig, MachineConfig, RouterConfig, WarmUpConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.model.load import Checkpoint
from openhorizon.model.sampler import local_policy
from openhorizon.seeds import derive
from openhorizon.train.compute import Meter, tokens_of
from openhorizon.train.episodes import rollout
from openhorizon.train.resume import Resume
from openhorizon.train.samples import prompt_stream
from openhorizon.train.supervised import fit

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

PREFIX = "warm_up_"


def warm_up(
    student: Checkpoint,
    teachers: Mapping[str, Checkpoint],
    domains: Mapping[str, Domain],
    prompts: Mapping[str, Sequence[Task]],
    budgets: Mapping[str, BudgetConfig],
    config: WarmUpConfig,
    temperature: float,
    seed: int,
    machine: MachineConfig,
    log: StageLog,
    routers: RouterConfig,
    meter: Meter,
    saved: Resume,
) -> dict[str, float]:
    """Train the student in place. Returns figures, ``warm_up_`` before their names: ``fit``'s, and by domain how many
    episodes its teacher wrote and solved. The episodes follow from ``seed``: a run that goes on writes them again.

    Raises:
        ValueError: no teacher solves anything. A domain whose teacher does not is said and goes without.
    """
    samples: list[Trajectory] = []
    counts: dict[str, float] = {}
    for place, (name, teacher) in enumerate(teachers.items()):
        policy, stream = local_policy(teacher, machine), prompt_stream(prompts[name], derive(seed, "prompts", name))
        tasks = [next(stream) for _ in range(config.prompts)]
        told = partial(_tell, log, place * config.prompts, len(teachers) * config.prompts)
        tried = rollout(domains, tasks, policy, budgets, temperature, derive(seed, "rollout", name), told)
        meter.forward("rollout", teacher.model, tokens_of(tried))
        solved = [one for one in tried if one.status is Status.SOLVED]
        samples += [context for one in solved for context in one.contexts]
        counts |= {f"{PREFIX}written@{name}": len(tried), f"{PREFIX}solved@{name}": len(solved)}
        if not solved:
            print(f"distill: warm_up: the teacher of {name} solves none of {len(tried)} prompts", flush=True)
    if not samples:
        raise ValueError(f"distill.warm_up.prompts={config.prompts}: no teacher solves any")
    figures = fit(
        student.model, samples, config.tokens, config.optim, derive(seed, "sft"), machine, log, PREFIX, routers,
        meter=meter, saved=saved,
    )  # fmt: skip
    return counts | figures


def _tell(log: StageLog, before: int, of_all: int, done: int, total: int) -> None:
    log.progress(before + done, of_all, "the teachers' episodes")
