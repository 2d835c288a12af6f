"""What a second objective on the same rollouts costs in teacher scores: nothing but a read.

    python benchmarks/scores.py --checkpoint FOLDER --teacher FOLDER [--rounds 7]

64 episodes of ``search`` with 2 to 14 calls, as in ``trl_peers.py``, which makes the two checkpoints where none are
named, are scored as the profile's objective wants it, through a cache that was just opened and is empty; then, through
one that was just opened on what that left, as others want it. Ratios are the second's time by the first's, a round at a
time, and what was read is compared with what the teacher says. Writes docs/results/scores.json.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from decode import compared, seconds
from trl_peers import CALLS, EPISODES, HORIZONS, checkpoints, tasks_of

from openhorizon.agent.rollout import rollout
from openhorizon.artifacts import write_json
from openhorizon.config import load
from openhorizon.domains import DOMAINS
from openhorizon.model.load import load_teacher
from openhorizon.model.sampler import load_policy
from openhorizon.train.objectives import wanted
from openhorizon.train.score_cache import ScoreCache
from openhorizon.train.scores import TeacherScores, score

OUT = Path("docs/results/scores.json")
SECOND = {
    "gen_kl, same k": {"support_loss": "gen_kl"},
    "tail, k = 16": {"support_loss": "tail", "top_k": 16},
    "sva, 95% of the mass": {"top_mass": 0.95},
    "sampled": {"support_loss": "sampled"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--tokens", type=int, default=1_500_000, help="of the student's training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, rows = load(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints(config, folder, options.checkpoint, options.teacher, options.tokens)
        policy = load_policy(folder / "student", config.machine)
        teacher = load_teacher(folder / "teacher", "search", config.machine).checkpoint
        budget = replace(config.budget["search"], slack=0.0, extra=CALLS)
        tasks = tasks_of(DOMAINS["search"], HORIZONS, EPISODES)
        episodes = rollout(DOMAINS, tasks, policy, {"search": budget}, 1.0, 0)
        written = sum(sum(t.loss_mask) for t in episodes)
        first, kept = wanted(config.distill), list[TeacherScores]()

        def cached(place: Path, wish: object) -> None:
            kept[:] = ScoreCache(place).score(
                [teacher.model], teacher.hash, episodes, wish, policy.never, config.machine  # type: ignore[arg-type]
            )  # fmt: skip

        for n, (what, changed) in enumerate(SECOND.items()):
            wish = wanted(replace(config.distill, **changed))  # type: ignore[arg-type]
            cached(folder / f"warm{n}", first)
            timed = []
            for round_ in range(options.rounds):
                place = folder / f"{n}-{round_}"
                made = seconds(cached, place, first)
                timed.append((made, seconds(cached, place, wish)))
            direct = score([teacher.model], teacher.hash, episodes, wish, policy.never, config.machine)
            same = all(
                torch.equal(a.support_NK, b.support_NK)
                and torch.equal(a.logprobs_NK, b.logprobs_NK)
                and torch.equal(a.tail_mass_N, b.tail_mass_N)
                for a, b in zip(kept, direct, strict=True)
            )
            row = compared(timed, 1)
            size = sum(path.stat().st_size for path in place.iterdir())
            shares = {key.replace("ratio", "share"): value for key, value in row.items() if "ratio" in key}
            rows.append({
                "second": what, "first_s": row["ours_s"], "second_s": row["peer_s"], "repeats": row["repeats"],
                "same": same, "bytes": size, **shares,
            })  # fmt: skip
            print(
                f"{what:24} first {row['ours_s'] * 1e3:7.1f} ms, second {row['peer_s'] * 1e3:6.2f} ms, "
                f"{row['ratio']:.1%} [{row['ratio_min']:.1%}, {row['ratio_max']:.1%}], same {same}, "
                f"{size / 1e6:.1f} MB",
                flush=True,
            )
    about = {"episodes": len(episodes), "tokens": sum(len(t.ids) for t in episodes), "written": written}
    machine = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
    write_json(OUT, {"rows": rows, "k": first.top_k, "machine": machine} | about)


if __name__ == "__main__":
    main()
