"""The servers that nginx passes requests to: each one of production's becomes the shadow's that the mapping names.

Where a server is only known from a variable, `nginx_variables` says what the variable can be. A server without an entry
in the mapping is refused: the shadow would send to production.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from replay.balancer.address import UNIX
from replay.balancer.derive.change import DeriveOptions, Server
from replay.balancer.derive.mapping import ServerMap
from replay.balancer.derive.nginx_edits import Edits, Reason
from replay.balancer.derive.nginx_listen import Listeners
from replay.balancer.derive.nginx_tree import Statement, walk
from replay.balancer.derive.nginx_variables import VARIABLE, Place, Variables
from replay.errors import UpstreamError

NOT_ADDRESSES = frozenset({"js_pass", "upload_pass"})  # *_pass whose argument is a function or a location
PORTS = {"http": "80", "https": "443", "grpc": "80", "grpcs": "443", "uwsgi": "", "suwsgi": ""}
HOST_HEADERS = {"proxy_pass": "proxy_set_header", "grpc_pass": "grpc_set_header"}
URI_VARIABLES = re.compile(r"\$\{?(?:request_uri|uri|document_uri|is_args|args)\}?")  # never part of a host
DEPTH_LIMIT = 8  # of variables whose values are variables

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*|\$\w+|\$\{\w+\})://")
_LONE = re.compile(r"\$(?:\w+|\{\w+\})")
_WITH_PORT = re.compile(r"(\$(?:\w+|\{\w+\})):(\d{1,5})")


class Target(NamedTuple):
    """What a *_pass names. `scheme` is "" where none is written, `tail` whatever follows the authority."""

    scheme: str
    authority: str
    tail: str


class Servers:
    """Maps the servers of the http block, one directive after the other."""

    def __init__(
        self, http: Statement, mapping: ServerMap, listeners: Listeners, options: DeriveOptions, edits: Edits
    ) -> None:
        self._http = http
        self._mapping = mapping
        self._listeners = listeners
        self._unmapped = options.allow_unmapped
        self._edits = edits
        self._upstreams = {each.first.lower() for each in http.children("upstream")}
        self._variables = Variables(http, lambda each: not edits.now(each))
        self._resolver = any(each.name == "resolver" for each, _ in walk(http))
        self._written: dict[tuple[Statement, int], str] = {}
        self._alone: dict[str, str | None] = {}  # shadows of the servers outside of upstream blocks
        self.servers: dict[tuple[str, str], Server] = {}  # by name and shadow
        self.notes: list[str] = []

    def edit(self) -> None:
        """Change them all. UpstreamError for the first that cannot be."""
        for statement, parents in walk(self._http):
            parent = parents[-1]
            if parent.name == "upstream":
                self._edit_upstream(statement, parent.first)
            elif statement.name.endswith("_pass") and statement.name not in NOT_ADDRESSES and statement.args:
                self._edit_pass(statement, parents)

    # upstream blocks

    def _edit_upstream(self, statement: Statement, name: str) -> None:
        if statement.name == "state":
            raise UpstreamError(
                f"{statement.place}: the servers of upstream {name} are in a state file: derive from a copy that "
                "names them"
            )
        if statement.name != "server":
            return
        written, *parameters = statement.args
        by_srv = any(each.startswith("service=") for each in parameters)
        shadow = self._shadow(statement, name, written, "" if by_srv else PORTS["http"])
        if shadow is None:
            return
        kept = [each for each in parameters if not each.startswith("service=")]
        if is_numeric(shadow):
            kept = [each for each in kept if each != "resolve"]
        reasons = [Reason.INSIDE if self._listeners.is_inside(shadow) else Reason.SERVER]
        if len(kept) < len(parameters):
            reasons.append(Reason.RESOLVE)
        self._edits.change(statement, (shadow, *kept), *reasons)

    # *_pass

    def _edit_pass(self, statement: Statement, parents: tuple[Statement, ...]) -> None:
        target = parse_target(statement.first, statement.name)
        literal = not VARIABLE.search(target.authority) and not self._is_upstream(target.authority)
        self._aim(Place(statement, 0), statement, "", DEPTH_LIMIT)
        if literal and self._edits.reasons(statement) and statement.name in HOST_HEADERS:
            self._keep_host(statement, parents)

    def _aim(self, place: Place, asked: Statement, scheme: str, depth: int) -> None:
        """Map what the text at `place` names; `asked` is the *_pass that it is for."""
        target = parse_target(place.text, asked.name)
        scheme = target.scheme or scheme
        authority = target.authority
        if self._is_upstream(authority):
            return
        if not VARIABLE.search(authority):
            self._aim_at_literal(place, asked, target, scheme)
        elif not depth or not self._follow(place, asked, authority, scheme, depth):
            self._refuse(asked, f"{authority} can be any server", "name the servers in an upstream, and it in a map")

    def _aim_at_literal(self, place: Place, asked: Statement, target: Target, scheme: str) -> None:
        if not target.authority:
            return  # an empty value: nginx passes nothing on
        shadow = self._shadow(place.statement, "", target.authority, PORTS.get(scheme, ""), asked)
        if shadow is None:
            return
        if place.statement is not asked and not is_numeric(shadow) and not self._resolver:
            raise UpstreamError(
                f"{place.statement.place}: {shadow} is reached through a variable, and without a resolver nginx then "
                "knows no names: map it to an address in numbers"
            )
        self._write(place, join_target(Target(target.scheme, shadow, target.tail)))

    def _follow(self, place: Place, asked: Statement, authority: str, scheme: str, depth: int) -> bool:
        """Map the values of a variable; False if it can be anything."""
        if _LONE.fullmatch(authority):
            values = self._variables.values(authority)
            for each in values or ():
                self._aim(each, asked, scheme, depth - 1)
            return values is not None
        if match := _WITH_PORT.fullmatch(authority):
            values = self._variables.values(match[1])
            if values is None or any(VARIABLE.search(each.text) for each in values):
                return False
            for each in values:
                self._aim_at_host(each, asked, match[2])
            return True
        names = self._variables.expand(authority)
        return names is not None and all(self._is_upstream(each) for each in names)

    def _aim_at_host(self, place: Place, asked: Statement, port: str) -> None:
        """The value of a variable after which the *_pass itself says the port."""
        if not place.text:
            return
        shadow = self._shadow(place.statement, "", f"{place.text}:{port}", "", asked)
        if shadow is None:
            return
        host, _, shadow_port = shadow.rpartition(":")
        if shadow.startswith(UNIX) or shadow_port != port:
            raise UpstreamError(
                f"{place.statement.place}: {asked.first!r} at {asked.place} says the port itself: "
                f"map {place.text}:{port} to a shadow server on port {port}"
            )
        self._write(place, host)

    def _write(self, place: Place, text: str) -> None:
        """The new text, unless another *_pass wants the same value to be something else."""
        key = (place.statement, place.argument)
        if self._written.setdefault(key, text) != text:
            raise UpstreamError(
                f"{place.statement.place}: {place.text!r} would have to be {self._written[key]} for one *_pass and "
                f"{text} for another: use two variables"
            )
        args = list(place.statement.args)
        args[place.argument] = text
        inside = self._listeners.is_inside(parse_target(text, "proxy_pass").authority)
        self._edits.change(place.statement, args, Reason.INSIDE if inside else Reason.SERVER)

    # The mapping

    def _shadow(
        self, statement: Statement, backend: str, written: str, port: str, asked: Statement | None = None
    ) -> str | None:
        """Where this server's part is played; None if it stays. `port` is used where none is written."""
        address = with_port(written, port)
        if inside := self._listeners.inside(address):
            return inside
        key = f"{backend}/{written}" if backend else written
        shadow = self._lookup(backend, written, address)
        if shadow is None:
            what = f"server {written} of upstream {backend}" if backend else f"{(asked or statement).name} to {written}"
            wider = f" (or {backend}/*)" if backend else ""
            self._refuse(statement, f"{what} has no shadow", f"map {key}{wider} to host:port")
            shadow = address
        elif not is_numeric(address):
            self._note(f"{statement.place}: {written} may stand for several servers, the shadow's is one: {shadow}")
        self.servers[key, shadow] = Server(key, address, shadow)
        return None if shadow == address else shadow

    def _lookup(self, backend: str, written: str, address: str) -> str | None:
        """Several servers of one upstream are dealt out in turn; outside of upstreams, a server is one everywhere."""
        if backend:
            return self._mapping.lookup(backend, written, address)
        if address not in self._alone:
            self._alone[address] = self._mapping.lookup(backend, written, address)
        return self._alone[address]

    def _refuse(self, statement: Statement, what: str, remedy: str) -> None:
        if not self._unmapped:
            raise UpstreamError(f"{statement.place}: {what}: {remedy}")
        self._note(f"{statement.place}: {what}, and it stays as it is")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _is_upstream(self, authority: str) -> bool:
        return authority.lower() in self._upstreams

    # The Host header

    def _keep_host(self, statement: Statement, parents: tuple[Statement, ...]) -> None:
        """Without a Host header of its own, nginx sends the name in the *_pass, which is now another one. Where headers
        are set further out, one more here would do away with those."""
        directive = HOST_HEADERS[statement.name]
        parent = parents[-1]
        scope = next((each for each in reversed(parents) if each.children(directive)), parent)
        if any(each.first.lower() == "host" for each in scope.children(directive)):
            return
        scheme, host, _ = parse_target(statement.first, statement.name)
        host = "localhost" if host.startswith(UNIX) else host.removesuffix(f":{PORTS.get(scheme) or '80'}")
        if scope is parent and parent.name == "location":
            self._edits.add(parent, directive, "Host", host, reason=Reason.HOST)
        else:
            self._note(f"{statement.place}: the shadow server gets its own name as Host, not {host}")


