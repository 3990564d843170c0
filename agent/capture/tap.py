"""The kernel program from the agent's side: have it loaded, give it orders, keep its lease, read its counters.

Life of a tap: `load` (loader process, privileged) -> `arm` (orders written, lease begins) -> `renew` again and again
-> `stop` (lease ended: the program does nothing from that instant) -> `close` (links go, the kernel detaches).
When the process dies in between, the links go with it, and where they cannot (clsact), the lease runs out.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import agent
import bpf
from agent.capture import kernel
from agent.capture.latency import ProductionLatency
from agent.capture.layout import CONTROL, COUNTERS, PORT_WORDS, Control, Counters
from agent.capture.tables import Tables
from agent.errors import LoadError

LOADER_INTERPRETER = "/usr/bin/python3"
LOADER_TIMEOUT_S = 300  # on a busy small host compiling has been seen to take 150 s
TRIES = 4
_FDS_MAX = 253  # SCM_MAX_FD of the kernel
SENT_THROUGH_MAX = 64
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772


@dataclass(frozen=True, slots=True)
class TapOrder:
    """What the loader is asked for; `attach` is auto, tcx or none (clsact is the keeper's). `sent_through` are the
    interfaces whose egress tells when replayed requests leave: only with TCX."""

    sources: str
    ifindex: int
    loopback: bool
    link_header_bytes: int
    workers: int
    ring_bytes: int
    attach: str
    sent_through: tuple[int, ...] = ()


def order_for(interface: str, workers: int, ring_bytes: int, attach: str, sent_through: Sequence[int] = ()) -> TapOrder:
    """The order for an interface of this network namespace; LoadError if there is none of that name. Of the ifindexes
    `sent_through`, those are taken whose packets begin with the same kind of header (there is one program), and of them
    the first SENT_THROUGH_MAX."""
    try:
        ifindex = socket.if_nametoindex(interface)
        kind = _kind_of(interface)
    except OSError:
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise LoadError(f"no interface {interface!r} here; there are: {names}") from None
    return TapOrder(
        sources=str(Path(bpf.__file__).parent),
        ifindex=ifindex,
        loopback=kind == _ARPHRD_LOOPBACK,
        link_header_bytes=_header_bytes(kind),
        workers=workers,
        ring_bytes=ring_bytes,
        attach="none" if attach == "clsact" else attach,
        sent_through=tuple(i for i in sent_through if _begins_with(i, _header_bytes(kind)))[:SENT_THROUGH_MAX],
    )


def _kind_of(interface: str) -> int:
    """ARPHRD_ of the interface; /sys may show another namespace's, which does not have it."""
    if interface == "lo":
        return _ARPHRD_LOOPBACK
    kind = Path("/sys/class/net", interface, "type")
    return int(kind.read_text()) if kind.exists() else _ARPHRD_ETHER


def _header_bytes(kind: int) -> int:
    return 14 if kind in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK) else 0


def _begins_with(ifindex: int, header_bytes: int) -> bool:
    try:
        return _header_bytes(_kind_of(socket.if_indextoname(ifindex))) == header_bytes
    except OSError:  # it is gone
        return False


