"""A stage as several processes that train one model together: torchrun, in this process, starts and watches them.

Signals go on to them, and none outlives this process. When one fails or is killed torchrun ends the others, and what is
said is one line, of the one that was first. The stage's next run goes on from what was saved last.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.multiprocessing.errors.handlers import get_error_handler
from torch.distributed.elastic.rendezvous import RendezvousError

USER_ERROR = 2  # as of the command line


def run(stage: str, target: str | None, processes: int, joining: Sequence[str] | None) -> int:
    """Run the stage; its exit code. ``joining``: arguments of torchrun by which several machines find each other, with
    the environment's variables in them.

    Raises:
        ValueError: an argument names a variable that is not set or is none of torchrun's, or no machine was found.
    """
    command = ["-m", "openhorizon", "stage", stage, *(["--target", target] if target else [])]
    how = ["--standalone", "--local-addr=127.0.0.1"] if joining is None else [filled(argument) for argument in joining]
    if joining is None and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing of it leaves this machine
    logging.disable(logging.CRITICAL)  # torchrun's own account of a failure, which is told below
    try:
        with tempfile.TemporaryDirectory() as folder:  # of what failed; torchrun leaves its own behind
            torchrun.run(options([*how, f"--nproc-per-node={processes}", f"--log-dir={folder}", *command]))
    except SignalException as received:
        if received.sigval == signal.SIGINT:
            raise KeyboardInterrupt from received
        return 128 + int(received.sigval)
    except ChildFailedError as error:
        return told(stage, error)
    except RendezvousError as error:
        raise ValueError(f"machines.*.torchrun: the machines did not find each other: {error}") from error
    return 0


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """What torchrun makes of them. Raises ``ValueError`` where it does not take one."""
    try:
        with redirect_stderr(io.StringIO()) as said:
            found: argparse.Namespace = torchrun.parse_args(list(arguments))
    except SystemExit as error:
        raise ValueError(f"machines.*.torchrun: {said.getvalue().strip().splitlines()[-1]}") from error
    return found


def report_errors() -> None:
    """In one of the processes: what ends it is told to torchrun instead of printed, for one of them to be shown."""
    sys.excepthook = lambda kind, error, trace: _record(error)


def tell(message: str) -> None:
    """In one of the processes: what a user can mend, likewise."""
    _record(ValueError(message))


def _record(error: BaseException) -> None:
    get_error_handler().record_exception(error)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it is over: torchrun's signal has nothing to interrupt


def told(stage: str, error: ChildFailedError) -> int:
    """Say why the first failed, and return the exit code."""
    rank, first = min(error.failures.items(), key=lambda failure: _order(failure[1]))
    where, (message, trace) = f"process {rank} of {stage}", _recorded(first)
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        line = f"{where} was ended by {name}, and the others with it; run again, it goes on from what was saved last"
    elif first.exitcode == USER_ERROR:
        line = message.removeprefix("ValueError: ")
    else:
        print(trace, file=sys.stderr)
        line = f"{where} failed: {' '.join(message.split())}"
    print(f"openhorizon: {line}", file=sys.stderr, flush=True)
    return USER_ERROR if first.exitcode == USER_ERROR else 1


def _order(failure: ProcessFailure) -> tuple[int, int, bool]:
    """What was killed or refused comes before what failed because of it, and within a second, as torchrun tells the
    time, before what torchrun itself ended by SIGTERM."""
    terminated = failure.exitcode == -signal.SIGTERM
    killed = failure.exitcode < 0 and not terminated
    return 0 if killed else 1 if failure.exitcode == USER_ERROR else 2, failure.timestamp, terminated


def _recorded(failure: ProcessFailure) -> tuple[str, str]:
    """What a process told of its error, and where in the program that was."""
    told: Any = failure.message
    return (told["message"], told["extraInfo"]["py_callstack"]) if isinstance(told, dict) else (told, "")


def filled(argument: str) -> str:
    filled = os.path.expandvars(argument)
    if "$" in filled:
        raise ValueError(f"machines.*.torchrun: {argument!r} names a variable that is not set")
    return filled
