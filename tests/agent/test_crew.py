"""The service's children, with small scripts in their places."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from agent import crew as module
from agent import messages
from agent.crew import Crew, Worker
from agent.errors import ConfigError, LoadError
from agent.order import Order, ShadowOrder
from agent.pool_order import PoolOrder
from agent.select.choice import Rule, rule_from_json
from agent.select.language import parse
from agent.select.sampling import By, Window
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

ORDER, MARK, RING_BYTES = Order(ports=(80,)), 7, 4096
WORKER = """
import json, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
order = json.loads(channel.recv(65536))
seen = 0
def report(final=False):
    global seen
    seen += 10
    account = {"seen": seen, "replayed": seen - 3, "incomplete": {}, "skipped": {"method": 1}, "dropped": {},
               "answers": {"ok": seen - 3}}
    flows = {"segments": seen, "open": 5}
    report = {"worker": order["worker"], "final": final, "accounts": {"candidate": account}, "flows": flows}
    channel.send(json.dumps(report).encode())
report()
while message := channel.recv(65536):
    what = json.loads(message)
    if "die" in what:
        sys.exit(7)
    report("stop" in what)
    if "stop" in what:
        break
"""
KEEPER = """
import json, socket, sys
lifeline = socket.socket(fileno=int(sys.argv[1]))
json.loads(socket.recv_fds(lifeline, 65536, 2)[0])
lifeline.send(json.dumps({"error": ""}).encode())
lifeline.recv(1)
"""
Start = Callable[..., "subprocess.Popen[bytes]"]


def starting(**scripts: str) -> Start:
    """In the place of `start_module`: runs a script for agent.worker_start or agent.keeper."""

    def start(name: str, arguments: list[int], inherit: list[int], options: object = ()) -> subprocess.Popen[bytes]:
        script = scripts[name.removeprefix("agent.")]
        return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], pass_fds=inherit)

    return start


def made_of(rings: list[int], order: Order = ORDER, mark: int = MARK) -> Crew:
    return Crew(order, mark, "run", rings, RING_BYTES, "nobody")


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    monkeypatch.setattr(module, "start_module", starting(worker_start=WORKER, keeper=KEEPER))
    made = made_of([0, 0])
    yield made
    made.end()
    assert all(worker.process.poll() is not None for worker in made.workers)


def hear(worker: module.Worker, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        worker.listen()
        time.sleep(0.005)


def started(crew: Crew) -> Crew:
    crew.start_workers()
    for worker in crew.workers:
        hear(worker, lambda worker=worker: worker.report)
    return crew


def test_accounts_are_added_up(crew: Crew) -> None:
    started(crew)
    assert [worker.report["worker"] for worker in crew.workers] == [0, 1]
    account = crew.accounts()["candidate"]
    assert (account.seen, account.replayed, account.skipped, account.in_flight) == (20, 14, {"method": 2}, 4)
    crew.workers[1].tell({"kernel": {}})
    hear(crew.workers[1], lambda: crew.workers[1].report["accounts"]["candidate"]["seen"] == 20)
    assert crew.accounts()["candidate"].seen == 30


def test_each_shadow_has_its_own_account(monkeypatch: pytest.MonkeyPatch) -> None:
    other = '"accounts": {"candidate": account, "other": {**account, "skipped": {"criteria": 2}}}'
    script = WORKER.replace('"accounts": {"candidate": account}', other)
    assert script != WORKER
    monkeypatch.setattr(module, "start_module", starting(worker_start=script))
    crew = started(made_of([0, 0]))
    accounts = crew.accounts()
    assert {name: account.skipped for name, account in accounts.items()} == {
        "candidate": {"method": 2}, "other": {"criteria": 4},
    }  # fmt: skip
    dead = crew.workers[0]
    dead.tell({"die": True})
    hear(dead, lambda: not dead.listen())
    crew.give_up(dead)
    after = crew.accounts()
    assert {name: (account.seen, account.dropped) for name, account in after.items()} == {
        "candidate": (20, {"worker_died": 2}), "other": (20, {"worker_died": 1}),
    }  # fmt: skip
    crew.end()


def test_rules_reach_every_worker_and_those_that_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's report says what it was told last."""
    script = WORKER.replace("def report(", "told = order['order']['shadows']\ndef report(", 1)
    script = script.replace('"flows": flows}', '"flows": flows, "told": json.dumps(told)}', 1)
    script = script.replace("    what = json.loads(message)\n", "    what = json.loads(message)\n    told = what\n", 1)
    monkeypatch.setattr(module, "start_module", starting(worker_start=script))
    order = replace(
        ORDER, shadows=(ShadowOrder("one"), ShadowOrder("other", pool=PoolOrder((UpstreamSpec("192.0.2.1:80"),))))
    )
    crew = started(made_of([0, 0], order))
    rules = [Rule(enabled=False), Rule(criteria=parse("header:X-Test"), window=Window(0, 10_000), by=By.CLIENT)]
    crew.change_rules(rules)
    for worker in crew.workers:
        hear(worker, lambda worker=worker: "rules" in worker.report["told"])
        assert [rule_from_json(rule) for rule in json.loads(worker.report["told"])["rules"]] == rules
    dead = crew.workers[1]
    dead.tell({"die": True})
    hear(dead, lambda: not dead.listen())
    fresh = crew.replace(dead)
    hear(fresh, lambda: fresh.report)
    told = [ShadowOrder.from_json(shadow) for shadow in json.loads(fresh.report["told"])]
    assert told == [replace(shadow, rule=rule) for shadow, rule in zip(order.shadows, rules, strict=True)]
    crew.end()


