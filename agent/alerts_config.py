"""The configuration of alerts: who is told, and how often."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from agent.fields import Directory, Model, Seconds
from agent.monitor.alertmanager import OWN_LABELS
from agent.monitor.webhook import Template

DESTINATIONS_MAX = 16  # each has a thread
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OF_THE_CONNECTION = ("host", "content-length", "transfer-encoding", "connection")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PLACEHOLDER = "{shadow}"


def _check_url(url: str) -> str:
    """The URL again, if it can be asked; ValueError."""
    if not re.fullmatch(r"[!-~]{1,2000}", url):
        raise ValueError("not a URL: give printable ASCII without spaces, at most 2000 characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give a URL that begins with http:// or https:// and names a host")
    if "@" in parts.netloc:
        raise ValueError("a user and password do not belong into the URL: give headers, with Authorization")
    if parts.fragment:
        raise ValueError("a URL to send to has no #fragment")
    return url


def _check_base(url: str) -> str:
    if urlsplit(_check_url(url)).query:
        raise ValueError("give the address of an Alertmanager, without ?query")
    return url


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER.fullmatch(name):
            raise ValueError(f"{name!a} is not the name of a header")
        if name.lower() in _OF_THE_CONNECTION:
            raise ValueError(f"{name} is not to be set: it follows from the message")
        if not re.fullmatch(r"[\x20-\x7e\t]*", value) or value.strip() != value:
            raise ValueError(f"the value of {name} cannot be sent: give printable ASCII, no spaces around it")
    return headers


Headers = Annotated[dict[str, str], Field(max_length=32, repr=False), AfterValidator(_check_headers)]


class AlertmanagerConfig(Model):
    """One Alertmanager; its URL alone says the same."""

    url: Annotated[str, AfterValidator(_check_base)]  # without /api/v2/alerts
    headers: Headers = {}

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class WebhookConfig(Model):
    """One receiver of messages; its URL alone says the same."""

    url: Annotated[str, AfterValidator(_check_url)]
    template: Directory | None = None  # JSON text with variables, see agent.monitor.webhook
    headers: Headers = {}

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("template")
    @classmethod
    def _template(cls, value: Directory | None, info: ValidationInfo) -> Directory | None:
        """Read at once, so that it is not found wrong when it is needed. Not so with the context {"files": False},
        for a stored configuration: a file that is gone must not stand in the way of a rollback."""
        if value is not None and (info.context or {}).get("files", True):
            Template.read(value)
        return value


class AlertsConfig(Model):
    """Who is told of what goes wrong."""

    log: bool = True
    alertmanager: Annotated[list[AlertmanagerConfig], Field(max_length=DESTINATIONS_MAX)] = []
    webhooks: Annotated[list[WebhookConfig], Field(max_length=DESTINATIONS_MAX)] = []
    resend_s: Annotated[Seconds, Field(ge=1, le=3600)] = 60.0  # an alert ends four times as long after the last
    hold_s: Annotated[float, Field(ge=0, le=3600)] = 60.0  # an alert that ended is over when it stays so for so long
    report_url: str = ""  # {shadow} stands for the name of the shadow
    labels: Annotated[dict[str, Annotated[str, Field(max_length=200)]], Field(max_length=32)] = {}  # for Alertmanager

    @field_validator("report_url")
    @classmethod
    def _report_url(cls, value: str) -> str:
        rest = value.replace(_PLACEHOLDER, "x")
        if "{" in rest or "}" in rest:
            raise ValueError("the only thing in braces there is {shadow}")
        if value and (urlsplit(value).scheme not in ("http", "https") or not re.fullmatch("[!-~]{1,2000}", value)):
            raise ValueError("give a URL that begins with http:// or https://, or nothing")
        return value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _LABEL.fullmatch(name) or name.startswith("__"):
                raise ValueError(f"{name!a} is not the name of a label: letters, digits and _, no digit first")
            if name in OWN_LABELS:
                raise ValueError(f"{name} is a label that the agent sets itself")
            if not text.isprintable():
                raise ValueError(f"the value of {name} is not printable")
        return value
