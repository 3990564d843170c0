"""Criteria on live traffic, changed while the agent runs: just the wanted requests reach the shadow, and no other."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from tests.e2e.agent_process import Agent, Ended, Settings, is_sampled, running, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root
SERVER = "10.77.1.1:80"
QUIET_S = 0.3  # more than a request can be on its way


class Ask(NamedTuple):
    """A request of the client."""

    target: str = "/"
    headers: dict[str, str] = {}  # noqa: RUF012, never changed
    method: str = "GET"


CHROME = "Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0 Safari/537.36"
ASKS = (
    Ask(),
    Ask("/api/items/7?debug=1"),
    Ask("/api/items/8", {"X-Shadow-Test": "true"}),
    Ask("/", {"X-Shadow-Test": "false", "User-Agent": CHROME}),
    Ask("/products/1.html", {"Cookie": "a=b; beta=1"}),
    Ask("/api/items/9", {"Host": "shop.example.com:8080"}, "HEAD"),
    Ask("/news", {"X-Forwarded-For": "8.8.8.8"}),
    Ask("/", {"X-Forwarded-For": "81.2.69.142, 10.77.1.2", "X-Shadow-Test": "true"}),
)
# Criteria, and the requests they want, by their place above.
CASES = (
    ("header:X-Shadow-Test", {2, 3, 7}),
    ("header:x-shadow-test=true", {2, 7}),
    ("cookie:beta=1", {4}),
    ("user-agent:~Chrome/1[2-9]", {3}),
    ("method:HEAD", {5}),
    ("host:shop.example.com", {5}),
    ("path:/api/*", {1, 2, 5}),
    ("query:debug=1", {1}),
    ("cidr:10.77.1.0/24", {0, 1, 2, 3, 4, 5, 6, 7}),
    ("cidr:10.77.2.0/24", set()),
    ("geo:US", set()),  # the client's address is private
    ("not header:X-Shadow-Test", {0, 1, 4, 5, 6}),
    ("path:/api/* and not (method:HEAD or query:debug)", {2}),
    ("random", set(range(8))),
)


def ask_all(lab: Lab) -> None:
    """All requests, one after the other on one kept connection, so that wanted and unwanted ones share it."""
    argv = ["curl", "-s"]
    for number, ask in enumerate(ASKS):
        argv += ["--next"] * (number > 0) + ["-o", "/dev/null", f"{lab.url}{ask.target}"]
        argv += itertools.chain.from_iterable(("-H", f"{name}: {value}") for name, value in ask.headers.items())
        argv += ["-I"] if ask.method == "HEAD" else []
    lab.run_in("client", argv)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geo") / "country.mmdb"
    writer = MMDBWriter(4, "Test-Country", languages=["en"])
    writer.insert_network(IPSet(["8.8.8.0/24"]), {"country": {"iso_code": "US"}, "continent": {"code": "NA"}})
    writer.insert_network(IPSet(["81.2.69.0/24"]), {"country": {"iso_code": "GB"}, "continent": {"code": "EU"}})
    writer.insert_network(IPSet(["10.77.0.0/16"]), {"country": {"iso_code": "US"}, "continent": {"code": "NA"}})
    writer.to_db_file(str(path))
    path.chmod(0o644)
    for directory in list(path.parents)[:3]:
        directory.chmod(0o755)
    return path


def played(lab: Lab, settings: Settings, cases: tuple[tuple[str, set[int]], ...]) -> tuple[Ended, list[int], int]:
    """Each case in turn, set at run time; how many requests the shadow got for each, and production's in all."""
    got = []
    with running(lab, settings) as agent:
        for criteria, wanted in cases:
            agent.control("set", f"criteria={criteria}")
            before = agent.shadow()
            ask_all(lab)
            until(lambda: agent.shadow() - before >= len(wanted), what=f"{criteria}: {len(wanted)} requests")  # noqa: B023
            time.sleep(QUIET_S)
            got.append(agent.shadow() - before)
        production = agent.production()
        ended = agent.stop()
    return ended, got, production


def test_each_criterion_takes_exactly_what_it_says(lab: Lab, database: Path) -> None:
    ended, got, production = played(lab, {"geo": {"database": str(database)}}, CASES)
    assert dict(zip((criteria for criteria, _ in CASES), got, strict=True)) == {c: len(w) for c, w in CASES}
    assert ended.status == 0 and ended.account.in_flight == 0
    assert ended.account.replayed == sum(got) and production == len(CASES) * len(ASKS)
    assert ended.account.answers == {"ok": sum(got)}
    assert ended.account.incomplete == {}
    assert ended.kernel["unmatched"] > 0
    assert {row["fate"] for row in ended.rows()} == {"replayed"}


def test_behind_another_balancer_the_header_names_the_client(lab: Lab, database: Path) -> None:
    cases = (
        ("geo:US", {6}),
        ("geo:GB", {7}),
        ("geo:EU and header:X-Shadow-Test", {7}),
        ("cidr:8.8.0.0/16", {6}),
        ("not (geo:US or geo:europe)", {0, 1, 2, 3, 4, 5}),
    )
    client = {"source": "X-Forwarded-For", "trusted": ["10.77.0.0/16"]}
    ended, got, _ = played(lab, {"geo": {"database": str(database)}, "client": client}, cases)
    assert got == [len(wanted) for _, wanted in cases]
    assert ended.account.skipped["criteria"] > 0 and ended.account.in_flight == 0


