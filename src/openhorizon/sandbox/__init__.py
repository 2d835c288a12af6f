"""Runs model-written code: no network, no files but its own, bounded time, memory, processes and output.

    with open_workspace({"data.csv": b"a,b\\n1,2\\n"}, preload=("pandas",)) as workspace:
        workspace.python("import pandas; print(pandas.read_csv('data.csv').a.sum())")   # Result(0, "1\\n")
        workspace.bash("wc -l data.csv; kill -9 -1")                                    # Result(137, "1 data.csv\\n")

The paper runs code in sandboxes that it does not describe; this one is a bubblewrap per set of preloaded modules, with
a worker inside that has imported them once and forks for each call into namespaces of its own. Measured against it
(benchmarks/sandbox.py): a fresh ``bwrap python`` per call pays the interpreter's start and the imports every time; a
pool of fresh ones hides that time behind the call but still burns it, which is too dear on two cores; a fork inside one
shared sandbox is as fast, but lets one call leave processes, files and signals for the next. Forking into fresh
namespaces costs a few milliseconds and leaves nothing.

``cage.py`` what bubblewrap shows · ``worker.py`` what runs inside · ``filter.py`` which system calls are denied ·
``cgroups.py`` a bound around all of a worker ·
``workers.py`` the parent's side · ``workspace.py`` the interface. docs/sandbox.md has the threat model.
"""

from openhorizon.sandbox.cage import OPT_OUT, SandboxUnavailable
from openhorizon.sandbox.workers import close_workers
from openhorizon.sandbox.workspace import Limits, Result, Workspace, describe, open_workspace

__all__ = [
    "OPT_OUT",
    "Limits",
    "Result",
    "SandboxUnavailable",
    "Workspace",
    "close_workers",
    "describe",
    "open_workspace",
]
