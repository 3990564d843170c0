"""The configuration of a pool: what may be written, what each rule says, and that any text is taken or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import parse, validated
from agent.errors import ConfigError
from agent.pool_config import KEPT, Balancer, UpstreamConfig
from agent.shadow_config import Shadow
from replay.balancer.policy import POLICIES

MINIMAL = "capture: {interface: eth0, ports: [80]}\nshadows: {candidate: {}}\n"
ARN = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/candidate-2/0123456789abcdef"
HAPROXY: dict[str, Any] = {"engine": "haproxy", "from": "/etc/haproxy.cfg"}


def text_of(shadow: dict[str, Any]) -> str:
    return yaml.safe_dump({**yaml.safe_load(MINIMAL), "shadows": {"candidate": shadow}})


def shadow(**fields: Any) -> Shadow:
    return parse(text_of(fields), "f.yaml").shadows["candidate"]


def balancer(**fields: Any) -> Balancer:
    return shadow(balancer=fields).balancer


def refused(shadow: dict[str, Any]) -> list[str]:
    """The lines of the error, each without what all begin with."""
    with pytest.raises(ConfigError) as error:
        parse(text_of(shadow), "f.yaml")
    return [line.removeprefix("f.yaml: shadows.candidate") for line in str(error.value).splitlines()]


def test_what_is_not_said_has_a_default() -> None:
    made = shadow(upstreams=["192.0.2.1:80"]).balancer
    assert made == Balancer() == balancer()
    assert (made.engine, made.policy, made.hash_by, made.is_program) == ("embedded", "round_robin", "client", False)
    assert made.health_check is None and made.tls is None
    assert made.outlier.statuses == ((500, 599),)
    check = balancer(health_check={}).health_check
    assert check is not None
    assert (check.type, check.path, check.statuses, check.rise, check.fall) == ("http", "/", ((200, 399),), 2, 3)


def test_upstreams_alone_and_whole() -> None:
    whole = {"address": "[2001:db8::1]:80", "weight": 3, "cookie": "s1"}
    found = shadow(upstreams=["shadow.example:8080", whole, "unix:/run/app.sock", {"address": "192.0.2.1:80"}])
    assert found.upstreams == [
        UpstreamConfig(address="shadow.example:8080"),
        UpstreamConfig(address="[2001:db8::1]:80", weight=3, cookie="s1"),
        UpstreamConfig(address="unix:/run/app.sock"),
        UpstreamConfig(address="192.0.2.1:80"),
    ]
    assert [each.plain for each in found.upstreams] == [
        "shadow.example:8080",
        whole,
        "unix:/run/app.sock",
        "192.0.2.1:80",
    ]
    assert not found.captures_only and not found.discovers


@pytest.mark.parametrize(
    ("written", "ranges"),
    [
        ("200-399", ((200, 399),)),
        ("200-299, 304,401-403", ((200, 299), (304, 304), (401, 403))),
        (200, ((200, 200),)),
        ("599", ((599, 599),)),
        ([[200, 299], [304, 304]], ((200, 299), (304, 304))),
        ([], ()),
    ],
)
def test_statuses(written: object, ranges: tuple[tuple[int, int], ...]) -> None:
    made = balancer(health_check={"statuses": written}, outlier={"statuses": written})
    assert made.health_check is not None
    assert made.health_check.statuses == made.outlier.statuses == ranges


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(policy: str) -> None:
    assert balancer(policy=policy).policy == policy


@pytest.mark.parametrize("hash_by", ["client", "path", "header:X-User", "cookie:session_id"])
def test_everything_that_can_be_hashed(hash_by: str) -> None:
    assert balancer(policy="maglev", hash_by=hash_by).hash_by == hash_by


def test_a_balancer_program() -> None:
    made = shadow(
        balancer={
            "engine": "nginx",
            "from": "/etc/nginx/candidate.conf",
            "production": "/etc/nginx/nginx.conf",
            "servers": {"*": "shadow1:8080", "app/*": ["shadow2:80", "shadow3:80"]},
            "bind": "*:443",
            "keep": list(KEPT),
            "program": "/opt/nginx",
            "tls": {"ca": "/etc/ca.pem", "server_name": "shop.example", "verify": False},
            "allow_production": True,
        }
    )
    assert made.balancer.is_program and not made.captures_only
    assert made.balancer.from_ == Path("/etc/nginx/candidate.conf")
    assert made.balancer.servers == {"*": "shadow1:8080", "app/*": ["shadow2:80", "shadow3:80"]}


def test_where_upstreams_are_found() -> None:
    for fields in (
        {"discovery": {"dns": {"name": "shadow.example", "port": 80}}},
        {"discovery": {"dns": {"name": "_http._tcp.shadow.example"}}},
        {"discovery": {"dns": {"name": "shadow.example", "type": "SRV", "nameservers": ["192.0.2.53"]}}},
        {"discovery": {"file": "/etc/pool-*.json"}},
        {"shadowPoolArn": ARN},
        {"shadow_pool_arn": ARN, "discovery": {"endpoint_url": "http://127.0.0.1:5000"}},
    ):
        made = shadow(**fields)
        assert made.discovers and not made.captures_only and made.upstreams == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"upstreams": ["192.0.2.1"]}, ".upstreams.0.address: upstream '192.0.2.1': the port is missing"),
        ({"upstreams": ["http://a:80/"]}, ".upstreams.0.address: upstream 'http://a:80/': write host:port"),
        ({"upstreams": ["2001:db8::1:80"]}, ".upstreams.0.address: upstream '2001:db8::1:80': write an IPv6"),
        ({"upstreams": ["a:0"]}, ".upstreams.0.address: upstream 'a:0': '0' is not a port"),
        ({"upstreams": [5]}, ".upstreams.0: input should be a valid dictionary"),
        ({"upstreams": [{}]}, ".upstreams.0.address: missing"),
        ({"upstreams": [{"address": "a:80", "weight": -1}]}, ".upstreams.0.weight: input should be greater than or"),
        ({"upstreams": [{"address": "a:80", "weight": 1001}]}, ".upstreams.0.weight: input should be less than or"),
        ({"upstreams": [{"address": "a:80", "cookie": "a b"}]}, ".upstreams.0.cookie: string should match pattern"),
        ({"upstreams": [{"address": "a:80", "cookie": "x" * 65}]}, ".upstreams.0.cookie: string should have at most"),
        ({"upstreams": [{"address": "a:80", "port": 1}]}, ".upstreams.0.port: unknown key"),
        ({"upstreams": [f"a{n}:80" for n in range(1025)]}, ".upstreams: list should have at most 1024 items"),
        ({"balancer": {"policy": "fastest"}}, ".balancer.policy: no policy of that name; there are round_robin, "),
        ({"balancer": {"hash_by": "header"}}, ".balancer.hash_by: give client, path, header:NAME or cookie:NAME"),
        ({"balancer": {"hash_by": "cookie:a b"}}, ".balancer.hash_by: give client, path, header:NAME or cookie:NAME"),
        ({"balancer": {"hash_by": "client:x"}}, ".balancer.hash_by: give client, path, header:NAME or cookie:NAME"),
        ({"balancer": {"hash_by": "host"}}, ".balancer.hash_by: give client, path, header:NAME or cookie:NAME"),
        ({"balancer": {"slow_start_s": -1}}, ".balancer.slow_start_s: input should be greater than or equal to 0"),
        ({"balancer": {"slow_start_s": 3601}}, ".balancer.slow_start_s: input should be less than or equal to 3600"),
        ({"balancer": {"sticky_cookie": "a=b"}}, ".balancer.sticky_cookie: not the name of a cookie"),
        ({"balancer": {"sticky_entries": 0}}, ".balancer.sticky_entries: input should be greater than or equal to 1"),
        ({"balancer": {"panic_percent": 101}}, ".balancer.panic_percent: input should be less than or equal to 100"),
        ({"balancer": {"max_requests": -1}}, ".balancer.max_requests: input should be greater than or equal to 0"),
        ({"balancer": {"engine": "envoy"}}, ".balancer.engine: input should be 'embedded', 'haproxy' or 'nginx'"),
        ({"balancer": {"engin": "haproxy"}}, ".balancer.engin: unknown key"),
        ({"balancer": {"engine": "haproxy"}}, ".balancer: balancer.from: name the configuration file that haproxy is"),
        ({"balancer": {**HAPROXY, "keep": ["lua", "mail"]}}, ".balancer.keep: mail: what can be kept is lua, spoe, "),
        ({"balancer": {**HAPROXY, "from": "a\0b"}}, ".balancer.from: 'a\\x00b' cannot be a path"),
        ({"balancer": {**HAPROXY, "program": "a\0b"}}, ".balancer.program: 'a\\x00b' cannot be a path"),
        ({"balancer": {**HAPROXY, "servers": {"*": 5}}}, ".balancer.servers.*.str: input should be a valid string"),
        ({"balancer": {"tls": {"ca": "a\0b"}}}, ".balancer.tls.ca: 'a\\x00b' cannot be a path"),
        ({"balancer": {"tls": {"cipher": "x"}}}, ".balancer.tls.cipher: unknown key"),
        ({"discovery": {"dns": {"name": "a"}}}, ".discovery: dns.port: missing; only SRV records name a port"),
        ({"discovery": {"dns": {"name": "a", "type": "A"}}}, ".discovery: dns.port: missing; only SRV records name a"),
        ({"discovery": {"dns": {"name": "", "port": 80}}}, ".discovery.dns.name: string should have at least 1"),
        (
            {"discovery": {"dns": {"name": "a" * 254, "port": 80}}},
            ".discovery.dns.name: string should have at most 253",
        ),
        ({"discovery": {"dns": {"name": "a", "port": 0}}}, ".discovery.dns.port: input should be greater than or"),
        ({"discovery": {"dns": {"name": "a", "type": "TXT"}}}, ".discovery.dns.type: input should be 'auto', 'A', "),
        ({"discovery": {"file": "/a", "dns": {"name": "_a"}}}, ".discovery: give dns or file, not both"),
        ({"discovery": {"file": "a\0b"}}, ".discovery.file: 'a\\x00b' cannot be a path"),
        ({"discovery": {"file": "/a.json"}, "upstreams": ["a:80"]}, ": upstreams and a discovery of them: give one"),
        ({"shadowPoolArn": ARN, "upstreams": ["a:80"]}, ": upstreams and a discovery of them: give one of them"),
        ({"shadowPoolArn": ARN, "discovery": {"file": "/a.json"}}, ": shadow_pool_arn and discovery: give one of them"),
        ({"balancer": HAPROXY, "upstreams": ["a:80"]}, ": upstreams with engine haproxy: its servers are named in"),
        ({"balancer": HAPROXY, "shadowPoolArn": ARN}, ": upstreams with engine haproxy: its servers are named in"),
        *(
            ({"balancer": {"health_check": {key: value}}}, f".balancer.health_check.{key}: {says}")
            for key, value, says in (
                ("type", "udp", "input should be 'tcp' or 'http'"),
                ("path", "health", "string should match pattern"),
                ("path", "/a b", "string should match pattern"),
                ("path", "/a\r\nX: y", "string should match pattern"),
                ("path", "/a\n", "string should match pattern"),
                ("host", "a\r\nX: y", "string should match pattern"),
                ("body", "(", "not a regular expression: missing ), unterminated subpattern"),
                ("body", "a{99999999999999999999}", "not a regular expression: the repetition number is too large"),
                ("body", "(" * 2000 + ")" * 2000, "not a regular expression: maximum recursion depth exceeded"),
                ("statuses", "many", 'give statuses like "200-399, 404"'),
                ("statuses", "", 'give statuses like "200-399, 404"'),
                ("statuses", "200-", 'give statuses like "200-399, 404"'),
                ("statuses", "399-200", "give statuses from 100 to 599, the lower one first"),
                ("statuses", "99", "give statuses from 100 to 599, the lower one first"),
                ("statuses", 600, "give statuses from 100 to 599, the lower one first"),
                ("statuses", [[399, 200]], "give statuses from 100 to 599, the lower one first"),
                ("statuses", [[0, 99999]], "give statuses from 100 to 599, the lower one first"),
                ("statuses", True, "input should be a valid tuple"),
                ("interval_s", 0, "input should be greater than 0"),
                ("jitter_percent", 51, "input should be less than or equal to 50"),
                ("timeout_s", float("nan"), "input should be"),
                ("rise", 0, "input should be greater than or equal to 1"),
                ("fall", 101, "input should be less than or equal to 100"),
            )
        ),
        *(
            ({"balancer": {"outlier": {key: value}}}, f".balancer.outlier.{key}: {says}")
            for key, value, says in (
                ("consecutive_errors", -1, "input should be greater than or equal to 0"),
                ("statuses", "5xx", 'give statuses like "200-399, 404"'),
                ("ejection_s", 0, "input should be greater than 0"),
                ("ejection_max_s", float("inf"), "input should be"),
                ("ejected_max_percent", 101, "input should be less than or equal to 100"),
            )
        ),
    ],
)
def test_one_fault_is_told_with_its_rule(fields: dict[str, Any], says: str) -> None:
    lines = refused(fields)
    assert lines[0].startswith(says), lines
    assert len(lines) == (2 if ".str:" in says else 1), "of a union, each kind says why not"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy", "maglev"),
        ("hash_by", "path"),
        ("slow_start_s", 1.0),
        ("sticky_cookie", "s"),
        ("sticky_entries", 5),
        ("panic_percent", 5.0),
        ("max_requests", 5),
        ("health_check", {}),
        ("outlier", {"consecutive_errors": 1}),
        ("proxy_protocol", True),
        ("forwarded_for", False),
    ],
)
def test_what_a_program_s_own_file_says_is_not_said_twice(key: str, value: object) -> None:
    assert balancer(**{key: value})
    (line,) = refused({"balancer": {**HAPROXY, key: value}})
    assert line.startswith(f".balancer: balancer.{key} with engine haproxy: that is for `from` to say")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("from", "/etc/haproxy.cfg"),
        ("production", "/etc/haproxy.cfg"),
        ("servers", {"*": "a:80"}),
        ("bind", "*:80"),
        ("keep", ["lua"]),
        ("program", "/opt/haproxy"),
    ],
)
def test_what_only_a_program_can_do(key: str, value: object) -> None:
    assert balancer(**{**HAPROXY, key: value})
    (line,) = refused({"balancer": {key: value}})
    assert line.startswith(f".balancer: balancer.{key} with engine embedded: only for engine haproxy or nginx")


def test_defaults_may_be_written_out_with_a_program() -> None:
    written = balancer(**HAPROXY, policy="round_robin", outlier={}, sticky_entries=65_536, forwarded_for=True)
    assert written == balancer(**HAPROXY)


WHOLE: dict[str, Any] = {
    "upstreams": ["192.0.2.1:80", {"address": "unix:/run/a.sock", "weight": 0, "cookie": "b"}],
    "balancer": {
        "policy": "ring_hash",
        "hash_by": "header:X-User",
        "health_check": {"statuses": "200-299, 404", "body": "ok", "type": "http"},
        "outlier": {"statuses": 503},
        "tls": {"ca": "/etc/ca.pem"},
    },
}


@pytest.mark.parametrize(
    "fields",
    [WHOLE, {"balancer": {**HAPROXY, "servers": {"*": ["a:80"]}}}, {"discovery": {"dns": {"name": "_a._tcp.b"}}}],
)
def test_as_data_and_back(fields: dict[str, Any]) -> None:
    """As it is done for every change at run time."""
    found = parse(text_of(fields), "f.yaml")
    assert validated(found.data, "the change") == found
    assert validated(json.loads(json.dumps(found.data, default=str)), "the change") == found


def test_a_number_that_python_does_not_write_is_told() -> None:
    for place in ("percentage: ", "retries: ", "balancer: {max_requests: -"):
        text = MINIMAL.replace("{}", f"{{{place}0x{'f' * 5000}{'}' * ('{' in place)}}}")
        with pytest.raises(ConfigError, match="a number without end"):
            parse(text, "f.yaml")


# Anything at all

KEYS = sorted(
    {
        *Balancer.model_fields,
        *UpstreamConfig.model_fields,
        *(key for field in WHOLE["balancer"].values() if isinstance(field, dict) for key in field),
        *("from", "dns", "file", "name", "port", "nameservers", "endpoint_url", "upstreams", "x", ""),
    }
)
VALUES = ["haproxy", "maglev", "header:X", "200-399", "/a", "(", "a:80", "unix:/a", "\0", "\ud800", "*", "a" * 300]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1 << 64, -(1 << 2000), 0, 1, 80]),
    st.floats(),
    st.sampled_from(VALUES),
    st.text(max_size=8),
)
data = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=8,
)
places = st.sampled_from(["upstreams", "balancer", "discovery", "shadow_pool_arn", "retries", "first_byte_timeout_s"])


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(places, data, max_size=3))
def test_whatever_is_written_is_taken_or_refused(fields: dict[str, Any]) -> None:
    whole = {**yaml.safe_load(MINIMAL), "shadows": {"candidate": fields}}
    try:
        found = validated(whole, "f.yaml")
    except ConfigError as error:
        assert str(error).startswith("f.yaml: ")
        assert all(line.isprintable() for line in str(error).splitlines())
    else:
        assert validated(found.data, "f.yaml") == found


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(sorted(Balancer.model_fields)), value=data, engine=st.sampled_from(["embedded", "haproxy"]))
def test_whatever_a_balancers_key_says_is_taken_or_refused(key: str, value: object, engine: str) -> None:
    fields = {"engine": engine, **({"from": "/x"} if engine == "haproxy" else {})}
    fields["from" if key == "from_" else key] = value  # type: ignore[assignment]
    try:
        validated({**yaml.safe_load(MINIMAL), "shadows": {"candidate": {"balancer": fields}}}, "f.yaml")
    except ConfigError as error:
        assert str(error).startswith("f.yaml: ")


@settings(max_examples=100, deadline=None)
@given(text=st.text("abhou:/-*[]{},'\"\\0123456789. \n\t&!#|>%@`", max_size=60))
def test_whatever_text_is_there_is_taken_or_refused(text: str) -> None:
    for place in ("upstreams: ", "balancer: ", "discovery: "):
        whole = f"capture: {{interface: lo, ports: [80]}}\nshadows:\n  candidate:\n    {place}{text}\n"
        try:
            parse(whole, "f.yaml")
        except ConfigError as error:
            assert str(error).startswith("f.yaml")
