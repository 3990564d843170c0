"""Where the shadow's nginx listens: a private address for each of production's, the same one in every server block.

nginx picks the server block by the address that a connection came to, then by name. As each address of production has
one private address of its own, the same blocks compete on it, with the same default.

What nginx asks of itself (a proxy_pass to another server block of the same file) must stay inside as well. Such an
address gets a second private one, without the PROXY header that the replay client sends and proxy_pass cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from replay.balancer.address import ANY, MAX_PORT, UNIX
from replay.balancer.derive.change import Listener
from replay.balancer.derive.nginx_edits import Edits, Reason
from replay.balancer.derive.nginx_tree import Statement
from replay.errors import UpstreamError

HTTP_PORT, HTTPS_PORT = 80, 443
IMPLIED = "*:80"  # of a server block without listen, when nginx is started by root
INSIDE = "inside"
_WILDCARDS = ("", ANY, "0.0.0.0")
_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|localhost|\[::1\]")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Socket(NamedTuple):
    """An address that production listens on. `host` is "*" for every IPv4 address, IPv6 in brackets, or a path behind
    "unix:"."""

    host: str
    port: int

    @property
    def name(self) -> str:
        """As it is written in full."""
        return self.host if self.host.startswith(UNIX) else f"{self.host}:{self.port}"


@dataclass(slots=True)
class _Known:
    """What is known of one socket, from all server blocks that listen on it."""

    private: tuple[str, int]
    frontend: str
    tls: bool = False
    inside: tuple[str, int] | None = None


@dataclass(slots=True)
class _Block:
    """One server block; its listen directives with the sockets of each."""

    statement: Statement
    listens: list[tuple[Statement, list[Socket]]] = field(default_factory=list)


class Listeners:
    """All sockets of the http block. Private addresses are asked for in the order of `listeners`."""

    def __init__(self, http: Statement, private: Callable[[], tuple[str, int]]) -> None:
        self._http = http
        self._private = private
        self._sockets: dict[Socket, _Known] = {}
        self._order: list[tuple[Socket, bool]] = []  # and whether it is the one for inside
        self.notes: list[str] = []
        self._blocks = [self._read(each) for each in http.children("server")]

    def hosts(self) -> list[str]:
        """The private hosts, each once."""
        return list(dict.fromkeys(known.private[0] for known in self._sockets.values()))

    def listeners(self) -> tuple[Listener, ...]:
        """For the replay client. Those for inside are no listeners of HTTP to it."""
        return tuple(self._listener(socket, inside) for socket, inside in self._order)

    def inside(self, address: str) -> str | None:
        """Where the shadow asks itself, if production asks itself at this "host:port" or "unix:/path"."""
        for socket, known in self._sockets.items():
            if _is_at(socket, address):
                if known.inside is None:
                    known.inside = self._private()
                    self._order.append((socket, True))
                return join(*known.inside)
        return None

    def is_inside(self, address: str) -> bool:
        """Whether that is one of the shadow's own, as `inside` gives it."""
        return any(known.inside is not None and join(*known.inside) == address for known in self._sockets.values())

    def edit(self, edits: Edits) -> None:
        """Change every listen directive. Call it when all that may ask for `inside` has been seen."""
        for block in self._blocks:
            for statement, sockets in block.listens:
                if not statement.line:
                    for args in self._args(statement, sockets[0]):
                        edits.add(block.statement, "listen", *args, reason=Reason.IMPLIED_LISTEN)
                elif not sockets:
                    edits.remove(statement, Reason.QUIC)
                else:
                    self._edit(statement, sockets, edits)

    def edit_ports(self, edits: Edits) -> None:
        """Redirects that nginx itself writes name the port it listens on, unless that is the scheme's own."""
        if any(each.first == "off" for each in self._http.children("port_in_redirect")):
            return
        usual = [block for block in self._blocks if self._has_usual_ports(block)]
        everywhere = len(usual) == len(self._blocks)
        if everywhere and not any(_asks_port(each) for each in (self._http, *self._http.children("server"))):
            edits.add(self._http, "port_in_redirect", "off", reason=Reason.NO_PORT)
            return
        for block in self._blocks:
            if block not in usual:
                self.notes.append(f"{block.statement.place}: redirects that nginx itself writes name the private port")
            elif said := block.statement.children("port_in_redirect"):
                edits.change(said[0], ("off",), Reason.NO_PORT)
            else:
                edits.add(block.statement, "port_in_redirect", "off", reason=Reason.NO_PORT)

    def _read(self, server: Statement) -> _Block:
        block = _Block(server)
        tls = any(each.first == "on" for each in (*self._http.children("ssl"), *server.children("ssl")))
        listens = server.children("listen")
        quic = [each for each in listens if "quic" in each.args]
        for statement in listens:
            if statement in quic and len(quic) < len(listens):
                block.listens.append((statement, []))
            else:
                block.listens.append((statement, list(sockets_of(statement))))
        if not listens:
            block.listens.append((Statement("listen", (IMPLIED,)), [Socket(ANY, HTTP_PORT)]))
        for statement, sockets in block.listens:
            for socket in sockets:
                self._know(socket, server, tls or bool({"ssl", "quic"} & set(statement.args)))
        return block

    def _know(self, socket: Socket, server: Statement, tls: bool) -> None:
        known = self._sockets.get(socket)
        if known is None:
            known = self._sockets[socket] = _Known(self._private(), _name_of(server))
            self._order.append((socket, False))
        known.tls = known.tls or tls

    def _edit(self, statement: Statement, sockets: list[Socket], edits: Edits) -> None:
        after = [Statement("listen", args) for socket in sockets for args in self._args(statement, socket)]
        reasons = [Reason.LISTEN]
        if "proxy_protocol" not in statement.args:
            reasons.append(Reason.PROXY_HEADER)
        if (
            any(word.startswith("ipv6only=") for word in statement.args)
            and ":" not in after[0].first.rpartition(":")[0]
        ):
            reasons.append(Reason.PARAMETER)
        if "quic" in statement.args:
            reasons.append(Reason.QUIC)
        if len(after) > len(sockets):
            reasons.append(Reason.INSIDE)
        edits.replace(statement, after, *reasons)

    def _args(self, statement: Statement, socket: Socket) -> Iterator[tuple[str, ...]]:
        known = self._sockets[socket]
        parameters = list(_parameters(statement.args[1:], known.private[0]))
        yield (join(*known.private), *parameters, *(() if "proxy_protocol" in parameters else ("proxy_protocol",)))
        if known.inside is not None:
            yield (join(*known.inside), *(each for each in parameters if each != "proxy_protocol"))

    def _listener(self, socket: Socket, inside: bool) -> Listener:
        known = self._sockets[socket]
        if inside and known.inside is not None:
            return Listener(f"{socket.name} {INSIDE}", "", 0, *known.inside, known.tls, INSIDE, False)
        wild = socket.host in (ANY, "[::]")
        host = ANY if wild else socket.host.removeprefix(UNIX).strip("[]")
        return Listener(socket.name, host, socket.port, *known.private, known.tls, known.frontend, True)

    def _has_usual_ports(self, block: _Block) -> bool:
        for _, sockets in block.listens:
            for socket in sockets:
                usual = HTTPS_PORT if self._sockets[socket].tls else HTTP_PORT
                if socket.port not in (usual, 0):
                    return False
        return True


