"""Upstreams out of files: both forms, patterns, what is broken, half written, replaced or gone, and hostile content."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.discovery import file_sd
from agent.discovery.file_sd import FILE_BYTES, NAMES_AGAIN_S, POLL_S, SETTLE_S, TARGETS_MAX, FileSd
from agent.discovery.settings import UPSTREAMS_MAX, FileSource, Found
from replay.balancer.settings import UpstreamSpec

GROUPS = [
    {"targets": ["192.0.2.2:80", "192.0.2.1:80"], "labels": {"shadowtap_weight": "3", "shadowtap_cookie": "s1"}},
    {"targets": ["[2001:db8::1]:80"], "labels": {"env": "shadow", "__meta_x": "y"}},
    {"targets": ["192.0.2.3:80"]},
]
POOL = (
    UpstreamSpec("192.0.2.1:80", 3, "s1"),
    UpstreamSpec("192.0.2.2:80", 3, "s1"),
    UpstreamSpec("192.0.2.3:80"),
    UpstreamSpec("[2001:db8::1]:80"),
)
FORMS: dict[str, Callable[[Any], str]] = {"json": json.dumps, "yaml": yaml.safe_dump, "yml": yaml.safe_dump}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Names:
    """In the place of the system's resolver."""

    def __init__(self, **known: list[str]) -> None:
        self.known = known
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **options: object) -> list[Any]:
        self.asked.append(host)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(families[":" in each], socket.SOCK_STREAM, 6, "", (each, port)) for each in self.known[host]]


def groups_of(*targets: str, **labels: object) -> str:
    return json.dumps([{"targets": list(targets), "labels": labels}])


def replace(path: Path, text: str) -> Path:
    """As it should be done: under another name, then renamed."""
    path.with_suffix(".new").write_text(text)
    return path.with_suffix(".new").rename(path)


def source(path: Path, resolver: Any = None, clock: Clock | None = None) -> FileSd:
    return FileSd(FileSource(str(path)), clock or Clock(), resolver or Names())


def addresses(found: Found) -> list[str]:
    return [each.address for each in found.upstreams]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.json"


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_say_the_same(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"pool.{form}"
    path.write_text(FORMS[form](GROUPS))
    assert source(path).look() == Found(POOL, POLL_S, "")


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "pool.yml"
    path.write_text(
        "# shadow hosts\n- targets:\n  - 192.0.2.1:80\n  - '[2001:db8::1]:80'\n"
        "  labels: &both {shadowtap_weight: 7}\n"
        "- targets: [192.0.2.2:80]\n  labels: *both\n- targets: [192.0.2.3:80]\n  labels:\n"
    )
    found = source(path).look()
    assert found.problem == ""
    assert {each.address: each.weight for each in found.upstreams} == {
        "192.0.2.1:80": 7,
        "[2001:db8::1]:80": 7,
        "192.0.2.2:80": 7,
        "192.0.2.3:80": 1,
    }


def test_unix_sockets_may_be_targets(path: Path) -> None:
    path.write_text(groups_of("unix:/run/shadow.sock"))
    assert addresses(source(path).look()) == ["unix:/run/shadow.sock"]


@pytest.mark.parametrize(("weight", "expected"), [(0, 0), ("0", 0), (1000, 1000), ("5", 5)])
def test_weights_are_numbers_or_text(path: Path, weight: object, expected: int) -> None:
    path.write_text(groups_of("192.0.2.1:80", shadowtap_weight=weight))
    assert source(path).look().upstreams == (UpstreamSpec("192.0.2.1:80", expected),)


def test_an_empty_list_is_an_empty_pool(path: Path) -> None:
    path.write_text(groups_of("192.0.2.1:80"))
    files = source(path)
    files.look()
    replace(path, "[]")
    assert files.look() == Found((), POLL_S, "")


BROKEN = {
    "": "not valid JSON",
    "[{": "not valid JSON",
    "[" * 100_000: "not valid JSON: nested too deeply",
    "[" + "9" * 5000 + "]": "not valid JSON",
    "null": "not a list of groups",
    '{"targets": []}': "not a list of groups",
    '["192.0.2.1:80"]': "a group has `targets` and `labels`",
    '[{"target": []}]': "a group has `targets` and `labels`",
    '[{"labels": {}}]': "`targets` is a list",
    '[{"targets": "192.0.2.1:80"}]': "`targets` is a list",
    '[{"targets": [], "labels": [1]}]': "`labels` has names",
    '[{"targets": [80]}]': "a target is text",
    '[{"targets": ["\\ud800:80"]}]': "a target is text",
    '[{"targets": ["a\\u0000:80"]}]': "a target is text",
    '[{"targets": ["192.0.2.1"]}]': "the port is missing",
    '[{"targets": ["192.0.2.1:99999"]}]': "is not a port",
    '[{"targets": ["http://192.0.2.1/"]}]': "without a scheme",
    '[{"targets": ["0.0.0.0:80"]}]': "is not the address of one host",
    groups_of("192.0.2.1:80", shadowtap_weight="heavy"): "shadowtap_weight is a whole number from 0 to 1000",
    groups_of("192.0.2.1:80", shadowtap_weight=1001): "shadowtap_weight is a whole number",
    groups_of("192.0.2.1:80", shadowtap_weight=-1): "shadowtap_weight is a whole number",
    groups_of("192.0.2.1:80", shadowtap_weight=True): "shadowtap_weight is a whole number",
    groups_of("192.0.2.1:80", shadowtap_cookie=5): "shadowtap_cookie is a cookie's value",
    groups_of("192.0.2.1:80", shadowtap_cookie="a;b"): "shadowtap_cookie is a cookie's value",
    groups_of("192.0.2.1:80", shadowtap_cookie="a" * 65): "shadowtap_cookie is a cookie's value",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:30])
