"""Coherence: the share is right, whole connections are taken, a share holds the smaller ones, on every worker alike."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest

from agent.select import sampling
from tests.e2e.agent_process import Ended, Settings, is_sampled, key_of, running
from vagrant.lab import Lab

pytestmark = pytest.mark.root

SERVER = "10.77.1.1:80"
SEED = 101  # with it 10.0 % of all ports of the client are taken, odd or even: what is left to chance is the load
CONNECTIONS = 10_000
PPM = 1_000_000


def capture_only(percentage: float, **more: Settings) -> Settings:
    """Nothing is sent anywhere: only what is taken counts here."""
    return {"shadows": {"candidate": {"percentage": percentage, "upstreams": []}}, "seed": SEED, **more}


def by_client(ended: Ended) -> Counter[str]:
    return Counter(row["client"] for row in ended.rows())


def expected(logged: Counter[str], percentage: float) -> Counter[str]:
    """What should be taken of the requests in HAProxy's log."""
    ppm = round(percentage * 10_000)
    return Counter({c: n for c, n in logged.items() if is_sampled(c, SERVER, ppm, SEED)})


def test_ten_percent_of_ten_thousand_connections(lab: Lab) -> None:
    with running(lab, capture_only(10)) as agent:
        load = lab.visits(CONNECTIONS, requests_each=2)
        ended = agent.stop()
        logged = agent.logged()
    assert (load.failed, load.requests, sum(logged.values())) == (0, 2 * CONNECTIONS, 2 * CONNECTIONS)
    taken = by_client(ended)
    assert taken == expected(logged, 10)
    # A client's port may have served two connections, one after the other: both are taken or none.
    assert all(count % 2 == 0 for count in taken.values())
    share = sum(taken.values()) / 2 / CONNECTIONS
    assert abs(share - 0.1) < 3.2905 * math.sqrt(0.1 * 0.9 / CONNECTIONS)
    assert ended.account.seen == sum(taken.values())
    assert ended.kernel["unsampled"] > 0


def test_the_one_percent_are_among_the_ten(lab: Lab) -> None:
    with running(lab, capture_only(1)) as agent:
        lab.visits(2000)
        ended = agent.stop()
        logged = agent.logged()
    taken = by_client(ended)
    assert taken == expected(logged, 1)
    assert 0 < len(taken) < len(expected(logged, 10))
    assert set(taken) <= set(expected(logged, 10))


def test_a_client_is_taken_as_a_whole(lab: Lab) -> None:
    """There is one client, so all of it or nothing; the seeds are chosen for either."""
    hashes = {seed: sampling.client_hash("10.77.1.2", seed) for seed in range(100)}
    inside = next(seed for seed, found in hashes.items() if sampling.sampled(found, PPM // 2))
    outside = next(seed for seed, found in hashes.items() if not sampling.sampled(found, PPM // 2))
    shadow = {"percentage": 50, "sample_by": "client", "upstreams": []}
    for seed, count in ((inside, 60), (outside, 0)):
        with running(lab, {"shadows": {"candidate": shadow}, "seed": seed}) as agent:
            lab.visits(30, requests_each=2)
            assert agent.stop().account.seen == count


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_flows_and_keep_one_account(lab: Lab, workers: int) -> None:
    with running(lab, {"capture": {"workers": workers}, "seed": SEED}) as agent:
        assert set(agent.children()) == {"keeper", *(f"worker{n}" for n in range(workers))}
        lab.visits(200, requests_each=3)
        ended = agent.stop()
        assert agent.shadow() == agent.production() == 600
    assert ended.status == 0
    assert (ended.account.seen, ended.account.replayed, ended.account.in_flight) == (600, 600, 0)
    workers_of: defaultdict[str, set[int]] = defaultdict(set)
    for row in ended.rows():
        workers_of[row["client"]].add(row["worker"])
    for client, found in workers_of.items():
        assert found == {sampling.worker_of(sampling.flow_hash(key_of(client, SERVER), SEED), workers)}
    assert set.union(*workers_of.values()) == set(range(workers))
    report = ended.report()
    assert (report["workers"], report["rows"], report["account"]["seen"]) == (workers, 600, 600)
    assert report["counters"]["capture.copied"] == ended.kernel["copied"]


def test_ipv6_clients_are_sampled_and_replayed_too(lab: Lab) -> None:
    shadow = {"candidate": {"percentage": 50}}
    with running(lab, {"shadows": shadow, "seed": SEED}) as agent:
        url = f"http://[{lab.address6('lb')}]/api/items/7"
        for _ in range(40):
            lab.run_in("client", ["curl", "-sf", "-o", "/dev/null", url, url])
        ended = agent.stop()
        logged = agent.logged()
        assert agent.shadow() == ended.account.seen
    assert sum(logged.values()) == 80
    server = f"[{lab.address6('lb')}]:80"
    wanted = {f"[{c.rpartition(':')[0]}]:{c.rpartition(':')[2]}": n for c, n in logged.items()}
    wanted = {client: n for client, n in wanted.items() if is_sampled(client, server, PPM // 2, SEED)}
    assert by_client(ended) == wanted
    assert {row["server"] for row in ended.rows()} == {server}
    assert 0 < ended.account.replayed == ended.account.seen == sum(wanted.values()) < 80
