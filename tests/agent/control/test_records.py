"""What is remembered, what never raises, what is refused, and beginning anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.control.marker import Trip
from agent.control.records import CANNOT_RECORD, MARKER, Records
from agent.control.request import ControlError
from agent.control.store import FILE, StateError, Store

CONFIG = {"shadows": {"one": {"percentage": 1}}}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path)
    assert (made.unreadable, made.problem) == ("", "")
    yield made
    made.close()


def full(*args: Any) -> Any:
    raise StateError("the disk is full")


def test_everything_is_there_again(records: Records, tmp_path: Path) -> None:
    number = records.new_version(CONFIG, "ann", "first")
    records.mark({"one": Trip("leak", "it leaks")})
    records.note("ann", "trip", "one", "why", {"x": 1})
    records.keep("guard one", {"state": "tripped"})
    records.mark_bad(number, "one", "it leaks")
    records.close()
    again = Records(tmp_path)
    assert again.content.of("one") == Trip("leak", "it leaks")
    assert again.content.of("two") is None
    assert again.store.kept("guard one") == {"state": "tripped"}
    assert [(entry.author, entry.detail) for entry in again.store.audits()] == [("ann", {"x": 1})]
    assert [(version.id, version.bad) for version in again.store.versions()] == [(number, {"one": "it leaks"})]
    again.close()


def test_what_was_bad_is_so_when_it_is_only_read_again(records: Records) -> None:
    number = records.new_version(CONFIG, "ann", "")
    records.mark_bad(number, "one", "it leaks")
    records.new_version({"shadows": {"one": {"percentage": 2}}}, "ann", "")
    assert records.version_if_possible({**CONFIG, "seed": 1}, "file", "", known_bad=True) == number + 2
    assert records.store.versions(1)[0].bad == {"one": "it leaks"}
    assert records.version_if_possible({**CONFIG, "seed": 2}, "ann", "") == number + 3
    assert records.store.versions(1)[0].bad == {}


@pytest.mark.parametrize("method", ["add_version", "audit", "keep", "mark_bad"])
def test_what_must_be_possible_always_never_raises(
    records: Records, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls: dict[str, Any] = {
        "add_version": lambda: records.version_if_possible(CONFIG, "ann", ""),
        "audit": lambda: records.note("ann", "trip", "one", ""),
        "keep": lambda: records.keep("x", {}),
        "mark_bad": lambda: records.mark_bad(1, "one", ""),
    }
    with monkeypatch.context() as patch:
        patch.setattr(Store, method, full)
        assert calls[method]() is None
        assert records.problem == "the disk is full"
        records.mark({})
        assert records.problem == "the disk is full", "the marker's success says nothing about the store"
    calls[method]()
    assert records.problem == ""


def test_changes_are_refused_while_they_cannot_be_recorded(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    records.must_record()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep", full)
        patch.setattr(Store, "add_version", full)
        for call in (records.must_record, lambda: records.new_version(CONFIG, "ann", "")):
            with pytest.raises(ControlError, match="the disk is full") as error:
                call()
            assert error.value.status == CANNOT_RECORD
    records.must_record()
    assert not records.begin_anew(), "there is no need to"


def damage(directory: Path, what: str) -> None:
    database, marker = directory / FILE, directory / MARKER
    if what == "database":
        database.write_bytes(b"no database" * 1000)
    elif what == "marker":
        marker.write_bytes(b"{}")
    else:
        database.write_bytes(database.read_bytes().replace(b'{"a": 12345}', b'{"a"; 12345}'))


@pytest.mark.parametrize("what", ["database", "marker", "row"])
def test_damage_is_told_and_set_aside(records: Records, tmp_path: Path, what: str) -> None:
    records.keep("guard one", {"a": 12345})
    records.close()
    damage(tmp_path, what)
    damaged = Records(tmp_path)
    damaged.look_through(["guard one", "ramp one"])
    assert "damaged" in damaged.unreadable
    with pytest.raises(ControlError, match="`shadowtap reset` begins anew") as error:
        damaged.must_record()
    assert error.value.status == CANNOT_RECORD
    assert damaged.begin_anew()
    damaged.must_record()
    assert (damaged.unreadable, damaged.store.kept("guard one"), damaged.content.of("one")) == ("", None, None)
    assert list(tmp_path.glob(f"{FILE}.damaged-*"))
    assert list(tmp_path.glob(f"{MARKER}.damaged-*"))
    damaged.close()


def test_a_directory_of_another_agent_is_not_taken_away(records: Records, tmp_path: Path) -> None:
    records.keep("x", 1)  # type: ignore[arg-type]
    other = Records(tmp_path)
    assert "another agent uses it" in other.unreadable
    for _ in range(2):
        with pytest.raises(ControlError, match="another agent uses it") as error:
            other.begin_anew()
        assert error.value.status == CANNOT_RECORD
        assert other.store.versions() == [], "what can be asked can still be answered"
    assert records.store.kept("x") == 1
    records.must_record()
    other.close()
    records.close()
    assert other.begin_anew()
    other.close()


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    records = Records(tmp_path / "file" / "below")
    assert "Not a directory" in records.unreadable
    records.mark({"one": Trip("leak", "")})
    records.note("ann", "x", "", "")
    records.close()


def test_without_a_directory_all_is_in_memory() -> None:
    records = Records(None)
    records.must_record()
    records.mark({"one": Trip("leak", "")})
    assert records.new_version(CONFIG, "ann", "") == 1
    assert not records.begin_anew()
    records.close()
