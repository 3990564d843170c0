"""The shadow pools of a running agent: who finds upstreams, who runs balancer programs, and who is told of a change.

scout ─────(upstreams found)───────┐
balancing ─(where programs listen)─┼──► Pools ──(checked against production)──► workers
control socket, SIGHUP ────────────┘
"""

from __future__ import annotations

import selectors
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import balancing, messages, privileges
from agent.child import Child
from agent.config import Config
from agent.discovery import scout
from agent.discovery.settings import DnsSource, FileSource, Settings, TargetGroup, summed_up
from agent.errors import LoadError
from agent.order import Order, production_of
from agent.pool_order import Front, PoolOrder
from agent.shadow_config import Shadow
from replay.balancer.address import is_numeric
from replay.balancer.program import ProgramSettings
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError
from replay.tls import make_context

PROGRAMS_START_S = 90.0
FIRST_LOOK_S = 10.0  # for discovery, before the agent starts without upstreams
CHILD_END_S = 15.0
SCOUT_AGAIN_MIN_S, SCOUT_AGAIN_MAX_S = 1.0, 60.0  # after discovery died, until it is started again

TellPool = Callable[[int, PoolOrder], None]  # the shadow's place, its pool


def source_of(shadow: Shadow) -> Settings | None:
    """How a shadow's upstreams are looked up, None when they are listed."""
    found = shadow.discovery
    if shadow.shadow_pool_arn is not None:
        return TargetGroup(shadow.shadow_pool_arn, found.endpoint_url or "")
    if found.dns is not None:
        return DnsSource(found.dns.name, found.dns.port or 0, found.dns.type, tuple(found.dns.nameservers))
    return FileSource(str(found.file)) if found.file is not None else None


def program_of(config: Config, name: str) -> ProgramSettings | None:
    """What a shadow's balancer program is to run, None with the embedded engine."""
    balancer = config.shadows[name].balancer
    if not balancer.is_program or balancer.from_ is None:
        return None
    return ProgramSettings(
        kind=balancer.engine,
        source=str(balancer.from_),
        production=str(balancer.production or ""),
        servers=dict(balancer.servers),
        bind=balancer.bind,
        keep=tuple(balancer.keep),
        allow_production=balancer.allow_production,
        binary=str(balancer.program or ""),
        addresses=production_of(config),
    )