def test_a_broken_file_keeps_what_it_said(path: Path, text: str) -> None:
    path.write_text(groups_of("192.0.2.1:80"))
    files = source(path)
    before = files.look()
    replace(path, text)
    found = files.look()
    assert found.upstreams == before.upstreams
    assert found.problem.startswith(f"{path}: ")
    assert BROKEN[text] in found.problem
    assert files.look() == found
    replace(path, groups_of("192.0.2.2:80"))
    assert files.look() == Found((UpstreamSpec("192.0.2.2:80"),), POLL_S, "")


@pytest.mark.parametrize("loader", [file_sd._LOADER, yaml.BaseLoader])
@pytest.mark.parametrize(
    "text",
    [
        "- targets: [192.0.2.1:80\n",
        "- targets: [*nothing]",
        "- targets: &a [*a]",
        "? [a]\n: b",
        "- !!python/object/apply:os.system [true]",
        "\0",
        "- {targets: [], <<: {targets: [192.0.2.1:80]}}",
        "%YAML 9.9\n---\n[]",
        "[]\n---\n[]",
        "[" * 100_000,
        "- " * 100_000,
        "{? " * 3_000,
        "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}",
    ],
    ids=range(13),
)
def test_broken_yaml_is_a_problem(tmp_path: Path, text: str, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sd, "_LOADER", loader)
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    found = source(path).look()
    assert found.upstreams == ()
    assert found.problem.startswith(f"{path}: ")


def test_many_targets_of_a_few_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    group = "{targets: [" + "192.0.2.1:80," * 1000 + "]}"
    path.write_text(f"- &a {group}\n" + "- *a\n" * 20_000)
    assert source(path).look().problem == f"{path}: more than {TARGETS_MAX} targets"


def test_a_file_that_is_no_text_or_too_long(path: Path) -> None:
    path.write_bytes(b"\xff\xfe[]")
    files = source(path)
    assert files.look().problem == f"{path}: not UTF-8 text"
    replace(path, " " * (FILE_BYTES + 1))
    assert files.look().problem == f"{path}: longer than 1 MiB"


def test_a_file_in_place_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    """Half of a YAML file is one, too, and half an address as well."""
    path = tmp_path / "pool.yaml"
    whole = "- targets: [192.0.2.1:8080]\n- targets:\n  - 192.0.2.2:8080\n"
    path.write_text(whole)
    files = source(path)
    before = files.look()
    with path.open("w") as file:
        for part in ("- targets:\n  - 192.0.2.9:80", "80\n  - 192.0.2.8", ":8080\n"):
            file.write(part)
            file.flush()
            assert files.look() == Found(before.upstreams, SETTLE_S, "")
    assert addresses(files.look()) == ["192.0.2.8:8080", "192.0.2.9:8080"]
    path.write_text("- targets: [192.0.2.")
    assert files.look().problem == ""
    found = files.look()
    assert addresses(found) == ["192.0.2.8:8080", "192.0.2.9:8080"]
    assert "not valid YAML" in found.problem


