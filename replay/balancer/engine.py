"""Engines: what stands between the replay client and the shadow pool, behind one interface.

`Embedded` balances in this process. `Program` has another program (haproxy, nginx) balance, whose own addresses, one
for each address of production, are its upstreams; it is started and stopped outside of this module.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol

from replay.balancer.address import ANY
from replay.balancer.ejection import Ejection, choose_candidates, is_error
from replay.balancer.hashing import cookie_value
from replay.balancer.policy import Ask, make_policy
from replay.balancer.settings import BalancerSettings
from replay.balancer.upstream import Upstream
from replay.exchange import Answer, Dropped, Origin, Outcome, Request

SLOW_START_MIN = 0.1  # part of its weight that an upstream has at the beginning of a slow start
STICKY_KEY_BYTES = 16
WARM_STEP_S = 0.1  # how often weights are looked at in a slow start


class Balancer(Protocol):
    """Assigns requests to upstreams. Every assignment is released exactly once, with how it ended."""

    @property
    def upstreams(self) -> Sequence[Upstream]:
        """The pool as it is now, the draining ones included."""

    def assign(
        self, request: Request, origin: Origin | None = None, avoid: Upstream | None = None
    ) -> Upstream | Dropped:
        """Pick an upstream and count the request as in flight there, or say why there is none to be had. `avoid` is
        one that has failed this request: it is picked again only if there is no other."""

    def release(self, upstream: Upstream, result: Outcome | Dropped) -> None:
        """The assigned request ended."""


class Embedded:
    """The balancer inside this process.

    An upstream is *well* unless health checks say otherwise, or it is ejected for its answers, or it waits in a backoff
    after failed connections. Those that are not well are passed over; when too few are well (the panic threshold), all
    are used, and the client fails fast what a backoff forbids. While nothing is wrong, an assignment looks at no flag:
    whatever may make an upstream unwell also clears `_calm`.
    """

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        settings: BalancerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings = settings or BalancerSettings()
        self._clock = clock
        self._policy = make_policy(settings)
        self._by_client = settings.policy in ("ring_hash", "maglev") and settings.hash_by.what == "client"
        self._ejection = Ejection(settings.outlier) if settings.outlier else None
        self._warm_from_s: dict[Upstream, float] = {}  # since when it is in a slow start
        self._warmed_s = 0.0
        self._suspects: set[Upstream] = set()  # whose last answer was an error
        ranges = settings.outlier.statuses if settings.outlier else ()
        self._error_statuses = frozenset(status for low, high in ranges for status in range(low, high + 1))
        self._sticky_cookie = settings.sticky_cookie.encode("latin-1")
        self._stuck: OrderedDict[bytes, Upstream] = OrderedDict()
        self._named: dict[bytes, Upstream] = {}  # by the digest of the sticky cookie's value that means it
        self._members: tuple[Upstream, ...] = ()  # those that take something new, well or not
        self._calm = True  # all members are well, with their full weight
        self._turn = 0
        self.panics = 0  # assignments made past the panic threshold
        self._upstreams: tuple[Upstream, ...] = tuple(upstreams)
        self._look()

    @property
    def upstreams(self) -> Sequence[Upstream]:
        return self._upstreams

    def assign(
        self, request: Request, origin: Origin | None = None, avoid: Upstream | None = None
    ) -> Upstream | Dropped:
        candidates: Sequence[Upstream] = self._members if self._calm else self._well()
        if not candidates:
            return Dropped.NO_UPSTREAM
        ask = Ask(request, client_of(origin) if self._by_client else "", self._turn)
        key = self._sticky_key(request) if self._sticky_cookie else None
        upstream = self._stuck_to(key, candidates) if key else None
        chosen = upstream is None
        if upstream is None:
            upstream = self._policy.pick(candidates, ask)
            if key:
                self._stick(key, upstream)
        limit = self._settings.max_requests
        if upstream is avoid or (limit and upstream.in_flight >= limit):
            # A policy that hashes makes a table for each set of candidates it sees, so it sees the usual one first.
            free = [each for each in candidates if not limit or each.in_flight < limit]
            if not free:
                return Dropped.LIMIT
            candidates = [each for each in free if each is not avoid] or free
            upstream, chosen = self._policy.pick(candidates, ask), True
        if chosen:
            self._turn += 1
            self._policy.picked(candidates, upstream)
        upstream.in_flight += 1
        return upstream

    def release(self, upstream: Upstream, result: Outcome | Dropped) -> None:
        upstream.in_flight -= 1
        if upstream.failures:
            self._calm = False
        if upstream not in self._suspects and isinstance(result, Outcome):  # as nearly always
            good = result.answer is Answer.OK and result.status not in self._error_statuses
            if good:
                return
        ejection, outlier = self._ejection, self._settings.outlier
        if ejection is None or outlier is None:
            return
        error = is_error(outlier, result)
        if error and upstream in self._upstreams:
            self._suspects.add(upstream)
            if ejection.observe(upstream, True, self._clock(), len(self._members)):
                self._calm = False
        elif error is False and upstream in self._suspects:
            self._suspects.discard(upstream)
            ejection.observe(upstream, False, self._clock(), len(self._members))

    # Changes at run time

    def change(self, upstreams: Iterable[Upstream]) -> None:
        """Another pool. Upstreams of the same name stay what they are, with their new weights; those that are left out
        take nothing new, and what is in flight there ends as usual."""
        before = {upstream.name: upstream for upstream in self._upstreams}
        now = []
        for fresh in upstreams:
            known = before.pop(fresh.name, None)
            if known is None:
                now.append(fresh)
                self._warm(fresh)
                continue
            known.weight, known.cookie, known.draining = fresh.weight, fresh.cookie, fresh.draining
            known.effective_weight = float(known.weight)
            now.append(known)
        self._forget(before.values())
        self._upstreams = tuple(now)
        self._look()

    def health_changed(self, upstream: Upstream, healthy: bool) -> None:
        """What the health checks say now."""
        if healthy and not upstream.healthy:
            self._warm(upstream)
        upstream.healthy = healthy
        self._calm = False

    def states(self) -> dict[str, str]:
        """For people: each upstream's name, and "well" or what is wrong with it."""
        now_s = self._clock()
        return {upstream.name: self._state(upstream, now_s) for upstream in self._upstreams}

    # Choosing

    def _sticky_key(self, request: Request) -> bytes | None:
        """A digest of the cookie's value: clients choose how long the value is."""
        value = cookie_value(request.head, self._sticky_cookie)
        return blake2b(value, digest_size=STICKY_KEY_BYTES).digest() if value else None

    def _stuck_to(self, key: bytes, candidates: Sequence[Upstream]) -> Upstream | None:
        """The upstream that the cookie names, or that its value had last, if it takes requests now."""
        upstream = self._named.get(key) or self._stuck.get(key)
        if upstream is None or upstream not in candidates:
            return None
        if key in self._stuck:
            self._stuck.move_to_end(key)
        return upstream

    def _stick(self, key: bytes, upstream: Upstream) -> None:
        self._stuck[key] = upstream
        self._stuck.move_to_end(key)
        if len(self._stuck) > self._settings.sticky_entries:
            self._stuck.popitem(last=False)

    def _well(self) -> Sequence[Upstream]:
        """The candidates when something may be wrong; finds out as well whether that is over."""
        now_s = self._clock()
        if self._warm_from_s and now_s - self._warmed_s >= WARM_STEP_S:
            self._warmed_s = now_s
            self._warm_up(now_s)
        well = [upstream for upstream in self._members if self._is_well(upstream, now_s)]
        if len(well) == len(self._members):
            self._calm = not self._warm_from_s and not any(upstream.failures for upstream in well)
            return self._members
        chosen, panicked = choose_candidates(self._members, well, self._settings.panic_ratio)
        self.panics += panicked
        return chosen

    def _is_well(self, upstream: Upstream, now_s: float) -> bool:
        ejected = self._ejection is not None and self._ejection.ejected(upstream, now_s)
        return upstream.healthy and not ejected and (not upstream.failures or upstream.usable(now_s))

    def _state(self, upstream: Upstream, now_s: float) -> str:
        if upstream.draining or not upstream.weight:
            return "draining"
        if not upstream.healthy:
            return "unhealthy"
        if self._ejection is not None and self._ejection.ejected(upstream, now_s):
            return "ejected"
        return "well" if upstream.usable(now_s) else "backoff"

    # Slow start

    def _warm(self, upstream: Upstream) -> None:
        if self._settings.slow_start_s:
            self._warm_from_s[upstream] = self._clock()
            upstream.effective_weight = upstream.weight * SLOW_START_MIN
            self._calm = False

    def _warm_up(self, now_s: float) -> None:
        for upstream, since_s in tuple(self._warm_from_s.items()):
            done = (now_s - since_s) / self._settings.slow_start_s
            upstream.effective_weight = upstream.weight * min(1.0, max(SLOW_START_MIN, done))
            if done >= 1:
                del self._warm_from_s[upstream]

    # The pool

    def _look(self) -> None:
        self._members = tuple(upstream for upstream in self._upstreams if upstream.weight and not upstream.draining)
        self._named = {
            blake2b(each.cookie.encode("latin-1", "replace"), digest_size=STICKY_KEY_BYTES).digest(): each
            for each in self._members
            if each.cookie
        }
        self._calm = False  # until `_well` has looked

    def _forget(self, gone: Iterable[Upstream]) -> None:
        left = set(gone)
        for upstream in left:
            upstream.draining = True
            self._warm_from_s.pop(upstream, None)
            self._suspects.discard(upstream)
            if self._ejection is not None:
                self._ejection.forget(upstream)
        if left:
            stays = ((key, upstream) for key, upstream in self._stuck.items() if upstream not in left)
            self._stuck = OrderedDict(stays)


