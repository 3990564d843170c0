"""`make scenarios`: what can go wrong with a shadow, played in the lab with real servers, and what the agent does then.

Each scenario says what is done to the servers, waits for what the agent must notice, and tells when it did and what the
users saw meanwhile. The short form is what CI plays.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vagrant.lab.demo import SHADOWTAP
from vagrant.lab.lab import Lab
from vagrant.lab.network import LabError
from vagrant.lab.servers import Options
from vagrant.lab.stage import SHADOW, Settings, Stage, pool_targets, set_up

RATE = 300.0  # requests a second


@dataclass(frozen=True, slots=True)
class Played:
    """What a scenario came to. `took_s`: by what was waited for."""

    name: str
    took_s: dict[str, float] = field(default_factory=dict)
    requests: int = 0  # of users
    failed: int = 0  # of these, through the load balancer
    notes: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """`act` plays it for about `long_s` seconds or, in the short form, as briefly as it can be."""

    name: str
    title: str
    act: Callable[[Stage, bool], dict[str, float]]
    settings: Callable[[Lab], Settings] = lambda lab: {}
    longest_s: float = 240.0
    users_fail: bool = False  # production is made to fail: errors are no fault of the agent's


def slower(stage: Stage, long: bool) -> dict[str, float]:
    """The shadow is 10 % slower."""
    stage.lab.mood("production", median_ms=20.0)
    stage.lab.mood("shadow", median_ms=20.0, factor=1.10)
    took = stage.until(lambda: stage.verdict()["word"] == "fail", 120, "the judge says FAIL")
    verdict = stage.verdict()
    stage.note(f"it names {verdict['reason']}, after {verdict['pairs']} pairs")
    _expect(any(name in verdict["reason"] for name in ("latency", "tail")), "latency or tail is named", stage)
    stage.until(lambda: _alert(stage, "ShadowFailed"), 10, "an alert is active")
    return {"fail": took}


def wrong(stage: Stage, long: bool) -> dict[str, float]:
    """1 % of the shadow's answers are wrong, with the right status and length."""
    stage.until(lambda: stage.verdict()["pairs"] > 2000, 60, "the judge has seen what is usual")
    stage.lab.mood("shadow", wrong=0.01)
    took = stage.until(lambda: stage.verdict()["word"] == "fail" or _tripped(stage), 120, "the judge says FAIL")
    verdict = stage.verdict()
    _expect("differences" in verdict["reason"], "differences are named", stage)
    examples = [each for found in verdict["findings"] for each in found["examples"] if found["metric"] == "differences"]
    stage.note(f"an example: {examples[0]['reference']}")
    return {"fail": took}


def starts_failing(stage: Stage, long: bool) -> dict[str, float]:
    """All is well at first, then most of the shadow's answers are 500s."""
    stage.stay(60 if long else 5, lambda: _tripped(stage), "a trip while all is well")
    stage.lab.mood("shadow", error=0.7)
    took = stage.until(lambda: _tripped(stage), 30, "the shadow is off")
    _expect(stage.guard()["cause"] == "failing", "the cause is `failing`", stage)
    _nothing_more_comes(stage)
    return {"trip": took}


def dead(stage: Stage, long: bool) -> dict[str, float]:
    """The shadow is gone: connections are refused. It comes back, and the agent finds that out by itself."""
    stage.stay(3, lambda: _tripped(stage), "a trip while all is well")
    stage.lab.stop_shadow()
    took = stage.until(lambda: _tripped(stage), 30, "the shadow is off")
    _expect(stage.guard()["cause"] == "unreachable", "the cause is `unreachable`", stage)
    stage.lab.start_shadow()
    stage.until(lambda: stage.guard()["state"] == "probing", 30, "it is tried again with a small share")
    active = stage.until(lambda: stage.guard()["state"] == "active", 60, "the probe went well: it is active again")
    return {"trip": took, "active": active}


def leaking(stage: Stage, long: bool) -> dict[str, float]:
    """The shadow keeps some memory of each request."""
    stage.lab.mood("shadow", leak_bytes=12_000)
    failed = stage.until(
        lambda: stage.verdict()["word"] == "fail" or _tripped(stage), 180, "the judge says FAIL"
    )
    _expect("memory" in stage.verdict()["reason"], "memory is named", stage)
    return {"fail": failed}


def production_slow(stage: Stage, long: bool) -> dict[str, float]:
    """Production itself is slow, and then fails: the shadow must not be blamed."""
    stage.lab.mood("production", factor=3.0)
    stage.stay(60 if long else 15, lambda: _blamed(stage), "blame for the shadow while production is slow")
    stage.lab.mood("production", factor=1.0, error=0.6)
    stage.lab.mood("shadow", error=0.6)
    stage.stay(60 if long else 15, lambda: _blamed(stage), "blame for the shadow while both fail alike")
    return {}


