"""The parent's side of the reused workers: start one per set of preloaded modules, send it calls, collect output."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhorizon.sandbox import cage, cgroups, filter

PROGRAM = Path(__file__).with_name("worker.py")
MESSAGE_BYTES = 65536
START_S = 180.0  # imports of the preloaded modules on a busy machine
GRACE_S = 30.0  # past its wall limit, a call whose worker does not answer has lost its worker
FLOOD_BYTES = 2**24  # a program that prints more is ended; less is read to the end and cut
READ_BYTES = 2**16


class WorkerDied(Exception):
    """The worker is gone; its mounts are, too."""


class WorkerGone(WorkerDied):
    """It was dead before it could be asked."""


@dataclass(frozen=True)
class Outcome:
    """What a call came to."""

    code: int
    ended: str  # why it was ended from outside: wall, cpu, memory, flood; empty: it ended by itself
    output: bytes  # the first bytes of it
    total: int  # how many there were


class Worker:
    """A worker process in its cage (or, opted out, without one)."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        self.bare = cage.opted_out()
        self.preload = preload
        self.alive = True
        self.groups: list[Path] = []
        command = cage.bare_command(PROGRAM) if self.bare else cage.command(PROGRAM)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as errors:
            self.process = _launcher().submit(_launch, command, theirs, errors, self.bare).result()
            theirs.close()
            self._greet(errors)

    def _greet(self, errors: Any) -> None:
        """Hand over the settings and wait until the modules are imported."""
        root = os.geteuid() == 0
        settings = {
            "bare": self.bare,
            "filter": "" if self.bare else _program().hex(),
            "preload": self.preload,
            "site": [] if self.bare else list(cage.packages().values()),
            "uid": cage.NOBODY if root else os.geteuid(),
            "gid": cage.NOBODY if root else os.getegid(),
        }
        self.control.settimeout(START_S)
        try:
            if self.control.recv(MESSAGE_BYTES) and not self.bare:
                self.groups = cgroups.enclose(self.process.pid)  # now: it has not forked yet
            self.control.send(json.dumps(settings).encode())
            message = self.control.recv(MESSAGE_BYTES)
        except TimeoutError:
            message = b'{"error": "no answer"}'
        except OSError:
            message = b""
        self.control.settimeout(None)
        answer = json.loads(message) if message else {}
        if answer.get("ready"):
            return
        self.end()
        errors.seek(0)
        said = " ".join(errors.read().decode("utf-8", "replace").split())[-600:]
        problem = answer.get("error") or said or "it said nothing"
        if "ModuleNotFoundError" in problem or "ImportError" in problem:
            raise ValueError(f"the sandbox cannot import {', '.join(self.preload)}: {problem}")
        raise cage.unavailable(
            f"it does not start here: {problem} (it needs user namespaces: sysctl user.max_user_namespaces and, where "
            f"they exist, kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; in a "
            f"container: --cap-add SYS_ADMIN with --security-opt seccomp=unconfined and systempaths=unconfined)"
        )

    def ask(self, request: dict[str, Any]) -> list[int]:
        """One request about a workspace; the descriptors that came with the answer."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mine, theirs:
            self._send(request, [theirs.fileno()])
            theirs.close()
            mine.settimeout(GRACE_S)
            try:
                message, descriptors, _, _ = socket.recv_fds(mine, MESSAGE_BYTES, 1)
            except OSError:
                message, descriptors = b"", []
        if not message:
            self._lost()
        answer = json.loads(message)
        if "error" in answer:
            raise OSError(answer["error"])
        return list(descriptors)

    def run(self, request: dict[str, Any], text: bytes, keep: int) -> Outcome:
        """One call; keeps the first ``keep`` bytes of its output."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, their_output = os.pipe2(os.O_CLOEXEC)
        source = os.memfd_create("code", os.MFD_CLOEXEC)
        try:
            with mine:
                try:
                    with open(source, "wb", closefd=False) as file:
                        file.write(text)
                    self._send(request, [theirs.fileno(), their_output, source])
                finally:
                    theirs.close()
                    os.close(their_output)
                    os.close(source)
                # Leaving this block early, by Ctrl-C for one, closes the socket: the worker then ends the call.
                return self._collect(mine, output, request["limits"]["wall_s"] + GRACE_S, keep)
        finally:
            os.close(output)

    def _collect(self, reply: socket.socket, output: int, patience_s: float, keep: int) -> Outcome:
        kept, total, flooded, answer = bytearray(), 0, False, None
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(reply, select.POLLIN)
        deadline = time.monotonic() + patience_s
        reading = True
        while answer is None or reading:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready and answer is None:
                self._lost()
            if not ready:
                break  # opted out only: a process that has escaped still holds the pipe
            for descriptor, _ in ready:
                if descriptor == output:
                    part = os.read(output, READ_BYTES)
                    kept += part[: max(0, keep - len(kept))]
                    total += len(part)
                    if not part:
                        reading = False
                        poll.unregister(output)
                    if total > FLOOD_BYTES and not flooded:
                        flooded = True
                        with contextlib.suppress(OSError):  # it may have ended by itself
                            reply.send(b"flood")
                elif answer is None:
                    message = reply.recv(MESSAGE_BYTES)
                    if not message:
                        self._lost()
                    answer = json.loads(message)
                    poll.unregister(reply)
                    deadline = min(deadline, time.monotonic() + (0.2 if self.bare else GRACE_S))
        assert answer is not None
        if "error" in answer:
            raise cage.unavailable(f"a call could not be confined: {answer['error']}")
        # Whether the program was caught in the act of flooding or had just ended must not show.
        code, ended = (137, "flood") if total > FLOOD_BYTES else (answer["code"], answer["ended"])
        return Outcome(code, ended, bytes(kept), total)

    def _send(self, request: dict[str, Any], descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self.control, [json.dumps(request).encode()], list(descriptors))
        except OSError:
            self.end()
            raise WorkerGone from None

    def _lost(self) -> None:
        self.end()
        raise WorkerDied

    def end(self) -> None:
        """End the worker and all that is in it; idempotent."""
        self.alive = False
        self.control.close()  # it then ends by itself
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()  # bubblewrap's first process dies with it, and the rest with that
            self.process.wait()
        cgroups.remove(self.groups)


