"""What a webhook is told: templates are checked whole, and whatever an alert says, the result is JSON that says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitor.alerts import Alert, AlertBook, Notice, Receiver, Severity
from agent.monitor.webhook import NO_EVIDENCE, TEMPLATE_BYTES, VARIABLES, Template, Webhook, values

EXAMPLE = Path(__file__).parents[3] / "examples" / "webhook-slack.json"
S = 1_000_000_000
START = 1_700_000_000 * S
ALERT = Alert("ShadowTripped", Severity.CRITICAL, "candidate", "half fail", {"half": "26 of 50", "in": "2 s"}, START)
EVERY = {name: f"${{{name}}}" for name in VARIABLES}


def body(template: Template | None, alert: Alert = ALERT, report_url: str = "https://r/{shadow}") -> Any:
    webhook = Webhook("hook", "http://h", {}, "lb1", report_url, template)
    return json.loads(webhook.body([Notice(Receiver.PEOPLE, alert, START)]))


def test_every_variable_is_replaced() -> None:
    assert body(Template.parse(json.dumps(EVERY))) == {
        "name": "ShadowTripped",
        "severity": "critical",
        "shadow": "candidate",
        "summary": "half fail",
        "state": "firing",
        "evidence": "half: 26 of 50\nin: 2 s",
        "started": "2023-11-14T22:13:20.000Z",
        "ended": "",
        "report_url": "https://r/candidate",
        "runbook": ALERT.runbook,
        "host": "lb1",
    }


def test_without_a_template_there_is_a_form() -> None:
    ended = Alert("ScheduleLag", Severity.WARNING, "", "late", {}, START, START + S)
    assert body(None, ended, "") == {
        "version": 1,
        "name": "ScheduleLag",
        "severity": "warning",
        "shadow": "",
        "summary": "late",
        "state": "resolved",
        "evidence": {},
        "started": "2023-11-14T22:13:20.000Z",
        "ended": "2023-11-14T22:13:21.000Z",
        "report_url": "",
        "runbook": ended.runbook,
        "host": "lb1",
    }
    assert body(None)["ended"] is None and body(None)["evidence"] == ALERT.evidence


def test_only_text_is_filled() -> None:
    text = '{"${name}": ["${name} of ${shadow}", 1, null, true, {"a": "$name $ $$ {name} ${"}]}'
    assert body(Template.parse(text)) == {
        "${name}": ["ShadowTripped of candidate", 1, None, True, {"a": "$name $ $$ {name} ${"}]
    }


@given(st.text(), st.dictionaries(st.text(), st.text(), max_size=5))
def test_whatever_an_alert_says_it_arrives_as_text(summary: str, evidence: dict[str, str]) -> None:
    book = AlertBook()
    book.fire("X", "candidate", "info", summary, evidence, START)
    (alert,) = book.active()
    assert body(Template.parse(json.dumps(EVERY)), alert) == values(alert, "lb1", "https://r/{shadow}")


@pytest.mark.parametrize("said", ["${host}", '"', "\\", '"}, {"x": "', "\\u0022", "\\1 \\g<0>"])
def test_what_an_alert_says_is_no_template(said: str) -> None:
    alert = Alert("X", Severity.INFO, "", said, {}, START)
    assert body(Template.parse('{"text": "${summary} on ${host}"}'), alert) == {"text": f"{said} on lb1"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1: not JSON: Expecting value"),
        ('{\n"a": x}', "line 2: not JSON: Expecting value"),
        ('{"a": NaN}', "not JSON: NaN"),
        ('{"a": 1e999}', "Out of range float values are not JSON compliant"),
        ('{"a": ["${nmae}"]}', f"there is no ${{nmae}}; there are {', '.join(VARIABLES)}"),
        ('"${}"', f"there is no ${{}}; there are {', '.join(VARIABLES)}"),
        ('"${a\\n\\u001b}"', f"there is no ${{'a\\n\\x1b'}}; there are {', '.join(VARIABLES)}"),
        ("[" * 100_000, "not JSON that can be read: too deep"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_in_a_line(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        Template.parse(text)
    assert str(error.value) == why


@given(st.text())
def test_any_text_is_a_template_or_is_refused_in_a_line(text: str) -> None:
    for each in (text, json.dumps(text)):
        try:
            Template.parse(each)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1


def test_files_that_cannot_be_templates_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    for content, why in (
        (b'"\xff"', "not UTF-8 text"),
        (b'"' + b"x" * TEMPLATE_BYTES + b'"', f"more than {TEMPLATE_BYTES} bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=why):
            Template.read(file)
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero"), file / "below", Path("x" * 5000)):
        with pytest.raises(ValueError, match=r"there is no such file|the agent's own user has to be able to read it"):
            Template.read(path)


def test_the_example_makes_what_slack_takes() -> None:
    """Its limits, and nothing that strangers say where Slack looks for mentions and links."""
    template = Template.read(EXAMPLE)
    hostile = "<!channel> <https://evil|x> " * 200
    book = AlertBook()
    book.fire("ShadowFailed", "", "critical", hostile, {hostile: hostile, "b": hostile}, START)
    alerts = [*book.active(), Alert("ShadowTripped", Severity.INFO, "candidate", "-", {}, START, START)]
    for alert in alerts:
        message = body(template, alert, "")
        assert "<" not in message["text"]
        texts = []
        for block in message["blocks"]:
            texts += block.get("elements", []) or [block["text"]]
            assert len(block.get("elements", ())) <= 10
        assert all(each["type"] == "plain_text" and 1 <= len(each["text"]) <= 3000 for each in texts)
        assert len(message["blocks"][0]["text"]["text"]) <= 150
    assert NO_EVIDENCE in [block.get("text", {}).get("text") for block in message["blocks"]]