class Pools:
    """Starts and hears the two children, and keeps what each shadow's pool is now."""

    def __init__(self, config: Config, order: Order, user: str, say: Callable[[str], None]) -> None:
        self.order = order
        self._user = user
        self._say = say
        self._tell: TellPool = lambda place, pool: None
        self._names = [shadow.name for shadow in order.shadows]
        self._sources = {name: found for name in self._names if (found := source_of(config.shadows[name]))}
        self._programs = {name: program for name in self._names if (program := program_of(config, name))}
        self._scout: Child | None = None
        self._scout_due_s = 0.0  # when to start it again, once it died
        self._scout_pause_s = SCOUT_AGAIN_MIN_S
        self._balancing: Child | None = None
        self._news: dict[str, dict[str, Any]] = {}  # what was heard last, by shadow
        self._known: dict[str, dict[str, str]] = {}  # by shadow, what the names of its upstreams stood for at the start
        self._selector: selectors.BaseSelector | None = None

    # Start and end

    def start(self) -> Order:
        """Start what is needed, with the privileges there are; the order with every pool as it is now. Blocks.
        UpstreamError and LoadError, in one line, when a pool cannot be had as configured."""
        _check_readable(self.order, self._user)
        if self._programs:
            self._start_balancing()
        if self._sources:
            self._scout = scout.start(self._sources, self._user)
            self._await_first_look()
        before, self.order = self.order, self.order.resolved()
        for old, new in zip(before.shadows, self.order.shadows, strict=True):
            pairs = zip(old.pool.upstreams, new.pool.upstreams, strict=True)
            self._known[new.name] = {spec.address: resolved.address for spec, resolved in pairs}
        return self.order

    def watch(self, selector: selectors.BaseSelector, tell: TellPool) -> None:
        """Hear the children from now on through `take`; `tell` is given every change."""
        self._selector, self._tell = selector, tell
        for child in self._children():
            child[1].setblocking(False)
            selector.register(child[1], selectors.EVENT_READ, self)

    def close(self) -> None:
        """End the children: first those who tell, then the programs."""
        for child in self._children():
            process, channel = child
            if self._selector is not None and channel.fileno() >= 0 and channel in self._selector.get_map():
                self._selector.unregister(channel)
            channel.close()
        for process, _ in self._children():
            try:
                process.wait(CHILD_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._scout = self._balancing = None

    # What is heard

    def take(self, channel: Any) -> None:
        """A child has something to say, or has ended."""
        try:
            message = messages.receive(channel)
        except BlockingIOError:
            return
        if message is None:
            self._ended(channel)
        elif "fronts" in message:
            self._hear_program(message)
        else:
            self._hear_scout(message)

    def look(self, now_s: float) -> None:
        """Start discovery again when it died a while ago."""
        if not self._sources or self._scout is not None or now_s < self._scout_due_s:
            return
        self._scout = scout.start(self._sources, self._user)
        if self._selector is not None:
            self._scout[1].setblocking(False)
            self._selector.register(self._scout[1], selectors.EVENT_READ, self)

    def change(self, name: str, specs: Iterable[UpstreamSpec]) -> Callable[[], None]:
        """Give a shadow other upstreams; what takes that back. UpstreamError changes nothing. Names are not looked up
        while the agent runs: that would hold up the service. Those of the start stand for what they stood for then."""
        known = self._known.get(name, {})
        specs = tuple(replace(spec, address=known.get(spec.address, spec.address)) for spec in specs)
        for spec in specs:
            if not is_numeric(spec.address):
                raise UpstreamError(f"upstream {spec.address!r}: at run time, give the address in numbers")
        place = self._names.index(name)
        pool = self.order.shadows[place].pool
        if pool.program or pool.changes:
            raise UpstreamError(f"shadow {name}: its upstreams are not listed, so they cannot be changed here")
        self._set(place, replace(pool, upstreams=specs).resolved(self.order.production))
        return lambda: self._set(place, pool)

    def status(self, states: dict[str, Any]) -> dict[str, Any]:
        """By shadow: the upstreams, and how the program or the discovery is doing. `states` is the workers' word."""
        shown: dict[str, Any] = {}
        for shadow in self.order.shadows:
            pool, news = shadow.pool, self._news.get(shadow.name, {})
            upstreams = [spec.address for spec in pool.upstreams] or [front.address for front in pool.fronts]
            shown[shadow.name] = {"engine": pool.program or "embedded", "upstreams": upstreams} | {
                key: news[key] for key in ("state", "restarts", "reloads", "changes", "problem") if key in news
            }
            shown[shadow.name]["states"] = states.get(shadow.name, {})
        return shown

    def program_states(self) -> dict[str, bool]:
        """By shadow that has one: whether its balancer program runs."""
        return {name: self._news.get(name, {}).get("state") == balancing.RUNNING for name in self._programs}

    def _set(self, place: int, pool: PoolOrder) -> None:
        """UpstreamError when the workers cannot be told."""
        self._tell(place, pool)
        shadows = list(self.order.shadows)
        shadows[place] = replace(shadows[place], pool=pool)
        self.order = replace(self.order, shadows=tuple(shadows))

    def _hear_scout(self, message: dict[str, Any]) -> None:
        name, found = scout.from_message(message)
        problem = summed_up(filter(None, [found.problem, *self._found(name, found.upstreams)]))
        if problem and problem != self._news.get(name, {}).get("problem", ""):
            self._say(f"shadow {name}: {problem}")
        self._news[name] = {"problem": problem}

    def _found(self, name: str, upstreams: tuple[UpstreamSpec, ...]) -> list[str]:
        """Take over what was found, less what is production's; what is wrong with the rest."""
        place = self._names.index(name)
        pool = self.order.shadows[place].pool
        good: dict[str, UpstreamSpec] = {}
        wrong = []
        for each in upstreams:
            try:
                (spec,) = replace(pool, upstreams=(each,)).resolved(self.order.production).upstreams
                good.setdefault(spec.address, spec)
            except UpstreamError as error:
                wrong.append(str(error))
        if tuple(good.values()) != pool.upstreams:
            try:
                self._set(place, replace(pool, upstreams=tuple(good.values())))
            except UpstreamError as error:
                return [*wrong, str(error)]
            self._say(f"shadow {name}: {len(good)} upstreams: {', '.join(list(good)[:8])}")
        return wrong

    def _hear_program(self, message: dict[str, Any]) -> None:
        name = message["shadow"]
        before = self._news.get(name, {})
        self._news[name] = message
        if message["problem"] != before.get("problem", ""):
            self._say(f"shadow {name}: {message['problem'] or 'the balancer program runs well again'}")
        if message["reloads"] != before.get("reloads", 0):
            self._say(f"shadow {name}: the changed configuration was taken over ({message['changes']} changes)")
        place = self._names.index(name)
        fronts = _fronts(message)
        if fronts != self.order.shadows[place].pool.fronts:
            self._set(place, replace(self.order.shadows[place].pool, fronts=fronts))

    def _ended(self, channel: Any) -> None:
        if self._selector is not None:
            self._selector.unregister(channel)
        if self._scout is not None and channel is self._scout[1]:
            self._say("discovery died: the upstreams stay as they are, and it is started again")
            channel.close()
            self._scout[0].wait()
            self._scout = None
            now_s = time.monotonic()
            if now_s - self._scout_due_s > SCOUT_AGAIN_MAX_S:  # it has lived for long enough
                self._scout_pause_s = SCOUT_AGAIN_MIN_S
            self._scout_due_s = now_s + self._scout_pause_s
            self._scout_pause_s = min(2 * self._scout_pause_s, SCOUT_AGAIN_MAX_S)
            return
        for name in self._programs:
            self._news[name] = {**self._news.get(name, {}), "state": balancing.DEAD}
        self._say("the process that runs the balancer programs died, and they with it: restart the agent")

    # Starting the children

    def _start_balancing(self) -> None:
        self._balancing = _, ours = balancing.start(self._programs, self._user, self.order.nice, self.order.scheduler)
        deadline = time.monotonic() + PROGRAMS_START_S
        for _ in self._programs:
            ours.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                answer = messages.receive(ours) or {"error": "it ended at once; what it printed above says why"}
            except BlockingIOError:
                answer = {"error": f"not ready within {PROGRAMS_START_S:.0f} s"}
            if "error" in answer:
                raise LoadError(f"the balancer program could not be started: {answer['error']}")
            self._news[answer["shadow"]] = answer
            place = self._names.index(answer["shadow"])
            self._set(place, replace(self.order.shadows[place].pool, fronts=_fronts(answer)))

    def _await_first_look(self) -> None:
        assert self._scout is not None
        channel = self._scout[1]
        deadline = time.monotonic() + FIRST_LOOK_S
        waiting = set(self._sources)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            channel.settimeout(left_s)
            try:
                message = messages.receive(channel)
            except BlockingIOError:
                break
            if message is None:
                break
            waiting.discard(message["shadow"])
            self._hear_scout(message)
        for name in waiting:
            self._say(f"shadow {name}: no upstreams are known yet; requests are dropped until some are found")

    def _children(self) -> list[Child]:
        return [child for child in (self._scout, self._balancing) if child is not None]


def _check_readable(order: Order, user: str) -> None:
    """Workers open the files for TLS themselves, without privilege. LoadError when they could not."""
    account = privileges.service_user(user)
    for shadow in order.shadows:
        tls = shadow.pool.balancer.tls
        if tls is not None:
            make_context(tls)  # files that are missing, or not what they should be, are told here and not by a worker
        for path in (tls.ca, tls.certificate, tls.key) if tls is not None else ():
            if path and not privileges.may_read(account, Path(path)):
                raise LoadError(
                    f"shadows.{shadow.name}.balancer.tls: user {account.pw_name} cannot read {path}: give that user a "
                    "copy, or name another `user`"
                )


def _fronts(message: dict[str, Any]) -> tuple[Front, ...]:
    return tuple(Front(**front) for front in message["fronts"])
