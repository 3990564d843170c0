"""The watch process as the service sees it: what it tells, that it comes back with its evidence, and how it ends."""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import privileges
from agent.config import Config
from agent.monitor import watch_link
from agent.monitor.pairs import pack_datagram
from agent.monitor.watch_link import WatchLink, watch_order
from agent.shadow_config import Shadow
from tests.agent.monitor.test_judging import an_order
from tests.agent.monitor.test_pairs import a_pair
from tests.agent.monitor.test_sending import Listener

ROOT = Path(__file__).parents[3]
S, MS = 1_000_000_000, 1_000_000
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def directory() -> Iterator[Path]:
    """One in which the process may write when it has given up its privileges."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        if os.geteuid() == 0:
            os.chown(name, privileges.service_user().pw_uid, -1)
        yield Path(name)


class Service:
    """What the service does with its link."""

    def __init__(self, directory: Path | None = None, **order: Any) -> None:
        self.said: list[str] = []
        self.verdicts: list[dict[str, Any]] = []
        user = privileges.service_user().pw_name
        given = {"user": user, "nice": 0, "scheduler": "other", "shadows": ["candidate"], "resources": None}
        given |= {"directory": str(directory) if directory else None, "alerts": {"log": False}, "host": "lb1"}
        self.selector = selectors.DefaultSelector()
        self.link = WatchLink({**given, **order}, self.said.append)
        self.feed = socket.socket(fileno=os.dup(self.link.feed_fd))  # as a worker has it
        self.link.start(self.selector)

    def hear(self) -> None:
        for key, _ in self.selector.select(0.05):
            assert key.data is self.link
            self.verdicts += self.link.take()

    def until(self, what: Callable[[], Any]) -> Any:
        end_s = time.monotonic() + LIMIT_S
        while not (value := what()):
            assert time.monotonic() < end_s, f"it does not happen; {self.said}"
            self.hear()
        return value

    def again(self) -> None:
        """As each second, until it was started again."""
        began_s = time.monotonic()
        assert not self.link.look(began_s)
        assert self.link.look(began_s + 100)

    def begin(self) -> int:
        """A period of short blocks, and its first five seconds: what is sent as of then is not of the future."""
        self.link.tell({"judge": an_order(fresh=True, block_s=0.2)})
        self.until(self.judged)
        started_ns: int = self.link.told.verdicts["candidate"]["period_started_ns"]
        self.until(lambda: time.time_ns() > started_ns + 5 * S)
        return started_ns

    def send(self, data: bytes) -> None:
        self.feed.settimeout(LIMIT_S)
        self.feed.send(data)

    def send_pairs(self, count: int, start_ns: int, factor: float = 1.5, rate: int = 200) -> None:
        for first in range(0, count, 500):
            records = bytearray()
            for number in range(first, min(first + 500, count)):
                production = (10 + number % 7) * MS
                times = {"at": start_ns + number * S // rate, "production": production}
                records += a_pair(place=0, shadow=int(production * factor), word=0, **times)
            self.send(pack_datagram(0, 3, start_ns + count * S // rate, records))

    def judged(self) -> dict[str, Any]:
        return self.link.told.verdicts.get("candidate", {}).get("verdict", {})

    def totals(self) -> dict[str, Any]:
        return (
            self.link.told.traffic.get("candidate", {}).get("totals", {}).get("routes", {}).get("GET /items/{id}", {})
        )

    def counted(self) -> int:
        return sum(self.totals().get("counts", {}).get("shadow", ()))

    def close(self) -> None:
        self.feed.close()
        self.link.close()
        self.selector.close()


Start = Callable[..., Service]


@pytest.fixture
def service() -> Iterator[Start]:
    made: list[Service] = []

    def start(directory: Path | None = None, **order: Any) -> Service:
        made.append(Service(directory, **order))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_pairs_become_a_verdict_and_totals(service: Start) -> None:
    one = service()
    assert one.link.running and one.link.pid is not None
    assert one.link.tell({"judge": an_order(fresh=True)})
    one.until(one.judged)
    assert (one.judged()["word"], one.said) == ("inconclusive", [])
    one.send_pairs(5000, time.time_ns())
    one.until(lambda: one.judged()["word"] == "fail" and one.counted() == 5000)
    assert one.judged()["rollback"] and one.judged()["findings"][0]["effect"] == pytest.approx(0.405, abs=0.01)
    assert one.totals()["counts"]["shadow"] != one.totals()["counts"]["production"]
    assert one.verdicts[-1] == one.link.told.verdicts["candidate"]
    watch = one.until(lambda: one.link.told.watch)
    assert (watch["damaged"], watch["problems"], watch["alerts"]) == (0, [], [])
    one.until(lambda: one.link.told.watch["unsent"] == 3)


def test_damaged_datagrams_are_counted_and_do_no_harm(service: Start) -> None:
    one = service()
    one.link.tell({"judge": an_order(fresh=True)})
    for damaged in (b"x", b"{}\n", b"[" * 190 + b"\n", b'{"worker": 0, "unsent": 0, "known_ns": 0}\n' + b"\xff" * 70):
        one.send(damaged)
    one.send(pack_datagram(0, 0, 0, bytearray(a_pair(place=40_000))))  # of a shadow that is not there
    one.send_pairs(500, time.time_ns())
    one.until(lambda: one.counted() == 500 and one.link.told.watch.get("damaged") == 4)
    assert one.link.restarts == 0 and one.link.running


def test_one_that_is_killed_goes_on_with_its_evidence_and_with_what_was_in_the_socket(
    service: Start, directory: Path
) -> None:
    one = service(directory)
    started_ns = one.begin()
    one.send_pairs(3000, started_ns, rate=1000)
    one.until(lambda: one.judged()["blocks"] > 5)
    kept = directory / "judge-candidate.json"
    one.until(lambda: '"routes": ["all", "GET' in kept.read_text())  # it is written every KEEP_S
    pid, blocks = one.link.pid, one.judged()["blocks"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    one.until(lambda: not one.link.running)
    assert one.said == ["the watch process died (status -9): nothing is judged until it is started again"]
    assert one.link.pid is None and not one.link.tell({"requests": {}})
    one.send_pairs(1500, started_ns + 3 * S, rate=1000)  # meanwhile workers go on
    one.again()
    one.link.told.traffic.clear()
    assert one.link.tell({"judge": an_order(block_s=0.2)})
    one.until(lambda: one.counted() == 1500 and one.judged()["blocks"] > blocks)
    assert one.said[1:] == ["the judge of candidate goes on with the evidence kept"]
    assert one.link.told.verdicts["candidate"]["period_started_ns"] <= started_ns
    assert (one.link.restarts, one.link.pid != pid) == (1, True)


def test_one_that_hangs_is_killed(service: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    one = service()
    one.until(lambda: one.link.told.watch)
    pid = one.link.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    now_s = time.monotonic()
    assert not one.link.look(now_s + watch_link.STUCK_S - 10)
    one.hear()
    assert one.link.running
    monkeypatch.setattr(watch_link, "STUCK_S", 0.5)
    assert not one.link.look(now_s + 5)
    one.until(lambda: not one.link.running)
    assert "died (status -9)" in one.said[0]
    one.again()
    one.link.told.watch = {}
    one.until(lambda: one.link.told.watch)


def test_one_that_has_closed_its_channel_is_killed_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[bytes]] = []

    def start(*_: object) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sleep", "600"]))
        return made[-1]

    monkeypatch.setattr(watch_link, "start_module", start)
    one = Service()
    one.until(lambda: not one.link.running)
    assert one.said == ["the watch process died (status -9): nothing is judged until it is started again"]
    assert made[0].returncode == -9
    one.close()


def test_each_death_makes_the_next_start_later_until_one_has_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    link = WatchLink({}, lambda line: None)
    starts = []
    monkeypatch.setattr(link, "start", lambda: starts.append(now_s))
    now_s = 0.0
    while now_s < 200:
        link.look(now_s)  # it never runs
        now_s += 0.5
    pauses = [round(after - before) for before, after in itertools.pairwise(starts)]
    assert pauses[:5] == [2, 4, 8, 16, 32] and max(pauses) <= watch_link.AGAIN_MAX_S + 1
    theirs, link._channel = socket.socketpair()
    link._heard_s = link._started_s = now_s
    link.look(now_s + watch_link.AGAIN_MAX_S + 1)
    assert link._pause_s == watch_link.AGAIN_MIN_S
    theirs.close()
    link.close()


def test_one_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    link = WatchLink({}, said.append)

    def fails(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(watch_link, "start_module", fails)
    assert [link.look(at_s) for at_s in (0.0, 2.0, 3.0, 9.0)] == [False] * 4
    assert said == ["the watch process cannot be started: Resource temporarily unavailable"] * 2
    assert (link.running, link.restarts) == (False, 0)
    link.close()


def test_at_its_end_it_has_kept_its_state(service: Start, directory: Path) -> None:
    one = service(directory)
    one.send_pairs(2000, one.begin(), rate=1000)
    one.link.tell({"alerts": [{"name": "X", "shadow": "", "severity": "info", "summary": "", "evidence": {}}]})
    one.link.tell({"harm": {"harm_tail": 0.1, "harm_level": 0.1}, "at_ns": time.time_ns()})
    one.until(lambda: one.counted() == 2000 and one.link.told.harm and one.link.told.watch.get("alerts"))
    process = one.link._process
    assert process is not None
    one.link.close()
    assert process.returncode == 0
    two = service(directory)
    two.link.tell({"judge": an_order(block_s=0.2)})
    two.until(two.judged)
    assert two.judged()["blocks"] > 3
    two.until(lambda: two.link.told.watch)
    assert [each["name"] for each in two.link.told.watch["alerts"]] == ["X"]
    assert {each.name for each in directory.iterdir()} == {"judge-candidate.json", "harm.json", "alerts.json"}


def test_what_is_known_of_harm_is_told_at_the_start(service: Start, directory: Path) -> None:
    """Else a person's reset would not reach it, and the next pair of blocks would trip everything again."""
    one = service(directory)
    for second in range(40):
        one.link.tell({"harm": {"harm_tail": 0.5 + second % 3 / 10, "harm_level": 0.5}, "at_ns": second * S})
    one.until(lambda: one.link.told.harm.get("rollback"))
    one.link.close()
    two = service(directory)
    two.until(lambda: two.link.told.harm.get("rollback"))
    two.link.tell({"forget_harm": True})
    two.link.tell({"harm": {"harm_tail": 0.1, "harm_level": 0.1}, "at_ns": 99 * S})
    two.until(lambda: not two.link.told.harm["rollback"])
    two.link.close()
    three = service(directory)
    three.until(lambda: three.link.told.watch)
    assert not three.link.told.harm.get("rollback")


