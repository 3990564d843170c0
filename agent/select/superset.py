"""From the shadows' criteria to the tables that the kernel program decides with: generous, never mean.

What a packet shows is put into at most TESTS_MAX *tests on the client's address* (trees of networks and countries, each
as large as can be) and TESTS_MAX *tests on the head* (one test each, found by one automaton). For each combination of
their answers a table says which shadows may want the request. Whatever the kernel cannot answer counts as true, whether
it is asked for directly or behind `not`: that is what keeps the kernel's choice a superset of the exact one.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from agent.capture.layout import MASKS, SHADOWS_MAX, TESTS_MAX
from agent.select.automaton import Automaton, build
from agent.select.criteria import Always, And, Criteria, Head, Not, Or
from agent.select.language import write
from agent.select.prefixes import GeoNetworks, flatten
from agent.select.sampling import Window

T = TypeVar("T")
_NEVER = Not(Always())


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one shadow wants, as far as the kernel is concerned."""

    criteria: Criteria
    window: Window
    by_client: bool = False  # the window is over clients, not connections


@dataclass(frozen=True, slots=True)
class Selection:
    """One set of tables. Shadows are bits in the order they were given."""

    windows: tuple[Window, ...]
    by_client: int  # mask of the shadows whose window is over clients
    address_tests: tuple[Criteria, ...]
    head_tests: tuple[Head, ...]
    possible: array.array[int]  # [mask of address tests]: shadows
    certain: array.array[int]
    wanted: array.array[int]  # [mask of address tests * MASKS + mask of head tests]: shadows
    automaton: Automaton | None  # None: no head decides
    prefixes4: dict[bytes, int] = field(default_factory=dict)
    prefixes6: dict[bytes, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what became coarser than it was written, for people


def make_selection(
    shadows: Sequence[Wanted], geo_networks: GeoNetworks | None = None, *, peer_is_client: bool = True
) -> Selection:
    """The tables for at most SHADOWS_MAX shadows. `peer_is_client`: the connection's address is the client's; where it
    is not, nothing about addresses can be decided in the kernel."""
    if len(shadows) > SHADOWS_MAX:
        raise ValueError(f"{len(shadows)} shadows, the kernel has room for {SHADOWS_MAX}")
    notes: list[str] = []
    trees = [_without_unknown(shadow.criteria, peer_is_client) for shadow in shadows]
    addresses = _distinct(_address_parts(tree) for tree in trees)
    heads = _distinct(_head_parts(tree) for tree in trees)
    for what, parts in (("addresses", addresses), ("heads", heads)):
        notes += [
            f"{write(part)}: left to user space: more than {TESTS_MAX} tests on {what}" for part in parts[TESTS_MAX:]
        ]
    addresses, heads = addresses[:TESTS_MAX], heads[:TESTS_MAX]
    automaton = build(heads) if heads else None
    if automaton is not None:
        notes += [f"{write(heads[bit])}: {reason}" for bit, reason in sorted(automaton.coarser.items())]
    possible, certain, wanted = _tables(trees, addresses, heads)
    prefixes4, prefixes6 = flatten(addresses, geo_networks or (lambda codes: ())) if addresses else ({}, {})
    return Selection(
        tuple(shadow.window for shadow in shadows), _mask(shadow.by_client for shadow in shadows), tuple(addresses),
        tuple(heads), possible, certain, wanted,
        automaton, prefixes4, prefixes6, tuple(notes),
    )  # fmt: skip


def _without_unknown(tree: Criteria, peer_is_client: bool, negated: bool = False) -> Criteria:
    """`not` pushed down to the leaves; leaves that the kernel cannot tell replaced by Always, which there means "may be
    true". A test on the head that is negated is one: the kernel's own answer is a "maybe"."""
    if isinstance(tree, Not):
        return _without_unknown(tree.child, peer_is_client, not negated)
    if isinstance(tree, And | Or):
        children = [_without_unknown(child, peer_is_client, negated) for child in tree.children]
        return _and(children) if isinstance(tree, And) != negated else _or(children)
    if isinstance(tree, Always):
        return Not(tree) if negated else tree
    if isinstance(tree, Head):
        return Always() if negated else tree
    if not peer_is_client:
        return Always()
    return Not(tree) if negated else tree


def _and(children: list[Criteria]) -> Criteria:
    """Without what says nothing, so that it takes no test."""
    if _NEVER in children:
        return _NEVER
    left = tuple(child for child in children if child != Always())
    return And(left) if len(left) > 1 else left[0] if left else Always()


def _or(children: list[Criteria]) -> Criteria:
    if Always() in children:
        return Always()
    left = tuple(child for child in children if child != _NEVER)
    return Or(left) if len(left) > 1 else left[0] if left else _NEVER


def _by_address(tree: Criteria) -> bool:
    if isinstance(tree, Head):
        return False
    if isinstance(tree, Not):
        return _by_address(tree.child)
    return all(map(_by_address, tree.children)) if isinstance(tree, And | Or) else True


def _address_parts(tree: Criteria) -> list[Criteria]:
    """The largest parts that the client's address decides."""
    if _by_address(tree):
        return [] if tree in (Always(), _NEVER) else [tree]
    return [part for child in tree.children for part in _address_parts(child)] if isinstance(tree, And | Or) else []


def _head_parts(tree: Criteria) -> list[Head]:
    if isinstance(tree, Head):
        return [tree]
    return [part for child in tree.children for part in _head_parts(child)] if isinstance(tree, And | Or) else []


def _distinct(parts: Iterable[Iterable[T]]) -> list[T]:
    return list(dict.fromkeys(part for some in parts for part in some))


def _tables(
    trees: Sequence[Criteria], addresses: Sequence[Criteria], heads: Sequence[Head]
) -> tuple[array.array[int], array.array[int], array.array[int]]:
    possible, certain = array.array("H", bytes(2 * MASKS)), array.array("H", bytes(2 * MASKS))
    wanted = array.array("H", bytes(2 * MASKS * MASKS))
    address_at = {part: bit for bit, part in enumerate(addresses)}
    head_at = {part: bit for bit, part in enumerate(heads)}
    for address in range(1 << len(addresses)):
        at = address * MASKS
        answers = [_answer(tree, address, address_at, head_at) for tree in trees]
        certain[address] = _mask(answer(0) for answer in answers)
        for head in range(1 << len(heads)):
            wanted[at + head] = _mask(answer(head) for answer in answers)
        # More tests that are true never make less wanted: no test stands behind a `not` any more.
        possible[address] = wanted[at + (1 << len(heads)) - 1]
    return possible, certain, wanted


def _answer(
    tree: Criteria, address: int, address_at: dict[Criteria, int], head_at: dict[Head, int]
) -> Callable[[int], bool]:
    """Whether a tree may be true, by the mask of head tests, for one mask of address tests."""
    if tree in address_at:
        found = bool(address >> address_at[tree] & 1)
        return lambda head: found
    if isinstance(tree, Head):
        bit = head_at.get(tree)
        return lambda head: bit is None or bool(head >> bit & 1)
    if isinstance(tree, And | Or):
        children = [_answer(child, address, address_at, head_at) for child in tree.children]
        both = all if isinstance(tree, And) else any
        return lambda head: both(child(head) for child in children)
    # Always, never, or a test on the address for which there was no room.
    return lambda head: tree != _NEVER


def _mask(answers: Iterable[bool]) -> int:
    return sum(1 << bit for bit, answer in enumerate(answers) if answer)
