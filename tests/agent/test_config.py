"""The configuration: what is taken, and that everything else is a ConfigError that names place and cause."""

from __future__ import annotations

import ipaddress
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import config
from agent.capture.layout import CONTROL, PPM, Control
from agent.config import Config, parse
from agent.errors import ConfigError
from agent.order import Order
from agent.select.client_address import ClientAddress, client_address
from agent.select.criteria import Always, Cidr, Criteria, Field, Geo, Head, Match, Not, Or
from agent.select.language import write
from agent.select.sampling import EVERYTHING, By
from agent.select.superset import Wanted, make_selection
from tests.agent.select import trees

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
    ((name, shadow),) = found.shadows.items()
    assert (name, shadow.share_ppm, shadow.upstreams, shadow.sample_by) == ("candidate", 1_000_000, [], "connection")
    assert (shadow.enabled, shadow.tree, shadow.sampling, shadow.group) == (True, Always(), (By.CONNECTION, ""), "")
    assert found.windows == {"candidate": EVERYTHING}
    assert (found.geo, found.client.settings, found.notes) == (None, ClientAddress(), [])
    assert found.control is not None and found.control.socket == Path("/run/shadowtap/control.sock")
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
        ("shadows", {}, "shadows: dictionary should have at least 1 item"),
        ("shadows", {f"s{n}": {} for n in range(9)}, "shadows: dictionary should have at most 8 items"),
        ("shadows.candidate.mirrorPercentage", 101, "shadows.candidate.mirrorPercentage: input should be less than"),
        ("shadows.candidate.mirrorCriteria", "geo", "shadows.candidate.mirrorCriteria: geo cannot stand like this"),
        ("shadows.candidate.criteria", "header:", "shadows.candidate.criteria: header needs something directly"),
        ("shadows.candidate.criteria", "", "shadows.candidate.criteria: no criteria: write random for every request"),
        ("shadows.candidate.criteria", 7, "shadows.candidate.criteria: input should be a valid string (found 7)"),
        ("shadows.candidate.criteria", {"type": "HEADER"}, "shadows.candidate.criteria: header cannot stand like this"),
        ("shadows.candidate.criteria", {"type": "HEADER", "value": None}, "shadows.candidate.criteria: header cannot"),
        (
            "shadows.candidate.criteria",
            {"type": "GEO", "value": False},
            "shadows.candidate.criteria: `value` is no text",
        ),
        (
            "shadows.candidate.criteria",
            {"type": "GEO", "X": "US"},
            "shadows.candidate.criteria: input should be a valid",
        ),
        ("shadows.candidate.criteria", {"type": "COUNTRY", "value": "US"}, "shadows.candidate.criteria: unknown pred"),
        (
            "shadows.candidate.criteria",
            "geo:US",
            "the file: shadows.candidate.criteria asks for a country: set geo.data",
        ),
        (
            "shadows.candidate.sample_by",
            "user",
            "shadows.candidate.sample_by: give connection, client, request, header:",
        ),
        ("shadows.candidate.sample_by", "header", "shadows.candidate.sample_by: give header:NAME (found 'header')"),
        ("shadows.candidate.sample_by", "cookie:", "shadows.candidate.sample_by: give cookie:NAME (found 'cookie:')"),
        ("shadows.candidate.sample_by", "header:a b", "shadows.candidate.sample_by: give header:NAME"),
        ("shadows.candidate.sample_by", "client:x", "shadows.candidate.sample_by: client takes no name"),
        ("shadows.candidate.exclusive", "", "shadows.candidate.exclusive: give true, false or the name of a group"),
        ("shadows.candidate.exclusive", 5, "shadows.candidate.exclusive: give true, false or the name of a group"),
        ("shadows.candidate.shadowPoolArn", "arn:x", "shadows.candidate.shadowPoolArn: string should match pattern"),
        ("geo", {}, "geo.database: missing; this key is required"),
        ("client.source", "Forwarded", "client: client address from 'Forwarded': give connection, proxy_protocol or a"),
        ("client.source", "a b", "client: client address from 'a b': give connection, proxy_protocol or a header"),
        ("client.trusted", ["10.0.0.1/8"], "client: trusted proxy '10.0.0.1/8': 10.0.0.1/8 has host bits set: give a"),
        ("control.socket", "a\0b", "control.socket: 'a\\x00b' cannot be a path"),
        ("control.mode", 7, "control.mode: unknown key"),
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


