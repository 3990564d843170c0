"""What the lines of the history say, and what they must not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import parse
from agent.control.diff import LINES_LIMIT, diff

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "one number": ({"a": {"b": 5.0}}, {"a": {"b": 25.0}}, ["a.b: 5.0 -> 25.0"]),
    "in the order of names": ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a: 1 -> 2", "b: 1 -> 2"]),
    "the same": ({"a": [1, {"b": None}]}, {"a": (1, {"b": None})}, []),
    "a number is no switch": ({"a": 1}, {"a": True}, ["a: 1 -> true"]),
    "comes": ({}, {"a": {"b": 1, "c": 2}}, ["a.b: not set -> 1", "a.c: not set -> 2"]),
    "goes": ({"a": {"b": 1}}, {}, ["a.b: 1 -> not set"]),
    "empty goes": ({"a": {}}, {}, ["a: {} -> not set"]),
    "within a list": ({"a": [{"w": 1}, {"w": 2}]}, {"a": [{"w": 1}, {"w": 3}]}, ["a[1].w: 2 -> 3"]),
    "a longer list": ({"a": [1]}, {"a": [1, 2]}, ["a: [1] -> [1, 2]"]),
    "a path": ({"a": Path("/x")}, {"a": Path("/y")}, ['a: "/x" -> "/y"']),
    "text in quotes": ({"a": "x\n"}, {"a": None}, ['a: "x\\n" -> null']),
}


@pytest.mark.parametrize("case", CASES)
def test_each_setting_has_its_line(case: str) -> None:
    old, new, lines = CASES[case]
    assert diff(old, new) == lines


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"password": "s3cret-1"}, {"password": "s3cret-2"}),
        ({"token": None}, {"token": "s3cret"}),
        ({"Authorization": "s3cret"}, {}),
        ({"headers": {"X.Y.Z": "s3cret"}}, {"headers": {"X.Y.Z": "other"}}),
        ({"headers": [["X", "s3cret"]]}, {"headers": []}),
        ({"token": {"value": {"deep": "s3cret"}}}, {"token": {"value": {"deep": "other"}}}),
        ({"hooks": []}, {"hooks": [{"url": "https://u:s3cret@host/s3cret?s3cret", "headers": {"a": "s3cret"}}]}),
        ({"url": "https://hooks.test/services/s3cret"}, {"url": "https://hooks.test/services/s3cret-2"}),
        ({"url": "https://hooks.test?s3cret"}, {"url": "https://hooks.test#s3cret"}),
    ],
)
def test_secrets_are_left_out(old: dict[str, Any], new: dict[str, Any]) -> None:
    lines = diff(old, new) + diff(new, old)
    assert lines
    assert [line for line in lines if "s3cret" in line] == []


def test_of_a_url_the_host_is_shown() -> None:
    assert diff({"url": "http://a:9093"}, {"url": "http://u:p@b:9093/x"}) == [
        'url: "http://a:9093" -> "http://b:9093/..."'
    ]


def test_a_setting_whose_name_sounds_secret_but_is_not_is_shown() -> None:
    assert diff({"sticky_cookie": ""}, {"sticky_cookie": "SID"}) == ['sticky_cookie: "" -> "SID"']


def test_values_and_lines_are_bounded() -> None:
    assert len(diff({"a": "x" * 10_000}, {"a": "y" * 10_000})[0]) < 140
    many = diff({}, {f"k{i:04}": i for i in range(1000)})
    assert (len(many), many[-1]) == (LINES_LIMIT + 1, "and 900 more")


def test_a_real_configuration_is_compared() -> None:
    text = "capture: {interface: lo, ports: [80]}\nshadows: {one: {percentage: 5, upstreams: ['198.51.100.1:80']}}\n"
    old, new = parse(text, "old").data, parse(text.replace("5,", "25,").replace(".1:80", ".2:80"), "new").data
    assert diff(old, new) == [
        "shadows.one.percentage: 5.0 -> 25.0",
        'shadows.one.upstreams[0].address: "198.51.100.1:80" -> "198.51.100.2:80"',
    ]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
configs = st.dictionaries(st.text(max_size=5), values, max_size=4)


@given(configs, configs)
def test_lines_are_one_line_each_and_there_are_none_only_for_equals(old: dict[str, Any], new: dict[str, Any]) -> None:
    lines = diff(old, new)
    assert diff(old, old) == []
    assert lines == diff(old, new)
    assert all(len(line.splitlines()) == 1 for line in lines)
    if not lines:
        assert old == new
