"""The alerts that the service wants are told, and ended, to a real receiver; the book outlives a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import messages
from agent.alerts_config import AlertsConfig
from agent.monitor.alerting import Alerting
from agent.monitor.alerts import ALERTS_MAX
from tests.agent.monitor.test_judging import DAMAGES
from tests.agent.monitor.test_sending import Listener, until

S = 1_000_000_000
T0 = 1_700_000_000 * S


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def receiver() -> Iterator[Listener]:
    with Listener() as made:
        yield made


def an_alert(name: str = "ShadowFailed", shadow: str = "candidate", **fields: Any) -> dict[str, Any]:
    given = {"severity": "critical", "summary": "it is slower", "evidence": {"ratio": "1.2"}}
    return {"name": name, "shadow": shadow, **given, **fields}


def alerting(receiver: Listener | None = None, directory: Path | None = None, **config: Any) -> Alerting:
    to = {"alertmanager": [receiver.url], "webhooks": [f"{receiver.url}/hook"]} if receiver else {}
    return Alerting(AlertsConfig.model_validate({"log": False, "hold_s": 0, **to, **config}), directory, "lb1")


def hooked(receiver: Listener) -> list[str]:
    return [body["state"] for path, _, body in receiver.posts if path == "/hook"]


def managed(receiver: Listener) -> list[dict[str, Any]]:
    return [each for path, _, body in receiver.posts if path != "/hook" for each in body]


def test_an_alert_is_told_once_and_its_end_too(receiver: Listener) -> None:
    told = alerting(receiver)
    for second in range(5):
        told.set([an_alert()], T0 + second * S)
    until(lambda: hooked(receiver) and managed(receiver))
    told.set([], T0 + 6 * S)
    told.send_due(T0 + 7 * S)
    until(lambda: len(hooked(receiver)) == 2)
    told.close()
    assert hooked(receiver) == ["firing", "resolved"]
    first, *_, last = managed(receiver)
    assert first["labels"]["alertname"] == "ShadowFailed" and first["labels"]["shadow"] == "candidate"
    assert (first["annotations"]["summary"], first["annotations"]["ratio"]) == ("it is slower", "1.2")
    assert last["endsAt"] == "2023-11-14T22:13:26.000Z"


def test_all_that_should_be_active_is_and_nothing_else() -> None:
    told = alerting()
    told.set([an_alert(), an_alert(shadow="other"), an_alert("WatchDown", "")], T0)
    told.set([an_alert(shadow="other"), an_alert("DataQuality")], T0 + S)
    assert sorted((each["name"], each["shadow"]) for each in told.message()) == [
        ("DataQuality", "candidate"),
        ("ShadowFailed", "other"),
    ]
    assert told.problems() == []
    told.close()


def test_after_a_restart_what_is_active_is_not_news_and_what_is_over_is_ended(
    receiver: Listener, tmp_path: Path
) -> None:
    before = alerting(receiver, tmp_path)
    before.set([an_alert(), an_alert("DataQuality")], T0)
    until(lambda: len(hooked(receiver)) == 2)
    before.close()
    after = alerting(receiver, tmp_path)
    after.set([an_alert()], T0 + 5 * S)
    until(lambda: len(hooked(receiver)) == 3)
    after.send_due(T0 + 6 * S)
    after.close()
    assert hooked(receiver) == ["firing", "firing", "resolved"]
    assert [each["name"] for each in after.message()] == ["ShadowFailed"]


@pytest.mark.parametrize("content", DAMAGES, ids=lambda content: repr(content)[:12])
def test_a_damaged_book_is_begun_anew(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "alerts.json"
    path.mkdir() if content is None else path.write_bytes(content)
    told = alerting(None, tmp_path)
    assert told.message() == []
    told.set([an_alert()], T0)
    told.close()
    kept = f"{path}: Is a directory: alerts are not kept"
    assert told.problems() == ([kept] if content is None else [])
    assert told.undelivered() == []
    if content is not None:
        assert len(json.loads(path.read_text())["live"]) == 1


def test_a_receiver_that_is_not_there_is_told_of() -> None:
    told = alerting(None, webhooks=["http://127.0.0.1:1/"])
    told.set([an_alert()], T0)
    (line,) = until(told.undelivered)
    assert line.startswith("webhooks.0 ")
    assert told.problems() == [], "all that is to be kept is kept"
    told.close()


def test_however_many_alerts_with_whatever_evidence_fit_a_message() -> None:
    told = alerting()
    evidence = {"text": "é" * 5000}
    told.set([an_alert(f"Number{n}", "x" * 63, evidence=evidence) for n in range(ALERTS_MAX + 5)], T0)
    found = told.message()
    assert len(found) == ALERTS_MAX and messages.fits({"watch": {"alerts": found}})
    for second in (1, 2):  # the first makes room
        told.set([an_alert(evidence={"ratio": "1.2"})], T0 + second * S)
    assert told.message()[0]["evidence"] == {"ratio": "1.2"}
    told.close()