class Tap:
    """Owns every descriptor of the loaded program. One a service."""

    def __init__(self, order: TapOrder, attached: str, fds: list[int], sent_unattached: Sequence[str] = ()) -> None:
        self.order = order
        self.attached = attached  # "tcx", or "none" while nothing is attached yet
        self.sent_unattached = sent_unattached  # a line for each interface that could not be had
        self._control_fd, self._ports_fd, self._counters_fd, self.sent_slots, latency_fd, selections_fd, *rest = fds
        tries, rest = rest[:TRIES], rest[TRIES:]
        self.programs, self.sent_program, rest = rest[:2], rest[2], rest[3:]
        self.rings, self._links = rest[: order.workers], rest[order.workers :]
        self._control = mmap.mmap(self._control_fd, mmap.PAGESIZE)
        # One store: `struct.pack_into` zeroes first, and the program would find its lease over for that moment.
        self._lease = memoryview(self._control)[:8].cast("Q")
        self._ports = mmap.mmap(self._ports_fd, PORT_WORDS * 8)
        self.tables = Tables(self._control, selections_fd, tries)
        self.latency = ProductionLatency(self._control, latency_fd)
        self._cpus = kernel.possible_cpus()
        self.lease_ns = 0
        self.lapses = 0  # renewals that came too late
        self._lease_until_ns = 0

    @classmethod
    def load(cls, order: TapOrder, interpreter: str = LOADER_INTERPRETER) -> Tap:
        """Run the loader process and take over what it made. LoadError says what the host lacks."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, tempfile.TemporaryFile() as log:
            process = _start_loader(interpreter, theirs.fileno(), log)
            theirs.close()
            answer, fds = _ask_loader(ours, process, order)
            log.seek(0)
            if "error" in answer:
                raise LoadError(_explain(answer["error"], log.read().decode(errors="replace")))
        return cls(order, answer["attached"], fds, answer["sent_unattached"])

    @property
    def unattached(self) -> list[int]:
        """Programs (ingress, egress) that still need a clsact filter; empty with TCX. Loopback needs ingress alone."""
        if self.attached == "tcx":
            return []
        return self.programs[:1] if self.order.loopback else self.programs

    def watch(self, ports: Iterable[int]) -> None:
        """Set the server ports (all others are cleared)."""
        words = array.array("Q", bytes(PORT_WORDS * 8))
        for port in ports:
            words[port >> 6] |= 1 << (port & 63)
        self._ports[:] = words.tobytes()

    def arm(self, control: Control, lease_ns: int) -> None:
        """Write the orders and begin the lease: from here on the program copies. What the harm check measures stays."""
        self.lease_ns, self._lease_until_ns = lease_ns, 0
        CONTROL.pack_into(self._control, 0, 0, *control)
        self.renew()

    def renew(self) -> float:
        """Put the lease's end off; to be called several times per lease. How long ago it had run out, in seconds."""
        now_ns = time.monotonic_ns()
        late_ns = now_ns - self._lease_until_ns if self._lease_until_ns else 0
        self._lease_until_ns = now_ns + self.lease_ns
        self._lease[0] = self._lease_until_ns
        if late_ns > 0:
            self.lapses += 1
            self.tables.missed()
            self.latency.missed()
        return max(0, late_ns) / 1e9

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The lease is renewed while the block runs: it may take longer than the lease."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.lease_ns / 4e9):
                self.renew()

        thread = threading.Thread(target=renew)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def stop(self) -> None:
        """End the lease: nothing is copied any more. Links stay until `close`."""
        self._lease[0] = 0

    def counters(self) -> Counters:
        """What the program counted since it was loaded, over all CPUs."""
        raw = kernel.lookup(self._counters_fd, bytes(4), COUNTERS.size * self._cpus)
        return Counters(*map(sum, zip(*COUNTERS.iter_unpack(raw), strict=True)))

    def close(self) -> None:
        """Detach (TCX) and let go of everything."""
        self.stop()
        self.tables.close()
        self.latency.close()
        self._lease.release()
        self._control.close()
        self._ports.close()
        maps = (self._control_fd, self._ports_fd, self._counters_fd, self.sent_slots)
        for fd in (*self._links, *self.programs, self.sent_program, *self.rings, *maps):
            os.close(fd)


def _start_loader(interpreter: str, fd: int, log: Any) -> subprocess.Popen[bytes]:
    root = str(Path(agent.__file__).parent.parent)
    try:
        return subprocess.Popen(
            [interpreter, "-m", "agent.capture.loader", str(fd), str(os.getpid())],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"},  # never import from where we were started
        )
    except FileNotFoundError:
        raise LoadError(f"no {interpreter}: bcc needs Debian's python3 and python3-bpfcc") from None


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _ask_loader(
    channel: socket.socket, process: subprocess.Popen[bytes], order: TapOrder
) -> tuple[dict[str, Any], list[int]]:
    """The loader's answer and descriptors; when it dies or takes too long, an answer with an error."""
    channel.settimeout(LOADER_TIMEOUT_S)
    try:
        channel.send(json.dumps(asdict(order)).encode())
        data, ancillary, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(4 * _FDS_MAX))
    except OSError as error:
        process.kill()
        process.wait()
        return {"error": f"the loader failed: {error}"}, []
    process.wait()
    if not data:
        return {"error": f"the loader ended without an answer (status {process.returncode})"}, []
    return json.loads(data), _descriptors(ancillary)


def _explain(error: str, log: str) -> str:
    """One line: the loader's error, and of its log the line that says most."""
    telling = [line.strip() for line in log.splitlines() if "error:" in line or "Error" in line]
    detail = f" ({telling[-1]})" if telling and telling[-1] not in error else ""
    hint = "" if os.geteuid() == 0 else "; it needs root"
    return f"the kernel program was not loaded: {error}{detail}{hint}; `shadowtap doctor` says what this host lacks"
