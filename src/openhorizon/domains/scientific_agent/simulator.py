"""ScienceWorld's simulator: one Java process for all episodes, of one answer for one history of commands.

ScienceWorld (https://github.com/allenai/ScienceWorld, Apache-2.0) is a Scala program; the Python package
``scienceworld`` 1.2.3 holds its jar and talks to it through py4j. We start the jar ourselves and leave the package's
wrapper aside:

* its heap is capped (``HEAP_MB``; uncapped it grew to 4 GB), and one process serves every episode: each has a
  simulation of its own inside, so that episodes may be interleaved. A simulation takes up to 11 MB, so at most ``LIVE``
  are kept: beyond that one is dropped and, when it is used again, rebuilt by replaying its commands, which gives the
  same world;
* after every step the wrapper lists all valid actions, which takes longer than the step and which nobody here reads;
* the simulator draws from one global random generator and orders some sets by identity hash. We seed that generator
  before every call from (task, variation, number of the call) and make identity hashes constant
  (``-XX:hashCode=2``), so that the same commands give the same texts in every process and in any interleaving. Gold
  paths are the exception: working one out for a second time may give another, so they are worked out once, by
  scripts/index-scienceworld.

The process listens on the loopback interface alone, behind a token. It ends when its standard input closes, that is
with this process, however that ends. A process that died is replaced at the next ``Simulator.open``; sessions of the
dead one raise ``SimulatorDied``. A forked child never uses its parent's process: it starts one.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAP_MB = 1024
LIVE = 64  # simulations kept at once
START_S = 60.0  # to start; usually about 1 s
STOP_S = 5.0
VERSION = "1.2.3"  # the gold paths were worked out with it
TABLE = "object_type_ids.tsv"
INSTALL = (
    f"install Java 17 (Debian: openjdk-17-jre-headless), then: pip install py4j && "
    f"pip install --no-deps scienceworld=={VERSION}"
)


class SimulatorDied(RuntimeError):
    """The Java process is gone, or does not answer as it should: the episode cannot go on."""


class Simulator:
    """The Java process, started when first needed and again when it has died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0  # pid of the Python process that started it
        self.live: dict[Session, None] = {}
        self._gateway: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self, kind: str, variation: int, gold: bool = False) -> Session:
        """A fresh simulation of a task; with ``gold`` its gold path is worked out, which takes seconds.

        Raises:
            ValueError: Java or a package is missing, or the process does not start.
            SimulatorDied: it died while loading.
        """
        if not self.alive():
            self.close()
            self._start()
        return Session(self, self._gateway, kind, variation, gold)

    def make_room(self) -> None:
        """Drop simulations until one more may live. The last one used goes first: episodes take turns, so that it is
        the
        one that is needed last."""
        while len(self.live) >= LIVE:
            next(reversed(self.live)).drop()

    def gateway(self) -> Any:
        """To the process that runs now."""
        return self._gateway if self.alive() else None

    def alive(self) -> bool:
        return self.owner == os.getpid() and self.process is not None and self.process.poll() is None

    def close(self) -> None:
        """End the process, if it is ours and still there."""
        process, gateway, ours = self.process, self._gateway, self.owner == os.getpid()
        self.process = self._gateway = None
        self.live = {}
        if process is None or not ours:
            return
        if gateway is not None and process.poll() is None:
            gateway.close(keep_callback_server=True)
        _end(process)
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        java_gateway, command = _py4j(), _command()
        # It reads, and where it meets a new kind of object writes, a table in the folder that it runs in.
        self._folder = tempfile.TemporaryDirectory(prefix="scienceworld-")
        shutil.copy(_package() / TABLE, self._folder.name)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            cwd=self._folder.name,
        )
        assert process.stdout is not None
        # What it says first is the port and the token; the virtual machine's own complaints come in between.
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.daemon = True
        watchdog.start()
        said: list[str] = []
        port, token = 0, ""
        for line in process.stdout:
            said.append(line.strip())
            if not port and said[-1].isdigit():
                port = int(said[-1])
            elif port:
                token = said[-1]
                break
        watchdog.cancel()
        if not token:
            _end(process)
            reason = " / ".join(said[-3:]) or f"it was silent for {START_S:.0f} s"
            raise ValueError(f"ScienceWorld's Java process did not start: {reason}; {INSTALL}")
        threading.Thread(target=_drain, args=(process,), daemon=True).start()
        # Without memory management no finalizer calls a process that may be gone; we detach what we held.
        parameters = java_gateway.GatewayParameters(port=port, auth_token=token, enable_memory_management=False)
        self._gateway = java_gateway.JavaGateway(gateway_parameters=parameters)
        self.process, self.owner = process, os.getpid()
        atexit.register(self.close)


