"""The do-no-harm check as the service runs it: the schedule (agent/control/harm.py), the kernel's switch, and the judge
in the watch process."""

from __future__ import annotations

import time

from agent.control.guard import Cause
from agent.control.harm import HarmCheck, Latency
from agent.control.standing import Standing
from agent.control.steering import Steering
from agent.monitor.watch_link import WatchLink
from agent.watch_config import Harm
from agent.watch_view import verdict_reason

HURRY_LOG_E = 1.0  # evidence that mirroring does harm from which on the check does not rest


class HarmWatch:
    """Owns the check. Without `begin` it does nothing."""

    def __init__(self, steering: Steering, link: WatchLink | None) -> None:
        self._steering = steering
        self._link = link
        self._check: HarmCheck | None = None
        self._harmed = False
        self._forgiven = False  # a person has reset, and nothing has come yet that does not rest on what was before
        self._paused_ns = 0  # since when, 0 while mirroring goes on

    @property
    def paused(self) -> bool:
        """Nothing is mirrored just now."""
        return self._paused_ns > 0

    def begin(self, settings: Harm, latency: Latency) -> None:
        """Check from now on."""
        self._check = HarmCheck(settings, latency, self._pause, time.monotonic())

    def look(self, now_s: float, mirroring: bool) -> None:
        """Go on with it; `mirroring`: there is anything to switch off."""
        if self._check is None or self._link is None:
            return
        harm = self._link.told.harm
        self._check.hurry = any(each["log_e"]["rollback"] > HURRY_LOG_E for each in harm.get("findings", ()))
        if (measures := self._check.look(now_s, mirroring)) is not None:
            self._link.tell({"harm": measures, "at_ns": time.time_ns()})

    def abandon(self) -> None:
        """Mirroring has changed: the blocks under way say nothing, and it goes on where it may."""
        if self._check is not None:
            self._check.abandon(time.monotonic())

    def take(self) -> str:
        """The watch process has said something: a reason to trip every shadow, once, or ""."""
        link = self._link
        harm = link.told.harm if link else {}
        if link is None or not harm:
            return ""
        if not harm.get("rollback"):
            self._forgiven = False
        elif self._forgiven:  # said before it had heard that it is to forget this, or it has not heard
            link.told.harm = {}
            link.tell({"forget_harm": True})
        elif not self._harmed:
            self._harmed = True
            return f"mirroring slows production down: {verdict_reason(harm)}"
        return ""

    def forgive(self, standing: Standing) -> None:
        """A person is about to reset a shadow: what the check knew so far trips nothing again."""
        if self._link is None:
            return
        if self._harmed or standing.guard.cause is Cause.HARM or self._link.told.harm.get("word") == "fail":
            self._harmed, self._forgiven = False, True
            self._link.told.harm = {}
            self._link.tell({"forget_harm": True})

    def _pause(self, paused: bool) -> None:
        """The judge is told, since what a pause cuts is no loss."""
        self._steering.pause(paused)
        now_ns = time.time_ns()
        if paused and not self._paused_ns:
            self._paused_ns = now_ns
            self._tell(now_ns, 0)
        elif not paused and self._paused_ns:
            began_ns, self._paused_ns = self._paused_ns, 0
            self._tell(began_ns, now_ns)

    def _tell(self, from_ns: int, to_ns: int) -> None:
        if self._link is not None:
            self._link.tell({"paused": [from_ns, to_ns]})