def test_a_dead_worker_is_replaced_and_its_account_kept(crew: Crew) -> None:
    started(crew)
    dead = crew.workers[0]
    dead.tell({"die": True})
    hear(dead, lambda: not dead.listen())
    fresh = crew.replace(dead)
    assert (crew.restarts, crew.workers[0]) == (1, fresh)
    before = crew.accounts()["candidate"]
    assert (before.seen, before.dropped, before.in_flight) == (20, {"worker_died": 2}, 2)
    hear(fresh, lambda: fresh.report)
    assert crew.accounts()["candidate"].seen == 30
    assert crew.events()["flows"] == {"segments": 30, "open": 10}  # counters are kept, connections are gone with it
    fresh.tell({"die": True})
    hear(fresh, lambda: not fresh.listen())
    crew.give_up(fresh)
    assert crew.accounts()["candidate"].dropped == {"worker_died": 4}
    assert crew.accounts()["candidate"].seen == 30
    assert crew.restarts == 1
    assert crew.workers[0].channel.fileno() == -1


def test_the_last_report_says_that_it_is_the_last(crew: Crew) -> None:
    started(crew)
    worker = crew.workers[0]
    assert not worker.done
    worker.tell({"stop": True})
    hear(worker, lambda: worker.done)
    hear(worker, lambda: not worker.listen())
    worker.tell({"kernel": {}})  # nobody hears it, nobody minds


def test_several_reports_at_once_are_one(crew: Crew) -> None:
    started(crew)
    worker = crew.workers[0]
    for _ in range(5):
        worker.tell({"kernel": {}})
    hear(worker, lambda: worker.report["accounts"]["candidate"]["seen"] == 60)
    assert worker.accounts["candidate"].seen == 60


def test_the_keeper_starts_only_when_there_is_something_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "start_module", starting())
    crew = made_of([0], mark=0)
    crew.start_keeper(1, [])
    assert crew.keeper_pid() is None
    assert not crew.keeper_died()
    crew.end()


def test_the_keeper_ends_with_its_lifeline(crew: Crew) -> None:
    crew.start_keeper(1, [])
    assert crew.keeper_pid()
    assert not crew.keeper_died()
    crew.end()
    assert crew.keeper_died()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("raise SystemExit(1)", "it ended at once"),
        (KEEPER.replace('{"error": ""}', '{"error": "no clsact"}'), "no clsact"),
    ],
)
def test_a_keeper_that_cannot_start(monkeypatch: pytest.MonkeyPatch, script: str, says: str) -> None:
    monkeypatch.setattr(module, "start_module", starting(keeper=script))
    crew = made_of([0])
    with pytest.raises(LoadError, match=f"the keeper process could not start: {says}"):
        crew.start_keeper(1, [])
    crew.end()


def test_end_kills_what_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "start_module", starting(worker_start="import time; time.sleep(1000)"))
    crew = made_of([0])
    crew.start_workers()
    crew.end()
    assert crew.workers[0].process.returncode == -9


def with_upstreams(name: str) -> Order:
    """As many upstreams as are allowed."""
    upstreams = tuple(UpstreamSpec(f"shadow-{n:04}.{name}.example:80") for n in range(1024))
    return replace(ORDER, shadows=(replace(ORDER.shadows[0], pool=PoolOrder(upstreams)),))


def test_an_order_with_many_upstreams_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "start_module", starting(worker_start=WORKER.replace("65536", "131072")))
    crew = made_of([0], with_upstreams("x" * 40))
    started(crew)
    crew.end()


