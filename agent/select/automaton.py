"""One table from the head's tests: the kernel program walks it over a request's first bytes and gets a bit for each.

A bit that is missing says that the test is false; one that is there says that it may be true (`agent.select.nfa` says
where more is accepted than asked for). The table has a bounded number of states. Where tests need more, the costliest
become coarser, regular expressions first, then globs, then plain values: the name alone is looked at. Last, a test is
left out, which is to say that its bit is always given. `Automaton.coarser` says so.

Made by the subset construction and minimised by Moore's algorithm (Hopcroft and Ullman, 1979, sections 2.3 and 3.4).
Outputs belong to states and the walker adds them up, so no state has to remember what was found.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from agent.capture.layout import CLASSES_MAX, STATES_MAX, TESTS_MAX
from agent.select.criteria import Field, Head, Match
from agent.select.nfa import ALL, BLANK, DIGIT, GAP, LF, LINE, SPACE, Nfa, TooLargeError, backwards, reachable, some
from agent.select.wire import VERSION, VERSION_END, Wire

OUTPUTS_FLAG = 0x8000  # of an entry: the next state has outputs
STATE_MASK = STATES_MAX - 1
LENGTH_MAX = (1 << 63) - 1  # a length stays there

HEAD_END = 1 << 16  # the head's blank line has ended; the walk does too
REQUEST_LINE = 1 << 17  # the first line is one
LENGTH_NAME = 1 << 18  # of Content-Length, with its colon
LENGTH_DIGIT = 1 << 19  # each of its value
STICKY = 1 << 20  # where the next request begins cannot be told from this head
FOLD = 1 << 21  # a line continues the one before; tests see lines, so none is to be believed

# Building takes as long as subsets have members and these have steps: about 10 million a second.
_WORK_MAX = 12_000_000  # for everything
_WORK_ONCE_MAX = 1_000_000  # for a table that may be too large
_WORK_ALONE_MAX = 300_000  # for the table of one test, which says what it costs
_MINIMISE_MAX = 2_000_000  # entries looked at

_ORDER = (Match.REGEX, Match.GLOB, Match.EQUAL, Match.PRESENT)  # what becomes coarser first


class Walk(NamedTuple):
    """What the kernel knows of a request's first bytes."""

    outputs: int
    head_bytes: int  # 0: the head does not end in them
    content_length: int
    length_names: int  # Content-Length fields


@dataclass(frozen=True, slots=True)
class Automaton:
    """Arrays as the kernel has them: for byte b in state s, the entry is next[s * CLASSES_MAX + classes[b]]: the next
    state, and OUTPUTS_FLAG if that has outputs. The start is state 0."""

    classes: bytes
    next: array[int]
    outputs: array[int]
    states: int
    classes_used: int
    coarser: dict[int, str]  # by test: what of it is not looked at, and why

    def walk(self, data: bytes) -> Walk:
        """Step for step what the kernel does."""
        state = mask = length = names = 0
        for at, byte in enumerate(data):
            entry = self.next[state * CLASSES_MAX + self.classes[byte]]
            state = entry & STATE_MASK
            if not entry & OUTPUTS_FLAG:
                continue
            out = self.outputs[state]
            mask |= out
            if out & LENGTH_NAME:
                names += 1
            if out & LENGTH_DIGIT:
                length = min(length * 10 + byte - 48, LENGTH_MAX)
            if out & HEAD_END:
                return Walk(mask, at + 1, length, names)
        return Walk(mask, 0, length, names)


class _TooMuchError(Exception):
    """The table needs more states or work than it may."""


