"""The sockets that requests are sent through: how they are made, and made to tell the kernel's receive time."""

from __future__ import annotations

import errno
import socket
import struct

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)  # not in Python's socket module before 3.14
ANCILLARY_BYTES = socket.CMSG_SPACE(16)
TIMESPEC = struct.Struct("@qq").unpack  # seconds, nanoseconds: what a SO_TIMESTAMPNS control message holds

# A connection that fails with one of these says nothing of the upstream: this host is short of something.
LOCAL_ERRORS = frozenset({errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})


def new_socket(family: socket.AddressFamily) -> socket.socket:
    """A TCP socket, or a Unix one; OSError when the process has no descriptor left."""
    return socket.socket(family, socket.SOCK_STREAM)


def prepare(sock: socket.socket, family: socket.AddressFamily) -> None:
    """Set what every connection needs. Unix sockets tell no receive time: this process' clock has to do there."""
    sock.setblocking(False)
    if family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def reason_of(error: OSError) -> str:
    """The error for a person: "connection refused"."""
    return (error.strerror or str(error)).lower()
