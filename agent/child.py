"""How the service's child processes are started, and given a channel of messages."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agent
from agent import messages

Child = tuple["subprocess.Popen[bytes]", socket.socket]


def start_module(
    module: str, arguments: Sequence[int], inherit: Sequence[int], options: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A child in a session of its own (a terminal's Ctrl-C is for the service alone) that finds this package."""
    root = str(Path(agent.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, *options, "-m", module, *map(str, arguments)],
        pass_fds=inherit,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"},  # never import from where we were started
    )


def start_with_order(module: str, order: dict[str, Any]) -> Child:
    """A child that takes one order from its channel: the process, which is to be waited for in the end, and our end of
    the channel, which blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = start_module(module, [theirs.fileno()], [theirs.fileno()])
    with contextlib.suppress(OSError):  # it is gone already: that shows at our end
        messages.send(ours, order)
    return process, ours
