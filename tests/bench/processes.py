"""What /proc says of a family of processes: CPU time to the nanosecond, and memory, now or over a while."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

SAMPLE_S = 0.1
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
_AUTOGROUP_NICEST = "19"


def family(pid: int) -> list[int]:
    """The process and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(stat)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def role(pid: int) -> str:
    """What a process of the agent is: service, keeper, worker or converter."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    for name, mark in (("keeper", "agent.keeper"), ("worker", "agent.worker"), ("converter", "replay.convert")):
        if mark in command:
            return name
    return "service"


def cpu_ns(pid: int) -> int:
    """CPU time of all its threads. From schedstat: utime and stime come in ticks of 10 ms."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[0])
        except (OSError, IndexError):
            continue  # the thread has ended
    return total


def cpu_with_children_ns(pid: int) -> int:
    """CPU time of a process (also of a zombie) and of the children it has waited for; in ticks of 10 ms."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return sum(map(int, fields[11:15])) * 1_000_000_000 // TICKS_A_SECOND if fields else 0


def system_share(pid: int) -> tuple[int, int]:
    """User and system ticks."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]), int(fields[12])) if fields else (0, 0)


def rss_bytes(pid: int) -> int:
    """Resident memory, shared pages included; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


def pss_bytes(pid: int) -> int:
    """Resident memory with every shared page divided by its users."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def peak_rss_bytes(pid: int) -> int:
    """VmHWM: the most that was ever resident."""
    return _kib(Path(f"/proc/{pid}/status"), "VmHWM:")


def in_namespace(netns: str) -> list[int]:
    """The processes whose network namespace is that of the file."""
    inode = Path(netns).stat().st_ino
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if link.stat().st_ino == inode:
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found


def put_last(pids: Iterable[int]) -> None:
    """Let the processes run only when nothing else wants the CPU, or nearly so.

    Where the kernel groups processes by session (autogroup), the group's nice value counts, not the process's own.
    """
    for pid in pids:
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(_AUTOGROUP_NICEST)


class MemoryWatch:
    """Samples the memory of a family every 100 ms while the block runs; `rss` and `pss` are the highest sums seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.rss = 0
        self.pss = 0
        self.by_role: dict[str, int] = {}

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        """Take one sample."""
        rss = pss = 0
        for pid in family(self._pid):
            here = rss_bytes(pid)
            name = role(pid)
            self.by_role[name] = max(self.by_role.get(name, 0), here)
            rss += here
            pss += pss_bytes(pid)
        self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)


def _stat(path: Path) -> list[str]:
    """The fields after the name: state, parent, ... utime is 11, stime 12, cutime 13, cstime 14."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kib(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