def test_alerts_given_as_a_list_fire_and_resolve(service: Start) -> None:
    alert = {"name": "ShadowFailed", "shadow": "candidate", "severity": "critical", "summary": "slow", "evidence": {}}
    with Listener() as receiver:
        one = service(alerts={"log": False, "hold_s": 0, "webhooks": [{"url": receiver.url}]})
        one.link.tell({"alerts": [alert]})
        one.until(lambda: receiver.posts)
        one.until(lambda: one.link.told.watch.get("alerts"))
        one.link.tell({"alerts": []})
        one.until(lambda: len(receiver.posts) == 2)
        one.until(lambda: not one.link.told.watch["alerts"])
        one.link.close()
    assert [(body["name"], body["state"]) for _, _, body in receiver.posts] == [
        ("ShadowFailed", "firing"),
        ("ShadowFailed", "resolved"),
    ]


def test_the_service_is_heard_though_nobody_was_listening_at_first() -> None:
    one = Service()
    one.selector.unregister(one.link._channel)  # type: ignore[arg-type]
    selector = selectors.DefaultSelector()
    one.link.hear_from(selector)
    assert selector.select(LIMIT_S)
    one.close()
    assert not selector.get_map()


PARENT = """
import sys, time
from tests.agent.monitor.test_watch_link import Service
one = Service()
one.until(lambda: one.link.told.watch)
print(one.link.pid, flush=True)
time.sleep(600)
"""


