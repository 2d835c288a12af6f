"""What runs inside: a worker that has imported its modules once and forks for every call. Standard library only.

The worker is trusted and never runs model code. It sits in a bubblewrap of its own (``cage.py``) as uid 65534 and owns
a user namespace there, in which it may mount. Each workspace is a tmpfs of bounded size that it mounts on request. For
each call it makes a new PID namespace with a shell as its first process (the *anchor*: it waits for its input to end,
so it dies with the worker, and everything in the namespace dies with it), and forks the *child* into it, ahead of time.
When its call comes, the child

0. has its own session, IPC and network namespaces, and no descriptor but the line to the worker;

1. takes a mount namespace; binds its workspace to /work, drops the view of all others, gets a fresh /tmp, /dev/shm and
   a /proc that shows its own PID namespace only;
2. enters a user namespace in which no further one can be made, drops every capability, sets its resource limits,
   closes every descriptor but its output, and loads the seccomp filter;
3. only then reads the code (from a descriptor: the worker itself never sees code, so that its memory, which the next
   child inherits, holds nothing of another episode) and runs it.

The exit status comes from the kernel, not from the child's word. When the child ends, runs out of time, or its
processes together exceed CPU or memory, the worker kills the anchor: the kernel then ends the whole PID namespace,
including daemons and stopped processes, before the reply is sent.

With ``bare`` (the opt-out, no bubblewrap) the same worker forks children with resource and time limits only.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MNT_DETACH = 2, 4, 8, 4096, 2
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
PR_CAPBSET_DROP, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 24, 22, 2
WATCH_S = 0.05  # how often memory and CPU of a running call are summed up
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 2**20
MESSAGE_BYTES = 65536
COMMAND_BYTES = 100_000  # the kernel's limit for one argument is 128 KiB
SHELL_ENVIRONMENT = (  # what bash gets of the worker's environment
    *("PATH", "HOME", "LANG", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE"),
    *("PYTHONUNBUFFERED", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("MPLBACKEND", "MPLCONFIGDIR"),
)

libc = ctypes.PyDLL(None, use_errno=True)


@dataclass(frozen=True)
class Berth:
    """A child that waits for its call, in a PID namespace of its own."""

    child: int
    line: socket.socket  # the call goes through it
    anchor: int  # the first process of the namespace; 0: bare
    anchor_input: int  # closing it ends the anchor
    namespace: str  # as links in /proc name it


@dataclass
class Call:
    """One running call."""

    limits: dict[str, Any]
    reply: socket.socket
    berth: Berth
    began: float
    watchers: dict[int, int] = field(default_factory=dict)  # a process that still runs → its pidfd
    status: int = 0
    ended: str = ""  # why it was ended: wall, cpu, memory, flood, gone
    raised: bool = False  # the anchor has been killed


def main() -> None:
    """Serve requests from the socket on descriptor 0 until its other end closes."""
    control = socket.socket(fileno=os.dup(0))
    control.send(b"here")
    settings = json.loads(control.recv(MESSAGE_BYTES))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    try:
        worker = Worker(control, settings, null)
    except (OSError, ImportError, ValueError) as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        return
    control.send(json.dumps({"ready": True}).encode())
    os.dup2(null, 1)
    os.dup2(null, 2)
    worker.serve()


class Worker:
    """The loop: requests in, children out, limits watched."""

    def __init__(self, control: socket.socket, settings: dict[str, Any], null: int) -> None:
        self.control, self.null = control, null
        self.bare: bool = settings["bare"]
        self.filter = bytes.fromhex(settings["filter"])
        self.calls: list[Call] = []
        self.spare: Berth | None = None
        sys.path.extend(settings["site"])
        if self.bare:
            check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
        else:
            enter(settings["uid"], settings["gid"])
            self.own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        for module in ("linecache", "random", "threading", "traceback", "types", *settings["preload"]):
            __import__(module)
        if "numpy" in sys.modules:
            __import__("numpy.random")  # every child seeds it
        atexit._clear()  # what the modules have registered is not for the children to run
        with open("/proc/self/statm") as statm:
            self.own_bytes = int(statm.read().split()[0]) * resource.getpagesize()
        gc.collect()
        gc.freeze()
        gc.disable()  # children enable it: a collection here would only unshare pages
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ, None)

    def serve(self) -> None:
        while True:
            # The next child is forked whenever nothing else is to be done: a large worker takes milliseconds for it.
            ready = self.selector.select(0 if self.spare is None else WATCH_S if self.calls else None)
            for key, _ in ready:
                if key.fileobj is self.control:
                    if not self.request():
                        if self.bare:
                            self.leave()
                        return  # the kernel ends the namespaces
                elif key.data in self.calls and key.fileobj is key.data.reply:
                    self.told(key.data)
            for call in list(self.calls):
                self.look_after(call)
            if not ready and self.spare is None:
                self.spare = self.prepare()

    def told(self, call: Call) -> None:
        """The caller wants no more of a call (one word says why), or has itself gone away."""
        try:
            word = call.reply.recv(MESSAGE_BYTES).decode()
        except OSError:
            word = ""
        if not word:
            self.selector.unregister(call.reply)
            call.ended = "gone"
        self.end(call, word)

    def request(self) -> bool:
        """Take one request; False at the end."""
        message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 4)
        if not message:
            return False
        request = json.loads(message)
        reply = socket.socket(fileno=os.dup(descriptors[0]))
        try:
            if request["do"] == "run":
                self.calls.append(self.start(message, request["limits"], reply, descriptors))
                return True
            if request["do"] == "open":
                descriptor = open_workspace(request)
                send(reply, {}, [descriptor])
                os.close(descriptor)
            else:
                close_workspace(request)
                send(reply, {})
        except OSError as error:
            send(reply, {"error": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        reply.close()
        return True

    def start(self, message: bytes, limits: dict[str, Any], reply: socket.socket, descriptors: list[int]) -> Call:
        """Give the call to the child that waits for one."""
        berth, self.spare = self.spare or self.prepare(), None
        call = Call(limits, reply, berth, time.monotonic())
        with contextlib.suppress(OSError):  # it has been killed: its exit status says so
            socket.send_fds(berth.line, [message], descriptors)
        berth.line.close()
        for pid in (berth.child, berth.anchor):
            if pid:
                call.watchers[pid] = os.pidfd_open(pid)
                self.selector.register(call.watchers[pid], selectors.EVENT_READ, call)
        self.selector.register(reply, selectors.EVENT_READ, call)
        return call

    def prepare(self) -> Berth:
        """Fork the next child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        anchor, anchor_input, namespace = 0, -1, ""
        with theirs:
            try:
                if not self.bare:
                    check(libc.unshare(CLONE_NEWPID), "new PID namespace")
                    anchor, anchor_input = drop_anchor()
                    namespace = os.readlink(f"/proc/{anchor}/ns/pid")
                child = os.fork()
                if child == 0:
                    self.become_child(theirs.detach())
            except OSError:
                if anchor:
                    raise_anchor(anchor, anchor_input)
                    os.waitpid(anchor, 0)
                raise
            finally:
                if not self.bare:
                    check(libc.setns(self.own_namespace, CLONE_NEWPID), "own PID namespace")
        return Berth(child, ours, anchor, anchor_input, namespace)

    def look_after(self, call: Call) -> None:
        """Reap; end what is over its limits; answer when nothing of the call is left."""
        if self.reaped(call, call.berth.child):
            self.end(call, "")
        if call.berth.child in call.watchers and not call.ended:
            elapsed = time.monotonic() - call.began
            if elapsed > call.limits["wall_s"]:
                self.end(call, "wall")
            elif elapsed > WATCH_S:
                self.watch(call)
        self.reaped(call, call.berth.anchor)
        if call.watchers or (self.bare and self.sweep(call)):
            return
        self.calls.remove(call)
        if call.ended != "gone":
            self.selector.unregister(call.reply)
            code = call.status if call.status >= 0 else 128 - call.status
            send(call.reply, {"code": code, "ended": call.ended})
        call.reply.close()

    def reaped(self, call: Call, pid: int) -> bool:
        """Whether a process of the call has just been reaped."""
        if pid not in call.watchers:
            return False
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return False
        if pid == call.berth.child:
            call.status = os.waitstatus_to_exitcode(status)
        watcher = call.watchers.pop(pid)
        self.selector.unregister(watcher)
        os.close(watcher)
        return True

    def watch(self, call: Call) -> None:
        """Sum CPU and memory over all processes of the call: a limit of one process is none if it can fork."""
        ticks = memory_kb = 0
        pids = self.members(call)
        for pid in pids:
            try:
                ticks += sum(int(x) for x in stat_fields(pid)[11:15])  # user, system, and both of ended children
                memory_kb += table(pid, "status", ("RssAnon:", "RssShmem:"))
            except (OSError, IndexError):
                continue  # it ended meanwhile
        if ticks / TICKS > call.limits["cpu_s"]:
            self.end(call, "cpu")
        limit_kb = call.limits["memory_mb"] * 1024
        if memory_kb > limit_kb and self.exact_kb(pids) > limit_kb:
            self.end(call, "memory")

    @staticmethod
    def exact_kb(pids: list[int]) -> int:
        """Memory with shared pages divided among those who share them: what the fork inherited hardly counts."""
        total = 0
        for pid in pids:
            try:
                total += table(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
            except OSError:
                continue
        return total

    def members(self, call: Call) -> list[int]:
        """The processes of a call."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if self.bare:
                        if os.getpgid(int(name)) == call.berth.child:
                            found.append(int(name))
                    elif os.readlink(f"/proc/{name}/ns/pid") == call.berth.namespace:
                        found.append(int(name))
                except OSError:
                    continue
        return found

    def end(self, call: Call, why: str) -> None:
        """Kill everything that belongs to the call."""
        call.ended = call.ended or why
        if self.bare:
            with contextlib.suppress(ProcessLookupError):  # it may not have its own group yet, or have no process left
                os.killpg(call.berth.child, signal.SIGKILL)
            if call.berth.child in call.watchers:
                os.kill(call.berth.child, signal.SIGKILL)
        elif not call.raised:
            call.raised = True
            raise_anchor(call.berth.anchor, call.berth.anchor_input)

    def leave(self) -> None:
        """Without a namespace: end every process below this one, generation by generation."""
        self.calls.clear()
        self.spare = None
        while self.sweep(None):
            time.sleep(0.001)

    def sweep(self, call: Call | None) -> bool:
        """Without a namespace: kill what has left the call's process group and come down to this subreaper."""
        known = {other.berth.child for other in self.calls if other is not call}
        known |= {self.spare.child} if self.spare else set()
        left = False
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in known:
                try:
                    if int(stat_fields(int(name))[1]) == os.getpid():
                        os.kill(int(name), signal.SIGKILL)
                        os.waitpid(int(name), os.WNOHANG)
                        left = True  # its children, if any, come down next
                except (OSError, IndexError):
                    continue
        return left

    def become_child(self, line: int) -> NoReturn:
        """From here on in the child: wait for a call, lock the door, run it."""
        code, leave = 1, os._exit  # model code may replace what os holds
        try:
            os.setsid()  # kill(0, …) would otherwise reach the worker, whatever the PID namespace
            os.dup2(self.null, 0)
            os.dup2(line, 3)
            os.closerange(4, 2**20)
            if not self.bare:
                check(libc.unshare(CLONE_NEWIPC | CLONE_NEWNET), "new namespaces")
            with socket.socket(fileno=3) as own_line:
                message, descriptors, _, _ = socket.recv_fds(own_line, MESSAGE_BYTES, 3)
            if not message:
                os._exit(0)
            request = json.loads(message)
            reply, output, source = descriptors
            try:
                os.dup2(output, 1)
                os.dup2(output, 2)
                if not self.bare:
                    self.confine(request)
                os.chdir(request["folder"] if self.bare else "/work")
                os.chmod(".", 0o700)  # a call may have locked itself out
                restrict(request["limits"], self.own_bytes)
                if not self.bare:
                    drop_privileges(self.filter)
                text = read_all(source)
            except Exception as error:
                send(socket.socket(fileno=reply), {"error": f"{type(error).__name__}: {error}"})
                os._exit(1)
            os.closerange(3, 2**20)
            code = run_python(text) if request["kind"] == "python" else run_bash(text)
        finally:
            leave(code)

    def confine(self, request: dict[str, Any]) -> None:
        """Own mounts, then a user namespace without any power over them."""
        limits = request["limits"]
        check(libc.unshare(CLONE_NEWNS), "mount namespace")
        outer = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        me = os.readlink("self", dir_fd=outer)
        mount(f"/ws/{request['id']}", "/work", "", MS_BIND)
        check(libc.umount2(b"/ws", MNT_DETACH), "hide other workspaces")
        for name in ("/tmp", "/dev/shm"):
            size = f"size={limits['file_mb']}m,nr_inodes={limits['files']},mode=1777"
            mount("tmpfs", name, "tmpfs", MS_NOSUID | MS_NODEV, size)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid")
        check(libc.unshare(CLONE_NEWUSER), "user namespace")
        map_ids(outer, me, NOBODY, NOBODY)
        put(outer, "sys/user/max_user_namespaces", "0")
        put(outer, f"{me}/oom_score_adj", "1000")
        os.close(outer)


def drop_anchor() -> tuple[int, int]:
    """Start the first process of a PID namespace; its process id, and the descriptor whose closing ends it."""
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    try:
        # Ignoring SIGCHLD makes the kernel reap the orphans that end up below the anchor.
        script = ["sh", "-c", 'trap "" CHLD; read -r line']
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 0)]
        return os.posix_spawn("/bin/sh", script, {}, file_actions=actions, setsid=True), ours
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)


