"""The sandbox: what it gives, what it takes away, what it leaves behind. The attacks themselves are in attacks/."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from openhorizon import cli
from openhorizon.sandbox import (
    OPT_OUT,
    Limits,
    Result,
    SandboxUnavailable,
    Workspace,
    cage,
    close_workers,
    filter,
    open_workspace,
    workers,
)
from tests.attacks import ATTACKS, Attack

ROOT = Path(__file__).parents[1]
CONTINUOUS = bool(os.environ.get("CI") or os.environ.get("OPENHORIZON_CI"))
LIMITS = Limits(wall_s=20, cpu_s=20)
# What an attack may use: small, so that bombs go off quickly.
TIGHT = Limits(
    wall_s=8, cpu_s=2, memory_mb=256, processes=24, output_chars=4000, file_mb=16, workspace_mb=64, files=1000
)
LATE_S = 20.0  # a busy machine may be this late, but no later
MEMORY_BOUND_MB = 1200  # of all processes of an attack: 256 and what was touched before the watch saw it


def _usable() -> str:
    """Empty, or why the sandbox cannot be had here."""
    try:
        with open_workspace() as workspace:
            assert workspace.python("print(1)").output == "1\n"
    except SandboxUnavailable as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    """Elsewhere these tests may be skipped; in CI a missing sandbox is a failure."""
    why = _usable()
    if why and CONTINUOUS:
        pytest.fail(f"CI must have the sandbox: {why}")
    if why:
        pytest.skip(why)
    yield
    close_workers()


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with open_workspace(limits=LIMITS) as opened:
        yield opened


# ------------------------------------------------------------------------------------------------ what it gives


def test_python_prints_and_exits_as_an_interpreter_would(workspace: Workspace) -> None:
    assert workspace.python("print(6 * 7)") == Result(0, "42\n", False, False)
    assert workspace.python("raise SystemExit(3)") == Result(3, "", False, False)
    assert workspace.python("raise SystemExit('why')") == Result(1, "why\n", False, False)
    failed = workspace.python("x = 1\nassert x == 2, 'no'")
    assert failed.exit_code == 1
    assert [line for line in failed.output.splitlines() if "^" not in line] == [
        "Traceback (most recent call last):",
        '  File "<code>", line 2, in <module>',
        "    assert x == 2, 'no'",
        "AssertionError: no",
    ]
    assert "SyntaxError" in workspace.python("x = = 1").output
    assert workspace.python("import os; os.kill(os.getpid(), 15)").exit_code == 128 + 15
    assert workspace.python("import atexit; atexit.register(print, 'last'); print('first')").output == "first\nlast\n"
    late = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()"
    assert workspace.python(late).output == "late\n"
    assert workspace.python("print(__name__, __import__('os').getcwd())").output == "__main__ /work\n"


def test_standard_output_and_error_keep_their_order(workspace: Workspace) -> None:
    code = (
        "import os, sys\nfor i in range(20):\n    print(i, file=(sys.stdout, sys.stderr)[i % 2])\nos.system('echo x')"
    )
    assert workspace.python(code).output == "".join(f"{i}\n" for i in range(20)) + "x\n"
    assert workspace.bash("echo 1; echo 2 >&2; python3 -c 'print(3)'; echo 4").output == "1\n2\n3\n4\n"


def test_files_last_as_long_as_the_workspace_and_nothing_else_does(workspace: Workspace) -> None:
    workspace.write("in/data.csv", b"a,b\n1,2\n")
    assert workspace.python("x = 5; print(open('in/data.csv').read()); open('in/out', 'w').write('y')").exit_code == 0
    assert workspace.read("in/out") == b"y"
    assert workspace.bash("cat in/out; echo z >in/data.csv; ls -R").output == "y.:\nin\n\n./in:\ndata.csv\nout\n"
    assert workspace.read("in/data.csv") == b"z\n"
    workspace.write("in/data.csv", b"new")
    assert workspace.read("in/data.csv") == b"new"
    assert "NameError" in workspace.python("print(x)").output
    big = secrets.token_bytes(3_000_000)
    workspace.write("big", big)
    assert workspace.read("big") == big
    assert workspace.bash("wc -c <big").output == "3000000\n"


def test_the_same_code_gives_the_same_output_in_every_worker() -> None:
    code = """
        import os, random, subprocess, sys, time
        import numpy
        print(hash("text"), {"a", "b", "c"}, random.random(), numpy.random.rand(), os.environ["TZ"], time.localtime(0))
        print(sys.argv, sys.path, sorted(os.environ.items()), os.getpid(), os.getuid(), os.listdir("/"))
        print(subprocess.run(["python3", "-c", "print(hash('text'))"], capture_output=True, text=True).stdout)
    """
    outputs = set()
    for _ in range(2):
        with open_workspace(limits=LIMITS, preload=("numpy",)) as opened:
            outputs |= {opened.python(textwrap.dedent(code)) for _ in range(2)}
        close_workers()
    assert len(outputs) == 1
    assert outputs.pop().exit_code == 0


def test_preloaded_modules_are_there_before_the_code_runs() -> None:
    seen = "import sys; print('sklearn.linear_model' in sys.modules)"
    with open_workspace(limits=LIMITS, preload=("sklearn.linear_model",)) as opened:
        assert opened.python(seen).output == "True\n"
        fit = "import numpy as n\nfrom sklearn.linear_model import LinearRegression as L\n"
        assert opened.python(fit + "print(L().fit([[0], [1]], [1, 3]).predict([[2]]).round(6))").output == "[5.]\n"
    with open_workspace(limits=LIMITS) as opened:
        assert opened.python(seen).output == "False\n"
    with pytest.raises(ValueError, match="no_such_module"):
        open_workspace(preload=("no_such_module",))
    assert not issubclass(ValueError, SandboxUnavailable)


def test_limits_end_a_call_and_say_so() -> None:
    with open_workspace(limits=replace(TIGHT, wall_s=0.5)) as opened:
        began = time.monotonic()
        result = opened.python("print('begun', flush=True)\nimport time; time.sleep(60)")
        assert result == Result(137, "begun\n", timed_out=True)
        assert time.monotonic() - began < LATE_S
        assert opened.bash("sleep 60").timed_out
        assert opened.python("print(1)") == Result(0, "1\n")
    with open_workspace(limits=replace(TIGHT, cpu_s=1)) as opened:
        assert opened.python("while True: pass").timed_out
        # Several processes share the limit: none of these would reach it alone.
        assert opened.python("import os\nfor _ in range(3): os.fork()\nwhile True: pass").timed_out
    with open_workspace(limits=TIGHT) as opened:
        assert "MemoryError" in opened.python("x = bytearray(1 << 30)").output
        result = opened.python("print('x' * 10_000)")
        assert result == Result(0, "x" * TIGHT.output_chars, cut=True)
        wide = opened.python("print('€' * (4000 - 1))")
        assert wide == Result(0, "€" * 3999 + "\n")
    with pytest.raises(ValueError, match="memory_mb"):
        Limits(memory_mb=0)


def test_calls_of_several_threads_do_not_mix() -> None:
    found: dict[int, list[Result]] = {}

    def use(number: int) -> None:
        with open_workspace({"me": str(number).encode()}, LIMITS) as opened:
            found[number] = [
                opened.python("import time; time.sleep(0.05); print(open('me').read(), end='')") for _ in range(5)
            ]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [Result(0, str(number))] * 5 for number in range(6)}


def test_a_worker_started_by_a_thread_outlives_it() -> None:
    """The kernel counts the death of the *thread* that started a process as the death of its parent."""
    close_workers()
    opened: list[Workspace] = []
    thread = threading.Thread(target=lambda: opened.append(open_workspace(limits=LIMITS)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with opened[0] as workspace:
        worker = _worker()
        assert workspace.python("print(1)").output == "1\n"
        assert _worker() is worker and worker.alive


def test_a_closed_workspace_refuses(workspace: Workspace) -> None:
    workspace.close()
    workspace.close()
    for use in (lambda: workspace.python("1"), lambda: workspace.read("x"), lambda: workspace.write("x", b"")):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_files_survive_the_death_of_the_worker(workspace: Workspace) -> None:
    workspace.write("a/kept", b"x")
    workspace.bash("ln -s /etc/passwd a/link; mkfifo a/pipe")
    begun = threading.Timer(0.3, lambda: os.kill(_worker().process.pid, signal.SIGKILL))
    begun.start()
    assert workspace.python("import time; time.sleep(20)").exit_code == 137
    assert workspace.bash("cat a/kept; ls a") == Result(0, "xkept\n")


# --------------------------------------------------------------------------------------------- what it takes away


@dataclass
class Arena:
    """What attacks aim at, outside of the sandbox."""

    folder: Path
    names: dict[str, str]
    secrets: list[str]
    contacts: list[str]
    other: Workspace


def _listen(contacts: list[str], found: socket.socket, name: str) -> None:
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                if found.type == socket.SOCK_DGRAM:
                    found.recv(100)
                else:
                    found.accept()[0].close()
                contacts.append(name)

    threading.Thread(target=serve, daemon=True).start()


@pytest.fixture(scope="module")
def arena(sandbox: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena")
    folder.chmod(0o755)
    token = secrets.token_hex(8)
    kept = {kind: f"SECRET-OF-{kind}-{token}" for kind in ("ENVIRONMENT", "FILE", "OTHER", "CODE", "NAME")}
    (folder / "secret.txt").write_text(kept["FILE"])
    (folder / "canary.txt").write_text("unharmed")
    (folder / "canary.txt").chmod(0o666)
    contacts: list[str] = []
    listeners = {name: socket.socket(family, kind) for name, family, kind in (
        ("tcp", socket.AF_INET, socket.SOCK_STREAM),
        ("udp", socket.AF_INET, socket.SOCK_DGRAM),
        ("unix", socket.AF_UNIX, socket.SOCK_STREAM),
        ("abstract", socket.AF_UNIX, socket.SOCK_STREAM),
    )}  # fmt: skip
    listeners["tcp"].bind(("0.0.0.0", 0))
    listeners["udp"].bind(("0.0.0.0", 0))
    listeners["unix"].bind(str(folder / "socket"))
    listeners["abstract"].bind(f"\0arena-{token}")
    for name, found in listeners.items():
        if found.type == socket.SOCK_STREAM:
            found.listen()
        _listen(contacts, found, name)
    address = next(
        (a.address for many in psutil.net_if_addrs().values() for a in many
         if a.family == socket.AF_INET and a.address != "127.0.0.1"), "127.0.0.1",
    )  # fmt: skip
    # The listeners do hear who may speak to them.
    socket.create_connection(("127.0.0.1", listeners["tcp"].getsockname()[1])).close()
    _wait_for(lambda: contacts == ["tcp"])
    contacts.clear()
    os.environ["OPENHORIZON_TEST_SECRET"] = kept["ENVIRONMENT"]
    close_workers()
    with open_workspace({"flag.txt": kept["OTHER"].encode(), kept["NAME"]: b""}, TIGHT) as other:
        assert other.python(f"x = {kept['CODE']!r}\nprint(x)").output.strip() == kept["CODE"]
        assert other.bash(f"echo {kept['CODE']}").output.strip() == kept["CODE"]
        assert other._home is not None
        names = {
            "PORT": str(listeners["tcp"].getsockname()[1]),
            "UDP": str(listeners["udp"].getsockname()[1]),
            "HOST": address,
            "SOCKET": str(folder / "socket"),
            "ABSTRACT": f"arena-{token}",
            "SECRET": str(folder / "secret.txt"),
            "CANARY": str(folder / "canary.txt"),
            "FOLDER": str(folder),
            "CHECKOUT": str(ROOT),
            "PID": str(os.getpid()),
            "OTHER": str(other._home.number),
        }
        yield Arena(folder, names, list(kept.values()), contacts, other)
    del os.environ["OPENHORIZON_TEST_SECRET"]
    for found in listeners.values():
        found.close()


def test_there_are_enough_attacks() -> None:
    assert len({(attack.kind, attack.code, attack.after) for attack in ATTACKS}) >= 200
    assert len({(attack.category, attack.kind, attack.name) for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("category", list(dict.fromkeys(attack.category for attack in ATTACKS)))
def test_no_attack_succeeds(arena: Arena, category: str) -> None:
    worker = _worker()
    successes = []
    for attack in ATTACKS:
        if attack.category == category:
            successes += [f"{attack.category}: {attack.kind}: {attack.name}: {harm}" for harm in _harm(arena, attack)]
    assert not successes, "\n".join(successes)
    assert _worker() is worker, "the worker had to be replaced"


def _harm(arena: Arena, attack: Attack) -> list[str]:
    """Run an attack; every harm that it did."""
    found = []
    code = re.sub("@([A-Z]+)@", lambda match: arena.names[match[1]], attack.code)
    with open_workspace({"mine.txt": b"mine"}, replace(TIGHT, wall_s=attack.wall_s)) as own:
        with _peak_memory() if attack.category in ("memory", "processes") else contextlib.nullcontext([0]) as peak_mb:
            began = time.monotonic()
            result = own.python(code) if attack.kind == "python" else own.bash(code)
            took = time.monotonic() - began
        text = result.output
        for what, name in attack.after:
            name = re.sub("@([A-Z]+)@", lambda match: arena.names[match[1]], name)
            with contextlib.suppress(ValueError):
                text += own.read(name).decode("utf-8", "replace") if what == "read" else ""
                if what == "write":
                    own.write(name, b"from the parent")
        if re.search(r"(?<!['\"])\bHARM", result.output):
            found.append(f"says so: {result.output[:300]}")
        found += [f"knows {secret}" for secret in arena.secrets if secret in text]
        if took > attack.wall_s + LATE_S:
            found.append(f"took {took:.1f} s")
        if len(result.output) > TIGHT.output_chars:
            found.append(f"{len(result.output)} characters came out")
        if peak_mb[0] > MEMORY_BOUND_MB:
            found.append(f"took {peak_mb[0]} MB")
        if re.search(r"(_exit|SystemExit)\(7\)", code) and result.exit_code != 7:
            found.append(f"exit code {result.exit_code} instead of 7")
        if not _settled():
            found.append(f"processes are left: {_processes()}")
        if "alive" in code:
            own.bash("rm -f alive; sleep 0.1")  # a writer that lives would make it anew
        after = own.python(
            "import os; print(6 * 7, os.path.exists('alive'), os.listdir('/tmp'), os.listdir('/dev/shm'))"
        )
        if after != Result(0, "42 False [] []\n"):
            found.append(f"the next call here: {after}")
    after = arena.other.bash("echo $(cat flag.txt) $(ls | wc -l) $LEFT $(umask)")
    if after != Result(0, f"{arena.secrets[2]} 2 0022\n"):
        found.append(f"the next call elsewhere: {after}")
    if arena.contacts:
        found.append(f"reached {arena.contacts}")
        arena.contacts.clear()
    if (arena.folder / "canary.txt").read_text() != "unharmed":
        found.append("the canary is dead")
        (arena.folder / "canary.txt").write_text("unharmed")
    if sorted(path.name for path in arena.folder.iterdir()) != ["canary.txt", "secret.txt", "socket"]:
        found.append("the folder outside has changed")
    return found


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Sum over the worker's processes of what each has to itself, in MB, at its peak."""
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            total = 0
            for process in _processes():
                with contextlib.suppress(psutil.Error):
                    usage = process.memory_info()
                    total += usage.rss - usage.shared
            peak[0] = max(peak[0], total >> 20)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _worker() -> workers.Worker:
    return workers.worker(())