class Session:
    """One simulation inside the process."""

    def __init__(self, simulator: Simulator, gateway: Any, kind: str, variation: int, gold: bool) -> None:
        self._simulator, self._gateway = simulator, gateway
        self.kind, self.variation, self._with_gold = kind, variation, gold
        self._commands: list[str] = []
        self._closed = False
        self._held: Any = None  # the simulation; None where it was dropped
        self._errors = (_py4j("protocol").Py4JError, OSError)
        self._random = self._ask(lambda: getattr(getattr(gateway.jvm.scala.util, "Random$"), "MODULE$"))
        self._load()

    def step(self, command: str) -> str:
        """What the world answers to one command in English."""
        text = self._step(command, len(self._commands) + 1)
        self._commands.append(command)
        return text

    def score(self) -> float:
        """The task's own score in [0, 1]; 1 is passed, a negative one (a wrong focus ends the task) counts as 0."""
        return max(0.0, float(self._ask(self._server.getScore)))

    def over(self) -> bool:
        """Whether the task was completed or lost: the world answers still, but the score stands."""
        return bool(self._ask(self._server.getCompleted)) or float(self._ask(self._server.getScore)) < 0

    def question(self) -> str:
        """The task in the world's own words."""
        return str(self._ask(self._server.freeActionTaskDesc)).removeprefix("Task Description:").strip()

    def goals(self) -> str:
        """Progress by subgoal, as the simulator prints it."""
        return str(self._ask(self._server.getGoalProgressStr))

    def gold(self) -> tuple[str, ...]:
        """The gold path; only of a session that was opened for it."""
        return self._list(self._server.getGoldActionSequence)

    def kinds(self) -> tuple[str, ...]:
        """The names of all tasks."""
        return self._list(self._server.getTaskNames)

    def variations(self, split: str) -> tuple[int, ...]:
        """The variations of this task that the package counts to ``split``: train, dev or test."""
        return self._list(getattr(self._server, f"getVariations{split.title()}"))

    def close(self) -> None:
        """Let the process forget the simulation. Idempotent; nothing to do where the process is gone."""
        if not self._closed and self._simulator.alive():
            self.drop()
        self._closed = True

    def drop(self) -> None:
        """Give up the simulation, not the session: it is rebuilt when it is used again."""
        self._simulator.live.pop(self, None)
        held, self._held = self._held, None
        if held is not None:
            self._ask(lambda: self._gateway.detach(held))

    @property
    def _server(self) -> Any:
        """The simulation, rebuilt where it was dropped."""
        if self._closed or self._gateway is not self._simulator.gateway():
            raise SimulatorDied(f"ScienceWorld's Java process that ran {self.kind}/{self.variation} is gone")
        if self._held is None:
            self._load()
            for i, command in enumerate(self._commands, start=1):
                self._step(command, i)
        elif next(reversed(self._simulator.live)) is not self:
            self._simulator.live.pop(self)
            self._simulator.live[self] = None
        return self._held

    def _load(self) -> None:
        self._simulator.make_room()
        self._held = self._ask(self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface)
        self._simulator.live[self] = None
        self._seed(0)
        self._ask(lambda: self._held.load(self.kind, self.variation, "", self._with_gold))
        problem = self._ask(self._held.errorStr)
        if problem:
            self.close()
            raise ValueError(f"scienceworld: task {self.kind!r}, variation {self.variation}: {problem}")

    def _step(self, command: str, number: int) -> str:
        server = self._server
        self._seed(number)
        return str(self._ask(lambda: server.step(command)))

    def _list(self, question: Callable[[], Any]) -> tuple[Any, ...]:
        held = self._ask(question)
        values = tuple(self._ask(lambda: list(held)))
        self._ask(lambda: self._gateway.detach(held))
        return values

    def _seed(self, number: int) -> None:
        seed = zlib.crc32(f"{self.kind}/{self.variation}/{number}".encode())
        self._ask(lambda: self._random.setSeed(seed))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._errors as error:
            raise SimulatorDied(f"ScienceWorld's Java process: {type(error).__name__}: {error}") from error


@functools.cache
def simulator() -> Simulator:
    """The one of this program."""
    return Simulator()


def _command() -> list[str]:
    jar = _package() / "scienceworld.jar"
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=os.path.join(home, "bin") if home else None)
    if java is None:
        raise ValueError(f"scienceworld: no 'java' in {'JAVA_HOME' if home else 'PATH'}; {INSTALL}")
    classpath = os.pathsep.join((_py4j().find_jar_path(), str(jar)))
    return [
        *(java, f"-Xmx{HEAP_MB}m", "-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"),
        *("-classpath", classpath, "py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"),
    ]


def _package() -> Path:
    spec = importlib.util.find_spec("scienceworld")
    if spec is None or spec.origin is None:
        raise ValueError(f"scienceworld: package 'scienceworld' is not installed; {INSTALL}")
    return Path(spec.origin).parent


def _py4j(module: str = "java_gateway") -> Any:
    try:
        return importlib.import_module(f"py4j.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(f"scienceworld: package 'py4j' is not installed; {INSTALL}") from error


def _drain(process: subprocess.Popen[str]) -> None:
    """The simulator prints; an unread pipe would fill and stop it."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


def _end(process: subprocess.Popen[str]) -> None:
    """Closing its input ends it (``--die-on-broken-pipe``); what does not end is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
