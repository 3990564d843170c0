"""Resident memory of the agent's processes."""

from __future__ import annotations

import os


def resident_bytes(pid: int | None) -> int:
    """Of one process; 0 when there is none of that number."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
