"""Which shadow server stands in for which server of production, as the settings say it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from replay.balancer.address import UNIX, parse_host_port
from replay.errors import UpstreamError

EVERY = "*"
_FAMILY = re.compile(r"^(?:ipv4|ipv6|tcp|tcp4|tcp6)@")  # HAProxy's prefixes that do not change where it goes
_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_PATH = re.compile(r"/[^\s\"'\\#;{}$]+")  # what neither HAProxy nor nginx would have to be shown in quotes


class ServerMap:
    """The mapping from production's servers to the shadow's, and which of its entries have been used.

    The most specific entry counts: "backend/server", then the address ("prod-web1:80", "[2001:db8::1]:80",
    "unix:/run/app.sock", as written or the same in numbers), the server's name, "backend/*", "*". It stands for
    "host:port", "host" (with production's port), "[address]:port" or "unix:/path"; a list of these is dealt out in
    turn, from its beginning in each backend. Lookups are counted: each derivation makes its own, with `fresh`.
    """

    __slots__ = ("_addresses", "_entries", "_turns", "_used")

    def __init__(self, entries: Mapping[str, str | Sequence[str]]) -> None:
        self._entries = {key: _values(key, value) for key, value in entries.items()}
        self._addresses = {canonical(key): key for key in self._entries}
        self._turns: dict[tuple[str, str], int] = {}
        self._used: set[str] = set()

    def fresh(self) -> ServerMap:
        """The same entries, none of them used."""
        return ServerMap(self._entries)

    @property
    def unused(self) -> tuple[str, ...]:
        """Entries that no server has hit: most often a misspelt name."""
        return tuple(key for key in self._entries if key not in self._used)

    def lookup(self, backend: str, server: str, address: str) -> str | None:
        """Where this server's part is played: "host:port", "[address]:port" or "unix:/path"; None without an entry.

        `address` is production's. UpstreamError if the entry leaves the port to production and there is none.
        """
        key = self._find(backend, server, address)
        if key is None:
            return None
        self._used.add(key)
        values = self._entries[key]
        turn = self._turns.get((key, backend), 0)
        self._turns[key, backend] = turn + 1
        return _with_port(key, values[turn % len(values)], address)

    def _find(self, backend: str, server: str, address: str) -> str | None:
        by_address = self._addresses.get(canonical(address))
        for key in (f"{backend}/{server}", by_address, server, f"{backend}/{EVERY}", EVERY):
            if key is not None and key in self._entries:
                return key
        return None


def canonical(address: str) -> str:
    """The one way to write an address of a server that is equal for equal addresses: for comparing, not for showing."""
    address = _FAMILY.sub("", address.strip())
    for prefix in (UNIX, "unix@", "/"):
        if address.startswith(prefix):
            return UNIX + address.removeprefix(prefix.rstrip("/"))
    host, colon, port = address.rpartition(":")
    if not colon:
        return address.lower()
    try:
        number = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return address.lower()
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    return f"{number}:{int(port) if _is_port(port) else port}"


def _values(key: str, value: str | Sequence[str]) -> tuple[str, ...]:
    if not key.strip() or key != key.strip():
        raise UpstreamError(f"server mapping {key!r}: name a server of production, its address, backend/server or *")
    values = (value,) if isinstance(value, str) else tuple(value)
    if not values:
        raise UpstreamError(f"server mapping {key!r}: no shadow server is named, write host:port")
    return tuple(_value(key, each) for each in values)


def _value(key: str, text: str) -> str:
    """Checks the form alone: whether a name resolves, and to what, is known where it is used."""
    text = text.strip()
    if text.startswith(UNIX):
        if not _PATH.fullmatch(text.removeprefix(UNIX)):
            raise UpstreamError(f"server mapping {key!r}: {text!r} is not a Unix socket, write unix:/its/path")
        return text
    whole = text if _has_port(text) else f"{text}:1"
    try:
        host, _ = parse_host_port(whole)
    except UpstreamError as error:
        reason = str(error).partition(": ")[2]
        raise UpstreamError(f"server mapping {key!r}: {text!r}: {reason}") from None
    if ":" not in host and not _HOST.fullmatch(host):
        raise UpstreamError(f"server mapping {key!r}: {host!r} is not a host, write host:port")
    if _is_unspecified(host):
        raise UpstreamError(f"server mapping {key!r}: {host} is not the address of one host, write host:port")
    return text


def _with_port(key: str, value: str, address: str) -> str:
    if value.startswith(UNIX) or _has_port(value):
        return value
    port = address.rpartition(":")[2]
    if not _is_port(port) or canonical(address).startswith(UNIX):
        raise UpstreamError(f"server mapping {key!r}: {address!r} has no port to keep, write {value}:PORT")
    return f"{value}:{int(port)}"


def _has_port(text: str) -> bool:
    return ":" in text[text.rfind("]") + 1 :]


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 65535


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
