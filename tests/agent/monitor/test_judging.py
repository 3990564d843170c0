"""One shadow's judge: its period outlives restarts and nothing else, its words fit a message, noise is no fault."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import messages
from agent.monitor import judging
from agent.monitor.judging import LATE_S, ShadowJudge, judge_settings, reference, shortened, write_whole
from agent.monitor.noise import ECHOES_NEEDED
from agent.monitor.pairs import LostRecord, PairRecord
from agent.watch_config import Judging
from replay.judge import DEFAULT_PLANS, Judge, Pair

S, MS = 1_000_000_000, 1_000_000
LONG_AGO_NS = 1_700_000_000 * S
ROUTE = "GET /items/{id}"


def an_order(fingerprint: str = "f1", fresh: bool = False, **settings: Any) -> dict[str, Any]:
    return {
        "shadow": "candidate",
        "fingerprint": fingerprint,
        "fresh": fresh,
        "timeout_s": 1.0,
        "settings": Judging.model_validate(settings).settings(),
    }


def a_pair(at_ns: int, production_ns: int = 10 * MS, shadow_ns: int = 10 * MS, **fields: Any) -> PairRecord:
    record = PairRecord(
        0, at_ns, ROUTE, production_ns, shadow_ns, shadow_ns, 0, False, False, None, None, False, 200, 200, "ok", 7, 2,
        "/items/4711?page=2",
    )  # fmt: skip
    return record._replace(**fields)


def pairs(
    count: int, start_ns: int = LONG_AGO_NS, rate: int = 200, factor: float = 1.0, seed: int = 1
) -> Iterator[PairRecord]:
    chance = random.Random(seed)
    for number in range(count):
        production, shadow = (int(10 * MS * chance.lognormvariate(0, 0.3)) for _ in range(2))
        yield a_pair(start_ns + (number + 1) * S // rate, production, int(shadow * factor), position=number)


def begun(directory: Path | None = None, order: dict[str, Any] | None = None, now_ns: int = LONG_AGO_NS) -> ShadowJudge:
    judge = ShadowJudge("candidate", directory)
    judge.begin(order or an_order(), now_ns)
    return judge


def verdict(judge: ShadowJudge) -> dict[str, Any]:
    message = judge.message()
    assert message is not None
    found: dict[str, Any] = message["verdict"]
    return found


def finding(judge: ShadowJudge, metric: str, route: str = "all") -> dict[str, Any]:
    found: list[dict[str, Any]] = verdict(judge)["findings"]
    return next(each for each in found if each["metric"] == metric and each["route"] == route)


def with_evidence(directory: Path | None = None, start_ns: int = LONG_AGO_NS) -> ShadowJudge:
    """Twenty seconds of a slow shadow."""
    judge = begun(directory, now_ns=start_ns)
    judge.take(pairs(4000, start_ns, factor=1.5))
    judge.advance(start_ns + 20 * S, 0)
    return judge


# Settings


def test_without_floors_the_plans_are_those_of_the_judge() -> None:
    settings = judge_settings(Judging().settings())
    assert settings.plans == DEFAULT_PLANS
    assert (settings.warn_alpha, settings.rollback_alpha, settings.pass_alpha) == (0.05, 0.001, 0.05)
    assert (settings.block_ns, settings.longest_block_ns, settings.least_blocks) == (S, 30 * S, 8)


def test_floors_in_per_cent_become_plans() -> None:
    floors = {
        "latency": {"warn": 5, "rollback": 20, "margin": 25},
        "errors": {"warn": 0.1, "rollback": 0.5, "margin": 2},
        "memory": {"warn": 1, "rollback": 2, "margin": 3},
    }
    plans = {plan.name: plan for plan in judge_settings(Judging.model_validate({"metrics": floors}).settings()).plans}
    latency, errors, memory = (plans[name] for name in floors)
    shares = [math.expm1(each) for each in (latency.warn, latency.rollback, latency.margin)]
    assert shares == pytest.approx([0.05, 0.2, 0.25])
    assert (errors.warn, errors.rollback, errors.margin) == pytest.approx((0.001, 0.005, 0.02))
    assert (memory.warn, memory.rollback, memory.margin) == pytest.approx((0.01, 0.02, 0.03))
    assert [plans[plan.name] for plan in DEFAULT_PLANS if plan.name not in floors] == [
        plan for plan in DEFAULT_PLANS if plan.name not in floors
    ]
    assert (latency.weight, latency.required, latency.kind) == (0.3, True, DEFAULT_PLANS[0].kind)


def test_every_configuration_that_is_accepted_makes_settings() -> None:
    """As far as its limits go; the judge has rules of its own."""
    for percent in ({"warn": 0, "rollback": 0, "margin": 1e-3}, {"warn": 4, "rollback": 1000, "margin": 4.99}):
        metrics = {plan.name: percent for plan in DEFAULT_PLANS}
        for block_s in (0.2, 30):
            for alpha in (1e-9, 0.999):
                given = {"metrics": metrics, "block_s": block_s, "warn_alpha": alpha, "rollback_alpha": alpha}
                judge_settings(Judging.model_validate(given).settings(1 / 64))


def test_a_part_of_the_error_rates_is_not_taken_from_the_pass() -> None:
    settings = judge_settings(Judging().settings(0.25))
    assert (settings.warn_alpha, settings.rollback_alpha, settings.pass_alpha) == (0.0125, 0.00025, 0.05)


# A period


def test_before_its_first_order_it_says_and_takes_nothing() -> None:
    judge = ShadowJudge("candidate", None)
    judge.take([a_pair(LONG_AGO_NS)])
    judge.measure("cpu", 0.1, LONG_AGO_NS)
    judge.advance(LONG_AGO_NS, 0)
    judge.restart(LONG_AGO_NS)
    judge.keep()
    assert judge.message() is None and judge.problem == ""


def test_what_came_before_the_period_is_not_part_of_it() -> None:
    judge = begun(now_ns=LONG_AGO_NS + 10 * S)
    judge.take(pairs(4000), [LostRecord(0, LONG_AGO_NS, ROUTE, "dropped", "gap", 0, 200, 7, 2, "/")] * 500)
    judge.advance(LONG_AGO_NS + 30 * S, 0)
    assert verdict(judge)["pairs"] <= 2001 and verdict(judge)["lost_share"] == 0.0
    assert judge.message() | {"verdict": 0, "noisy_routes": 0} == {
        "judged": "candidate",
        "fingerprint": "f1",
        "period_started_ns": LONG_AGO_NS + 10 * S,
        "noisy_routes": 0,
        "verdict": 0,
    }


def test_a_block_is_tested_when_the_workers_know_all_fates_or_nothing_may_be_open_any_more() -> None:
    judge = begun()
    judge.take(pairs(2000))
    judge.advance(LONG_AGO_NS + int(LATE_S * S), 0)
    assert verdict(judge)["blocks"] == 0
    judge.advance(LONG_AGO_NS + 4 * S, LONG_AGO_NS + 4 * S)
    early = verdict(judge)["blocks"]
    judge.advance(LONG_AGO_NS + 10 * S, LONG_AGO_NS)
    assert 0 < early < verdict(judge)["blocks"] <= 10 - 1 - LATE_S


def test_a_slow_shadow_fails_with_examples_that_can_be_found() -> None:
    judge = with_evidence()
    latency = finding(judge, "latency")
    assert (verdict(judge)["word"], latency["word"]) == ("fail", "fail")
    assert latency["effect"] == pytest.approx(math.log(1.5), abs=0.1)
    assert len(latency["examples"]) == judging.EXAMPLES_TOLD
    assert latency["examples"][0]["reference"].startswith("GET /items/4711?page=2 -> 200 / 200 (connection 7, request ")


def test_numbers_of_the_pools_are_judged_as_well() -> None:
    judge = begun()
    for second in range(60):
        judge.measure("cpu", math.log(1.5) + second % 3 / 100, LONG_AGO_NS + second * S)
    assert finding(judge, "cpu")["word"] == "fail"


def test_lost_requests_make_the_verdict_inconclusive() -> None:
    judge = begun()
    lost = [
        LostRecord(0, each.at_ns, ROUTE, "dropped", "queue_full", 0, 200, 7, 2, "/") for each in pairs(400, rate=20)
    ]
    judge.take(pairs(4000, factor=1.5), lost)
    judge.advance(LONG_AGO_NS + 20 * S, 0)
    assert verdict(judge)["word"] == "inconclusive"
    assert "of the requests were lost" in verdict(judge)["problem"]


def test_records_that_a_worker_had_no_room_for_are_lost_requests() -> None:
    """However many they are; those of before the period are not."""
    judge = begun()
    judge.lose_unsent(10**12, LONG_AGO_NS - 1)
    judge.lose_unsent(0, LONG_AGO_NS)
    judge.take(pairs(4000))
    judge.advance(LONG_AGO_NS + 10 * S, 0)
    assert verdict(judge)["lost_share"] == 0.0 and verdict(judge)["problem"] == ""
    judge.lose_unsent(10**12, LONG_AGO_NS + 12 * S)
    judge.advance(LONG_AGO_NS + 22 * S, 0)
    assert verdict(judge)["lost_share"] > 0.999 and "were lost" in verdict(judge)["problem"]
    ShadowJudge("candidate", None).lose_unsent(1, LONG_AGO_NS)


def test_pairs_that_come_after_their_block_was_tested_are_lost_ones() -> None:
    judge = begun()
    every = list(pairs(4000))
    judge.take(every[::2])
    judge.advance(LONG_AGO_NS + 10 * S, LONG_AGO_NS + 10 * S)
    judge.take(every[1::2])
    judge.advance(LONG_AGO_NS + 30 * S, LONG_AGO_NS + 30 * S)
    assert verdict(judge)["left_out"]["late"] > 800
    assert "of the requests were lost" in verdict(judge)["problem"]


@pytest.mark.parametrize("to_s", [0, 12])
def test_what_a_pause_cuts_is_left_out_alike_of_both_sides(to_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirroring pauses at 10 s; who had not answered by then is not known of production."""
    from_ns = LONG_AGO_NS + 10 * S
    judge = begun()
    judge.paused(from_ns, to_s and LONG_AGO_NS + to_s * S)
    taken: list[Pair] = []
    monkeypatch.setattr(Judge, "add", lambda _, pair: taken.append(pair))
    for at_ns, left_out in ((from_ns - 3 * S, False), (from_ns - S // 2, True), (from_ns + S, True)):
        for production_ns, shadow_ns in ((S, 10 * MS), (10 * MS, S)):
            taken.clear()
            judge.take([a_pair(at_ns, production_ns, shadow_ns)])
            assert (taken == []) == left_out
    taken.clear()
    judge.take([a_pair(from_ns - S // 2), a_pair(from_ns + 3 * S)])
    assert len(taken) == (2 if to_s else 1)


def test_a_request_without_an_answer_is_referred_to_by_the_reason() -> None:
    record = a_pair(0, status=200, shadow_status=0, answer="timeout")
    assert reference(record) == "GET /items/4711?page=2 -> 200 / timeout (connection 7, request 2)"
    record = a_pair(0, status=0, production_error=True)
    assert reference(record) == "GET /items/4711?page=2 -> no answer / 200 (connection 7, request 2)"


# Restarts


def test_the_period_goes_on_after_a_restart(tmp_path: Path) -> None:
    before = with_evidence(tmp_path)
    before.keep()
    after = ShadowJudge("candidate", tmp_path)
    assert after.begin(an_order(), time.time_ns()) == "goes on with the evidence kept"
    assert after.message() == before.message()
    more = list(pairs(2000, LONG_AGO_NS + 20 * S, factor=1.5))
    for judge in (before, after):
        judge.take(more)
        judge.advance(LONG_AGO_NS + 32 * S, 0)
    assert verdict(after)["blocks"] > 20
    assert finding(after, "latency")["log_e"]["warn"] > 3


def test_what_is_known_of_noise_is_kept_too(tmp_path: Path) -> None:
    before = begun(tmp_path)
    before.take([a_pair(LONG_AGO_NS + n, different=True, noisy=True) for n in range(ECHOES_NEEDED)])
    before.keep()
    after = begun(tmp_path, now_ns=time.time_ns())
    message = after.message()
    assert message is not None and message["noisy_routes"] == [ROUTE]


@pytest.mark.parametrize(
    "order",
    [
        an_order("f2"),
        an_order(fresh=True),
        an_order(warn_alpha=0.01),
        an_order(metrics={"latency": {"warn": 3, "rollback": 20, "margin": 20}}),
    ],
)
def test_it_begins_anew_when_something_else_is_judged(tmp_path: Path, order: dict[str, Any]) -> None:
    with_evidence(tmp_path).keep()
    judge = ShadowJudge("candidate", tmp_path)
    assert judge.begin(order, LONG_AGO_NS + 99 * S) == ""
    assert (verdict(judge)["blocks"], judge.started_ns) == (0, LONG_AGO_NS + 99 * S)


def test_what_was_begun_anew_is_not_brought_back_by_a_crash(tmp_path: Path) -> None:
    with_evidence(tmp_path).keep()
    begun(tmp_path, an_order(fresh=True), LONG_AGO_NS + 99 * S)  # and the process dies before it keeps anything
    assert verdict(begun(tmp_path, now_ns=time.time_ns()))["blocks"] == 0
    with_evidence(tmp_path).keep()
    begun(tmp_path).restart(time.time_ns())  # the clock was set
    assert verdict(begun(tmp_path, now_ns=time.time_ns()))["blocks"] == 0


def test_shadows_have_files_of_their_own(tmp_path: Path) -> None:
    with_evidence(tmp_path).keep()
    other = ShadowJudge("other", tmp_path)
    assert other.begin(an_order(), LONG_AGO_NS) == "" and verdict(other)["blocks"] == 0


def test_without_a_directory_nothing_is_kept() -> None:
    judge = with_evidence()
    judge.keep()
    assert judge.begin(an_order(), LONG_AGO_NS) == "" and verdict(judge)["blocks"] == 0


@pytest.mark.parametrize(
    ("started_ns", "last_ns"), [(3600 * S, 3600 * S), (-3600 * S, 60 * S)], ids=["before it began", "before it ended"]
)
def test_it_begins_anew_when_the_clock_was_set_back_meanwhile(tmp_path: Path, started_ns: int, last_ns: int) -> None:
    now_ns = time.time_ns()
    before = begun(tmp_path, now_ns=now_ns + started_ns)
    before.take(pairs(400, now_ns + last_ns))
    before.advance(now_ns + last_ns + 10 * S, 0)
    before.keep()
    judge = ShadowJudge("candidate", tmp_path)
    assert judge.begin(an_order(), now_ns) == ""
    judge.take(pairs(4000, now_ns))
    judge.advance(now_ns + 20 * S, 0)
    assert verdict(judge)["blocks"] > 10 and verdict(judge)["left_out"] == {}


DAMAGES: list[bytes | None] = [
    b"", b"{", b"null", b"[]", b"{}", b"3", b'"text"', b"\xff\xfe", b"\0" * 4096, b"[" * 200_000, b"9" * 10_000, None,
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGES, ids=lambda content: repr(content)[:12])
def test_a_damaged_file_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "judge-candidate.json"
    path.mkdir() if content is None else path.write_bytes(content)
    judge = ShadowJudge("candidate", tmp_path)
    assert judge.begin(an_order(), LONG_AGO_NS) == ""
    judge.take(pairs(4000))
    judge.advance(LONG_AGO_NS + 20 * S, 0)
    assert verdict(judge)["blocks"] > 10
    judge.keep()
    assert judge.problem == ("" if content is not None else f"{path}: Is a directory: the judge's evidence is not kept")


def test_a_file_that_was_cut_anywhere_is_none(tmp_path: Path) -> None:
    with_evidence(tmp_path).keep()
    path = tmp_path / "judge-candidate.json"
    whole = path.read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:end])
        assert ShadowJudge("candidate", tmp_path).begin(an_order(), LONG_AGO_NS) == ""


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON; of a list the first."""
    yield way
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*way, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*way, 0))


@pytest.mark.parametrize("other", [None, "x", -1, [], math.inf, 10**400], ids=lambda other: repr(other)[:12])
def test_whatever_stands_in_the_file_the_judge_begins_and_speaks(tmp_path: Path, other: Any) -> None:
    before = begun(tmp_path)
    before.take(pairs(500), [LostRecord(0, LONG_AGO_NS + S, ROUTE, "dropped", "gap", 5, 200, 7, 2, "/")])
    before.take([a_pair(LONG_AGO_NS + 4 * S, noisy=True)])
    before.measure("cpu", 0.1, LONG_AGO_NS)
    before.advance(LONG_AGO_NS + 10 * S, 0)
    before.keep()
    path = tmp_path / "judge-candidate.json"
    whole = path.read_text()
    for way in list(places(json.loads(whole))):
        state = json.loads(whole)
        if way:
            at = state
            for step in way[:-1]:
                at = at[step]
            at[way[-1]] = other
        path.write_text(json.dumps(state if way else other))
        judge = ShadowJudge("candidate", tmp_path)
        judge.begin(an_order(), LONG_AGO_NS)
        try:
            judge.take(pairs(100, LONG_AGO_NS + 10 * S, rate=50))
            judge.advance(LONG_AGO_NS + 20 * S, 0)
            judge.measure("cpu", 0.1, LONG_AGO_NS)
            assert messages.fits(judge.message() or {})
        except Exception as error:
            raise AssertionError(f"{way} = {other!r}") from error


# Keeping


def test_a_full_disk_leaves_the_old_state_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = with_evidence(tmp_path)
    judge.keep()
    path = tmp_path / "judge-candidate.json"
    kept = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        judge.take(pairs(4000, LONG_AGO_NS + 20 * S))
        judge.advance(LONG_AGO_NS + 60 * S, 0)
        judge.keep()
    assert judge.problem == f"{path}: No space left on device: the judge's evidence is not kept"
    assert path.read_bytes() == kept
    judge.keep()
    assert judge.problem == "" and path.read_bytes() != kept


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # what is longer is cut, as by a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert (path.read_text(), sorted(tmp_path.iterdir())) == ("new", [path])


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    judge = with_evidence(tmp_path / "gone")
    judge.keep()
    assert judge.problem.endswith("No such file or directory: the judge's evidence is not kept")
    assert verdict(judge)["word"] == "fail"


# Messages


def test_the_verdict_of_many_routes_fits_a_message() -> None:
    """Long routes in letters that JSON writes in six characters, with all that can fail failed."""
    judge = begun()
    chance = random.Random(1)
    routes = [f"GET /{'é' * 130}/{number}" for number in range(70)]
    for number, pair in enumerate(pairs(70 * 20 * 40, rate=2800, factor=2.0)):
        route = routes[number % len(routes)]
        target = "/" + "é" * 119
        wrong = chance.random() < 0.3
        fields = {"route": route, "target": target, "shadow_error": wrong, "different": wrong, "noisy": False}
        judge.take([pair._replace(**fields)])
        if number == 28_000:
            judge.advance(pair.at_ns, pair.at_ns)
    judge.take([a_pair(LONG_AGO_NS + 15 * S, route=route, different=True, noisy=True) for route in routes])
    judge.advance(LONG_AGO_NS + 60 * S, 0)
    message = judge.message()
    assert message is not None and messages.fits(message)
    told = message["verdict"]
    single = [each for each in told["findings"] if each["route"] != "all"]
    assert told["word"] == "fail" and len(single) == judging.ROUTES_TOLD and told["routes_left_out"] > 200
    assert len(message["noisy_routes"]) == judging.ROUTES_TOLD
    assert all(len(each["examples"]) == (each["word"] == "fail") for each in single)
    assert {each["word"] for each in single} == {"fail"}


def test_a_shortened_verdict_has_all_metrics_and_the_routes_with_most_evidence() -> None:
    def a_finding(route: str, word: str, evidence: float) -> dict[str, Any]:
        return {"route": route, "word": word, "log_e": {"warn": evidence}, "examples": list(range(5))}

    single = [a_finding(f"GET /{n}", "fail" if n == 7 else "pass", n) for n in range(judging.ROUTES_TOLD + 5)]
    every = [a_finding("all", "pass", -n) for n in range(6)]
    found = shortened({"word": "fail", "findings": [*single, *every]})
    routes = [each["route"] for each in found["findings"]]
    assert routes[:6] == ["all"] * 6 and routes[6:8] == ["GET /7", f"GET /{judging.ROUTES_TOLD + 4}"]
    assert len(routes) == 6 + judging.ROUTES_TOLD and found["routes_left_out"] == 5
    assert [len(each["examples"]) for each in found["findings"]] == [3] * 6 + [1] + [0] * (judging.ROUTES_TOLD - 1)
    assert found["word"] == "fail"


# Noise


def noisy_pairs(count: int, seed: int, noise: float, echoes: float, wrong: float = 0.0) -> Iterator[PairRecord]:
    """Each answer is one of its own kind with probability `noise`, on either side; `wrong`: only the shadow's are."""
    chance = random.Random(seed)

    def odd() -> bool:
        return chance.random() < noise

    for pair in pairs(count, seed=seed):
        shadow = odd()
        different = odd() or shadow or chance.random() < wrong
        yield pair._replace(different=different, noisy=(shadow or odd()) if chance.random() < echoes else None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("echoes", [1.0, 0.05])
def test_noisy_bodies_on_both_sides_are_no_fault_of_the_shadow(seed: int, noise: float, echoes: float) -> None:
    judge = begun()
    for number, pair in enumerate(noisy_pairs(6000, seed, noise, echoes)):
        judge.take([pair])
        if number % 600 == 599:
            judge.advance(pair.at_ns, pair.at_ns)
            assert finding(judge, "differences")["word"] != "fail"
    assert judge.message()["noisy_routes"] == [ROUTE]  # type: ignore[index]


def test_wrong_answers_among_quiet_bodies_are_found_though_few_are_asked_twice() -> None:
    judge = begun()
    """Once it is known that noise as frequent as they are would have been seen."""
    judge = begun()
    judge.take(noisy_pairs(6000, 1, 0.0, 0.02, wrong=0.05))
    judge.advance(LONG_AGO_NS + 40 * S, 0)
    assert finding(judge, "differences")["word"] != "fail"
    judge = begun()
    judge.take(noisy_pairs(20_000, 1, 0.0, 0.02, wrong=0.05))
    judge.advance(LONG_AGO_NS + 110 * S, 0)
    assert finding(judge, "differences")["word"] == "fail"


@pytest.mark.parametrize("noise", [0.002, 0.005, 0.02])
@pytest.mark.parametrize("echoes", [0.01, 0.05])
def test_noise_that_is_too_rare_to_have_been_seen_is_no_fault_of_the_shadow(noise: float, echoes: float) -> None:
    """The bodies' noise is the same on both sides. With 20 000 pairs and many more runs it is as seldom (60 each)."""
    for seed in range(2):
        judge = begun()
        for number, pair in enumerate(noisy_pairs(8000, seed, noise, echoes)):
            judge.take([pair._replace(noisy=False) if number < ECHOES_NEEDED and pair.noisy is None else pair])
            if number % 1000 == 999:
                judge.advance(pair.at_ns, pair.at_ns)
                assert finding(judge, "differences")["word"] != "fail"


def test_wrong_answers_among_noisy_bodies_are_found_where_enough_are_asked_twice() -> None:
    judge = begun()
    judge.take(noisy_pairs(12_000, 1, 0.1, 0.5, wrong=0.3))
    judge.advance(LONG_AGO_NS + 90 * S, 0)
    assert finding(judge, "differences")["word"] == "fail"
