"""How the watch process begins: low priority, no privilege, and only then what loads numpy and starts its threads.

`python -m agent.monitor.watch_start CHANNEL_FD FEED_FD`, started by the service (agent/monitor/watch_link.py).
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import uvloop

from agent import messages, privileges
from agent.priority import lower_priority


def main() -> None:
    """Take the order, give up privileges, then watch until the channel ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service hears it, and ends the channel
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel, feed = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    order = messages.receive(channel)
    if order is None:
        return
    lower_priority(order["nice"], order["scheduler"])
    privileges.drop(privileges.service_user(order["user"]))
    privileges.die_with_parent()
    if os.getppid() != order["parent"]:
        return  # the service died before it could be seen dying
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # blocks are small: threads would cost more than they bring
    from agent.monitor.watch import Watch

    uvloop.run(Watch(order, channel, feed).run())


if __name__ == "__main__":
    main()