ARN = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/candidate-2/0123456789abcdef"


def shadow(**settings: object) -> config.Shadow:
    """One shadow, where there is geography."""
    data = {**yaml.safe_load(MINIMAL), "shadows": {"a": settings}, "geo": {"database": "/x.mmdb"}}
    return parse(yaml.safe_dump(data), "f.yaml").shadows["a"]


def test_settings_may_be_written_as_elsewhere() -> None:
    as_here = shadow(percentage=12.5, criteria="header:X-Shadow-Test", shadow_pool_arn=ARN)
    value = {"type": "HEADER", "value": "X-Shadow-Test"}
    there = shadow(mirrorPercentage=12.5, mirrorCriteria=value, shadowPoolArn=ARN, enabled=True)
    assert there.model_dump() == {**as_here.model_dump(), "criteria": "HEADER:X-Shadow-Test"}
    assert (there.tree, there.share_ppm, there.shadow_pool_arn) == (as_here.tree, 125_000, ARN)
    assert shadow(mirror_percentage=1, mirror_criteria="random").share_ppm == 10_000


@pytest.mark.parametrize(
    ("criteria", "tree"),
    [
        ("RANDOM", Always()),
        (" Random ", Always()),
        ({"type": "RANDOM"}, Always()),
        ({"type": "random", "value": None}, Always()),
        ({"type": "GEO", "value": "US"}, Geo("US")),
        ({"type": "Geo", "value": "europe"}, Geo("continent:EU")),
        ("GEO:us", Geo("US")),
        ({"type": "HEADER", "value": "X-Test"}, Head(Field.HEADER, "x-test", Match.PRESENT)),
        ({"type": "header", "value": "X-Test=a*"}, Head(Field.HEADER, "x-test", Match.GLOB, "a*")),
        ("HEADER:X-Test=yes", Head(Field.HEADER, "x-test", Match.EQUAL, "yes")),
        ("Cidr:10.0.0.0/8 OR NOT Random", Or((Cidr(ipaddress.ip_network("10.0.0.0/8")), Not(Always())))),
    ],
)
def test_criteria_in_both_forms_and_any_case(criteria: object, tree: Criteria) -> None:
    assert shadow(criteria=criteria).tree == tree
    assert shadow(mirrorCriteria=criteria).tree == tree


def test_the_same_setting_in_two_ways_is_refused() -> None:
    (line,) = refused(MINIMAL.replace("{}", "{percentage: 5, mirrorPercentage: 6}"))
    assert line.startswith("f.yaml: shadows.candidate.mirrorPercentage: unknown key")


@pytest.mark.parametrize(
    ("text", "sampling"),
    [
        ("connection", (By.CONNECTION, "")),
        ("Client", (By.CLIENT, "")),
        (" REQUEST ", (By.REQUEST, "")),
        ("header:X-User", (By.HEADER, "x-user")),
        ("HEADER:x-user", (By.HEADER, "x-user")),
        ("cookie:Session_Id", (By.COOKIE, "Session_Id")),
    ],
)
def test_what_is_taken_as_a_whole(text: str, sampling: tuple[By, str]) -> None:
    assert shadow(sample_by=text).sampling == sampling


SHADOWS = """
capture: {interface: eth0, ports: [80]}
shadows:
  one: {percentage: 10, exclusive: true}
  two: {percentage: 20}
  three: {percentage: 30.5, exclusive: true, enabled: false}
  four: {percentage: 40, exclusive: group, sample_by: client}
  five: {percentage: 59.5, exclusive: true}
  six: {percentage: 60, exclusive: group, sample_by: CLIENT}
"""


