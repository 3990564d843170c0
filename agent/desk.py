"""The control API's desk: what `shadowtap status`, `set`, `trip`, `reset`, `ramp`, `rollback` and `history` ask for.

Switching off is always possible. Whatever brings a shadow on, or changes what it takes, is refused while it cannot be
recorded, and leaves a version and an audit entry with its author and reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from agent.control.guard import Cause, State
from agent.control.records import CANNOT_RECORD
from agent.control.request import ControlError
from agent.control.standing import Standing
from agent.control.steering import CHANGEABLE
from agent.control.store import StateError, Version
from agent.errors import ConfigError
from agent.watch_config import RampPlan
from agent.watch_view import clocks, plain, problems_of
from agent.watching import Watching

NOT_NOW = 409
PAGE = 100  # versions that are looked through for a good one
T = TypeVar("T")


class Desk:
    """See `agent.control.desk.Desk`. `status` gives what the service itself has to say."""

    def __init__(self, watching: Watching, status: Callable[[], dict[str, Any]]) -> None:
        self._watching = watching
        self._service_status = status

    # Asking

    def status(self) -> dict[str, Any]:
        """All there is besides the shadows' settings."""
        watching, now = self._watching, clocks()
        standings = watching.standings.values()
        told = watching.link.told if watching.link else None
        return {
            **self._service_status(),
            "guards": {each.name: each.guard_view(now) for each in standings},
            "verdicts": {each.name: each.verdict for each in standings if each.verdict},
            "traffic": {name: message["recent"] for name, message in told.traffic.items()} if told else {},
            "resources": told.watch.get("usage", {}) if told else {},
            "ramps": {each.name: each.ramp_view() for each in standings if each.ramp},
            "harm": (told.harm or None) if told else None,
            "alerts": self.alerts(),
            "problems": problems_of(watching),
            "version": watching.version,
        }

    def verdict(self, name: str) -> dict[str, Any]:
        """What the judge says of a shadow, and about what."""
        standing = self._standing(name)
        period = None
        if standing.judged:
            period = {
                "started_ns": standing.period_started_ns,
                "fingerprint": standing.fingerprint,
                "noisy_routes": standing.judged["noisy_routes"],
            }
        return {"shadow": name, "period": period, "verdict": standing.verdict}

    def history(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        """Versions, the newest first."""
        versions = _read(lambda: self._watching.records.store.versions(limit, before))
        return [self._version_view(version) for version in versions]

    def version(self, number: int) -> dict[str, Any]:
        """One version with its configuration."""
        version, config = self._stored(number)
        return {**self._version_view(version), "config": config}

    def audit(self, limit: int, shadow: str | None) -> list[dict[str, Any]]:
        """Who did what, the newest first."""
        return [asdict(entry) for entry in _read(lambda: self._watching.records.store.audits(limit, shadow))]

    def alerts(self) -> list[dict[str, Any]]:
        """Active ones."""
        link = self._watching.link
        return list(link.told.watch.get("alerts", [])) if link else []

    def ramp(self, name: str) -> dict[str, Any]:
        """A shadow's ramp."""
        return self._standing(name).ramp_view()

    # Doing

    def change(self, name: str, fields: dict[str, Any], author: str, reason: str) -> None:
        """Change settings of a shadow."""
        watching, standing = self._watching, self._standing(name)
        only_off = fields == {"enabled": False}
        if fields.get("enabled") is True and standing.guard.state is State.TRIPPED:
            raise ControlError(
                NOT_NOW, f"shadow {name} is tripped ({standing.guard.reason}): `shadowtap reset {name}` lets it go on"
            )
        if "percentage" in fields and standing.ramp is not None and not standing.ramp.over:
            raise ControlError(NOT_NOW, f"shadow {name} is on a ramp: `shadowtap ramp {name} --abort` ends that first")
        why = reason or f"{name}: {', '.join(fields)} set"
        if only_off:
            watching.change(name, fields, author, why)
        else:
            watching.records.must_record()
            self._recorded(lambda: watching.steering.change(name, fields), author, why)
        watching.records.note(author, "change", name, reason, {"fields": fields, "version": watching.version})
        if "percentage" in fields:
            standing.forget_ended_ramp()
            watching.keep(standing)
        watching.put_in_force(standing)
        watching.judge(standing, fresh=False)

    def trip(self, name: str, reason: str, author: str) -> dict[str, Any]:
        """Switch a shadow off by hand."""
        standing = self._standing(name)
        self._watching.trip(standing, Cause.MANUAL, reason, author=author)
        return standing.guard_view(clocks())

    def reset(self, name: str, reason: str, author: str) -> dict[str, Any]:
        """Let a tripped shadow take traffic again; of an active one, begin to judge anew."""
        watching, standing = self._watching, self._standing(name)
        if watching.records.begin_anew():
            watching.begin_records_anew(author)
        watching.records.must_record()
        watching.harm.forgive(standing)
        standing.guard.reset(author, clocks())
        standing.forget_trouble()
        watching.mark()
        watching.keep(standing)
        watching.records.note(author, "reset", name, reason)
        watching.put_in_force(standing)
        watching.judge(standing, fresh=True)
        return standing.guard_view(clocks())

    def start_ramp(self, name: str, spec: dict[str, Any], author: str) -> dict[str, Any]:
        """Begin a ramp."""
        watching, standing = self._watching, self._standing(name)
        if watching.config.judge is None:
            raise ControlError(NOT_NOW, "nothing is judged (`judge: null`), so no step could ever be left")
        if standing.guard.state is not State.ACTIVE:
            raise ControlError(NOT_NOW, f"shadow {name} is {standing.guard.state}: `shadowtap reset {name}` first")
        if standing.ramp is not None and not standing.ramp.over:
            raise ControlError(NOT_NOW, f"shadow {name} is on a ramp already: abort that one first")
        watching.records.must_record()
        before = standing.ramp
        try:
            standing.start_ramp(RampPlan.model_validate(spec))
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from None
        watching.keep(standing)
        if problem := watching.records.problem:  # or a restart would forget it, and take what is configured
            standing.ramp = before
            raise ControlError(CANNOT_RECORD, f"{problem}: the ramp cannot be kept, so it does not begin")
        if not watching.put_in_force(standing):
            standing.ramp = before
            watching.keep(standing)
            raise ControlError(NOT_NOW, f"shadow {name}: the first step cannot be put in force: its group has no room")
        self._ramp_changed(standing, author, "ramp started", spec)
        return standing.ramp_view()

    def steer_ramp(self, name: str, action: str, author: str) -> dict[str, Any]:
        """Pause, resume or abort it. An aborted ramp leaves its first step's percentage, or what is configured where
        that is less."""
        watching, standing = self._watching, self._standing(name)
        ramp = standing.ramp
        if ramp is None:
            raise ControlError(NOT_NOW, f"shadow {name} has no ramp: `shadowtap ramp {name} --steps ...` starts one")
        if not {"pause": ramp.pause, "resume": ramp.resume, "abort": ramp.abort}[action]():
            raise ControlError(NOT_NOW, f"the ramp of shadow {name} is {ramp.state}, so it cannot {action}")
        if not self._ramp_changed(standing, author, f"ramp {action}", {}) and ramp.pause():
            watching.keep(standing)
            raise ControlError(NOT_NOW, f"shadow {name}: the step cannot be put in force: its group has no room")
        return standing.ramp_view()

    def rollback(self, version: int | None, reason: str, author: str) -> dict[str, Any]:
        """Put an older version in force: of all shadows, what can be changed while the agent runs."""
        watching = self._watching
        watching.records.must_record()
        if version is None:
            versions = _read(lambda: watching.records.store.versions(PAGE, watching.version))
            good = [each.id for each in versions if not each.bad]
            if not good:
                raise ControlError(NOT_NOW, "there is no earlier version to go back to that is not known to be bad")
            version = good[0]
        _, config = self._stored(version)
        known = [name for name in watching.standings if name in config["shadows"]]
        sections = {name: {key: config["shadows"][name][key] for key in CHANGEABLE} for name in known}
        before = watching.version
        self._recorded(lambda: watching.steering.change_all(sections), author, reason or f"back to version {version}")
        watching.records.note(author, "rollback", "", reason, {"to": version, "from": before})
        for standing in watching.standings.values():
            standing.forget_ended_ramp()
            watching.keep(standing)
            watching.put_in_force(standing)
            watching.judge(standing, fresh=False)
        newest = _read(lambda: watching.records.store.versions(1))
        return {
            "version": watching.version,
            "restored": version,
            "diff": list(newest[0].diff) if newest and before != newest[0].id == watching.version else [],
        }

    def _recorded(self, change: Callable[[], None], author: str, reason: str) -> None:
        """Change settings and give that a version; ControlError, with all as it was, when there is no room for one: a
        disk that is full may still take what is smaller."""
        watching, steering = self._watching, self._watching.steering
        shadows = steering.configured.data["shadows"]
        before = {name: {key: shadow[key] for key in CHANGEABLE} for name, shadow in shadows.items()}
        change()
        try:
            watching.version = watching.records.new_version(plain(steering.configured), author, reason)
        except ControlError:
            steering.change_all(before)
            raise

    def _ramp_changed(self, standing: Standing, author: str, action: str, detail: dict[str, Any]) -> bool:
        """False when its step cannot be put in force."""
        watching = self._watching
        watching.keep(standing)
        watching.records.note(author, action, standing.name, "", detail)
        done = watching.put_in_force(standing)
        watching.judge(standing, fresh=False)
        return done

    def _standing(self, name: str) -> Standing:
        return self._watching.standings[name]

    def _stored(self, number: int) -> tuple[Version, dict[str, Any]]:
        found = _read(lambda: self._watching.records.store.version(number))
        if found is None:
            raise ControlError(404, f"no version {number}: `shadowtap history` lists them")
        return found

    def _version_view(self, version: Version) -> dict[str, Any]:
        return {
            "id": version.id,
            "at_ns": version.at_ns,
            "author": version.author,
            "reason": version.reason,
            "diff": list(version.diff),
            "bad": version.bad,
            "current": version.id == self._watching.version,
        }


def _read(read: Callable[[], T]) -> T:
    """What is read from the store; ControlError when it cannot be."""
    try:
        return read()
    except StateError as error:
        raise ControlError(500, str(error)) from None
