"""The process that runs balancer programs: what it tells, when it starts one again, and that nothing outlives it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import balancing, messages
from agent.balancing import (
    DEAD,
    DIRECTORY,
    KEPT,
    RESTART_MAX_S,
    RESTART_MIN_S,
    RUNNING,
    Watched,
    remove_stale,
    settings_as_json,
    settings_from_json,
)
from replay.balancer.program import Engine, ProgramSettings
from replay.errors import UpstreamError

ROOT = Path(__file__).parents[2]
LIMIT_S = 20.0
RUN = Path("/run" if os.geteuid() == 0 else tempfile.gettempdir())
TEXT = """
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend web
    bind 203.0.113.1:8000
    bind 203.0.113.1:8001
    default_backend app
backend app
    balance roundrobin
    server web1 198.51.100.10:8080
"""
PROCESS = "import agent.balancing as b; b.LOOK_S = 0.05; b.main()"  # as it is, but for its pauses

words = st.text(max_size=5)
some_settings = st.builds(
    ProgramSettings,
    kind=st.sampled_from(["haproxy", "nginx"]),
    source=words,
    production=words,
    servers=st.dictionaries(words, words | st.lists(words, max_size=3), max_size=3),
    bind=words,
    keep=st.lists(words, max_size=3).map(tuple),
    allow_production=st.booleans(),
    binary=words,
    addresses=st.lists(words, max_size=3).map(tuple),
)


@given(some_settings)
def test_settings_there_and_back(settings: ProgramSettings) -> None:
    assert settings_from_json(json.loads(json.dumps(settings_as_json(settings)))) == settings


def test_directories_of_those_that_are_gone_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    names = [
        f"{DIRECTORY}{gone.pid}",
        f"{DIRECTORY}{os.getpid()}",
        f"{DIRECTORY}x",
        f"{DIRECTORY}",
        "other",
        f"x{DIRECTORY}1",
    ]
    for name in names:
        (tmp_path / name / "candidate").mkdir(parents=True)
        (tmp_path / name / "candidate" / "haproxy.conf").touch()
    (tmp_path / f"{DIRECTORY}{gone.pid}" / "link").symlink_to(tmp_path / "other")
    remove_stale(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names[1:])
    assert (tmp_path / "other" / "candidate").exists(), "links are not followed"
    remove_stale(tmp_path / "none")


# When it is looked at


class FakeEngine:
    """In the place of an Engine: lives, changes and fails as it is told."""

    def __init__(self) -> None:
        self.settings = ProgramSettings("haproxy", "/haproxy.cfg")
        self.reloads = 0
        self.log: list[str] = []
        self.living = True
        self.differs = False
        self.error = ""

    def alive(self) -> bool:
        return self.living

    def changed(self) -> bool:
        return self.differs

    def last_words(self) -> str:
        return "[ALERT] out of memory"

    def follow(self) -> None:
        self.log.append("follow")
        self.differs = False
        if self.error:
            raise UpstreamError(self.error)
        self.reloads += 1

    def restart(self) -> bool:
        self.log.append("restart")
        if self.error:
            raise UpstreamError(self.error)
        self.living = True
        taken, self.differs = self.differs, False
        return taken


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def watched(fake: FakeEngine) -> Watched:
    return Watched("candidate", cast(Engine, fake))


def test_one_that_is_well_is_left_alone(fake: FakeEngine, watched: Watched) -> None:
    for now_s in range(1000, 1100):
        watched.look(now_s)
    assert (fake.log, watched.problem, watched.restarts) == ([], "", 0)


def test_a_change_is_taken_over_or_told(fake: FakeEngine, watched: Watched) -> None:
    fake.differs = True
    watched.look(1000)
    assert (fake.log, watched.problem) == (["follow"], "")
    fake.differs, fake.error = True, "haproxy.cfg: refused by haproxy: unknown keyword"
    watched.look(1001)
    told = "the changed configuration is not taken over: haproxy.cfg: refused by haproxy: unknown keyword"
    assert watched.problem == told
    for now_s in range(1002, 1100):
        watched.look(now_s)
    assert (fake.log, watched.problem) == (["follow"] * 2, told), "as long as nothing changes"
    fake.differs, fake.error = True, ""
    watched.look(1100)
    assert (fake.log, watched.problem) == (["follow"] * 3, "")


def test_a_dead_one_is_started_after_a_pause(fake: FakeEngine, watched: Watched) -> None:
    fake.living = False
    watched.look(1000)
    assert watched.problem == "haproxy died: [ALERT] out of memory"
    assert fake.log == []
    watched.look(1000 + RESTART_MIN_S)
    assert (fake.log, watched.restarts, fake.living) == (["restart"], 1, True)
    assert watched.problem, "it stays until it has run for long enough"
    watched.look(1000 + RESTART_MIN_S + RESTART_MAX_S)
    assert watched.problem
    watched.look(1002 + RESTART_MIN_S + RESTART_MAX_S)
    assert (watched.problem, watched.restarts) == ("", 1)


def test_pauses_grow_up_to_a_limit_and_shrink_when_it_is_well(fake: FakeEngine, watched: Watched) -> None:
    fake.living, fake.error = False, "haproxy ended at once: cannot bind"
    tried: list[float] = []
    now_s = 1000.0
    while len(tried) < 10:
        before = len(fake.log)
        watched.look(now_s)
        if len(fake.log) > before:
            tried.append(now_s)
        now_s += 0.25
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert (watched.problem, watched.restarts) == ("haproxy ended at once: cannot bind", 0)
    fake.error = ""
    watched.look(now_s + RESTART_MAX_S)
    assert watched.restarts == 1
    watched.look(now_s + 10 * RESTART_MAX_S)
    assert (watched.problem, watched.pause_s) == ("", RESTART_MIN_S)


def test_one_that_dies_again_and_again_is_not_started_at_once(fake: FakeEngine, watched: Watched) -> None:
    now_s, died = 1000.0, 0
    while now_s < 1100:
        watched.look(now_s)
        if fake.living:
            fake.living = False
            died += 1
        now_s += 0.25
    assert died == watched.restarts + 1 < 12


def test_what_was_refused_is_still_told_after_a_death(fake: FakeEngine, watched: Watched) -> None:
    fake.differs, fake.error = True, "unknown keyword"
    watched.look(1000)
    fake.living, fake.error = False, ""
    watched.look(1001)
    assert watched.problem.startswith("haproxy died: ")
    assert watched.problem.endswith("; the changed configuration is not taken over: unknown keyword")
    watched.look(1002)
    watched.look(1100)
    assert watched.problem == "the changed configuration is not taken over: unknown keyword"
    fake.living, fake.differs = False, True
    watched.look(1101)
    watched.look(1102)
    watched.look(1200)
    assert watched.problem == "", "it was started with what is good"


# The process


class Process:
    """One, and our end of its channel."""

    def __init__(self, programs: dict[str, ProgramSettings]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                start_new_session=True,
            )
        order = {name: settings_as_json(each) for name, each in programs.items()}
        said = {"service": os.getpid(), "programs": order, "user": "", "nice": 0, "scheduler": "normal"}
        messages.send(self.channel, said)
        self.channel.settimeout(LIMIT_S)

    def heard(self) -> dict[str, Any]:
        message = messages.receive(self.channel)
        assert message is not None
        return message

    def hears(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first message that is so."""
        while not condition(message := self.heard()):
            pass
        return message

    def programs(self, count: int) -> list[int]:
        """Process ids of the programs, once there are so many; what is only checked is none."""
        until(lambda: len(self._programs()) == count)
        return self._programs()

    def _programs(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"-W" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def close(self) -> None:
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LIMIT_S)
        self.process.kill()
        self.process.wait()


