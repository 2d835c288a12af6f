"""Training steps beside TRL's: SFT with packing, a GRPO step and a distillation step, single-turn and with tools.

    python benchmarks/trl_peers.py [--parts sft grpo-single grpo-tools distill-single distill-tools] [--rounds 7]

TRL runs in an environment of its own (``--peers``, made on the first call from benchmarks/trl.txt) and in a process of
its own (``trl_worker.py``); ours runs here, by the library's own ``fit``, ``reinforce`` and ``distil``. Both start from
the same checkpoint, with the same prompts, worlds, verifiers, budgets, optimizer settings and thread count. They
alternate, one round each; where a side leaves a choice that decides speed alone (rows a micro-batch, tokens of a
packed row), each is tried and the fastest runs. The learning rate is tiny, so that the model stays what it is and
every round is the same work.

* sft: demonstrations of two domains, packed; 8 updates of 4,096 tokens a round; ratio of real tokens a second.
* distill-single: 64 prompts of 64 tokens, 64 written each; distill-tools: 64 episodes of ``search`` with 2 to 14 calls.
  TRL's loss is the reverse KL over the whole vocabulary, averaged over tokens: ours with ``support_loss: full`` and
  ``aggregation: token``; once more with the profile's own loss.
* grpo-single: 8 prompts of ``instruction``, 8 samples each; grpo-tools: 8 of ``search``, 8 each. Dead groups are kept.

Without ``--checkpoint`` and ``--teacher`` both are trained first. Writes docs/results/trl_peers.json.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from decode import Timed, compared, said, seconds
from student import Said, demonstrations, keep, trained, untrained

from openhorizon.agent.render import Renderer, render_trajectory
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Trajectory, write_tasks
from openhorizon.artifacts import read_json, write_json
from openhorizon.config import BudgetConfig, Config, OptimConfig, load
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Domain, Environment, Expert, NoActions, Split, Task, Verdict
from openhorizon.model.load import load_checkpoint, load_teacher
from openhorizon.model.sampler import LocalPolicy, local_policy
from openhorizon.seeds import derive, rng
from openhorizon.train.distillation import distil
from openhorizon.train.reinforcement import reinforce
from openhorizon.train.router import Router
from openhorizon.train.supervised import fit
from openhorizon.train.teachers.phases import graded, normalised

OUT = Path("docs/results/trl_peers.json")
HERE = Path(__file__).resolve().parent
PINS = (HERE / "trl.txt", HERE.parent / "requirements.lock")
PARTS = ("sft", "grpo-single", "grpo-tools", "distill-single", "distill-tools")
TRAINED_ON = ("search", "instruction")
SEEN = (1, 2, 3, 4, 6, 8, 10, 12)  # horizons of the training
EPISODES, GROUP, UPDATES = 64, 8, 8
CALLS, HORIZONS = 18, (2, 4, 6, 8, 10, 12, 14)  # calls that an episode may use; that its task needs
SINGLE = 64  # tokens of a prompt, and of what is written behind it
TINY = OptimConfig(1e-6, "constant", 0.0, 0.0, 1.0, 4096)
VARIANTS = ((EPISODES, 1), (EPISODES // 4, 4))  # rows a micro-batch, micro-batches of an update
ROWS = ((1024, 4, 1), (1024, 1, 4))  # the same of packed rows, behind their length; TRL cuts what is longer
LOSSES: dict[str, dict[str, Any]] = {
    "full": {"support_loss": "full", "aggregation": "token", "top_k": 2},  # TRL's; of the support only ρ is logged
    "sva": {},  # the profile's
}
OURS = ((512, 1024, 32768), (512, 256, 8192), (128, 1024, 8192))  # tokens, of machines.*:
SETTING = ("row_tokens", "masked_row", "micro_tokens")  # where and how fast, not what


class Counted(Said):
    """A silent log that keeps what the last round reported."""

    def __init__(self) -> None:
        self.counted, self.figures = 0, dict[str, float]()

    def metrics(self, step: int, **values: float) -> None:
        self.figures = values

    def tokens(self, count: int) -> None:
        self.counted += count

    def progress(self, done: int, total: int, note: str = "") -> None: ...


class Prompts(Domain):
    """Prompts that are answered in one turn, whatever the answer: for a step of fixed size."""

    name = "prompts"
    system = ""
    tools = ()

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        raise NotImplementedError

    def start(self, task: Task) -> Environment:
        return NoActions(task, ())

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        raise NotImplementedError

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        return Verdict(True, 1.0, "")


@dataclass(frozen=True)
class Case:
    """What both sides are given: tasks of one domain with their budget. ``calls`` 0 is single-turn."""

    domain: Domain
    tasks: list[Task]
    budget: BudgetConfig
    calls: int
    ends: bool = True  # whether a turn may end before its budget does


class Peer:
    """TRL in its own process."""

    def __init__(self, python: Path, folder: Path, job: Mapping[str, Any]) -> None:
        (folder / "job.json").write_text(json.dumps(job))
        source = str(HERE.parent / "src")
        self.job, self.log = job, folder / f"peer-{job.get('max_length')}-{job['rows']}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, HERE / "trl_worker.py", folder],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": str(job["threads"])},
            )  # fmt: skip
        self.versions: dict[str, str] = self._answer()["versions"]

    def round(self) -> dict[str, Any]:
        assert self.process.stdin
        print("go", file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended:\n{self.log.read_text()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


def installed(folder: Path) -> Path:
    """TRL's interpreter; its environment is made or renewed where the pins have changed."""
    python, stamp = folder / "bin" / "python", folder / "pins"
    pins = hashlib.sha256(b"".join(path.read_bytes() for path in PINS)).hexdigest()
    if not stamp.exists() or stamp.read_text() != pins:
        print(f"peer: installing {PINS[0].name} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", PINS[0], "-c", PINS[1]], check=True)
        stamp.write_text(pins)
    return python.absolute()