def parse_target(text: str, directive: str) -> Target:
    """Take the argument of a *_pass apart."""
    match = _SCHEME.match(text)
    scheme = match[1] if match else ""
    rest = text[match.end() :] if match else text
    if rest.startswith(UNIX):
        path, colon, tail = rest.removeprefix(UNIX).partition(":") if directive == "proxy_pass" else (rest[5:], "", "")
        return Target(scheme, UNIX + path, colon + tail)
    end = re.search(r"[/?#]", rest)
    at = end.start() if end else len(rest)
    variable = URI_VARIABLES.search(rest, 0, at)
    at = variable.start() if variable and variable.start() else at
    return Target(scheme, rest[:at], rest[at:])


def join_target(target: Target) -> str:
    """The argument again. Between the path of a socket and what follows nginx wants a colon."""
    tail = target.tail
    if target.authority.startswith(UNIX):
        tail = f":{tail}" if tail and not tail.startswith(":") else tail
    else:
        tail = tail.removeprefix(":")
    scheme = f"{target.scheme}://" if target.scheme else ""
    return f"{scheme}{target.authority}{tail}"


def with_port(written: str, port: str) -> str:
    """An address with the port that nginx takes where none is written."""
    if written.startswith(UNIX) or ":" in written[written.rfind("]") + 1 :] or not port:
        return written
    return f"{written}:{port}"


def is_numeric(address: str) -> bool:
    """Whether nobody has to be asked where it is."""
    host = address.rpartition(":")[0] if ":" in address[address.rfind("]") + 1 :] else address
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return address.startswith(UNIX)
    return True
