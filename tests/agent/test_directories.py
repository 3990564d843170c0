"""Directories and files that the agent's user is to use: made, checked, and told of in one line."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.directories import open_geography, prepare
from agent.errors import LoadError
from tests.agent.select.test_geo import US, write

NOBODY = pwd.getpwnam("nobody")
ME = pwd.getpwuid(os.geteuid())


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter, unlike tmp_path."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_none_is_nothing_to_do() -> None:
    prepare("state.directory", None, ME)
    assert open_geography(None, ME) is None


def test_what_is_missing_is_made_and_given_to_the_user(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    prepare("state.directory", wanted, ME)
    assert wanted.is_dir()
    assert {each.stat().st_uid for each in (wanted, wanted.parent)} == {ME.pw_uid}
    prepare("state.directory", wanted, ME)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o077, 0o022, 0])
def test_only_the_last_part_that_is_made_has_the_mode_asked_for(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        prepare("state.directory", tmp_path / "a" / "b", ME, 0o750)
        prepare("recording.directory", tmp_path / "c", ME)
    finally:
        os.umask(before)
    assert [permissions(tmp_path / name) for name in ("a", "a/b", "c")] == [0o755, 0o750, 0o755]


def test_what_was_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    prepare("state.directory", tmp_path / "a", ME, 0o750)
    assert permissions(tmp_path / "a") == 0o700


@pytest.mark.root
def test_what_was_there_keeps_its_owner(public: Path) -> None:
    prepare("state.directory", public / "a" / "b", NOBODY)
    assert (public.stat().st_uid, (public / "a").stat().st_uid) == (0, NOBODY.pw_uid)
    assert (public / "a" / "b").stat().st_gid == NOBODY.pw_gid


@pytest.mark.root
def test_where_the_user_cannot_write_is_refused_with_what_to_do(public: Path) -> None:
    with pytest.raises(LoadError, match=f"^state.directory {public}: user nobody cannot write there: chown nobody"):
        prepare("state.directory", public, NOBODY)


@pytest.mark.root
def test_where_the_user_cannot_even_go_is_refused(public: Path) -> None:
    (public / "closed").mkdir(mode=0o700)
    with pytest.raises(LoadError, match="user nobody cannot write there"):
        prepare("recording.directory", public / "closed" / "below", NOBODY)


@pytest.mark.parametrize("below", ["", "x/y"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match=f"^state.directory {tmp_path}/file"):
        prepare("state.directory", tmp_path / "file" / below, ME)


def test_a_database_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "world.mmdb", [("8.0.0.0/8", US)])
    assert open_geography(str(path), ME) is not None


@pytest.mark.root
def test_a_database_that_the_user_cannot_read_is_refused(public: Path) -> None:
    path = write(public / "world.mmdb", [("8.0.0.0/8", US)])
    path.chmod(0o600)
    with pytest.raises(LoadError, match=r"^geo\.database .*user nobody cannot read it: chmod a\+r"):
        open_geography(str(path), NOBODY)
