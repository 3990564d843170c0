"""A shadow that fails is switched off: how soon, with which settings, for how long, and whatever becomes of the agent,
of its state and of the disk meanwhile. Production goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent import privileges
from tests.e2e.agent_process import MOODS, TARGETS, Agent, running, steady, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root

REQUESTS = 100
QUICK_MS = 1000.0  # from the outcome that decides to the kernel's switch, on a host that does much else


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(MOODS) as made:
        yield made


@pytest.fixture(autouse=True)
def well(lab: Lab) -> Iterator[None]:
    """Whatever a test did to the shadow is over with it."""
    yield
    lab.start_shadow()
    lab.mood("shadow", error=0.0)


def kept_in(directory: Path, **settings: Any) -> dict[str, Any]:
    return {"state": {"directory": str(directory)}, "rollback": {"cooldown_s": 3600}, **settings}


def nothing_reaches_the_shadow(agent: Agent) -> None:
    """Production gets its requests answered, and the shadow none of them."""
    lab = agent.lab
    until(lambda: not agent.metrics().by("requests_in_flight", "shadow"), what="nothing is in flight")
    shadow, production = lab.shadow_requests(), lab.production_requests()
    seen = agent.metrics().get("requests_seen_total", shadow="candidate")
    load = lab.requests(REQUESTS, targets=TARGETS)
    assert (load.requests, load.failed) == (REQUESTS, 0)
    assert lab.production_requests() - production == REQUESTS
    assert agent.metrics().get("requests_seen_total", shadow="candidate") == seen, "the kernel copies nothing"
    assert lab.shadow_requests() == shadow


def everything_reaches_the_shadow(agent: Agent) -> None:
    shadow = agent.lab.shadow_requests()
    agent.lab.requests(REQUESTS, targets=TARGETS)
    until(lambda: agent.lab.shadow_requests() == shadow + REQUESTS, what="the shadow gets all of them")


def the_trip(agent: Agent) -> dict[str, Any]:
    """The audit's last entry about one."""
    entries = agent.ask("/v1/audit?limit=50&shadow=candidate")["entries"]
    return dict(next(entry for entry in entries if entry["action"] == "trip"))


def break_shadow(lab: Lab, how: str) -> None:
    if how == "unreachable":
        lab.stop_shadow()
    else:
        lab.mood("shadow", error=0.9)


def versions(agent: Agent) -> dict[int, dict[str, Any]]:
    return {each["id"]: each for each in agent.ask("/v1/history?limit=50")["versions"]}


@pytest.mark.parametrize("how", ["failing", "unreachable"])
def test_a_trip_restores_the_settings_before(lab: Lab, how: str) -> None:
    with running(lab, kept_in(lab.directory / f"state-{how}")) as agent:
        agent.control("set", "candidate", "percentage=80", "--reason", "a little less")
        agent.control("set", "candidate", "percentage=100", "criteria=path:/api/*", "--reason", "only the API")
        assert {n: v["reason"] for n, v in versions(agent).items()} == {
            1: "the agent started", 2: "a little less", 3: "only the API"
        }  # fmt: skip
        with steady(lab):
            until(lambda: agent.metrics().get("replay_latency_seconds_count") > 200, what="it replays")
            break_shadow(lab, how)
            agent.await_state("tripped")
            guard, trip = agent.guard(), the_trip(agent)
        assert guard["cause"] == how
        detail = trip["detail"]
        took_ms = (detail["switched_ns"] - detail["decided_ns"]) / 1e6
        print(f"\n{how}: switched off {took_ms:.2f} ms after the outcome that decided")
        assert 0 <= took_ms < QUICK_MS
        assert (detail["rolled_back_to"], detail["version"]) == (2, 3)
        found = versions(agent)
        assert found[3]["bad"].keys() == {"candidate"}
        assert found[4]["current"] and not found[3]["current"]
        assert found[4]["reason"].startswith("rolled back to version 2: ")
        (shadow,) = agent.ask("/v1/shadows")["shadows"]
        assert (shadow["percentage"], shadow["criteria"], shadow["enabled"]) == (80, "random", False)
        assert shadow["configured"]["enabled"] is True
        nothing_reaches_the_shadow(agent)
        said = agent.control("history", "--audit")
        assert f"trip candidate: {guard['reason']}"[:60] in said
        assert agent.stop().status == 0
    assert f"shadow candidate is tripped ({how})" in "".join(agent.errors)
    assert "its settings are those of version 2 again" in "".join(agent.errors)


