"""The two sets of tables: what is written where, the switch, and that the set that decides is never written."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import kernel
from agent.capture.layout import (
    CONTROL,
    CONTROL_ENABLED_AT,
    CONTROL_TABLES_AT,
    MASKS,
    SELECTION_BYTES,
    SELECTION_HEAD,
    SELECTION_TABLES,
    SHADOWS_MAX,
)
from agent.capture.tables import SETS, Tables
from agent.select.language import parse
from agent.select.sampling import EVERYTHING, Window
from agent.select.superset import Selection, Wanted, make_selection

SIZE = -(-SETS * SELECTION_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
TEXTS = (
    "random", "header:X-Test", "cidr:10.0.0.0/8", "cidr:10.0.0.0/9 or cidr:2001:db8::/32 and method:GET",
    "not cidr:10.1.0.0/16", "path:/a or cidr:10.1.0.0/16 or cidr:11.0.0.0/8", "host:a and not cidr:::/1",
)  # fmt: skip


def selected(*texts: str) -> Selection:
    return make_selection([Wanted(parse(text), EVERYTHING) for text in texts])


class Kernel:
    """Tries as they are filled, by descriptor; `room` is what each may hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 1 << 20) -> None:
        self.tries: dict[int, dict[bytes, bytes]] = {}
        self.calls: list[tuple[str, int, list[bytes]]] = []
        self.room = room
        monkeypatch.setattr(kernel, "update_many", self.update_many)
        monkeypatch.setattr(kernel, "delete", self.delete)

    def update_many(self, fd: int, items: Mapping[bytes, bytes]) -> None:
        self.calls.append(("update", fd, list(items)))
        trie = self.tries.setdefault(fd, {})
        for key, value in items.items():
            if len(trie) >= self.room:  # also for a key that is there, as in kernels before 6.13
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            trie[key] = value

    def delete(self, fd: int, key: bytes) -> None:
        self.calls.append(("delete", fd, [key]))
        if key not in self.tries[fd]:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        del self.tries[fd][key]


class Bench:
    """Tables over plain memory, and views of what they wrote."""

    def __init__(self, found: Kernel) -> None:
        self.kernel = found
        self.selections = os.memfd_create("selections")
        os.ftruncate(self.selections, SIZE)
        self.tries = [os.memfd_create(name) for name in ("4_0", "4_1", "6_0", "6_1")]
        self.control = mmap.mmap(-1, mmap.PAGESIZE)
        self._read = os.dup(self.selections)
        self.tables = Tables(self.control, self.selections, self.tries)

    def close(self) -> None:
        self.tables.close()
        self.control.close()
        os.close(self._read)

    def memory(self, at: int) -> bytes:
        """One whole set."""
        return os.pread(self._read, SELECTION_BYTES, at * SELECTION_BYTES)

    def table(self, at: int, name: str) -> bytes:
        offset, size = SELECTION_TABLES[name]
        return self.memory(at)[offset : offset + size]

    def head(self, at: int) -> tuple[int, ...]:
        return SELECTION_HEAD.unpack_from(self.memory(at))

    def prefixes(self, at: int) -> tuple[dict[bytes, int], dict[bytes, int]]:
        """What the tries of a set hold: IPv4, IPv6."""
        four, six = (self.kernel.tries.get(self.tries[SETS * family + at], {}) for family in (0, 1))
        return {k: int.from_bytes(v, "little") for k, v in four.items()}, {
            k: int.from_bytes(v, "little") for k, v in six.items()
        }

    def holds(self, at: int, selection: Selection) -> bool:
        """All of the set is what the selection says."""
        windows = [ppm for window in selection.windows for ppm in window]
        windows += [0] * (2 * SHADOWS_MAX - len(windows))
        head = (
            len(selection.windows),
            selection.by_client,
            int(selection.address_tests != ()),
            int(selection.automaton is not None),
        )
        tables = {name: getattr(selection, name).tobytes() for name in ("possible", "certain", "wanted")}
        if (automaton := selection.automaton) is not None:
            tables |= {"classes": bytes(automaton.classes), "outputs": automaton.outputs.tobytes()}
            tables |= {"next": automaton.next.tobytes()}
        same = all(self.table(at, name) == data for name, data in tables.items())
        prefixes = self.prefixes(at) == (selection.prefixes4, selection.prefixes6)
        return self.head(at) == (*head, *windows) and same and prefixes


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(Kernel(monkeypatch))
    yield made
    made.close()


