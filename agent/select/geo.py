"""Where clients are: countries and continents from a database in MaxMind's format (GeoLite2, GeoIP2, DB-IP, IPinfo).

`locate` answers for one address, `prefixes` and `networks` list all of a country's for the kernel's trie; both read the
same tree, so they agree. The library decodes records, but the tree is walked here, which keeps what was decoded by its
pointer: a look-up takes a fifth of the library's time. Its C extension (3.2.0) is as fast, but is ended by a broken
record, and the process with it. Format: https://maxmind.github.io/MaxMind-DB/ .

The file is mapped, not read: processes share its pages. Replace it by renaming, as geoipupdate does; to cut a mapped
file short in place kills whoever reads it.
"""

from __future__ import annotations

import ipaddress
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from agent.errors import ConfigError
from agent.select.client_address import Address, unmapped
from agent.select.criteria import Network

CACHE_ENTRIES = 8192  # clients that `locate` remembers; about 2 MB
_RECORDS_LIMIT = 8192  # decoded records that are kept; a database of countries has a few hundred
_PROBED_PREFIXES = 1000  # looked at on opening: a database of countries has one among them
_VISITS_PER_NODE = 4  # of a walk, at most; 1 in a tree. A broken one can have more paths than there are addresses
_GET = "give a country or city database in MaxMind's format (.mmdb), such as GeoLite2-Country or DB-IP Lite"
_NOWHERE: frozenset[str] = frozenset()
_V4_DEPTH = 96  # IPv4 is at ::/96 of an IPv6 tree

Codes = frozenset[str]
Prefix = tuple[int, int, int, Codes]  # IP version, first address, length, codes
Signature = tuple[int, int, int, int]  # device, inode, size, mtime_ns

