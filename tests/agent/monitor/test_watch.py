"""The watch process' own part: what it does with messages, datagrams and clocks. As a process: test_watch_link.py."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import messages
from agent.monitor import watch as module
from agent.monitor.pairs import LOST, LOST_NUMBERS, pack_datagram
from agent.monitor.watch import Watch
from tests.agent.monitor.test_judging import an_order, pairs
from tests.agent.monitor.test_pairs import a_pair
from tests.agent.monitor.test_sending import until

ROOT = Path(__file__).parents[3]
S = 1_000_000_000
LIMIT_S = 20.0


class Bench:
    """A watch in this process, and the service's ends."""

    def __init__(self, **order: Any) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.feed, feed = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ends = (self.channel, theirs, self.feed, feed)
        for end in self.ends:
            end.setblocking(False)
        given = {"shadows": ["one", "two"], "directory": None, "resources": None, "alerts": {"log": False}}
        self.watch = Watch({**given, "host": "lb1", **order}, theirs, feed)
        self.heard: list[dict[str, Any]] = []

    def begin(self, shadow: str = "one") -> None:
        self.order({"judge": {**an_order(fresh=True), "shadow": shadow}})

    def order(self, message: dict[str, Any]) -> None:
        messages.send(self.channel, message)
        self.watch._listen()

    def send(self, *records: bytes, known_ns: int = 0) -> None:
        self.feed.send(pack_datagram(0, 0, known_ns, bytearray(b"".join(records))))
        self.watch._read_feed()

    def told(self, kind: str) -> list[dict[str, Any]]:
        while True:
            try:
                message = messages.receive(self.channel)
            except BlockingIOError:
                return [each for each in self.heard if kind in each]
            assert message is not None
            self.heard.append(message)

    def close(self) -> None:
        self.watch._alerting.close()
        for end in self.ends:
            end.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


async def running(bench: Bench, until: Callable[[], Any]) -> None:
    task = asyncio.create_task(bench.watch.run())
    end_s = time.monotonic() + LIMIT_S
    while not until():
        assert time.monotonic() < end_s and not task.done()
        await asyncio.sleep(0.01)
    bench.channel.close()
    await asyncio.wait_for(task, LIMIT_S)


def test_each_shadow_gets_its_own_pairs(bench: Bench) -> None:
    number = LOST_NUMBERS["dropped", "queue_full"]
    bench.send(a_pair(place=0), a_pair(place=0), a_pair(place=1), a_pair(place=1, kind=LOST, word=number))
    one, two = (bench.watch._traffic[name].as_json() for name in ("one", "two"))
    (first,), (second,) = (each["routes"].values() for each in (one, two))
    assert (sum(first["counts"]["shadow"]), first["lost"]) == (2, 0)
    assert (sum(second["counts"]["shadow"]), second["lost"]) == (1, 1)
    assert (one["lost"], two["lost"]) == ({}, {"dropped": 1})


def test_an_order_is_answered_by_a_verdict_and_a_message_for_another_is_not_mixed_up(bench: Bench) -> None:
    bench.begin("two")
    (message,) = bench.told("judged")
    assert (message["judged"], message["verdict"]["word"]) == ("two", "inconclusive")
    assert bench.watch._judges["one"].message() is None
    assert bench.told("say") == []


def test_a_pair_of_blocks_is_answered_by_the_state_of_the_check(bench: Bench) -> None:
    bench.order({"harm": {"harm_tail": 0.1, "harm_level": 0.1}, "at_ns": 5})
    (message,) = bench.told("harm")
    assert message["harm"]["word"] == "inconclusive"


def test_a_step_of_the_wall_clock_begins_all_judges_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        bench.begin(name)
    began = [judge.started_ns for judge in bench.watch._judges.values()]
    bench.watch._judges["one"].take(pairs(4000, began[0]))
    bench.watch._judges["one"].advance(began[0] + 20 * S, 0)
    bench.send(known_ns=began[0])
    real = module._wall_minus_boot_ns
    bench.watch._look_at_clock()
    assert bench.told("say") == []
    for step_ns in (-3600 * S, 0):  # back, and forth again
        monkeypatch.setattr(module, "_wall_minus_boot_ns", lambda step_ns=step_ns: real() + step_ns)
        bench.watch._look_at_clock()
        bench.watch._look_at_clock()
    assert bench.told("say") == [{"say": "the host's clock was set: the judges begin anew"}] * 2
    assert all(judge.started_ns > before for judge, before in zip(bench.watch._judges.values(), began, strict=True))
    assert bench.watch._judges["one"].message()["verdict"]["blocks"] == 0  # type: ignore[index]
    assert bench.watch._known == {}


