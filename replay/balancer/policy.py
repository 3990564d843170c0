"""Policies: which upstream of a pool the next request goes to.

The engine asks (`pick`), decides, and says what it did (`picked`). `pick` is pure: it changes nothing that another
answer depends on, so the engine may ask twice, or do something else. What is random is a function of the seed and the
turn, so that the same requests go the same ways in every run.

    round_robin         each in its turn; weights do not count
    weighted            each in its turn, heavier ones more often, in between the others and not in a row
    least_request       the least loaded
    random_two_choices  of two at random the less loaded
    random              any; what the others are compared with. Weights do not count
    ring_hash, maglev   the one that the client, path, header or cookie belongs to (`replay.balancer.hashing`)

The load is the requests in flight, this one included, for each 1 of weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from replay.balancer.hashing import Maglev, Members, Rings, hash64, key_of, random64, step_weight
from replay.balancer.settings import BalancerSettings, HashBy
from replay.errors import UpstreamError
from replay.exchange import Request

TABLES_KEPT = 16  # of one pool, for what its members were lately
CREDIT_TURNS = 2  # requests that a member can be ahead or behind, whatever happened; in normal use it is about one
_LOW = (1 << 32) - 1


class Ask(NamedTuple):
    """What a policy may look at besides the candidates."""

    request: Request
    client: str  # the client's address without port, "" when not known
    turn: int  # number of assignments the engine made before this one


class Candidate(Protocol):
    """What a policy sees of an upstream."""

    @property
    def name(self) -> str:
        """ "192.0.2.1:80", unique in the pool; stays the same when the pool changes."""

    @property
    def in_flight(self) -> int:
        """Requests assigned and not ended."""

    @property
    def effective_weight(self) -> float:
        """Weight after slow start, above 0."""


C = TypeVar("C", bound=Candidate)


class Policy(Protocol):
    """Candidates are at least one, in the order of the pool: its members that are well at the moment."""

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        """One of the candidates; the same one when asked again."""

    def picked(self, candidates: Sequence[C], choice: C) -> None:
        """The engine acted on it, or chose another candidate itself. Only here may state advance."""


class Table(Protocol):
    """What keys are looked up in."""

    def find(self, place: int) -> int:
        """Index of the candidate that 64 bits belong to."""


class Stateless:
    """What has nothing to remember."""

    __slots__ = ()

    def picked(self, candidates: Sequence[C], choice: C) -> None:
        """Nothing follows from it."""


class RoundRobin(Stateless):
    """See the module."""

    __slots__ = ()

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        return candidates[ask.turn % len(candidates)]


class Weighted:
    """Smooth weighted round robin, as in nginx: each turn adds every candidate's weight to its credit; who has most is
    picked, and pays what all were given.

    Credits add up to 0 and stay within about the sum of the weights. So that this holds when members come and go and
    weights change, there is a limit, and what a member that left took along is made up for by all: a newcomer, which
    begins at 0, has its share from the start.
    """

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}  # of the candidates of the last turn, by name

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        credit = self._earned(candidates)
        return candidates[credit.index(max(credit))]

    def picked(self, candidates: Sequence[C], choice: C) -> None:
        names = [c.name for c in candidates]
        if choice.name not in names:  # then nobody pays, and nobody earns
            return
        credit = self._earned(candidates)
        total = sum(c.effective_weight for c in candidates)
        credit[names.index(choice.name)] -= total
        limit = CREDIT_TURNS * total
        if max(map(abs, credit)) > limit:
            credit = [min(limit, max(-limit, value)) for value in credit]
        self._credit = dict(zip(names, credit, strict=True))

    def _earned(self, candidates: Sequence[Candidate]) -> list[float]:
        """The credit of each, with this turn's weight."""
        credit = [self._credit.get(c.name, 0.0) for c in candidates]
        mean = sum(credit) / len(credit)  # 0 exactly where nothing changed and weights are whole
        return [value - mean + c.effective_weight for value, c in zip(credit, candidates, strict=True)]


class LeastRequest(Stateless):
    """The least loaded. Equals take turns, so that an idle pool is used evenly."""

    __slots__ = ()

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        loads = [(c.in_flight + 1) / c.effective_weight for c in candidates]
        least = min(loads)
        equals = loads.count(least)
        at = loads.index(least)
        for _ in range(ask.turn % equals):
            at = loads.index(least, at + 1)
        return candidates[at]


class RandomTwoChoices(Stateless):
    """Nearly as good as the least loaded, and unlike it does not send everyone to the same one where many balancers
    see the same loads (Mitzenmacher, IEEE TPDS 2001)."""

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        bits = random64(self._seed, ask.turn)
        first = (bits >> 32) * count >> 32
        second = (bits & _LOW) * (count - 1) >> 32  # of the others
        one, other = candidates[first], candidates[second + (second >= first)]
        less = (other.in_flight + 1) * one.effective_weight < (one.in_flight + 1) * other.effective_weight
        return other if less else one


class Random(Stateless):
    """See the module."""

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        return candidates[(random64(self._seed, ask.turn) >> 32) * len(candidates) >> 32]


class Hashed(Stateless):
    """Requests with one key go to one candidate. Those without a key are spread at random, by weight.

    A table is a function of the candidates alone, so that keeping it changes no answer.
    """

    __slots__ = ("_hash_by", "_members", "_seed", "_table", "_tables")

    def __init__(self, tables: Callable[[Members], Table], settings: BalancerSettings) -> None:
        self._tables = tables
        self._seed = settings.seed
        self._hash_by = _checked(settings.hash_by)
        self._members: list[tuple[str, float]] = []  # of the last time, with their weights as they were,
        self._table: Table | None = None  # and their table

    def pick(self, candidates: Sequence[C], ask: Ask) -> C:
        key = key_of(self._hash_by, ask)
        place = random64(self._seed, ask.turn) if key is None else hash64(key, self._seed)
        members = [(c.name, c.effective_weight) for c in candidates]
        table = self._table
        if table is None or members != self._members:
            table = self._tables(tuple((name, step_weight(weight)) for name, weight in members))
            self._members, self._table = members, table
        return candidates[table.find(place)]


def _maglevs(seed: int) -> Callable[[Members], Table]:
    """Tables for the pool as it was lately: its members leave and come back."""
    return lru_cache(TABLES_KEPT)(partial(Maglev, seed=seed))


def _checked(hash_by: HashBy) -> HashBy:
    named = hash_by.what in ("header", "cookie")
    if hash_by.what not in ("client", "path") and not (named and hash_by.name):
        raise UpstreamError(f"balancer hash {hash_by.what!r}: give client, path, header:NAME or cookie:NAME")
    return hash_by


POLICIES: Mapping[str, Callable[[BalancerSettings], Policy]] = MappingProxyType(
    {
        "round_robin": lambda settings: RoundRobin(),
        "weighted": lambda settings: Weighted(),
        "least_request": lambda settings: LeastRequest(),
        "random_two_choices": lambda settings: RandomTwoChoices(settings.seed),
        "random": lambda settings: Random(settings.seed),
        "ring_hash": lambda settings: Hashed(Rings(settings.seed), settings),
        "maglev": lambda settings: Hashed(_maglevs(settings.seed), settings),
    }
)


def make_policy(settings: BalancerSettings) -> Policy:
    """A policy of its own for one pool; UpstreamError for a name that is none, or a hash of nothing."""
    made = POLICIES.get(settings.policy)
    if made is None:
        raise UpstreamError(f"balancer policy {settings.policy!r}: give one of {', '.join(POLICIES)}")
    return made(settings)
