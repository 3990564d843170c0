"""What survives kills in the midst of writing, full disks, damage and other agents; and what can be asked of it."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent import config as configuration
from agent.control import store as store_module
from agent.control.store import FILE, LOCK, DamagedError, StateError, Store, Version, set_aside

ROOT = Path(__file__).resolve().parents[3]


def config(**percentages: float) -> dict[str, Any]:
    return {"seed": 0, "shadows": {name: {"percentage": value} for name, value in percentages.items()}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    clock = count(1000)
    opened = Store.open(tmp_path / "state", lambda: next(clock))
    yield opened
    opened.close()


def test_versions_are_kept_with_what_changed(store: Store) -> None:
    assert store.versions() == []
    first = store.add_version(config(one=5), "start", "")
    second = store.add_version(config(one=25), "uid 0", "more\ud800")
    assert store.versions() == [
        Version(second, 1002, "uid 0", "more?", ("shadows.one.percentage: 5 -> 25",), {}),
        Version(first, 1001, "start", "", (), {}),
    ]
    assert store.version(first) == (store.versions()[1], config(one=5))
    assert store.version(99) is None
    assert store.version(1 << 80) is None


def test_what_has_not_changed_is_no_new_version(store: Store) -> None:
    first = store.add_version(config(one=5, two=5), "start", "")
    assert store.add_version(config(one=5, two=5), "again", "") == first
    assert store.add_version(config(two=5, one=5), "moved", "") > first  # the order of shadows is part of it


def test_a_real_configuration_comes_back_as_it_was(store: Store) -> None:
    text = "capture: {interface: lo, ports: [80]}\nshadows: {one: {exclusive: a, upstreams: ['198.51.100.1:80']}}\n"
    text += "recording: {directory: /var/lib/x}\ngeo: {database: /var/lib/y}\n"
    text += "control: {socket: /run/x}\nclient: {source: x-real-ip, trusted: [10.0.0.0/8]}\n"
    loaded = configuration.parse(text, "test")
    number = store.add_version(loaded.data, "start", "")
    found = store.version(number)
    assert found is not None
    assert configuration.validated(found[1], "kept") == loaded
    assert store.add_version(loaded.data, "again", "") == number
    assert store.previous_good("one", loaded.data) is None


def test_versions_have_pages(store: Store) -> None:
    ids = [store.add_version(config(one=i), "", "") for i in range(1, 8)]
    assert [each.id for each in store.versions(3)] == ids[:3:-1]
    assert [each.id for each in store.versions(3, before=ids[4])] == ids[3:0:-1]
    assert store.versions(3, before=0) == store.versions(-1) == []
    assert len(store.versions(10**30, before=10**30)) == 7


def test_the_previous_good_one_has_another_section_that_is_not_bad(store: Store) -> None:
    first = store.add_version(config(one=1, two=1), "", "")
    second = store.add_version(config(one=5, two=1), "", "")
    third = store.add_version(config(one=5, two=9), "", "")  # nothing new for `one`
    current = config(one=5, two=9)
    assert store.previous_good("one", current) == (first, config(one=1, two=1))
    assert store.previous_good("two", current) == (second, config(one=5, two=1))
    assert store.previous_good("three", current) is None
    store.mark_bad(first, "one", "slower")
    assert store.previous_good("one", current) is None
    assert store.previous_good("two", current) is not None  # bad is said of one shadow
    assert [each.bad for each in store.versions()] == [{}, {}, {"one": "slower"}]
    assert third == store.versions()[0].id


def test_what_is_bad_is_bad_in_every_version_that_has_it(store: Store) -> None:
    good = store.add_version(config(one=1, two=1), "", "")
    bad = [store.add_version(config(one=5, two=i), "", "") for i in range(2, 5)]
    store.mark_bad(bad[-1], "one", "fails")
    assert [each.bad for each in store.versions()] == [{"one": "fails"}] * 3 + [{}]
    back = store.add_version(config(one=1, two=4), "rollback", "")
    assert store.previous_good("one", config(one=1, two=4)) is None  # and not to what was left behind
    again = store.add_version(config(one=5, two=4), "anna", "mended")  # set by somebody who knows
    assert store.previous_good("one", config(one=7, two=4)) == (again, config(one=5, two=4))
    assert store.previous_good("one", config(one=5, two=4)) == (back, config(one=1, two=4))
    assert good < back
    store.mark_bad(12345, "one", "no such version")


def test_what_is_only_read_again_stays_bad(store: Store) -> None:
    first = store.add_version(config(one=5, two=1), "file", "", known_bad=True)
    store.mark_bad(first, "one", "fails")
    store.add_version(config(one=1, two=1), "agent", "rolled back")
    read = store.add_version(config(one=5, two=2), "file", "", known_bad=True)
    assert store.versions(1)[0].bad == {"one": "fails"}, "what is new for another shadow is not"
    assert store.previous_good("one", config(one=9)) is not None
    assert store.previous_good("one", config(one=9))[0] < read  # type: ignore[index]
    store.add_version(config(one=1, two=2), "agent", "")
    store.add_version(config(one=5, two=2), "anna", "mended")
    assert store.versions(1)[0].bad == {}, "a person knows"


def test_a_version_that_is_read_for_the_first_time_is_not_bad(store: Store) -> None:
    bad = store.add_version(config(one=5, two=1), "", "")
    store.mark_bad(bad, "one", "fails")
    store.add_version(config(one=1, two=5), "file", "", known_bad=True)
    assert store.versions(1)[0].bad == {}, "two has what was bad for one"


def test_whether_a_shadow_is_on_and_its_ramp_are_no_settings_that_do_well_or_not(store: Store) -> None:
    def with_more(percentage: float, **more: Any) -> dict[str, Any]:
        return {"shadows": {"one": {"percentage": percentage, **more}}}

    good = store.add_version(with_more(1, enabled=True), "", "")
    store.add_version(with_more(5, enabled=True, ramp=None), "", "")
    off = store.add_version(with_more(5, enabled=False, ramp={"steps": []}), "", "")
    assert store.previous_good("one", with_more(5, enabled=True)) == (good, with_more(1, enabled=True))
    store.mark_bad(off, "one", "fails")
    assert [each.bad for each in store.versions()] == [{"one": "fails"}, {"one": "fails"}, {}]


def test_the_audit_says_who_did_what(store: Store) -> None:
    store.audit("agent", "trip", "one", "slower", {"log_e": 7.1})
    store.audit("anna", "reset", "two", "x" * 10_000)
    store.audit("anna", "set", "", "", {"much": "\ud800" * 100_000})
    found = store.audits()
    assert [(each.author, each.action, each.shadow) for each in found] == [
        ("anna", "set", ""),
        ("anna", "reset", "two"),
        ("agent", "trip", "one"),
    ]
    assert found[2].detail == {"log_e": 7.1}
    assert len(found[1].reason) == 500
    assert len(json.dumps(found[0].detail)) < 3 * store_module.DETAIL_CHARACTERS
    assert [each.action for each in store.audits(shadow="one")] == ["trip"]
    assert [each.action for each in store.audits(1, before=found[0].id)] == ["reset"]


def test_things_are_kept_by_name(tmp_path: Path, store: Store) -> None:
    assert store.kept("guard:one") is None
    store.keep("guard:one", {"state": "tripped"})
    store.keep("guard:one", {"state": "active", "odd": "\ud800"})
    store.close()
    again = Store.open(tmp_path / "state")
    assert again.kept("guard:one") == {"state": "active", "odd": "\ud800"}
    again.close()


def test_the_same_again_costs_no_write(tmp_path: Path, store: Store) -> None:
    store.keep("x", [1])
    before = (tmp_path / "state" / FILE).stat().st_mtime_ns
    time.sleep(0.02)
    store.keep("x", [1])
    assert (tmp_path / "state" / FILE).stat().st_mtime_ns == before


def test_nothing_is_kept_without_a_directory() -> None:
    store = Store.open(None)
    number = store.add_version(config(one=1), "", "")
    assert store.versions()[0].id == number
    store.close()


def test_old_rows_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "AUDIT_LIMIT", 10)
    monkeypatch.setattr(store_module, "VERSIONS_LIMIT", 10)
    for i in range(30):
        store.audit("", str(i), "", "")
        store.add_version(config(one=i), "", "")
    assert [each.action for each in store.audits(100)] == [str(i) for i in range(29, 19, -1)]
    assert len(store.versions(100)) == 10


def test_the_newest_good_ones_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "VERSIONS_LIMIT", 10)
    good = store.add_version(config(one=0, two=0), "", "")
    for i in range(1, 40):  # `one` has had something else, bad, ever since
        number = store.add_version(config(one=5, two=i), "", "")
    store.mark_bad(number, "one", "fails")
    store.add_version(config(one=5, two=100), "", "")
    assert store.previous_good("one", config(one=5)) == (good, config(one=0, two=0))
    ids = [each.id for each in store.versions(10)]
    assert ids == list(range(41, 31, -1))
    assert [each.id for each in store.versions(10, before=ids[-1])] == [good]


def test_large_versions_go_sooner(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "VERSIONS_BYTES", 100_000)
    for i in range(20):
        store.add_version(config(one=i) | {"much": "x" * 30_000}, "", "")
    assert len(store.versions(100)) == 3
    store.add_version(config(one=100) | {"much": "x" * 300_000}, "", "")
    assert store.versions()[0].id == 21  # the one in force stays, whatever its size


def test_only_its_user_can_read_it(tmp_path: Path, store: Store) -> None:
    store.keep("x", 1)
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_second_agent_is_kept_out(tmp_path: Path, store: Store) -> None:
    with pytest.raises(StateError, match=r"another agent uses it: give each one its own state\.directory"):
        Store.open(tmp_path / "state")
    with pytest.raises(StateError, match="another agent"):
        set_aside(tmp_path / "state", 1)
    store.close()
    Store.open(tmp_path / "state").close()


def test_another_program_that_has_it_open_is_told_of(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError, match="another program has it open"):
        Store.open(tmp_path)
    other.close()
    Store.open(tmp_path).close()


def test_a_newer_one_is_left_alone(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("PRAGMA user_version = 99")
    other.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StateError, match="newer shadowtap") as raised:
        Store.open(tmp_path)
    assert not isinstance(raised.value, DamagedError)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("text", ["missing/deep", "file/below", "file"])
def test_a_directory_that_cannot_be_used_is_told_of(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="give the agent's user a directory"):
        Store.open(tmp_path / text)


@pytest.mark.parametrize("mode", ["directory", "file"])
def test_what_its_user_cannot_write_is_told_of(public: Path, mode: str) -> None:
    Store.open(public / "state").close()
    if mode == "directory":
        (public / "state" / LOCK).unlink()
        (public / "state").chmod(0o555)
    else:
        (public / "state" / FILE).chmod(0o444)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from agent.control import store\n"
    )
    code += "os.geteuid() or os.setgroups([]); os.geteuid() or (os.setgid(65534), os.setuid(65534))\n"
    code += "try: store.Store.open(Path(sys.argv[2]))\nexcept store.StateError as error: print(error)\n"
    if os.geteuid() == 0:
        for path in ((public / "state"), *(public / "state").iterdir()):
            os.chown(path, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT, public / "state"], capture_output=True, text=True, timeout=30, check=False
    )
    assert "Permission denied: give the agent's user a directory that it can write" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def filled(directory: Path) -> None:
    """A file of some 40 pages."""
    store = Store.open(directory)
    for i in range(20):
        store.add_version(config(one=i) | {"much": "y" * 5000}, "", "")
        store.audit("a", "b", "one", "c")
    store.keep("guard", {"state": "tripped"})
    store.close()


def everything(store: Store) -> tuple[Any, ...]:
    versions = store.versions(1000)
    return versions, [store.version(each.id) for each in versions], store.audits(1000), store.kept("guard")


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_told_of_and_can_be_set_aside(tmp_path: Path, seed: int) -> None:
    filled(tmp_path)
    draw = random.Random(seed)
    pages = (tmp_path / FILE).stat().st_size // 4096
    with open(tmp_path / FILE, "r+b") as file:
        for _ in range(4 if seed % 2 else pages):
            file.seek(draw.randrange(pages) * 4096)
            file.write(draw.randbytes(4096))
    with pytest.raises(DamagedError, match="damaged") as raised:
        store = Store.open(tmp_path)
        try:
            everything(store)
        finally:
            store.close()
    assert len(str(raised.value).splitlines()) == 1
    moved = set_aside(tmp_path, 17)
    assert tmp_path / f"{FILE}.damaged-17" in moved
    again = Store.open(tmp_path)
    assert everything(again) == ([], [], [], None)
    again.close()


@pytest.mark.parametrize("content", [b"not a database", b"x" * 10_000, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DamagedError):
        Store.open(tmp_path)
    assert [path.name for path in set_aside(tmp_path, 5)] == [f"{FILE}.damaged-5"]
    assert set_aside(tmp_path, 6) == []


def test_a_file_cut_short_is_damaged(tmp_path: Path) -> None:
    filled(tmp_path)
    os.truncate(tmp_path / FILE, 3 * 4096)
    with pytest.raises(DamagedError):
        Store.open(tmp_path)


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from itertools import count
from pathlib import Path
from agent.control.store import Store
store = Store.open(Path(sys.argv[2]))
for i in count(int(sys.argv[3])):
    store.keep("count", i)
    number = store.add_version({"shadows": {"one": {"percentage": i}}, "much": "z" * 20_000}, "child", str(i))
    store.audit("child", str(i), "one", "")
    print(i, number, flush=True)
"""


