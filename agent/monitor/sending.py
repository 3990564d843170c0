"""Sends notices, each destination in a thread and in an order of its own, so that none waits for another and the caller
for none. What cannot be delivered is tried again, less and less often, for an hour; an answer that says no is final.

Of Alertmanager only the newest state of an alert waits, and all that waits goes in one request. For the others each
notice is a message. At most WAITING_MAX wait for a destination; then the oldest is dropped, and counted.
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from agent.alerts_config import AlertsConfig
from agent.monitor.alertmanager import Alertmanager, address
from agent.monitor.alerts import Notice, Receiver, one_line
from agent.monitor.webhook import Template, Webhook

POST_S = 5.0  # for all of a request and its answer
WAITING_MAX = 1000
RETRY_S, RETRY_MAX_S = 1.0, 60.0
GIVE_UP_S = 3600.0
_LATER = (408, 425, 429)  # and 5xx: the request may be right the next time

Deliver = Callable[[Sequence[Notice]], None]


class Destination(Protocol):
    """Where JSON is posted."""

    @property
    def name(self) -> str:
        """In `Sender.problems`; holds no secret."""

    @property
    def url(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def receiver(self) -> Receiver: ...

    @property
    def together(self) -> bool:
        """A request holds all that waits, of each alert the newest."""

    def body(self, notices: Sequence[Notice]) -> bytes: ...


class UndeliveredError(Exception):
    """Why something did not arrive; `later`: it may do so later, at least `after_s` from now."""

    def __init__(self, why: str, later: bool = True, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.later, self.after_s = later, after_s


@dataclass(slots=True)
class Counts:
    """Of one destination, in notices; `failures` in attempts."""

    sent: int = 0
    failures: int = 0
    dropped: int = 0  # refused, too old, or too many waiting
    replaced: int = 0  # by newer ones of the same alert
    waiting: int = 0


class Sender:
    """All destinations. `send` may be called from any thread."""

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = tuple(outlets)

    @classmethod
    def start(cls, config: AlertsConfig, host: str, log: Callable[[str], None]) -> Sender:
        """To where the configuration says; `log` takes a line, in a thread of its own."""
        outlets = [Outlet("log", Receiver.PEOPLE, False, _lines(log))] if config.log else []
        for number, to in enumerate(config.alertmanager):
            name = f"alertmanager.{number} {_shown(to.url)}"
            alertmanager = Alertmanager(name, address(to.url), to.headers, host, config.labels, config.report_url)
            outlets.append(_posting(alertmanager))
        for number, hook in enumerate(config.webhooks):
            template, problem = None, ""
            try:
                template = Template.read(hook.template) if hook.template is not None else None
            except ValueError as error:
                problem = f"sent without its template {one_line(str(hook.template))}: {one_line(str(error))}"
            name = f"webhooks.{number} {_shown(hook.url)}"
            outlets.append(_posting(Webhook(name, hook.url, hook.headers, host, config.report_url, template), problem))
        return cls(outlets)

    def send(self, notices: Sequence[Notice]) -> None:
        """To all whom they are for. Does not block."""
        for outlet in self._outlets:
            outlet.put([each for each in notices if each.receiver is outlet.receiver])

    def problems(self) -> dict[str, str]:
        """What is wrong with each destination that has something wrong with it, in a line."""
        return {outlet.name: problem for outlet in self._outlets if (problem := outlet.problem)}

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each destination, see `Counts`."""
        return {outlet.name: asdict(outlet.counts()) for outlet in self._outlets}

    def close(self, limit_s: float = 2.0) -> int:
        """Try what waits once more, for at most so long; how many notices were not delivered."""
        end_s = time.monotonic() + limit_s
        for outlet in self._outlets:
            outlet.close()
        for outlet in self._outlets:
            outlet.join(end_s - time.monotonic())
        return sum(outlet.counts().waiting for outlet in self._outlets)


