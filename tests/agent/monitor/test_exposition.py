"""What targets say is read, or it is a gap with its reason; nothing that they can write raises."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.monitor import exposition
from agent.monitor.exposition import Gap, Reading, Selector, answered, counted, parse_selector, read, shown

NODE = b"""# HELP node_boot_time_seconds Node boot time, in unixtime.
# TYPE node_boot_time_seconds gauge
node_boot_time_seconds 1.795915578e+09
# TYPE node_cpu_guest_seconds_total counter
node_cpu_guest_seconds_total{cpu="0",mode="user"} 5
# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{cpu="0",mode="idle"} 733.81
node_cpu_seconds_total{cpu="0",mode="iowait"} 0.95
node_cpu_seconds_total{cpu="0",mode="irq"} 1
node_cpu_seconds_total{cpu="0",mode="steal"} 2.18
node_cpu_seconds_total{cpu="0",mode="system"} 13
node_cpu_seconds_total{cpu="0",mode="user"} 24.5
node_cpu_seconds_total{cpu="1",mode="user"} 100
node_memory_MemAvailable_bytes 2e+09
node_memory_MemTotal_bytes 8e+09
process_cpu_seconds_total 0.02
process_resident_memory_bytes 1.5e+07
"""
PROCESSES = b"""process_cpu_seconds_total{pid="1"} 3
process_cpu_seconds_total{pid="2"} 4 1700000000000
process_resident_memory_bytes{pid="1"} 100
process_resident_memory_bytes{pid="2"} 50
process_start_time_seconds{pid="1"} 1000
process_start_time_seconds{pid="2"} 1001
"""
HAPROXY = rb"""# TYPE haproxy_backend_http_responses_total counter
haproxy_backend_http_responses_total{proxy="web",code="2xx"} 100
haproxy_backend_http_responses_total{proxy="web",code="5xx"} 7
haproxy_backend_http_responses_total{proxy="other",code="2xx"} 1000
haproxy_backend_http_responses_total{proxy="a \"b\" \\ c",code="2xx"} 3
"""


def reading(body: bytes) -> Reading:
    found = read(body)
    assert isinstance(found, Reading), found
    return found


def why(found: Any) -> str:
    assert isinstance(found, Gap)
    assert found.why.isprintable() and 0 < len(found.why) < 300
    return found.why


def test_a_host_is_busy_in_every_mode_that_is_its_own_and_counts_once() -> None:
    found = reading(NODE)
    assert found.source == "node"
    assert sum(found.cpu_seconds.values()) == 1 + 13 + 24.5 + 100
    assert found.memory_bytes == 6e9
    assert found.started == {(): 1.795915578e9}


def test_guests_as_modes_are_not_counted_twice() -> None:
    more = (
        NODE + b'node_cpu_seconds_total{cpu="0",mode="guest"} 5\nnode_cpu_seconds_total{cpu="0",mode="guest_nice"} 5\n'
    )
    assert reading(more) == reading(NODE)


def test_processes_are_series_of_their_own() -> None:
    found = reading(PROCESSES)
    assert found.source == "process"
    assert found.cpu_seconds == {(("pid", "1"),): 3, (("pid", "2"),): 4}
    assert found.memory_bytes == 150
    assert len(found.started) == 2


def test_half_of_what_is_wanted_is_a_reading_of_that_half() -> None:
    assert reading(b"process_cpu_seconds_total 3\n").memory_bytes is None
    assert reading(b"process_resident_memory_bytes 3\n").cpu_seconds == {}
    assert reading(b"node_memory_MemTotal_bytes 3\n").memory_bytes is None  # used cannot be told


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"", "empty"),
        (b"go_threads 3\n", "neither"),
        (b"# nothing\n", "neither"),
        (b"<html>502 Bad Gateway</html>\n", "neither"),
        (b"process_cpu_seconds_total 3", "no end"),  # the last digits may be missing
        (b"process_cpu_seconds_total NaN\n", "cannot be read"),
        (b"process_cpu_seconds_total +Inf\n", "cannot be read"),
        (b"process_cpu_seconds_total -1\n", "cannot be read"),
        (b"process_cpu_seconds_total \n", "cannot be read"),
        (b"process_cpu_seconds_total 1\nprocess_cpu_seconds_total 2\n", "twice"),
        (b'process_cpu_seconds_total{a="b 1\n', "cannot be read"),
        (b"process_cpu_seconds_total{\xff} 1\x1b[2J\n", "cannot be read"),
        (b"process_cpu_seconds_total " + b"9" * 5000 + b"\n", "too long"),
        (b"process_cpu_seconds_total " + b"9" * 4000 + b"\n", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_a_gap(body: bytes, reason: str) -> None:
    assert reason in why(read(body))


def test_lines_that_nobody_wants_may_be_anything() -> None:
    odd = b"other{{{{ \xff\n" + b"x" * 10_000 + b"\nprocess_cpu_seconds_totality nonsense\n"
    assert reading(odd + PROCESSES) == reading(PROCESSES)


def test_series_without_end_are_a_gap() -> None:
    lines = b"".join(b'process_cpu_seconds_total{pid="%d"} 1\n' % n for n in range(exposition.SERIES_LIMIT + 1))
    assert "too many" in why(read(lines))


@pytest.mark.parametrize(
    "body",
    [
        b"a" * (8 << 20) + b"\n",
        b" " * (8 << 20) + b"\n",
        b"process_cpu_seconds_total" * 300_000 + b"\n",
        b'process_cpu_seconds_total{a="' + b'\\"' * 2000 + b'"} 1\n',
        b"x 1\n" * (2 << 20),
    ],
)
def test_no_body_takes_long(body: bytes) -> None:
    began = time.perf_counter()
    read(body)
    assert time.perf_counter() - began < 3


def test_a_selector_takes_the_series_with_its_labels() -> None:
    web = parse_selector('haproxy_backend_http_responses_total{proxy="web"}')
    found = counted(HAPROXY, web)
    assert isinstance(found, dict)
    assert sorted(found.values()) == [7, 100]
    every = counted(HAPROXY, parse_selector(" haproxy_backend_http_responses_total "))
    assert isinstance(every, dict) and len(every) == 4
    odd = counted(HAPROXY, parse_selector(r'haproxy_backend_http_responses_total{proxy="a \"b\" \\ c",}'))
    assert isinstance(odd, dict) and sum(odd.values()) == 3
    assert "no such series" in why(counted(HAPROXY, parse_selector('haproxy_backend_http_responses_total{a="b"}')))


def test_a_counter_whose_name_lacks_total_is_found() -> None:
    assert counted(b"# TYPE hits counter\nhits 5\n", Selector("hits", frozenset())) == {(): 5.0}


@pytest.mark.parametrize("text", ["", "a b", 'a{b=~"c"}', "a{b=c}", 'a{b="c"', 'a{b="c" d="e"}', "{}", 'a{="b"}', "1a"])
def test_other_selectors_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name"):
        parse_selector(text)


def answer(kind: str, result: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()


def test_numbers_of_an_answer_are_added_up() -> None:
    assert answered(answer("vector", [{"metric": {}, "value": [1, "1.5"]}, {"metric": {}, "value": [1, "2"]}])) == 3.5
    assert answered(answer("scalar", [1, "4"])) == 4


@pytest.mark.parametrize(
    "body, reason",
    [
        (answer("vector", []), "finds nothing"),
        (answer("matrix", []), "moment"),
        (answer("vector", [{"value": [1, "NaN"]}]), "0 or more"),
        (answer("vector", [{"value": [1, "-3"]}]), "0 or more"),
        (answer("vector", [{"value": [1, "1e308"]}] * 3), "0 or more"),
        (answer("vector", [{"value": [1, 3]}]), "Prometheus"),
        (answer("vector", {"value": 3}), "Prometheus"),
        (answer("scalar", "ab"), "Prometheus"),
        (b'{"status": "error", "error": "parse error\\n\\u001b[2J"}', "parse error"),
        (b"[" * 100_000, "Prometheus"),
        (b"null", "Prometheus"),
        (b'{"status": "success"}', "Prometheus"),
        (b"\xff", "Prometheus"),
        (b'{"status": ' + b"9" * 10_000 + b"}", "Prometheus"),
    ],
)
def test_other_answers_are_gaps(body: bytes, reason: str) -> None:
    assert reason in why(answered(body))


NAMES = ["process_cpu_seconds_total", "node_cpu_seconds_total", "node_memory_MemTotal_bytes", "mode"]
SIGNS = ["{", "}", '"', "\\", ",", "=", "-", "_", " ", "\t", "\n", "\r", "\x00", "# TYPE ", "# HELP ", " counter"]
WORDS = st.sampled_from([*NAMES, *SIGNS, "#", "1", "1e999", "NaN", "5e-324", "1e18", "é"])


@given(st.lists(WORDS, max_size=40).map(lambda words: "".join(words).encode()) | st.binary(max_size=200))
@example(b"process_cpu_seconds_total{,} 1\n")
@example(b"process_cpu_seconds_total # {} 1\n")
def test_any_body_is_a_reading_or_a_gap(body: bytes) -> None:
    for each in (body, body + b"\n", b"process_cpu_seconds_total" + body + b"\n"):
        for found in (read(each), counted(each, Selector("mode", frozenset())), answered(each)):
            if isinstance(found, Gap):
                why(found)
            elif isinstance(found, Reading):
                assert all(0 <= value <= exposition.LARGEST for value in found.cpu_seconds.values())


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["vector", "scalar", "success"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["status", "data", "result", "resultType", "value", "error"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(VALUES, VALUES)
def test_any_json_is_a_number_or_a_gap(whole: Any, result: Any) -> None:
    bodies = (json.dumps(whole).encode(), answer("vector", result), answer("vector", [{"value": result}]))
    for found in map(answered, bodies):
        assert isinstance(found, float) or why(found)


@given(st.text(max_size=300))
def test_what_strangers_wrote_fits_one_line(text: str) -> None:
    assert shown(text).isprintable() and len(shown(text)) <= exposition.TEXT_LIMIT
