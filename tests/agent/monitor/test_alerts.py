"""The book of alerts: what is told to whom and when, over repeats, rises, flapping, restarts and jumps of the clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.monitor.alerts import (
    ALERTS_MAX,
    EVIDENCE_CHARS,
    EVIDENCE_ENTRIES,
    KEPT_BYTES,
    SUMMARY_CHARS,
    Alert,
    AlertBook,
    Notice,
    Receiver,
    Severity,
    one_line,
    report_link,
    rfc3339,
)

S = 1_000_000_000
START = 1_700_000_000 * S


def at(seconds: float) -> int:
    return START + int(seconds * S)


def fire(
    book: AlertBook,
    seconds: float,
    severity: str = "warning",
    name: str = "ShadowFailed",
    shadow: str = "candidate",
    **evidence: object,
) -> None:
    book.fire(name, shadow, severity, "slower", evidence, at(seconds))


def resolve(book: AlertBook, seconds: float, name: str = "ShadowFailed") -> None:
    book.resolve(name, "candidate", at(seconds))


def people(notices: list[Notice]) -> list[str]:
    return [f"{n.alert.state} {n.alert.severity}" for n in notices if n.receiver is Receiver.PEOPLE]


def manager(notices: list[Notice]) -> list[str]:
    return [f"{n.alert.state} {n.alert.severity}" for n in notices if n.receiver is Receiver.ALERTMANAGER]


def told(book: AlertBook, seconds: float) -> tuple[list[str], list[str]]:
    notices = book.due(at(seconds))
    return people(notices), manager(notices)


def test_an_alert_is_told_once_to_people_and_every_round_to_alertmanager() -> None:
    book = AlertBook()
    assert told(book, 0) == ([], [])
    fire(book, 10)
    assert told(book, 10) == (["firing warning"], ["firing warning"])
    assert [told(book, s) for s in (11, 59)] == [([], [])] * 2
    assert told(book, 60) == ([], ["firing warning"])
    assert told(book, 119) == ([], [])
    assert told(book, 121) == ([], ["firing warning"])


def test_firing_again_changes_evidence_and_nothing_else() -> None:
    book = AlertBook()
    fire(book, 0, ratio=1.1)
    book.due(at(0))
    fire(book, 20, ratio=1.2)
    assert told(book, 20) == ([], [])
    (notice,) = book.due(at(60))
    assert notice.alert == Alert("ShadowFailed", Severity.WARNING, "candidate", "slower", {"ratio": "1.2"}, START, None)
    assert notice.ends_ns == at(60 + 4 * 60)


def test_a_rise_is_told_and_ends_the_lesser_alert_at_alertmanager() -> None:
    book = AlertBook()
    fire(book, 0)
    book.due(at(0))
    fire(book, 5, "critical")
    assert told(book, 5) == (["firing critical"], ["firing critical", "resolved warning"])
    assert told(book, 60) == ([], ["firing critical", "resolved warning"])
    assert told(book, 120) == ([], ["firing critical"])


def test_severity_does_not_fall_while_the_alert_lives() -> None:
    book = AlertBook()
    fire(book, 0, "critical")
    book.due(at(0))
    fire(book, 5, "info")
    assert told(book, 5) == ([], [])
    assert [alert.severity for alert in book.active()] == ["critical"]


def test_an_end_is_told_twice_to_alertmanager_and_to_people_once_it_is_sure() -> None:
    book = AlertBook()
    fire(book, 0)
    book.due(at(0))
    resolve(book, 30)
    assert book.active() == []
    assert told(book, 30) == ([], ["resolved warning"])
    assert told(book, 60) == ([], ["resolved warning"])
    assert told(book, 89) == ([], [])
    (notice,) = book.due(at(90))
    assert (notice.receiver, notice.alert.ended_ns, notice.ends_ns) == (Receiver.PEOPLE, at(30), at(30))
    assert told(book, 1000) == ([], [])


def test_a_flapping_alert_is_told_once() -> None:
    book = AlertBook()
    heard, seen = [], []
    for second in range(300):
        fire(book, second) if second % 2 == 0 else resolve(book, second)
        to_people, to_manager = told(book, second)
        heard += to_people
        seen += to_manager
    assert heard == ["firing warning"]
    assert seen.count("firing warning") >= 150 and seen.count("resolved warning") >= 150
    assert [told(book, second)[0] for second in (358, 359, 500)] == [[], ["resolved warning"], []]
    fire(book, 501)
    assert told(book, 501)[0] == ["firing warning"]


def test_an_alert_keeps_its_start_through_flapping_and_gets_a_new_one_in_a_new_life() -> None:
    book = AlertBook()
    fire(book, 0)
    resolve(book, 1)
    fire(book, 2)
    assert book.active()[0].started_ns == START
    resolve(book, 3)
    book.due(at(64))
    fire(book, 65)
    assert book.active()[0].started_ns == at(65)


def test_an_alert_that_came_and_went_between_two_looks_is_told_all_the_same() -> None:
    book = AlertBook(hold_s=0)
    fire(book, 0)
    resolve(book, 1)
    notices = book.due(at(2))
    assert people(notices) == ["firing warning", "resolved warning"]
    assert manager(notices) == ["resolved warning"]


def test_alerts_of_other_shadows_and_names_live_apart() -> None:
    book = AlertBook()
    fire(book, 0)
    fire(book, 1, shadow="")
    fire(book, 2, "critical", name="ShadowTripped")
    resolve(book, 3)
    assert [(a.name, a.shadow) for a in book.active()] == [("ShadowTripped", "candidate"), ("ShadowFailed", "")]
    resolve(book, 4, "NeverFired")


@pytest.mark.parametrize("jump", [-10_000, 10_000])
def test_a_jump_of_the_clock_delays_nothing(jump: int) -> None:
    book = AlertBook()
    fire(book, 0)
    book.due(at(0))
    (notice,) = book.due(at(jump))
    assert notice.alert.started_ns <= notice.ends_ns
    resolve(book, jump)
    notices = book.due(at(jump)) + book.due(at(jump + 61))
    for each in notices:
        assert each.alert.ended_ns is not None and each.alert.started_ns <= each.alert.ended_ns == each.ends_ns
    assert people(notices) == ["resolved warning"]


def test_there_are_only_so_many_alerts() -> None:
    book = AlertBook()
    for number in range(ALERTS_MAX + 5):
        fire(book, 0, name=f"Number{number}")
    assert (len(book.active()), book.refused) == (ALERTS_MAX, 5)
    fire(book, 1, name="Number0")
    assert book.refused == 5


def test_what_an_alert_says_is_printable_and_bounded() -> None:
    book = AlertBook()
    hostile = "a\x1b[31m\u202e\ud800 b\n" * 1000
    evidence = {f"{number}{hostile}": hostile for number in range(100)}
    book.fire("X", "", "info", hostile, evidence, START)
    (alert,) = book.active()
    assert alert.summary.isprintable() and len(alert.summary) <= SUMMARY_CHARS
    assert len(alert.evidence) <= EVIDENCE_ENTRIES and sum(map(len, alert.evidence.values())) <= EVIDENCE_CHARS
    assert all(key.isprintable() and text.replace("\n", "").isprintable() for key, text in alert.evidence.items())


def test_an_unknown_severity_is_refused() -> None:
    with pytest.raises(ValueError, match="'fatal' is not a valid Severity"):
        AlertBook().fire("X", "", "fatal", "", {}, START)


def again(book: AlertBook) -> AlertBook:
    """After a restart."""
    return AlertBook.from_json(json.loads(json.dumps(book.as_json())), book.resend_s, book.hold_s)


def test_a_restart_announces_nothing_again_and_goes_on() -> None:
    book = AlertBook()
    fire(book, 0)
    fire(book, 0, name="ShadowTripped")
    book.due(at(0))
    book = again(book)
    assert book.unconfirmed() == [("ShadowFailed", "candidate"), ("ShadowTripped", "candidate")]
    assert told(book, 10) == ([], ["firing warning", "firing warning"])
    fire(book, 11)
    assert book.unconfirmed() == [("ShadowTripped", "candidate")]
    resolve(book, 12, "ShadowTripped")
    assert book.unconfirmed() == []
    assert told(book, 12) == ([], ["resolved warning"])
    assert told(book, 73)[0] == ["resolved warning"]


def test_an_end_is_told_again_after_a_restart() -> None:
    book = AlertBook()
    fire(book, 0)
    book.due(at(0))
    resolve(book, 1)
    book.due(at(1))
    book = again(book)
    assert told(book, 2) == ([], ["resolved warning"])
    assert told(book, 61)[0] == ["resolved warning"]


def test_what_is_kept_fits_a_message() -> None:
    book = AlertBook()
    for number in range(ALERTS_MAX):
        book.fire(f"Number{number}", "candidate", "critical", "x" * 1000, {"all": "y" * 10_000}, START)
    assert len(json.dumps(book.as_json())) <= KEPT_BYTES
    assert [alert.evidence for alert in again(book).active()] == [{}] * ALERTS_MAX


ALERT: dict[str, Any] = {
    "name": "X",
    "severity": "info",
    "shadow": "",
    "summary": "",
    "evidence": {},
    "started_ns": 5,
    "ended_ns": None,
}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"live": []},
        {"live": [{}], "endings": []},
        {"live": 3, "endings": []},
        {"live": [{"alert": {**ALERT, "started_ns": -1}, "told": None}], "endings": []},
        {"live": [{"alert": {**ALERT, "started_ns": 1 << 80}, "told": None}], "endings": []},
        {"live": [{"alert": {**ALERT, "ended_ns": 4}, "told": None}], "endings": []},
        {"live": [{"alert": {**ALERT, "severity": "fatal"}, "told": None}], "endings": []},
        {"live": [{"alert": {**ALERT, "evidence": "text"}, "told": None}], "endings": []},
        {"live": [{"alert": {**ALERT, "summary": 5}, "told": None}], "endings": []},
        {"live": [{"alert": ALERT, "told": "yes"}], "endings": []},
        {"live": [], "endings": [{"alert": ALERT, "told": True}]},
    ],
)
def test_a_damaged_book_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="alerts kept from before cannot be read"):
        AlertBook.from_json(data)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fire info", "fire warning", "fire critical", "resolve", "restart", "nothing"]),
        st.sampled_from([0, 1, 10, 30, 59, 60, 61, 200]),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_people_hear_of_each_life_its_rises_and_one_end(steps: list[tuple[str, int]]) -> None:
    book, now, heard = AlertBook(), 0, []
    for what, pause in steps:
        now += pause
        if what.startswith("fire"):
            fire(book, now, what.removeprefix("fire "))
        elif what == "resolve":
            resolve(book, now)
        elif what == "restart":
            book = again(book)
        heard += told(book, now)[0]
    resolve(book, now)
    heard += told(book, now + 60)[0]
    order = [*Severity]
    known: int | None = None
    for message in heard:
        state, severity = message.split()
        rank = order.index(Severity(severity))
        if state == "firing":
            assert known is None or rank > known
            known = rank
        else:
            assert rank == known
            known = None
    assert known is None
    assert again(book) == again(again(book))


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_alertmanager_always_knows_what_fires(steps: list[tuple[str, int]]) -> None:
    """As Alertmanager sees it: what was told last of each set of labels holds until its end."""
    book, now = AlertBook(), 0
    ends: dict[tuple[str, str, str], int] = {}
    for what, pause in steps:
        now += min(pause, 200)
        if what.startswith("fire"):
            fire(book, now, what.removeprefix("fire "))
        elif what == "resolve":
            resolve(book, now)
        elif what == "restart":
            book = again(book)
        for notice in book.due(at(now)):
            if notice.receiver is Receiver.ALERTMANAGER:
                ends[notice.alert.labels] = notice.ends_ns
        assert {labels for labels, end in ends.items() if end > at(now)} == {a.labels for a in book.active()}


def test_times_are_written_in_utc() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_700_000_000_123_999_999) == "2023-11-14T22:13:20.123Z"


def test_a_line_is_one_line() -> None:
    assert one_line(" a\n b\x00\u2028c ") == "a b? c"
    assert one_line("x" * 1000, 5) == "xxxxx"


def test_the_link_leads_to_the_shadow() -> None:
    alert = Alert("X", Severity.INFO, "a/b", "", {}, 0)
    assert report_link("https://r/{shadow}/index.html", alert) == "https://r/a%2Fb/index.html"
    assert report_link("", alert) == ""
