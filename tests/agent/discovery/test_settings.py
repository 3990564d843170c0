"""What all sources share: order and limits of a pool, problems in one line, and when a question is asked again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import messages
from agent.discovery.scout import as_message
from agent.discovery.settings import (
    AGAIN_MAX_S,
    AGAIN_MIN_S,
    LOOK_S,
    PROBLEM_CHARS,
    UPSTREAMS_MAX,
    WEIGHT_MAX,
    Answers,
    DnsSource,
    FileSource,
    Found,
    Settings,
    TargetGroup,
    as_json,
    found,
    from_json,
    read_nameserver,
    summed_up,
)
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Oracle:
    """Answers with what is set, good for ten seconds; UpstreamError where nothing is."""

    def __init__(self, clock: Clock, **answers: str) -> None:
        self.clock = clock
        self.answers = answers
        self.asked: list[str] = []
        self.takes_s = 0.0
        self.good_s = 10.0

    def __call__(self, question: str) -> tuple[str, float]:
        self.asked.append(question)
        self.clock.now_s += self.takes_s
        if question not in self.answers:
            raise UpstreamError(f"nothing of {question}")
        return self.answers[question], self.good_s

    def told(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


def answers_of(oracle: Oracle) -> Answers[str, str]:
    return Answers(oracle, oracle.clock, 2.0, 60.0)


@pytest.mark.parametrize(
    "settings",
    [
        DnsSource("shadow.example", 8080),
        DnsSource("_http._tcp.shadow.example", type="SRV", nameservers=("127.0.0.1:5353", "[::1]:53")),
        FileSource("/etc/shadowtap/pool-*.yaml"),
        TargetGroup("arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/shadow/0123456789abcdef"),
        TargetGroup("arn", "http://127.0.0.1:5000"),
    ],
)
def test_settings_survive_json(settings: Settings) -> None:
    assert from_json(json.loads(json.dumps(as_json(settings)))) == settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    ],
)
def test_nameservers_have_a_port_or_not(text: str, expected: tuple[str, int]) -> None:
    assert read_nameserver(text) == expected


@pytest.mark.parametrize("text", ["", "ns1.example", "ns1.example:53", "127.0.0.1:", "127.0.0.1:0", "[::1]", "1:2:3"])
def test_nameservers_are_numeric(text: str) -> None:
    with pytest.raises(UpstreamError, match="give its numeric address"):
        read_nameserver(text)


def test_a_pool_is_sorted_and_names_each_address_once() -> None:
    specs = [UpstreamSpec("b:1"), UpstreamSpec("a:1", 2), UpstreamSpec("b:1", 3, "x"), UpstreamSpec("a:1")]
    expected = Found((UpstreamSpec("a:1", 2), UpstreamSpec("b:1", 3, "x")), 5.0, "")
    assert found(specs, 5.0, []) == found(reversed(specs), 5.0, []) == expected


def test_a_pool_that_is_too_large_is_cut_and_says_so() -> None:
    specs = [UpstreamSpec(f"10.0.{n >> 8}.{n & 255}:80") for n in range(UPSTREAMS_MAX + 1)]
    assert len(found(specs[1:], 5.0, []).upstreams) == UPSTREAMS_MAX
    assert found(specs[1:], 5.0, []).problem == ""
    cut = found(specs, 5.0, ["and another thing"])
    assert cut.upstreams == found(specs, 5.0, []).upstreams
    assert len(cut.upstreams) == UPSTREAMS_MAX
    assert cut.problem == "1025 upstreams are too many: only the first 1024 by address are used; and another thing"


def test_the_largest_pool_fits_a_message() -> None:
    address = "[fe80:1111:2222:3333:4444:5555:6666:{:04x}%interface-of-15]:65535"
    specs = [UpstreamSpec(address.format(n), WEIGHT_MAX, '"' * 64) for n in range(UPSTREAMS_MAX)]
    result = found(specs, 5.0, ["ä" * PROBLEM_CHARS])
    assert 100 < len(result.upstreams) < UPSTREAMS_MAX
    assert "too many" in result.problem
    assert messages.fits(as_message("s" * 63, result))


@given(st.lists(st.text()))
def test_problems_are_one_line_of_bounded_length(problems: list[str]) -> None:
    line = summed_up(problems)
    assert len(line) <= PROBLEM_CHARS
    assert line.isprintable()


def test_problems_are_told_once_and_not_all() -> None:
    assert summed_up([]) == ""
    assert summed_up(["a\n b", "c", "a\n b"]) == "a b; c"
    assert summed_up("abcde") == "a; b; c; and 2 more"


@pytest.mark.parametrize(("asked_s", "expected_s"), [(0, AGAIN_MIN_S), (-5, AGAIN_MIN_S), (7, 7), (1e9, AGAIN_MAX_S)])
def test_looks_are_neither_too_many_nor_too_few(asked_s: float, expected_s: float) -> None:
    assert found([], asked_s, []).again_in_s == expected_s


def test_a_question_is_asked_again_when_its_answer_is_over() -> None:
    clock = Clock()
    oracle = Oracle(clock, a="1", b="2")
    answers = answers_of(oracle)
    assert answers.look("ab") == {"a": "1", "b": "2"}
    assert (oracle.told(), answers.again_in_s, answers.problems) == (["a", "b"], 10.0, [])
    clock.now_s += 9.9
    oracle.answers["a"] = "3"
    assert answers.look("ab") == {"a": "1", "b": "2"}
    assert answers.again_in_s == pytest.approx(0.1)
    clock.now_s += 0.2
    assert answers.look("ab") == {"a": "3", "b": "2"}
    assert oracle.told() == ["a", "b"]


def test_a_failure_keeps_the_answer_and_is_tried_again_ever_later() -> None:
    clock = Clock()
    oracle = Oracle(clock, a="1")
    answers = answers_of(oracle)
    answers.look("a")
    del oracle.answers["a"]
    pauses = []
    for _ in range(7):
        clock.now_s += answers.again_in_s
        assert answers.look("a") == {"a": "1"}
        assert answers.problems == ["nothing of a"]
        pauses.append(answers.again_in_s)
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    oracle.answers["a"] = "2"
    clock.now_s += 60
    assert answers.look("a") == {"a": "2"}
    assert (answers.problems, answers.again_in_s) == ([], 10.0)
    del oracle.answers["a"]
    clock.now_s += 10
    answers.look("a")
    assert answers.again_in_s == 2  # the pauses begin anew


def test_what_never_had_an_answer_has_none() -> None:
    oracle = Oracle(Clock(), b="2")
    answers = answers_of(oracle)
    assert answers.look("ab") == {"b": "2"}
    assert answers.problems == ["nothing of a"]


@pytest.mark.parametrize(("good_s", "expected_s"), [(0.0, AGAIN_MIN_S), (1e9, AGAIN_MAX_S)])
def test_an_answer_is_good_for_a_bounded_time(good_s: float, expected_s: float) -> None:
    oracle = Oracle(Clock(), a="1")
    oracle.good_s = good_s
    answers = answers_of(oracle)
    answers.look("a")
    assert answers.again_in_s == expected_s


def test_what_is_not_asked_for_is_forgotten() -> None:
    oracle = Oracle(Clock(), a="1", b="2")
    answers = answers_of(oracle)
    answers.look("ab")
    answers.look("a")
    oracle.told()
    assert answers.look("ab") == {"a": "1", "b": "2"}
    assert oracle.told() == ["b"]
    assert answers.look("") == {}
    assert answers.again_in_s == AGAIN_MAX_S


def test_a_look_ends_in_time_and_the_rest_has_its_turn() -> None:
    clock = Clock()
    oracle = Oracle(clock)  # knows nothing, slowly
    oracle.takes_s = 9.0
    answers = answers_of(oracle)
    started_s = clock()
    answers.look("abcdef")
    assert oracle.told() == ["a", "b", "c"]
    assert clock() - started_s < LOOK_S + oracle.takes_s
    assert answers.problems[-1] == "3 names are still to be looked up"
    assert answers.again_in_s == 0
    answers.look("abcdef")
    assert oracle.told() == ["d", "e", "f"]  # although a, b and c are due again
    assert "still" not in "".join(answers.problems)