_workers: dict[tuple[str, ...], Worker] = {}
_lock = threading.RLock()
_threads: list[concurrent.futures.ThreadPoolExecutor] = []
_warned: list[bool] = []


def worker(preload: tuple[str, ...]) -> Worker:
    """The running worker with these modules; starts one if need be."""
    with _lock:
        found = _workers.get(preload)
        if found is None or not found.alive or found.bare != cage.opted_out():
            if cage.opted_out() and not _warned:
                _warned.append(True)
                print(
                    f"WARNING: {cage.OPT_OUT}=1: model-written code runs WITHOUT A SANDBOX, with your files, your "
                    f"network and your rights; only time and resource limits hold",
                    file=sys.stderr,
                    flush=True,
                )
            found = _workers[preload] = Worker(preload)
        return found


def close_workers() -> None:
    """End all workers; also done at exit. The next call starts new ones."""
    with _lock:
        for found in _workers.values():
            found.end()
        _workers.clear()


def _launcher() -> concurrent.futures.ThreadPoolExecutor:
    """A thread that lives as long as this process: bubblewrap dies with the *thread* that started it."""
    with _lock:
        if not _threads:
            _threads.append(concurrent.futures.ThreadPoolExecutor(1, "sandbox-launcher"))
        return _threads[0]


def _launch(command: list[str], control: socket.socket, errors: Any, bare: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=control.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=cage.bare_environment() if bare else {"PATH": "/usr/bin:/bin"},
        start_new_session=True,  # Ctrl-C is for the parent, which then ends the worker
    )


def _program() -> bytes:
    try:
        return filter.program()
    except ValueError as error:
        raise cage.unavailable(str(error)) from error


def _forget() -> None:
    """In a forked child: the workers are the parent's."""
    global _lock
    _lock = threading.RLock()
    for found in _workers.values():
        found.alive = False
        found.control.close()
    _workers.clear()
    _threads.clear()


os.register_at_fork(after_in_child=_forget)
atexit.register(close_workers)
