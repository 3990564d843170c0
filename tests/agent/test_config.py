"""The configuration: what is taken, and that everything else is a ConfigError that names place and cause."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import config
from agent.capture.layout import CONTROL, Control
from agent.config import Config, parse
from agent.errors import ConfigError
from agent.order import Order

MINIMAL = "capture: {interface: eth0, ports: [80]}\nshadows: {candidate: {}}\n"
ROOT = Path(__file__).parents[2]


def refused(text: str) -> list[str]:
    """The lines of the error."""
    with pytest.raises(ConfigError) as error:
        parse(text, "f.yaml")
    return str(error.value).splitlines()


def with_value(path: str, value: object) -> str:
    """The minimal configuration with one more value."""
    data: Any = yaml.safe_load(MINIMAL)
    at = data
    *parents, last = path.split(".")
    for key in parents:
        at = at.setdefault(key, {})
    at[last] = value
    return yaml.safe_dump(data)


def test_what_is_not_said_has_a_default() -> None:
    found = parse(MINIMAL, "f.yaml")
    name, shadow = found.shadow
    assert (name, shadow.share_ppm, shadow.upstreams, shadow.sample_by) == ("candidate", 1_000_000, [], "connection")
    assert (found.capture.workers, found.capture.ring_bytes, found.capture.attach) == (1, 4 << 20, "auto")
    assert found.metrics is not None and found.metrics.address == ("127.0.0.1", 9464)
    assert found.recording is None


def test_the_example_is_valid() -> None:
    for path in (ROOT / "examples").glob("*.yaml"):
        config.load(path)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("capture.interfaces", "x", "capture.interfaces: unknown key"),
        ("capture.interface", "", "capture.interface: string should have at least 1 character"),
        ("capture.interface", "a/b", "capture.interface: 'a/b' cannot be the name of an interface"),
        ("capture.interface", "a\0b", "capture.interface: 'a\\x00b' cannot be the name of an interface"),
        ("capture.ports", [], "capture.ports: list should have at least 1 item"),
        ("capture.ports", [80, 70000], "capture.ports.1: input should be less than or equal to 65535 (found 70000)"),
        ("capture.workers", 0, "capture.workers: input should be greater than or equal to 1 (found 0)"),
        ("capture.attach", "xdp", "capture.attach: input should be 'auto', 'tcx' or 'clsact' (found 'xdp')"),
        ("capture.lease_ms", 10, "capture.lease_ms: input should be greater than or equal to 200 (found 10)"),
        ("capture.budget_packets_per_s", 1 << 64, "capture.budget_packets_per_s: input should be less than"),
        ("capture.budget_mib_per_s", 1 << 60, "capture.budget_mib_per_s: input should be less than"),
        ("shadows.candidate.percentage", 101, "shadows.candidate.percentage: input should be less than or equal"),
        ("shadows.candidate.percentage", float("nan"), "shadows.candidate.percentage: input should be"),
        ("shadows.candidate.timeout_s", float("inf"), "shadows.candidate.timeout_s: input should be"),
        ("shadows.candidate.timeout_s", 0, "shadows.candidate.timeout_s: input should be greater than 0 (found 0)"),
        ("shadows.candidate.methods", ["GET", "A B"], "shadows.candidate.methods: 'A B' is not an HTTP method"),
        ("shadows.candidate.methods", [""], "shadows.candidate.methods: '' is not an HTTP method"),
        ("shadows.other", {}, "shadows: dictionary should have at most 1 item"),
        ("stop_timeout_s", float("inf"), "stop_timeout_s: input should be"),
        ("stop_timeout_s", 1e12, "stop_timeout_s: input should be"),
        ("metrics.listen", "0.0.0.0:9464", "metrics.listen: the metrics port is for this host only"),
        ("metrics.listen", "127.0.0.1", "metrics.listen: give an address and port, like 127.0.0.1:9464"),
        ("metrics.listen", "127.0.0.1:99999", "metrics.listen: give an address and port"),
        ("metrics.listen", "127.0.0.1:²", "metrics.listen: give an address and port"),
        ("metrics.listen", "localhost:9464", "metrics.listen: give an address and port"),
        ("recording", {}, "recording.directory: missing"),
        ("recording.directory", "a\0b", "recording.directory: 'a\\x00b' cannot be a path"),
        ("user", "a\0b", "user: 'a\\x00b' cannot be the name of a user"),
        ("mark", -1, "mark: input should be greater than or equal to 0 (found -1)"),
        ("seed", 1 << 64, "seed: input should be less than 18446744073709551616"),
        ("x\ny", 1, "'x\\ny': unknown key"),
    ],
)
def test_one_fault_is_one_line_with_place_and_cause(path: str, value: object, says: str) -> None:
    (line,) = refused(with_value(path, value))
    assert line.startswith(f"f.yaml: {says}")


def test_every_fault_is_told() -> None:
    lines = refused("capture: {interface: eth0, ports: [0], x: 1}\nshadows: {Bad_Name: {percentage: -1}}\n")
    assert len(lines) == 3
    (line,) = refused(MINIMAL.replace("candidate", "Bad_Name"))
    assert line.startswith("f.yaml: the file: shadow name 'Bad_Name': lower-case letters")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "f.yaml:1:6: not valid YAML: "),
        ("a: 1\n b: 2", "f.yaml:2:3: not valid YAML: mapping values are not allowed here"),
        ("\t", "f.yaml:1:1: not valid YAML: "),
        ("a: \x00", "f.yaml: not valid YAML: "),
        ("", "f.yaml: expected keys such as `capture:` and `shadows:`, found None"),
        ("[1]", "f.yaml: expected keys such as `capture:` and `shadows:`, found [1]"),
        ("!!python/object/apply:os.system [x]", "f.yaml:1:1: not valid YAML: could not determine a constructor"),
        ("&a [*a]", "f.yaml: expected keys"),
        ("a: &a [*a]", "f.yaml: capture: missing"),
        ("[" * 5000, "f.yaml: not valid YAML: "),
        ("1" * 5000, "f.yaml: not valid YAML: "),
        ("!!timestamp x", "f.yaml: not valid YAML: "),
        ("!!int ''", "f.yaml: not valid YAML: "),
        ("!!bool x", "f.yaml: not valid YAML: "),
        ("2001-99-99", "f.yaml: not valid YAML: "),
    ],
)
def test_what_is_not_yaml_is_told_in_one_line(text: str, says: str) -> None:
    assert refused(text)[0].startswith(says)


def test_laughter_does_not_fill_the_memory() -> None:
    """Each line has the one before it ten times."""
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 30))
    lines = refused(f"l0: &l0 [x]\n{levels}\nseed: *l29\n")
    assert max(map(len, lines)) < 400


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=re.escape(f"{path}: {says}: give a readable YAML file with -c")):
            config.load(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary: not UTF-8 text"):
        config.load(tmp_path / "binary")


def test_rings_are_a_power_of_two() -> None:
    for kib, size in ((4, 4096), (5, 8192), (4096, 4 << 20), (1 << 20, 1 << 30)):
        assert parse(with_value("capture.ring_kib", kib), "f").capture.ring_bytes == size


words = st.sampled_from([*Config.model_fields, *config.Capture.model_fields, *config.Shadow.model_fields, "directory"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["eth0", "127.0.0.1:9464", "10.0.0.1:80", "GET", "auto", "batch", 80, 10])
    | st.dates()
    | st.binary(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | scalars, inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    *(f"capture.{name}" for name in Config.model_fields["capture"].annotation.model_fields),  # type: ignore[union-attr]
    *(f"shadows.candidate.{name}" for name in config.Shadow.model_fields),
    *(f"recording.{name}" for name in config.Recording.model_fields),
    *(f"http.{name}" for name in config.Http.model_fields),
    *(name for name in Config.model_fields),
]


def check(text: str) -> Config | None:
    """Nothing but a ConfigError, each line of which begins with the place and goes on with a cause."""
    try:
        return parse(text, "f.yaml")
    except ConfigError as error:
        lines = str(error).split("\n")
        assert all(re.match(r"f\.yaml(:\d+:\d+)?: \S.*\S", line) for line in lines), lines
        assert all(line.isprintable() for line in lines), lines
        return None


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(string.printable + "é\0\x85￾"), max_size=40) | st.text(max_size=40))
def test_any_text(text: str) -> None:
    check(text)


@settings(max_examples=300, deadline=None)
@given(values)
def test_any_data(data: object) -> None:
    check(yaml.safe_dump(data))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KEYS), values)
def test_any_value_of_any_key_is_refused_or_usable(key: str, value: object) -> None:
    """What is taken can be given to the kernel and to the workers."""
    data: Any = yaml.safe_load(MINIMAL)
    at = data
    *parents, last = key.split(".")
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    found = check(yaml.safe_dump(data))
    if found is None:
        return
    capture = found.capture
    control = Control(found.seed, capture.budget_packets_per_s, capture.budget_mib_per_s << 20, 1, 0, capture.workers,
                      found.mark, capture.request_limit_bytes, capture.response_limit_bytes)  # fmt: skip
    CONTROL.pack(0, *control)
    assert Order.from_json(Order.of(found).as_json()) == Order.of(found)
    assert "\0" not in capture.interface + (found.user or "")


tags = st.sampled_from(["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "seq"])


@settings(max_examples=300, deadline=None)
@given(tags, st.text(string.printable, max_size=12))
def test_any_tag(tag: str, text: str) -> None:
    check(f"!!{tag} {text}")
    check(f"a: !!{tag} '{text}'")
