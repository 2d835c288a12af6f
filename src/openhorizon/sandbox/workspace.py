"""A workspace: the folder of one episode, and the calls that run in it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields

from openhorizon.sandbox import cage, workers
from openhorizon.sandbox.workers import Worker, WorkerDied, WorkerGone

_ids = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """Of one call, all its processes together unless said otherwise."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mb: int = 1024  # on top of what the preloaded modules take
    processes: int = 32  # and threads
    output_chars: int = 20_000  # the rest is cut
    file_mb: int = 64  # of one file, and of /tmp and /dev/shm, which a call has to itself
    workspace_mb: int = 256  # of the workspace
    files: int = 4096  # in the workspace

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"sandbox limit {field.name}: {getattr(self, field.name)} is not above 0")


@dataclass(frozen=True)
class Result:
    """What a call printed (standard output and standard error in one stream) and how it ended."""

    exit_code: int  # 128 + N for signal N, as in a shell; 137 for what was killed over a limit
    output: str
    timed_out: bool = False  # over its wall or CPU limit
    cut: bool = False  # there was more output


class Workspace:
    """A folder that lives for one episode, seen as /work by the code that runs in it. Not for several threads at once.

    Files are bounded in number and size, and live in memory. ``read`` and ``write`` follow no link.
    """

    def __init__(self, limits: Limits, preload: tuple[str, ...]) -> None:
        self.limits, self.preload = limits, preload
        self._home: _Home | None = _move_in(preload, limits)
        self._finalizer = weakref.finalize(self, _Home.close, self._home)
        self._finalizer.atexit = False  # the workers end then, and all mounts with them

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def python(self, code: str) -> Result:
        """Run Python code as ``__main__`` in a fresh process. The same code gives the same output."""
        return self._run("python", code)

    def bash(self, command: str) -> Result:
        """Run a command with bash; ``python3`` is the running interpreter with its packages."""
        return self._run("bash", command)

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file, and the folders that it needs."""
        *folders, last = _parts(name)
        home = self._living()
        try:
            with home.as_owner(), _beneath(home.descriptor, folders, make=True) as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(last, dir_fd=folder)  # whatever the model has put there
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(last, flags, 0o644, dir_fd=folder), "wb") as file:
                    file.write(data)
        except OSError as error:
            raise ValueError(f"{name}: cannot be written in the workspace ({error.strerror})") from error

    def read(self, name: str) -> bytes:
        """The content of a file; ValueError for what is no regular file inside the workspace."""
        *folders, last = _parts(name)
        home = self._living()
        try:
            with home.as_owner(), _beneath(home.descriptor, folders, make=False) as folder:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(last, flags, dir_fd=folder), "rb") as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        raise ValueError(f"{name}: no regular file")
                    return file.read(self.limits.workspace_mb * 2**20)
        except OSError as error:
            raise ValueError(f"{name}: cannot be read in the workspace ({error.strerror})") from error

    def close(self) -> None:
        """Delete the folder; idempotent."""
        self._finalizer()
        self._home = None

    def _living(self) -> _Home:
        """Where the files are; moved to a new worker if the old one has died."""
        if self._home is None:
            raise ValueError("the workspace is closed")
        if not self._home.worker.alive:
            lost = self._home
            self._home = _move_in(self.preload, self.limits)
            with self._home.as_owner():
                _copy(lost.descriptor, self._home.descriptor)
            self._finalizer()
            self._finalizer = weakref.finalize(self, _Home.close, self._home)
            self._finalizer.atexit = False
        return self._home

    def _run(self, kind: str, text: str, again: bool = True) -> Result:
        home = self._living()
        limits = self.limits
        request = {"do": "run", "kind": kind, "id": home.number, "folder": home.folder, "limits": asdict(limits)}
        try:
            found = home.worker.run(request, text.encode("utf-8", "replace"), 4 * limits.output_chars + 4)
        except WorkerGone:  # it died while nobody asked it: nothing was run yet
            return self._run(kind, text, again=False) if again else Result(137, "")
        except WorkerDied:  # the machine is out of memory, or someone has killed it; the files outlive it
            return Result(137, "")
        output = found.output.decode("utf-8", "replace")
        if home.folder:
            output = output.replace(home.folder, "/work")
        cut = len(output) > limits.output_chars or found.total > len(found.output)
        timed_out = found.ended in ("wall", "cpu") or found.code == 128 + 24  # SIGXCPU
        return Result(found.code, output[: limits.output_chars], timed_out, cut)


def open_workspace(
    files: Mapping[str, bytes] | None = None, limits: Limits | None = None, preload: tuple[str, ...] = ()
) -> Workspace:
    """A workspace with these files. ``preload`` names the modules that its worker has imported before it forks for each
    call; workspaces with the same ones share a worker. Raises SandboxUnavailable."""
    workspace = Workspace(limits or Limits(), preload)
    try:
        for name, data in (files or {}).items():
            workspace.write(name, data)
    except ValueError:
        workspace.close()
        raise
    return workspace


def describe() -> str:
    """Whether model-written code can be run here, tried out; what is missing otherwise. One line."""
    if cage.opted_out():
        return f"OFF by {cage.OPT_OUT}=1: model-written code runs unconfined"
    try:
        with open_workspace() as workspace:
            assert workspace.python("print(1)").output == "1\n"
    except cage.SandboxUnavailable as error:
        return str(error)
    return f"{cage.version()} works"


def _move_in(preload: tuple[str, ...], limits: Limits) -> _Home:
    """A folder at the running worker; at a new one, where that turns out to have died while nobody asked it."""
    try:
        return _Home(workers.worker(preload), limits)
    except WorkerDied:
        return _Home(workers.worker(preload), limits)


class _Home:
    """The folder behind a workspace: a tmpfs that the worker mounts, or, opted out, one on disk."""

    def __init__(self, worker: Worker, limits: Limits) -> None:
        self.worker, self.number, self.folder = worker, next(_ids), ""
        self.foreign = os.geteuid() == 0 and not worker.bare
        if worker.bare:
            self.folder = tempfile.mkdtemp(prefix="openhorizon-")
            self.descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            request = {"do": "open", "id": self.number, "mb": limits.workspace_mb, "inodes": limits.files}
            (self.descriptor,) = worker.ask(request)

    @contextlib.contextmanager
    def as_owner(self) -> Iterator[None]:
        """Root acts as uid 65534 here, in this thread alone: only that user exists on the mount, and what follows a
        model's trail should have no more rights than the model."""
        if not self.foreign:
            yield
            return
        _libc.setfsgid(cage.NOBODY)
        _libc.setfsuid(cage.NOBODY)
        try:
            yield
        finally:
            _libc.setfsuid(0)
            _libc.setfsgid(0)

    def close(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.worker.alive:
            with contextlib.suppress(WorkerDied, OSError):
                self.worker.ask({"do": "close", "id": self.number})
        os.close(self.descriptor)


def _parts(name: str) -> list[str]:
    """A name relative to the workspace, by folder."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"{name!r}: not a name inside the workspace")
    return parts


@contextlib.contextmanager
def _beneath(root: int, folders: list[str], make: bool) -> Iterator[int]:
    """The innermost of these folders, opened one by one without following a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    current = os.dup(root)
    try:
        for folder in folders:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o755, dir_fd=current)
            inner = os.open(folder, flags, dir_fd=current)
            os.close(current)
            current = inner
        yield current
    finally:
        os.close(current)


def _copy(source: int, target: int) -> None:
    """Regular files and folders of one open folder into another."""
    with os.scandir(source) as entries:
        found = sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
    for name, about in found:
        if stat.S_ISDIR(about.st_mode):
            os.mkdir(name, 0o755, dir_fd=target)
            with _beneath(source, [name], make=False) as inner, _beneath(target, [name], make=False) as new:
                _copy(inner, new)
        elif stat.S_ISREG(about.st_mode):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with (
                open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source), "rb") as old,
                open(os.open(name, flags, stat.S_IMODE(about.st_mode), dir_fd=target), "wb") as file,
            ):
                shutil.copyfileobj(old, file)
