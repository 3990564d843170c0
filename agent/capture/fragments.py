"""Puts fragmented IP packets together (RFC 791 section 3.2, RFC 8200 section 4.5), within a limit."""

from __future__ import annotations

MAX_DATAGRAMS = 256  # unfinished ones; the oldest goes
MAX_DATAGRAM_BYTES = 65_535

Key = tuple[bytes, ...]


class Fragments:
    """Unfinished packets; `dropped` counts those that were given up."""

    __slots__ = ("_pending", "dropped")

    def __init__(self) -> None:
        self._pending: dict[Key, _Datagram] = {}
        self.dropped = 0

    def add(self, key: Key, offset: int, more: bool, data: bytes) -> bytes | None:
        """Take a fragment at byte `offset`; the whole payload when this was the last one missing."""
        if offset + len(data) > MAX_DATAGRAM_BYTES:
            return None
        datagram = self._pending.get(key)
        if datagram is None:
            if len(self._pending) >= MAX_DATAGRAMS:
                del self._pending[next(iter(self._pending))]
                self.dropped += 1
            datagram = self._pending[key] = _Datagram()
        whole = datagram.add(offset, more, data)
        if whole is not None:
            del self._pending[key]
        return whole


class _Datagram:
    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}
        self._size = -1  # known from the last fragment

    def add(self, offset: int, more: bool, data: bytes) -> bytes | None:
        self._parts.setdefault(offset, data)
        if not more:
            self._size = offset + len(data)
        return self._whole() if self._size >= 0 else None

    def _whole(self) -> bytes | None:
        out = bytearray()
        for offset, data in sorted(self._parts.items()):
            if offset > len(out):
                return None
            out += data[len(out) - offset :]
        return bytes(out[: self._size]) if len(out) >= self._size else None
