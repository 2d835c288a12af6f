"""The ``openhorizon`` command. Every error a user can mend is one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from openhorizon import process
from openhorizon.cli.parser import parse

USER_ERROR = 2
DEBUG_VARIABLE = "OPENHORIZON_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    process.telemetry_off()
    options = parse(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except ModuleNotFoundError as error:
        if os.environ.get(DEBUG_VARIABLE) or (error.name or "").startswith("openhorizon"):
            raise
        return _refuse(
            f"the package {error.name!r} is not installed; `make setup` installs what requirements.lock lists"
        )
    except OSError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _refuse(_os_error(error))
    except ValueError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _refuse(" ".join(str(error).split()))


def _refuse(message: str) -> int:
    _say(message)
    return USER_ERROR


def _say(message: str) -> None:
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # one of several processes, for which their launcher speaks
        from openhorizon import launch

        launch.tell(message)
    else:
        print(f"openhorizon: {message}", file=sys.stderr, flush=True)


def _os_error(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; free some and run again"
    if error.errno is None or not error.filename:
        return " ".join(str(error).split())
    return f"{error.filename}: {error.strerror}"
