"""What the command line takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openhorizon.cli.look import (
    MLFLOW_PORT,
    PREFECT_PORT,
    compare_models,
    doctor,
    mlflow_ui,
    plan_profile,
    play,
    show_kag,
    show_lineage,
    show_params,
    show_report,
    show_trajectory,
    start_servers,
)
from openhorizon.cli.models import evaluate_model, export_model, inspect_model, run_bench, run_bridge, serve_model
from openhorizon.cli.recipe import reproduce, run_stage, run_study, use_profile
from openhorizon.config import STAGES

EXAMPLES = """examples:
  openhorizon reproduce --profile smoke             the whole graph in minutes
  openhorizon play search --horizon 4 --delay 1     watch the student; --take: play yourself
  openhorizon show trajectory student --status failed --domain science
  openhorizon compare student sft                   paired tests, tasks won and lost
  openhorizon bench bfcl --model student --limit 20
  openhorizon serve student                         an OpenAI-compatible endpoint on loopback
  openhorizon plan --profile a1                     tokens, time, memory and cost before a run
  openhorizon COMMAND --help                        what a command takes"""


def parser() -> argparse.ArgumentParser:
    """All commands. What each does is its function's first line."""
    made = argparse.ArgumentParser(
        prog="openhorizon", description="The Agents-A1 recipe, end to end.", epilog=EXAMPLES, formatter_class=_Help
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(command=function)
        return command

    whole = add("reproduce", reproduce)
    whole.add_argument("--profile", help="merge this profile into params.yaml first")
    whole.add_argument("--runner", choices=("threads", "ray"), help="where stages run (default: in this process)")
    study = add("study", run_study)
    study.add_argument("study", metavar="NAME", help="a folder of studies/")
    study.add_argument("--profile", help="the size: one of the study's sizes (default: the profile of params.yaml)")
    study.add_argument("--seeds", type=int, help="how many (default: the size's own)")
    study.add_argument("--short", action="store_true", help="the size that the tests run: the effect's direction only")
    stage = add("stage", run_stage)
    stage.add_argument("name", choices=STAGES)
    stage.add_argument("--target", help="a domain (generate, teach), a baseline, or a model (evaluate)")
    stage.add_argument(
        "--shard", help="of generate: make this shard alone (a number, or heldout), for its stage to use"
    )
    add("profile", use_profile).add_argument("profile")
    add("report", show_report)
    shown = commands.add_parser("show", help="Print the params, a knowledge-action graph, an episode, or a lineage.")
    what = shown.add_subparsers(required=True, metavar="WHAT")
    what.add_parser("params", help=show_params.__doc__).set_defaults(command=show_params)
    back = what.add_parser("lineage", help=show_lineage.__doc__)
    back.set_defaults(command=show_lineage)
    back.add_argument("name", help="base, sft, teacher@DOMAIN, baseline@NAME, student, or a stage as in dvc.yaml")
    back.add_argument("--out", type=Path, help="write all of it to this JSON file, too")
    kag = what.add_parser("kag", help=show_kag.__doc__)
    kag.set_defaults(command=show_kag)
    kag.add_argument("domain")
    kag.add_argument("--out", type=Path, help="the picture, a PNG (default: reports/kag_DOMAIN.png)")
    kag.add_argument("--seed", type=int, default=0, help="which trajectory is drawn")
    kag.add_argument("--steps", type=int, default=4, help="how many of its last actions")
    seen = what.add_parser("trajectory", help=show_trajectory.__doc__)
    seen.set_defaults(command=show_trajectory)
    seen.add_argument("source", metavar="MODEL", help="an evaluated model, or a file of trajectories (.parquet)")
    seen.add_argument("--domain", help="only of this one")
    seen.add_argument("--status", help="only SOLVED, FAILED, TRUNCATED or ABORTED ones")
    played = add("play", play)
    played.add_argument("domain")
    played.add_argument("--model", default="student", help="who plays (default: student)")
    played.add_argument("--take", action="store_true", help="play it yourself")
    played.add_argument("--horizon", type=int, help="a task that needs so many calls")
    played.add_argument("--temperature", type=float, help="0 is greedy (default: the evaluation's)")
    played.add_argument("--seed", type=int, default=0, help="of the sampling")
    played.add_argument("--delay", type=float, default=0.0, help="seconds between turns")
    for command in (seen, played):
        command.add_argument("--task", help="its id")
        command.add_argument("--nth", type=int, default=0, help="of those that fit (default: 0, the first)")
        command.add_argument("--json", action="store_true", help="one line for a script")
    planned = add("plan", plan_profile)
    planned.add_argument("--profile", help="of profiles/ (default: params.yaml as it is)")
    planned.add_argument("--machine", help="of the assumptions (default: cpu from scratch, else h100)")
    planned.add_argument("--lengths", help="of episodes, in the assumptions (default: laptop from scratch, else a1)")
    planned.add_argument("--assumptions", type=Path, help="a file whose blocks take the place of the shipped ones")
    planned.add_argument("--json", action="store_true", help="one line for a script")
    exported = add("export", export_model)
    exported.add_argument("model", help="base, sft, teacher@DOMAIN, baseline@NAME or student")
    exported.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    compared = add("compare", compare_models)
    for side in ("a", "b"):
        compared.add_argument(
            side, metavar=side.upper(), help="an evaluated model, a folder or file of records, RUN#MODEL"
        )
    compared.add_argument("--domain", help="only tasks of this one, such as a teacher's")
    compared.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    compared.add_argument("--out", type=Path, help="default: reports/compare/A-vs-B")
    evaluated = add("evaluate", evaluate_model)
    evaluated.add_argument("model", help="a model of this checkout, smollm2, a folder, or URL#MODEL of an endpoint")
    evaluated.add_argument("--name", help="what records and reports call it (default: the model's)")
    evaluated.add_argument("--domains", help="by commas (default: all)")
    evaluated.add_argument("--tasks", type=int, help="a domain (default: evaluate.tasks)")
    evaluated.add_argument("--temperature", type=float, help="default: that of evaluate in params.yaml; 0 is greedy")
    evaluated.add_argument("--out", type=Path, help="default: reports/evaluate/NAME")
    inspected = add("inspect", inspect_model)
    inspected.add_argument("task", help="as `inspect eval` takes it, such as interop/inspect_heldout.py")
    inspected.add_argument("--model", required=True, help="URL#MODEL of an endpoint, or a name of Inspect's own")
    inspected.add_argument("--limit", type=int, help="samples (default: all)")
    inspected.add_argument("--environment", type=Path, default=Path(".openhorizon/inspect"), help="where Inspect is")
    inspected.add_argument("--out", type=Path, help="default: reports/inspect/TASK/MODEL")
    inspected.epilog = "Behind --: what `inspect eval` takes besides, such as -- -T domain=search"
    add("bridge", run_bridge)
    served = add("serve", serve_model)
    served.add_argument("model", help="base, sft, teacher@DOMAIN, baseline@NAME, student, smollm2 or a folder")
    served.add_argument("--host", default="127.0.0.1")
    served.add_argument("--port", type=int, default=8000)
    served.add_argument("--engine", choices=("vllm", "sglang", "transformers"), help="default: the first installed")
    served.add_argument("--raw", action="store_true", help="the text as the model writes it, calls and thoughts in it")
    served.add_argument("--print", action="store_true", help="say what would be started, for another environment")
    bench = add("bench", run_bench)
    bench.add_argument("benchmark", metavar="NAME", nargs="?", help="one that --list names, or a folder of yours")
    bench.add_argument("--list", action="store_true", help="all benchmarks, what they need, and what is there")
    bench.add_argument(
        "--model", help="base, sft, teacher@DOMAIN, baseline@NAME, student, smollm2, a folder, gold, floor"
    )
    bench.add_argument("--limit", type=int, help="the first so many tasks (default: all)")
    bench.add_argument("--temperature", type=float, help="default: that of evaluate in params.yaml; 0 is greedy")
    bench.add_argument(
        "--turn-tokens", type=int, help="tokens that a turn may have (default: the benchmark's own bound)"
    )
    bench.add_argument("--calls", type=int, help="that an episode may have (default: the benchmark's own bound)")
    bench.add_argument("--user", help="URL#MODEL of the language model that plays the user, of tau2")
    bench.add_argument("--out", type=Path, help="a folder for the results (default: reports/bench/NAME/MODEL)")
    add("doctor", doctor)
    add("mlflow", mlflow_ui).add_argument("--port", type=int, default=MLFLOW_PORT)
    started = add("up", start_servers)
    started.add_argument("--prefect-port", type=int, default=PREFECT_PORT)
    started.add_argument("--mlflow-port", type=int, default=MLFLOW_PORT)
    return made


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of one command. What stands behind ``--`` is not looked at: ``inspect`` passes it on, and argparse
    would count it among the positional arguments, behind which it takes no more of them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    made = parser()
    options = made.parse_args(given[:at])
    options.arguments = given[at + 1 :]
    if options.arguments and options.command is not inspect_model:
        made.error("only `inspect` takes arguments behind --")
    return options


class _Help(argparse.RawDescriptionHelpFormatter):
    """Wide enough for a line a command."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=14, width=110)
