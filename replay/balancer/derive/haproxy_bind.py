"""What the shadow listens on: each address of production's gives way to a private one on the same line.

Every other parameter stays, certificates and ALPN among them: a client that offers no HTTP/2 is spoken HTTP/1.1 to.
A PROXY header, sent by the replay client, keeps `src` and `dst` what they are in production.

Servers may lead back into the same file ("server tls abns@inner"). A listener that is only reached so expects what it
did before: it is not offered to the replay client, and no PROXY header is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from replay.balancer.derive.change import Listener
from replay.balancer.derive.haproxy_draft import Draft, Reason
from replay.balancer.derive.haproxy_params import BIND_VALUED, Param, read_params, take_off
from replay.balancer.derive.haproxy_source import Statement
from replay.balancer.derive.mapping import canonical

RANGE_MAX = 256  # ports of one range; more are no list of services, and each takes a private port
EVERY = ("", "*", "0.0.0.0", "::")
LOCAL = ("127.0.0.1", "localhost", "::1")
_PREFIX = re.compile(r"^(?:stream\+)?([a-z0-9]+)@")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_OFF = {
    "interface": Reason.LOOPBACK,
    "namespace": Reason.LOOPBACK,
    "transparent": Reason.LOOPBACK,
    "accept-netscaler-cip": Reason.NETSCALER,
}

Private = Callable[[], tuple[str, int]]


class Address(NamedTuple):
    """One address that is bound: a host and a port, or a socket's name and 0."""

    written: str
    host: str
    port: int

    @property
    def shown_host(self) -> str:
        return "*" if self.port and self.host in EVERY else self.host

    @property
    def is_inside(self) -> bool:
        """Whether only this host can get there."""
        return not self.port or self.host in LOCAL

    def ways(self) -> list[str]:
        """Canonical addresses that lead there from this host."""
        if not self.port:
            return [canonical(self.host)]
        hosts = LOCAL if self.host in EVERY or self.host in LOCAL else (self.host,)
        return [canonical(f"{host}:{self.port}") for host in hosts]


