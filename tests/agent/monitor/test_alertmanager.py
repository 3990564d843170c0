"""What Alertmanager is told: the form, and what the real one makes of it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.alerts_config import AlertsConfig
from agent.monitor.alertmanager import Alertmanager, address, annotated
from agent.monitor.alerts import Alert, AlertBook, Notice, Receiver, Severity
from agent.monitor.sending import Sender, UndeliveredError, post
from tests.agent.monitor.test_sending import Listener, until

PROGRAM = "prometheus-alertmanager"
S = 1_000_000_000
START = 1_700_000_000 * S
CONFIG = """
route: {receiver: people, group_by: [alertname, shadow], group_wait: 50ms, group_interval: 200ms, repeat_interval: 1h}
receivers:
  - name: people
    webhook_configs: [{url: "URL", send_resolved: true}]
"""
needs_alertmanager = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed: run `make setup`"
)


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def manager(**fields: Any) -> Alertmanager:
    given = {"name": "am", "url": "http://am", "headers": {}, "host": "lb1", "labels": {}, "report_url": ""}
    return Alertmanager(**{**given, **fields})


def alert(**fields: Any) -> Alert:
    given = {"severity": Severity.CRITICAL, "shadow": "candidate", "summary": "slower", "evidence": {"ratio": "1.2"}}
    return Alert(name="ShadowFailed", started_ns=START, **{**given, **fields})


def told(manager: Alertmanager, alert: Alert, ends_ns: int = START + S) -> dict[str, Any]:
    (found,) = json.loads(manager.body([Notice(Receiver.ALERTMANAGER, alert, ends_ns)]))
    return dict(found)


def test_the_form() -> None:
    assert told(manager(labels={"team": "web"}, report_url="https://r/{shadow}"), alert()) == {
        "labels": {
            "alertname": "ShadowFailed",
            "severity": "critical",
            "shadow": "candidate",
            "host": "lb1",
            "job": "shadowtap",
            "team": "web",
        },
        "annotations": {"summary": "slower", "runbook": alert().runbook, "ratio": "1.2"},
        "startsAt": "2023-11-14T22:13:20.000Z",
        "endsAt": "2023-11-14T22:13:21.000Z",
        "generatorURL": "https://r/candidate",
    }


def test_an_alert_of_the_host_has_no_label_for_a_shadow() -> None:
    assert "shadow" not in told(manager(), alert(shadow=""))["labels"]


def test_evidence_never_changes_labels_and_no_piece_hides_another() -> None:
    evidence = {"summary": "1", "e-value": "2", "e value": "3", "9": "4", "": "5", "\u00e9": "6"}
    assert told(manager(), alert(evidence=evidence))["labels"] == told(manager(), alert())["labels"]
    found = annotated(alert(evidence=evidence))
    assert list(found) == ["summary", "runbook", "summary_", "e_value", "e_value_", "_9", "_", "__"]
    assert (found["summary"], found["summary_"]) == ("slower", "1")


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/api/v2/alerts"])
def test_the_address_is_found_from_what_people_write(url: str) -> None:
    assert address(url) == "http://h:1/api/v2/alerts"


class Real:
    """The real Alertmanager, and who it tells."""

    def __init__(self, folder: Path, people: Listener) -> None:
        self.people = people
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        config = folder / "alertmanager.yml"
        config.write_text(CONFIG.replace("URL", people.url))
        listen = self.url.removeprefix("http://")
        options = [f"--config.file={config}", f"--web.listen-address={listen}", f"--storage.path={folder}/data"]
        self.process = subprocess.Popen(
            [PROGRAM, *options, "--cluster.listen-address="], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def active(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts?active=true", timeout=5) as answer:
            return list(json.load(answer))

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                return True
        except OSError:
            return False

    def names(self) -> list[tuple[str, str]]:
        return sorted((each["labels"]["alertname"], each["labels"]["severity"]) for each in self.active())

    def heard(self) -> list[tuple[str, str, str]]:
        """What people were told: name, severity and state of each alert of each message."""
        return [
            (each["labels"]["alertname"], each["labels"]["severity"], each["status"])
            for _, _, body in self.people.posts
            for each in body["alerts"]
        ]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    with Listener() as people:
        made = Real(tmp_path, people)
        try:
            until(made.ready)
            yield made
        finally:
            made.process.kill()
            made.process.wait()


class Agent:
    """A book and a sender to the real Alertmanager."""

    def __init__(self, real: Real, resend_s: float = 60, **config: Any) -> None:
        self.book = AlertBook(resend_s, hold_s=0)
        given = {"log": False, "alertmanager": [real.url], **config}
        self.sender = Sender.start(AlertsConfig.model_validate(given), "lb1", print)

    def fire(self, severity: str = "warning", shadow: str = "candidate", **evidence: object) -> None:
        self.book.fire("ShadowFailed", shadow, severity, "slower", evidence, time.time_ns())
        self.tell()

    def resolve(self) -> None:
        self.book.resolve("ShadowFailed", "candidate", time.time_ns())
        self.tell()

    def tell(self) -> None:
        self.sender.send(self.book.due(time.time_ns()))
        until(lambda: all(each["waiting"] == 0 for each in self.sender.counts().values()))
        assert self.sender.problems() == {}


@needs_alertmanager
def test_the_real_one_takes_re_sends_as_one_alert_and_its_end(real: Real) -> None:
    agent = Agent(real, resend_s=1, labels={"team": "web"}, report_url="https://r.example/{shadow}")
    agent.fire(ratio=1.1)
    (first,) = until(real.active)
    assert first["labels"] == {
        "alertname": "ShadowFailed",
        "severity": "warning",
        "shadow": "candidate",
        "host": "lb1",
        "job": "shadowtap",
        "team": "web",
    }
    assert first["generatorURL"] == "https://r.example/candidate"
    until(lambda: ("ShadowFailed", "warning", "firing") in real.heard())
    time.sleep(1)
    agent.fire(ratio=1.2)
    (second,) = until(lambda: [each for each in real.active() if each["annotations"]["ratio"] == "1.2"])
    assert (second["fingerprint"], second["startsAt"]) == (first["fingerprint"], first["startsAt"])
    assert second["endsAt"] > first["endsAt"]
    assert len(real.active()) == 1
    agent.resolve()
    until(lambda: real.active() == [])
    until(lambda: ("ShadowFailed", "warning", "resolved") in real.heard())
    assert real.heard() == [("ShadowFailed", "warning", "firing"), ("ShadowFailed", "warning", "resolved")]


@needs_alertmanager
def test_at_the_real_one_a_rise_leaves_one_alert(real: Real) -> None:
    agent = Agent(real)
    agent.fire("warning")
    until(lambda: real.names() == [("ShadowFailed", "warning")])
    agent.fire("critical", why="x" * 3000)
    until(lambda: real.names() == [("ShadowFailed", "critical")])
    agent.resolve()
    until(lambda: real.names() == [])
    agent.fire("warning")
    until(lambda: real.names() == [("ShadowFailed", "warning")])


@needs_alertmanager
def test_at_the_real_one_an_alert_ends_when_the_agent_is_gone(real: Real) -> None:
    agent = Agent(real, resend_s=0.5)
    agent.fire()
    until(real.active)
    agent.sender.close()
    before = time.monotonic()
    until(lambda: real.active() == [])
    assert time.monotonic() - before < 4
    until(lambda: ("ShadowFailed", "warning", "resolved") in real.heard())


@needs_alertmanager
def test_the_real_one_takes_what_strangers_say(real: Real) -> None:
    agent = Agent(real)
    agent.fire(shadow="", **{"GET /\u00e9\x00\ud800": "\x1b[0m\n\U0001f600", "1": "", "empty": ""})
    (found,) = until(real.active)
    assert "shadow" not in found["labels"]
    assert found["annotations"]["GET_____"] == "?[0m\n\U0001f600"


@needs_alertmanager
def test_the_real_one_says_why_it_refuses(real: Real) -> None:
    with pytest.raises(UndeliveredError, match="answers 4") as error:
        post(address(real.url), {}, b'[{"labels": {"a-b": "x"}}]')
    assert error.value.later is False