def test_a_selection_is_written_whole_and_then_decides(bench: Bench) -> None:
    selection = make_selection(
        [
            Wanted(parse("header:X-Test and cidr:10.0.0.0/8"), Window(0, 10_000)),
            Wanted(parse("not cidr:2001:db8::/32"), Window(10_000, 1_000_000), by_client=True),
        ]
    )
    assert bench.tables.active == 0
    bench.tables.select(selection)
    assert bench.tables.active == 1
    assert bench.head(1)[:8] == (2, 0b10, 1, 1, 0, 10_000, 10_000, 1_000_000)
    assert bench.head(1)[8:] == (0,) * (2 * SHADOWS_MAX - 4)
    assert bench.holds(1, selection)
    assert bench.memory(0) == bytes(SELECTION_BYTES)
    assert bench.prefixes(0) == ({}, {})


def test_what_stands_where(bench: Bench) -> None:
    """Read as the kernel program does, by number."""
    bench.tables.select(selected("cidr:10.0.0.0/8 or header:X-Test", "method:PUT and not cidr:10.0.0.0/8"))
    shorts = struct.Struct(f"<{MASKS}H")
    inside = bench.prefixes(1)[0][struct.pack("=I", 8) + bytes((10, 0, 0, 0))]
    assert shorts.unpack(bench.table(1, "possible"))[inside] == 0b01
    assert shorts.unpack(bench.table(1, "certain"))[inside] == 0b01
    outside = bench.prefixes(1)[0][struct.pack("=I", 0) + bytes(4)]
    assert shorts.unpack(bench.table(1, "possible"))[outside] == 0b11
    assert shorts.unpack(bench.table(1, "certain"))[outside] == 0
    row = struct.unpack_from(f"<{MASKS}H", bench.table(1, "wanted"), 2 * MASKS * outside)
    assert row[:4] == (0b00, 0b01, 0b10, 0b11)


def test_the_sets_take_turns(bench: Bench) -> None:
    selections = [selected(text) for text in TEXTS]
    for n, selection in enumerate([*selections, *selections]):
        before = bench.memory(bench.tables.active), bench.prefixes(bench.tables.active)
        bench.tables.select(selection)
        assert bench.tables.active == (n + 1) % 2
        assert bench.holds(bench.tables.active, selection), TEXTS[n % len(TEXTS)]
        assert (bench.memory(1 - bench.tables.active), bench.prefixes(1 - bench.tables.active)) == before


