"""The privileged start, in a process of its own that leaves at once: compile with bcc, make the rings, attach.

It runs under the interpreter that has Debian's bcc (/usr/bin/python3), is given one JSON line on a Unix socket and
answers with one JSON line and the file descriptors (SCM_RIGHTS). What it attached lives on in those descriptors only.
bcc's 200 MB go with the process. Standard library and bcc only.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent import privileges
from agent.capture import headers, kernel

_INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)
MAPS = (
    "control", "ports", "counters", "sent_slots", "production_latency",
    "selections", "addresses4_0", "addresses4_1", "addresses6_0", "addresses6_1",
)  # fmt: skip
PROGRAMS = ("tap_ingress", "tap_egress", "sent_egress")


def main() -> None:
    """`python3 -m agent.capture.loader FD PARENT`: serve one request of process PARENT on the inherited socket FD."""
    privileges.die_with_parent()
    if os.getppid() != int(sys.argv[2]):
        return  # it died before it could be seen dying
    channel = socket.socket(fileno=int(sys.argv[1]))
    order = json.loads(channel.recv(65536))
    try:
        answer, fds = load(order)
    except Exception as error:
        # Whatever went wrong is for the agent to print; this process has no terminal of its own.
        answer, fds = {"error": f"{type(error).__name__}: {error}"}, []
    payload = json.dumps(answer).encode()
    if fds:
        socket.send_fds(channel, [payload], fds)
    else:
        channel.sendall(payload)


def load(order: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Load as ordered (see `agent.capture.tap.TapOrder`): the answer, and descriptors in the order
    MAPS, PROGRAMS, rings, links."""
    try:
        from bcc import BPF
    except ImportError:
        return {"error": f"{sys.executable} has no bcc: apt-get install python3-bpfcc"}, []
    with tempfile.TemporaryDirectory(prefix="shadowtap-headers-") as directory:
        missing = headers.provide(Path(directory))
        if missing:
            return {"error": missing}, []
        bpf = BPF(text=_source(Path(order["sources"])), cflags=_flags(order))
    programs = [bpf.load_func(name, BPF.SCHED_CLS) for name in PROGRAMS]
    maps = [bpf[name].map_fd for name in MAPS]
    rings = [kernel.create_ring(order["ring_bytes"]) for _ in range(order["workers"])]
    for index, ring in enumerate(rings):
        kernel.update(bpf["rings"].map_fd, struct.pack("<I", index), struct.pack("<I", ring))
    fds = [program.fd for program in programs]
    links, attached = _attach(order, fds)
    sent_links, unattached = _attach_sent(order, fds[-1]) if attached == "tcx" else ([], [])
    answer = {"attached": attached, "rings": len(rings), "links": len(links), "sent_unattached": unattached}
    return answer, maps + fds + rings + links + sent_links


def _attach(order: dict[str, Any], programs: list[int]) -> tuple[list[int], str]:
    """TCX links on ingress and, except on loopback, egress. "none" where the order or the kernel wants clsact."""
    if order["attach"] == "none" or (order["attach"] == "auto" and kernel.kernel_release() < kernel.TCX_KERNEL):
        return [], "none"
    hooks = [kernel.TCX_INGRESS] if order["loopback"] else [kernel.TCX_INGRESS, kernel.TCX_EGRESS]
    return [kernel.link_tcx(fd, order["ifindex"], hook) for fd, hook in zip(programs, hooks, strict=False)], "tcx"


def _attach_sent(order: dict[str, Any], program: int) -> tuple[list[int], list[str]]:
    """TCX links where replayed requests leave, and what went wrong with others: without them the workers' clocks do."""
    links, unattached = [], []
    for ifindex in order["sent_through"]:
        try:
            links.append(kernel.link_tcx(program, ifindex, kernel.TCX_EGRESS))
        except OSError as error:
            unattached.append(f"interface {ifindex}: {error.strerror}")
    return links, unattached


def _source(directory: Path) -> str:
    """tap.c with our own headers put in place: bcc translates map accesses (`ports.lookup(...)`) in its main file only,
    in a header they would stay calls through null pointers."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(lambda found: expand(found.group(1)), (directory / name).read_text())

    return expand("tap.c")


def _flags(order: dict[str, Any]) -> list[str]:
    return [
        f"-DNCPUS={kernel.possible_cpus()}",
        f"-DLINK_HEADER_BYTES={order['link_header_bytes']}",
        f"-DLOOPBACK={int(order['loopback'])}",
        "-Wno-macro-redefined",
    ]


if __name__ == "__main__":
    os.environ.setdefault("HOME", "/root")
    main()