class _Work:
    """What may still be spent."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _TooMuchError


class _Table(NamedTuple):
    groups: list[int]  # sets of bytes, one for each class
    rows: list[list[int]]  # the next state, by state and class
    outputs: list[int]  # by state
    loose: dict[int, str]  # by test


def build(atoms: Sequence[Head], max_states: int = STATES_MAX) -> Automaton:
    """An automaton that gives bit i if atoms[i] may be true; made in less than 2 seconds, whatever they are. Fewer than
    about 90 `max_states` hold no test at all. ValueError: more than the table has room for."""
    if len(atoms) > TESTS_MAX or max_states > STATES_MAX:
        raise ValueError(f"the table has room for {TESTS_MAX} tests and {STATES_MAX} states")
    tests: list[Head | None] = list(atoms)
    coarser: dict[int, str] = {}
    work = _Work(_WORK_MAX)
    table = _try(tests, max_states, work, _WORK_ONCE_MAX)
    victims = _victims(atoms, max_states, work)
    while table is None:
        for victim in next(victims):
            tests[victim], coarser[victim] = _coarser(atoms[victim], victim in coarser)
        table = _try(tests, max_states if any(tests) else STATES_MAX, work, _WORK_ONCE_MAX)
    return _packed(_minimised(table), table.loose | coarser)


def _victims(atoms: Sequence[Head], max_states: int, work: _Work) -> Iterator[list[int]]:
    """Which tests to make coarser, until the table is small enough: first those that are too large alone."""
    valued = [i for i, atom in enumerate(atoms) if atom.match is not Match.PRESENT]
    alone = {i: _try([atoms[i]], max_states, work, _WORK_ALONE_MAX) for i in valued}
    costs = {i: len(table.rows) for i, table in alone.items() if table is not None}
    if len(costs) < len(valued):
        yield [i for i in valued if i not in costs]
    order = sorted(costs, key=lambda i: (_ORDER.index(atoms[i].match), -costs[i]))
    while order:
        count = 1 if work.left > 0 else len(order)
        if count == len(order):
            work.left = _WORK_MAX  # names alone take little of it
        yield order[:count]
        del order[:count]
    for i in sorted(range(len(atoms)), key=lambda i: -len(atoms[i].name)):
        yield [i]


def _coarser(atom: Head, again: bool) -> tuple[Head | None, str]:
    """A test that is true whenever this one is, None for one that always is; and what to say about it."""
    if again or atom.match is Match.PRESENT:
        return None, "left out, as the table would be too large: it counts as true"
    named = atom.field in (Field.HEADER, Field.COOKIE, Field.QUERY)
    rest = f"only whether there is such a {atom.field} is looked at" if named else "it counts as true"
    return replace(atom, match=Match.PRESENT, value=""), f"the table would be too large for its value: {rest}"


def _try(tests: Sequence[Head | None], max_states: int, work: _Work, most: int) -> _Table | None:
    """The table of these tests, if it is made with that many states and within `work`, of which it takes `most`."""
    once = _Work(min(most, work.left))
    given = once.left
    try:
        return _table(tests, max_states, once)
    except (_TooMuchError, TooLargeError, RecursionError):
        return None
    finally:
        work.left -= given - once.left


def _table(tests: Sequence[Head | None], max_states: int, work: _Work) -> _Table:
    nfa = Nfa()
    wire = Wire(nfa)
    _add_framing(wire)
    fixed = {over for steps in nfa.steps for over, _ in steps}
    loose: dict[int, str] = {}
    for i, test in enumerate(tests):
        if test is None:
            nfa.step(wire.start, ALL, nfa.state(outputs=1 << i))
            continue
        nfa.loose.clear()
        wire.add(test, 1 << i)
        if nfa.loose:
            loose[i] = f"more is taken than its value says where it {', '.join(nfa.loose)}"
    groups = _groups((over for steps in nfa.steps for over, _ in steps), fixed)
    rows, outputs = _subsets(nfa, wire.start, groups, max_states, work)
    return _Table(groups, rows, outputs, loose)


def _add_framing(wire: Wire) -> None:
    """What the kernel must know of each request, to find the next."""
    nfa, line = wire.nfa, wire.line
    end = nfa.step(line, LF, nfa.state(outputs=HEAD_END))
    nfa.step(nfa.step(line, some(b"\r")), LF, end)
    nfa.step(line, GAP, nfa.state(outputs=FOLD))
    at = nfa.step(nfa.step(wire.target, LINE & ~SPACE, nfa.state(LINE)), SPACE)
    for expected in VERSION:
        at = nfa.step(at, expected)
    nfa.step(nfa.skip(at, VERSION_END), LF, nfa.state(outputs=REQUEST_LINE))

    sticky = nfa.state(outputs=STICKY)
    nfa.step(nfa.text(wire.start, "CONNECT", any_case=True), SPACE, sticky)
    nfa.step(nfa.text(wire.start, "PROXY"), SPACE, sticky)  # a PROXY header, which may go on like a request line
    for name in ("transfer-encoding", "upgrade", "expect"):
        nfa.jump(wire.header(name), sticky)
    name_end = wire.header("content-length")
    nfa.outputs[name_end] = LENGTH_NAME
    before = nfa.skip(name_end, GAP)
    digits = nfa.step(before, DIGIT, nfa.state(DIGIT, LENGTH_DIGIT))
    behind = nfa.step(digits, BLANK, nfa.state(BLANK))
    nfa.step(before, ALL & ~DIGIT & ~GAP, sticky)
    nfa.step(digits, LINE & ~DIGIT & ~BLANK, sticky)
    nfa.step(behind, LINE & ~BLANK, sticky)


def _groups(sets: Iterable[int], fixed: Iterable[int]) -> list[int]:
    """Bytes that no set tells apart, as sets. If there are more than CLASSES_MAX, tests do not tell some apart either,
    at first letters in both cases; `fixed` sets always do."""
    groups, wholes = _split([ALL], sets), _split([ALL], fixed)
    pairs = [(1 << upper, 1 << upper + 32) for upper in range(ord("A"), ord("Z") + 1)]
    neighbours = [(1 << byte, 1 << other) for byte in range(255, 0, -1) for other in range(byte - 1, -1, -1)]
    for one, other in (*pairs, *neighbours):
        if len(groups) <= CLASSES_MAX:
            break
        joined = [group for group in groups if group & (one | other)]
        if len(joined) == 2 and any(whole & one and whole & other for whole in wholes):
            groups = [group for group in groups if group not in joined] + [joined[0] | joined[1]]
    return groups


def _split(groups: list[int], sets: Iterable[int]) -> list[int]:
    for over in set(sets):
        groups = [part for group in groups for part in (group & over, group & ~over) if part]
    return groups


def _subsets(
    nfa: Nfa, start: int, groups: list[int], max_states: int, work: _Work
) -> tuple[list[list[int]], list[int]]:
    """Rows and outputs of the states: a state is the set of the Nfa's states that the bytes so far can lead to, bit n
    for state n."""
    moves = _moves(nfa, groups, work)
    given = [(1 << state, outputs) for state, outputs in enumerate(nfa.outputs) if outputs]
    first = sum(1 << state for state in nfa.closure([start]))
    subsets, numbers = [first], {first: 0}
    rows: list[list[int]] = []
    outputs: list[int] = []
    for subset in subsets:  # it grows meanwhile
        outputs.append(_union(output for bit, output in given if subset & bit))
        reached = [0] * len(groups)
        if not outputs[-1] & HEAD_END:  # the walk stops there
            for state in _bits(subset):
                work.spend(len(moves[state]) + 1)
                for group, targets in moves[state]:
                    reached[group] |= targets
        for target in reached:
            if target not in numbers:
                if len(subsets) >= max_states:
                    raise _TooMuchError
                numbers[target] = len(subsets)
                subsets.append(target)
        rows.append([numbers[target] for target in reached])
    return rows, outputs


def _moves(nfa: Nfa, groups: list[int], work: _Work) -> list[list[tuple[int, int]]]:
    """For each state the groups of bytes that lead on, and where to. States that lead to no output are left out."""
    ways = [jumps + [target for _, target in steps] for steps, jumps in zip(nfa.steps, nfa.jumps, strict=True)]
    useful = reachable([state for state, outputs in enumerate(nfa.outputs) if outputs], backwards(ways))
    lasting = _union(1 << state for state in useful if nfa.steps[state] or nfa.outputs[state])
    closures: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    moves = []
    for steps in nfa.steps:
        reached: dict[int, int] = {}
        for over, target in steps:
            if target not in closures:
                closure = nfa.closure([target])
                work.spend(len(closure))
                closures[target] = _union(1 << state for state in closure) & lasting
            if over not in members:
                members[over] = [i for i, group in enumerate(groups) if group & over]
            for group in members[over] if closures[target] else ():
                reached[group] = reached.get(group, 0) | closures[target]
        moves.append(list(reached.items()))
    return moves


def _minimised(table: _Table) -> _Table:
    """The table without states that no bytes tell apart."""
    numbers: dict[int, int] = {}
    blocks = [numbers.setdefault(output, len(numbers)) for output in table.outputs]
    count, looked = len(numbers), 0
    while True:
        keys: dict[tuple[int, ...], int] = {}
        block = blocks.__getitem__
        refined = [keys.setdefault((block(state), *map(block, row)), len(keys)) for state, row in enumerate(table.rows)]
        looked += len(table.rows) * len(table.groups)
        if len(keys) == count:
            break
        if looked > _MINIMISE_MAX:
            return table
        blocks, count = refined, len(keys)
    states = {number: state for state, number in reversed(list(enumerate(blocks)))}
    rows = [[blocks[target] for target in table.rows[states[number]]] for number in range(count)]
    return table._replace(rows=rows, outputs=[table.outputs[states[number]] for number in range(count)])


def _packed(table: _Table, coarser: dict[int, str]) -> Automaton:
    classes = bytes(next(i for i, group in enumerate(table.groups) if group >> byte & 1) for byte in range(256))
    entries = array("H", bytes(2 * STATES_MAX * CLASSES_MAX))
    for state, row in enumerate(table.rows):
        entry = (target | OUTPUTS_FLAG if table.outputs[target] else target for target in row)
        entries[state * CLASSES_MAX : state * CLASSES_MAX + len(row)] = array("H", entry)
    outputs = array("I", table.outputs + [0] * (STATES_MAX - len(table.outputs)))
    return Automaton(classes, entries, outputs, len(table.rows), len(table.groups), coarser)


def _union(sets: Iterable[int]) -> int:
    union = 0
    for one in sets:
        union |= one
    return union


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
