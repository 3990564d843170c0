"""Who the client is, behind other balancers: the connection's peer, a PROXY protocol header or a field like
X-Forwarded-For. Sans-IO.

Strangers write these fields, so a field is believed only as far as trusted proxies have written it.
PROXY protocol: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt , versions 1 and 2.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from agent.errors import ConfigError
from agent.select.criteria import Network
from replay.http1 import header_values

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

CONNECTION = "connection"
PROXY_PROTOCOL = "proxy_protocol"
MAX_HOPS = 64  # entries of a header that are looked at; a stranger can send thousands
V1_LIMIT_BYTES = 107  # the specification's, CR LF included
V2_LIMIT_BYTES = 4096  # ours, all included; the specification's is 65551

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD_BYTES = 16
_V2_LOCAL = 0x20
_V2_PROXY = 0x21
_V2_FAMILIES = {0x11: (12, 4, 8), 0x21: (36, 16, 32)}  # over TCP: bytes of addresses and ports, of one, offset of port
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_PORT = re.compile(r"[0-9]{1,5}")
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?|([^:]*):[0-9]{1,5}")


class NeedMore(Enum):
    """The type of NEED_MORE."""

    NEED_MORE = "need more"


NEED_MORE: Final = NeedMore.NEED_MORE


class ProxyHeader(NamedTuple):
    """A whole PROXY header. `source` is None where it names no client (UNKNOWN, LOCAL, Unix sockets): the connection's
    peer is the client then."""

    consumed_bytes: int
    source: Address | None
    port: int  # of the source; 0 without one


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where the client's address comes from; `client_address` makes one from settings."""

    source: str = CONNECTION  # CONNECTION, PROXY_PROTOCOL or a header's name in lower case
    trusted: tuple[Network, ...] = ()  # proxies that are believed in the header; none: nobody is

    @property
    def header(self) -> str:
        """The header's name; "" if the address comes from elsewhere."""
        return "" if self.source in (CONNECTION, PROXY_PROTOCOL) else self.source

    def trusts(self, address: Address) -> bool:
        return any(address in network for network in self.trusted)


def client_address(source: str, trusted: Iterable[str] = ()) -> ClientAddress:
    """From settings: a source, and networks or addresses. Raises ConfigError, which names value and rule."""
    name = source.strip().lower()
    if name == "forwarded" or not _TOKEN.fullmatch(name):
        known = f"{CONNECTION}, {PROXY_PROTOCOL} or a header with addresses, such as X-Forwarded-For"
        raise ConfigError(f"client address from {source!r}: give {known}")
    return ClientAddress(name, tuple(map(_network, trusted)))


def client_of(request_head: bytes, peer: Address, settings: ClientAddress) -> Address:
    """The client of a request, given the connection's peer (of PROXY_PROTOCOL: the source in its header).

    A header is read from the right, each entry being what one proxy saw: the first untrusted address is the client.
    If all are trusted, it is the leftmost. What is malformed or beyond MAX_HOPS ends the walk.
    """
    client = unmapped(peer)
    if not settings.header or not settings.trusts(client):
        return client
    field = b",".join(header_values(request_head, settings.header.encode()))
    for entry in reversed(field.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]):
        text = entry.strip(b" \t").decode("latin-1")
        if not text:
            continue  # RFC 9110 section 5.6.1.2: empty elements do not count
        address = _hop(text)
        if address is None:
            break
        client = address
        if not settings.trusts(client):
            break
    return client


def unmapped(address: Address) -> Address:
    """IPv4 in IPv6 (::ffff:192.0.2.1) as IPv4."""
    if address.version == 6:
        return address.ipv4_mapped or address
    return address


def parse_proxy_header(data: bytes | bytearray) -> ProxyHeader | NeedMore | None:
    """The PROXY header that a client's stream begins with: None if it begins with none or with a malformed one,
    NEED_MORE while that is open. What is said of some data stays true of more data."""
    if data.startswith(_V2[: len(data)]):
        return _version_2(data)
    if data.startswith(_V1[: len(data)]):
        return _version_1(data)
    return None


def _version_1(data: bytes | bytearray) -> ProxyHeader | NeedMore | None:
    end = data.find(b"\r\n", 0, V1_LIMIT_BYTES)
    if end < 0:
        return None if len(data) >= V1_LIMIT_BYTES else NEED_MORE
    _, family, *fields = data[:end].decode("latin-1").split(" ")
    if family == "UNKNOWN":
        return ProxyHeader(end + 2, None, 0)
    if family not in ("TCP4", "TCP6") or len(fields) != 4:
        return None
    version = 4 if family == "TCP4" else 6
    source, destination = (_plain(text, version) for text in fields[:2])
    ports = [int(text) if _PORT.fullmatch(text) else 1 << 16 for text in fields[2:]]
    if source is None or destination is None or max(ports) >= 1 << 16:
        return None
    return ProxyHeader(end + 2, unmapped(source), ports[0])


def _version_2(data: bytes | bytearray) -> ProxyHeader | NeedMore | None:
    """What follows the addresses (type-length-values) is skipped."""
    if len(data) < _V2_HEAD_BYTES:
        return NEED_MORE
    command, family = data[12], data[13]
    end = _V2_HEAD_BYTES + int.from_bytes(data[14:16], "big")
    if command not in (_V2_LOCAL, _V2_PROXY) or family >> 4 > 3 or family & 0xF > 2 or end > V2_LIMIT_BYTES:
        return None
    if command == _V2_LOCAL or family not in _V2_FAMILIES:
        return ProxyHeader(end, None, 0) if len(data) >= end else NEED_MORE
    needed, size, port_at = _V2_FAMILIES[family]
    if end - _V2_HEAD_BYTES < needed:
        return None
    if len(data) < end:
        return NEED_MORE
    body = bytes(data[_V2_HEAD_BYTES:end])
    return ProxyHeader(end, unmapped(_packed(body[:size])), int.from_bytes(body[port_at : port_at + 2], "big"))


def _packed(data: bytes) -> Address:
    return ipaddress.IPv4Address(data) if len(data) == 4 else ipaddress.IPv6Address(data)


def _hop(text: str) -> Address | None:
    """An entry of a header: an address, perhaps with a port; an IPv6 one perhaps in brackets."""
    match = _WITH_PORT.fullmatch(text)
    address = _plain(text if match is None else match[1] or match[2] or "")
    return None if address is None else unmapped(address)


def _plain(text: str, version: int = 0) -> Address | None:
    """An address without zone (which could hold anything), of this version if one is given."""
    try:
        address = ipaddress.ip_address("" if "%" in text else text)
    except ValueError:
        return None
    return address if version in (0, address.version) else None


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise ConfigError(f"trusted proxy {text!r}: {error}: give a network such as 10.0.0.0/8") from None
    first = unmapped(network.network_address)
    if first.version == network.version or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((int(first), network.prefixlen - 96))