def raise_anchor(anchor: int, its_input: int) -> None:
    """Kill the first process of a PID namespace, and with it all others there."""
    os.close(its_input)
    os.kill(anchor, signal.SIGKILL)


def enter(uid: int, gid: int) -> None:
    """Become uid 65534 for good, with a user and mount namespace in which this process may mount."""
    if os.getuid() == 0:
        # bubblewrap covers parts of /proc for root; a namespace that sees a covered one may mount none.
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # setresuid has given /proc/self to root
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "user namespace")
    root = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    map_ids(root, "self", uid, gid)
    os.close(root)
    # One who goes into other PID namespaces and back must own the one to come back to.
    child = os.fork()
    if child:
        os.closerange(0, 2**20)
        os.waitpid(child, 0)
        os._exit(1)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/ws", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=700")


def map_ids(proc: int, me: str, uid: int, gid: int) -> None:
    """Appear as nobody in the user namespace just made."""
    put(proc, f"{me}/setgroups", "deny")
    put(proc, f"{me}/uid_map", f"{NOBODY} {uid} 1")
    put(proc, f"{me}/gid_map", f"{NOBODY} {gid} 1")


def open_workspace(request: dict[str, Any]) -> int:
    """Mount a workspace; its folder as a descriptor."""
    folder = f"/ws/{request['id']}"
    os.mkdir(folder)
    size = f"size={request['mb']}m,nr_inodes={request['inodes']},mode=700"
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, size)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def close_workspace(request: dict[str, Any]) -> None:
    folder = f"/ws/{request['id']}"
    check(libc.umount2(folder.encode(), MNT_DETACH), "unmount")
    os.rmdir(folder)


