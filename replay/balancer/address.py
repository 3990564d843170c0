"""Addresses of upstreams: how they are written, what they resolve to, and whether production listens there.

Names are resolved once, at start, and only the numeric result is ever connected to: what was checked against the
production addresses is what is used.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from replay.errors import UpstreamError

ANY = "*"
UNIX = "unix:"  # in front of the path of a Unix socket
UNIX_PATH_BYTES = 107
MAX_PORT = 65535

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[..., list[Any]]  # socket.getaddrinfo, or what a test puts in its place


class HostPort(NamedTuple):
    """An address as it was written, brackets taken off. `host` may be a name, or "*" where that is allowed."""

    host: str
    port: int


class Endpoint(NamedTuple):
    """A numeric address that a socket of `family` connects to; of a Unix socket only `sockaddr`, its path."""

    family: socket.AddressFamily
    address: IPAddress | None
    port: int
    sockaddr: tuple[Any, ...] | str  # as connect() takes it


def parse_host_port(text: str) -> HostPort:
    """Take "192.0.2.1:80", "[2001:db8::1]:80" or "shadow.example:80" apart; UpstreamError on anything else."""
    text = text.strip()
    if "://" in text or "/" in text:
        raise UpstreamError(f"upstream {text!r}: write host:port, without a scheme or a path (or unix:/path)")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise UpstreamError(f"upstream {text!r}: write an IPv6 address as [address]:port")
        _check_ipv6(text, host)
        return HostPort(host, _port(text, rest[1:]))
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise UpstreamError(f"upstream {text!r}: the port is missing, write host:port")
    if ":" in host:
        raise UpstreamError(f"upstream {text!r}: write an IPv6 address as [address]:port")
    if any(c.isspace() or c in "@,;[]" for c in host):
        raise UpstreamError(f"upstream {text!r}: {host!r} is not a host")
    return HostPort(host, _port(text, port))


def resolve(text: str, resolver: Resolver = socket.getaddrinfo) -> list[Endpoint]:
    """Every endpoint that `text` stands for, in the resolver's order; never empty. Blocks on name resolution."""
    if text.startswith(UNIX):
        return [Endpoint(socket.AF_UNIX, None, 0, _unix_path(text))]
    host, port = parse_host_port(text)
    try:
        found = resolver(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UpstreamError(f"upstream {text!r}: {host!r} does not resolve: {reason}") from None
    endpoints = [_endpoint(family, sockaddr) for family, _, _, _, sockaddr in found]
    if not endpoints:
        raise UpstreamError(f"upstream {text!r}: {host!r} does not resolve to an address")
    for endpoint in endpoints:
        if endpoint.address and (endpoint.address.is_unspecified or endpoint.address.is_multicast):
            raise UpstreamError(f"upstream {text!r}: {endpoint.address} is not the address of one host")
    return endpoints


class Production:
    """The addresses that production traffic is taken from; no upstream may be one of them.

    An entry is "ip:port", "[ip]:port", "unix:/path", or "*:port" for that port on every address of this host
    ("0.0.0.0:port" and "[::]:port" mean the same, as a listening socket's address does).
    """

    __slots__ = ("_exact", "_paths", "_ports")

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._exact: set[tuple[IPAddress, int]] = set()
        self._ports: set[int] = set()
        self._paths: set[str] = set()
        for entry in entries:
            if entry.startswith(UNIX):
                self._paths.add(_real(_unix_path(entry)))
                continue
            host, port = parse_host_port(entry)
            if host == ANY:
                self._ports.add(port)
                continue
            address = _numeric(entry, host)
            if address.is_unspecified:
                self._ports.add(port)
            else:
                self._exact.add((address, port))

    def has(self, endpoint: Endpoint) -> bool:
        """Whether a connection to `endpoint` would reach production."""
        if endpoint.address is None:
            return _real(str(endpoint.sockaddr)) in self._paths
        if (endpoint.address, endpoint.port) in self._exact:
            return True
        return endpoint.port in self._ports and is_local(endpoint.address)


def is_local(address: IPAddress) -> bool:
    """Whether packets to `address` stay on this host.

    Asks the routing table: a connected datagram socket (nothing is sent) takes the destination itself as its source
    only for a local address. Trying to bind would not do: load balancers often set ip_nonlocal_bind.
    """
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return _plain(ipaddress.ip_address(probe.getsockname()[0])) == address
    except OSError:
        return False


def is_numeric(text: str) -> bool:
    """Whether an address needs no name server: numbers, or a Unix socket. UpstreamError if it is no address at all."""
    if text.startswith(UNIX):
        return True
    try:
        ipaddress.ip_address(parse_host_port(text).host)
    except ValueError:
        return False
    return True


def show(endpoint: Endpoint) -> str:
    """ "192.0.2.1:80", "[2001:db8::1]:80" or "unix:/path"."""
    host = endpoint.address
    if host is None:
        return f"{UNIX}{endpoint.sockaddr}"
    return f"{host}:{endpoint.port}" if host.version == 4 else f"[{host}]:{endpoint.port}"


def _unix_path(text: str) -> str:
    path = text.removeprefix(UNIX)
    if not path.startswith("/") or "\0" in path:
        raise UpstreamError(f"upstream {text!r}: write a Unix socket as unix:/its/path")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise UpstreamError(f"upstream {text!r}: the path of a Unix socket has at most {UNIX_PATH_BYTES} bytes")
    return path


def _real(path: str) -> str:
    return os.path.realpath(path)  # unlike Path.resolve, it minds no loop of links


def _check_ipv6(text: str, host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise UpstreamError(f"upstream {text!r}: {host!r} is not an IPv6 address") from None


def _port(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:6]) <= MAX_PORT:
        raise UpstreamError(f"upstream {text!r}: {digits!r} is not a port (1 to {MAX_PORT})")
    return int(digits)


def _numeric(entry: str, host: str) -> IPAddress:
    try:
        return _plain(ipaddress.ip_address(host))
    except ValueError:
        raise UpstreamError(f"production address {entry!r}: write a numeric address, or *:port") from None


def _endpoint(family: int, sockaddr: tuple[Any, ...]) -> Endpoint:
    address = _plain(ipaddress.ip_address(sockaddr[0]))
    return Endpoint(socket.AddressFamily(family), address, sockaddr[1], sockaddr)


def _plain(address: IPAddress) -> IPAddress:
    """An IPv4 address that is written as IPv6 (::ffff:192.0.2.1) is that IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
