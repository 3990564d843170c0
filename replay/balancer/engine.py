"""Engines: what stands between the replay client and the shadow pool, behind one interface.

`Embedded` balances in this process. `Program` has another program (haproxy, nginx) balance, whose own addresses, one
for each address of production, are its upstreams; it is started and stopped outside of this module.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from replay.balancer.address import ANY
from replay.balancer.ejection import Ejection, choose_candidates, is_error
from replay.balancer.hashing import cookie_value
from replay.balancer.policy import Ask, make_policy
from replay.balancer.settings import BalancerSettings
from replay.balancer.upstream import Upstream
from replay.exchange import Answer, Dropped, Origin, Outcome, Request

SLOW_START_MIN = 0.1  # part of its weight that an upstream has at the beginning of a slow start
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
        self._upstreams: tuple[Upstream, ...] = ()
        self._members: tuple[Upstream, ...] = ()  # those that take something new, well or not
        self._calm = True  # all members are well, with their full weight
        self._turn = 0
        self.panics = 0  # assignments made past the panic threshold
        self._upstreams = tuple(upstreams)
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
        choose = self._stick if self._sticky_cookie else self._pick
        upstream = choose(request, origin, candidates)
        limit = self._settings.max_requests
        if upstream is avoid or (limit and upstream.in_flight >= limit):
            # A policy that hashes makes a table for each set of candidates it sees, so it sees the usual one first.
            free = [each for each in candidates if not limit or each.in_flight < limit]
            if not free:
                return Dropped.LIMIT
            upstream = self._pick(request, origin, [each for each in free if each is not avoid] or free)
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
        for gone in before.values():
            self._forget(gone)
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

    def _pick(self, request: Request, origin: Origin | None, candidates: Sequence[Upstream]) -> Upstream:
        ask = Ask(request, client_of(origin) if self._by_client else "", self._turn)
        self._turn += 1
        upstream = self._policy.pick(candidates, ask)
        self._policy.picked(candidates, upstream)
        return upstream

    def _stick(self, request: Request, origin: Origin | None, candidates: Sequence[Upstream]) -> Upstream:
        """The upstream that the cookie names, or that its value had last; else a new choice, which is remembered."""
        value = cookie_value(request.head, self._sticky_cookie)
        if not value:
            return self._pick(request, origin, candidates)
        named = value.decode("latin-1")
        upstream = next((each for each in self._members if each.cookie == named), None) or self._stuck.get(value)
        if upstream is None or upstream not in candidates:
            upstream = self._pick(request, origin, candidates)
            self._stuck[value] = upstream
            if len(self._stuck) > self._settings.sticky_entries:
                self._stuck.popitem(last=False)
        elif value in self._stuck:
            self._stuck.move_to_end(value)
        return upstream

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
        self._calm = False  # until `_well` has looked

    def _forget(self, gone: Upstream) -> None:
        gone.draining = True
        self._warm_from_s.pop(gone, None)
        self._suspects.discard(gone)
        if self._ejection is not None:
            self._ejection.forget(gone)
        for value in [value for value, upstream in self._stuck.items() if upstream is gone]:
            del self._stuck[value]


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
        known = {upstream.name: upstream for upstream in self.upstreams}
        self._fronts = {address: known.get(each.name, each) for address, each in fronts.items()}
        self._default = known.get(default.name, default)

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
