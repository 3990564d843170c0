"""The file that remembers a trip when nothing else can: whole, torn, damaged, and on a full disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.marker import SIZE, Content, Marker, Trip
from agent.control.store import StateError

TRIPPED = {"one": Trip("judge", "11 % slower"), "two": Trip("manual", 'a person said "stop"\n\ud800 ü')}


def content(path: Path) -> Content:
    marker, found = Marker.open(path)
    marker.close()
    return found


def written(path: Path, tripped: dict[str, Trip]) -> None:
    marker, _ = Marker.open(path)
    marker.write(tripped)
    marker.close()


def test_a_new_one_says_that_nothing_is_tripped(tmp_path: Path) -> None:
    found = content(tmp_path / "marker")
    assert (found, found.of("one")) == (Content({}), None)
    assert (tmp_path / "marker").stat().st_size == SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    written(tmp_path / "marker", TRIPPED)
    assert content(tmp_path / "marker") == Content(TRIPPED)
    written(tmp_path / "marker", {})
    assert content(tmp_path / "marker") == Content({})
    assert (tmp_path / "marker").stat().st_size == SIZE


def test_long_reasons_of_many_shadows_fit(tmp_path: Path) -> None:
    many = {f"{i}".rjust(63, "x"): Trip("unreachable", "\x00" * 10_000) for i in range(8)}
    written(tmp_path / "marker", many)
    assert {name: trip.cause for name, trip in content(tmp_path / "marker").tripped.items()} == dict.fromkeys(
        many, "unreachable"
    )


def test_what_does_not_fit_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="do not fit"):
        written(tmp_path / "marker", {f"shadow-{i}": Trip("manual", "") for i in range(1000)})


@settings(deadline=None, max_examples=50)  # it waits for the disk
@given(data=st.data())
def test_any_damage_reads_as_all_tripped(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged-marker"
    path.unlink(missing_ok=True)
    written(path, TRIPPED)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, SIZE - 1))
    damage = data.draw(
        st.binary(min_size=1, max_size=SIZE - start).filter(lambda b: whole[start : start + len(b)] != b)
    )
    path.write_bytes(whole[:start] + damage + whole[start + len(damage) :])
    found = content(path)
    assert found.of("any") == Trip("state", f"the marker is damaged: {path}")


@pytest.mark.parametrize("cut", [0, 1, 512, SIZE - 1])
def test_a_file_cut_short_reads_as_all_tripped_until_it_is_written(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "marker"
    written(path, TRIPPED)
    os.truncate(path, cut)
    assert content(path).problem
    written(path, {})
    assert content(path) == Content({})


def test_a_torn_write_reads_as_all_tripped(tmp_path: Path) -> None:
    path = tmp_path / "marker"
    written(path, {})
    before = path.read_bytes()
    written(path, TRIPPED)
    path.write_bytes(path.read_bytes()[:512] + before[512:])  # the first sector of the new, the rest of the old
    assert content(path).problem


def test_a_longer_file_is_damaged_and_becomes_right_when_written(tmp_path: Path) -> None:
    path = tmp_path / "marker"
    written(path, {})
    path.write_bytes(path.read_bytes() + b"x")
    assert content(path).problem
    written(path, TRIPPED)
    assert content(path) == Content(TRIPPED)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file or directory"):
        Marker.open(tmp_path / "missing" / "marker")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(StateError):
        Marker.open(tmp_path / "link")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def fill(directory: Path) -> None:
    with open(directory / "ballast", "wb", buffering=0) as ballast:
        while True:
            try:
                ballast.write(b"x" * 4096)
            except OSError:
                return


@pytest.mark.root
def test_a_full_disk_keeps_no_trip_from_being_remembered(full: Path) -> None:
    marker, _ = Marker.open(full / "marker")
    fill(full)
    with pytest.raises(OSError, match="No space"):
        (full / "other").write_bytes(b"x")
    marker.write(TRIPPED)
    marker.close()
    assert content(full / "marker") == Content(TRIPPED)


@pytest.mark.root
def test_on_a_disk_that_is_full_from_the_start_it_says_so(full: Path) -> None:
    fill(full)
    with pytest.raises(StateError, match="No space left on device"):
        Marker.open(full / "marker")
    assert not (full / "marker").exists()
