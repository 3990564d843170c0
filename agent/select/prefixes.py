"""Tests on the client's address as tables for the kernel's longest-prefix-match tries, one for IPv4, one for IPv6.

A lookup gives the longest match alone, so each entry says all: which of the trees (atoms) are true of the addresses
whose longest match it is. Prefixes are integers that sort as the trie nests, `first address << 8 | length`: 300 000 of
them take half a second.

The tables agree with `agent.select.geo.GeoDatabase.locate` on every address but the IPv4-mapped ones of IPv6
(::ffff:0:0/96): elsewhere those are IPv4, here every atom is true of them. The kernel may be generous, and drops them.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from agent.capture.layout import TESTS_MAX
from agent.select.criteria import Always, And, Cidr, Criteria, Geo, Network, Not, Or, leaves
from agent.select.geo import NO_GEOGRAPHY, Prefix

GeoNetworks = Callable[[Iterable[str]], Iterable[Prefix]]  # GeoDatabase.prefixes

_LENGTH = struct.Struct("=I")  # struct bpf_lpm_trie_key: prefixlen as the host writes it, then the address
_BITS = {4: 32, 6: 128}
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
# A state is the set of what is true of a prefix, one bit each; what holds for a prefix holds for all within it.
_NO_GEOGRAPHY = 1  # no Geo is true, even if the database says so
_EVERYTHING = 2  # all atoms are true
_FIRST_LEAF = 4


def flatten(atoms: Sequence[Criteria], geo_networks: GeoNetworks) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Entries of the IPv4 and of the IPv6 trie: key as in struct bpf_lpm_trie_key, value a mask with bit n for
    atoms[n]. Both have the entry of length 0. Atoms hold no Head; there are at most TESTS_MAX (else ValueError).
    Of nested networks from `geo_networks` all codes count."""
    if len(atoms) > TESTS_MAX:
        raise ValueError(f"{len(atoms)} atoms, at most {TESTS_MAX}")
    bits = _leaf_bits(atoms)
    masks = _Masks(atoms, bits)
    found = _found(bits, geo_networks)
    return _table(found[4], 4, masks), _table(found[6], 6, masks)


def difference(old: dict[bytes, int], new: dict[bytes, int]) -> tuple[dict[bytes, int], list[bytes]]:
    """What to write into a trie that holds `old`, and which keys to remove from it, so that it holds `new`."""
    changed = sorted((key for key, mask in new.items() if old.get(key) != mask), key=_length, reverse=True)
    return {key: new[key] for key in changed}, sorted(old.keys() - new.keys(), key=_length)


class _Masks(dict[int, int]):
    """State to mask, worked out when first asked for: there are far fewer states than prefixes."""

    def __init__(self, atoms: Sequence[Criteria], bits: dict[Geo | Cidr, int]) -> None:
        super().__init__()
        self._geo = sum(bit for leaf, bit in bits.items() if isinstance(leaf, Geo))
        self._tests = [_compiled(atom, bits) for atom in atoms]

    def __missing__(self, state: int) -> int:
        known = state & ~self._geo if state & _NO_GEOGRAPHY else state
        everything = bool(state & _EVERYTHING)
        self[state] = sum(1 << n for n, test in enumerate(self._tests) if everything or test(known))
        return self[state]


def _leaf_bits(atoms: Sequence[Criteria]) -> dict[Geo | Cidr, int]:
    bits: dict[Geo | Cidr, int] = {}
    for atom in atoms:
        for leaf in leaves(atom):
            if isinstance(leaf, Geo | Cidr):
                bits.setdefault(leaf, _FIRST_LEAF << len(bits))
            elif not isinstance(leaf, Always):
                raise ValueError(f"not decidable by an address: {leaf}")
    return bits


def _compiled(criteria: Criteria, bits: dict[Geo | Cidr, int]) -> Callable[[int], bool]:
    """A test on a state. Leaves beside each other are one bit test: lists of thousands of networks are usual."""
    if isinstance(criteria, Geo | Cidr):
        bit = bits[criteria]
        return lambda state: bool(state & bit)
    if isinstance(criteria, Not):
        child = _compiled(criteria.child, bits)
        return lambda state: not child(state)
    if isinstance(criteria, And | Or):
        own = sum({bits[child] for child in criteria.children if isinstance(child, Geo | Cidr)})
        tests = [_compiled(child, bits) for child in criteria.children if not isinstance(child, Geo | Cidr)]
        if isinstance(criteria, And):
            return lambda state: state & own == own and all(test(state) for test in tests)
        return lambda state: bool(state & own) or any(test(state) for test in tests)
    return lambda state: True


