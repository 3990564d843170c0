"""Policies: pure until the engine acts, fair by weight, good where upstreams are uneven, and true to keys."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.balancer.hashing import Maglev, Members, random64
from replay.balancer.policy import CREDIT_TURNS, POLICIES, TABLES_KEPT, Ask, Hashed, Policy, Weighted, make_policy
from replay.balancer.settings import BalancerSettings, HashBy
from replay.errors import UpstreamError
from replay.exchange import Request

NAMES = ("round_robin", "weighted", "least_request", "random_two_choices", "random", "ring_hash", "maglev")
HASHED = ("ring_hash", "maglev")


@dataclass(slots=True, eq=False)
class Member:
    """What a policy sees of an upstream."""

    name: str
    effective_weight: float = 1.0
    in_flight: int = 0


def pool(*weights: float) -> list[Member]:
    return [Member(f"192.0.2.{n + 1}:80", float(weight)) for n, weight in enumerate(weights)]


def ask(turn: int = 0, client: str = "203.0.113.7", head: bytes = b"") -> Ask:
    return Ask(Request("GET", "/", 11, head, b"", 0, None, 1, 2), client, turn)


def policy(name: str, **others: object) -> Policy:
    return make_policy(BalancerSettings(policy=name, **others))  # type: ignore[arg-type]


def take(policy: Policy, candidates: Sequence[Member], turns: int, first: int = 0) -> list[str]:
    """Names of those that an engine assigns to, whose requests end at once."""
    names = []
    for turn in range(first, first + turns):
        choice = policy.pick(candidates, ask(turn))
        policy.picked(candidates, choice)
        names.append(choice.name)
    return names


def by_client(policy: Policy, candidates: Sequence[Member], clients: int = 2000) -> list[str]:
    return [policy.pick(candidates, ask(client=f"198.51.{n >> 8}.{n & 255}")).name for n in range(clients)]


members = st.lists(
    st.tuples(st.integers(1, 20).map(float) | st.floats(0.1, 10), st.integers(0, 50)), min_size=1, max_size=8
).map(lambda drawn: [Member(f"192.0.2.{n + 1}:80", *member) for n, member in enumerate(drawn)])
turns = st.integers(0, 1 << 40)


# Names


def test_the_policies_there_are() -> None:
    assert tuple(POLICIES) == NAMES
    assert make_policy(BalancerSettings()) is not make_policy(BalancerSettings())


def test_others_are_told_in_one_line() -> None:
    with pytest.raises(UpstreamError, match=r"^balancer policy 'rr': give one of round_robin, weighted, .*, maglev$"):
        policy("rr")


@pytest.mark.parametrize("hash_by", [HashBy("user"), HashBy("header"), HashBy("cookie", ""), HashBy("")])
@pytest.mark.parametrize("name", HASHED)
def test_a_hash_of_nothing_is_told_in_one_line(name: str, hash_by: HashBy) -> None:
    with pytest.raises(UpstreamError, match="give client, path, header:NAME or cookie:NAME"):
        policy(name, hash_by=hash_by)
    policy("round_robin", hash_by=hash_by)


# Purity


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(members, turns, st.integers(), st.lists(turns, max_size=4))
def test_asking_changes_nothing(name: str, candidates: list[Member], turn: int, seed: int, others: list[int]) -> None:
    """The same answer again, after any other questions, and as in a process that was never asked."""
    seen = [(m.name, m.effective_weight, m.in_flight) for m in candidates]
    asked, fresh = policy(name, seed=seed), policy(name, seed=seed)
    choice = asked.pick(candidates, ask(turn))
    assert choice in candidates
    for other in others:
        asked.pick(candidates[: 1 + other % len(candidates)], ask(other, client=str(other)))
    assert asked.pick(candidates, ask(turn)) is choice
    assert fresh.pick(candidates, ask(turn)) is choice
    assert [(m.name, m.effective_weight, m.in_flight) for m in candidates] == seen


@pytest.mark.parametrize("name", [name for name in NAMES if name != "weighted"])
@settings(max_examples=20, deadline=None)
@given(members, turns, st.data())
def test_only_weighted_has_a_state(name: str, candidates: list[Member], turn: int, data: st.DataObject) -> None:
    told = policy(name)
    choice = told.pick(candidates, ask(turn))
    for _ in range(3):
        told.picked(candidates, data.draw(st.sampled_from(candidates)))
    assert told.pick(candidates, ask(turn)) is choice


def test_weighted_advances_when_it_is_told() -> None:
    candidates, weighted = pool(1, 1), Weighted()
    assert [weighted.pick(candidates, ask(turn)).name for turn in range(3)] == ["192.0.2.1:80"] * 3
    assert take(weighted, candidates, 3) == ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.1:80"]


@pytest.mark.parametrize("name", ["random", "random_two_choices"])
def test_what_is_random_depends_on_the_seed_and_the_turn_alone(name: str) -> None:
    candidates = pool(*[1] * 5)
    one, again, other = (take(policy(name, seed=seed), candidates, 200) for seed in (1, 1, 2))
    assert one == again
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 200 * 0.4
    assert take(policy(name, seed=1), candidates, 50, first=150) == one[150:]


# In turns


def test_round_robin_takes_each_in_its_turn() -> None:
    candidates = pool(1, 9, 1)
    assert take(policy("round_robin"), candidates, 7) == [candidates[n % 3].name for n in range(7)]
    assert take(policy("round_robin"), candidates, 2, first=5) == [candidates[2].name, candidates[0].name]


def test_weighted_picks_as_nginx_does() -> None:
    """The example that nginx gives in the change that brought it."""
    letters = {member.name: letter for member, letter in zip(pool(5, 1, 1), "abc", strict=True)}
    assert "".join(letters[name] for name in take(Weighted(), pool(5, 1, 1), 21)) == "aabacaa" * 3


def test_no_run_is_longer_than_the_order_makes_it() -> None:
    """Of five in seven, four stand in a row where periods meet; the others never do."""
    names = take(Weighted(), pool(5, 1, 1), 700)
    runs = Counter[str]()
    length = 0
    for before, name in zip(["", *names], names, strict=False):
        length = length + 1 if name == before else 1
        runs[name] = max(runs[name], length)
    assert list(runs.values()) == [4, 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_weights_hold_exactly_over_a_period_and_nearly_within(weights: list[int]) -> None:
    """Measured over pools of up to 30: never more than 1.4 requests ahead or behind."""
    candidates, total = pool(*weights), sum(weights)
    counts = Counter[str]()
    for turn, name in enumerate(take(Weighted(), candidates, total), 1):
        counts[name] += 1
        assert all(abs(counts[m.name] - turn * m.effective_weight / total) < 1.5 for m in candidates)
    assert [counts[m.name] for m in candidates] == weights


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_weights_of_any_kind_hold_within_a_hundredth(weights: list[float]) -> None:
    candidates, total = pool(*weights), sum(weights)
    counts = Counter(take(Weighted(), candidates, 1000))
    assert all(abs(counts[m.name] / 1000 - m.effective_weight / total) < 0.01 for m in candidates)


def test_a_growing_weight_has_its_share_at_every_moment() -> None:
    """A slow start: over each hundred turns, what was due by the weights of those turns, to one request and a half."""
    candidates, weighted = pool(1, 1), Weighted()
    for hundred in range(10):
        due, had = 0.0, 0
        for n in range(100):
            candidates[1].effective_weight = max(0.1, (hundred * 100 + n) / 1000)
            due += candidates[1].effective_weight / (1 + candidates[1].effective_weight)
            had += take(weighted, candidates, 1) == [candidates[1].name]
        assert abs(had - due) < 1.5


past = st.lists(
    st.tuples(
        st.lists(st.sampled_from(range(8)), min_size=1, max_size=8, unique=True),
        st.sampled_from([0.1, 0.3, 1.0, 2.0, 50.0, 1000.0]),
        st.integers(1, 40),
        st.none() | st.integers(0, 7),
    ),
    max_size=12,
)


def worst_share(weighted: Weighted, *weights: float) -> float:
    """By how many requests someone is off over the next three periods."""
    candidates = pool(*weights)
    counts = Counter(take(weighted, candidates, int(sum(weights)) * 3))
    return max(abs(counts[m.name] - 3 * m.effective_weight) for m in candidates)


@settings(max_examples=80, deadline=None)
@given(past, st.lists(st.integers(1, 10), min_size=1, max_size=8))
def test_no_past_costs_anyone_more_than_a_few_turns(
    past: list[tuple[list[int], float, int, int | None]], weights: list[int]
) -> None:
    """Members came and went, weights were others, and the engine chose for itself: the shares are right from now on.
    Measured over 4000 pasts: at most 4.7 requests off."""
    weighted = Weighted()
    for who, weight, count, own_choice in past:
        before = [Member(f"192.0.2.{n + 1}:80", weight if n % 3 else 1.0) for n in who]
        for _ in range(count):
            choice = weighted.pick(before, ask()) if own_choice is None else before[own_choice % len(before)]
            weighted.picked(before, choice)
    assert worst_share(weighted, *weights) <= 3 * CREDIT_TURNS


@pytest.mark.parametrize("count", [3, 8])
def test_choices_of_the_engine_are_not_held_against_anyone_for_long(count: int) -> None:
    weighted, candidates = Weighted(), pool(*range(1, count + 1))
    for _ in range(5000):
        weighted.picked(candidates, candidates[0])
    assert worst_share(weighted, *[1] * count) <= 2 * CREDIT_TURNS


@pytest.mark.parametrize("count", [3, 8])
def test_weights_that_shrink_leave_no_debts(count: int) -> None:
    weighted = Weighted()
    take(weighted, pool(*[1000] * count), 5)
    assert worst_share(weighted, *[1] * count) <= 2 * CREDIT_TURNS


@pytest.mark.parametrize("count", [3, 8, 20])
def test_a_newcomer_waits_for_less_than_a_period(count: int) -> None:
    """Also where the others have credit because the engine always took one of them."""
    weighted, candidates = Weighted(), pool(*[1] * count)
    for _ in range(50):
        weighted.picked(candidates[:-1], candidates[0])
    assert candidates[-1].name in take(weighted, candidates, count)


@pytest.mark.parametrize("count", [3, 8])
def test_debts_that_are_taken_along_do_not_add_up(count: int) -> None:
    """Whoever was picked leaves, and comes back without its debt."""
    weighted, candidates = Weighted(), pool(*[1] * count)
    for _ in range(500):
        (picked,) = take(weighted, candidates, 1)
        take(weighted, [m for m in candidates if m.name != picked], 1)
    assert worst_share(weighted, *[1] * count) < 1.5


def test_a_member_that_comes_back_begins_anew() -> None:
    """It neither catches up on what it missed nor pays for what it had."""
    candidates, weighted = pool(1, 1, 1), Weighted()
    take(weighted, candidates, 3)
    take(weighted, candidates[:2], 1000)
    counts = Counter(take(weighted, candidates, 30))
    assert all(abs(n - 10) <= 1 for n in counts.values())


def test_a_choice_that_is_no_candidate_counts_for_nothing() -> None:
    candidates, weighted = pool(5, 1, 1), Weighted()
    for _ in range(10):
        weighted.picked(candidates, Member("198.51.100.1:80"))
    assert take(weighted, candidates, 7) == take(Weighted(), candidates, 7)


# By load


def test_the_least_loaded_is_picked() -> None:
    candidates = pool(1, 1, 1)
    candidates[0].in_flight, candidates[1].in_flight, candidates[2].in_flight = 3, 1, 2
    assert {policy("least_request").pick(candidates, ask(turn)) for turn in range(9)} == {candidates[1]}


def test_load_is_for_each_1_of_weight() -> None:
    candidates = pool(1, 4)
    candidates[1].in_flight = 2  # three quarters, this request included
    assert policy("least_request").pick(candidates, ask()) is candidates[1]
    assert policy("random_two_choices").pick(candidates, ask()) is candidates[1]
    candidates[1].in_flight = 4
    assert policy("least_request").pick(candidates, ask()) is candidates[0]
    assert policy("random_two_choices").pick(candidates, ask()) is candidates[0]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_an_idle_pool_is_used_evenly(count: int) -> None:
    counts = Counter(take(policy("least_request"), pool(*[1] * count), count * 10))
    assert list(counts.values()) == [10] * count


def test_equals_take_turns_wherever_they_stand() -> None:
    candidates = pool(*[1] * 5)
    candidates[1].in_flight = candidates[2].in_flight = 1
    counts = Counter(take(policy("least_request"), candidates, 30))
    assert counts == {candidates[n].name: 10 for n in (0, 3, 4)}


@settings(max_examples=60)
@given(members, turns)
def test_the_most_loaded_is_never_the_better_of_two(candidates: list[Member], turn: int) -> None:
    """Two different ones are looked at: who is more loaded than all others is only picked where it is alone."""
    most = max(candidates, key=lambda m: (m.in_flight + 1) / m.effective_weight)
    most.in_flight += 1000
    assert len(candidates) == 1 or policy("random_two_choices").pick(candidates, ask(turn)) is not most


@pytest.mark.parametrize("name", ["random", "random_two_choices"])
def test_random_choices_are_even_in_an_idle_pool(name: str) -> None:
    """Four standard deviations."""
    counts = Counter(take(policy(name), pool(*[1] * 5), 5000))
    assert all(abs(n - 1000) < 4 * 800**0.5 for n in counts.values())
    assert len(counts) == 5


def test_all_pairs_are_looked_at() -> None:
    """Of loads 0 to 4, the one at place n wins against those behind it: 4, 3, 2, 1 and 0 of ten pairs."""
    candidates = pool(*[1] * 5)
    for n, member in enumerate(candidates):
        member.in_flight = n
    counts = Counter(take(policy("random_two_choices"), candidates, 5000))
    assert [round(counts[m.name] / 500) for m in candidates] == [4, 3, 2, 1, 0]


def wait_p99_and_peak(name: str, services_ms: Sequence[float], rate_per_ms: float, seed: int) -> tuple[float, int]:
    """Requests come at random to upstreams that serve one after the other: how long all but a hundredth wait (ms) at
    most, and how many were in flight at one."""
    candidates, policed = pool(*[1] * len(services_ms)), policy(name, seed=seed)
    free_ms, ends, waits, peak, now_ms = [0.0] * len(candidates), list[tuple[float, int]](), list[float](), 0, 0.0
    for turn in range(3000):
        now_ms -= log((random64(seed + 99, turn) + 1) / 2**64) / rate_per_ms
        while ends and ends[0][0] <= now_ms:
            candidates[heapq.heappop(ends)[1]].in_flight -= 1
        choice = policed.pick(candidates, ask(turn))
        policed.picked(candidates, choice)
        n = candidates.index(choice)
        waits.append(max(0.0, free_ms[n] - now_ms))
        free_ms[n] = now_ms + waits[-1] + services_ms[n]
        choice.in_flight += 1
        peak = max(peak, choice.in_flight)
        heapq.heappush(ends, (free_ms[n], n))
    return sorted(waits)[int(len(waits) * 0.99)], peak


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("slow_ms", "rate_per_ms"), [(30, 0.15), (50, 0.3)], ids=["busy", "too slow"])
def test_policies_that_see_the_load_keep_off_a_slow_upstream(seed: int, slow_ms: float, rate_per_ms: float) -> None:
    """Four upstreams take 10 ms, one takes longer. Measured over 12 seeds, as 99 % of waits in ms and the peak at one:

    busy      random 133 to 547, 12 to 25    two choices 21 to 25, 3    least request 5 to 9, 2
    too slow  random 17 to 20 s, 361 to 426  two choices 85 to 96, 4 to 5  least request 43 to 49, 3 to 4
    """
    found = {
        name: wait_p99_and_peak(name, [10, 10, slow_ms, 10, 10], rate_per_ms, seed)
        for name in ("random", "random_two_choices", "least_request")
    }
    (random_ms, random_peak), (two_ms, two_peak), (least_ms, least_peak) = found.values()
    assert least_ms < two_ms < random_ms / 4, found
    assert least_peak <= two_peak < random_peak / 2, found


# By key


@pytest.mark.parametrize("name", HASHED)
@pytest.mark.parametrize(
    ("hash_by", "one", "same", "other"),
    [
        (HashBy(), ask(1, "192.0.2.9"), ask(2, "192.0.2.9", b"x"), [ask(1, f"192.0.2.{n}") for n in range(40)]),
        (
            HashBy("header", "X-User"),
            ask(1, head=b"GET / HTTP/1.1\r\nX-User: 1\r\n\r\n"),
            ask(2, "", b"GET / HTTP/1.1\r\nx-user:1\r\n\r\n"),
            [ask(1, head=b"GET / HTTP/1.1\r\nX-User: %d\r\n\r\n" % n) for n in range(40)],
        ),
        (
            HashBy("cookie", "id"),
            ask(1, head=b"GET / HTTP/1.1\r\nCookie: id=1\r\n\r\n"),
            ask(2, "", b'GET / HTTP/1.1\r\nCookie: x=y; id="1"\r\n\r\n'),
            [ask(1, head=b"GET / HTTP/1.1\r\nCookie: id=%d\r\n\r\n" % n) for n in range(40)],
        ),
    ],
    ids=["client", "header", "cookie"],
)
def test_one_key_goes_one_way(name: str, hash_by: HashBy, one: Ask, same: Ask, other: list[Ask]) -> None:
    candidates, hashed = pool(1, 1, 1), policy(name, hash_by=hash_by)
    assert hashed.pick(candidates, one) is hashed.pick(candidates, same)
    assert len({hashed.pick(candidates, each).name for each in other}) == 3


@pytest.mark.parametrize("name", HASHED)
@pytest.mark.parametrize("hash_by", [HashBy(), HashBy("header", "X-User"), HashBy("cookie", "id")])
def test_requests_without_the_key_are_spread_by_weight(name: str, hash_by: HashBy) -> None:
    candidates, hashed = pool(2, 1, 1), policy(name, hash_by=hash_by)
    head = b"GET / HTTP/1.1\r\nCookie: a=b\r\nX-User:\r\n\r\n"
    counts = Counter(hashed.pick(candidates, ask(turn, "", head)).name for turn in range(4000))
    for member in candidates:
        assert abs(counts[member.name] / (1000 * member.effective_weight) - 1) < 0.2


@pytest.mark.parametrize("name", HASHED)
def test_a_member_that_comes_back_has_its_keys_again(name: str) -> None:
    """While it is away, keys of others stay with a ring, and nearly so with Maglev: measured 0.0055 of all."""
    candidates, hashed = pool(1, 2, 1, 1), policy(name)
    before = by_client(hashed, candidates)
    for away in candidates:
        left = [member for member in candidates if member is not away]
        now = by_client(hashed, left)
        moved = sum(b != n for b, n in zip(before, now, strict=True) if b != away.name)
        assert moved == 0 if name == "ring_hash" else moved <= 0.015 * len(before)
    assert by_client(hashed, candidates) == before
    assert by_client(policy(name), candidates) == before, "as in a process that saw none of this"


@pytest.mark.parametrize("name", HASHED)
def test_another_pool_is_another_table(name: str) -> None:
    hashed, others = policy(name), [Member(f"198.51.100.{n}:80") for n in range(3)]
    before = by_client(hashed, pool(1, 1, 1), 100)
    assert set(by_client(hashed, others)) == {member.name for member in others}
    assert by_client(hashed, pool(1, 1, 1), 100) == before


@pytest.mark.parametrize("name", HASHED)
def test_pools_with_other_seeds_are_other_tables(name: str) -> None:
    one, other = (by_client(policy(name, seed=seed), pool(*[1] * 5)) for seed in (1, 2))
    assert 0.1 < sum(a == b for a, b in zip(one, other, strict=True)) / len(one) < 0.3


@pytest.mark.parametrize("name", HASHED)
@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=10), st.text(max_size=20), turns)
def test_any_request_is_taken(name: str, head: bytes, field: str, client: str, turn: int) -> None:
    candidates = pool(1, 1)
    for what in ("client", "path", "header", "cookie"):
        hashed = policy(name, hash_by=HashBy(what, field or "x"))
        assert hashed.pick(candidates, ask(turn, client, head)) in candidates


def test_a_slow_start_makes_few_tables() -> None:
    """Not one for each request: 13 while a weight grows from a tenth to 1."""
    made: list[Members] = []
    same = Maglev([("192.0.2.1:80", 1.0)], 0)

    def table(members: Members) -> Maglev:
        made.append(members)
        return same

    hashed, candidates = Hashed(table, BalancerSettings()), pool(1, 1, 1)
    for n in range(100, 1001):
        candidates[2].effective_weight = n / 1000
        hashed.pick(candidates, ask())
    assert len(set(made)) == 13
    assert made[-1] == tuple((member.name, 1.0) for member in candidates)


def test_tables_are_kept_for_members_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counter[int]()
    build = Maglev.__init__

    def count(self: Maglev, members: Members, seed: int) -> None:
        made[len(members)] += 1
        build(self, members, seed)

    monkeypatch.setattr(Maglev, "__init__", count)
    candidates, hashed = pool(*[1] * 6), policy("maglev")
    for n in range(60):
        hashed.pick(candidates, ask())
        hashed.pick([m for m in candidates if m is not candidates[n % 6]], ask())
    assert made == {6: 1, 5: 6}
    assert sum(made.values()) < TABLES_KEPT