# What has no geography, whatever a database says. At least all that `ipaddress` in any Python calls not global, and
# multicast; whole blocks, without the few anycast holes in 192.0.0.0/24 and 2001::/23, which are nowhere either.
# Of IPv6 only 2000::/3 is given to anyone. `agent.select.prefixes` puts the same table into the kernel.
NO_GEOGRAPHY: dict[int, tuple[Network, ...]] = {
    4: (
        *map(ipaddress.IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16")),
        *map(ipaddress.IPv4Network, ("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16")),
        *map(ipaddress.IPv4Network, ("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")),
    ),
    6: (
        *map(ipaddress.IPv6Network, ("::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")),
        *map(ipaddress.IPv6Network, ("4000::/2", "8000::/1")),
    ),
}


class GeoDatabase:
    """An open database. Raises ConfigError if there is none at `path` or it is of no use.

    `faults` counts the clients whose record could not be read; they are nowhere.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.faults = 0
        self._file = _File(self.path)
        self._seen = self._file.signature  # of the newest file that was tried, good or not
        self._cached = lru_cache(CACHE_ENTRIES)(self._look_up)

    def locate(self, address: Address) -> Codes:
        """The codes of an address: {"US", "continent:NA"}; empty if unknown or not a public one. Never raises."""
        return self._cached(address)

    def _look_up(self, address: Address) -> Codes:
        address = unmapped(address)
        if any(address in network for network in NO_GEOGRAPHY[address.version]):
            return _NOWHERE
        try:
            return self._file.codes(address)
        except Exception:  # whatever a broken record does to the decoder
            self.faults += 1
            return _NOWHERE

    def prefixes(self, codes: Iterable[str]) -> Iterator[Prefix]:
        """Prefixes with any of `codes`, and which of them they have; IPv4 first, each in the order of addresses.

        Disjoint; neighbours with the same codes are joined. May hold private ranges, to which `locate` gives no codes.
        Raises ConfigError if the tree is broken.
        """
        return _joined(self._file.leaves(_chosen(frozenset(codes))))

    def networks(self, codes: Iterable[str]) -> Iterator[tuple[Network, Codes]]:
        """As `prefixes`, in objects."""
        for version, start, length, found in self.prefixes(codes):
            kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
            yield kind((start, length)), found

    def changed(self) -> bool:
        """Another file is at the path than the one last opened or tried. No file at all is no change."""
        try:
            return _signature(self.path.stat()) != self._seen
        except OSError:
            return False

    def reload(self) -> str | None:
        """Open the file that is at the path now. If it is broken, keep the old one and return the problem."""
        try:
            self._seen = _signature(self.path.stat())  # first, so that a broken one is tried only once
            self._file = _File(self.path)
        except OSError as error:
            return f"{self.path}: {error.strerror}: {_GET}"
        except ConfigError as error:
            return str(error)
        self._seen = self._file.signature
        self._cached.cache_clear()
        return None


class _File:
    """One opened file. It stays whole, whatever comes to be at its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.signature = _signature(os.fstat(file.fileno()))
                self._tree = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                # Not by its path: another file may be there by now.
                import maxminddb  # 7 MB of memory, only where it is needed

                self._reader = maxminddb.open_database(f"/proc/self/fd/{file.fileno()}", maxminddb.MODE_MMAP)
            self._read_metadata()
            found = any(codes for _, _, _, codes in islice(self.leaves(lambda codes: codes), _PROBED_PREFIXES))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}: {_GET}") from None
        except ConfigError:
            raise
        except Exception:  # the library raises what its decoder meets: ValueError, TypeError, KeyError, its own
            raise ConfigError(f"{path}: not a database in MaxMind's format, or a broken one: {_GET}") from None
        if not found:
            raise ConfigError(f"{path}: a {self._kind!r:.60} database, without countries: {_GET}")

    def _read_metadata(self) -> None:
        metadata = self._reader.metadata()
        self._kind = metadata.database_type
        self._bits = 128 if metadata.ip_version == 6 else 32
        self._nodes = metadata.node_count
        self._record_bits = metadata.record_size
        self._v4_root = self._follow(0, _V4_DEPTH, 0) if self._bits == 128 else 0
        self._records: dict[int, Codes] = {}  # by pointer

    def codes(self, address: Address) -> Codes:
        """Raises anything if the record is broken."""
        if address.version == 6 and self._bits == 32:
            return _NOWHERE
        node = self._follow(self._v4_root if address.version == 4 else 0, address.max_prefixlen, int(address))
        if node == self._nodes:
            return _NOWHERE
        if node not in self._records:
            if len(self._records) >= _RECORDS_LIMIT:
                self._records.clear()
            self._records[node] = codes_of(self._reader.get(address))
        return self._records[node]

    def leaves(self, choose: Callable[[Codes], Codes]) -> Iterator[Prefix]:
        """The tree's prefixes, with the codes that `choose` leaves of theirs. Raises ConfigError if it is no tree."""
        chosen: dict[int, Codes] = {}  # by pointer: prefixes share records
        stack = [(0, 0, 0)]  # node, first address, depth
        visits = 0
        while stack:
            node, start, depth = stack.pop()
            if node > self._nodes:
                for version, begin, length in self._families(start, depth):
                    if node not in chosen:
                        chosen[node] = choose(self._codes_at(version, begin))
                    yield version, begin, length, chosen[node]
            elif node < self._nodes:
                if start >> 32 and node == self._v4_root:
                    continue  # IPv4 is again in 2002::/16 and such
                visits += 1
                if visits > self._nodes * _VISITS_PER_NODE or depth == self._bits:
                    raise ConfigError(f"{self.path}: broken database: its tree has loops: {_GET}")
                left, right = self._children(node)
                depth += 1
                stack.append((right, start | 1 << self._bits - depth, depth))
                stack.append((left, start, depth))

    def _families(self, start: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """What a leaf is in IPv4 and in IPv6; one at ::/96 or above it is in both."""
        if self._bits == 32:
            yield 4, start, depth
        elif start >> 32:
            yield 6, start, depth
        else:
            yield 4, start, max(depth - _V4_DEPTH, 0)
            if depth < _V4_DEPTH:
                yield 6, start, depth

    def _codes_at(self, version: int, start: int) -> Codes:
        """As `GeoDatabase.locate`: a broken record is nowhere."""
        try:
            return self.codes(ipaddress.IPv4Address(start) if version == 4 else ipaddress.IPv6Address(start))
        except Exception:
            return _NOWHERE

    def _children(self, node: int) -> tuple[int, int]:
        size = self._record_bits // 4
        pair = int.from_bytes(self._tree[node * size : node * size + size], "big")
        if self._record_bits == 28:  # both records' high bits are in the middle byte
            return pair >> 32 | (pair >> 28 & 0xF) << 24, pair & 0xFFF_FFFF
        return pair >> self._record_bits, pair & (1 << self._record_bits) - 1

    def _follow(self, node: int, bits: int, number: int) -> int:
        """Where the bits of a number lead from a node: an inner node if there are too few, self._nodes if nothing is
        there, else the pointer of a record."""
        while bits and node < self._nodes:
            bits -= 1
            node = self._children(node)[number >> bits & 1]
        return node


def codes_of(record: Any) -> Codes:
    """The codes in a database's record: MaxMind's form, or a flat one such as IPinfo's."""
    if not isinstance(record, dict):
        return _NOWHERE
    country = _code(record, "country", "iso_code")
    continent = _code(record, "continent", "code")
    return _code_set(country, continent)


def _code(record: dict[str, Any], name: str, key: str) -> str:
    """{name: {key: "US"}}, {name_code: "US"} or {name: "US"}, in capitals; "" for anything else, such as a name."""
    value = record.get(name)
    for code in (value.get(key) if isinstance(value, dict) else None, record.get(name + "_code"), value):
        if isinstance(code, str) and len(code) == 2 and code.isascii() and code.isalpha():
            return code.upper()
    return ""


@lru_cache(1024)
def _code_set(country: str, continent: str) -> Codes:
    """One object for all the clients of a country."""
    return frozenset([country] * bool(country) + [f"continent:{continent}"] * bool(continent))


def _chosen(wanted: Codes) -> Callable[[Codes], Codes]:
    return lru_cache(1024)(wanted.intersection)


def _joined(leaves: Iterator[Prefix]) -> Iterator[Prefix]:
    """Two halves with the same codes as one prefix: a city database has many for each country's."""
    pending: list[Prefix] = []  # neighbours with the same codes, each waiting for its right half
    after = -1  # the address behind the last of them
    for version, start, length, codes in leaves:
        if not codes:
            continue
        if pending and (start != after or codes != pending[-1][3] or version != pending[-1][0]):
            yield from pending
            pending.clear()
        half = 1 << (32 if version == 4 else 128) - length
        after = start + half
        while start & half and pending and pending[-1] == (version, start - half, length, codes):
            pending.pop()
            start, length, half = start - half, length - 1, half * 2
        pending.append((version, start, length, codes))
    yield from pending


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