class Outlet:
    """One destination's queue and thread. `deliver` raises UndeliveredError."""

    def __init__(self, name: str, receiver: Receiver, together: bool, deliver: Deliver, problem: str = "") -> None:
        self.name, self.receiver = name, receiver
        self._together, self._deliver, self._standing = together, deliver, problem
        self._waiting: dict[Hashable, tuple[Notice, float]] = {}  # with when it came; the oldest first
        self._number = 0
        self._counts = Counts()
        self._failed = ""  # why the last attempt did
        self._in_a_row = 0
        self._not_before_s = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"alerts to {name}", daemon=True)
        self._thread.start()

    def put(self, notices: Sequence[Notice]) -> None:
        """To be delivered after all that came before."""
        with self._changed:
            for notice in notices:
                self._number += 1
                key = notice.alert.labels if self._together else self._number
                self._counts.replaced += self._waiting.pop(key, None) is not None
                self._waiting[key] = notice, time.monotonic()
                if len(self._waiting) > WAITING_MAX:
                    self._drop([next(iter(self._waiting))])
            self._changed.notify()

    @property
    def problem(self) -> str:
        """In a line, "" if there is none."""
        with self._changed:
            failed, row, waiting = self._failed, self._in_a_row, len(self._waiting)
        failing = f"{failed} ({row} in a row, {waiting} waiting)" if failed else ""
        return "; ".join(filter(None, (failing, self._standing)))

    def counts(self) -> Counts:
        """As they are now."""
        with self._changed:
            return Counts(**{**asdict(self._counts), "waiting": len(self._waiting)})

    def close(self) -> None:
        """End the thread once all that waits has been tried."""
        with self._changed:
            self._closing, self._not_before_s = True, 0.0
            self._changed.notify()

    def join(self, limit_s: float) -> None:
        """Wait for that."""
        self._thread.join(max(0.0, limit_s))

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._deliver([notice for notice, _ in batch.values()])
                error = None
            except UndeliveredError as raised:
                error = raised
            except Exception as bug:  # the other alerts are to go out all the same
                traceback.print_exc(file=sys.stderr)
                error = UndeliveredError(f"a fault of the agent: {one_line(repr(bug))}", False)
            self._account(batch, error)

    def _next(self) -> dict[Hashable, tuple[Notice, float]]:
        """What to deliver now; waits for it. Nothing when it is time to end."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                self._drop([key for key, (_, came_s) in self._waiting.items() if now_s - came_s > GIVE_UP_S])
                wait_s = self._not_before_s - now_s if self._waiting else None
                if self._waiting and wait_s is not None and wait_s <= 0:
                    keys = list(self._waiting) if self._together else [next(iter(self._waiting))]
                    return {key: self._waiting[key] for key in keys}
                if self._closing:
                    return {}
                self._changed.wait(wait_s)

    def _account(self, batch: dict[Hashable, tuple[Notice, float]], error: UndeliveredError | None) -> None:
        with self._changed:
            ours = [key for key, each in batch.items() if self._waiting.get(key) is each]  # not replaced meanwhile
            if error is None:
                self._counts.sent += len(batch)
                self._failed, self._in_a_row, self._not_before_s = "", 0, 0.0
                for key in ours:
                    del self._waiting[key]
                return
            self._failed = str(error)
            self._in_a_row += 1
            self._counts.failures += 1
            if error.later:
                self._not_before_s = time.monotonic() + max(error.after_s, _pause_s(self._in_a_row))
            else:
                self._drop(ours)

    def _drop(self, keys: Sequence[Hashable]) -> None:
        for key in keys:
            del self._waiting[key]
        self._counts.dropped += len(keys)


def _pause_s(failures: int) -> float:
    """Doubles, and is not quite the same on all hosts."""
    return min(RETRY_MAX_S, RETRY_S * 2.0 ** min(failures - 1, 16)) * random.uniform(0.8, 1.0)


def _posting(to: Destination, problem: str = "") -> Outlet:
    def deliver(notices: Sequence[Notice]) -> None:
        post(to.url, to.headers, to.body(notices))

    return Outlet(to.name, to.receiver, to.together, deliver, problem)


def _lines(log: Callable[[str], None]) -> Deliver:
    def deliver(notices: Sequence[Notice]) -> None:
        for notice in notices:
            try:
                log(as_line(notice))
            except (OSError, ValueError) as error:  # ValueError: closed
                raise UndeliveredError(f"cannot be written: {one_line(str(error))}") from None

    return deliver


def as_line(notice: Notice) -> str:
    """One line of a log."""
    alert = notice.alert
    evidence = "; ".join(f"{key}: {one_line(value)}" for key, value in alert.evidence.items())
    of = f" of {alert.shadow}" if alert.shadow else ""
    return f"alert {alert.state}: {alert.severity} {alert.name}{of}: {alert.summary}{evidence and f' [{evidence}]'}"


def _shown(url: str) -> str:
    """Without the path, which is a secret with many webhooks."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class _OneLimit(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Requests that can be cut off: urllib's own limit is for each read, and a trickle of bytes never reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.late = False
        self._sockets: list[socket.socket] = []

    def cut(self) -> None:
        """Whoever waits for an answer gets none."""
        self.late = True
        for each in self._sockets:
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # not TLS's own, which is not for two threads

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._seen(http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._seen(http.client.HTTPSConnection), request, context=ssl.create_default_context())

    def _seen(self, kind: Any) -> Any:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = kind(host, **options)
            connect = made.connect

            def connect_and_see() -> None:
                connect()
                self._sockets.append(made.sock)
                if self.late:
                    raise TimeoutError

            made.connect = connect_and_see  # type: ignore[method-assign]
            return made

        return connection


def post(url: str, headers: Mapping[str, str], body: bytes, limit_s: float = POST_S) -> None:
    """POST JSON; UndeliveredError unless the answer is 2xx. A redirect is none: following it may turn it into a GET."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise UndeliveredError("only http and https can be sent to", False)
    given = {"Content-Type": "application/json", "User-Agent": "shadowtap", **headers}
    opener, handler = urllib.request.OpenerDirector(), _OneLimit()
    kinds = (urllib.request.ProxyHandler, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor)
    for each in (handler, *(kind() for kind in kinds)):
        opener.add_handler(each)
    timer = threading.Timer(limit_s, handler.cut)
    timer.daemon = True
    timer.start()
    try:
        opener.open(urllib.request.Request(url, body, given, method="POST"), timeout=limit_s).close()
    except urllib.error.HTTPError as error:
        raise _refused(error) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        late = handler.late or isinstance(reason, TimeoutError)
        raise UndeliveredError(f"no answer within {limit_s:g} s" if late else _words(reason)) from None
    finally:
        timer.cancel()


def _refused(error: urllib.error.HTTPError) -> UndeliveredError:
    said, answer = b"", cast(http.client.HTTPResponse, error.fp)
    with suppress(OSError, http.client.HTTPException, ValueError, AttributeError), error:
        said = answer.read1(500)  # one read: what there is
    if 300 <= error.code < 400:
        return UndeliveredError(f"answers {error.code}, a redirect: give the URL that it leads to", False)
    text = one_line(said.decode(errors="replace"), 200)
    why = f"answers {error.code} {one_line(str(error.reason), 60)}{text and f': {text}'}"
    after = error.headers.get("Retry-After", "") if error.headers else ""
    after_s = min(float(after), RETRY_MAX_S) if after.isascii() and after.isdigit() else 0.0
    return UndeliveredError(why, error.code in _LATER or error.code >= 500, after_s)


def _words(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return one_line(text, 200)
