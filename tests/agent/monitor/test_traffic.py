"""Live figures: what comes in any batches is counted once, in bounded room, and what is older than a minute goes."""

from __future__ import annotations

import itertools
import json
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.messages import fits
from agent.monitor import traffic as module
from agent.monitor.traffic import BATCH, BOUNDS_NS, LONGEST_NS, ROUTES_LIMIT, SIDES, Sample, Traffic

SECOND = 1_000_000_000
MS = 1_000_000
NOW = 1_000 * SECOND
OK = Sample("GET /", 3 * MS, 4 * MS, 5 * MS, 1 * MS, False, False, False, 200, 200)

TIMES = st.integers(-1000, 20 * SECOND)
SAMPLES = st.builds(
    Sample,
    st.sampled_from(["GET /", "GET /x", "POST /", "other"]),
    TIMES, TIMES, TIMES, TIMES,
    st.booleans(), st.booleans(), st.sampled_from([True, False, None]), st.just(200), st.just(200),
)  # fmt: skip


def counted(values: list[int]) -> list[int]:
    """Counts by bucket, the slow and plain way."""
    return [
        sum(low < value <= high for value in values)
        for low, high in zip((-1, *BOUNDS_NS), (*BOUNDS_NS, float("inf")), strict=True)
    ]


def expected(samples: list[Sample]) -> dict[str, Any]:
    """What a route's figures must be."""
    times = {
        "production": [max(each.production_ns, 0) for each in samples],
        "shadow": [max(each.shadow_ns, 0) for each in samples],
        "shadow_response": [max(each.response_ns, 0) for each in samples],
    }
    return {
        "counts": {side: counted(values) for side, values in times.items()},
        "sum_ns": {side: sum(values) for side, values in times.items()},
        "production_error": sum(each.production_error for each in samples),
        "shadow_error": sum(each.shadow_error for each in samples),
        "compared": sum(each.different is not None for each in samples),
        "different": sum(each.different is True for each in samples),
        "lost": 0,
    }


def test_buckets_cover_what_is_met_in_24_steps() -> None:
    assert len(BOUNDS_NS) == 24
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (200_000, 10 * SECOND)
    factors = [high / low for low, high in itertools.pairwise(BOUNDS_NS)]
    assert 1.59 < min(factors) <= max(factors) < 1.61


@given(st.lists(st.lists(SAMPLES, max_size=30), max_size=6))
@settings(max_examples=50, deadline=None)
def test_every_pair_is_counted_once_in_any_batches(batches: list[list[Sample]]) -> None:
    made = Traffic()
    for batch in batches:
        made.add(batch)
    found = made.as_json()
    everything = [each for batch in batches for each in batch]
    routes = {each.route for each in everything}
    assert found["routes"] == {name: expected([each for each in everything if each.route == name]) for name in routes}
    assert found["lag"]["count"] == len(everything)
    assert found["lag"]["sum_ns"] == sum(max(each.lag_ns, 0) for each in everything)