def restrict(limits: dict[str, Any], own_bytes: int) -> None:
    """Resource limits of each process. What the worker itself has mapped is not the model's."""
    memory = limits["memory_mb"] * MIB + own_bytes
    file = limits["file_mb"] * MIB
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_SIGPENDING, 256),
    ):
        hard = resource.getrlimit(kind)[1]
        hard = value + 1 if hard == resource.RLIM_INFINITY else min(value + 1, hard)  # first SIGXCPU, then SIGKILL
        resource.setrlimit(kind, (min(value, hard), hard))


def drop_privileges(program: bytes) -> None:
    """No capability in any set, then the filter."""
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    loaded = Program(len(program) // 8, program)
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0), "seccomp")


def run_python(text: bytes) -> int:
    """Run model code as ``__main__`` and end as an interpreter would."""
    import atexit
    import linecache
    import random
    import threading
    import traceback
    import types

    sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    # Written through, so that standard output and standard error keep their order in the one stream.
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    sys.argv = ["<code>"]
    sys.path.insert(0, "/work")
    random.seed(0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(0)
    source = text.decode("utf-8", "replace")
    linecache.cache["<code>"] = (len(source), None, source.splitlines(keepends=True), "<code>")
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    gc.enable()
    code = 0
    try:
        exec(compile(source, "<code>", "exec", dont_inherit=True), main_module.__dict__)
    except SystemExit as stop:
        code = exit_code(stop)
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, trace)
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 1
    return code


def exit_code(stop: SystemExit) -> int:
    """What the interpreter would exit with."""
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def run_bash(text: bytes) -> int:  # noqa: RET503 (execve does not return)
    """Become bash."""
    if b"\0" in text or len(text) > COMMAND_BYTES:
        os.write(2, f"bash: a command has at most {COMMAND_BYTES} bytes, none of them zero\n".encode())
        return 2
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    environment = {name: os.environ[name] for name in SHELL_ENVIRONMENT if name in os.environ}
    os.execve("/bin/bash", ["bash", "-c", os.fsdecode(text)], environment)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    check(result, f"mount {target}")


def check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def put(folder: int, name: str, text: str) -> None:
    """Write a file below an open folder."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def send(reply: socket.socket, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Answer; a caller that has gone away misses it."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with contextlib.suppress(OSError):
        reply.sendmsg([json.dumps(message).encode()], ancillary)


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on (field 3 is index 0)."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def table(pid: int, name: str, keys: tuple[str, ...]) -> int:
    """Sum of the named lines, in kB."""
    with open(f"/proc/{pid}/{name}") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(keys))


if __name__ == "__main__":
    main()
