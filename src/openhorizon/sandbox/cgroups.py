"""A control group around each worker, where this user may make one: a bound on all its calls together.

The limits of one call are kept by resource limits and by the worker itself, everywhere. The group is the backstop that
protects the machine: it also counts what no process owns (files in memory, buffers of pipes and sockets). Where groups
cannot be made, the usual case for a normal user, there is none.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
NAME = "openhorizon-"
MEMORY_SHARE = 0.5  # of the machine, for one worker
PROCESSES = 1024
REMOVE_S = 1.0


def enclose(pid: int) -> list[Path]:
    """Put a process and all below it into groups of their own; the groups that could be made."""
    memory = int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    found = []
    for folder, limits in _places(memory).items():
        for old in folder.glob(f"{NAME}*"):
            with contextlib.suppress(OSError):  # still in use
                old.rmdir()
        group = folder / f"{NAME}{pid}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, value in limits.items():
                (group / name).write_text(str(value))
            for member in _family(pid):
                (group / "cgroup.procs").write_text(str(member))
            found.append(group)
        except OSError:
            remove([group])
    return found


def remove(groups: list[Path]) -> None:
    """Remove groups whose last process is about to end; what does not go now goes when the next worker starts."""
    deadline = time.monotonic() + REMOVE_S
    for group in groups:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.01)


def _places(memory: int) -> dict[Path, dict[str, int]]:
    """Where groups of this process could be made, by version and controller, with the limits to write there."""
    places = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own = path.lstrip("/")
        if not controllers:
            places[ROOT / own] = {"memory.max": memory, "pids.max": PROCESSES}
        elif controllers == "memory":
            places[ROOT / "memory" / own] = {"memory.limit_in_bytes": memory}
        elif controllers == "pids":
            places[ROOT / "pids" / own] = {"pids.max": PROCESSES}
    # What is not a control group's folder may still be a writable one.
    return {folder: limits for folder, limits in places.items() if (folder / "cgroup.procs").is_file()}


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            found += [int(child) for child in Path(f"/proc/{member}/task/{member}/children").read_text().split()]
    return found
