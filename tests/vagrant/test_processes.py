"""Processes of a lab: none that was started is forgotten, whoever else starts some at the same moment."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

from vagrant.lab.processes import Guests

STARTERS, EACH = 8, 12


def test_guests_that_several_threads_start_at_once_are_all_ended() -> None:
    guests = Guests()

    def start(_: int) -> list[subprocess.Popen[bytes]]:
        found = []
        for _ in range(EACH):
            guests.popen(["true"]).wait()
            found.append(guests.popen(["sleep", "600"]))
        return found

    with ThreadPoolExecutor(STARTERS) as pool:
        started = [guest for found in pool.map(start, range(STARTERS)) for guest in found]
    guests.kill_all()
    forgotten = [guest for guest in started if not _ends(guest)]
    for guest in forgotten:
        guest.kill()
    assert forgotten == []


def _ends(guest: subprocess.Popen[bytes]) -> bool:
    try:
        guest.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True
