"""Hashes for balancing: the key of a request, and the tables that say which member of a pool a key belongs to.

Every hash is the same in all processes and on all hosts, so that the workers of several agents send one client to one
upstream without telling each other. Tables depend on names and weights alone, not on what came before.

`Ring`: consistent hashing (Karger et al., STOC 1997) with points in proportion to weight. What a member that leaves
had goes to the others, and nothing else moves. `Maglev` (Eisenbud et al., NSDI 2016, section 3.4): a table that members
fill in turns. Shares are exact to about a slot; a little more moves than has to; a key is found in one step.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from math import floor, frexp, ldexp
from struct import unpack
from typing import TYPE_CHECKING

from replay.balancer.settings import HashBy
from replay.http1 import header_values, target_path

if TYPE_CHECKING:
    from replay.balancer.policy import Ask

POINTS_PER_WEIGHT = 256  # shares are then right to about a sixteenth (one standard deviation)
MEMBER_LIMIT_POINTS = 4096  # beyond either limit everyone's points are halved
RING_LIMIT_POINTS = 32_768
MAGLEV_SLOTS = (5003, 20_011, 65_537)  # primes; the first that has SLOTS_PER_MEMBER, else the last
SLOTS_PER_MEMBER = 100  # after the paper
LEAST_WEIGHT = 1 / 8  # of weights that are not whole

Members = Sequence[tuple[str, float]]  # names, each once, and weights above 0 as `step_weight` gives them

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_INDEX_BITS = 16
_INDEX = (1 << _INDEX_BITS) - 1
_POINTS_PER_DIGEST = 8
_BLANK = b" \t"


def hash64(key: bytes, seed: int) -> int:
    """64 bits for a key. The seed means something else here than in sampling, which hashes the same values: else a
    tenth of all users would be a tenth of the ring."""
    return int.from_bytes(blake2b(key, digest_size=8, salt=_salt(seed), person=b"balancer key").digest(), "big")


def random64(seed: int, turn: int) -> int:
    """64 random bits that are a function of the turn: splitmix64 (Steele et al., OOPSLA 2014) begun at the seed."""
    x = seed + (turn + 1) * _GAMMA & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def key_of(hash_by: HashBy, ask: Ask) -> bytes | None:
    """What is hashed; None where the request does not have it. An empty value is none: it tells nobody apart."""
    if hash_by.what == "client":
        return _bytes(ask.client) or None
    if hash_by.what == "path":
        return _bytes(target_path(ask.request.target)) or None
    if hash_by.what == "cookie":
        return cookie_value(ask.request.head, _bytes(hash_by.name)) or None
    values = header_values(ask.request.head, _bytes(hash_by.name.lower()))
    return values[0] or None if values else None


def cookie_value(head: bytes, name: bytes) -> bytes | None:
    """The first value of a cookie, without the double quotes around it. Criteria and samples read cookies by the same
    rules: what has no "=" is no cookie (RFC 6265 section 5.2), and case matters."""
    if name not in head:
        return None
    for header in header_values(head, b"cookie"):
        for pair in header.split(b";"):
            key, equals, value = pair.partition(b"=")
            if equals and key.strip(_BLANK) == name:
                return _unquoted(value.strip(_BLANK))
    return None


def step_weight(weight: float) -> float:
    """The weight that tables are made for: a whole one as it is, any other rounded down to one of four steps to each
    doubling. A weight that grows from an eighth to 1 in a slow start has a new table made 12 times, not each time."""
    if weight == floor(weight):
        return weight
    mantissa, exponent = frexp(max(weight, LEAST_WEIGHT))  # from 4/8 up to, and without, 8/8
    return ldexp(floor(mantissa * 8) / 8, exponent)


class Ring:
    """Points on a circle of 64 bits. A key belongs to the member that has the next point."""

    __slots__ = ("_density", "_indices", "points")

    def __init__(self, members: Members, seed: int) -> None:
        self._density, salt = _density(members), _salt(seed)
        self._indices = {member: index for index, member in enumerate(members)}
        points: list[int] = []
        for (name, weight), index in self._indices.items():
            of_member = _points(name, max(1, round(weight * self._density)), salt)
            points += [point >> _INDEX_BITS << _INDEX_BITS | index for point in of_member]
        points.sort()
        self.points = array("Q", points)  # each with its member's index in the low bits

    def serves(self, members: Members) -> bool:
        """Whether a ring of these would be this one without the points of all others."""
        return all(member in self._indices for member in members) and _density(members) == self._density

    def part(self, members: Members) -> Part:
        """The table of those members, which it serves."""
        indices = [-1] * len(self._indices)
        for index, member in enumerate(members):
            indices[self._indices[member]] = index
        return Part(self.points, indices)


class Part:
    """A ring as it is for some of its members: points of others are walked past."""

    __slots__ = ("_indices", "_points")

    def __init__(self, points: array[int], indices: Sequence[int]) -> None:
        self._points = points
        self._indices = indices  # among those members, of each member of the ring; -1 for the others

    def find(self, place: int) -> int:
        """Index of the member that 64 bits belong to."""
        points, indices = self._points, self._indices
        at = bisect_left(points, place)
        while True:
            if at == len(points):
                at = 0
            index = indices[points[at] & _INDEX]
            if index >= 0:
                return index
            at += 1


class Rings:
    """Tables for changing members: one ring serves a pool and all parts of it, so that it is made anew only for members
    or weights that it does not have. No answer shows which ring it was."""

    __slots__ = ("_ring", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._ring: Ring | None = None

    def __call__(self, members: Members) -> Part:
        ring = self._ring
        if ring is None or not ring.serves(members):
            ring = self._ring = Ring(members, self._seed)
        return ring.part(members)


class Maglev:
    """A table of slots. Each member has its own order of all slots and takes, in its turn, its next one that is free;
    a lighter member lets turns pass."""

    __slots__ = ("_slots",)

    def __init__(self, members: Members, seed: int) -> None:
        wanted, salt = len(members) * SLOTS_PER_MEMBER, _salt(seed)
        size = next((slots for slots in MAGLEV_SLOTS if slots >= wanted), MAGLEV_SLOTS[-1])
        in_turn = sorted(range(len(members)), key=lambda n: members[n][0])  # so that any order of a pool is one table
        orders = [_order(members[n][0], size, salt) for n in in_turn]
        filled = fill_slots(orders, [members[n][1] for n in in_turn], size)
        self._slots = array("I", [in_turn[owner] for owner in filled])

    def find(self, place: int) -> int:
        """Index of the member that 64 bits belong to."""
        return self._slots[place % len(self._slots)]

    def __len__(self) -> int:
        return len(self._slots)


def _density(members: Members) -> float:
    """Points for each 1 of weight. It must not change with who else is there, or all keys would move with it; so it
    is halved, and only where a limit asks for it."""
    weights = [weight for _, weight in members]
    density, heaviest, total = float(POINTS_PER_WEIGHT), max(weights), sum(weights)
    while heaviest * density > MEMBER_LIMIT_POINTS or total * density > RING_LIMIT_POINTS:
        density /= 2
    return density


def _points(name: str, count: int, salt: bytes) -> list[int]:
    """A member's points: fewer of them are the first of more, so that a change of weight moves what it has to."""
    points: list[int] = []
    member = blake2b(_bytes(name), salt=salt, person=b"balancer ring")
    for block in range((count + _POINTS_PER_DIGEST - 1) // _POINTS_PER_DIGEST):
        digest = member.copy()
        digest.update(b"\0%d" % block)
        points += unpack(">8Q", digest.digest())
    return points[:count]


def fill_slots(orders: Sequence[tuple[int, int]], weights: Sequence[float], size: int) -> list[int]:
    """Who has each slot. `orders`: each one's first slot, and how many slots on the next ones are. All take one in the
    first round, so that everyone has some."""
    table = [-1] * size
    heaviest = max(weights)
    next_slots = [first for first, _ in orders]
    credit = [heaviest] * len(weights)
    free = size
    while True:
        for n, weight in enumerate(weights):
            if credit[n] < heaviest:
                credit[n] += weight
                continue
            credit[n] += weight - heaviest
            slot, skip = next_slots[n], orders[n][1]
            while table[slot] >= 0:
                slot += skip
                if slot >= size:
                    slot -= size
            table[slot], next_slots[n] = n, slot
            free -= 1
            if not free:
                return table


def _order(name: str, size: int, salt: bytes) -> tuple[int, int]:
    """For `fill_slots`. As the size is prime, every slot is come by."""
    digest = blake2b(_bytes(name), digest_size=16, salt=salt, person=b"balancer maglev").digest()
    offset, skip = unpack(">2Q", digest)
    return offset % size, skip % (size - 1) + 1


def _salt(seed: int) -> bytes:
    return (seed & _MASK).to_bytes(8, "big")


def _bytes(text: str) -> bytes:
    """Text of the wire as it was there; any other text as something else, without failing."""
    return text.encode("latin-1", "backslashreplace")


def _unquoted(value: bytes) -> bytes:
    return value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == b'"' else value
