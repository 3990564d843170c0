"""The document of the control API: it is valid, it names what the routing table has, and the real server on a real
socket does what it says, whatever schemathesis makes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from agent.control.api import ROUTES, Api
from agent.control.client import ask
from agent.control.openapi import ERRORS, OPERATIONS, document
from agent.control.readable import readable
from agent.control.schemas import SCHEMAS
from agent.control.steering import CHANGEABLE
from tests.agent.control.bridge import bridged
from tests.agent.control.fake_desk import FakeDesk, FakeSteering
from tests.agent.control.full_status import full
from tests.agent.control.loop import serving

EXAMPLES = 25
CHECKED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    positive_data_acceptance,
]


def test_the_document_is_valid() -> None:
    validate(document())


def test_the_document_has_the_paths_methods_and_queries_of_the_routing_table() -> None:
    table = {
        (path, method.lower()): set(query) for path, found in ROUTES.items() for method, (_, query) in found.items()
    }
    assert {key: {each["name"] for each in operation.query} for key, operation in OPERATIONS.items()} == table
    assert list(document()["paths"]) == list(ROUTES)


def test_every_component_is_used_and_every_operation_has_a_name_of_its_own() -> None:
    text = str(document())
    assert [name for name in SCHEMAS if f"'#/components/schemas/{name}'" not in text] == []
    names = [operation["operationId"] for _, operation in described()]
    assert len(set(names)) == len(names) == len(OPERATIONS)


def test_what_can_be_changed_is_what_steering_changes() -> None:
    assert set(SCHEMAS["ShadowChange"]["properties"]) == {*CHANGEABLE, "reason"}


def test_a_full_status_is_as_described() -> None:
    schema = {"$ref": "#/components/schemas/Status", "components": document()["components"]}
    validator = OAS31Validator(schema)
    validator.validate(json.loads(json.dumps(readable(full()))))
    wrong = {**full(), "guards": {"candidate": {"state": "off"}}}
    assert not validator.is_valid(wrong)


def test_every_operation_says_how_it_is_refused() -> None:
    for label, operation in described():
        assert {"200", "400", "404", "405"} <= set(operation["responses"]) <= {"200", *map(str, ERRORS)}
        assert ("507" in operation["responses"]) == (not label.startswith("get ")), "what changes must be recorded"


def described() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server with an agent of many states behind it listens."""
    steering = FakeSteering()
    desk = FakeDesk(steering)
    desk.trip("other", "was slow", "uid 0 (root)")
    path = tmp_path_factory.mktemp("control") / "s"
    with serving(path, handle=Api(steering, desk, lambda line: None)), bridged(path) as address:
        assert ask(path, "GET", "/v1/openapi.json") == document()
        yield address


def aimed() -> dict[str, Any]:
    """The document with names and versions of which most are there: others get no further than 404."""
    found = document()
    for item in found["paths"].values():
        for parameter in item["parameters"]:
            known = {"name": ["candidate", "other", "nobody"], "id": [1, 2, 3, 4]}[parameter["name"]]
            parameter["schema"] = {"type": parameter["schema"]["type"], "enum": known}
    return found


AIMED = {each.ok().label: each.ok() for each in schemathesis.openapi.from_dict(aimed()).get_all_operations()}
FIXED = ("GET /v1/status", "GET /v1/shadows", "GET /v1/alerts", "GET /v1/openapi.json")  # there is nothing to get wrong


def asked(url: str, label: str, mode: schemathesis.GenerationMode) -> Counter[int]:
    """Statuses of the answers, each of which is what the document says."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=AIMED[label].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        statuses[case.call_and_validate(base_url=url, checks=CHECKED).status_code] += 1

    run()
    return statuses


@pytest.mark.parametrize("label", AIMED)
def test_the_server_takes_what_the_document_allows(url: str, label: str) -> None:
    assert asked(url, label, schemathesis.GenerationMode.POSITIVE)[200] > 0


@pytest.mark.parametrize("label", [label for label in AIMED if label not in FIXED])
def test_the_server_refuses_what_the_document_does_not_allow(url: str, label: str) -> None:
    statuses = asked(url, label, schemathesis.GenerationMode.NEGATIVE)
    assert statuses[400] + statuses[404] > 0


def test_all_operations_are_played() -> None:
    assert {tuple(label.split()) for label in AIMED} == {(method.upper(), path) for path, method in OPERATIONS}
