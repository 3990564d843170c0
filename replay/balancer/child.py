"""A balancer program run as our child: started, watched, reloaded, ended; and its own words when something is wrong.

It is asked to end when the process that started it ends, however that ends (the kernel sends SIGTERM), so that no
shadow balancer outlives its agent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from replay.errors import UpstreamError

OUTPUT_TAIL_BYTES = 4096
OUTPUT_LIMIT_BYTES = 1 << 20  # then the file is begun anew
CHECK_LIMIT_S = 60.0
READY_LIMIT_S = 20.0
READY_POLL_S = 0.02
RELOAD_AGAIN_S = 1.0  # without new workers after it, the signal was not heard
STOP_LIMIT_S = 5.0
DIRECTORY = "/"  # where init starts production's: what relative paths in its configuration go by
WORDS_LINES = 6
PORT_TRIES = 50
LOWEST_PORT = 20_000
_SIGNS = ("alert", "emerg", "error", "fatal", "crit")  # in lines that say what is wrong
_EMPTY = ("error(s) found in configuration", "fatal errors found", "test failed")  # ... and say nothing
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def check(argv: Sequence[str]) -> str:
    """Run a program's own check of its configuration; its words when that fails, else ""."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CHECK_LIMIT_S,
            cwd=DIRECTORY,
        )
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not finish its check within {CHECK_LIMIT_S:.0f} s"
    except OSError as error:
        return f"{argv[0]}: {(error.strerror or str(error)).lower()}: install it, or name it in balancer.program"
    return "" if done.returncode == 0 else words(done.stdout.decode(errors="replace"))


def words(output: str) -> str:
    """The lines of an output that say what is wrong, as one line."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if any(sign in line.lower() for sign in _SIGNS)]
    exact = [line for line in telling if not any(phrase in line.lower() for phrase in _EMPTY)]
    return "; ".join((exact or telling or lines)[:WORDS_LINES])


class Child:
    """One program. Its output goes to a file in the run directory."""

    def __init__(
        self,
        argv: Sequence[str],
        reload_signal: signal.Signals,
        output: Path,
        account: pwd.struct_passwd | None = None,
    ) -> None:
        """`account` is whom it runs as, if not as we do."""
        self._account = account
        self._argv = list(argv)
        self._reload_signal = reload_signal
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the program's master process, 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Start it and wait until it accepts at all of these; UpstreamError with its words when it does not."""
        self.stop()  # nginx's workers outlive a master that was killed, and keep its addresses
        try:
            self._process = self._begin()
        except OSError as error:
            raise UpstreamError(f"{self._argv[0]}: {(error.strerror or str(error)).lower()}") from None
        try:
            self.wait_ready(addresses)
        except BaseException:
            self.stop()
            raise

    def _begin(self) -> subprocess.Popen[bytes]:
        self._output.touch(0o600)
        account = self._account
        with self._output.open("ab") as output:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=DIRECTORY,
                start_new_session=True,  # a terminal's Ctrl-C is for the service alone
                preexec_fn=_end_with_parent,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )

    def wait_ready(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Until it accepts connections at all of these; UpstreamError."""
        for address in addresses:
            deadline = time.monotonic() + READY_LIMIT_S
            while not _accepts(address):
                if not self.alive():
                    raise UpstreamError(f"{self._argv[0]} ended at once: {self.tail()}")
                if time.monotonic() > deadline:
                    raise UpstreamError(f"{self._argv[0]} does not listen on {address[0]}:{address[1]}: {self.tail()}")
                time.sleep(READY_POLL_S)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def reload(self) -> None:
        """Have it read its configuration again, without dropping what it is doing; UpstreamError when it does not.

        It has done so when it has new workers. HAProxy is deaf while it is still about the reload before, so it is told
        again when none come.
        """
        with contextlib.suppress(OSError):
            if self._output.stat().st_size > OUTPUT_LIMIT_BYTES:
                os.truncate(self._output, 0)
        before = self._workers()
        deadline = time.monotonic() + READY_LIMIT_S
        again_s = 0.0
        while self._process is not None and self.alive():
            if time.monotonic() >= again_s:
                self._process.send_signal(self._reload_signal)
                again_s = time.monotonic() + RELOAD_AGAIN_S
            if not before or self._workers() - before:
                return
            if time.monotonic() > deadline:
                raise UpstreamError(f"{self._argv[0]} does not reload: {self.tail()}")
            time.sleep(READY_POLL_S)

    def _workers(self) -> frozenset[str]:
        """Process ids of the master's children; empty where it has none, or the kernel does not tell."""
        try:
            return frozenset(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())
        except OSError:
            return frozenset()

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """End it, if need be by force, its workers with it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit_s)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # the group is its own; whoever of it is left ends, too
        process.wait()

    def tail(self) -> str:
        """Its last words, as one line."""
        try:
            text = self._output.read_bytes()[-OUTPUT_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        return words(text)


def free_port(host: str = "127.0.0.1") -> tuple[str, int]:
    """An address on this host that nobody listens on now, outside the range that the kernel gives to clients: it stays
    free while a program that died is started again."""
    with socket.socket() as probe:
        ports = _ports()
        for _ in range(PORT_TRIES):
            port = random.choice(ports)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return host, port
        probe.bind((host, 0))
        return host, int(probe.getsockname()[1])


def _ports() -> Sequence[int]:
    """Those that clients are not given, without the privileged and the well-known ones."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        low, high = 32_768, 60_999
    return [port for port in range(LOWEST_PORT, 65_536) if not low <= port <= high] or range(LOWEST_PORT, 65_536)


def _accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def _end_with_parent() -> None:
    """Between fork and exec. A session of its own is an autogroup of its own, which has to be nice by itself."""
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(max(0, os.getpriority(os.PRIO_PROCESS, 0))))
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