class Binds:
    """Private addresses for all that production binds, and the shadow's own way to what servers reach inside.

    An address that production binds more than once (in branches of a condition, or to share its load) stays one.
    `reached` are the canonical addresses of production's servers.
    """

    def __init__(self, draft: Draft, private: Private, reached: frozenset[str]) -> None:
        self._draft = draft
        self._private = private
        self._reached = reached
        self._outer: dict[Address, tuple[str, int]] = {}
        self._inner: dict[Address, tuple[str, int]] = {}
        self.own: dict[str, str] = {}  # canonical address of a server in the source: where it is now
        self._asking: set[int] = set()  # sections that expect a PROXY header now
        self._accepting: set[int] = set()  # those that did in production

    def derive(self) -> None:
        for at in self._draft.source.within("frontend", "listen"):
            if at.says("bind") and len(at.words) > 1 and not self._draft.is_out(at):
                self._line(at)
        self._rules()

    def _line(self, at: Statement) -> None:
        params = list(read_params(at.values, 2, BIND_VALUED))
        accepts = any(param.name == "accept-proxy" for param in params)
        outer, inner = [], []
        for address in self._addresses(at):
            reached = [each for each in address.ways() if each in self._reached]
            if accepts or not (reached and address.is_inside):
                outer.append(self._listen(at, address, params))
            if reached:
                place = self._take(self._outer if accepts else self._inner, address)
                self.own.update(dict.fromkeys(reached, show(place)))
                self._draft.note(f"{at.section.name} is reached at {show(place)} from inside, which is its dst there")
                inner += [] if accepts else [show(place)]
        if not outer and not inner:
            self._draft.take_out(at, Reason.QUIC)
            return
        self._draft.change(at, {1: ",".join(outer or inner)}, Reason.BIND)
        self._params(at, params, bool(outer))
        if accepts:
            self._accepting.add(at.section.number)
        elif outer:
            self._asking.add(at.section.number)
            self._draft.change(at, {}, Reason.PROXY, ["accept-proxy"])
        if outer and inner:
            self._draft.follow(at, _inner_line(at, inner, params), Reason.INNER)

    def _params(self, at: Statement, params: list[Param], is_outer: bool) -> None:
        """Servers that lead back into the file go on to speak as they did."""
        for param in params:
            if param.name in _OFF:
                self._draft.change(at, take_off([param]), _OFF[param.name])
            elif is_outer and param.name == "proto" and param.value != "h1":
                self._draft.change(at, take_off([param]), Reason.PLAIN)

    def _listen(self, at: Statement, address: Address, params: list[Param]) -> str:
        host, port = self._take(self._outer, address)
        self._draft.listeners.append(
            Listener(
                production=address.written,
                host=address.shown_host,
                port=address.port,
                private_host=host,
                private_port=port,
                tls=any(param.name == "ssl" for param in params),
                frontend=at.section.name,
                http=self._draft.source.mode(at.section) == "http",
            )
        )
        return show((host, port))

    def _take(self, places: dict[Address, tuple[str, int]], address: Address) -> tuple[str, int]:
        key = address._replace(written="", host="0.0.0.0" if address.host in ("", "*") else address.host)
        if key not in places:
            places[key] = self._private()
        return places[key]

    def _addresses(self, at: Statement) -> Iterator[Address]:
        """What the line binds, without QUIC."""
        word = at.words[1]
        if word.unset:
            raise self._draft.source.error(at, f"${word.unset} is not known; give its value in `environment`")
        if word.several:
            raise self._draft.source.error(at, "an address from a list of values cannot be replaced; write it out")
        for part in word.value.split(","):
            prefix = _PREFIX.match(part)
            family = prefix[1] if prefix else ""
            rest = part[prefix.end() :] if prefix else part
            if family.startswith("quic"):
                continue
            if family == "rhttp":
                raise self._draft.source.error(at, "reverse HTTP is not handled; leave this proxy out")
            if family in ("unix", "uxst") or rest.startswith("/"):
                yield Address(part, rest, 0)
            elif family in ("abns", "abnsz", "fd", "sockpair"):
                yield Address(part, part, 0)
            elif part:
                yield from self._ports(at, part, rest)

    def _ports(self, at: Statement, written: str, rest: str) -> Iterator[Address]:
        host, _, ports = rest.rpartition(":")
        found = _PORTS.fullmatch(ports)
        if found is None:
            raise self._draft.source.error(at, f"{written!r} has no port; write it as HOST:PORT")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 0 < first <= last <= 65535 or last - first >= RANGE_MAX:
            raise self._draft.source.error(at, f"{written!r} is not a range of at most {RANGE_MAX} ports; name fewer")
        plain = host.removeprefix("[").removesuffix("]")
        for port in range(first, last + 1):
            yield Address(written if first == last else f"{written[: -len(ports)]}{port}", plain, port)

    def _rules(self) -> None:
        """Rules on new connections come before the PROXY header, where every client would be the replay client."""
        source = self._draft.source
        for at in source.within("defaults", "frontend", "listen"):
            if not at.says("tcp-request", "connection") or self._draft.is_out(at):
                continue
            number = at.section.number
            action = at.values[2] if len(at.words) > 2 else ""
            if action == "expect-netscaler-cip":
                self._draft.take_out(at, Reason.NETSCALER)
            elif action == "expect-proxy":
                continue  # of the same effect as what has been added, and no second header is waited for
            elif at.section.kind == "defaults" or number in self._asking:
                self._draft.change(at, {1: "session"}, Reason.SESSION)
            elif number in self._accepting:
                self._draft.take_out(at, Reason.OUTER)
                self._draft.note(f"{at.section.kind} {at.section.name}: {Reason.OUTER}, so rules on it are out")


def _inner_line(at: Statement, places: list[str], params: list[Param]) -> str:
    """The same line once more, for the shadow's own servers. An `id` may be given only once."""
    kept = [index for param in params if param.name not in (*_OFF, "id") for index in param.words]
    words = ["bind", ",".join(places), *(at.text[at.words[index].start : at.words[index].end] for index in kept)]
    return at.text[: at.words[0].start] + " ".join(words)


def show(place: tuple[str, int]) -> str:
    """As `bind` and `server` take it."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