def test_exclusive_windows_follow_each_other_within_their_group() -> None:
    """One that is off keeps its place: nobody else's traffic changes when it is turned on."""
    found = parse(SHADOWS, "f.yaml")
    assert {name: tuple(window) for name, window in found.windows.items()} == {
        "one": (0, 100_000), "two": (0, 200_000), "three": (100_000, 405_000), "four": (0, 400_000),
        "five": (405_000, 1_000_000), "six": (400_000, 1_000_000),
    }  # fmt: skip
    assert list(found.shadows) == ["one", "two", "three", "four", "five", "six"], "in the file's order"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("59.5", "59.6", "shadows.five: the percentages of group 'true' come to more than 100"),
        ("60,", "60.0001,", "shadows.six: the percentages of group 'group' come to more than 100"),
        ("CLIENT", "connection", "shadows.six: all of group 'group' need the same sample_by"),
        ("CLIENT", "header:X-A", "shadows.six: all of group 'group' need the same sample_by"),
        ("59.5,", "59.5, sample_by: request,", "shadows.five: all of group 'true' need the same sample_by"),
    ],
)
def test_an_exclusive_group_that_cannot_be(old: str, new: str, says: str) -> None:
    assert old in SHADOWS
    (line,) = refused(SHADOWS.replace(old, new))
    assert line.startswith(f"f.yaml: the file: {says}")


def test_a_group_of_the_same_header_in_any_case_is_one() -> None:
    parse(SHADOWS.replace("client", "header:X-A").replace("CLIENT", "HEADER:x-a"), "f.yaml")
    (line,) = refused(SHADOWS.replace("client", "header:X-A").replace("CLIENT", "header:X-B"))
    assert "all of group 'group' need the same sample_by" in line


percentages = st.lists(st.floats(0, 100) | st.sampled_from([33.3333, 33.33335, 0.00005, 50]), min_size=1, max_size=8)


@given(percentages)
def test_windows_of_a_group_never_overlap(shares: list[float]) -> None:
    data = yaml.safe_load(MINIMAL)
    data["shadows"] = {f"s{n}": {"percentage": share, "exclusive": True} for n, share in enumerate(shares)}
    try:
        found = parse(yaml.safe_dump(data), "f.yaml")
    except ConfigError:
        assert sum(shares) > 100 - 1e-4 * len(shares)
        return
    end = 0
    for name, window in found.windows.items():
        assert (window.from_ppm, window.to_ppm) == (end, end + found.shadows[name].share_ppm)
        end = window.to_ppm
    assert end <= 1_000_000


def test_where_the_client_is_seen() -> None:
    found = parse(MINIMAL + "client: {source: X-Forwarded-For, trusted: [10.0.0.0/8, '2001:db8::1']}\n", "f.yaml")
    assert found.client.settings == client_address("x-forwarded-for", ["10.0.0.0/8", "2001:db8::1/128"])
    assert parse(MINIMAL + "client: {source: PROXY_PROTOCOL}\n", "f.yaml").client.settings.source == "proxy_protocol"


def test_the_control_socket_can_be_elsewhere_or_nowhere() -> None:
    assert parse(MINIMAL + "control: null\n", "f.yaml").control is None
    control = parse(MINIMAL + "control: {socket: /tmp/x.sock, group: adm}\n", "f.yaml").control
    assert control is not None and (control.socket, control.group) == (Path("/tmp/x.sock"), "adm")


def test_what_is_hardly_meant_is_noted() -> None:
    text = f"""
capture: {{interface: eth0, ports: [80], ring_kib: 64, workers: 2}}
shadows: {{one: {{shadowPoolArn: '{ARN}'}}, two: {{}}}}
recording: {{directory: /tmp/x, rotate_mib: 128, limit_mib: 1023}}
"""
    ring, recording = parse(text, "f.yaml").notes
    assert ring.startswith("capture.ring_kib 64: ")
    assert recording.startswith("recording.limit_mib 1023: ") and "give 1024 or more" in recording
    assert len(parse(text.replace("1023", "1024"), "f.yaml").notes) == 1
    found = parse(text, "f.yaml")
    assert found.recording is not None and found.recording.limits(2)["directory_bytes"] == 1023 << 19


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
    *(f"client.{name}" for name in config.Client.model_fields),
    *(f"control.{name}" for name in config.Control.model_fields),
    *(f"shadows.candidate.{name}" for name in ("mirrorPercentage", "mirrorCriteria", "shadowPoolArn")),
    "geo.database",
    *(name for name in Config.model_fields),
]