def test_a_kill_in_the_midst_of_writing_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    draw, done = random.Random(5), 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, ROOT, tmp_path, str(done + 1)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.15))
        child.kill()
        rest = child.stdout.read().split("\n")  # the last line may be half a line
        child.wait(10)
        last = [line for line in rest[:-1] if line]
        store = Store.open(tmp_path)
        kept = store.kept("count")
        newest = store.versions(1)[0]
        if last:
            done, number = map(int, last[-1].split())
            assert (kept, newest.id >= number, int(store.audits(1)[0].action) >= done) in (
                (done, True, True),
                (done + 1, True, True),
            )
        assert int(newest.reason) in (kept, kept - 1)
        done = kept
        store.close()


def fill(directory: Path) -> None:
    with open(directory / "ballast", "wb", buffering=0) as ballast:
        while True:
            try:
                ballast.write(b"x" * 4096)
            except OSError:
                return


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.root
def test_on_a_full_disk_everything_can_be_read_and_later_be_written(small_disk: Path) -> None:
    store = Store.open(small_disk)
    number = store.add_version(config(one=1), "", "")
    store.keep("guard", {"state": "active"})
    fill(small_disk)
    with pytest.raises(StateError, match="the disk is full: free some space"):
        store.add_version(config(one=2) | {"much": "z" * 100_000}, "", "")
    with pytest.raises(StateError, match="the disk is full"):
        for i in range(1000):
            store.audit("a", str(i), "one", "x" * 500)
    acknowledged = store.audits(1000)
    assert everything(store)[0][0].id == number
    assert store.kept("guard") == {"state": "active"}
    store.close()
    (small_disk / "ballast").unlink()
    again = Store.open(small_disk)
    assert again.audits(1000) == acknowledged
    assert again.add_version(config(one=2), "", "") > number
    again.close()