def test_no_wanted_request_is_missed_under_load(lab: Lab) -> None:
    """A hundredth of the requests is marked, on connections that they share with others."""
    with running(lab, {"shadows": {"candidate": {"criteria": "header:X-Shadow-Test"}}}) as agent:
        load = lab.saturate_marked(2, every=100, connections=8)
        ended = agent.stop()
        shadow = agent.shadow()
    lost = ended.kernel["ring_full"] + ended.account.dropped.total()
    marked = load.requests // 100
    # wrk counts answers; requests that were on their way when it stopped, one a connection, may be marked too.
    assert marked <= ended.account.seen + lost <= marked + 8
    assert shadow == ended.account.replayed and ended.account.in_flight == 0
    assert ended.kernel["copied"] < 0.1 * ended.kernel["unmatched"]


def test_off_and_on_again(lab: Lab) -> None:
    with running(lab) as agent:
        lab.requests(100)
        agent.await_seen(100)
        assert "disabled" in agent.control("disable")
        copied = agent.metrics().by("kernel_segments_total", "action")["copied"]
        lab.requests(100)
        assert agent.metrics().by("kernel_segments_total", "action")["copied"] == copied
        agent.control("enable", "candidate")
        lab.requests(100)
        ended = agent.stop()
        assert agent.shadow() == 200
    assert (ended.account.seen, ended.account.replayed, ended.account.in_flight) == (200, 200, 0)


def test_a_smaller_percentage_takes_a_part_of_what_the_larger_took(lab: Lab) -> None:
    with running(lab, {"shadows": {"candidate": {"upstreams": []}}, "seed": 7}) as agent:
        for percentage, ppm in (("50", 500_000), ("5%", 50_000), ("0.1", 1000)):
            agent.control("set", f"percentage={percentage}")
            seen, logged = agent.metrics().get("requests_seen_total", shadow="candidate"), agent.logged()
            lab.visits(400)
            clients = (agent.logged() - logged).elements()
            wanted = sum(is_sampled(client, SERVER, ppm, 7) for client in clients)
            agent.await_seen(int(seen) + wanted)
        assert agent.metrics().get("sampled_ratio", shadow="candidate") == 0.001
        assert agent.stop().account.seen == int(seen) + wanted


def test_the_file_is_read_again_on_a_hangup(lab: Lab) -> None:
    with running(lab, {"shadows": {"candidate": {"percentage": 0}}}) as agent:
        lab.requests(20)
        text = agent.config.read_text()
        agent.config.write_text(text.replace('"percentage": 0', '"percentage": 100').replace('"seed": 0', '"seed": 1'))
        agent.process.send_signal(1)
        agent.await_line("was read again")
        lab.requests(20)
        agent.await_seen(20)
        agent.config.write_text("shadows: {candidate: {criteria: 'header:'}}")
        agent.process.send_signal(1)
        agent.await_line("was not taken over")
        lab.requests(20)
        ended = agent.stop()
    assert ended.account.seen == ended.account.replayed == 40


def test_several_shadows_take_their_own(lab: Lab, database: Path) -> None:
    upstreams = [lab.shadow_upstream]
    shadows = {
        "candidate": {"criteria": "path:/api/*"},
        "other": {"criteria": "header:X-Shadow-Test", "upstreams": upstreams},
        "left": {"percentage": 30, "exclusive": "ab", "sample_by": "request", "upstreams": []},
        "right": {"percentage": 70, "exclusive": "ab", "sample_by": "request", "upstreams": []},
    }
    with running(lab, {"shadows": shadows}) as agent:
        for _ in range(10):
            ask_all(lab)
        asked = 10 * len(ASKS)
        metrics = agent.await_seen(asked)
        assert "left" in agent.control("status")
        ended = agent.stop()
        assert agent.shadow() == 10 * (3 + 3)
    skipped = {name: metrics.get("requests_skipped_total", shadow=name, reason="dry_run") for name in ("left", "right")}
    assert skipped["left"] + skipped["right"] == asked and 5 < skipped["left"] < 45
    assert metrics.get("requests_replayed_total", shadow="candidate", answer="ok") == 30
    assert metrics.get("requests_replayed_total", shadow="other", answer="ok") == 30
    assert ended.status == 0
    for name in shadows:
        assert list((agent.recording / name).glob("*.parquet"))


def test_two_agents_with_one_seed_take_the_same_users(lab: Lab) -> None:
    """By a header that users carry along: on other connections, after another start, the same users are taken."""
    taken: list[set[str]] = []
    for percentage in (30, 30, 10):
        shadow = {"percentage": percentage, "sample_by": "header:X-User"}
        with running(lab, {"shadows": {"candidate": shadow}, "seed": 5}) as agent:
            for user in range(60):
                lab.get(f"/missing/{user}", headers={"X-User": f"user-{user}"})
            agent.await_seen(60)
            taken.append({row["target"] for row in agent.stop().rows()})
    assert taken[0] == taken[1] and 8 < len(taken[0]) < 30
    assert set() < taken[2] < taken[0]


def test_how_soon_off_is_off(lab: Lab) -> None:
    """From the command's arrival to the last segment that was copied: the socket's latency is in it."""
    with Agent(lab) as agent, lab.background(lab.saturate, 2.0, connections=8):
        time.sleep(1)
        started_ns = time.time_ns()
        agent.control("disable")
        ended_ns = time.time_ns()
        time.sleep(0.2)
        ended = agent.stop()
    last_ns = max(row["request_t_first_ns"] or 0 for row in ended.rows())
    assert started_ns < last_ns < ended_ns, "nothing was copied after the command had returned"