def test_an_order_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "start_module", starting())
    with pytest.raises(LoadError, match="too long: name fewer"):
        made_of([0], with_upstreams("x" * 200)).start_workers()


def test_a_worker_that_hangs_is_killed(crew: Crew) -> None:
    started(crew)
    crew.workers[1].heard_s -= 100
    assert crew.kill_stuck(50.0) == [1]
    hear(crew.workers[1], lambda: not crew.workers[1].listen())
    assert crew.workers[0].process.poll() is None


def idle_crew() -> Crew:
    """Without any process."""
    return Crew(ORDER, MARK, "run", [], RING_BYTES, "nobody")


def test_new_rules_reach_a_worker_that_is_behind() -> None:
    """Its socket is full at first; `tell_again` brings them as soon as there is room."""
    crew = idle_crew()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    worker = Worker(0, cast(Any, None), ours)
    crew.workers = [worker]
    while worker.tell({"filler": "x" * 1000}):
        pass
    crew.change_rules([Rule(enabled=False)])
    assert worker.untold
    while "filler" in (messages.receive(theirs) or {}):
        crew.tell_again()
        if not worker.untold:
            break
    messages_left = iter(lambda: messages.receive(theirs), None)
    assert next(m for m in messages_left if "rules" in m)["rules"][0]["enabled"] is False


def test_pools_reach_every_worker_and_those_that_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    script = WORKER.replace("def report(", "told = order['order']['shadows']\ndef report(", 1)
    script = script.replace('"flows": flows}', '"flows": flows, "told": json.dumps(told)}', 1)
    script = script.replace("    what = json.loads(message)\n", "    what = json.loads(message)\n    told = what\n", 1)
    monkeypatch.setattr(module, "start_module", starting(worker_start=script))
    crew = started(made_of([0, 0], replace(ORDER, shadows=(ShadowOrder("one"), ShadowOrder("other")))))
    pool = PoolOrder((UpstreamSpec("198.51.100.1:80", 3, "c"),))
    crew.change_pool(1, pool)
    for worker in crew.workers:
        hear(worker, lambda worker=worker: '"place"' in worker.report["told"])
        told = json.loads(worker.report["told"])
        assert (told["place"], PoolOrder.from_json(told["pool"])) == (1, pool)
    dead = crew.workers[0]
    dead.tell({"die": True})
    hear(dead, lambda: not dead.listen())
    fresh = crew.replace(dead)
    hear(fresh, lambda: fresh.report)
    orders = [ShadowOrder.from_json(shadow) for shadow in json.loads(fresh.report["told"])]
    assert [order.pool for order in orders] == [PoolOrder(), pool]
    crew.end()


def test_only_the_last_of_a_pools_changes_is_told_to_one_that_is_behind() -> None:
    crew = idle_crew()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    worker = Worker(0, cast(Any, None), ours)
    crew.workers = [worker]
    while worker.tell({"filler": "x" * 1000}):
        pass
    for number in range(1, 4):
        crew.change_pool(0, PoolOrder((UpstreamSpec(f"198.51.100.{number}:80"),)))
    while "filler" in (messages.receive(theirs) or {}):
        crew.tell_again()
        if not worker.untold:
            break
    ours.close()
    pools = [message["pool"] for message in iter(lambda: messages.receive(theirs), None) if "pool" in message]
    assert [PoolOrder.from_json(pool).upstreams for pool in pools] == [(UpstreamSpec("198.51.100.3:80"),)]


def test_a_pool_that_is_too_long_to_be_told_changes_nothing() -> None:
    """A worker that is replaced later has to be told everything at once."""
    crew = Crew(
        replace(ORDER, shadows=(ShadowOrder("one"), ShadowOrder("other"))), MARK, "run", [], RING_BYTES, "nobody"
    )
    half = PoolOrder(tuple(UpstreamSpec(f"[2001:db8::{n:x}]:80", 2, "c" * 40) for n in range(1024)))
    crew.change_pool(0, half)
    with pytest.raises(UpstreamError, match="the lists of upstreams are too long together: name fewer"):
        crew.change_pool(1, half)
    assert [shadow.pool for shadow in crew._order.shadows] == [half, PoolOrder()]


def test_rules_that_are_too_long_to_be_told_change_nothing() -> None:
    crew = idle_crew()
    with pytest.raises(ConfigError, match="too long"):
        crew.change_rules([Rule(methods=("X" * 50,) * 4000)])
    assert crew._order.shadows[0].rule.methods == ("GET", "HEAD", "OPTIONS")
