"""The sampling hash of bpf/match.h in Python: the same flows are taken from a file, on every host, with the same seed.

Both directions of a connection hash alike, and a smaller share is a subset of a larger one.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
from enum import StrEnum
from typing import NamedTuple

from agent.capture.layout import PPM
from agent.capture.segment import KEY_V6_BYTES

_MASK = (1 << 64) - 1
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_V4 = struct.Struct("!IIHH")
_V6 = struct.Struct("!QQQQHH")


class By(StrEnum):
    """What is taken or left as a whole. Connections and clients can be told apart in the kernel."""

    CONNECTION = "connection"
    CLIENT = "client"
    REQUEST = "request"
    HEADER = "header"  # all requests with one value of a header
    COOKIE = "cookie"  # all requests with one value of a cookie


class Window(NamedTuple):
    """The places among PPM that are taken: from the first, up to and without the last. A share of the same beginning
    that is smaller takes a subset."""

    from_ppm: int
    to_ppm: int

    def has(self, hash64: int) -> bool:
        """The hash has its place in it."""
        return self.from_ppm <= place_of(hash64) < self.to_ppm


EVERYTHING = Window(0, PPM)


def read_sample_by(text: str) -> tuple[By, str]:
    """ "connection", "header:X-User" ... taken apart; ValueError says which there are."""
    kind, colon, name = text.strip().partition(":")
    try:
        by = By(kind.lower())
    except ValueError:
        raise ValueError("give connection, client, request, header:NAME or cookie:NAME") from None
    named = by in (By.HEADER, By.COOKIE)
    if named != bool(colon) or (named and not _TOKEN.fullmatch(name)):
        raise ValueError(f"give {by}:NAME" if named else f"{by} takes no name")
    return by, name.lower() if by is By.HEADER else name


def mix(x: int) -> int:
    """Finalizer of splitmix64 on a 64-bit number."""
    x &= _MASK
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & _MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def flow_hash(key: bytes, seed: int) -> int:
    """64 bits for the connection of a segment's key, equal for both directions."""
    if len(key) < KEY_V6_BYTES:
        source, destination, source_port, destination_port = _V4.unpack_from(key)
        return mix(mix(seed + (source << 16 | source_port)) + mix(seed + (destination << 16 | destination_port)))
    a, b, c, d, source_port, destination_port = _V6.unpack_from(key)
    return mix(_v6(seed, a, b, source_port) + _v6(seed, c, d, destination_port))


def client_hash(address: str, seed: int) -> int:
    """64 bits for a client's address (without port)."""
    if ":" not in address:
        return mix(mix(seed + (int.from_bytes(socket.inet_aton(address), "big") << 16)))
    high, low = struct.unpack("!QQ", socket.inet_pton(socket.AF_INET6, address))
    return mix(_v6(seed, high, low, 0))


def value_hash(value: bytes, seed: int) -> int:
    """64 bits for a value that a user carries along: a header's or a cookie's."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8, key=seed.to_bytes(8, "big")).digest(), "big")


def request_hash(connection_hash: int, index: int) -> int:
    """64 bits for one request of a connection, by its place there."""
    return mix(connection_hash + mix(index + 1))


def place_of(hash64: int) -> int:
    """Where among PPM a hash has its place."""
    return (hash64 >> 32) * PPM >> 32


def sampled(hash64: int, share_ppm: int) -> bool:
    """The hash lies within the share (millionths)."""
    return place_of(hash64) < share_ppm


def worker_of(hash64: int, workers: int) -> int:
    """Index of the ring that the kernel puts this flow in."""
    return (hash64 & 0xFFFFFFFF) * workers >> 32


def _v6(seed: int, high: int, low: int, port: int) -> int:
    return mix(mix(mix(seed + high) + low) + port)