def _found(bits: dict[Geo | Cidr, int], geo_networks: GeoNetworks) -> dict[int, dict[int, int]]:
    """By IP version: what each prefix adds to the state of those around it."""
    found: dict[int, dict[int, int]] = {4: {0: 0}, 6: {0: 0}}
    for leaf, bit in bits.items():
        if isinstance(leaf, Cidr):
            _add(found, leaf.network, bit)
    _add(found, _MAPPED, _EVERYTHING)
    codes = {leaf.code: bit for leaf, bit in bits.items() if isinstance(leaf, Geo)}
    if codes:
        _add_geography(found, codes, geo_networks)
    return found


def _add(found: dict[int, dict[int, int]], network: Network, bit: int) -> None:
    prefix = int(network.network_address) << 8 | network.prefixlen
    found[network.version][prefix] = found[network.version].get(prefix, 0) | bit


def _add_geography(found: dict[int, dict[int, int]], codes: dict[str, int], geo_networks: GeoNetworks) -> None:
    for network in NO_GEOGRAPHY[4] + NO_GEOGRAPHY[6]:
        _add(found, network, _NO_GEOGRAPHY)
    sums: dict[frozenset[str], int] = {}
    for version, start, length, named in geo_networks(codes):
        bit = sums.get(named)
        if bit is None:
            bit = sums[named] = sum(codes.get(code, 0) for code in named)
        prefix, table = start << 8 | length, found[version]
        table[prefix] = table.get(prefix, 0) | bit


def _table(found: dict[int, int], version: int, masks: _Masks) -> dict[bytes, int]:
    width = _BITS[version]
    resolved = dict(_resolved(found, width, masks))
    found.clear()  # the largest thing here
    _join_halves(resolved, width)
    lengths = [_LENGTH.pack(length) for length in range(width + 1)]
    return {
        lengths[prefix & 0xFF] + (prefix >> 8).to_bytes(width // 8, "big"): mask
        for prefix, mask in _without_repeats(resolved, width)
    }


def _resolved(found: dict[int, int], width: int, masks: _Masks) -> Iterator[tuple[int, int]]:
    """The mask of each prefix: its own state and that of all around it."""
    around = [(1 << width, 0)]  # end and state
    for prefix in sorted(found):
        start = prefix >> 8
        while start >= around[-1][0]:
            around.pop()
        state = around[-1][1] | found[prefix]
        around.append((start + (1 << width - (prefix & 0xFF)), state))
        yield prefix, masks[state]


def _join_halves(masks: dict[int, int], width: int) -> None:
    """Two halves with the same mask become one prefix, with that mask, from the longest prefixes up. If that one was
    there, it had nothing left of its own."""
    levels: list[list[int]] = [[] for _ in range(width + 1)]
    for prefix in masks:
        levels[prefix & 0xFF].append(prefix)
    for length in range(width, 0, -1):
        half = 1 << width - length + 8
        for left in levels[length]:
            if left & half or masks.get(left | half) != masks[left]:
                continue
            whole = left - 1  # one shorter
            if whole not in masks:
                levels[length - 1].append(whole)
            masks[whole] = masks.pop(left)
            del masks[left | half]


def _without_repeats(masks: dict[int, int], width: int) -> Iterator[tuple[int, int]]:
    """Without the prefixes that say the same as the one around them."""
    around = [(1 << width, -1)]  # end and mask
    for prefix in sorted(masks):
        start, mask = prefix >> 8, masks[prefix]
        while start >= around[-1][0]:
            around.pop()
        if mask != around[-1][1]:
            around.append((start + (1 << width - (prefix & 0xFF)), mask))
            yield prefix, mask


def _length(key: bytes) -> int:
    return int(_LENGTH.unpack_from(key)[0])