class Program:
    """A balancer program: the request goes to the address that stands for the one production took it on."""

    def __init__(self, fronts: Mapping[str, Upstream], default: Upstream) -> None:
        """`fronts` by production's address, "192.0.2.1:80", or "*:80" for that port on any other; what came in
        elsewhere goes to `default`."""
        self._fronts = dict(fronts)
        self._default = default

    @property
    def upstreams(self) -> Sequence[Upstream]:
        return tuple(dict.fromkeys((self._default, *self._fronts.values())))

    def assign(
        self, request: Request, origin: Origin | None = None, avoid: Upstream | None = None
    ) -> Upstream | Dropped:
        upstream = self._default
        if origin is not None and len(self._fronts) > 1:
            found = self._fronts.get(origin.server)
            upstream = found or self._fronts.get(f"{ANY}:{origin.server.rpartition(':')[2]}", upstream)
        upstream.in_flight += 1
        return upstream

    def release(self, upstream: Upstream, result: Outcome | Dropped) -> None:
        upstream.in_flight -= 1

    def change(self, fronts: Mapping[str, Upstream], default: Upstream) -> None:
        """The program listens elsewhere now. Addresses that it had before stay the upstreams they are."""
        known = {(upstream.name, upstream.transport.tls is None): upstream for upstream in self.upstreams}
        self._fronts = {
            address: known.get((each.name, each.transport.tls is None), each) for address, each in fronts.items()
        }
        self._default = known.get((default.name, default.transport.tls is None), default)

    def states(self) -> dict[str, str]:
        """As of `Embedded`."""
        now_s = time.monotonic()
        return {upstream.name: "well" if upstream.usable(now_s) else "backoff" for upstream in self.upstreams}


def client_of(origin: Origin | None) -> str:
    """The client's address without its port, "" when not known."""
    if origin is None:
        return ""
    if origin.forwarded is not None:
        return str(origin.forwarded)
    return origin.client.rpartition(":")[0].strip("[]")