def test_a_file_that_is_put_back_as_it_was(path: Path) -> None:
    path.write_text(groups_of("192.0.2.1:80"))
    old = path.with_suffix(".old")
    files = source(path)
    before = files.look()
    path.rename(old)
    assert files.look().problem == f"{path}: No such file or directory"
    old.rename(path)
    assert files.look() == before


def test_a_file_is_read_only_when_it_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("[{")
    files = source(path)
    first = files.look()
    monkeypatch.setattr(file_sd, "read_targets", lambda data, path: pytest.fail("read again"))
    assert files.look() == files.look() == first


def test_a_file_that_is_gone_keeps_what_it_said(path: Path) -> None:
    files = source(path)
    assert files.look() == Found((), POLL_S, f"{path}: No such file or directory")
    path.write_text(groups_of("192.0.2.1:80"))
    before = files.look()
    assert addresses(before) == ["192.0.2.1:80"]
    path.unlink()
    assert files.look() == Found(before.upstreams, POLL_S, f"{path}: No such file or directory")
    path.write_text(groups_of("192.0.2.2:80"))
    assert addresses(files.look()) == ["192.0.2.2:80"]


def test_what_is_no_file_is_a_problem(path: Path) -> None:
    path.mkdir()
    assert source(path).look().problem == f"{path}: Is a directory"
    path.rmdir()
    os.mkfifo(path)
    assert source(path).look().problem == f"{path}: not a file"


def test_all_files_that_fit_make_the_pool(tmp_path: Path) -> None:
    for number, name in enumerate(["a.json", "b.yaml", "pool-1.json", "pool-2.json", ".pool-3.json", "pool-4.json~"]):
        (tmp_path / name).write_text(groups_of(f"192.0.2.{number}:80"))
    assert addresses(source(tmp_path / "pool-*.json").look()) == ["192.0.2.2:80", "192.0.2.3:80"]
    assert addresses(source(tmp_path / "*.json").look()) == ["192.0.2.0:80", "192.0.2.2:80", "192.0.2.3:80"]
    assert addresses(source(tmp_path / "*-*.json").look()) == ["192.0.2.2:80", "192.0.2.3:80"]
    assert addresses(source(tmp_path / ".*.json").look()) == ["192.0.2.4:80"]


def test_of_several_files_one_may_go_and_one_may_break(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"pool-{n}.json" for n in (1, 2, 3))
    files = source(tmp_path / "pool-*.json")
    assert files.look() == Found((), POLL_S, f"{tmp_path}/pool-*.json: there is no such file")
    for number, path in enumerate([first, second, third]):
        path.write_text(groups_of(f"192.0.2.{number}:80"))
    assert addresses(files.look()) == ["192.0.2.0:80", "192.0.2.1:80", "192.0.2.2:80"]
    replace(first, "[")
    second.unlink()
    found = files.look()
    assert addresses(found) == ["192.0.2.0:80", "192.0.2.2:80"]
    assert found.problem.startswith(f"{first}: not valid JSON")
    first.unlink()
    third.unlink()
    gone = files.look()
    assert addresses(gone) == addresses(found)
    assert gone.problem.startswith(f"{tmp_path}/pool-*.json: there is no such file")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pool.txt", "must end in .json, .yml or .yaml"),
        ("*/pool.json", "only the last element of the path may hold *"),
        ("none/*.json", "No such file or directory"),
        ("a\0b/*.json", "null"),
        ("a\0b.json", "null"),
    ],
)
def test_paths_that_cannot_be_looked_at(tmp_path: Path, name: str, reason: str) -> None:
    assert reason in source(tmp_path / name).look().problem


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sd, "FILES_MAX", 1)
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("[]")
    assert "2 files are too many" in source(tmp_path / "*.json").look().problem


