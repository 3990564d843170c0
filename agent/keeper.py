"""The one process that keeps a privilege (CAP_NET_ADMIN) while the agent runs. It parses nothing from strangers.

Two duties:
- it makes sockets that carry the agent's mark (SO_MARK needs the privilege) and hands them to the workers;
- on kernels without TCX it attaches the tap as clsact filters, and takes exactly these away again when the agent ends,
  however it ends: it notices by the end of the lifeline, so `kill -9` of the agent is no different.

A worker asks with one byte (the address family) and gets up to SOCKETS_AT_ONCE descriptors in one message.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any

from agent import privileges
from agent.privileges import CAP_NET_ADMIN

SOCKETS_AT_ONCE = 8
SO_MARK = 36
FILTER_NAME = "shadowtap"
OWN_QDISC = "-qdisc"  # ends a filter's name when the qdisc is ours, too
FILTER_PRIORITY = 49152  # behind whatever else hangs there: the tap only looks
_PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One clsact filter of ours, enough to take it away again."""

    ifindex: int
    parent: int
    handle: int
    priority: int
    own_qdisc: bool  # the qdisc goes with the last filter


def main() -> None:
    """`python -m agent.keeper LIFELINE_FD WORKER_FD...`: one JSON order on the lifeline, then serve until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; we clean up after the agent
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lifeline = socket.socket(fileno=int(sys.argv[1]))
    channels = [socket.socket(fileno=int(fd)) for fd in sys.argv[2:]]
    data, fds, _, _ = socket.recv_fds(lifeline, 65536, 2)
    order = json.loads(data)
    privileges.drop(privileges.service_user(order["user"]), keep=(CAP_NET_ADMIN,))
    attached, error = attach_clsact(order["ifindex"], fds, order["service"])
    try:
        lifeline.send(json.dumps({"error": error}).encode())
        serve(lifeline, channels, order["mark"])
    except BrokenPipeError:
        pass  # the service was killed meanwhile
    finally:
        detach(attached)


def serve(lifeline: socket.socket, channels: list[socket.socket], mark: int) -> None:
    """Give sockets until the lifeline ends."""
    selector = selectors.DefaultSelector()
    selector.register(lifeline, selectors.EVENT_READ, lifeline)
    for channel in channels:
        selector.register(channel, selectors.EVENT_READ, channel)
    while True:
        for key, _ in selector.select():
            asking: socket.socket = key.data
            asked = _receive(asking)
            if asking is lifeline and not asked:
                return
            if not asked:
                selector.unregister(asking)
            elif asking is not lifeline:
                _give(asking, socket.AF_INET6 if asked == b"6" else socket.AF_INET, mark)


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(1)
    except OSError:
        return b""


def _give(channel: socket.socket, family: int, mark: int) -> None:
    made: list[socket.socket] = []
    try:
        for _ in range(SOCKETS_AT_ONCE):
            made.append(socket.socket(family, socket.SOCK_STREAM))
            made[-1].setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        socket.send_fds(channel, [b"ok"], [each.fileno() for each in made])
    except OSError:
        pass  # the worker is gone, or cannot be served: it falls back to sockets of its own and counts that
    finally:
        for each in made:
            each.close()


def attach_clsact(ifindex: int, programs: list[int], service: int) -> tuple[list[Attachment], str]:
    """Attach the programs (ingress, egress) as direct-action filters; what was attached, and an error or "".

    `service` is the process the filters belong to. Those of services that are gone are taken away first.
    """
    if not programs:
        return [], ""
    from pyroute2 import IPRoute  # 20 MB resident: only where it is needed
    from pyroute2.netlink.exceptions import NetlinkError

    attached: list[Attachment] = []
    with IPRoute() as ip:
        try:
            remove_stale(ifindex)
            own_qdisc = _ensure_clsact(ip, ifindex)
            for program, parent in zip(programs, _PARENTS, strict=False):
                priority = _free_priority(ip, ifindex, parent)
                ip.tc(
                    "add-filter",
                    "bpf",
                    ifindex,
                    handle=1,
                    fd=program,
                    name=filter_name(service) + (OWN_QDISC if own_qdisc else ""),
                    parent=parent,
                    prio=priority,
                    classid=1,
                    direct_action=True,
                )
                attached.append(Attachment(ifindex, parent, 1, priority, own_qdisc))
        except NetlinkError as error:
            detach(attached)
            return [], f"clsact filter on interface {ifindex}: {error}"
    return attached, ""


def detach(attached: list[Attachment]) -> None:
    """Take away exactly these filters; the qdisc goes too if it is ours and nothing else hangs there."""
    if not attached:
        return
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ip:
        for each in attached:
            try:
                ip.tc(
                    "del-filter",
                    "bpf",
                    each.ifindex,
                    handle=each.handle,
                    parent=each.parent,
                    prio=each.priority,
                )
            except NetlinkError:
                continue  # the interface or the filter is gone already
        ifindex = attached[0].ifindex
        try:
            if attached[0].own_qdisc and not any(_filters(ip, ifindex, parent) for parent in _PARENTS):
                ip.tc("del", "clsact", ifindex)
        except NetlinkError:
            pass


def remove_stale(ifindex: int) -> int:
    """Take away filters of a service that was killed together with its keeper (they do nothing, their lease is over);
    how many. Filters of a service that lives stay."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        stale = [
            Attachment(ifindex, parent, found["handle"], found["info"] >> 16, _name(found).endswith(OWN_QDISC))
            for parent in _PARENTS
            for found in _filters(ip, ifindex, parent)
            if is_stale(_name(found))
        ]
    detach(stale)
    return len(stale)


