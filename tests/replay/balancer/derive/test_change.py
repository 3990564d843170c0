"""Changes: how they are shown, and what they do not account for."""

from __future__ import annotations

import pytest

from replay.balancer.derive.change import Change, render_changes, unexplained


def test_changes_are_shown_with_place_and_reason() -> None:
    changes = [
        Change("a.cfg", 3, " bind :80\r", " bind 127.0.0.1:1\r", "why"),
        Change("a.cfg", 3, None, " more", "because"),
        Change("a.cfg", 9, "one\ntwo", None, "out"),
    ]
    assert render_changes(changes) == [
        "a.cfg:3  why", "-  bind :80", "+  bind 127.0.0.1:1", "a.cfg:3  because", "+  more", "a.cfg:9  out", "- one",
        "- two",
    ]  # fmt: skip


SOURCE = ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("derived", "changes", "rest"),
    [
        (["a", "b", "c", "a"], [], []),
        (["a", "B", "c", "a"], [Change("f", 2, "b", "B", "")], []),
        (["a", "c", "a"], [Change("f", 2, "b", None, "")], []),
        (["x", "a", "b", "c", "a", "y"], [Change("f", 0, None, "x", ""), Change("f", 4, None, "y", "")], []),
        (["a", "b", "p", "q", "c", "a"], [Change("f", 2, None, "p", ""), Change("f", 2, None, "q", "")], []),
        (["a", "one", "a"], [Change("f", 2, "b\nc", "one", "")], []),
        (["a", "b", "c", "a"], [Change("f", 2, "b", "B", "")], ["- B", "+ b"]),
        (["a", "B", "c", "a"], [], ["- b", "+ B"]),
        (["a", "B", "c", "a"], [Change("f", 3, "b", "B", "")], ["- b", "+ B"]),  # in the wrong place
        (["a", "B", "c", "a"], [Change("f", 2, "x", "B", "")], ["- b", "+ B"]),  # not what stands there
        (["b", "c", "a"], [Change("f", 4, "a", None, "")], ["- a", "+ a"]),  # the other one of two alike
        (["a", "b", "c", "a", "z"], [], ["+ z"]),
    ],
)
def test_what_no_change_accounts_for(derived: list[str], changes: list[Change], rest: list[str]) -> None:
    assert sorted(unexplained(SOURCE, derived, changes)) == sorted(rest)
