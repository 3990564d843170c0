"""What hangs on an interface, seen without the agent and without bpftool: TCX programs, clsact filters, and the maps of
a program that nobody has a descriptor of any more."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import struct

from agent.capture import kernel
from agent.capture.layout import COUNTERS, Counters
from vagrant.lab import Lab

PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 13, 14, 15, 16
_INFO_BYTES, _ATTR_BYTES = 512, 144
_NR_MAP_IDS, _MAP_IDS = 52, 56  # offsets in struct bpf_prog_info
_MAP_NAME = slice(24, 40)  # in struct bpf_map_info
_IDS = 16

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]


def tcx_programs(lab: Lab, interface: str, namespace: str = "lb") -> list[int]:
    """Ids of the TCX programs on both hooks of an interface (BPF_PROG_QUERY)."""
    found: list[int] = []
    with lab.inside(namespace):
        index = socket.if_nametoindex(interface)
        for hook in (kernel.TCX_INGRESS, kernel.TCX_EGRESS):
            ids = (ctypes.c_uint32 * _IDS)()
            block = ctypes.create_string_buffer(
                struct.pack("<IIIIQI", index, hook, 0, 0, ctypes.addressof(ids), _IDS), _ATTR_BYTES
            )
            _bpf(PROG_QUERY, block)
            found += ids[: struct.unpack_from("<I", block.raw, 24)[0]]
    return found


def filters(lab: Lab, interface: str, hook: str = "ingress") -> list[dict[str, object]]:
    """The filters (not their tables) of a clsact qdisc, as tc shows them."""
    shown = lab.run_in("lb", ["tc", "-j", "filter", "show", "dev", interface, hook], check=False)
    return [f for f in json.loads(shown.stdout or "[]") if "options" in f and shown.returncode == 0]


def our_filters(lab: Lab, interface: str) -> list[int]:
    """Ids of the programs of shadowtap's filters."""
    both = filters(lab, interface) + filters(lab, interface, "egress")
    options = [f["options"] for f in both if f["kind"] == "bpf"]
    return [o["prog"]["id"] for o in options if str(o.get("bpf_name", "")).startswith("shadowtap")]  # type: ignore[index, attr-defined]


def has_clsact(lab: Lab, interface: str) -> bool:
    """Whether the interface has a clsact qdisc."""
    return "clsact" in lab.run_in("lb", ["tc", "qdisc", "show", "dev", interface]).stdout


class KernelView:
    """The counters of a loaded program, read through its id."""

    def __init__(self, program: int) -> None:
        fd = _open(PROG_GET_FD_BY_ID, program)
        ids = (ctypes.c_uint32 * _IDS)()
        info = ctypes.create_string_buffer(_INFO_BYTES)
        struct.pack_into("<I", info, _NR_MAP_IDS, _IDS)
        struct.pack_into("<Q", info, _MAP_IDS, ctypes.addressof(ids))
        _info(fd, info)
        os.close(fd)
        self._counters = -1
        for number in ids[: struct.unpack_from("<I", info.raw, _NR_MAP_IDS)[0]]:
            map_fd = _open(MAP_GET_FD_BY_ID, number)
            about = ctypes.create_string_buffer(_INFO_BYTES)
            _info(map_fd, about)
            if about.raw[_MAP_NAME].rstrip(b"\0") == b"counters":
                self._counters = map_fd
            else:
                os.close(map_fd)
        assert self._counters >= 0

    def counters(self) -> Counters:
        """Over all CPUs."""
        raw = kernel.lookup(self._counters, bytes(4), COUNTERS.size * kernel.possible_cpus())
        return Counters(*map(sum, zip(*COUNTERS.iter_unpack(raw), strict=True)))

    def close(self) -> None:
        """Let go, so that the kernel may free the maps."""
        os.close(self._counters)


def _open(command: int, number: int) -> int:
    return _bpf(command, ctypes.create_string_buffer(struct.pack("<III", number, 0, 0), _ATTR_BYTES))


def _info(fd: int, info: ctypes.Array[ctypes.c_char]) -> None:
    attr = struct.pack("<IIQ", fd, len(info), ctypes.addressof(info))
    _bpf(OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(attr, _ATTR_BYTES))


def _bpf(command: int, block: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_SYSCALL, command, block, len(block))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
