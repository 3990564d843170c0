"""The configuration of alerts: what may be written, and what each rule says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.alerts_config import DESTINATIONS_MAX, AlertsConfig


def config(**fields: Any) -> AlertsConfig:
    return AlertsConfig.model_validate(fields)


def refused(**fields: Any) -> str:
    with pytest.raises(ValidationError) as error:
        config(**fields)
    (fault,) = error.value.errors()
    key = ".".join(map(str, fault["loc"]))
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}"


def test_what_is_not_said_has_a_default() -> None:
    made = config()
    assert (made.log, made.alertmanager, made.webhooks, made.resend_s, made.hold_s) == (True, [], [], 60, 60)
    assert (made.report_url, made.labels) == ("", {})


def test_a_url_alone_says_the_same() -> None:
    short = config(alertmanager=["http://a:9093"], webhooks=["https://h.example/x?y=z"])
    assert short == config(alertmanager=[{"url": "http://a:9093"}], webhooks=[{"url": "https://h.example/x?y=z"}])


def test_as_data_it_is_read_again(tmp_path: Path) -> None:
    template = tmp_path / "t.json"
    template.write_text('{"text": "${summary}"}')
    hook = {"url": "https://h", "template": str(template), "headers": {"Authorization": "Bearer x"}}
    made = config(alertmanager=["http://[2001:db8::1]:9093"], webhooks=[hook], labels={"team": "web"})
    assert config(**made.model_dump()) == config(**json.loads(made.model_dump_json())) == made


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://h/", "give a URL that begins with http:// or https:// and names a host"),
        ("file:///etc/passwd", "give a URL that begins with http:// or https:// and names a host"),
        ("h.example:9093", "give a URL that begins with http:// or https:// and names a host"),
        ("http://", "give a URL that begins with http:// or https:// and names a host"),
        ("http://h:x", "not a URL: Port could not be cast to integer value as 'x'"),
        ("http://h:99999", "not a URL: Port out of range 0-65535"),
        ("http://[::1", "not a URL: Invalid IPv6 URL"),
        ("http://h/a b", "not a URL: give printable ASCII without spaces, at most 2000 characters"),
        ("http://h/\r\nX: y", "not a URL: give printable ASCII without spaces, at most 2000 characters"),
        ("", "not a URL: give printable ASCII without spaces, at most 2000 characters"),
        ("http://u:p@h", "a user and password do not belong into the URL: give headers, with Authorization"),
        ("http://h/#x", "a URL to send to has no #fragment"),
    ],
)
def test_urls_that_cannot_be_sent_to_are_refused(url: str, why: str) -> None:
    assert refused(webhooks=[url]) == f"webhooks.0.url: {why}"
    assert refused(alertmanager=[{"url": url}]) == f"alertmanager.0.url: {why}"


def test_an_alertmanager_has_no_query() -> None:
    assert refused(alertmanager=["http://h?x"]) == (
        "alertmanager.0.url: give the address of an Alertmanager, without ?query"
    )


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"A b": "x"}, "'A b' is not the name of a header"),
        ({"Host": "x"}, "Host is not to be set: it follows from the message"),
        ({"content-length": "5"}, "content-length is not to be set: it follows from the message"),
        ({"A": "x\r\nB: y"}, "the value of A cannot be sent: give printable ASCII, no spaces around it"),
        ({"A": "\u00e9"}, "the value of A cannot be sent: give printable ASCII, no spaces around it"),
        ({"A": "x "}, "the value of A cannot be sent: give printable ASCII, no spaces around it"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, str], why: str) -> None:
    assert refused(webhooks=[{"url": "http://h", "headers": headers}]) == f"webhooks.0.headers: {why}"


def test_what_a_header_says_is_not_shown() -> None:
    assert "secret" not in repr(config(webhooks=[{"url": "http://h", "headers": {"Authorization": "secret"}}]))


def test_a_template_is_read_at_once(tmp_path: Path) -> None:
    template = tmp_path / "t.json"
    fields = {"webhooks": [{"url": "http://h", "template": str(template)}]}
    assert refused(**fields) == "webhooks.0.template: there is no such file"
    template.write_text('{"text": "${sumary}"}')
    assert refused(**fields).startswith("webhooks.0.template: there is no ${sumary}; there are name, severity,")
    template.write_text("{")
    assert refused(**fields).startswith("webhooks.0.template: line 1: not JSON: ")
    template.write_text('{"text": "${summary}"}')
    assert config(**fields).webhooks[0].template == template


def test_a_stored_configuration_does_not_need_its_files(tmp_path: Path) -> None:
    fields = {"webhooks": [{"url": "http://h", "template": str(tmp_path / "gone.json")}]}
    made = AlertsConfig.model_validate(fields, context={"files": False})
    assert made.webhooks[0].template == tmp_path / "gone.json"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://r/{shadow}/{host}", "the only thing in braces there is {shadow}"),
        ("https://r/{", "the only thing in braces there is {shadow}"),
        ("r.example", "give a URL that begins with http:// or https://, or nothing"),
        ("https://r/ x", "give a URL that begins with http:// or https://, or nothing"),
    ],
)
def test_the_link_to_the_report_is_checked(url: str, why: str) -> None:
    assert refused(report_url=url) == f"report_url: {why}"
    assert config(report_url="https://r.example/{shadow}?{shadow}#x").report_url


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"a-b": "x"}, "'a-b' is not the name of a label: letters, digits and _, no digit first"),
        ({"1a": "x"}, "'1a' is not the name of a label: letters, digits and _, no digit first"),
        ({"__a": "x"}, "'__a' is not the name of a label: letters, digits and _, no digit first"),
        ({"severity": "x"}, "severity is a label that the agent sets itself"),
        ({"a": "x\ny"}, "the value of a is not printable"),
    ],
)
def test_labels_are_checked(labels: dict[str, str], why: str) -> None:
    assert refused(labels=labels) == f"labels: {why}"


def test_there_are_limits() -> None:
    assert refused(webhooks=["http://h"] * (DESTINATIONS_MAX + 1)).startswith("webhooks: List should have at most")
    assert refused(resend_s=0.5).startswith("resend_s: Input should be greater than or equal to 1")
    assert refused(hold_s=-1).startswith("hold_s: ")
    assert refused(pager=True) == "pager: Extra inputs are not permitted"