def _processes() -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(_worker().process.pid).children(recursive=True))
    return []


def _settled() -> bool:
    """Bubblewrap's first process, the worker's two, and the spare child with its anchor; nobody else."""
    return _wait_for(lambda: len(_processes()) <= 5)


def _wait_for(condition: object, seconds: float = 10.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_the_judge_sees_harm_where_there_is_no_sandbox(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same judgement on attacks that do no lasting damage, with the sandbox off: each must be found out."""
    wanted = {("network", "tcp4"), ("network", "unix stream"), ("network", "unix abstract"), ("read", "@SECRET@")}
    wanted |= {("read", "/proc/@PID@/environ"), ("read", "@FOLDER@"), ("write", "@CANARY@"), ("links", "to the secret")}
    chosen = [attack for attack in ATTACKS if (attack.category, attack.name) in wanted]
    assert len(chosen) == len(wanted)
    found = {attack.name: _harm_alone(arena, attack, monkeypatch) for attack in chosen}
    assert found.pop("to the secret") == []  # the parent follows no link, sandbox or not
    assert all(found.values()), found


def _harm_alone(arena: Arena, attack: Attack, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patch:
        patch.setenv(OPT_OUT, "1")
        with open_workspace({"flag.txt": arena.secrets[2].encode(), "two": b""}, TIGHT) as other:
            # /tmp is the machine's then: what the next call sees there is no harm.
            return [harm for harm in _harm(replace(arena, other=other), attack) if not harm.startswith("the next call")]


# ------------------------------------------------------------------------------------- links while they are changed


def test_reading_and_writing_win_every_race_against_links(arena: Arena) -> None:
    swap = """
        import os, time
        end = time.monotonic() + 1.5
        os.makedirs("real", exist_ok=True)
        open("real/secret.txt", "w").write("mine")
        open("real/canary.txt", "w").write("mine")
        while time.monotonic() < end:
            for name, link in (("d", "@FOLDER@"), ("f", "@SECRET@")):
                try: os.symlink(link, "l")
                except OSError: pass
                try: os.rename("l", name)
                except OSError: pass
                try: os.remove(name)
                except OSError: pass
            try: os.rename("real", "d"); open("f", "w").write("mine"); os.rename("d", "real")
            except OSError: pass
    """.replace("@FOLDER@", str(arena.folder)).replace("@SECRET@", str(arena.folder / "secret.txt"))
    with open_workspace(limits=LIMITS) as opened:
        thread = threading.Thread(target=opened.python, args=(textwrap.dedent(swap),))
        thread.start()
        read = set()
        while thread.is_alive():
            for name in ("f", "d/secret.txt"):
                with contextlib.suppress(ValueError):
                    read.add(opened.read(name))
            with contextlib.suppress(ValueError):
                opened.write("d/canary.txt", b"harm")
    assert read <= {b"mine", b""}
    assert (arena.folder / "canary.txt").read_text() == "unharmed"


# ------------------------------------------------------------------------------------------------- the call filter


def _run_filter(program: bytes, number: int, architecture: int, first: int) -> int:
    """What the kernel would do with a filter: a slow interpreter of the few instructions that it has."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, first, 0, 0, 0, 0, 0)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += yes if holds else no


@pytest.mark.parametrize("machine", sorted(filter.ARCHITECTURES))
def test_the_filter_denies_what_its_table_says(machine: str) -> None:
    column, audit, clone, clone3, socketpair = filter.ARCHITECTURES[machine]
    program = filter.program(machine)
    denied = {numbers[column] for numbers in filter.DENIED.values()} | {clone3}
    for number in range(500):
        if number not in (clone, socketpair):
            allowed = _run_filter(program, number, audit, 0) == filter.ALLOW
            assert allowed == (number not in denied), number
    assert _run_filter(program, socketpair, audit, socket.AF_UNIX) == filter.ALLOW
    assert _run_filter(program, socketpair, audit, socket.AF_INET) != filter.ALLOW
    assert _run_filter(program, clone, audit, signal.SIGCHLD) == filter.ALLOW
    assert _run_filter(program, clone, audit, 0x003D0F00) == filter.ALLOW  # a thread
    for flag in (0x80, 0x8000, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert _run_filter(program, clone, audit, flag | signal.SIGCHLD) != filter.ALLOW
    assert _run_filter(program, 0, audit ^ 0x80000000, 0) == filter.KILL
    if machine == "x86_64":
        assert _run_filter(program, 0x40000000, audit, 0) == filter.KILL
    with pytest.raises(ValueError, match="riscv64"):
        filter.program("riscv64")


# ------------------------------------------------------------------------------------------------- what stays behind

RUN = """
    import os, signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a job in the background starts with ignores it
    from openhorizon.sandbox import open_workspace
    workspace = open_workspace()
    print(workspace.python("print('ready')").output, flush=True)
    {rest}
"""


def _started(rest: str, **environment: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(RUN).replace("{rest}", rest)
    known = os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known
    )


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("bare", [False, True])
def test_no_process_outlives_its_parent(number: int, bare: bool) -> None:
    """However the parent ends, in the middle of a call that forks."""
    rest = "workspace.python('import os, time\\nos.fork() or os.setsid(); time.sleep(600)')"
    with _started(rest, **({OPT_OUT: "1"} if bare else {})) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert _wait_for(lambda: len(_family(process)) >= (4 if bare else 9))
        family = _family(process)
        process.send_signal(number)
        assert process.wait(20) != 0
        assert _wait_for(lambda: not any(_runs(child) for child in family)), family


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_normal_end_and_close_workers_leave_nothing() -> None:
    rest = "import psutil; from openhorizon import sandbox; sandbox.close_workers(); print(psutil.Process().children())"
    with _started(rest) as process:
        output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("ready\n\n[]\n", "", 0)
    with _started("pid = os.fork() or os._exit(0 if workspace.bash('echo 1').output == '1\\n' else 1)") as process:
        output, errors = process.communicate(timeout=60)  # a forked child starts workers of its own
    assert (output, errors, process.returncode) == ("ready\n\n", "", 0)


# ------------------------------------------------------------------------------------------------ without a sandbox


def test_without_bubblewrap_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    close_workers()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"apt-get install bubblewrap.*" + OPT_OUT):
        open_workspace()
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match=r"No permissions to create new namespace.*max_user_namespaces"):
        open_workspace()
    monkeypatch.setattr(cage.platform, "release", lambda: "4.19.0-1")
    with pytest.raises(SandboxUnavailable, match=r"4\.19\.0-1.*older"):
        open_workspace()


def test_the_opt_out_is_loud_and_limits_still_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    close_workers()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(OPT_OUT, "1")
    monkeypatch.setenv("OPENHORIZON_TEST_SECRET", "not handed down")
    monkeypatch.setattr(workers, "_warned", [])
    with open_workspace({"a/b": b"x"}, replace(TIGHT, wall_s=0.7)) as opened, open_workspace(preload=("json",)):
        assert opened.python("print(open('a/b').read()); open('a/c', 'w').write('y')") == Result(0, "x\n")
        assert opened.read("a/c") == b"y"
        assert opened.bash("pwd; python3 -c 'print(1)'") == Result(0, "/work\n1\n")
        assert "not handed down" not in opened.bash("env").output
        assert opened.python("import time; time.sleep(60)").timed_out
        assert "MemoryError" in opened.python("bytearray(1 << 30)").output
        assert opened.bash("setsid sleep 300 & sleep 0.1").exit_code == 0
        assert opened.bash("pgrep -f 'sleep 30[0]' || echo none").output == "none\n"
    assert capfd.readouterr().err.count("WITHOUT A SANDBOX") == 1
    monkeypatch.setenv(OPT_OUT, "0")
    with pytest.raises(SandboxUnavailable):
        open_workspace()


def test_doctor_says_whether_the_sandbox_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row() -> str:
        assert cli.main(["doctor"]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sandbox"))

    assert re.fullmatch(r"sandbox +bubblewrap \d+\.\d+\.\d+ works", row())
    close_workers()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert "apt-get install bubblewrap" in row()
        patch.setenv(OPT_OUT, "1")
        assert "OFF" in row()


def test_a_worker_that_died_while_idle_is_replaced_unnoticed() -> None:
    """As happens where a program ends all children of its own, ours among them."""

    def end_it() -> None:
        worker = workers.worker(())
        worker.process.kill()
        worker.process.wait()
        hung_up = select.poll()
        hung_up.register(worker.control, select.POLLHUP)
        assert hung_up.poll(10_000), "its inner processes end a moment later"

    with open_workspace() as workspace:
        workspace.write("kept", b"1")
        end_it()
        assert workspace.python("print(open('kept').read())").output == "1\n"
    end_it()
    with open_workspace() as workspace:
        assert workspace.python("print(2)").output == "2\n"