@pytest.mark.root
def test_a_small_change_in_place_can_be_kept_on_a_full_disk(small_disk: Path) -> None:
    store = Store.open(small_disk)
    store.keep("guard", {"state": "active"})
    fill(small_disk)
    store.keep("guard", {"state": "tripped"})
    store.close()
    again = Store.open(small_disk)
    assert again.kept("guard") == {"state": "tripped"}
    again.close()


@pytest.mark.root
def test_a_disk_that_is_full_from_the_start_is_told_of(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StateError, match=r"(disk is full|No space left on device)"):
        Store.open(small_disk)
    (small_disk / "ballast").unlink()
    Store.open(small_disk).close()


def test_without_room_nothing_changes_and_the_rest_is_readable() -> None:
    store = Store.open(None)
    store.add_version(config(one=1), "", "")
    store._connection.execute("PRAGMA max_page_count = 1")
    before = everything(store)
    with pytest.raises(StateError, match="the disk is full"):
        for i in range(1000):
            store.add_version(config(one=2, two=i) | {"much": "z" * 10_000}, "", "")
            before = everything(store)
    assert everything(store) == before
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert store.add_version(config(one=3), "", "")
    store.close()


def test_reading_and_deciding_take_little_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store._connection.execute("PRAGMA synchronous = OFF")
    for i in range(300):
        store.add_version(config(one=5, two=i) | {"much": "z" * 2000}, "", "")
    start = time.perf_counter()
    for _ in range(10):
        store.previous_good("one", config(one=5))
        store.versions(20)
    assert (time.perf_counter() - start) / 10 < 0.05  # it takes less than a hundredth of that
