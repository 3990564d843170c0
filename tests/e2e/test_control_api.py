"""The control API of the real agent: every answer is what its OpenAPI document says, for all that may be asked."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from openapi_schema_validator import OAS31Validator

from tests.e2e.agent_process import MOODS, Agent, running, steady, until
from vagrant.lab import Lab
from vagrant.lab.stage import pool_targets

pytestmark = pytest.mark.root

TIMEOUT_S = 20.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[Agent, Answer]]:
    """An agent that has something to say of everything, and its status while there was traffic."""
    with Lab(MOODS) as lab:
        settings = {
            "resources": {"interval_s": 0.5, **pool_targets(lab)},
            "harm": {"every_s": 1, "block_s": 0.5},
            "judge": {"block_s": 0.5},
        }
        with running(lab, settings) as agent:
            agent.control("set", "candidate", "percentage=90", "--reason", "a little less")
            with steady(lab, 400.0):
                agent.control("ramp", "candidate", "--steps", "50%:1h,100%:1h")
                until(lambda: complete(agent.status()), 60, "there is something of everything")
                busy = call(agent, "GET", "/v1/status")
            agent.control("trip", "candidate", "--reason", "to see an alert")
            until(lambda: "ShadowTripped" in str(agent.status()["alerts"]), what="the alert is shown")
            yield agent, busy
            assert agent.stop().status == 0


@pytest.fixture
def agent(played: tuple[Agent, Answer]) -> Agent:
    return played[0]


def complete(status: Any) -> bool:
    verdict = status["verdicts"].get("candidate") or {}
    production = status["resources"].get("production") or {}
    traffic = status["traffic"].get("candidate") or {}
    measured = production.get("cpu_cores") is not None and production.get("cpu_seconds_per_request") is not None
    return bool(verdict.get("findings") and measured and status["harm"] and traffic.get("production", {}).get("p99_ns"))


def call(agent: Agent, method: str, target: str, body: bytes | None = None) -> Answer:
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(TIMEOUT_S)
        end.connect(agent.settings["control"]["socket"])
        connection = http.client.HTTPConnection("localhost")
        connection.sock = end
        connection.request(method, target, body)
        answer = connection.getresponse()
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())


def document(agent: Agent) -> Any:
    return call(agent, "GET", "/v1/openapi.json").json


def validated(agent: Agent, answer: Answer, operation: Any) -> None:
    found = document(agent)
    described = operation["responses"][str(answer.status)]
    while "$ref" in described:
        part: Any = found
        for key in described["$ref"].removeprefix("#/").split("/"):
            part = part[key]
        described = part
    assert answer.headers["content-type"] == "application/json"
    schema = described["content"]["application/json"]["schema"]
    OAS31Validator({**schema, "components": found["components"]}).validate(answer.json)


def gets(agent: Agent) -> dict[str, Any]:
    """By path with what is there in the places of names and versions: its GET operation."""
    version = agent.status()["version"]
    return {
        path.replace("{name}", "candidate").replace("{id}", str(version)): item["get"]
        for path, item in document(agent)["paths"].items()
        if "get" in item
    }


def test_every_answer_is_as_described(agent: Agent) -> None:
    operations = gets(agent)
    assert len(operations) >= 10
    for path, operation in operations.items():
        answer = call(agent, "GET", path)
        assert answer.status == 200, path
        validated(agent, answer, operation)


def test_a_status_with_traffic_is_as_described(agent: Agent, played: tuple[Agent, Answer]) -> None:
    busy = played[1]
    validated(agent, busy, gets(agent)["/v1/status"])
    assert busy.json["ramps"]["candidate"]["state"] == "running"


def test_there_is_something_in_the_answers(agent: Agent) -> None:
    status = call(agent, "GET", "/v1/status").json
    assert status["guards"]["candidate"]["state"] == "tripped"
    assert status["ramps"]["candidate"]["state"] == "failed"
    assert call(agent, "GET", "/v1/shadows/candidate/verdict").json["verdict"]["findings"]
    assert len(call(agent, "GET", "/v1/history").json["versions"]) == 2
    assert len(call(agent, "GET", "/v1/audit").json["entries"]) >= 3
    assert "ShadowTripped" in {alert["name"] for alert in call(agent, "GET", "/v1/alerts").json["alerts"]}


def test_pages_of_the_history(agent: Agent) -> None:
    first = call(agent, "GET", "/v1/history?limit=1").json
    assert [version["id"] for version in first["versions"]] == [2]
    second = call(agent, "GET", f"/v1/history?limit=1&before={first['next_before']}").json
    assert [version["id"] for version in second["versions"]] == [1]
    assert [entry["action"] for entry in call(agent, "GET", "/v1/audit?limit=1").json["entries"]] == ["trip"]


def test_head_is_get_without_a_body(agent: Agent) -> None:
    for path in gets(agent):
        answer = call(agent, "HEAD", path)
        assert (answer.status, answer.body) == (200, b""), path
        assert int(answer.headers["content-length"]) > 2
        assert answer.headers["content-type"] == "application/json"


def test_what_there_is_not_is_one_line(agent: Agent) -> None:
    operations = gets(agent)
    for path, described in (
        ("/v1/shadows/nobody", "/v1/shadows/candidate"),
        ("/v1/shadows/nobody/verdict", "/v1/shadows/candidate/verdict"),
        ("/v1/history/4711", f"/v1/history/{agent.status()['version']}"),
    ):
        answer = call(agent, "GET", path)
        assert answer.status == 404
        validated(agent, answer, operations[described])
        assert len(answer.json["error"].splitlines()) == 1
    for path in ("/", "/v1", "/v1/status/", "/v2/status", "/metrics"):
        answer = call(agent, "GET", path)
        assert answer.status == 404
        assert "/v1/openapi.json says what there is" in answer.json["error"]


def test_methods_that_a_path_does_not_take_are_named(agent: Agent) -> None:
    for path, item in document(agent)["paths"].items():
        target = path.replace("{name}", "candidate").replace("{id}", "1")
        there = {method.upper() for method in item if method != "parameters"}
        allowed = there | ({"HEAD"} if "GET" in there else set())
        for method in {"GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"} - allowed:
            answer = call(agent, method, target, b"{}")
            assert answer.status == 405, (method, target)
            assert set(answer.headers["allow"].split(", ")) == allowed
            assert answer.json["error"].startswith(f"{target} takes ")


def test_questions_with_more_than_was_asked_for_are_refused(agent: Agent) -> None:
    for target in ("/v1/status?verbose=1", "/v1/history?limit=0", "/v1/history?limit=x", "/v1/audit?shadow=nobody"):
        answer = call(agent, "GET", target)
        assert answer.status in (400, 404), target
        assert len(answer.json["error"].splitlines()) == 1
