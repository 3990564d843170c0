"""`shadowtap check` in this network namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.check import check
from agent.errors import ConfigError, LoadError
from replay.errors import UpstreamError

TEXT = """
capture: {interface: lo, ports: [80, 443], workers: 2}
shadows: {candidate: {percentage: 2.5, upstreams: ["198.51.100.1:80"]}}
"""


def checked(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    return check(path)


def test_it_says_what_the_configuration_means(tmp_path: Path) -> None:
    user, lines = "nobody", checked(tmp_path, TEXT + "user: nobody\n")
    assert lines == [
        f"{tmp_path / 'f.yaml'}: valid",
        f"copies   2.5 % of the connections on lo, port 80, 443, 2 worker(s) as {user}",
        "replays  GET, HEAD, OPTIONS to 198.51.100.1:80",
        "records  nothing",
        "metrics  http://127.0.0.1:9464/metrics",
    ]


def test_what_is_off_is_said(tmp_path: Path) -> None:
    lines = checked(tmp_path, "capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\nmetrics: null\n")
    assert "replays  GET, HEAD, OPTIONS to nobody (capture only)" in lines
    assert "metrics  none" in lines


def test_a_disabled_shadow_is_valid_and_noted(tmp_path: Path) -> None:
    lines = checked(tmp_path, TEXT.replace("percentage", "enabled: false, percentage"))
    assert "replays  GET, HEAD, OPTIONS to 198.51.100.1:80 (disabled)" in lines
    assert lines[-1] == "note     shadow candidate is disabled: nothing will be mirrored"


def test_what_cannot_work_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: capture\.interface: no 'nope0' on this host; there are: .*lo"):
        checked(tmp_path, TEXT.replace("interface: lo", "interface: nope0"))
    with pytest.raises(UpstreamError, match=r"is the production address 127\.0\.0\.1:443"):
        checked(tmp_path, TEXT.replace("198.51.100.1:80", "127.0.0.1:443"))
    with pytest.raises(UpstreamError, match="the port is missing"):
        checked(tmp_path, TEXT.replace("198.51.100.1:80", "198.51.100.1"))
    with pytest.raises(LoadError, match="no user 'no-such-user' on this host"):
        checked(tmp_path, TEXT + "user: no-such-user\n")
    with pytest.raises(ConfigError, match="missing"):
        checked(tmp_path, "shadows: {a: {}}")
