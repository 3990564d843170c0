"""One connection to an upstream: a non-blocking socket that carries one request at a time.

    CONNECTING ──► [SECURING ──►] BUSY ──► IDLE ──► BUSY ...        every state ──► CLOSED

The times of an answer are compared with production's, which come from packets, so they must not contain the delays of
this process. Therefore the socket is our own and not a transport's: `t_sent_ns` is read directly before send() (the hub
may know better when the request left), and what is received carries the kernel's receive time (SO_TIMESTAMPNS). TCP
gives one time for each read, that of the last segment it returned: exact for the last byte, and for the first byte when
the first read returned one segment; else late by at most the spread of the segments that waited together.

TLS is done on the bytes here, not by a wrapped socket, so that what is deciphered has its segment's time. A PROXY
header goes out in front of everything else, and binds the connection to one client (`key`).

The reader is registered once for the connection's life. libuv stops watching a socket after an error event, so data is
always read until a response is whole or the kernel has no more; an error that waits behind data is then seen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from enum import IntEnum

from replay.exchange import Answer, Outcome
from replay.job import SAFE_METHODS, Hub, Job, Owner, key_of, left_ns
from replay.outcome import make_outcome, so_far
from replay.proxy_header import proxy_v2
from replay.response import Progress, ResponseReader
from replay.sockets import ANCILLARY_BYTES, LOCAL_ERRORS, TIMESPEC, prepare, reason_of
from replay.tls import TlsStream
from replay.wire import added_lines, asks_to_close, parties, server_name, wire_bytes

READ_BYTES = 16 * 1024
LARGE_READ_BYTES = 256 * 1024  # once a response has filled a read
READS_PER_EVENT = 16  # then other connections get their turn


class State(IntEnum):
    """Where a connection stands."""

    CONNECTING = 0
    SECURING = 1  # TLS handshake
    BUSY = 2
    IDLE = 3
    CLOSED = 4


class Connection:
    """See the module. Made with `open`, which gives it its first job."""

    __slots__ = (
        "_ends",
        "_hub",
        "_loop",
        "_owner",
        "_reader",
        "_recvmsg",
        "_send",
        "_socket",
        "_tls",
        "_unsent",
        "fd",
        "heard_s",
        "job",
        "key",
        "reused",
        "served",
        "since_s",
        "state",
        "t_sent_ns",
    )

    def __init__(self, hub: Hub, owner: Owner, sock: socket.socket, key: object = None) -> None:
        """`key` says which requests it may carry, for the owner."""
        self._hub = hub
        self._loop = hub.loop
        self._owner = owner
        self._socket = sock
        self._recvmsg = sock.recvmsg
        self._send = sock.send
        self._reader = ResponseReader(hub.settings.body_limit_bytes)
        self._ends = b""  # what its packets call it
        self._tls: TlsStream | None = None
        self._unsent: memoryview | None = None  # what the kernel did not take yet
        self.fd = sock.fileno()
        self.heard_s = 0.0  # when the last bytes came, on the coarse clock
        self.job: Job | None = None
        self.key = key
        self.reused = False
        self.served = 0  # requests
        self.since_s = 0.0  # when the present state began, on the coarse clock
        self.state = State.CLOSED
        self.t_sent_ns = 0

    # Connecting

    def open(self, job: Job) -> None:
        """Begin to connect, for `job`."""
        self.job = job
        self.state = State.CONNECTING
        self.since_s = self._hub.now_s
        try:
            code = self._prepare()
        except OSError as error:
            code = error.errno or errno.EIO
        if code == 0:
            self._connected()
        elif code == errno.EINPROGRESS:
            self._loop.add_writer(self.fd, self._on_connect)
        else:
            self._connect_failed(code)

    def _prepare(self) -> int:
        upstream = self._owner.upstream
        prepare(self._socket, upstream.family)
        return self._socket.connect_ex(upstream.sockaddr)

    def _on_connect(self) -> None:
        if self.state is not State.CONNECTING:
            return
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._connect_failed(code)
        else:
            self._connected()

    def _connected(self) -> None:
        job = self.job
        if job is None:
            return
        self._loop.add_reader(self.fd, self._on_readable)
        self._loop.remove_writer(self.fd)
        self._ends = key_of(self._socket) if self._hub.sent_times is not None else b""
        self._owner.connected()
        transport = self._owner.upstream.transport
        header = proxy_v2(*parties(job.origin)) if transport.proxy_protocol else b""
        if transport.tls is None:
            self.send(job, header)
            return
        self.state = State.SECURING
        self._tls = tls = TlsStream(transport.tls, server_name(transport.server_name, job.request))
        if tls.failed:  # the request's host cannot be asked for
            self._fail(job, Answer.TLS, tls.failed)
        else:
            self._write(job, header + tls.begin())

    def _connect_failed(self, code: int, answer: Answer = Answer.CONNECT) -> None:
        job = self.job
        if job is None:
            return
        full = code == errno.EAGAIN and self._owner.upstream.family == socket.AF_UNIX  # its backlog
        outcome = None if code in LOCAL_ERRORS and not full else self._outcome(job, answer, os.strerror(code).lower())
        self.close()
        self._owner.connect_failed(self, job, outcome)

    def _secure(self, tls: TlsStream, job: Job, data: bytes) -> bytes:
        """Take ciphertext; what it says, which is nothing during the handshake and after a failure."""
        plain = tls.receive(data)
        if answer := tls.pending():
            self._write(job, answer)
        if tls.failed:
            self._fail(job, Answer.TLS, tls.failed)
        elif self.state is State.SECURING and tls.ready and self.job is job:
            self.send(job)
        return plain

    # Sending

    def send(self, job: Job, before: bytes = b"") -> None:
        """Send the job's request, after `before`; what fails here is reported later, never from within."""
        hub = self._hub
        self.job = job
        self.state = State.BUSY
        self.since_s = hub.now_s
        self.served += 1
        self._reader.begin(job.request.method)
        mark = hub.mark
        if job.origin is not None and self._owner.upstream.transport.forwarded_for:
            mark = added_lines(job.request.head, mark, job.origin)
        data = before + wire_bytes(job.request, mark)
        if self._tls is not None:
            data = self._tls.encrypt(data)
        self.t_sent_ns = time.time_ns()
        self._write(job, data)

    def _write(self, job: Job, data: bytes) -> None:
        if self._unsent is not None:  # of a handshake's last flight, at most
            self._unsent = memoryview(bytes(self._unsent) + data)
            return
        try:
            sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._loop.call_soon(self._send_failed, job, error)
            return
        if sent != len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self.fd, self._on_writable)

    def _on_writable(self) -> None:
        job, unsent = self.job, self._unsent
        if job is None or unsent is None:
            return
        try:
            unsent = unsent[self._send(unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._send_failed(job, error)
            return
        self._unsent = unsent if unsent else None
        if self._unsent is None:
            self._loop.remove_writer(self.fd)

    def _send_failed(self, job: Job, error: OSError) -> None:
        """The upstream may have answered before it closed, so what it sent is read first."""
        if self.job is job:
            self._on_readable()
        if self.job is job:
            self._lost(job, reason_of(error))

    # Receiving

    def _on_readable(self) -> None:
        size = READ_BYTES
        for _ in range(READS_PER_EVENT):
            try:
                data, ancillary, _, _ = self._recvmsg(size, ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._at_end(reason_of(error))
                return
            job = self.job
            if data and job is None and self._tls is not None:
                data = self._tls.receive(data)
                if not (data or self._tls.closed or self._tls.failed or self._tls.pending()):
                    continue  # session tickets and the like, which may come at any time
                self._at_end("", len(data))
                return
            if not data or job is None:
                self._at_end("", len(data))
                return
            if ancillary:
                seconds, nanoseconds = TIMESPEC(ancillary[0][2])
                t_ns = seconds * 1_000_000_000 + nanoseconds
            else:
                t_ns = time.time_ns()
                self._hub.counters.clock_fallbacks += 1
            full = len(data) == size
            if self._tls is not None:
                data = self._secure(self._tls, job, data)
                if self.job is not job:
                    return
                if self._tls.closed:
                    self._at_close(job, data, t_ns)
                    return
            if data and self._take(job, data, t_ns):
                return
            if full:
                size = LARGE_READ_BYTES
        self._loop.call_soon(self._read_on, job)

    def _at_close(self, job: Job, data: bytes, t_ns: int) -> None:
        """The peer ended TLS in order; `data` came before that."""
        if data:
            self._take(job, data, t_ns)
        if self.state is not State.CLOSED:
            self._at_end("")

    def _read_on(self, job: Job | None) -> None:
        if self.job is job:
            self._on_readable()

    def _take(self, job: Job, data: bytes, t_ns: int) -> bool:
        """Feed the reader; True when the job has ended."""
        reader = self._reader
        self.heard_s = self._hub.now_s
        if t_ns < self.t_sent_ns and self.reused and not reader.started:
            # It waited in the socket before the request was sent (a 408 before a close, a second response): the
            # upstream has not answered this request.
            self._hub.counters.excess += 1
            self._lost(job, "bytes that answer no request")
            return True
        progress = reader.feed(data, t_ns)
        if progress is Progress.MORE:
            return False
        if progress is Progress.WHOLE:
            self._whole(job)
        else:
            self._fail(job, Answer.GARBAGE, reader.detail)
        return True

    def _whole(self, job: Job) -> None:
        reader = self._reader
        counters = self._hub.counters
        outcome = self._outcome(job, Answer.OK)
        counters.note_latency(outcome.t_last_ns - outcome.t_sent_ns)
        if reader.excess_bytes:
            counters.excess += 1
        if self._unsent is not None:
            counters.early += 1
        if (
            not reader.keep_alive
            or reader.excess_bytes
            or self._unsent is not None
            or asks_to_close(job.request)
            or self.served == self._hub.settings.requests_per_connection
        ):
            self.close()
        else:
            self.job = None
            self.state = State.IDLE
            self.reused = True
            self.since_s = self._hub.now_s
        self._owner.ended(self, job, outcome)

    def _at_end(self, reason: str, stray_bytes: int = 0) -> None:
        """The upstream closed in order ("") or with an error, or sent what no request asked for."""
        job = self.job
        if job is not None:
            # Without close_notify, what only the close would end may have been cut (RFC 9112 section 9.8).
            cut = self._tls is not None and not self._tls.closed
            if not reason and not cut and self._reader.end() is Progress.WHOLE:
                self._whole(job)
            else:
                unsaid = " without a TLS close_notify" if cut and self._reader.started else ""
                self._lost(job, reason or f"closed by the upstream{unsaid}")
        elif self.state is State.IDLE:
            self._hub.counters.excess += bool(stray_bytes)
            self._hub.counters.idle_closed += not stray_bytes
            self.close()
            self._owner.went_away(self)

    def _lost(self, job: Job, reason: str) -> None:
        """No more will come. Once, and only if nothing came on a reused connection, a safe request is sent anew: the
        upstream may have acted on it before it closed."""
        if self.state is State.SECURING:
            self._fail(job, Answer.TLS, f"{reason} inside the TLS handshake")
            return
        if self.reused and not self._reader.started and not job.resent and job.request.method in SAFE_METHODS:
            job.resent = True
            self._hub.counters.resends += 1
            self.close()
            self._owner.resend(self, job)
            return
        self._fail(job, Answer.RESET, f"{reason} {self._so_far()}")

    def _fail(self, job: Job, answer: Answer, detail: str) -> None:
        self._hub.counters.tls_failures += answer is Answer.TLS
        self._reader.close()
        outcome = self._outcome(job, answer, detail)
        self.close()
        self._owner.ended(self, job, outcome)

    def expire(self, now_s: float) -> None:
        """Enforce the time limits; `now_s` is the coarse clock, less one sweep."""
        settings = self._hub.settings
        waited_s = now_s - self.since_s
        job = self.job
        if job is None:
            if self.state is State.IDLE and waited_s >= settings.keepalive_s:
                self.close()
                self._owner.went_away(self)
        elif self.state is State.CONNECTING:
            if waited_s >= settings.connect_timeout_s:
                self._connect_failed(errno.ETIMEDOUT, Answer.CONNECT_TIMEOUT)
        elif self.state is State.SECURING:
            if waited_s >= settings.connect_timeout_s:
                self._fail(job, Answer.TLS, "no TLS handshake within the time limit")
        elif problem := settings.overdue(waited_s, now_s - self.heard_s if self._reader.started else None):
            self._fail(job, Answer.TIMEOUT, f"{problem} {self._so_far()}")

    def close(self) -> None:
        """Close the socket and forget the job; says nothing to the owner."""
        if self.state is State.CLOSED:
            return
        if self._tls is not None and self._unsent is None and (goodbye := self._tls.close()):
            with contextlib.suppress(OSError):
                self._send(goodbye)
        self.state = State.CLOSED
        self.job = None
        self._unsent = None
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        self._socket.close()

    def _so_far(self) -> str:
        if self.state is State.SECURING:
            return "in the TLS handshake"
        return "before the request was sent" if self._unsent is not None else so_far(self._reader)

    def _outcome(self, job: Job, answer: Answer, detail: str = "") -> Outcome:
        tls = self._tls.info if self._tls is not None else None
        t_sent_ns = left_ns(self._hub, self._ends, self.t_sent_ns, self._reader.t_first_ns)
        return make_outcome(self._owner.upstream, self._reader, tls, job.t_queued_ns, t_sent_ns, answer, detail)
