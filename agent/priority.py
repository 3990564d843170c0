"""Production wins the CPU: processes beside it run at a lower priority."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_SCHEDULERS = {"batch": os.SCHED_BATCH, "idle": os.SCHED_IDLE}


def lower_priority(nice: int, scheduler: str) -> None:
    """Production wins the CPU.

    Where the kernel groups processes by session (autogroup, usual outside of systemd's services), a nice value counts
    only within its session, and ours is our own: there the group has to be nice.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))  # raising it needs privilege
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))
    if scheduler in _SCHEDULERS:
        os.sched_setscheduler(0, _SCHEDULERS[scheduler], os.sched_param(0))
