"""Reads the PROXY header that a client's half begins with, before the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.select.client_address import NEED_MORE, Address, parse_proxy_header
from agent.stream.events import EndReason
from agent.stream.flow import Half

if TYPE_CHECKING:
    from agent.http.pairing import Pairing


class Prologue:
    """Stands in for the half's reader until the header is whole; what is held meanwhile has the header's limit."""

    __slots__ = ("_data", "_forwarded", "_half", "_pairing", "_whole")

    def __init__(self, pairing: Pairing, half: Half) -> None:
        self._pairing = pairing
        self._half = half
        self._data = b""
        self._whole = False  # the header is read, and nothing has followed yet
        self._forwarded: Address | None = None

    @property
    def connection(self) -> Prologue:
        """There is none yet; its end is heard here."""
        return self

    def feed(self, data: bytes, t_ns: int) -> None:
        """The next bytes of the half."""
        self._data += data
        if not self._whole and not self._read_header():
            return
        if self._data:
            self._half.reader = None
            self._pairing.begin(self._half, self._data, t_ns, self._forwarded)

    def _read_header(self) -> bool:
        """Take the header off; False while it is not all there. What begins with none is left as it is."""
        found = parse_proxy_header(self._data)
        if found is NEED_MORE:
            return False
        self._whole = True
        if found is not None:
            self._pairing.counters.proxy_headers += 1
            self._forwarded = found.source
            self._data = self._data[found.consumed_bytes :]
        return True

    def gap(self, length: int) -> None:
        """Bytes are missing: what follows is joined as in the middle."""
        self._half.reader = None
        self._half.from_start = False

    def left_out(self, length: int) -> None:
        """The same; the kernel leaves nothing out here."""
        self.gap(length)

    def expect_foreign(self) -> None:
        """Pairing begins behind the header."""

    def end_half(self, half: Half, reason: EndReason, by_peer: bool) -> None:
        """The connection ended before it began."""