def test_the_set_that_decides_is_not_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment: looked at before and after each table that is written."""
    put, watched = bench.tables._put, [0, b""]

    def look_and_put(base: int, name: str, data: bytes) -> None:
        put(base, name, data)
        assert [bench.tables.active, bench.memory(bench.tables.active)] == watched

    monkeypatch.setattr(bench.tables, "_put", look_and_put)
    for text in ("cidr:10.0.0.0/8 or header:X-Test", *TEXTS, *TEXTS):
        active, seen = bench.tables.active, len(bench.kernel.calls)
        watched[:] = active, bench.memory(active)
        bench.tables.select(selected(text))
        assert bench.tables.active == 1 - active
        assert bench.memory(active) == watched[1]
        own = {bench.tries[1 - active], bench.tries[SETS + 1 - active]}
        assert {fd for _, fd, _ in bench.kernel.calls[seen:]} == own


def test_prefixes_are_written_by_difference(bench: Bench) -> None:
    one, other = selected("cidr:10.0.0.0/8 or cidr:12.0.0.0/8"), selected("cidr:10.0.0.0/8 or cidr:13.0.0.0/8")
    for selection in (one, one):
        bench.tables.select(selection)
    bench.kernel.calls.clear()
    bench.tables.select(other)
    changed = [(what, keys) for what, fd, keys in bench.kernel.calls if fd == bench.tries[1] and keys]
    twelve, thirteen = (struct.pack("=I", 8) + bytes((first, 0, 0, 0)) for first in (12, 13))
    assert changed == [("delete", [twelve]), ("update", [thirteen])], "what goes makes room for what comes"
    bench.kernel.calls.clear()
    bench.tables.select(one)
    assert [keys for _, _, keys in bench.kernel.calls] == [[], []], "the other set had it all the time"


def test_a_mask_that_changes_is_written_again(bench: Bench) -> None:
    for texts in (("cidr:10.0.0.0/8",), ("random",), ("method:GET and cidr:11.0.0.0/8", "cidr:10.0.0.0/8")):
        bench.tables.select(selected(*texts))
    assert bench.tables.active == 1
    ten = struct.pack("=I", 8) + bytes((10, 0, 0, 0))
    assert bench.prefixes(1)[0][ten] == 0b10


def test_where_heads_do_not_decide_the_automaton_is_left_alone(bench: Bench) -> None:
    bench.tables.select(selected("header:X-Test"))
    bench.tables.select(selected("header:X-Other"))
    automaton = [bench.table(1, name) for name in ("classes", "outputs", "next")]
    bench.tables.select(selected("cidr:10.0.0.0/8"))
    assert bench.head(1)[:4] == (1, 0, 1, 0)
    assert [bench.table(1, name) for name in ("classes", "outputs", "next")] == automaton


def test_two_words_of_the_control_block_and_no_more(bench: Bench) -> None:
    bench.control[: CONTROL.size] = bytes(range(1, CONTROL.size + 1))
    bench.control[CONTROL_TABLES_AT : CONTROL_TABLES_AT + 4] = bytes(4)
    before = bytearray(bench.control[:])
    bench.tables.enabled = 0b1010_0101
    before[CONTROL_ENABLED_AT : CONTROL_ENABLED_AT + 4] = struct.pack("<I", 0b1010_0101)
    before[CONTROL_TABLES_AT : CONTROL_TABLES_AT + 4] = struct.pack("<I", 1 << 1)  # a new generation of the same set
    assert bench.control[:] == before
    bench.tables.enabled = 0b1010_0101
    assert bench.control[:] == before, "what is as it was begins no generation"
    assert bench.tables.enabled == 0b1010_0101
    bench.tables.select(selected("random"))
    before[CONTROL_TABLES_AT : CONTROL_TABLES_AT + 4] = struct.pack("<I", 2 << 1 | 1)
    assert bench.control[:] == before
    bench.tables.missed()
    before[CONTROL_TABLES_AT : CONTROL_TABLES_AT + 4] = struct.pack("<I", 4 << 1 | 1)
    assert bench.control[:] == before


def test_tables_that_are_too_long_stay_in_their_place(bench: Bench) -> None:
    selection = selected("header:X-Test")
    assert selection.automaton is not None
    long = replace(selection, automaton=replace(selection.automaton, classes=selection.automaton.classes + b"x" * 999))
    bench.tables.select(long)
    assert bench.holds(1, selection)


def test_where_the_kernel_has_no_room_nothing_changes(bench: Bench) -> None:
    old = selected("cidr:10.0.0.0/8")
    bench.tables.select(old)
    bench.kernel.room = 4
    many = selected(" or ".join(f"cidr:10.{2 * n}.0.0/16" for n in range(9)))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            bench.tables.select(many)
        assert bench.tables.active == 1
        assert bench.holds(1, old)
    few = selected("cidr:10.2.0.0/16")
    bench.tables.select(few)
    assert bench.tables.active == 0
    assert bench.holds(0, few), "what was half written is gone"
    bench.kernel.room = 1 << 20
    for at in (1, 0):
        bench.tables.select(many)
        assert (bench.tables.active, bench.holds(at, many)) == (at, True)


networks = st.lists(
    st.sampled_from([f"cidr:10.{n}.0.0/{length}" for n in range(4) for length in (16, 17, 24)]), max_size=6
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(networks, st.integers(1, 12)), min_size=1, max_size=8))
def test_whatever_fails_in_between_the_tries_are_what_they_should_be(steps: list[tuple[list[str], int]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        bench = Bench(Kernel(monkeypatch))
        decides = None
        for texts, room in steps:
            bench.kernel.room = room
            selection = selected(" or ".join(texts) or "random")
            try:
                bench.tables.select(selection)
                decides = selection
            except OSError:
                pass
            if decides is not None:
                assert bench.holds(bench.tables.active, decides)
        bench.close()


def test_closing_lets_everything_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bench(Kernel(monkeypatch))
    made.tables.select(selected("cidr:10.0.0.0/8"))
    made.close()  # the control block, too: nothing looks into it any more
    for descriptor in (made.selections, *made.tries):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
