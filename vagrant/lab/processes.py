"""The lab's processes: its servers and its guests (what a test or the demo runs inside), and how they end.

A server's output goes to a file of its own. A guest belongs to whoever started it, but none outlives the lab.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vagrant.lab.network import LabError

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SERVER_STOP_SECONDS = 3.0


class Servers:
    """Named long-running processes, started and stopped by the lab."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: list[str]) -> None:
        """Start a server; its output goes to `<logs>/<name>.log`, appended to."""
        with self.log(name).open("ab") as log:
            try:
                # A session of its own keeps Ctrl-C away: the lab ends its servers last.
                self._running[name] = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            except FileNotFoundError as error:
                raise LabError(f"{error.filename} is not installed: run `make setup` as root") from None

    def log(self, name: str) -> Path:
        """Where a server's output is."""
        return self._logs / f"{name}.log"

    def check(self, name: str) -> None:
        """Raise with the last line of its log if a server has ended."""
        process = self._running.get(name)
        if process is not None and process.poll() is not None:
            lines = self.log(name).read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no output"
            raise LabError(f"the lab's {name} ended with {process.returncode}: {last}: see its configuration")

    def running(self, name: str) -> bool:
        """Whether it was started, and not stopped since."""
        return name in self._running

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send one server a signal."""
        self._running[name].send_signal(number)

    def stop(self, name: str) -> None:
        """End one server and wait for it; nothing happens if it does not run."""
        process = self._running.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_SERVER_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """Kill them all at once."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()


class Guests:
    """Processes that were started in the lab from outside; each remembers the thread that started it."""

    def __init__(self) -> None:
        self._started: list[tuple[int, subprocess.Popen[Any]]] = []
        self._ended_threads: set[int] = set()
        self._lock = threading.Lock()  # a guest that two threads' starts made us forget would never be killed

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        """As subprocess.Popen."""
        with self._lock:
            if threading.get_ident() in self._ended_threads:
                raise LabError(f"{argv[0]} is not started any more: the load was ended")
            self._started = [(thread, guest) for thread, guest in self._started if guest.poll() is None]
            guest: subprocess.Popen[Any] = subprocess.Popen(argv, **options)
            self._started.append((threading.get_ident(), guest))
            return guest

    def run(self, argv: list[str], *, check: bool, timeout: float, **options: Any) -> subprocess.CompletedProcess[Any]:
        """As subprocess.run with captured output, but the process is known to `kill`."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        guest = self.popen(argv, **options)
        try:
            output, errors = guest.communicate(timeout=timeout)
        except BaseException:
            guest.kill()
            guest.communicate()
            raise
        if check and guest.returncode != 0:
            raise subprocess.CalledProcessError(guest.returncode, argv, output, errors)
        return subprocess.CompletedProcess(argv, guest.returncode, output, errors)

    def kill_all(self) -> None:
        """Kill every guest."""
        for _, guest in self._started:
            if guest.poll() is None:
                guest.kill()

    def admit(self, thread: int) -> None:
        """A new thread may have got the number of one that was ended."""
        self._ended_threads.discard(thread)

    def end_thread(self, thread: int) -> None:
        """Kill what one thread started; it can start nothing more."""
        with self._lock:
            self._ended_threads.add(thread)
            for starter, guest in self._started:
                if starter == thread and guest.poll() is None:
                    guest.kill()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ending signals wait until the block is done.

    Handlers, not a signal mask: any other thread would still take the signal, and Python then interrupts the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if came:
        signal.raise_signal(came[0])


class EndingSignals:
    """While on, SIGTERM and SIGHUP unwind the program as SIGINT does, so that what it set up is removed."""

    def __init__(self) -> None:
        self._replaced: list[signal.Signals] = []

    def on(self) -> None:
        """Take over the signals nobody handles; does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _unwind)
                self._replaced.append(number)

    def off(self) -> None:
        """Give them back."""
        for number in self._replaced:
            signal.signal(number, signal.SIG_DFL)
        self._replaced.clear()


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