Begin = Callable[..., Process]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start the process, with programs of these texts."""
    made: list[Process] = []

    def start(**texts: str) -> Process:
        programs = {}
        for name, text in texts.items():
            path = tmp_path / f"{name}.cfg"
            path.write_text(text)
            programs[name] = ProgramSettings("haproxy", str(path), servers={"*": "198.51.100.20:8080"})
        made.append(Process(programs))
        return made[-1]

    yield start
    for each in made:
        each.close()
    assert list(RUN.glob(f"{DIRECTORY}{os.getpid()}")) == []


def accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_tells_where_the_programs_listen(begin: Begin) -> None:
    process = begin(one=TEXT, two=TEXT)
    reports = [process.heard(), process.heard()]
    assert [report["shadow"] for report in reports] == ["one", "two"]
    for report in reports:
        assert [(front["port"], front["tls"]) for front in report["fronts"]] == [(8000, False), (8001, False)]
        assert all(accepts(front["address"]) for front in report["fronts"])
        assert (report["state"], report["problem"], report["restarts"], report["reloads"]) == (RUNNING, "", 0, 0)
        assert report["changes"] > 0
    assert len(process.programs(2)) == 2
    directory = RUN / f"{DIRECTORY}{os.getpid()}"
    assert sorted(each.name for each in directory.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT.replace("mode http", "mode nonsense"), "shadows.bad: .*bad.cfg: refused by haproxy: .*nonsense"),
        (TEXT.replace("web1 198.51.100.10", "web1 198.51.100.20"), "which is production's 198.51.100.20:8080"),
        (TEXT.replace("mode http", "mode tcp"), "no frontend speaks HTTP"),
    ],
)
def test_what_cannot_be_started_ends_it_all(begin: Begin, text: str, says: str) -> None:
    process = begin(good=TEXT, bad=text)
    good, bad = process.heard(), process.heard()
    assert (good["shadow"], bad["shadow"]) == ("good", "bad")
    assert re.search(says, bad["error"])
    assert process.process.wait(LIMIT_S) == 0
    assert not any(accepts(front["address"]) for front in good["fronts"])


def test_a_program_that_is_killed_is_started_again_where_it_was(begin: Begin) -> None:
    process = begin(candidate=TEXT)
    first = process.heard()
    (pid,) = process.programs(1)
    os.kill(pid, signal.SIGKILL)
    told = process.hears(lambda message: message["state"] == DEAD)
    assert told["problem"].startswith("haproxy died: ")
    told = process.hears(lambda message: message["state"] == RUNNING)
    assert (told["restarts"], told["fronts"]) == (1, first["fronts"])
    assert all(accepts(front["address"]) for front in told["fronts"])
    assert process.programs(1) != [pid]


def test_changes_are_followed(begin: Begin, tmp_path: Path) -> None:
    process = begin(candidate=TEXT)
    first = process.heard()
    path = tmp_path / "candidate.cfg"
    path.write_text(TEXT.replace("balance roundrobin", "balance no-such-policy"))
    told = process.hears(lambda message: message["problem"])
    assert told["problem"].startswith("the changed configuration is not taken over: ")
    assert (told["state"], told["reloads"], told["fronts"]) == (RUNNING, 0, first["fronts"])
    path.write_text(TEXT.replace("    bind 203.0.113.1:8001\n", "    bind 203.0.113.1:8002\n"))
    told = process.hears(lambda message: message["reloads"] == 1)
    assert told["problem"] == ""
    assert [front["port"] for front in told["fronts"]] == [8000, 8002]
    assert told["fronts"][0] == first["fronts"][0], "who is asked all the time stays where it is"
    assert all(accepts(front["address"]) for front in told["fronts"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_programs_end_with_it(begin: Begin, number: signal.Signals) -> None:
    process = begin(one=TEXT, two=TEXT)
    process.heard()
    process.heard()
    pids = process.programs(2)
    process.process.send_signal(number)
    process.process.wait(LIMIT_S)
    until(lambda: not any(lives(pid) for pid in pids))
    left = RUN / f"{DIRECTORY}{os.getpid()}"
    assert left.exists() is (number is signal.SIGKILL)
    if left.exists():  # nobody could: it is for the next one to do, once the service is gone as well
        remove_stale(RUN)
        assert left.exists()
        shutil.rmtree(left)


def test_an_interrupt_is_for_the_service(begin: Begin) -> None:
    process = begin(candidate=TEXT)
    process.heard()
    process.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.process.poll() is None
    assert len(process.programs(1)) == 1


def test_the_end_of_the_channel_is_its_end(begin: Begin) -> None:
    process = begin(candidate=TEXT)
    (front, _) = process.heard()["fronts"]
    process.channel.close()
    assert process.process.wait(LIMIT_S) == 0
    assert not accepts(front["address"])


def test_it_keeps_few_capabilities(begin: Begin) -> None:
    process = begin(candidate=TEXT)
    process.heard()
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    for line in status.splitlines():
        if line.startswith(("CapEff", "CapPrm", "CapBnd")) and os.geteuid() == 0:
            held = int(line.split()[1], 16)
            assert not held & ~sum(1 << each for each in KEPT), line
    assert "NoNewPrivs:\t1" in status


def test_without_an_order_it_ends() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.balancing", str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT
        )
    ours.close()
    assert process.wait(LIMIT_S) == 0


def test_a_service_that_is_behind_hears_it_later(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reporting(Watched):
        def report(self) -> dict[str, Any]:
            return {"shadow": self.name, "problem": self.problem}

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        watched = Reporting("candidate", cast(Engine, fake))
        balancing._tell(watched, theirs)
        balancing._tell(watched, theirs)
        assert messages.receive(ours) == {"shadow": "candidate", "problem": ""}
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            messages.receive(ours)
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(b"{}")
                filled += 1
        watched.refused = "something new"
        balancing._tell(watched, theirs)
        for _ in range(filled):
            assert messages.receive(ours) == {}
        with pytest.raises(BlockingIOError):
            messages.receive(ours)
        balancing._tell(watched, theirs)
        assert messages.receive(ours) == {"shadow": "candidate", "problem": "something new"}
    with pytest.raises(SystemExit):
        watched.refused = "newer"
        balancing._tell(watched, theirs)
