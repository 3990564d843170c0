"""How a worker process begins: low priority, no privilege.

`python -m agent.worker_start CHANNEL_FD RING_FD KEEPER_FD FEED_FD SENT_FD`, started by the service (agent/crew.py).
It gives up every privilege before it looks at the first byte of anybody's traffic, and it dies with the service.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from typing import Any

import uvloop

from agent import messages, privileges
from agent.capture.ring import Ring
from agent.capture.sent import SentTimes
from agent.keeper import MarkedSockets
from agent.monitor.feed import Feed
from agent.order import Order
from agent.priority import lower_priority
from replay.lean import lean_arrow


def main() -> None:
    """Take the order, give up privileges, then work until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service hears it and tells us
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel_fd, ring_fd, keeper_fd, feed_fd, sent_fd = map(int, sys.argv[1:6])
    channel = socket.socket(fileno=channel_fd)
    message = messages.receive(channel)
    if message is None:
        return
    channel.setblocking(False)
    order = Order.from_json(message["order"])
    ring = Ring(ring_fd, message["ring_bytes"])
    os.close(ring_fd)
    lower_priority(order.nice, order.scheduler)
    privileges.drop(privileges.service_user(message["user"]))
    privileges.die_with_parent()
    if os.getppid() != message["parent"]:
        return  # the service died before it could be seen dying
    sockets = MarkedSockets(socket.socket(fileno=keeper_fd)) if keeper_fd >= 0 else None
    sent_times = SentTimes(sent_fd) if sent_fd >= 0 else None
    feed = Feed(socket.socket(fileno=feed_fd), message["worker"]) if feed_fd >= 0 else None
    lean_arrow()
    uvloop.run(_work(order, message, channel, ring, sockets, sent_times, feed))


async def _work(
    order: Order,
    message: dict[str, Any],
    channel: socket.socket,
    ring: Ring,
    sockets: MarkedSockets | None,
    sent_times: SentTimes | None,
    feed: Feed | None,
) -> None:
    from agent.worker import Worker  # only now: pyarrow is to be imported without numpy (replay.lean)

    asyncio.get_running_loop().set_exception_handler(_die)
    number, run, noise_ppm = message["worker"], message["run"], message["noise_ppm"]
    worker = Worker(order, number, run, channel, ring, sockets, sent_times, feed, noise_ppm)
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # exchanges form no cycles; looking for some at the usual pace is work for nothing
    await worker.run()


def _die(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception in a callback is our bug: show it and end, so that the service starts a new worker. The loop would
    otherwise go on without the callback, and a worker that no longer reads its ring looks alive."""
    loop.default_exception_handler(context)
    os._exit(1)


if __name__ == "__main__":
    main()
