"""The two sets of tables that the kernel program selects flows with: one decides, the other is written, and one store
switches them.

Owned by the tap. What the tables mean is `agent.select.superset`'s; this module only puts them where the kernel looks.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from agent.capture import kernel
from agent.capture.layout import (
    CONTROL_ENABLED_AT,
    CONTROL_TABLES_AT,
    SELECTION_BYTES,
    SELECTION_HEAD,
    SELECTION_TABLES,
    SHADOWS_MAX,
)
from agent.select.prefixes import difference
from agent.select.sampling import Window
from agent.select.superset import Selection

SETS = 2
Trie = dict[bytes, int]
_UNKNOWN = -1  # no mask


class Tables:
    """Writes selections. `control` is the mapped control block, of which two words are ours."""

    def __init__(self, control: mmap.mmap, selections_fd: int, trie_fds: Sequence[int]) -> None:
        """`trie_fds`: IPv4 of both sets, then IPv6 of both sets. They are closed by `close`, like `selections_fd`."""
        self._fds = (selections_fd, *trie_fds)
        self.trie_fds = tuple(trie_fds)
        self._tries = [(trie_fds[at], trie_fds[SETS + at]) for at in range(SETS)]
        self._contents: list[tuple[Trie, Trie]] = [({}, {}) for _ in range(SETS)]
        size = -(-SELECTION_BYTES * SETS // mmap.PAGESIZE) * mmap.PAGESIZE
        self._selections = mmap.mmap(selections_fd, size)
        self._words = memoryview(control)
        self._word = self._words[CONTROL_TABLES_AT : CONTROL_TABLES_AT + 4].cast("I")
        self._enabled = self._words[CONTROL_ENABLED_AT : CONTROL_ENABLED_AT + 4].cast("I")

    @property
    def active(self) -> int:
        """Which set decides."""
        return self._word[0] & 1

    @property
    def word(self) -> int:
        """control.tables: the set, and the generation above it."""
        return self._word[0]

    @property
    def enabled(self) -> int:
        """Mask of the shadows that are on; writing it is one store, which the next packet sees."""
        return self._enabled[0]

    @enabled.setter
    def enabled(self, mask: int) -> None:
        before = self._enabled[0]
        if mask == before:
            return
        self._enabled[0] = before & mask  # off first
        self._next_generation(self.active)
        self._enabled[0] = mask

    def missed(self) -> None:
        """The program looked at nothing for a while: what it knows of flows is not to be relied on."""
        self._next_generation(self.active)
        self._next_generation(self.active)

    def _next_generation(self, at: int) -> None:
        """With one store, so that the program never sees a set with the generation of another."""
        self._word[0] = ((self._word[0] >> 1) + 1 & 0x7FFFFFFF) << 1 | at

    def select(self, selection: Selection) -> None:
        """Write the set that does not decide, then let it decide. OSError when the kernel has no room for the prefixes;
        then what decides is as it was, and another selection can be tried."""
        at = 1 - self.active
        self._write_prefixes(at, selection)
        self._write_tables(at * SELECTION_BYTES, selection)
        self._next_generation(at)

    def close(self) -> None:
        """Unmap, and let go of the descriptors."""
        for view in (self._word, self._enabled, self._words):
            view.release()
        self._selections.close()
        for fd in self._fds:
            os.close(fd)

    def _write_tables(self, base: int, selection: Selection) -> None:
        windows = [*selection.windows, *[Window(0, 0)] * (SHADOWS_MAX - len(selection.windows))]
        head = SELECTION_HEAD.pack(
            len(selection.windows),
            selection.by_client,
            bool(selection.address_tests),
            selection.automaton is not None,
            *(ppm for window in windows for ppm in window),
        )
        self._selections[base : base + len(head)] = head
        self._put(base, "possible", selection.possible.tobytes())
        self._put(base, "certain", selection.certain.tobytes())
        self._put(base, "wanted", selection.wanted.tobytes())
        if (automaton := selection.automaton) is not None:
            self._put(base, "classes", bytes(automaton.classes))
            self._put(base, "outputs", automaton.outputs.tobytes())
            self._put(base, "next", automaton.next.tobytes())

    def _put(self, base: int, name: str, data: bytes) -> None:
        """Write the beginning of a table; what lies behind is never reached."""
        offset, size = SELECTION_TABLES[name]
        data = data[:size]
        self._selections[base + offset : base + offset + len(data)] = data

    def _write_prefixes(self, at: int, selection: Selection) -> None:
        contents = self._contents[at]
        for fd, old, new in zip(self._tries[at], contents, (selection.prefixes4, selection.prefixes6), strict=True):
            written, removed = difference(old, new)
            for key in removed:  # first, to make room: nobody looks at this set
                with suppress(FileNotFoundError):  # after a failure it may not be there
                    kernel.delete(fd, key)
                del old[key]
            try:
                kernel.update_many(fd, {key: struct.pack("<I", mask) for key, mask in written.items()})
            except OSError:
                old.update(dict.fromkeys(written, _UNKNOWN))  # some of them are there
                raise
            old.update(written)
