"""The service's end of the watch process: starts it, starts it again when it dies, and keeps what it told last."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent import messages
from agent.child import start_module
from agent.config import Config

STUCK_S = 60.0  # it says something each second, unless the host is very busy
AGAIN_MIN_S, AGAIN_MAX_S = 1.0, 60.0  # after it died, until it is started again
END_S = 10.0
FEED_BUFFER_BYTES = 1 << 20


@dataclass(slots=True)
class Told:
    """What the watch process told last, by kind; verdicts and traffic by shadow."""

    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    traffic: dict[str, dict[str, Any]] = field(default_factory=dict)
    harm: dict[str, Any] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)


class WatchLink:
    """Registered in the service's selector with itself as data. The feed's two ends live as long as the service, so
    that a new process goes on reading where the old one ended."""

    def __init__(self, order: dict[str, Any], say: Callable[[str], None]) -> None:
        self.told = Told()
        self.restarts = 0
        self._order = order
        self._say = say
        self._feed_out, self._feed_in = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._feed_out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FEED_BUFFER_BYTES)
        self._feed_out.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._selector: selectors.BaseSelector | None = None
        self._due_s = 0.0
        self._heard_s = 0.0
        self._started_s = 0.0
        self._pause_s = AGAIN_MIN_S

    @property
    def feed_fd(self) -> int:
        """Where workers write; each inherits a copy."""
        return self._feed_out.fileno()

    @property
    def running(self) -> bool:
        """It has not ended, as far as is known."""
        return self._channel is not None

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid if self._process and self.running else None

    def start(self, selector: selectors.BaseSelector | None = None) -> None:
        """Start it; with a selector, hear it from now on."""
        self._selector = selector or self._selector
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [theirs.fileno(), self._feed_in.fileno()]
        self._process = start_module("agent.monitor.watch_start", fds, fds)
        theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._heard_s = self._started_s = time.monotonic()
        self.tell({**self._order, "parent": os.getpid()})
        if self._selector is not None:
            self._selector.register(ours, selectors.EVENT_READ, self)

    def hear_from(self, selector: selectors.BaseSelector) -> None:
        """Hear it from now on."""
        self._selector = selector
        if self._channel is not None:
            selector.register(self._channel, selectors.EVENT_READ, self)

    def tell(self, message: dict[str, Any]) -> bool:
        """Send a message; False when it did not get it, because it is behind or gone."""
        if self._channel is None:
            return False
        try:
            messages.send(self._channel, message)
        except OSError:
            return False
        return True

    def take(self) -> list[dict[str, Any]]:
        """What has come, kept in `told`: verdicts that are news to the caller. It may have ended, too."""
        verdicts: list[dict[str, Any]] = []
        while self._channel is not None:
            try:
                message = messages.receive(self._channel)
            except BlockingIOError:
                break
            if message is None:
                self._ended()
                break
            self._heard_s = time.monotonic()
            if "judged" in message:
                self.told.verdicts[message["judged"]] = message
                verdicts.append(message)
            elif "traffic" in message:
                self.told.traffic[message["traffic"]] = message
            elif "harm" in message:
                self.told.harm = message["harm"]
            elif "watch" in message:
                self.told.watch = message["watch"]
            elif "say" in message:
                self._say(message["say"])
        return verdicts

    def look(self, now_s: float) -> bool:
        """Start it again when that is due; True when it was, and has to be told everything anew."""
        if self.running:
            if self._process is not None and now_s - self._heard_s > STUCK_S:
                self._process.kill()  # its end is heard like any other
            elif now_s - self._started_s > AGAIN_MAX_S:
                self._pause_s = AGAIN_MIN_S  # it works: what was before is no reason to wait next time
            return False
        if not self._due_s:
            self._due_s = now_s + self._pause_s
            self._pause_s = min(self._pause_s * 2, AGAIN_MAX_S)
        if now_s < self._due_s:
            return False
        self._due_s = 0.0
        try:
            self.start()
        except OSError as error:
            self._say(f"the watch process cannot be started: {error.strerror}")
            return False
        self.restarts += 1
        return True

    def close(self) -> None:
        """End it, and wait until it has kept its state."""
        self._forget()
        for end in (self._feed_out, self._feed_in):
            end.close()
        if self._process is not None:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ended(self) -> None:
        self._forget()
        if self._process is not None:
            self._process.kill()  # it has closed its channel, so it is of no use
        status = self._process.wait() if self._process else 0
        self._say(f"the watch process died (status {status}): nothing is judged until it is started again")

    def _forget(self) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        if self._selector is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(channel)
        channel.close()


def watch_order(config: Config, user: str) -> dict[str, Any]:
    """What the watch process is told at its start."""
    return {
        "user": user,
        "nice": config.capture.nice,
        "scheduler": config.capture.scheduler,
        "shadows": list(config.shadows),
        "directory": str(config.state.directory) if config.state else None,
        "resources": config.resources.model_dump(mode="json") if config.resources else None,
        "alerts": config.alerts.model_dump(mode="json"),
        "host": socket.gethostname(),
    }
