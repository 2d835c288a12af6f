"""Sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947): SFT on what the teachers write.

Each domain's teacher rolls out the prompts of distillation of its domain, a wave of all domains at a time, until a
share of the FLOPs is spent; the SFT model is trained on the solved episodes, or on all, for the rest. What differs
from the source: episodes are sampled, where it decodes by beam search, and a verifier chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.model.sampler import local_policy
from openhorizon.seeds import derive
from openhorizon.train.baselines.given import Figures, Given, Made, fine_tuned
from openhorizon.train.compute import tokens_of
from openhorizon.train.episodes import rollout
from openhorizon.train.resume import Episodes
from openhorizon.train.samples import prompt_stream


def run(given: Given) -> Made:
    """Raises ``ValueError`` where no episode can be trained on. A domain without any is said and goes without."""
    block, episodes = given.config.seqkd, written(given)
    wanted = {Status.SOLVED} if block.samples == "verified" else set(Status) - {Status.ABORTED}
    figures: Figures = {}
    for name in given.prompts:
        mine = [episode for episode in episodes if episode.task.domain == name]
        kept = sum(episode.status in wanted for episode in mine)
        figures |= {f"written@{name}": len(mine), f"kept@{name}": kept}
        if not kept:
            print(f"seqkd: none of the teacher's {len(mine)} episodes of {name} is {block.samples}", flush=True)
    samples = [context for e in episodes if e.status in wanted for context in e.contexts]
    if not samples:
        raise ValueError(
            f"baselines.seqkd.samples={block.samples}: none of {len(episodes)} episodes of the teachers is"
        )
    return given.start, figures | fine_tuned(given, samples, block.optim)


def written(given: Given) -> Sequence[Trajectory]:
    """The teachers' episodes, as many prompts of each domain."""
    episodes = list[Trajectory]()
    given.saved.keep(episodes=Episodes(episodes))
    given.saved.once("rollouts", partial(write, given, episodes))
    return episodes


def write(given: Given, episodes: list[Trajectory]) -> int:
    """Have the teachers write ``episodes``, behind those that were saved. Returns how many waves there are."""
    block, limit = given.config.seqkd, given.config.seqkd.share * given.flops
    policies = {name: local_policy(teacher, given.machine) for name, teacher in given.teachers().items()}
    streams = {name: prompt_stream(given.prompts[name], derive(given.seed, "prompts", name)) for name in policies}
    wave: int = given.saved.enter().get("step", 0)
    for stream in streams.values():
        list(islice(stream, wave * block.prompts))  # which those had
    while given.meter.flops < limit:
        for name, policy in policies.items():
            tasks = [next(streams[name]) for _ in range(block.prompts)]
            seed = derive(given.seed, "rollout", wave)
            found = rollout(given.worlds, tasks, policy, given.budgets, block.temperature, seed)
            given.meter.forward("rollout", policy.checkpoint.model, tokens_of(found))
            given.log.tokens(tokens_of(found))
            episodes += found
        wave += 1
        part = min(given.meter.flops / limit, 1.0)
        given.log.progress(round(100 * part), 100, f"teachers' rollouts: {len(episodes)}")
        given.saved.after(wave)
    return wave