def harmful(stage: Stage, long: bool) -> dict[str, float]:
    """The shadow shares something with production that mirroring wears out: production slows down whenever it runs."""
    with _shared_database(stage):
        took = stage.until(lambda: _tripped(stage), 200, "mirroring is off for good")
    guard = stage.guard()
    _expect(guard["cause"] == "harm" and guard["permanent"], "the cause is `harm`, and only a reset ends it", stage)
    stage.until(lambda: _alert(stage, "MirroringHarms"), 10, "an alert is active")
    return {"trip": took}


def same(stage: Stage, long: bool) -> dict[str, float]:
    """Both sides run the same: there must be no alarm, however long it takes."""
    stage.stay(1800 if long else 45, lambda: _blamed(stage), "blame for the shadow, or any alert about it")
    stage.note(f"the judge says {stage.verdict()['word'].upper()}")
    return {}


def _tripped(stage: Stage) -> bool:
    return bool(stage.guard()["state"] == "tripped")


def _blamed(stage: Stage) -> bool:
    status = stage.status()
    verdict = status["verdicts"].get(SHADOW) or {"word": ""}
    return bool(status["guards"][SHADOW]["state"] != "active" or verdict["word"] == "fail")


def _alert(stage: Stage, name: str) -> bool:
    return any(alert["name"] == name for alert in stage.status()["alerts"])


def _expect(true: bool, what: str, stage: Stage) -> None:
    if not true:
        raise LabError(f"not so: {what}; the agent says\n{stage.say('status')}")
    stage.note(what)


def _nothing_more_comes(stage: Stage) -> None:
    time.sleep(1.0)
    before = stage.lab.shadow_requests()
    time.sleep(1.0)
    _expect(stage.lab.shadow_requests() == before, "the shadow gets nothing any more, production goes on", stage)


@contextmanager
def _shared_database(stage: Stage) -> Iterator[None]:
    """Production takes longer while the shadow is asked things."""
    ended = threading.Event()

    def wear() -> None:
        before, slow = stage.lab.shadow_requests(), False
        while not ended.wait(0.1):
            now = stage.lab.shadow_requests()
            if (now > before) is not slow:
                slow = now > before
                stage.lab.mood("production", factor=2.0 if slow else 1.0)
            before = now

    thread = threading.Thread(target=wear)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _quick_probe(lab: Lab) -> Settings:
    rollback = {"cooldown_s": 3, "probe_s": 3, "probe_percentage": 30, "probe_requests": 10}
    return {"rollback": rollback}


def _memory(lab: Lab) -> Settings:
    return {"resources": {"interval_s": 0.5, "memory_step_s": 2, "warm_up_s": 3, **pool_targets(lab)}}


def _harm(lab: Lab) -> Settings:
    return {"harm": {"every_s": 1, "block_s": 1}}


SCENARIOS = (
    Scenario("slower", "the shadow is 10 % slower", slower),
    Scenario("wrong", "1 % of the shadow's answers are wrong", wrong),
    Scenario("starts-failing", "the shadow starts failing", starts_failing),
    Scenario("dead", "the shadow is dead, and comes back", dead, _quick_probe),
    Scenario("leak", "the shadow leaks memory", leaking, _memory),
    Scenario("production-slow", "production itself is slow, then fails", production_slow, users_fail=True),
    Scenario("harm", "mirroring slows production down", harmful, _harm),
    Scenario("same", "shadow and production are the same", same, longest_s=2000.0),
)


def play(scenario: Scenario, shadowtap: Sequence[str | Path], long: bool = False) -> Played:
    """Play one in a lab of its own. LabError when the agent does not do what it must."""
    options = Options(production="mood", shadow="mood", access_logs=False)
    with Lab(options) as lab, set_up(shadowtap, scenario.settings, lab) as stage:
        with stage.traffic(RATE, scenario.longest_s):
            took_s = scenario.act(stage, long)
        requests, failed = lab.production_requests(), lab.production_failures()
        bad = sum(count for name, count in lab.production_statuses().items() if name == "5xx")
        stage.note(f"users: {requests} requests, {failed} failed, {bad} answered 5xx")
        if (failed or bad) and not scenario.users_fail:
            raise LabError(f"users noticed: {failed} requests failed, {bad} were answered 5xx")
        return Played(scenario.name, took_s, requests, failed + bad, tuple(stage.notes))


def main() -> None:
    """Read the command line and play."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="make scenarios", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(names)} (default: all)")
    parser.add_argument("--long", action="store_true", help="as long as it takes to be sure: half an hour for `same`")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each, on stdout")
    parser.add_argument("--shadowtap", type=Path, default=SHADOWTAP, help="the command to play them with")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    try:
        for scenario in SCENARIOS:
            if not given.names or scenario.name in given.names:
                print(f"\n{scenario.name}: {scenario.title}", file=sys.stderr, flush=True)
                played = play(scenario, [given.shadowtap.absolute()], given.long)
                if given.json:
                    print(json.dumps(asdict(played)), flush=True)
    except LabError as error:
        sys.exit(f"scenarios: {error}")
    except KeyboardInterrupt:
        sys.exit("scenarios: interrupted; the lab is gone")


if __name__ == "__main__":
    main()