def ended(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_it_dies_with_the_service() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not ended(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end_s = time.monotonic() + LIMIT_S
    while not ended(pid):
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_signals_for_the_service_do_not_end_it(service: Start) -> None:
    one = service()
    one.until(lambda: one.link.told.watch)
    assert one.link.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(one.link.pid, number)
    one.link.told.watch = {}
    one.until(lambda: one.link.told.watch)
    assert one.said == []


@pytest.mark.root
def test_it_holds_no_privilege(service: Start) -> None:
    one = service()
    one.until(lambda: one.link.told.watch)
    lines = Path(f"/proc/{one.link.pid}/status").read_text().splitlines()
    seen = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert {int(each) for each in seen["Uid"]} == {privileges.service_user().pw_uid}
    assert {int(seen[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")} == {0}
    assert (seen["Groups"], seen["NoNewPrivs"]) == ([], ["1"])


def test_the_order_is_what_the_configuration_says(service: Start, directory: Path) -> None:
    """All of it is JSON, and the process reads it."""
    config = Config.model_validate(
        {
            "capture": {"interface": "eth0", "ports": [80], "nice": 7},
            "shadows": {"candidate": {"percentage": 1, "upstreams": ["192.0.2.1:80"]}},
            "resources": {
                "production": {"targets": ["127.0.0.1:1"]},
                "shadows": {"candidate": {"targets": ["127.0.0.1:2"]}},
            },
            "alerts": {"log": False, "webhooks": ["http://127.0.0.1:1/"], "labels": {"team": "shop"}},
            "state": {"directory": str(directory)},
        }
    )
    assert isinstance(config.shadows["candidate"], Shadow)
    order = watch_order(config, privileges.service_user().pw_name)
    assert (order["shadows"], order["directory"], order["nice"]) == (["candidate"], str(directory), 7)
    one = service(**order)
    one.until(lambda: one.link.told.watch.get("usage"))
    assert one.link.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, one.link.pid) >= 7
    assert one.link.told.watch["problems"] == []
    bare = watch_order(config.model_copy(update={"state": None, "resources": None}), "nobody")
    assert (bare["directory"], bare["resources"]) == (None, None)
