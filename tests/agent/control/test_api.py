"""The control API: which calls reach the desk, with what, and every way to be refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.control.api import ROUTES, Api
from agent.control.request import Call, ControlError, encoded
from agent.errors import ConfigError
from tests.agent.control.fake_desk import AT, AT_NS, FakeDesk, FakeSteering

PEER = "uid 1000 (ann)"


class Bench:
    def __init__(self) -> None:
        self.steering = FakeSteering()
        self.desk = FakeDesk(self.steering)
        self.said: list[str] = []
        self.api = Api(self.steering, self.desk, self.said.append)

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        reply = self.api(Call(method, path, body, PEER, query))
        assert reply.status == 200
        encoded(reply, with_body=True)  # JSON can hold it
        return reply.body

    def refuses(self, status: int, says: str, method: str, path: str, body: Any = None, **query: str) -> None:
        with pytest.raises(ControlError) as caught:
            self(method, path, body, **query)
        assert caught.value.status == status
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert self.desk.calls == []
        assert self.said == []


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_status_has_the_shadows_and_what_the_desk_says(bench: Bench) -> None:
    bench.desk.more = {"version": 3, "harm": {"effect": float("nan"), "log_e": float("inf")}}
    status = bench("GET", "/v1/status")
    assert [shadow["name"] for shadow in status["shadows"]] == ["candidate", "other"]
    assert (status["version"], status["guards"]["other"]["state"]) == (3, "active")
    assert status["guards"]["other"]["since"] == AT
    assert status["harm"] == {"effect": None, "log_e": None}
    assert bench("HEAD", "/v1/status") == status


def test_the_shadows(bench: Bench) -> None:
    assert [shadow["name"] for shadow in bench("GET", "/v1/shadows")["shadows"]] == ["candidate", "other"]
    assert bench("GET", "/v1/shadows/other")["percentage"] == 1.0


def test_a_change_goes_to_the_desk_with_who_and_why(bench: Bench) -> None:
    body = {"percentage": 5.0, "reason": " looks\n good  "}
    assert bench("PATCH", "/v1/shadows/candidate", body)["percentage"] == 5.0
    assert bench.desk.calls == [("change", "candidate", {"percentage": 5.0}, PEER, "looks good")]
    assert bench.said == ["shadow candidate: percentage is now 5.0: looks good (uid 1000 (ann))"]


@pytest.mark.parametrize("body", [None, {}, {"reason": "why not"}])
def test_a_change_of_nothing_changes_nothing(bench: Bench, body: dict[str, Any] | None) -> None:
    assert bench("PATCH", "/v1/shadows/candidate", body)["percentage"] == 12.5
    assert (bench.desk.calls, bench.said) == ([], [])


def test_a_trip_and_a_reset(bench: Bench) -> None:
    assert bench("POST", "/v1/shadows/candidate/trip", {"reason": "looks wrong"})["state"] == "tripped"
    assert bench("POST", "/v1/shadows/candidate/reset")["state"] == "active"
    assert bench.desk.calls == [("trip", "candidate", "looks wrong", PEER), ("reset", "candidate", "", PEER)]
    assert bench.said == [
        "shadow candidate: tripped by hand: looks wrong (uid 1000 (ann))",
        "shadow candidate: reset (uid 1000 (ann))",
    ]


def test_a_reason_becomes_a_printable_line(bench: Bench) -> None:
    bench("POST", "/v1/shadows/candidate/trip", {"reason": "a\x1b[31m\tb\u202ec ü"})
    assert bench.desk.calls[0][2] == "a\\x1b[31m b\\u202ec ü"


def test_a_ramp_is_started_steered_and_shown(bench: Bench) -> None:
    path = "/v1/shadows/candidate/ramp"
    assert bench("GET", path) == {"state": "none"}
    steps = [{"percentage": 1, "hold_s": 300}, {"percentage": 100, "hold_s": 1.5}]
    assert bench("PUT", path, {"steps": steps})["state"] == "running"
    assert bench("PATCH", path, {"action": "pause"})["state"] == "paused"
    assert bench("GET", path)["steps"] == steps
    spec = {"steps": steps, "inconclusive": 0}
    assert bench.desk.calls == [("start_ramp", "candidate", spec, PEER), ("steer_ramp", "candidate", "pause", PEER)]
    assert bench.said == [
        "shadow candidate: a ramp of 2 steps begins (uid 1000 (ann))",
        "shadow candidate: ramp: pause (uid 1000 (ann))",
    ]


def test_the_verdict_with_times_for_people(bench: Bench) -> None:
    found = bench("GET", "/v1/shadows/candidate/verdict")
    assert found["period"] == {"started_ns": AT_NS, "started": AT, "version": 3}
    assert found["verdict"]["findings"][0]["examples"][0]["at"] == AT
    assert bench("GET", "/v1/shadows/other/verdict")["verdict"] is None


def test_the_history_comes_in_pages(bench: Bench) -> None:
    page = bench("GET", "/v1/history", limit="2")
    assert ([each["id"] for each in page["versions"]], page["next_before"]) == ([3, 2], 2)
    assert page["versions"][0]["at"] == AT
    last = bench("GET", "/v1/history", limit="2", before="2")
    assert ([each["id"] for each in last["versions"]], last["next_before"]) == ([1], None)
    assert "config" in bench("GET", "/v1/history/1")


@pytest.mark.parametrize(
    ("body", "version"), [(None, None), ({"version": None}, None), ({"version": 1}, 1), ({"version": 1.0}, 1)]
)
def test_a_rollback(bench: Bench, body: dict[str, Any] | None, version: int | None) -> None:
    assert bench("POST", "/v1/rollback", body)["version"] == 4
    assert bench.desk.calls == [("rollback", version, "", PEER)]
    what = "version 1" if version else "the version before"
    assert bench.said == [f"rolled back to {what} (uid 1000 (ann))"]


def test_the_audit_of_all_and_of_one(bench: Bench) -> None:
    assert [each["id"] for each in bench("GET", "/v1/audit")["entries"]] == [2, 1]
    assert [each["id"] for each in bench("GET", "/v1/audit", shadow="candidate", limit="5")["entries"]] == [2]


def test_the_alerts(bench: Bench) -> None:
    assert bench("GET", "/v1/alerts")["alerts"][0]["started"] == AT


STEP = {"percentage": 1, "hold_s": 1}
RAMP, TRIP = "/v1/shadows/candidate/ramp", "/v1/shadows/candidate/trip"


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v2/status", "/v1/status/", "/v1/shadows/candidate/ramp/x", "/v1//status",
     "/v1/shadows/candidate/", "/v1/shadow"],
)  # fmt: skip
def test_a_path_that_is_not_there(bench: Bench, path: str) -> None:
    bench.refuses(404, "GET /v1/openapi.json says what there is", "GET", path)


@pytest.mark.parametrize("path", [path for path in ROUTES if "{name}" in path])
def test_a_shadow_that_is_not_there(bench: Bench, path: str) -> None:
    for method in ROUTES[path]:
        says = "no shadow 'nobody'; there is candidate, other"
        bench.refuses(404, says, method, path.replace("{name}", "nobody"), {"reason": "x"})
    bench.refuses(404, "no shadow 'nobody'", "GET", "/v1/audit", shadow="nobody")


@pytest.mark.parametrize("number", ["0", "x", "-1", "9" * 30, "4", "1.0"])
def test_a_version_that_is_not_there(bench: Bench, number: str) -> None:
    bench.refuses(404, "no version ", "GET", f"/v1/history/{number}")


def test_a_method_that_a_path_does_not_take(bench: Bench) -> None:
    for path, methods in ROUTES.items():
        there = path.replace("{name}", "candidate").replace("{id}", "1")
        for method in {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"} - set(methods):
            if method == "HEAD" and "GET" in methods:
                continue
            with pytest.raises(ControlError) as caught:
                bench(method, there)
            assert caught.value.status == 405
            assert set(methods) <= set(caught.value.allow) <= {*methods, "HEAD"}


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", TRIP, None, "reason: say why"),
        ("POST", TRIP, {"reason": " \n"}, "reason: say why"),
        ("POST", TRIP, {"reason": 5}, "reason: give a text of at most 500 characters"),
        ("POST", TRIP, {"reason": "x" * 501}, "reason: give a text of at most 500"),
        ("POST", TRIP, {"reason": "x", "why": "y"}, "'why' is unknown in the body: there is reason"),
        ("POST", "/v1/shadows/candidate/reset", {"cause": "x"}, "'cause' is unknown in the body"),
        ("PATCH", "/v1/shadows/candidate", {"percentage": 5, "reason": None}, "reason: give a text"),
        ("PUT", RAMP, None, "steps: give 1 to 64"),
        ("PUT", RAMP, {"steps": []}, "steps: give 1 to 64"),
        ("PUT", RAMP, {"steps": [STEP] * 65}, "steps: give 1 to 64"),
        ("PUT", RAMP, {"steps": [STEP, 5]}, "steps.1: give percentage and hold_s"),
        ("PUT", RAMP, {"steps": [{**STEP, "x": 1}]}, "steps.0: give percentage and hold_s"),
        ("PUT", RAMP, {"steps": [{**STEP, "percentage": 0}]}, "steps.0.percentage: give a number above 0, up to 100"),
        ("PUT", RAMP, {"steps": [{**STEP, "percentage": True}]}, "steps.0.percentage: give"),
        ("PUT", RAMP, {"steps": [{**STEP, "percentage": 10**400}]}, "steps.0.percentage: give"),
        ("PUT", RAMP, {"steps": [{**STEP, "hold_s": "5m"}]}, "steps.0.hold_s: give seconds from 1 to 2592000"),
        ("PUT", RAMP, {"steps": [{**STEP, "hold_s": 0.5}]}, "steps.0.hold_s: give seconds"),
        ("PUT", RAMP, {"steps": [STEP], "inconclusive": 1.5}, "inconclusive: give a whole number"),
        ("PUT", RAMP, {"steps": [STEP], "inconclusive": float("inf")}, "inconclusive: give a whole number"),
        ("PUT", RAMP, {"steps": [STEP], "pause": 1}, "'pause' is unknown in the body"),
        ("PATCH", RAMP, {"action": "stop"}, "action: give one of pause, resume, abort"),
        ("PATCH", RAMP, {"action": ["pause"]}, "action: give one of"),
        ("POST", "/v1/rollback", {"version": 0}, "version: give a number of `shadowtap history`"),
        ("POST", "/v1/rollback", {"version": "1"}, "version: give a number"),
        ("POST", "/v1/rollback", {"version": True}, "version: give a number"),
        ("POST", "/v1/rollback", {"id": 1}, "'id' is unknown in the body: there is version, reason"),
    ],
)
def test_a_body_that_does_not_fit(bench: Bench, method: str, path: str, body: Any, says: str) -> None:
    bench.refuses(400, says, method, path, body)


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("/v1/status", {"verbose": "1"}, "'verbose' is unknown in the query: there is none"),
        ("/v1/history", {"shadow": "candidate"}, "'shadow' is unknown in the query: there is limit, before"),
        *(("/v1/history", {"limit": text}, "limit: give a whole number from 1 to 1000")
          for text in ("", "0", "1001", "-1", "1.0", "many", "٣", "9" * 5000)),
        ("/v1/history", {"before": "0"}, "before: give a whole number"),
        ("/v1/audit", {"limit": "x"}, "limit: give"),
    ],
)  # fmt: skip
def test_a_query_that_does_not_fit(bench: Bench, path: str, query: dict[str, str], says: str) -> None:
    bench.refuses(400, says, "GET", path, **query)


@pytest.mark.parametrize(
    "error", [ConfigError("percentage: too much"), ControlError(409, "it is tripped"), ControlError(507, "disk full")]
)
def test_what_the_desk_refuses_is_passed_on_and_nothing_is_said(bench: Bench, error: Exception) -> None:
    bench.desk.refusal = error
    for method, path, body in (
        ("PATCH", "/v1/shadows/candidate", {"percentage": 5}),
        ("POST", TRIP, {"reason": "x"}),
        ("POST", "/v1/shadows/candidate/reset", None),
        ("PUT", RAMP, {"steps": [STEP]}),
        ("PATCH", RAMP, {"action": "abort"}),
        ("POST", "/v1/rollback", None),
    ):
        with pytest.raises(type(error)) as caught:
            bench(method, path, body)
        assert caught.value is error
    assert bench.said == []
