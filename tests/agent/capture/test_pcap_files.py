"""File formats: byte orders, resolutions, gzip, pcapng with its sections and interfaces, and broken files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from random import Random

import pytest

from agent.capture.pcap import PcapSource
from agent.errors import CaptureError
from tests.agent.capture.frames import KEY_V4, NANOS, PAYLOAD, SECONDS, T_NS, ether, ip4, pcap, read, tcp

FRAME = bytes(ether() / ip4())


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A pcapng block around a body."""
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def option(code: int, value: bytes, order: str = "<") -> bytes:
    """A pcapng option."""
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str = "<") -> bytes:
    """A section header block."""
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link_type: int = 1, order: str = "<", options: bytes = b"", snap: int = 0) -> bytes:
    """An interface description block."""
    return block(1, struct.pack(order + "HHI", link_type, 0, snap) + options, order)


def packet(data: bytes, units: int, number: int = 0, order: str = "<") -> bytes:
    """An enhanced packet block."""
    return block(
        6, struct.pack(order + "5I", number, units >> 32, units & 0xFFFFFFFF, len(data), len(data)) + data, order
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [True, False])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_pcap(tmp_path: Path, order: str, nano: bool, pack) -> None:  # type: ignore[no-untyped-def]
    (segment,), source = read(tmp_path, pack(pcap([FRAME], order=order, nano=nano)))
    assert segment == (T_NS if nano else T_NS // 1000 * 1000, KEY_V4, 1000, 2000, 0x18, PAYLOAD, len(PAYLOAD))
    assert source.problem is None and source.counters.packets == source.counters.segments == 1
    assert source.now_ns == segment.t_ns


def test_modified_pcap(tmp_path: Path) -> None:
    header = struct.pack("<IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65_535, 1)
    record = struct.pack("<IIIIIHBB", SECONDS, NANOS // 1000, len(FRAME), len(FRAME), 1, 0, 0, 0)
    assert len(read(tmp_path, header + (record + FRAME) * 3)[0]) == 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "units"),
    [
        (lambda o: b"", T_NS // 1000),
        (lambda o: option(9, b"\x09", o), T_NS),
        (lambda o: option(9, b"\x03", o), T_NS // 1_000_000),
        (lambda o: option(9, b"\x8a", o), (T_NS << 10) // 10**9),
        (lambda o: option(9, b"\x09", o) + option(14, struct.pack(o + "q", 5), o), T_NS - 5 * 10**9),
        (lambda o: option(1, b"\xff\x00 comment", o) + option(9, b"\x09", o) + option(0, b"", o), T_NS),
    ],
)
def test_pcapng_resolutions(tmp_path: Path, order: str, options, units: int) -> None:  # type: ignore[no-untyped-def]
    data = section(order) + interface(order=order, options=options(order)) + packet(FRAME, units, order=order)
    (segment,), source = read(tmp_path, data)
    assert abs(segment.t_ns - T_NS) < 1_100_000 and segment.key == KEY_V4 and source.problem is None


def test_pcapng_several_sections_and_interfaces(tmp_path: Path) -> None:
    raw = bytes(ip4())
    first = section() + interface(101) + interface(1, options=option(9, b"\x09"))
    first += packet(raw, T_NS // 1000) + packet(FRAME, T_NS, 1) + packet(FRAME, T_NS, 7) + packet(raw, T_NS // 1000)
    second = section(">") + interface(1, ">") + packet(FRAME, T_NS // 1000, order=">") + block(0x0BAD, b"x", ">")
    segments, source = read(tmp_path, first + second)
    assert [s.key for s in segments] == [KEY_V4] * 4  # the one of interface 7, which is not described, is left out
    assert {s.t_ns // 1000 for s in segments} == {T_NS // 1000} and source.problem is None


def test_pcapng_simple_and_obsolete_packet_blocks(tmp_path: Path) -> None:
    old = block(
        2, struct.pack("<HHIIII", 0, 0, T_NS // 1000 >> 32, T_NS // 1000 & 0xFFFFFFFF, len(FRAME), len(FRAME)) + FRAME
    )
    simple = block(3, struct.pack("<I", len(FRAME)) + FRAME)
    cut = block(3, struct.pack("<I", len(FRAME)) + FRAME[:60])
    segments, _ = read(tmp_path, section() + interface() + old + simple + section() + interface(snap=60) + cut)
    assert [s.t_ns for s in segments] == [T_NS // 1000 * 1000] * 3
    assert [(len(s.payload), s.length) for s in segments] == [(18, 18), (18, 18), (6, 18)]


@pytest.mark.parametrize("buffer_bytes", [1, 7, 64, 1000])
def test_any_buffer_size(tmp_path: Path, buffer_bytes: int) -> None:
    frames = [bytes(ether() / ip4(tcp(PAYLOAD + b"x" * n))) for n in range(20)]
    expected = read(tmp_path, pcap(frames))[0]
    assert len(expected) == 20 and read(tmp_path, pcap(frames), buffer_bytes=buffer_bytes)[0] == expected
    blocks = section() + interface() + b"".join(packet(f, T_NS // 1000) for f in frames)
    assert [s.payload for s in read(tmp_path, blocks, buffer_bytes=buffer_bytes)[0]] == [s.payload for s in expected]


def test_progress(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(pcap([FRAME] * 1000))
    with PcapSource(path, buffer_bytes=1000) as source:
        seen = [source.read_bytes for _ in source.batches()]
        assert seen == sorted(seen) and seen[-1] == source.size_bytes == path.stat().st_size


@pytest.mark.parametrize("content", [b"", b"x", b"hello world, this is no capture file at all", pcap([])[:20]])
def test_not_a_capture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=r"x\.pcap.*give one"):
        PcapSource(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CaptureError, match="cannot be opened"):
            PcapSource(path)


def test_empty_capture(tmp_path: Path) -> None:
    for data in (pcap([]), section(), section() + interface()):
        segments, source = read(tmp_path, data)
        assert segments == [] and source.problem is None


@pytest.mark.parametrize("left", [3, 20, len(FRAME) + 10])
def test_truncated_file_ends_with_what_was_readable(tmp_path: Path, left: int) -> None:
    segments, source = read(tmp_path, pcap([FRAME] * 3)[:-left])
    assert len(segments) == 2 and source.counters.problems == 1 and "breaks off" in str(source.problem)


def test_truncated_gzip(tmp_path: Path) -> None:
    random = Random(1)
    frames = [bytes(ether() / ip4(tcp(random.randbytes(500)))) for _ in range(300)]
    packed = gzip.compress(pcap(frames))
    segments, source = read(tmp_path, packed[: len(packed) // 2])
    assert 0 < len(segments) < 300 and source.counters.problems >= 1


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(Random(1).randbytes(100_000)))
    packed[50_000:50_010] = bytes(10)
    with pytest.raises(CaptureError):
        read(tmp_path, bytes(packed))


def test_record_that_claims_too_much(tmp_path: Path) -> None:
    broken = pcap([FRAME]) + struct.pack("<IIII", 1, 1, 1 << 30, 1 << 30) + FRAME * 10
    segments, source = read(tmp_path, broken)
    assert len(segments) == 1 and source.counters.problems == 1 and "claims" in str(source.problem)


@pytest.mark.parametrize("size", [0, 8, 13, 1 << 28])
def test_block_with_an_impossible_size(tmp_path: Path, size: int) -> None:
    broken = section() + interface() + packet(FRAME, 1) + struct.pack("<II", 6, size) + bytes(100)
    segments, source = read(tmp_path, broken)
    assert len(segments) == 1 and source.counters.problems == 1


def test_section_without_byte_order(tmp_path: Path) -> None:
    segments, source = read(tmp_path, section() + interface() + packet(FRAME, 1) + block(0x0A0D0D0A, b"nonsense"))
    assert len(segments) == 1 and source.counters.problems == 1


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_data(tmp_path: Path, seed: int) -> None:
    """Flip bytes anywhere: whatever comes out, nothing raises but CaptureError."""
    random = Random(seed)
    good = pcap([FRAME] * 20) if seed % 2 else section() + interface() + packet(FRAME, T_NS // 1000) * 20
    data = bytearray(good)
    for _ in range(random.choice((1, 5, 50))):
        data[random.randrange(len(data))] = random.getrandbits(8)
    try:
        segments, source = read(tmp_path, bytes(data))
    except CaptureError:
        return
    assert len(segments) == source.counters.segments <= source.counters.packets
