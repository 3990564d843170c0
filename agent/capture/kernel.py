"""The few bpf(2) calls that bcc does not offer, and facts about the running kernel. Standard library only: the loader
imports it under the system's interpreter."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from pathlib import Path

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, PROG_TEST_RUN, MAP_UPDATE_BATCH, LINK_CREATE = 0, 1, 2, 3, 10, 26, 28
MAP_TYPE_RINGBUF = 27
TCX_INGRESS, TCX_EGRESS = 46, 47
TCX_KERNEL = (6, 6)
RINGBUF_KERNEL = (5, 8)
MAP_UPDATE_UNPRIVILEGED_KERNEL = (5, 19)  # an open map may be read without CAP_BPF from here on
_ATTR_BYTES = 144
_ENOTSUPP = 524  # the kernel's own, which no header tells of
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attr: bytes) -> int:
    """bpf(2) with the attribute block `attr`; OSError as the kernel says."""
    block = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    return _call(command, block)


def _call(command: int, block: ctypes.Array[ctypes.c_char]) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2) is not known on {platform.machine()}")
    result: int = _libc.syscall(number, command, block, len(block))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def create_ring(size_bytes: int) -> int:
    """A ring buffer map (a power of two of at least a page); its file descriptor."""
    return bpf(MAP_CREATE, struct.pack("<IIIII", MAP_TYPE_RINGBUF, 0, 0, size_bytes, 0))


def update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set one element."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    bpf(MAP_UPDATE, struct.pack("<IxxxxQQQ", map_fd, ctypes.addressof(k), ctypes.addressof(v), 0))


def update_many(map_fd: int, items: Mapping[bytes, bytes]) -> None:
    """Set many elements, in the order given: in one call where the kernel offers it for this kind of map."""
    if not items:
        return
    keys, values = b"".join(items), b"".join(items.values())
    k, v = ctypes.create_string_buffer(keys, len(keys)), ctypes.create_string_buffer(values, len(values))
    addresses = ctypes.addressof(k), ctypes.addressof(v)
    try:
        bpf(MAP_UPDATE_BATCH, struct.pack("<QQQQIIQQ", 0, 0, *addresses, len(items), map_fd, 0, 0))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, _ENOTSUPP):
            raise
        for key, value in items.items():
            update(map_fd, key, value)


def delete(map_fd: int, key: bytes) -> None:
    """Remove one element; OSError (ENOENT) when there is none."""
    k = ctypes.create_string_buffer(key, len(key))
    bpf(MAP_DELETE, struct.pack("<IxxxxQ", map_fd, ctypes.addressof(k)))


def lookup(map_fd: int, key: bytes, value_bytes: int) -> bytes:
    """One element; `value_bytes` of a per-CPU map is that of all possible CPUs together."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_bytes)
    bpf(MAP_LOOKUP, struct.pack("<IxxxxQQQ", map_fd, ctypes.addressof(k), ctypes.addressof(v), 0))
    return v.raw


def link_tcx(prog_fd: int, ifindex: int, attach_type: int) -> int:
    """Attach a program to an interface for as long as the returned descriptor (or a copy) is open. Kernel 6.6."""
    return bpf(LINK_CREATE, struct.pack("<IIII", prog_fd, ifindex, attach_type, 0))


def test_run(prog_fd: int, packet: bytes, repeat: int = 1, mark: int = 0) -> tuple[int, int]:
    """Run a tc program on a packet; its return value and the mean duration in ns (BPF_PROG_TEST_RUN)."""
    data = ctypes.create_string_buffer(packet, len(packet))
    skb = ctypes.create_string_buffer(struct.pack("<III", 0, 0, mark))  # struct __sk_buff up to `mark`
    context = (len(skb) - 1, 0, ctypes.addressof(skb)) if mark else (0, 0, 0)  # size, room for the answer's, place
    attr = struct.pack("<IIIIQQIIIIQ", prog_fd, 0, len(packet), 0, ctypes.addressof(data), 0, repeat, 0, *context)
    block = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    _call(PROG_TEST_RUN, block)
    retval, duration = struct.unpack_from("<I", block.raw, 4)[0], struct.unpack_from("<I", block.raw, 36)[0]
    return retval - (1 << 32) if retval >> 31 else retval, duration


def kernel_release() -> tuple[int, int]:
    """Major and minor version of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def possible_cpus() -> int:
    """How many values a per-CPU map has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.rpartition(",")[2].rpartition("-")[2]) + 1