def test_names_are_resolved_to_their_first_address(path: Path) -> None:
    path.write_text(groups_of("web:80", "old:81", "new:82", "192.0.2.9:80", shadowtap_weight=2, shadowtap_cookie="c"))
    names = Names(web=["192.0.2.1", "192.0.2.2"], old=["192.0.2.3"], new=["2001:db8::1", "192.0.2.4"])
    found = source(path, names).look()
    assert found.problem == ""
    expected = ["192.0.2.1:80", "192.0.2.3:81", "192.0.2.9:80", "[2001:db8::1]:82"]
    assert found.upstreams == tuple(UpstreamSpec(each, 2, "c") for each in expected)
    assert sorted(names.asked) == ["new", "old", "web"]


def test_a_name_keeps_its_address_while_it_has_it(path: Path) -> None:
    path.write_text(groups_of("web:80"))
    clock, names = Clock(), Names(web=["192.0.2.1", "192.0.2.2"])
    files = source(path, names, clock)
    for known, expected in [
        (["192.0.2.1", "192.0.2.2"], "192.0.2.1:80"),
        (["192.0.2.2", "192.0.2.1"], "192.0.2.1:80"),
        (["192.0.2.2"], "192.0.2.2:80"),
        ([], "192.0.2.2:80"),
    ]:
        names.known["web"] = known
        assert addresses(files.look()) == [expected]
        assert addresses(files.look()) == [expected]
        clock.now_s += NAMES_AGAIN_S
    assert len(names.asked) == 4
    assert files.look().problem == "upstream 'web:80': 'web' does not resolve to an address"


def test_a_name_that_nobody_knows_is_left_out(path: Path) -> None:
    path.write_text(groups_of("web:80", "nobody:80"))
    found = source(path, Names(web=["192.0.2.1"])).look()
    assert addresses(found) == ["192.0.2.1:80"]
    assert found.problem == "upstream 'nobody:80': 'nobody' does not resolve: Name or service not known"


def test_only_so_many_names_are_looked_up(path: Path) -> None:
    path.write_text(groups_of(*(f"web{n}:80" for n in range(UPSTREAMS_MAX + 5))))
    names = Names(**{f"web{n}": ["192.0.2.1"] for n in range(UPSTREAMS_MAX + 5)})
    found = source(path, names).look()
    assert addresses(found) == ["192.0.2.1:80"]
    assert found.problem == f"{path}: only the first 1024 of 1029 names are looked up"
    assert len(names.asked) == UPSTREAMS_MAX


def test_a_pool_beyond_the_limit_is_cut(path: Path) -> None:
    path.write_text(groups_of(*(f"10.0.{n >> 8}.{n & 255}:80" for n in range(UPSTREAMS_MAX + 1))))
    found = source(path).look()
    assert len(found.upstreams) == UPSTREAMS_MAX
    assert "1025 upstreams are too many" in found.problem


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TARGETS = st.text(max_size=20) | st.from_regex(r"[0-9a-z.:\[\]%]{1,12}:[0-9]{1,5}", fullmatch=True) | VALUES
LABELS = st.dictionaries(st.sampled_from(["shadowtap_weight", "shadowtap_cookie", "x"]), VALUES)
NEARLY = st.lists(st.fixed_dictionaries({"targets": st.lists(TARGETS, max_size=4)}, optional={"labels": LABELS}))


def look_at(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    found = source(path).look()
    assert found.problem.isprintable()
    for each in found.upstreams:
        assert each.address.isprintable()
        assert 0 <= each.weight <= 1000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), form=st.sampled_from(sorted(FORMS)))
def test_any_bytes_are_at_most_a_problem(tmp_path: Path, content: bytes, form: str) -> None:
    look_at(tmp_path / f"any.{form}", content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text("[]{}-:,&*!?|>'\"%#<@ \n\tax1.targets", max_size=60))
def test_anything_like_yaml_is_at_most_a_problem(tmp_path: Path, content: str) -> None:
    look_at(tmp_path / "any.yaml", content.encode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=NEARLY | VALUES, form=st.sampled_from(["json", "yaml"]))
def test_anything_that_is_nearly_right_is_at_most_a_problem(tmp_path: Path, content: Any, form: str) -> None:
    """JSON is YAML, too."""
    look_at(tmp_path / f"nearly.{form}", json.dumps(content).encode())
