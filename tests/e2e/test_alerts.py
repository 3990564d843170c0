"""A tripped shadow as people and the real Alertmanager hear of it: once each, and once more when it is over."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agent.monitor.test_sending import Listener
from tests.e2e.agent_process import running, until
from vagrant.lab import Lab

PROGRAM = "prometheus-alertmanager"
PORT = 9093
CONFIG = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed: run `make setup`"),
]


def asked(lab: Lab, path: str) -> Any:
    """What Alertmanager answers; None while it does not."""
    with lab.inside("lb"):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read()
        except OSError:
            return None
        finally:
            connection.close()
    return json.loads(text) if answer.status == 200 and text.startswith((b"[", b"{")) else None


@pytest.fixture
def alertmanager(lab: Lab) -> Iterator[str]:
    """The real one, on the load balancer; its URL."""
    config = lab.directory / "alertmanager.yml"
    config.write_text(CONFIG)
    options = [f"--config.file={config}", f"--web.listen-address=127.0.0.1:{PORT}", "--cluster.listen-address="]
    with (lab.directory / "alertmanager.log").open("w") as log:
        argv = [PROGRAM, *options, f"--storage.path={lab.directory}/alertmanager"]
        process = lab.popen_in("lb", argv, stdout=log, stderr=log)
    until(lambda: asked(lab, "/api/v2/status"), what="Alertmanager answers")
    yield f"http://127.0.0.1:{PORT}"
    process.kill()
    process.wait()


@pytest.fixture
def people(lab: Lab) -> Iterator[Listener]:
    """Who is told by webhook, on the load balancer."""
    with lab.inside("lb"):
        listener = Listener()
    with listener:
        yield listener


def active(lab: Lab) -> list[dict[str, Any]]:
    """The alerts that Alertmanager holds for active."""
    return list(asked(lab, "/api/v2/alerts?active=true") or [])


def names(lab: Lab) -> list[str]:
    return [alert["labels"]["alertname"] for alert in active(lab)]


def told(people: Listener) -> list[tuple[str, str, str]]:
    return [(body["name"], body["shadow"], body["state"]) for _, _, body in people.posts]


def test_a_trip_is_told_once_and_so_is_its_end(lab: Lab, alertmanager: str, people: Listener) -> None:
    alerts = {
        "alertmanager": [alertmanager],
        "webhooks": [people.url],
        "resend_s": 1,
        "hold_s": 0,
        "report_url": "https://reports.example/{shadow}",
        "labels": {"team": "web"},
    }
    with running(lab, {"alerts": alerts}) as agent:
        agent.control("trip", "candidate", "--reason", "the new cache is cold")
        (alert,) = until(lambda: active(lab), what="Alertmanager knows of it")
        labels, annotations = alert["labels"], alert["annotations"]
        assert (labels["alertname"], labels["severity"], labels["shadow"]) == ("ShadowTripped", "critical", "candidate")
        assert (labels["job"], labels["team"]) == ("shadowtap", "web")
        assert annotations["summary"] == "shadow candidate is off: the new cache is cold"
        assert annotations["cause"] == "manual"
        assert alert["generatorURL"] == "https://reports.example/candidate"
        first = alert["updatedAt"]
        until(lambda: [each for each in active(lab) if each["updatedAt"] > first], what="it is told again each second")
        assert names(lab) == ["ShadowTripped"]
        (shown,) = agent.ask("/v1/alerts")["alerts"]
        assert (shown["name"], shown["severity"], shown["shadow"]) == ("ShadowTripped", "critical", "candidate")
        assert agent.metrics().by("alerts_active", "severity") == {"critical": 1}
        agent.control("reset", "candidate")
        until(lambda: not active(lab), what="it is over")
        until(lambda: len(people.posts) == 2, what="people hear of both")
        until(lambda: not agent.ask("/v1/alerts")["alerts"], what="nothing is shown any more")
        assert agent.stop().status == 0
    assert told(people) == [("ShadowTripped", "candidate", "firing"), ("ShadowTripped", "candidate", "resolved")]
    assert people.posts[0][2]["summary"] == "shadow candidate is off: the new cache is cold"
    said = [line for line in agent.errors if "ShadowTripped" in line]
    assert len(said) == 2, "the log says each once, too"


def test_an_alert_outlives_a_restart_of_the_agent(lab: Lab, alertmanager: str, people: Listener) -> None:
    settings = {
        "alerts": {"alertmanager": [alertmanager], "webhooks": [people.url], "resend_s": 1, "hold_s": 0},
        "state": {"directory": str(lab.directory / "state-alerts")},
    }
    with running(lab, settings) as agent:
        agent.control("trip", "candidate", "--reason", "night")
        until(lambda: people.posts and active(lab), what="both know of it")
        agent.stop()
    with running(lab, settings) as agent:
        until(lambda: agent.ask("/v1/alerts")["alerts"], what="it is active there")
        assert names(lab) == ["ShadowTripped"]
        agent.control("reset", "candidate")
        until(lambda: not active(lab), what="it is over")
        until(lambda: len(people.posts) > 1, what="people hear of the end")
    assert told(people) == [("ShadowTripped", "candidate", "firing"), ("ShadowTripped", "candidate", "resolved")]
