"""A client that makes an exact number of connections, each with the same number of requests, and closes them in order.

Runs inside the lab's client: `python vagrant/lab/visits.py --address 10.77.1.1:80 --connections 10000`. Prints one
line of JSON. It counts only what was answered as a whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator

import uvloop

ANSWER_SECONDS = 10.0
READ_LIMIT_BYTES = 1 << 20


class Visits:
    """Counts and times of all connections."""

    def __init__(self, address: str, request: bytes, requests_each: int) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._request = request
        self._no_body = request.startswith(b"HEAD ")
        self._requests_each = requests_each
        self.statuses: Counter[str] = Counter()
        self.times_us: list[int] = []
        self.failed = 0

    async def run(self, connections: int, concurrency: int) -> None:
        """Make all connections, so many at a time."""
        left = iter(range(connections))
        await asyncio.gather(*(self._visitor(left) for _ in range(concurrency)))

    async def _visitor(self, left: Iterator[int]) -> None:
        for _ in left:
            done = await self._visit()
            self.failed += self._requests_each - done

    async def _visit(self) -> int:
        """One connection; the number of requests that were answered."""
        done = 0
        writer = None
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=READ_LIMIT_BYTES)
            for _ in range(self._requests_each):
                started = time.monotonic_ns()
                writer.write(self._request)
                status = await asyncio.wait_for(self._answer(reader), ANSWER_SECONDS)
                self.times_us.append((time.monotonic_ns() - started) // 1000)
                self.statuses[f"{status // 100}xx"] += 1
                done += 1
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            if writer is not None:
                writer.close()
        return done

    async def _answer(self, reader: asyncio.StreamReader) -> int:
        """Read one answer; its status."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if self._no_body or status in (204, 304):
            return status
        if b"\r\ntransfer-encoding: chunked" in head:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        else:
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        return status


def main() -> None:
    """Read the command line, visit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--requests-each", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--method", default="GET")
    parser.add_argument("--target", default="/")
    given = parser.parse_args()
    request = f"{given.method} {given.target} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: visits\r\n\r\n"
    visits = Visits(given.address, request.encode(), given.requests_each)
    started = time.monotonic()
    uvloop.run(visits.run(given.connections, given.concurrency))
    result = {
        "requests": len(visits.times_us),
        "failed": visits.failed,
        "seconds": time.monotonic() - started,
        "statuses": visits.statuses,
        "times_us": visits.times_us,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