def check(text: str, key: str = "") -> Config | None:
    """Nothing but a ConfigError, each line of which begins with the place and goes on with a cause."""
    try:
        return parse(text, "f.yaml")
    except ConfigError as error:
        lines = str(error).split("\n")
        assert all(re.match(r"f\.yaml(:\d+:\d+)?: \S.*\S", line) for line in lines), lines
        assert all(line.isprintable() for line in lines), lines
        assert all(re.match(rf"f\.yaml: ({key}): " if key else "", line) for line in lines), lines
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
    assert all(0 <= window.from_ppm <= window.to_ppm <= PPM for window in found.windows.values())
    assert config.validated(found.data, "f.yaml") == found, "as a change at run time does it"


pieces = st.sampled_from(
    ["random", "header:", "X-A", "=", "~", '"', "(", ")", " ", "and", "or", "not", "geo:", "US", "cidr:", "10.0.0.0/8",
     "::/0", "user-agent:", "curl/*", "cookie:", "query:", "path:", "host:", "method:", "[", "+", "\\", "\n", "\x85",
     "é", "☃"]
)  # fmt: skip
texts = (
    st.lists(pieces, max_size=12).map("".join)
    | trees.criteria().map(write)
    | st.text(max_size=20)
    | st.text(st.sampled_from("()[]{}*+?|^$\\.ab"), max_size=12).map('header:A=~"{}"'.format)
    | st.integers(0, 200).map(lambda depth: "not " * depth + "(" * depth + "random" + ")" * depth)
    | st.integers(0, 80).map(lambda leaves: " or ".join(["geo:US"] * (leaves + 1)))
)
kinds = st.sampled_from(["HEADER", "GEO", "RANDOM", "header", "x", ""])
criteria = texts | st.fixed_dictionaries({"type": kinds | scalars}, optional={"value": texts | scalars})
sample_by = st.sampled_from(["client", "request", "header:X", "cookie:id", "HEADER:", "header:é", ":", "client:x"])


@settings(max_examples=500, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c-1", "-", "A"]),
        st.fixed_dictionaries(
            {},
            optional={
                "criteria": criteria,
                "mirrorCriteria": criteria,
                "percentage": st.sampled_from([0, 10, 60, 100]) | scalars,
                "sample_by": sample_by | texts,
                "exclusive": st.booleans() | st.sampled_from(["x", "y"]) | scalars,
                "enabled": st.booleans(),
            },
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_any_criteria_of_any_shadows_are_refused_or_usable(shadows: dict[str, Any], geo: bool) -> None:
    data: Any = {**yaml.safe_load(MINIMAL), "shadows": shadows} | ({"geo": {"database": "x"}} if geo else {})
    found = check(yaml.safe_dump(data, sort_keys=False), r"shadows(\.[a-cA1-]+(\.\w+)?)?|the file")
    if found is None:
        return
    assert Order.from_json(json.loads(json.dumps(Order.of(found).as_json()))) == Order.of(found)
    assert list(found.windows) == list(shadows)
    assert geo or not Order.of(found).needs_geography
    make_selection([Wanted(shadow.tree, found.windows[name]) for name, shadow in found.shadows.items()])


tags = st.sampled_from(["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "seq"])


@settings(max_examples=300, deadline=None)
@given(tags, st.text(string.printable, max_size=12))
def test_any_tag(tag: str, text: str) -> None:
    check(f"!!{tag} {text}")
    check(f"a: !!{tag} '{text}'")
