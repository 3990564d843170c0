"""Where the shadow sends requests and health checks: to the shadow's servers, and nowhere else.

A server is looked up in the mapping by what it is called and by production's address. Those that lead back into the
same file go to the shadow's own listener, and those that serve only what is disabled (agents, log servers) to a socket
that does not exist. What dials the address that the client asked for cannot be mapped, and is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from replay.balancer.address import UNIX
from replay.balancer.derive.change import DeriveOptions, Server
from replay.balancer.derive.haproxy_bind import EVERY, LOCAL
from replay.balancer.derive.haproxy_draft import Draft, Reason
from replay.balancer.derive.haproxy_line import is_plain
from replay.balancer.derive.haproxy_params import CONNECT_VALUED, SERVER_VALUED, Param, read_params, take_off
from replay.balancer.derive.haproxy_source import Source, Statement
from replay.balancer.derive.mapping import ServerMap, canonical
from replay.errors import UpstreamError

DISPATCH = "dispatch"  # in place of a server's name, for the old keyword that has none
NOWHERE = "nowhere.sock"
_ADDRESS_AT = {"server": 2, "server-template": 3, "dispatch": 1}
_FAMILY = re.compile(r"^(?:stream\+)?(?:ipv4|ipv6|tcp|tcp4|tcp6)@")
_RANGE = re.compile(r"(?:(\d+)-)?(\d+)")
_OFF = {
    "addr": Reason.CHECK,
    "agent-check": Reason.AGENT,
    "agent-addr": Reason.AGENT,
    "socks4": Reason.SOCKS,
    "check-via-socks4": Reason.SOCKS,
    "via-socks4": Reason.SOCKS,
}


class Target(NamedTuple):
    """One line that names where to send to."""

    at: Statement
    backend: str
    name: str
    word: int  # which one is the address
    address: str


def read_targets(source: Source) -> Iterator[Target]:
    """Everything that a backend sends to. Servers of other sections (peers, rings) get no requests."""
    for at in source.within("backend", "listen"):
        word = _ADDRESS_AT.get(at.values[0], 0)
        if not word:
            continue
        if len(at.words) <= word:
            raise source.error(at, f"{at.values[0]} has no address; mend it, haproxy does not read it either")
        name = DISPATCH if at.says("dispatch") else at.values[1]
        yield Target(at, at.section.name, name, word, at.values[word])


class Servers:
    """The shadow's addresses for all of production's servers. `own` are the shadow's own listeners, by the canonical
    address that servers of production's reach them at; `idle` the backends that serve only what is disabled."""

    def __init__(
        self, draft: Draft, servers: ServerMap, own: Mapping[str, str], idle: frozenset[str], options: DeriveOptions
    ) -> None:
        self._draft = draft
        self._servers = servers
        self._own = own
        self._idle = idle
        self._options = options
        self._targets = list(read_targets(draft.source))
        outside = [target for target in self._targets if canonical(target.address) not in own]
        self._hosts = {_host(target.address) for target in outside} - {""}
        self._beside: set[str] = set()  # backends whose shadow is on a host of production's, or this one

    def derive(self) -> None:
        for target in self._targets:
            self._target(target)
        for target in self._targets:
            if not target.at.says("dispatch"):
                self._params(target.at, target.word + 1)
        for at in self._draft.source.within("defaults", "backend", "listen", "healthcheck"):
            if at.says("default-server"):
                self._params(at, 1)
            elif at.says("http-check", "connect") or at.says("tcp-check", "connect"):
                self._params(at, 2, CONNECT_VALUED)
            elif at.says("source") and "usesrc" in at.values:
                self._draft.take_out(at, Reason.SPOOF)

    def _target(self, target: Target) -> None:
        at = target.at
        word = at.words[target.word]
        if word.unset or word.several:
            what = f"the variable {word.unset} is not known" if word.unset else "a list of values is no address"
            raise self._draft.source.error(at, f"server {_name(target)}: {what}; give its value in `environment`")
        if _is_any(target.address):
            what = f"server {_name(target)} dials the address that the client asked for"
            raise self._draft.source.error(at, f"{what}; name a server's address instead")
        shadow, reason = self._find(target)
        if shadow is not None:
            self._draft.change(at, {target.word: _written(shadow)}, reason)
            if reason is Reason.OWN or _host(shadow) in self._hosts:
                self._beside.add(target.backend)
        names = list(_names(target))
        for name in names:
            self._draft.servers.append(Server(f"{target.backend}/{name}", target.address, shadow or target.address))
        if shadow is not None and len(names) > 1:
            self._draft.note(f"{_name(target)} makes {len(names)} servers, all of them {shadow}")

    def _find(self, target: Target) -> tuple[str | None, Reason]:
        own = self._own.get(canonical(target.address))
        if own is not None:
            return own, Reason.OWN
        if target.backend in self._idle:
            folder = self._options.run_directory
            if not is_plain(folder):
                raise UpstreamError(f"run directory {folder!r}: write a path without spaces and quotes")
            return f"{UNIX}{folder}/{NOWHERE}", Reason.NOWHERE
        try:
            shadow = self._servers.lookup(target.backend, target.name, target.address)
        except UpstreamError as error:
            raise self._draft.source.error(target.at, f"server {_name(target)}: {error}") from None
        if shadow is not None:
            return shadow, Reason.SERVER
        if not self._options.allow_unmapped:
            what = f"server {_name(target)} at {target.address} has no shadow"
            raise self._draft.source.error(target.at, f"{what}; map {_name(target)!r} to its HOST:PORT")
        self._draft.note(f"server {_name(target)} is production's own, {target.address}: it has no shadow")
        return None, Reason.SERVER

    def _params(self, at: Statement, first: int, valued: frozenset[str] = SERVER_VALUED) -> None:
        params = list(read_params(at.values, first, valued))
        for param in params:
            reason = _OFF.get(param.name)
            if param.name == "port" and self._is_beside(at):
                reason = Reason.CHECK
            if reason is not None:
                self._draft.change(at, take_off([param]), reason)
        for param in params:
            if param.name == "init-addr":
                self._draft.change(at, _fallbacks(param), Reason.INIT)
            elif param.name == "usesrc":
                self._draft.change(at, take_off(_source(params)), Reason.SPOOF)

    def _is_beside(self, at: Statement) -> bool:
        """Whether a port that health checks name could be production's: on other hosts it is the shadow's."""
        return at.section.name in self._beside or (at.section.kind == "defaults" and bool(self._beside))