def filter_name(service: int) -> str:
    """Tells whose the filters are (OWN_QDISC may follow). A process id may come again, but not with the same start."""
    return f"{FILTER_NAME}-{service}-{_started(service)}"


def is_stale(name: str) -> bool:
    """A filter of this name is ours, and its service is gone."""
    own, _, rest = name.partition("-")
    service = rest.partition("-")[0]
    if own != FILTER_NAME:
        return False
    return not service.isdecimal() or name.removesuffix(OWN_QDISC) != filter_name(int(service))


def _started(process: int) -> str:
    """When a process began, in clock ticks since boot; "" when there is none."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _ensure_clsact(ip: Any, ifindex: int) -> bool:
    """Have the qdisc there; True if it is for us to remove, since we made it or share it only with other agents."""
    if any(q.get_attr("TCA_KIND") == "clsact" for q in ip.get_qdiscs(ifindex)):
        names = [_name(found) for parent in _PARENTS for found in _filters(ip, ifindex, parent)]
        return bool(names) and all(name.startswith(FILTER_NAME) for name in names)
    ip.tc("add", "clsact", ifindex)
    return True


def _filters(ip: Any, ifindex: int, parent: int) -> list[Any]:
    return [f for f in ip.get_filters(ifindex, parent=parent) if f["handle"]]


def _name(found: Any) -> str:
    options = found.get_attr("TCA_OPTIONS")
    return str(options.get_attr("TCA_BPF_NAME") or "") if options else ""


def _free_priority(ip: Any, ifindex: int, parent: int) -> int:
    """A priority of our own: one that another kind of filter has (and 49152 is what the kernel gives) is refused."""
    used: set[int] = {f["info"] >> 16 for f in ip.get_filters(ifindex, parent=parent)}
    behind, before = range(FILTER_PRIORITY, 1 << 16), range(FILTER_PRIORITY, 0, -1)
    return next(p for p in chain(behind, before) if p not in used)


class MarkedSockets:
    """A worker's end: `factory` is what `replay.client` calls for a new socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._stock: dict[int, deque[socket.socket]] = {socket.AF_INET: deque(), socket.AF_INET6: deque()}
        self.unmarked = 0  # sockets made without mark because the keeper did not answer
        channel.settimeout(1.0)

    def factory(self, family: int) -> socket.socket:
        """A non-connected TCP socket with the agent's mark."""
        if family == socket.AF_UNIX:
            return socket.socket(family, socket.SOCK_STREAM)  # no packets, so nothing to mark
        stock = self._stock[family]
        if not stock:
            for each in self._ask(family):  # an answer to an earlier question may be of the other family
                self._stock[each.family].append(each)
        if stock:
            return stock.popleft()
        self.unmarked += 1
        return socket.socket(family, socket.SOCK_STREAM)

    def _ask(self, family: int) -> list[socket.socket]:
        try:
            self._channel.send(b"6" if family == socket.AF_INET6 else b"4")
            _, fds, _, _ = socket.recv_fds(self._channel, 16, SOCKETS_AT_ONCE)
        except OSError:
            return []
        return [socket.socket(fileno=fd) for fd in fds]


if __name__ == "__main__":
    main()
