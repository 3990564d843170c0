"""Writes a capture of kept-alive HTTP connections, quickly: `make_pcap.py FILE [--requests N] [--per-connection N]`.

Each exchange is a GET with a head of about 200 bytes, a response of about 1 KB, and a pure ACK; connections overlap.
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

SERVER = bytes((192, 0, 2, 80))
ETHERNET = bytes.fromhex("02000000000202000000000108 00".replace(" ", ""))
START_NS = 1_700_000_000_000_000_000
STEP_NS = 20_000  # between packets
INTERLEAVED = 50  # connections at a time
SYN, FIN, PSH, ACK = 2, 1, 8, 16

_record = struct.Struct("<IIII").pack
_headers = struct.Struct(">BBHHHBBH4s4sHHIIBBHHH").pack


class Writer:
    """Packets with rising times into one buffer."""

    def __init__(self) -> None:
        self.out = bytearray(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1))
        self.t_ns = START_NS

    def packet(self, source: bytes, target: bytes, ports: tuple[int, int], seq: int, ack: int, flags: int,
               payload: bytes = b"") -> None:  # fmt: skip
        """One TCP segment over IPv4 and Ethernet; checksums are zero."""
        headers = _headers(
            0x45, 0, 40 + len(payload), 0, 0x4000, 64, 6, 0, source, target,
            ports[0], ports[1], seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 65_535, 0, 0,
        )  # fmt: skip
        size = 14 + len(headers) + len(payload)
        self.out += _record(self.t_ns // 1_000_000_000, self.t_ns % 1_000_000_000, size, size)
        self.out += ETHERNET
        self.out += headers
        self.out += payload
        self.t_ns += STEP_NS


class Client:
    """One connection; each `exchange` writes a request, its response and an ACK."""

    def __init__(self, writer: Writer, number: int) -> None:
        self.writer = writer
        self.number = number
        self.address = bytes((10, number >> 16 & 255, number >> 8 & 255, number & 255))
        self.port = 20_000 + number % 40_000
        self.seq, self.peer_seq = number * 7919 * 65_537, number * 104_729 * 257
        self._send(SYN)
        self.seq += 1
        self._answer(SYN | ACK)
        self.peer_seq += 1
        self._send(ACK)

    def exchange(self, index: int) -> None:
        """Request, response, ACK."""
        head = request_head(self.number, index)
        self._send(PSH | ACK, head)
        self.seq += len(head)
        response = response_bytes(index)
        self._answer(PSH | ACK, response)
        self.peer_seq += len(response)
        self._send(ACK)

    def close(self) -> None:
        """FIN from both sides."""
        self._send(FIN | ACK)
        self.seq += 1
        self._answer(FIN | ACK)
        self.peer_seq += 1
        self._send(ACK)

    def _send(self, flags: int, payload: bytes = b"") -> None:
        ports = (self.port, 80)
        self.writer.packet(self.address, SERVER, ports, self.seq, self.peer_seq if flags & ACK else 0, flags, payload)

    def _answer(self, flags: int, payload: bytes = b"") -> None:
        self.writer.packet(SERVER, self.address, (80, self.port), self.peer_seq, self.seq, flags, payload)


def request_head(number: int, index: int) -> bytes:
    """About 200 bytes, different each time."""
    return (
        f"GET /api/v1/items/{number}/{index}?page=3&sort=name HTTP/1.1\r\nHost: shop.example.com\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) bench/1.0\r\nAccept: application/json, */*;q=0.8\r\n"
        f"X-Request-Id: {number:08x}{index:08x}\r\n\r\n"
    ).encode()


def response_bytes(index: int) -> bytes:
    """About 1 KB."""
    body = (f'{{"index":{index},"text":"'.encode() + b"x" * 800)[:800]
    return (
        f"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n\r\n"
    ).encode() + body


def write(path: Path, requests: int, per_connection: int) -> None:
    """Make the capture."""
    writer = Writer()
    with path.open("wb") as file:
        number = 0
        while requests > 0:
            clients = []
            for _ in range(INTERLEAVED):
                number += 1
                clients.append(Client(writer, number))
            for index in range(per_connection):
                for client in clients:
                    if requests > 0:
                        client.exchange(index)
                        requests -= 1
            for client in clients:
                client.close()
            file.write(writer.out)
            writer.out = bytearray()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--per-connection", type=int, default=100)
    arguments = parser.parse_args()
    write(arguments.file, arguments.requests, arguments.per_connection)


if __name__ == "__main__":
    main()