def test_a_trip_outlives_the_agent_however_it_ends_until_it_is_reset(lab: Lab) -> None:
    settings = kept_in(lab.directory / "state-restarts")
    with running(lab, settings) as agent:
        with steady(lab):
            until(lambda: agent.metrics().get("replay_latency_seconds_count") > 200, what="it replays")
            break_shadow(lab, "failing")
            agent.await_state("tripped")
        reason = agent.guard()["reason"]
        assert agent.stop().status == 0
    lab.mood("shadow", error=0.0)
    with running(lab, settings) as agent:
        guard = agent.guard()
        assert (guard["state"], guard["cause"], guard["reason"]) == ("tripped", "failing", reason)
        nothing_reaches_the_shadow(agent)
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait(60)
    with running(lab, settings) as agent:
        assert (agent.guard()["state"], agent.guard()["reason"]) == ("tripped", reason)
        assert agent.refused("enable", "candidate").startswith("shadowtap: shadow candidate is tripped (")
        nothing_reaches_the_shadow(agent)
        assert agent.control("reset", "candidate", "--reason", "mended").startswith("candidate: active since ")
        everything_reaches_the_shadow(agent)


@pytest.mark.parametrize("file", ["state.db", "tripped"])
def test_damaged_state_keeps_everything_off_until_a_reset(lab: Lab, file: str) -> None:
    directory = lab.directory / f"state-damaged-{file}"
    directory.mkdir()
    (directory / file).write_bytes(b"\xff" * 4096)
    for path in (directory, directory / file):
        shutil.chown(path, privileges.service_user(None).pw_name)
    with running(lab, kept_in(directory)) as agent:
        (line,) = [line for line in agent.errors if "stays off" in line]
        assert "damaged" in line and "`shadowtap reset candidate` begins anew" in line
        guard = agent.guard()
        assert (guard["state"], guard["cause"], guard["permanent"]) == ("tripped", "state", True)
        nothing_reaches_the_shadow(agent)
        assert "damaged" in agent.refused("set", "candidate", "percentage=50")
        assert "damaged" in agent.status()["problems"][0]
        agent.control("reset", "candidate")
        assert agent.guard()["state"] == "active"
        assert agent.status()["problems"] == []
        everything_reaches_the_shadow(agent)
        agent.control("set", "candidate", "percentage=50")
        assert len(versions(agent)) > 0
        assert agent.stop().status == 0
    assert list(directory.glob(f"{file}.damaged-*"))


@contextmanager
def small_disk(lab: Lab) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = lab.directory / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
        path.rmdir()


def fill(directory: Path) -> Path:
    """Take all the room there is."""
    path = directory / "filler"
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return path


def test_a_trip_works_on_a_full_disk_and_is_remembered(lab: Lab) -> None:
    with small_disk(lab) as disk:
        settings = kept_in(disk / "state")
        with running(lab, settings) as agent:
            agent.control("set", "candidate", "percentage=90")
            before = versions(agent)
            filler = fill(disk)
            line = agent.refused("set", "candidate", "percentage=50")
            assert "the disk is full: free some space" in line
            assert agent.ask("/v1/shadows/candidate")["percentage"] == 90
            assert versions(agent).keys() == before.keys()
            with steady(lab):
                until(lambda: agent.metrics().get("replay_latency_seconds_count") > 200, what="it replays")
                break_shadow(lab, "failing")
                agent.await_state("tripped")
            nothing_reaches_the_shadow(agent)
            agent.process.kill()
            agent.process.wait(60)
        lab.mood("shadow", error=0.0)
        with running(lab, settings) as agent:
            assert agent.guard()["state"] == "tripped"
            nothing_reaches_the_shadow(agent)
            filler.unlink()
            agent.control("reset", "candidate")
            everything_reaches_the_shadow(agent)
            agent.control("set", "candidate", "percentage=50")
            assert agent.stop().status == 0


def test_people_go_back_to_any_version(lab: Lab) -> None:
    with running(lab, kept_in(lab.directory / "state-versions")) as agent:
        for percentage, reason in ((10, "few"), (20, "more")):
            agent.control("set", "candidate", f"percentage={percentage}", "--reason", reason)
        said = agent.control("rollback", "--reason", "too many")
        assert said.splitlines()[0] == "version 4 is in force, with what version 2 said"
        assert "shadows.candidate.percentage: 20.0 -> 10.0" in said
        assert agent.ask("/v1/shadows/candidate")["percentage"] == 10
        said = agent.control("rollback", "1")
        assert said.splitlines()[0] == "version 5 is in force, with what version 1 said"
        assert agent.ask("/v1/shadows/candidate")["percentage"] == 100
        assert agent.refused("rollback", "99") == "shadowtap: no version 99: `shadowtap history` lists them"
        lines = [line for line in agent.control("history").splitlines() if "root" in line or "file" in line]
        assert [line.split()[0].strip("*") or line.split()[1] for line in lines] == ["5", "4", "3", "2", "1"]
        assert lines[0].startswith("*") and "back to version 1" in lines[0]
        assert lines[1].endswith(": too many")
        assert '"percentage": 20.0' in agent.control("history", "3")
        actions = [entry["action"] for entry in agent.ask("/v1/audit")["entries"]]
        assert actions == ["rollback", "rollback", "change", "change"]
        audit = agent.control("history", "--audit", "--limit", "2").splitlines()
        assert len(audit) == 2 and "rollback: too many" in audit[1]
