"""Runs code and shell commands for the solution tree: for real, in the sandbox, each in a fresh copy of given files.

A run sees the files it is given and nothing that another run left, so its result is a property of (files, code) alone.
That is what lets a node of the tree carry a result, and what makes it sound to run a pair once a process and to
remember it: nothing else goes in. Code that draws without a seed, or prints the time, is remembered as it came the
first time. A run that hit a limit of time is never remembered: the machine went in.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from openhorizon.sandbox import Limits, Result, open_workspace

LIMITS = Limits(wall_s=60.0, cpu_s=30, memory_mb=2048, processes=64, output_chars=12_000, file_mb=16)
PRELOAD = (
    "numpy",
    "pandas",
    "sklearn.compose",
    "sklearn.dummy",
    "sklearn.ensemble",
    "sklearn.impute",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.naive_bayes",
    "sklearn.neighbors",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "sklearn.tree",
)
REMEMBERED = 4000  # runs a process
SUBMISSION = "submission.csv"


@dataclass(frozen=True)
class Bundle:
    """Files of a workspace, known by what is in them."""

    digest: str
    files: Mapping[str, bytes] = field(compare=False)


@dataclass(frozen=True)
class Run:
    """What a run printed, and the submission that it wrote, if it did."""

    ok: bool
    output: str
    submission: str | None


class _OutOfTime(Exception):
    """Carries a run past the memory."""

    def __init__(self, run: Run) -> None:
        super().__init__("out of time")
        self.run = run


def bundle(files: Mapping[str, bytes]) -> Bundle:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])} ".encode() + files[name])
    return Bundle(digest.hexdigest(), dict(files))


def run_python(files: Bundle, code: str) -> Run:
    try:
        return _run(files, "python", code)
    except _OutOfTime as slow:
        return slow.run


def run_bash(files: Bundle, command: str) -> Run:
    try:
        return _run(files, "bash", command)
    except _OutOfTime as slow:
        return slow.run


@functools.lru_cache(maxsize=REMEMBERED)
def _run(files: Bundle, how: str, text: str) -> Run:
    with open_workspace(files.files, LIMITS, PRELOAD) as workspace:
        result = workspace.python(text) if how == "python" else workspace.bash(text)
        try:
            submission = workspace.read(SUBMISSION).decode("utf-8", "replace")
        except ValueError:  # none was written
            submission = None
    run = Run(result.exit_code == 0 and not result.timed_out, _words(result), submission)
    if result.timed_out:
        raise _OutOfTime(run)
    return run


def _words(result: Result) -> str:
    text = result.output.rstrip()
    if result.cut:
        text += "\n... (the rest was cut)"
    if result.timed_out:
        text += "\nstopped: out of time"
    return text
