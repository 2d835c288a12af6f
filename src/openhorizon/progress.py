"""Saying where a run is: rate and time left, and never silent for more than five seconds."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

PLAIN_INTERVAL_S = 3.0  # between two lines of a log
LIVE_INTERVAL_S = 1.0  # between two updates of a terminal's line
SILENCE_S = 4.0  # after this long without a line, one is printed that says where the run still is


_PRINTING = threading.Lock()


def say(line: str) -> None:
    """Print one line whole, whatever other threads print."""
    with _PRINTING:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """``75`` → ``1:15``; ``3700`` → ``1:01:40``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Prints for one named piece of work: plain lines in a log, one live line on a terminal.

    Used as a context manager; a thread speaks while nothing else does.
    """

    def __init__(self, name: str, start: str = "starting", live: bool = True, silence_s: float = SILENCE_S) -> None:
        self.name = name
        self._may_live = live
        self._silence_s = silence_s
        self._where = start
        self._began = self._phase_began = time.monotonic()
        self._first = 0
        self._done = 0
        self._total = 0
        self._printed = float("-inf")
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pulse, name=f"progress {name}", daemon=True)
        self._live: Status | None = None

    def __enter__(self) -> Progress:
        if self._may_live and sys.stdout.isatty():
            self._live = Console().status(f"{self.name}: {self._where}")
            self._live.start()
        if self._where:
            self._say(self._where)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def at(self, where: str) -> None:
        """Say what is done now; later silence says that it still is."""
        with self._lock:
            self._where = where
            self._say(where)

    def relay(self, line: str) -> None:
        """Print another process's line about the same work."""
        with self._lock:
            self._printed = time.monotonic()
            self._where = line.removeprefix(f"{self.name}: ").removeprefix("still at ")
            say(line)

    def update(self, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` units are finished. Cheap: most calls print nothing."""
        with self._lock:
            now = time.monotonic()
            if total != self._total or done < self._done:  # another phase: its rate starts anew
                self._phase_began, self._first, self._total = now, done, total
            finished = done == total and self._done != total
            self._done = done
            self._where = self._text(now, note)
            interval = LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S
            if finished or now - self._printed >= interval:
                self._say(self._where)

    def _text(self, now: float, note: str) -> str:
        text = f"{self._done:,}/{self._total:,}"
        elapsed = now - self._phase_began
        if elapsed > 0 and self._done > self._first:
            rate = (self._done - self._first) / elapsed
            text += f" · {rate:,.1f}/s" if rate >= 1 else f" · {1 / rate:,.1f} s each"
            text += f" · {duration((self._total - self._done) / rate)} left"
        return f"{text} · {note}" if note else text

    def _say(self, text: str) -> None:
        self._printed = time.monotonic()
        if self._live:
            self._live.update(f"{self.name}: {text}")
        else:
            say(f"{self.name}: {text}")

    def _pulse(self) -> None:
        while not self._stop.wait(0.2):
            with self._lock:
                if time.monotonic() - self._printed >= self._silence_s:
                    self._say(f"still at {self._where} ({duration(time.monotonic() - self._began)})")