def sockets_of(listen: Statement) -> Iterator[Socket]:
    """What a listen directive names, one for each port of a range. UpstreamError if it cannot be taken apart."""
    text = listen.first
    if text.startswith(UNIX):
        yield Socket(text, 0)
        return
    host, port = text, str(HTTP_PORT)
    if _PORTS.fullmatch(text):
        host, port = "", text
    elif ":" in text[text.rfind("]") + 1 :]:
        host, _, port = text.rpartition(":")
    match = _PORTS.fullmatch(port)
    if match is None or int(match[2] or match[1]) > MAX_PORT:
        raise UpstreamError(f"{listen.place}: listen {text!r} is not an address that nginx listens on")
    host = ANY if host in _WILDCARDS else host.lower()
    for number in range(int(match[1]), int(match[2] or match[1]) + 1):
        yield Socket(host, number)


def join(host: str, port: int) -> str:
    """An address as nginx writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parameters(words: tuple[str, ...], host: str) -> Iterator[str]:
    for word in words:
        if word.startswith("ipv6only=") and ":" not in host:
            continue
        if word == "http3":
            continue
        yield "ssl" if word == "quic" else word


def _is_at(socket: Socket, address: str) -> bool:
    if socket.host.startswith(UNIX):
        return address == socket.host
    host, _, port = address.lower().rpartition(":")
    if port != str(socket.port):
        return False
    return host == socket.host or (socket.host in (ANY, "[::]") and _LOOPBACK.fullmatch(host) is not None)


def _asks_port(block: Statement) -> bool:
    return bool(block.children("port_in_redirect"))


def _name_of(server: Statement) -> str:
    """For people: what the block is for."""
    names = [word for each in server.children("server_name") for word in each.args if word not in ("", "_")]
    return names[0] if names else server.place.rpartition("/")[2]
