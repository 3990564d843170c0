"""Which kernel headers are found, and where Debian and Ubuntu put them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.capture import headers


@pytest.fixture
def src(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a host with nothing on it."""
    monkeypatch.setattr(headers, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    (tmp_path / "usr/src").mkdir(parents=True)
    return tmp_path / "usr/src"


def install(src: Path, *names: str) -> None:
    for name in names:
        (src / name / "include" / ("linux" if "common" in name else "generated")).mkdir(parents=True)


def test_none(src: Path) -> None:
    assert headers.newest_installed() is None
    assert not headers.own_headers()
    assert headers.provide(src) == "no kernel headers installed: apt-get install linux-headers-amd64"


@pytest.mark.parametrize(
    ("build", "common"),
    [
        ("linux-headers-6.1.0-56-amd64", "linux-headers-6.1.0-56-common"),
        ("linux-headers-6.1.0-56-cloud-amd64", "linux-headers-6.1.0-56-common"),
        ("linux-headers-6.1.0-56-rt-amd64", "linux-headers-6.1.0-56-common-rt"),
        ("linux-headers-6.12.9+bpo-amd64", "linux-headers-6.12.9+bpo-common"),
        ("linux-headers-6.12.43+deb13-cloud-arm64", "linux-headers-6.12.43+deb13-common"),
    ],
)
def test_debian_splits_them_in_two(src: Path, build: str, common: str) -> None:
    install(src, build, common)
    assert headers.newest_installed() == (src / build, src / common)


def test_ubuntu_has_links_and_a_tree_that_is_not_for_building(src: Path) -> None:
    install(src, "linux-headers-6.8.0-41-generic")
    (src / "linux-headers-6.8.0-41/include/linux").mkdir(parents=True)
    both = src / "linux-headers-6.8.0-41-generic"
    assert headers.newest_installed() == (both, both)


def test_the_newest_by_number_not_by_letter(src: Path) -> None:
    names = [f"linux-headers-{v}-amd64" for v in ("6.1.0-9", "6.1.0-10", "5.10.0-30", "6.9.7", "6.10.3")]
    install(src, *names)
    found = headers.newest_installed()
    assert found is not None
    assert found[0].name == "linux-headers-6.10.3-amd64"


def test_the_running_kernels_own(src: Path, tmp_path: Path) -> None:
    import os

    (tmp_path / "lib/modules" / os.uname().release / "build").mkdir(parents=True)
    assert headers.own_headers()
    assert headers.provide(src) is None


def test_two_trees_are_put_together(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, common = src / "linux-headers-6.1.0-56-amd64", src / "linux-headers-6.1.0-56-common"
    for path in (build / "include/generated", build / "arch/x86/include/generated", common / "include/linux"):
        path.mkdir(parents=True)
    (common / "arch/x86/include/asm").mkdir(parents=True)
    (common / "arch/x86/include/asm/bpf.h").write_text("")
    monkeypatch.setenv(headers.SOURCE_VARIABLE, "")
    monkeypatch.delenv(headers.SOURCE_VARIABLE)
    farm = tmp_path / "farm"
    assert headers.provide(farm) is None
    assert headers.os.environ[headers.SOURCE_VARIABLE] == str(farm)
    assert sorted(p.name for p in (farm / "include").iterdir()) == ["generated", "linux"]
    assert (farm / "arch/x86/include/asm/bpf.h").exists()
    assert (farm / "arch/x86/include/generated").is_dir()