def test_many_pairs_are_counted_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Traffic()
    for _ in range(5):
        made.add([OK] * (BATCH // 2))
        assert len(made._waiting) < BATCH
    assert made.as_json()["routes"]["GET /"]["counts"]["production"][counted([3 * MS]).index(1)] == 5 * BATCH // 2


def test_a_bound_belongs_to_its_bucket() -> None:
    made = Traffic()
    made.add([OK._replace(production_ns=BOUNDS_NS[5]), OK._replace(production_ns=BOUNDS_NS[5] + 1)])
    counts = made.as_json()["routes"]["GET /"]["counts"]["production"]
    assert counts[4:8] == [0, 1, 1, 0]


def test_routes_beyond_the_limit_are_other() -> None:
    made = Traffic()
    made.add([OK._replace(route=f"GET /{n}") for n in range(ROUTES_LIMIT + 5)])
    made.add([OK._replace(route="GET /0"), OK._replace(route=f"GET /{ROUTES_LIMIT + 1}")])
    routes = made.as_json()["routes"]
    assert list(routes) == [f"GET /{n}" for n in range(ROUTES_LIMIT)] + ["other"]
    assert sum(routes["GET /0"]["counts"]["shadow"]) == 2
    assert sum(routes["other"]["counts"]["shadow"]) == 6


def test_names_of_routes_are_bounded_and_printable() -> None:
    made = Traffic()
    made.add([OK._replace(route="GET /" + "a" * 1000), OK._replace(route="GET /" + "a" * 2000)])
    made.add([OK._replace(route="GET /\x1b[2J")])
    names = list(made.as_json()["routes"])
    assert [len(name) for name in names] == [module.ROUTE_LIMIT_CHARS, 9]
    assert names[1] == "GET /?[2J"


def test_lost_requests_are_counted_by_reason_and_route() -> None:
    made = Traffic()
    for n in range(40):
        made.lose("GET /", f"reason {n}")
    made.lose("GET /y", "reason 0")
    found = made.as_json()
    assert found["lost"]["reason 0"] == 2
    assert found["lost"]["other"] == 40 - module.REASONS_LIMIT
    assert (found["routes"]["GET /"]["lost"], found["routes"]["GET /y"]["lost"]) == (40, 1)
    assert made.recent(NOW)["lost_per_s"] == 41


def test_what_is_full_still_fits_a_message() -> None:
    made = Traffic()
    names = [f"GET /{n}/" + "\N{GRINNING FACE}" * 200 for n in range(ROUTES_LIMIT)]
    made.add([OK._replace(route=name) for name in names] + [OK._replace(route="GET /more")])
    for n in range(40):
        made.lose("GET /", f"incomplete of a kind with a long name {n}")
    made._counts += 10**12
    made._sums += 10**18
    made._flags += 10**12
    message = made.as_json()
    assert len(message["routes"]) == ROUTES_LIMIT + 1
    assert len(json.dumps(message)) < 100_000
    assert fits({"traffic": "candidate", "totals": message, "recent": made.recent(NOW)})


def test_absurd_times_leave_the_sums_sound() -> None:
    made = Traffic()
    made.add([OK._replace(shadow_ns=2**63 - 1, lag_ns=-(2**63))] * 100)
    assert made.as_json()["routes"]["GET /"]["sum_ns"]["shadow"] == 100 * LONGEST_NS


def test_nothing_yet() -> None:
    found = Traffic().as_json()
    assert (found["routes"], found["lost"], found["lag"]["p99_ns"]) == ({}, {}, None)
    side = {"p50_ns": None, "p90_ns": None, "p99_ns": None}
    recent = Traffic().recent(NOW)
    assert recent["shadow"] == side | {"requests_per_s": 0, "error_share": None}
    assert recent["different_share"] is None


def test_recent_quantiles_are_within_a_hundredth() -> None:
    made = Traffic()
    chance = random.Random(4)
    samples = [
        OK._replace(
            production_ns=int(chance.lognormvariate(15.4, 0.6)),
            shadow_ns=int(chance.lognormvariate(15.6, 0.8)),
            response_ns=int(chance.lognormvariate(16, 0.9)),
            lag_ns=int(chance.expovariate(1e-6)),
        )
        for _ in range(5000)
    ]
    for n in range(0, 5000, 100):
        made.add(samples[n : n + 100])
        found = made.recent(NOW + n * SECOND // 100)
    for side, column in zip(SIDES, list(zip(*samples, strict=True))[1:4], strict=True):
        for name, q in (("p50_ns", 50), ("p90_ns", 90), ("p99_ns", 99)):
            true = float(np.percentile(column, q, method="inverted_cdf"))
            assert found[side][name] == pytest.approx(true, rel=0.0105)
    true = float(np.percentile([each.lag_ns for each in samples], 99, method="inverted_cdf"))
    assert made.lag_p99_ns() == found["lag_p99_ns"] == pytest.approx(true, rel=0.0105)


def test_recent_rates_and_shares() -> None:
    made = Traffic()
    for second in range(20):
        made.add([OK] * 6 + [OK._replace(shadow_error=True, different=None)] * 2)
        made.add([OK._replace(production_error=True, different=True)] * 2)
        made.lose("GET /", "dropped")
        found = made.recent(NOW + second * SECOND)
    assert found["seconds"] == 20
    assert (found["production"]["requests_per_s"], found["shadow"]["requests_per_s"]) == (10, 10)
    assert (found["production"]["error_share"], found["shadow"]["error_share"]) == (0.2, 0.2)
    assert found["different_share"] == 0.25
    assert found["lost_per_s"] == 1


def test_rates_of_a_long_run_are_of_the_last_minute() -> None:
    made = Traffic()
    for second in range(200):
        made.add([OK] * 7)
        found = made.recent(NOW + second * SECOND)
    assert found["seconds"] == pytest.approx(64, abs=1)
    assert found["shadow"]["requests_per_s"] == pytest.approx(7, rel=0.03)
    assert len(made._recent._slots) == module.SLOTS + 1


def median(made: Traffic, after_s: float) -> Any:
    return made.recent(NOW + int(after_s * SECOND))["shadow"]["p50_ns"]


def test_after_a_minute_it_is_forgotten_but_in_the_totals() -> None:
    made = Traffic()
    made.add([OK] * 50)
    assert median(made, 0) == pytest.approx(4 * MS, rel=0.01)
    made.add([OK._replace(shadow_ns=40 * MS)] * 2)
    assert median(made, 61) == median(made, 64) == pytest.approx(4 * MS, rel=0.01)
    assert median(made, 65) == pytest.approx(40 * MS, rel=0.01)
    assert made.lag_p99_ns() is not None
    assert median(made, 300) is None
    assert made.lag_p99_ns() is None
    assert sum(made.as_json()["routes"]["GET /"]["counts"]["shadow"]) == 52


def test_a_rate_after_silence_is_over_the_whole_minute() -> None:
    made = Traffic()
    made.add([OK] * 60)
    made.recent(NOW)
    assert made.recent(NOW + 59 * SECOND)["shadow"]["requests_per_s"] == 1


def test_when_the_clock_is_set_the_minute_begins_anew() -> None:
    made = Traffic()
    made.add([OK] * 60)
    made.recent(NOW)
    made.add([OK] * 5)
    back = made.recent(NOW - 3600 * SECOND)
    assert (back["seconds"], back["shadow"]["requests_per_s"]) == (1, 5)
    assert made.recent(NOW + 3600 * SECOND)["shadow"]["requests_per_s"] == 0


def test_3500_pairs_a_second_cost_little() -> None:
    """Measured are 3 ms; the bound is wide, since other programs share the machine."""
    chance = random.Random(1)
    samples = [
        OK._replace(route=f"GET /{chance.randrange(40)}", production_ns=chance.randrange(10**7)) for _ in range(3500)
    ]
    made, taken = Traffic(), []
    for second in range(8):
        began = time.process_time()
        for n in range(0, 3500, 100):
            made.add(samples[n : n + 100])
        made.recent(NOW + second * SECOND)
        taken.append(time.process_time() - began)
    assert min(taken) < 0.012
