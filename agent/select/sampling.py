"""The sampling hash of bpf/match.h in Python: the same flows are taken from a file, on every host, with the same seed.

Both directions of a connection hash alike, and a smaller share is a subset of a larger one.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

from agent.capture.layout import PPM
from agent.capture.segment import KEY_V6_BYTES

_MASK = (1 << 64) - 1
_V4 = struct.Struct("!IIHH")
_V6 = struct.Struct("!QQQQHH")


class SampleBy(IntEnum):
    """What is taken or left as a whole; the values are those of enum sample_by in bpf/event.h."""

    CONNECTION = 0
    CLIENT = 1


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


def sampled(hash64: int, share_ppm: int) -> bool:
    """The hash lies within the share (millionths)."""
    return (hash64 >> 32) * PPM >> 32 < share_ppm


def worker_of(hash64: int, workers: int) -> int:
    """Index of the ring that the kernel puts this flow in."""
    return (hash64 & 0xFFFFFFFF) * workers >> 32


def _v6(seed: int, high: int, low: int, port: int) -> int:
    return mix(mix(mix(seed + high) + low) + port)