def test_a_clock_that_is_slewed_begins_nothing_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, drift_ns = module._wall_minus_boot_ns, 0
    monkeypatch.setattr(module, "_wall_minus_boot_ns", lambda: real() + drift_ns)
    for _ in range(100):
        drift_ns += S // 10
        bench.watch._look_at_clock()
    assert bench.told("say") == []


def test_the_watermark_is_that_of_the_slowest_worker(bench: Bench) -> None:
    for worker, known_ns in ((0, 5), (1, 3), (0, 9)):
        bench.feed.send(pack_datagram(worker, worker + 1, known_ns, bytearray()))
    bench.watch._read_feed()
    assert min(bench.watch._known.values()) == 3
    assert bench.watch._unsent == {0: 1, 1: 2}


def test_what_a_worker_could_not_send_is_lost_to_every_judge(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[int] = []
    for judge in bench.watch._judges.values():
        monkeypatch.setattr(judge, "lose_unsent", lambda count, at_ns: lost.append(count))
    for worker, unsent in ((0, 0), (0, 3), (0, 3), (1, 2), (0, 5), (1, 0), (1, 1)):  # worker 1 was started again
        bench.feed.send(pack_datagram(worker, unsent, 0, bytearray()))
    bench.watch._read_feed()
    assert lost == [3, 3, 2, 2, 2, 2, 1, 1], "what is more than before, for both of them"


def test_each_judge_hears_of_a_pause(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []
    for name, judge in bench.watch._judges.items():
        monkeypatch.setattr(judge, "paused", lambda start, end, name=name: heard.append((name, start, end)))
    bench.order({"paused": [5, 0]})
    bench.order({"paused": [5, 9]})
    assert heard == [("one", 5, 0), ("two", 5, 0), ("one", 5, 9), ("two", 5, 9)]


def test_who_cannot_be_told_of_alerts_is_no_problem_of_the_state() -> None:
    bench = Bench(alerts={"log": False, "hold_s": 0, "webhooks": [{"url": "http://127.0.0.1:1/"}]})
    bench.order({"alerts": [{"name": "X", "shadow": "", "severity": "info", "summary": "", "evidence": {}}]})
    until(bench.watch._alerting.undelivered)
    assert bench.watch._problems() == []
    bench.close()


def test_a_message_that_the_service_could_not_read_is_a_problem_instead(bench: Bench) -> None:
    bench.watch._tell({"traffic": "one", "totals": "x" * messages.LIMIT_BYTES})
    assert bench.told("traffic") == []
    assert bench.watch._problems() == ["too much to tell of: traffic, totals"]
    assert not bench.watch._ended.is_set()


def test_a_service_that_is_behind_is_not_waited_for_and_one_that_is_gone_ends_it(bench: Bench) -> None:
    for _ in range(100):
        bench.watch._tell({"traffic": "x" * 60_000})
    assert not bench.watch._ended.is_set()
    bench.channel.close()
    bench.watch._tell({"say": "x"})
    assert bench.watch._ended.is_set()


def test_each_second_everything_is_told_and_the_end_of_the_channel_ends_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.05)
    bench.begin()
    asyncio.run(running(bench, lambda: len(bench.told("watch")) >= 2))
    assert {each["traffic"] for each in bench.heard if "traffic" in each} == {"one", "two"}
    (watch, *_) = (each["watch"] for each in bench.heard if "watch" in each)
    nothing = {"unsent": 0, "damaged": 0, "usage": {}, "alerts": [], "problems": [], "undelivered": []}
    assert watch | {"cpu_s": 0} == {**nothing, "cpu_s": 0}
    assert [each for each in bench.heard if "harm" in each] == []


def test_a_pool_that_does_not_answer_is_shown_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.05)
    bench = Bench(resources={"interval_s": 0.2, "timeout_s": 0.5, "production": {"targets": ["127.0.0.1:1"]}})
    asyncio.run(running(bench, lambda: any(each["watch"]["usage"] for each in bench.told("watch"))))
    usage = bench.heard[-1].get("watch", {}).get("usage") or bench.watch._usage
    assert usage["production"]["missing"][0][0].startswith("127.0.0.1:1")
    bench.close()


def test_what_cannot_be_kept_is_a_problem(tmp_path: Path) -> None:
    bench = Bench(directory=str(tmp_path / "gone"))
    bench.begin()
    bench.watch._keep_now()
    problems = bench.watch._problems()
    assert len(problems) == 2 and all("No such file or directory" in problem for problem in problems)
    bench.close()


BUG = """
import asyncio, socket
from agent.monitor import watch
watch.TICK_S = 0.05
async def tick(self): 1 / 0
watch.Watch._tick = tick
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
feed = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
order = {"shadows": [], "directory": None, "resources": None, "alerts": {"log": False}, "host": "lb1"}
asyncio.run(watch.Watch(order, theirs, feed[0]).run())
"""


def test_a_bug_in_a_task_ends_the_process_and_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUG], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, env=dict(os.environ)
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
