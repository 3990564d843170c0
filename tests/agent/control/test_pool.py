"""`shadowtap pool`: what the options make of a pool, what is sent for it, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.command import CommandError
from agent.control.commands import add_parsers
from agent.control.pool import PoolError, changed, lines
from agent.control.request import Call, ControlError, Reply
from tests.agent.control.loop import serving

POOL: list[Any] = ["198.51.100.1:80", {"address": "198.51.100.2:80", "weight": 3, "cookie": "b"}, "unix:/run/a.sock"]


def options(**given: list[str]) -> argparse.Namespace:
    return argparse.Namespace(**{"add": [], "drain": [], "remove": [], **given})


def weighted(address: str, weight: int, **more: Any) -> dict[str, Any]:
    return {"address": address, "weight": weight, **more}


# What becomes of a pool


def test_nothing_asked_is_nothing_changed() -> None:
    assert changed(POOL, options()) is None


def test_a_new_one_comes_last() -> None:
    assert changed(POOL, options(add=["[2001:db8::1]:80", "shadow.example:8080=7"])) == [
        *POOL,
        weighted("[2001:db8::1]:80", 1),
        weighted("shadow.example:8080", 7),
    ]


def test_one_that_is_there_gets_the_weight_and_keeps_its_place_and_cookie() -> None:
    added = changed(POOL, options(add=["198.51.100.2:80=5", "198.51.100.1:80=0"]))
    assert added == [weighted("198.51.100.1:80", 0), weighted("198.51.100.2:80", 5, cookie="b"), "unix:/run/a.sock"]


def test_one_that_is_drained_stays_with_weight_0_until_it_is_added_again() -> None:
    drained = changed(POOL, options(drain=["198.51.100.2:80", "unix:/run/a.sock"]))
    assert drained == [POOL[0], weighted("198.51.100.2:80", 0, cookie="b"), weighted("unix:/run/a.sock", 0)]
    again = changed(drained, options(add=["198.51.100.2:80"]))
    assert again is not None
    assert again[1] == weighted("198.51.100.2:80", 1, cookie="b")


def test_one_that_is_removed_is_gone() -> None:
    assert changed(POOL, options(remove=["198.51.100.1:80", "unix:/run/a.sock"])) == [POOL[1]]
    assert changed(["a:80"], options(remove=["a:80"])) == [], "the agent says what it thinks of that"


def test_one_may_take_the_others_place_at_once() -> None:
    pool = changed(POOL, options(add=["198.51.100.9:80"], drain=["198.51.100.1:80"], remove=["unix:/run/a.sock"]))
    assert pool == [weighted("198.51.100.1:80", 0), POOL[1], weighted("198.51.100.9:80", 1)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"remove": ["a:80"]},
            r"a:80 is not in the pool: there is 198\.51\.100\.1:80, 198\.51\.100\.2:80, unix:/run/a",
        ),
        ({"drain": ["198.51.100.1"]}, "198.51.100.1 is not in the pool"),
        ({"drain": [""]}, " is not in the pool"),
        ({"add": ["a:80=many"]}, "--add a:80=many: give ADDRESS or ADDRESS=WEIGHT, the weight from 0 to 1000"),
        ({"add": ["a:80="]}, "--add a:80=: give ADDRESS or"),
        ({"add": ["a:80=-1"]}, "--add a:80=-1: give ADDRESS or"),
        ({"add": ["a:80=1.5"]}, "--add a:80=1.5: give ADDRESS or"),
        ({"add": ["a:80=1001"]}, "--add a:80=1001: give ADDRESS or"),
        ({"add": ["a:80=" + "9" * 5000]}, "give ADDRESS or ADDRESS=WEIGHT, the weight from 0 to 1000"),
        ({"add": ["a:80=²"]}, "give ADDRESS or"),
        ({"add": ["=5"]}, "give ADDRESS or"),
        ({"add": [""]}, "--add : give ADDRESS or"),
        ({"remove": ["unix:/run/a.sock"], "drain": ["unix:/run/a.sock"]}, "unix:/run/a.sock is given more than once"),
        ({"remove": ["unix:/run/a.sock"] * 2}, "unix:/run/a.sock is given more than once"),
        ({"drain": ["unix:/run/a.sock"] * 2}, "unix:/run/a.sock is given more than once"),
        ({"add": ["unix:/run/a.sock"], "remove": ["unix:/run/a.sock"]}, "more than once: add, drain or remove it"),
        ({"add": ["unix:/run/a.sock=3"], "drain": ["unix:/run/a.sock"]}, "unix:/run/a.sock is given more than once"),
        ({"add": ["a:80", "a:80=5"]}, "a:80 is given more than once"),
    ],
)
def test_what_cannot_be_meant(given: dict[str, list[str]], says: str) -> None:
    before = [*POOL]
    with pytest.raises(PoolError, match=says):
        changed(POOL, options(**given))
    assert before == POOL


names = st.sampled_from(["a:80", "b:80", "c:80", "=", "a:80=3", "b:80=x", ""])


@given(
    pool=st.lists(st.sampled_from(["a:80", "b:80", weighted("c:80", 0, cookie="x")]), max_size=3, unique_by=str),
    add=st.lists(names, max_size=2),
    drain=st.lists(names, max_size=2),
    remove=st.lists(names, max_size=2),
)
def test_any_options_give_a_pool_or_one_line(
    pool: list[Any], add: list[str], drain: list[str], remove: list[str]
) -> None:
    try:
        found = changed(pool, options(add=add, drain=drain, remove=remove))
    except PoolError as error:
        assert "\n" not in str(error)
        return
    if found is not None:
        addresses = [each["address"] if isinstance(each, dict) else each for each in found]
        assert len(set(addresses)) == len(addresses)


# What is printed


def test_each_upstream_with_what_the_workers_say() -> None:
    pool = {"engine": "embedded", "upstreams": ["198.51.100.1:80", "[2001:db8::1]:80", "198.51.100.3:80"]}
    states = {"198.51.100.1:80": {"well": 2}, "[2001:db8::1]:80": {"well": 1, "ejected": 1}}
    assert lines("candidate", pool, states) == [
        "candidate: engine embedded",
        "  198.51.100.1:80              well (2)",
        "  [2001:db8::1]:80             well (1), ejected (1)",
        "  198.51.100.3:80              not used yet",
    ]


def test_a_problem_and_an_empty_pool_are_told() -> None:
    assert lines("a", {"engine": "haproxy", "upstreams": [], "problem": "haproxy died"}, {}) == [
        "a: engine haproxy",
        "  problem: haproxy died",
        "  no upstreams",
    ]
    assert lines("a", {}, {}) == ["a: engine ?", "  no upstreams"]


# The command


class Agent:
    """An agent with one shadow."""

    def __init__(self) -> None:
        self.upstreams: list[Any] = [*POOL]
        self.sent: list[tuple[str, str, Any]] = []
        self.refusal = ""

    def __call__(self, call: Call) -> Reply:
        self.sent.append((call.method, call.path, call.body))
        shadow = {"name": "candidate", "upstreams": self.upstreams}
        if call.path == "/v1/shadows":
            return Reply({"shadows": [shadow]})
        if call.path == "/v1/status":
            addresses = [each["address"] if isinstance(each, dict) else each for each in self.upstreams]
            states = {address: {"well": 1} for address in addresses}
            pools = {"candidate": {"engine": "embedded", "upstreams": addresses, "states": states}}
            return Reply({"shadows": [shadow], "pools": pools})
        if call.path != "/v1/shadows/candidate":
            raise ControlError(404, "no shadow of that name")
        if call.method == "PATCH":
            if self.refusal:
                raise ControlError(400, self.refusal)
            self.upstreams = (call.body or {})["upstreams"]
        return Reply(shadow)


def run(agent: Agent, path: Path, *argv: str) -> int:
    parser = argparse.ArgumentParser(prog="shadowtap")
    add_parsers(parser.add_subparsers(required=True))
    with serving(path / "s", handle=agent):
        arguments = parser.parse_args(["pool", "--socket", str(path / "s"), *argv])
        status: int = arguments.run(arguments)
        return status


def test_a_pool_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent()
    assert run(agent, tmp_path) == 0
    assert {method for method, _, _ in agent.sent} == {"GET"}
    assert capsys.readouterr().out.splitlines() == [
        "candidate: engine embedded",
        "  198.51.100.1:80              well (1)",
        "  198.51.100.2:80              well (1)",
        "  unix:/run/a.sock             well (1)",
    ]


def test_a_pool_is_changed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent()
    argv = ["candidate", "--add", "a:80=2", "--remove", "198.51.100.2:80", "--drain", "unix:/run/a.sock"]
    assert run(agent, tmp_path, *argv) == 0
    pool = [POOL[0], weighted("unix:/run/a.sock", 0), weighted("a:80", 2)]
    assert agent.sent[1] == ("PATCH", "/v1/shadows/candidate", {"upstreams": pool})
    run(agent, tmp_path, "candidate", "--drain", "a:80", "--reason", "old")
    assert [body["reason"] for _, _, body in agent.sent if body and "reason" in body] == ["old"]
    assert "  a:80                         well (1)" in capsys.readouterr().out


def test_what_the_agent_refuses_is_told(tmp_path: Path) -> None:
    agent = Agent()
    agent.refusal = "shadows.candidate: upstream 'a:80' is the production address 192.0.2.1:80: choose another"
    with pytest.raises(ControlError, match="is the production address"):
        run(agent, tmp_path, "--add", "a:80")
    with pytest.raises(ControlError, match="no shadow of that name"):
        run(agent, tmp_path, "other")
    with pytest.raises(PoolError, match="not in the pool"):
        run(agent, tmp_path, "--remove", "b:80")
    with pytest.raises(CommandError, match="is no name of a shadow"):
        run(agent, tmp_path, "a/b")
    assert agent.upstreams == POOL