def _name(target: Target) -> str:
    return f"{target.backend}/{target.name}"


def _names(target: Target) -> Iterator[str]:
    """A template makes one server for each number."""
    if not target.at.says("server-template"):
        yield target.name
        return
    found = _RANGE.fullmatch(target.at.values[2])
    first, last = (int(found[1] or 1), int(found[2])) if found else (1, 0)
    for number in range(first, min(last, first + 65535) + 1):
        yield f"{target.name}{number}"


def _written(shadow: str) -> str:
    """As HAProxy takes it."""
    return "unix@" + shadow.removeprefix(UNIX) if shadow.startswith(UNIX) else shadow


def _host(address: str) -> str:
    """The host of a server's address as HAProxy reads it, "" for a Unix socket."""
    address = _FAMILY.sub("", address)
    if canonical(address).startswith(UNIX) or "@" in address:
        return ""
    if address.startswith("["):
        return address[1:].partition("]")[0].lower()
    host, colon, _ = address.rpartition(":")
    host = (host if colon and address != "::" else address).lower()
    return LOCAL[0] if host in LOCAL else host


def _is_any(address: str) -> bool:
    return _host(address) in EVERY and not canonical(address).startswith(UNIX) and "@" not in _FAMILY.sub("", address)


def _fallbacks(param: Param) -> dict[int, str | None]:
    """`init-addr` without addresses, which are of production."""
    named = param.value.split(",")
    kept = [each for each in named if not _is_address(each)]
    if kept == named:
        return {}
    return {param.words[-1]: ",".join(kept)} if kept else take_off([param])


def _source(params: list[Param]) -> list[Param]:
    return [each for each in params if each.name in ("source", "usesrc", "interface")]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
