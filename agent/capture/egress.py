"""Through which interfaces packets to given addresses leave: there the kernel program notes when replayed requests do.

Asked in a process of its own that leaves at once: pyroute2 takes 20 MB, which the service is not to keep.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agent

_TIMEOUT_S = 30.0


def egress_interfaces(addresses: Sequence[str], mark: int = 0) -> list[int]:
    """Ifindexes of this network namespace, each once, for numeric addresses (an IPv6 one may name its interface, as in
    fe80::1%eth0) and packets with the firewall mark `mark`. An address without a route is left out; of several routes
    that share the load, the kernel names one."""
    if not addresses:
        return []
    root = str(Path(agent.__file__).parent.parent)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
        done = subprocess.run(
            [sys.executable, "-m", "agent.capture.egress", str(mark), *addresses],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"},  # never import from where we were started
        )
        return list(map(int, json.loads(done.stdout)))
    return []


def main() -> None:
    """`python -m agent.capture.egress MARK ADDRESS...`: the ifindexes as a JSON list."""
    from pyroute2 import IPRoute

    mark, *addresses = sys.argv[1:]
    with IPRoute() as ip:
        found = dict.fromkeys(_egress(ip, address, int(mark)) for address in addresses)
    print(json.dumps([ifindex for ifindex in found if ifindex]))


def _egress(ip: Any, text: str, mark: int) -> int:
    """0 without a route, and for what is no address."""
    from pyroute2.netlink.exceptions import NetlinkError

    address, _, scope = text.partition("%")
    try:
        if scope:
            return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
        found = ipaddress.ip_address(address)
        numeric = found.ipv4_mapped or found if found.version == 6 else found
        family = socket.AF_INET if numeric.version == 4 else socket.AF_INET6
        (route,) = ip.route("get", dst=str(numeric), family=family, **({"mark": mark} if mark else {}))
        return int(route.get_attr("RTA_OIF") or 0)
    except (OSError, NetlinkError, ValueError):
        return 0


if __name__ == "__main__":
    main()
