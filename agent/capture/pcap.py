"""Reads capture files (pcap, pcapng, either gzipped) as a source of segments, in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from dpkt import pcap

from agent.capture.decode import Decoder, PacketCounters
from agent.capture.records import BrokenFile, PcapngWalker, PcapWalker
from agent.capture.segment import Segment
from agent.errors import CaptureError

BUFFER_BYTES = 128 << 10  # what stays in a core's cache is read faster than larger pieces
_GZIP = b"\x1f\x8b"
_PCAPNG = b"\x0a\x0d\x0d\x0a"


class PcapSource:
    """One capture file, opened when made. CaptureError if it cannot be read or is no capture.

    A file that breaks off, or is broken further on, ends with what could be read: `problem` then says what is wrong
    (and is None otherwise). `now_ns` is the capture time of the last packet read.
    """

    def __init__(self, path: Path, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.path = path
        self.counters = PacketCounters()
        self.problem: str | None = None
        self.now_ns = 0
        self._buffer_bytes = buffer_bytes
        self._decoder = Decoder(self.counters)
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise CaptureError(f"{path}: cannot be opened ({error.strerror}); give a readable capture file") from error
        try:
            self.size_bytes = path.stat().st_size
            self._file = self._unpacked()
            self._start = self._read(24)
            self._walker = self._recognise()
        except BaseException:
            self._raw.close()
            raise

    @property
    def read_bytes(self) -> int:
        """How much of `size_bytes` was read, for a progress bar (compressed bytes if the file is)."""
        return self._raw.tell() if not self._raw.closed else self.size_bytes

    def batches(self) -> Iterator[list[Segment]]:
        """Segments in file order, some thousands at a time; once. Pure ACKs are left out (and counted)."""
        rest = self._start[self._walker.header_bytes :]
        while True:
            fresh = self._read(self._buffer_bytes)
            buffer = rest + fresh if rest else fresh
            try:
                used, groups = self._walker.walk(buffer)
            except BrokenFile as error:
                self._note(str(error))
                return
            segments: list[Segment] = []
            for link_type, records in groups:
                if records:
                    self.now_ns = records[-1][0]
                    self._decoder.decode(buffer, records, link_type, segments)
            if segments:
                yield segments
            rest = buffer[used:]
            if not fresh:
                if rest:
                    self._note(f"the file breaks off inside a packet ({len(rest)} bytes left)")
                return

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _unpacked(self) -> BufferedReader | gzip.GzipFile:
        packed = self._raw.read(2) == _GZIP
        self._raw.seek(0)
        return gzip.GzipFile(fileobj=self._raw) if packed else self._raw

    def _read(self, size: int) -> bytes:
        """Up to `size` bytes; less only at the end, or where the file is damaged."""
        pieces: list[bytes] = []
        try:
            while size > 0 and (piece := self._file.read1(size)):  # unlike read, it loses nothing before an error
                pieces.append(piece)
                size -= len(piece)
        except (EOFError, OSError, zlib.error) as error:
            self._note(f"cannot be read further ({error})")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _recognise(self) -> PcapWalker | PcapngWalker:
        magic = self._start[:4]
        if magic == _PCAPNG:
            return PcapngWalker()
        if len(self._start) == 24 and int.from_bytes(magic, "big") in pcap.MAGIC_TO_PKT_HDR:
            return PcapWalker(self._start)
        raise CaptureError(f"{self.path}: not a pcap or pcapng file; give one written by tcpdump -w or Wireshark")

    def _note(self, text: str) -> None:
        self.counters.problems += 1
        self.problem = self.problem or text