def checkpoints(config: Config, folder: Path, student: Path | None, teacher: Path | None, tokens: int) -> None:
    """``student`` and ``teacher`` in ``folder``: given, or trained, the teacher for longer and on other tasks."""
    if student and teacher:
        (folder / "student").symlink_to(student.absolute())
        (folder / "teacher").symlink_to(teacher.absolute())
        return
    made = trained(config, TRAINED_ON, SEEN, 100, tokens)
    keep(made, folder / "student")
    more = [render_trajectory(made.renderer, DOMAINS, t) for t in demonstrations(TRAINED_ON, SEEN, 100, 1)]
    log: Any = Said()
    fit(made.model, more, tokens // 8, replace(config.base.optim, lr=1e-3), 1, config.machine, log)
    keep(made, folder / "teacher")


def tasks_of(domain: Domain, horizons: Sequence[int], count: int) -> list[Task]:
    """``count`` training tasks, their horizons in turn."""
    found, i = dict[str, Task](), 0
    while len(found) < count:
        own = derive(0, "trl_peers", domain.name, i)
        task = domain.propose(rng(own, "propose"), "train", horizons[len(found) % len(horizons)], own)
        found |= {task.prompt: task} if task else {}
        i += 1
    return list(found.values())


def fixed_prompts(renderer: Renderer, count: int) -> list[Task]:
    """Different prompts of exactly ``SINGLE`` ids each."""
    domain, found = Prompts(), dict[str, Task]()
    words = " ".join(task.prompt for task in tasks_of(DOMAINS["instruction"], (2,), 40)).split()
    draw = random.Random(0)
    while len(found) < count:
        text = ""
        while len(renderer.prompt(domain.system, (), text)) < SINGLE:
            text = f"{text} {draw.choice(words)}".strip()
        if len(renderer.prompt(domain.system, (), text)) == SINGLE:
            name = f"prompt-{len(found)}"
            found[text] = Task(domain.name, name, "train", text, 1, 0, {}, (), (), "", ())
    return list(found.values())


def case_of(part: str, config: Config, renderer: Renderer) -> Case:
    """The tasks of a part of the benchmark."""
    count = EPISODES // GROUP if part.startswith("grpo") else EPISODES
    if part.endswith("tools"):
        domain = DOMAINS["search"]
        budget = replace(config.budget["search"], slack=0.0, extra=CALLS)
        return Case(domain, tasks_of(domain, HORIZONS, count), budget, CALLS)
    if part == "grpo-single":
        domain = DOMAINS["instruction"]
        return Case(domain, tasks_of(domain, (1, 2, 3, 4), count), config.budget["instruction"], 0)
    return Case(Prompts(), fixed_prompts(renderer, count), BudgetConfig(0.0, 0, SINGLE, 4 * SINGLE), 0, ends=False)


def policy_of(folder: Path, case: Case, config: Config) -> LocalPolicy:
    policy = local_policy(load_checkpoint(folder / "student", config.machine), config.machine)
    if not case.ends:
        policy.never[policy.renderer.end_id] = True
    return policy


def job_of(part: str, case: Case, policy: LocalPolicy, folder: Path, config: Config, threads: int) -> dict[str, Any]:
    """What the peer is told."""
    grpo = config.teach["search"].grpo
    write_tasks(folder / "tasks.parquet", case.tasks)
    prompts = [
        [{"role": "system", "content": case.domain.system}, {"role": "user", "content": task.prompt}]
        for task in case.tasks
    ]
    completion = case.budget.context_tokens if case.calls else case.budget.turn_tokens
    return {
        "case": part.split("-")[0], "student": "student", "threads": threads, "steps": 1, "lr": TINY.lr,
        "prompts": prompts, "tasks": part != "distill-single", "calls": case.calls, "completion": completion,
        "turn": case.budget.turn_tokens, "never": policy.never.nonzero()[:, 0].tolist(), "group": GROUP,
        "kl": grpo.kl, "clip_low": grpo.clip_low, "clip_high": grpo.clip_high,
        "process_weight": config.teach["search"].reward.process_weight,
    }  # fmt: skip


def distil_round(folder: Path, case: Case, config: Config, loss: Mapping[str, Any]) -> Round:
    """One step of ours with this of the block ``distill``."""
    policy, domains = policy_of(folder, case, config), {case.domain.name: case.domain}
    teacher = load_teacher(folder / "teacher", case.domain.name, config.machine)
    router = Router(policy.checkpoint, [teacher], list(domains), "hard", 0)
    settings = replace(
        config.distill, iterations=1, prompts=len(case.tasks), updates=1, temperature=1.0, optim=TINY, **loss
    )
    prompts, budgets = {case.domain.name: case.tasks}, {case.domain.name: case.budget}

    def run(n: int) -> dict[str, Any]:
        log: Any = Counted()
        figures = distil(policy, router, domains, prompts, budgets, settings, n, config.machine, log)
        return {"written": figures[f"length@{case.domain.name}"] * EPISODES, "loss": figures["loss"]}

    return run


def reinforce_round(folder: Path, case: Case, config: Config) -> Round:
    """One step of ours."""
    policy, recipe = policy_of(folder, case, config), config.teach["search"]
    reference = copy.deepcopy(policy.checkpoint.model).requires_grad_(False)
    advantage, domains = normalised(graded(recipe.reward)), {case.domain.name: case.domain}
    optim = replace(TINY, batch_tokens=config.machine.micro_tokens)
    settings = replace(
        recipe.grpo, iterations=1, prompts=len(case.tasks), group=GROUP, updates=1, entropy=0.0, temperature=1.0,
        dynamic_sampling=False, optim=optim,
    )  # fmt: skip

    def run(n: int) -> dict[str, Any]:
        log: Any = Counted()
        figures = reinforce(
            policy, reference, domains, case.tasks, {case.domain.name: case.budget}, settings, advantage, n,
            config.machine, log,
        )  # fmt: skip
        return {"written": figures["length"] * EPISODES, "loss": figures["loss"], "reward": figures["reward"]}

    return run


Round = Callable[[int], dict[str, Any]]


def at(config: Config, setting: Mapping[str, int]) -> Config:
    """With this of the machine block changed."""
    machines: dict[str, Any] = {name: replace(block, **setting) for name, block in config.machines.items()}  # type: ignore[arg-type]
    return replace(config, machines=machines)


def quickest(make: Callable[[Config], Round], config: Config) -> tuple[Round, dict[str, int]]:
    """Ours in its fastest setting, warm, and the setting."""
    tried = list[tuple[float, Round, dict[str, int]]]()
    for values in OURS:
        setting = dict(zip(SETTING, values, strict=True))
        run = make(at(config, setting))
        run(0)
        tried.append((seconds(run, 0)[1], run, setting))
        print(f"ours: {setting}, CPU time {tried[-1][0]:.2f} s", flush=True)
    _, run, setting = min(tried, key=lambda one: one[0])
    return run, setting


def fastest(python: Path, folder: Path, jobs: Sequence[Mapping[str, Any]]) -> Peer:
    """The peer in its fastest setting, warm."""
    tried = list[tuple[float, Peer]]()
    for job in jobs:
        peer = Peer(python, folder, job)
        peer.round()
        second = peer.round()
        rate = second["cpu_s"] / (second["tokens"] if job["case"] == "sft" else 1)
        print(f"peer: {job['rows']} rows × {job['accumulation']}, CPU time {second['cpu_s']:.2f} s", flush=True)
        tried.append((rate, peer))
    best = min(tried, key=lambda pair: pair[0])[1]
    for _, peer in tried:
        if peer is not best:
            peer.close()
    return best


def alternated(
    ours: Mapping[str, Round], peer: Peer, rounds: int, per: Callable[[dict[str, Any]], float]
) -> dict[str, dict[str, Any]]:
    """Each of ours against the peer, ``rounds`` times one after the other; ``per`` is what of a round's report its time
    is divided by."""
    timed: dict[str, list[tuple[Timed, Timed]]] = {name: [] for name in ours}
    last: dict[str, dict[str, Any]] = {}
    for run in ours.values():
        run(0)
    for n in range(1, rounds + 1):
        found = peer.round()
        theirs = found["s"] / per(found), found["cpu_s"] / per(found)
        last["peer"] = found
        for name, run in ours.items():
            took = seconds(lambda run=run: last.update({name: run(n)}))  # type: ignore[misc]  # noqa: B023
            share = per(last[name])
            timed[name].append(((took[0] / share, took[1] / share), theirs))
    peer.close()
    return {name: compared(pairs, 1) | {"ours": last[name], "peer": last["peer"]} for name, pairs in timed.items()}


def supervised(
    python: Path, folder: Path, config: Config, rounds: int, threads: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Tokens a second of packed SFT. TRL packs no model with short convolutions without a GPU (transformers 5.23:
    "`causal_conv1d_fn` can't keep packed sequences apart without `causal_conv1d`"), so both train a Qwen3-MoE of the
    student's sizes."""
    found = demonstrations(TRAINED_ON, SEEN, 60, 2)
    scratch = replace(config.model.scratch, family="qwen3_moe", induction=False)
    student = untrained(replace(config, model=replace(config.model, scratch=scratch)), found, config.seed)
    keep(student, folder / "qwen3_moe")
    samples = [render_trajectory(student.renderer, DOMAINS, t) for t in found]
    longest = max(len(sample.ids) for sample in samples)
    with (folder / "samples.jsonl").open("w") as file:
        for sample in samples:
            labels = [t if trained else -100 for t, trained in zip(sample.ids, sample.loss_mask, strict=True)]
            print(json.dumps({"input_ids": sample.ids, "labels": labels}), file=file)
    jobs = [
        {"case": "sft", "student": "qwen3_moe", "threads": threads, "steps": UPDATES, "lr": TINY.lr,
         "max_length": length, "rows": rows, "accumulation": accumulation}
        for length, rows, accumulation in ROWS
        if length >= longest
    ]  # fmt: skip
    peer = fastest(python, folder, jobs)

    def ours(placed: Config) -> Round:
        def run(n: int) -> dict[str, Any]:
            log: Any = Counted()
            figures = fit(student.model, samples, UPDATES * TINY.batch_tokens, TINY, n, placed.machine, log)
            return {"tokens": log.counted, "loss": figures["final_loss"]}

        return run

    run, mine = quickest(ours, config)
    row = alternated({"packed": run}, peer, rounds, lambda report: report["tokens"])["packed"]
    row |= {f"{who}_tokens_per_s": 1 / row[f"{who}_s"] for who in ("ours", "peer")}
    print(
        f"sft: ours {row['ours_tokens_per_s']:,.0f} tokens/s, TRL {row['peer_tokens_per_s']:,.0f}, {said(row)}",
        flush=True,
    )
    setting = {key: peer.job[key] for key in ("max_length", "rows", "accumulation")}
    parameters = sum(p.numel() for p in student.model.parameters())
    return [
        row
        | {
            "case": "sft",
            "parameters": parameters,
            "samples": len(samples),
            "longest": longest,
            "our_setting": mine,
            "peer_setting": setting,
        }
    ], peer.versions


def steps(
    part: str, python: Path, folder: Path, config: Config, rounds: int, threads: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Episodes a second of a whole step: rollouts, teacher or reference, update."""
    renderer = load_checkpoint(folder / "student", config.machine).renderer
    case = case_of(part, config, renderer)
    policy = policy_of(folder, case, config)
    job = job_of(part, case, policy, folder, config, threads)
    peer = fastest(python, folder, [job | {"rows": rows, "accumulation": a} for rows, a in VARIANTS])
    if part.startswith("grpo"):
        run, setting = quickest(lambda placed: reinforce_round(folder, case, placed), config)
        ours = {"grpo": run}
    else:
        run, setting = quickest(lambda placed: distil_round(folder, case, placed, LOSSES["full"]), config)
        ours = {"full": run, "sva": distil_round(folder, case, at(config, setting), LOSSES["sva"])}
    played = rollout(
        {case.domain.name: case.domain}, case.tasks * (EPISODES // len(case.tasks)), policy,
        {case.domain.name: case.budget}, 1.0, 0,
    )  # fmt: skip
    about = described(played) | {"peer_setting": {key: peer.job[key] for key in ("rows", "accumulation")}}
    rows = []
    for name, row in alternated(ours, peer, rounds, lambda report: 1.0).items():
        row |= {f"{who}_episodes_per_s": EPISODES / row[f"{who}_s"] for who in ("ours", "peer")}
        row["peer"]["written"] = row["peer"]["metrics"]["completions/mean_length"] * EPISODES
        print(
            f"{part}, {name}: {EPISODES} episodes, ours {row['ours_s']:.2f} s, TRL {row['peer_s']:.2f} s, {said(row)}; "
            f"written {row['ours']['written']:,.0f} and {row['peer']['written']:,.0f}",
            flush=True,
        )
        rows.append(row | {"case": part, "ours_is": name, "our_setting": setting, **about})
    return rows, peer.versions


def described(played: Sequence[Trajectory]) -> dict[str, float]:
    """What an episode is like."""
    count, calls = len(played), [t.tool_calls for t in played]
    return {
        "episodes": count,
        "calls_mean": sum(calls) / count,
        "calls_max": max(calls),
        "tokens_mean": sum(len(t.ids) for t in played) / count,
        "written_mean": sum(sum(t.loss_mask) for t in played) / count,
        "solved": sum(t.verdict.passed for t in played) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", type=Path, default=Path(".peers/trl"), help="TRL's environment")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--tokens", type=int, default=1_500_000, help="of the student's training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load()
    python = installed(options.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints(config, folder, options.checkpoint, options.teacher, options.tokens)
        student = load_checkpoint(folder / "student", config.machine)
        for part in options.parts:
            if part == "sft":
                rows, versions = supervised(python, folder, config, options.rounds, options.threads)
            else:
                rows, versions = steps(part, python, folder, config, options.rounds, options.threads)
            result: dict[str, Any] = read_json(OUT) if OUT.exists() else {"rows": []}
            result["rows"] = [row for row in result["rows"] if row["case"] != part] + rows
            result["student"] = {"hash": student.hash, "parameters": sum(p.numel() for p in student.model.parameters())}
            result["machine"] = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
            write_json(OUT, result | {"versions": versions})


if __name__ == "__main__":
    main()
