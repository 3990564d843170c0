"""`shadowtap balancer`: what differs from production, line by line, and what a certificate is worth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import cli
from agent.balancer_report import print_certificates, print_diff
from agent.errors import ConfigError
from replay.errors import UpstreamError
from tests.replay.scripted_server import Peer, ScriptedServer
from tests.replay.test_tls import LAST_YEAR, NAME, authority, server_context

HAPROXY = """\
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend web
    bind *:8000
    log 192.0.2.5 local0
    default_backend app
backend app
    server web1 198.51.100.10:8080
"""
NGINX = """\
events {}
http {
    access_log off;
    upstream app { server 198.51.100.10:8080; }
    server {
        listen 8000;
        location / { proxy_pass http://app; }
    }
}
"""
DIFFERENCES = {
    "haproxy": """\
shadow candidate runs FILE with 4 changes
FILE:6  names the upstream for the replay client, which takes it off again
+     http-after-response set-header X-Shadowtap-Upstream "%b/%s %si:%sp %Tw %Tc %Tr"
FILE:7  the shadow listens on a private address; a PROXY header names the real client
-     bind *:8000
+     bind 127.0.0.1:PORT accept-proxy
FILE:8  logs stay in the shadow's memory
-     log 192.0.2.5 local0
+     log ring@buf0 local0
FILE:11  the shadow's server stands in for production's
-     server web1 198.51.100.10:8080
+     server web1 198.51.100.20:8080

server   app/web1: 198.51.100.10:8080 -> 198.51.100.20:8080
listens  *:8000 -> 127.0.0.1 (a free port)
haproxy accepts it
""",
    "nginx": """\
shadow candidate runs FILE with 8 changes
FILE, in one file:0  runs in the foreground, under supervision
+ daemon off;
FILE, in one file:0  own file in the run directory
+ pid DIRECTORY/nginx.pid;
+ lock_file DIRECTORY/nginx.lock;
FILE, in one file:0  errors are shown from the run directory
+ error_log DIRECTORY/error.log;
FILE:2, in one file:3  own temporary files, not production's
+     client_body_temp_path DIRECTORY/client_body_temp;
+     proxy_temp_path DIRECTORY/proxy_temp;
+     fastcgi_temp_path DIRECTORY/fastcgi_temp;
+     uwsgi_temp_path DIRECTORY/uwsgi_temp;
+     scgi_temp_path DIRECTORY/scgi_temp;
FILE:2, in one file:3  the replay client's PROXY header is believed
+     set_real_ip_from 127.0.0.1;
+     real_ip_header proxy_protocol;
FILE:2, in one file:3  names the upstream that answered
+     add_header X-Shadowtap-Upstream VALUE always;
FILE:4, in one file:6  shadow server instead of production's
-         server 198.51.100.10:8080;
+         server 198.51.100.20:8080;
FILE:6, in one file:9  private address instead of production's; the client's address comes in a PROXY header
-         listen 8000;
+         listen 127.0.0.1:PORT proxy_protocol;

server   app/198.51.100.10:8080: 198.51.100.10:8080 -> 198.51.100.20:8080
listens  *:8000 -> 127.0.0.1 (a free port)
note     FILE:5: redirects that nginx itself writes name the private port
nginx accepts it
""",
}
TEXTS = {"haproxy": HAPROXY, "nginx": NGINX}
Printed = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Printed:
    """What was printed, without what is another each time."""

    def read() -> str:
        text = capsys.readouterr().out.replace(str(tmp_path / "production.conf"), "FILE")
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
        text = re.sub(r"/\S*/shadowtap-\w+", "DIRECTORY", text)
        return re.sub(r"'\$upstream_addr;[^']*'", "VALUE", text)

    return read


def configured(tmp_path: Path, kind: str, more: str = "", text: str = "", to: str = "198.51.100.20:8080") -> Path:
    """A configuration with one shadow, `candidate`, that has this program."""
    production = tmp_path / "production.conf"
    production.write_text(text or TEXTS[kind])
    path = tmp_path / "f.yaml"
    balancer = f"engine: {kind}, from: {production}, servers: {{'*': '{to}'}}{more}"
    path.write_text(f"capture: {{interface: lo, ports: [8000]}}\nshadows:\n  candidate: {{balancer: {{{balancer}}}}}\n")
    return path


# What differs


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_every_line_that_differs_is_printed_with_its_reason(tmp_path: Path, printed: Printed, kind: str) -> None:
    assert print_diff(configured(tmp_path, kind), None, whole=False) == 0
    assert printed() == DIFFERENCES[kind]


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_the_whole_is_what_would_be_run(tmp_path: Path, printed: Printed, kind: str) -> None:
    assert print_diff(configured(tmp_path, kind), "candidate", whole=True) == 0
    text = printed()
    added = [line[2:] for line in DIFFERENCES[kind].splitlines() if line.startswith("+ ")]
    taken = [line[2:] for line in DIFFERENCES[kind].splitlines() if line.startswith("- ")]
    assert set(added) <= set(text.splitlines())
    assert not set(taken) & set(text.splitlines())
    assert "accepts it" not in text


@pytest.mark.parametrize(
    ("kind", "old", "new", "diff"),
    [
        (
            "haproxy",
            "timeout connect 1s",
            "timeout connect 9s",
            "@@ -2,3 +2,3 @@\n     mode http\n-    timeout connect 1s\n+    timeout connect 9s\n     timeout",
        ),
        (
            "nginx",
            "proxy_pass http://app;",
            "proxy_pass http://app/x;",
            "-            proxy_pass http://app;\n+            proxy_pass http://app/x;\n",
        ),
    ],
)
def test_the_experiment_comes_first(tmp_path: Path, printed: Printed, kind: str, old: str, new: str, diff: str) -> None:
    before = tmp_path / "before.conf"
    before.write_text(TEXTS[kind])
    text = TEXTS[kind].replace(old, new)
    path = configured(tmp_path, kind, f", production: {before}", text)
    assert print_diff(path, None, whole=False) == 0
    experiment, _, rest = printed().partition("\n\n")
    assert experiment.startswith(f"the experiment: FILE against {before}\n--- {before}\n+++ FILE\n")
    assert diff in experiment + "\n"
    assert rest.replace(new, old) == DIFFERENCES[kind], "and it is derived as production's file is"


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_a_candidate_that_is_the_same_is_no_experiment(tmp_path: Path, printed: Printed, kind: str) -> None:
    before = tmp_path / "before.conf"
    before.write_text(TEXTS[kind])
    assert print_diff(configured(tmp_path, kind, f", production: {before}"), None, whole=False) == 0
    assert printed().startswith(f"the experiment: FILE against {before}\n  no difference\n\nshadow candidate runs ")


@pytest.mark.parametrize(
    ("kind", "old", "new", "words"),
    [
        ("haproxy", "mode http", "mode nonsense", "haproxy refuses it: .*unknown proxy mode 'nonsense'"),
        ("nginx", "access_log off;", "no_such_thing;", 'nginx refuses it: .*unknown directive "no_such_thing"'),
    ],
)
def test_what_the_program_refuses_is_told_in_its_words(
    tmp_path: Path, printed: Printed, kind: str, old: str, new: str, words: str
) -> None:
    path = configured(tmp_path, kind, text=TEXTS[kind].replace(old, new))
    assert print_diff(path, None, whole=False) == 1
    text = printed()
    assert re.search(words, text.splitlines()[-1])
    assert "server   app/" in text, "what it would be is shown all the same"


@pytest.mark.parametrize("kind", sorted(TEXTS))
@pytest.mark.parametrize(
    ("more", "to", "says"),
    [
        ("", "198.51.100.10:8080", r"which is production's 198\.51\.100\.10:8080"),
        ("", "127.0.0.1:8000", r"which is production's 127\.0\.0\.1:8000"),
        (", bind: '81'", "198.51.100.20:8080", r"nothing listens on balancer\.bind '81'; there is \*:8000"),
        (", production: /no/such.conf", "198.51.100.20:8080", r"/no/such\.conf.*(?i:no such file)"),
        (f", program: /no/such/{'program'}", "198.51.100.20:8080", "/no/such/program is not installed here"),
    ],
)
def test_what_is_refused(tmp_path: Path, kind: str, more: str, to: str, says: str) -> None:
    with pytest.raises(UpstreamError, match=says):
        print_diff(configured(tmp_path, kind, more, to=to), None, whole=False)


def test_which_shadow(tmp_path: Path, printed: Printed) -> None:
    path = configured(tmp_path, "haproxy")
    with pytest.raises(ConfigError, match="no shadow 'other' with a balancer program; there is candidate"):
        print_diff(path, "other", whole=False)
    text = path.read_text()
    second = text.splitlines()[-1].replace("candidate", "second")
    path.write_text(f"{text}{second}\n  plain: {{}}\n")
    with pytest.raises(ConfigError, match=r"which shadow\? candidate, second"):
        print_diff(path, None, whole=False)
    with pytest.raises(ConfigError, match="no shadow 'plain' with a balancer program; there is candidate, second"):
        print_diff(path, "plain", whole=False)
    assert print_diff(path, "second", whole=False) == 0
    path.write_text("capture: {interface: lo, ports: [80]}\nshadows: {plain: {}}\n")
    with pytest.raises(ConfigError, match=r"which shadow\? none has a balancer program: set balancer\.engine"):
        print_diff(path, None, whole=False)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(configured(tmp_path, "haproxy"))
    assert cli.main(["balancer", "diff", "-c", path]) == 0
    assert capsys.readouterr().out.endswith("haproxy accepts it\n")
    assert cli.main(["balancer", "diff", "--whole", "-c", path, "candidate"]) == 0
    assert capsys.readouterr().out.startswith("defaults\n")
    assert cli.main(["balancer", "diff", "-c", path, "nobody"]) == 2
    assert capsys.readouterr().err.startswith("shadowtap: no shadow 'nobody'")


# Certificates


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pem") / "ca.pem"
    authority("ours").cert_pem.write_to_path(str(path))
    return path


def hold(peer: Peer) -> None:
    peer.hold()


def test_a_good_certificate(ca: Path, printed: Printed) -> None:
    with ScriptedServer(hold, tls=server_context()) as server:
        assert print_certificates(server.address, [NAME], ca, proxy=False) == 0
    lines = printed().splitlines()
    assert re.fullmatch(r"certificate +valid, \d+ days left", lines[0])
    assert re.fullmatch(rf"server name +{NAME}", lines[1])
    assert re.fullmatch(r"handshake +TLSv1\.3 \w+, http/1\.1", lines[2])
    assert any(line.startswith("not after") for line in lines)


def test_each_name_is_asked_for(ca: Path, printed: Printed) -> None:
    with ScriptedServer(hold, tls=server_context()) as server:
        assert print_certificates(server.address, [NAME, "other.example"], ca, proxy=False) == 1
    text = printed()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("certificate ")] == ["valid,", "NOT"]
    assert "NOT VALID, Hostname mismatch" in text


def test_by_default_it_is_the_address_s_own_name(ca: Path, printed: Printed) -> None:
    with (
        ScriptedServer(hold, tls=server_context()) as server,
        ScriptedServer(hold, place="::1", tls=server_context()) as six,
    ):
        assert print_certificates(server.address, [], ca, proxy=False) == 1
        assert print_certificates(six.address, [], ca, proxy=False) == 1
    text = printed()
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in text
    assert "IP address mismatch, certificate is not valid for '::1'" in text


def test_the_system_s_authorities_are_trusted_otherwise(printed: Printed) -> None:
    with ScriptedServer(hold, tls=server_context()) as server:
        assert print_certificates(server.address, [NAME], None, proxy=False) == 1
    assert "NOT VALID, " in printed()


def test_an_expired_one_says_since_when(ca: Path, printed: Printed) -> None:
    with ScriptedServer(hold, tls=server_context("expired")) as server:
        assert print_certificates(server.address, [NAME], ca, proxy=False) == 1
    text = printed()
    assert re.search(r"NOT VALID, certificate has expired, expired \d+ days ago", text)
    assert f"{LAST_YEAR:%Y-%m-%d}" in text


def test_behind_a_proxy_header(ca: Path, printed: Printed) -> None:
    with ScriptedServer(hold, tls=server_context(), proxied=True) as server:
        assert print_certificates(server.address, [NAME], ca, proxy=True) == 0
    assert server.proxy_headers


def test_nobody_there(ca: Path, printed: Printed) -> None:
    assert print_certificates("127.0.0.1:9", [NAME], ca, proxy=False) == 1
    assert "NOT VALID, connection refused" in printed()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("shop.example", "the port is missing"),
        ("no-such-host.invalid:443", "does not resolve"),
        ("", "port is missing"),
    ],
)
def test_an_address_that_is_none(ca: Path, address: str, says: str) -> None:
    with pytest.raises(UpstreamError, match=says):
        print_certificates(address, [], ca, proxy=False)


def test_authorities_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="tls ca"):
        print_certificates("127.0.0.1:9", [NAME], tmp_path / "none.pem", proxy=False)
    with pytest.raises(UpstreamError, match="tls ca"):
        print_certificates("127.0.0.1:9", [NAME], tmp_path, proxy=False)


def test_certificates_by_the_command_line(ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(hold, tls=server_context()) as server:
        argv = ["balancer", "certificate", server.address, "--name", NAME, "--ca", str(ca)]
        assert cli.main(argv) == 0
        assert cli.main([*argv, "--name", "other.example"]) == 1
    assert capsys.readouterr().out.count("\ncertificate ") == 2
    assert cli.main(["balancer", "certificate", "shop.example"]) == 2
    assert "the port is missing" in capsys.readouterr().err
