"""Looking at certificates: a real nginx, a real HAProxy, and servers that are none."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from replay.balancer.settings import TlsSettings
from replay.certificate import CertificateReport, as_dict, as_lines, days, inspect, summary
from replay.errors import UpstreamError
from replay.proxy_header import proxy_v2
from replay.tls import NOT_VERIFIED, TlsInfo
from tests.bench.replay import wait_for_port
from tests.replay.scripted_server import Peer, Script, ScriptedServer
from tests.replay.test_proxy_header import haproxy

NAME = "shop.example"
DAY_S = 86_400
NOW_S = time.time()
END = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(63, 3600)
PAST = END - datetime.timedelta(200)
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")

NGINX_CONF = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log crit;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; ssl_protocols TLSv1.2;
  {servers}
}}
"""
NGINX_SERVER = """
  server {{ listen 127.0.0.1:{port} ssl; server_name {name}; ssl_certificate {dir}/{kind}.pem;
    ssl_certificate_key {dir}/{kind}.pem; return 200 "ok"; }}
"""
HOSTS = {NAME: "good", "expired.example": "expired", "self.example": "self", "unknown.example": "unknown"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and for each kind of certificate a file with its key and chain."""
    path = tmp_path_factory.mktemp("pem")
    ca, another = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(path / "ca.pem"))
    names = (NAME, f"*.{NAME}", "127.0.0.1", "expired.example")
    leaves = {
        "good": ca.issue_cert(*names, common_name="The Shop", not_after=END),
        "expired": ca.issue_cert(*names, not_before=PAST - datetime.timedelta(30), not_after=PAST),
        "unknown": another.issue_cert(*names),
    }
    for kind, leaf in leaves.items():
        leaf.private_key_and_cert_chain_pem.write_to_path(str(path / f"{kind}.pem"))
    (path / "self.pem").write_bytes(another.private_key_pem.bytes() + another.cert_pem.bytes())
    return path


@pytest.fixture
def trusting(folder: Path) -> TlsSettings:
    return TlsSettings(ca=str(folder / "ca.pem"))


@pytest.fixture(scope="module")
def nginx(folder: Path) -> Iterator[int]:
    """An nginx that has another certificate for each of HOSTS; its TLS port."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    servers = "".join(NGINX_SERVER.format(port=port, name=n, kind=k, dir=folder) for n, k in HOSTS.items())
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(dir=folder, servers=servers))
    process = subprocess.Popen([NGINX, "-c", str(conf), "-e", f"{folder}/error.log"], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.kill()
        process.wait(5)


def look(
    port: int, settings: TlsSettings, name: str = NAME, header: bytes = b"", timeout_s: float = 5.0
) -> CertificateReport:
    address = ("127.0.0.1", port)
    return inspect(address, socket.AF_INET, name, settings, timeout_s, NOW_S, proxy_header=header)


def test_a_good_certificate_of_nginx(nginx: int, trusting: TlsSettings, folder: Path) -> None:
    report = look(nginx, trusting)
    assert report.valid and report.problem == ""
    assert (report.protocol, report.alpn, report.server_name) == ("TLSv1.2", "http/1.1", NAME)
    assert report.cipher.startswith("ECDHE-ECDSA-AES")
    assert "CN=The Shop" in report.subject and "Testing CA" in report.issuer
    assert report.names == (NAME, f"*.{NAME}", "expired.example", "127.0.0.1")
    assert report.not_after_s == int(END.timestamp()) and report.not_before_s == 946_684_800  # the year 2000
    assert report.days_left == pytest.approx(63 + 1 / 24, abs=0.01)
    pem = (folder / "good.pem").read_text()
    first, end = pem.index("-----BEGIN CERTIFICATE"), pem.index("-----END CERTIFICATE")
    assert report.sha256 == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[first : end + 25])).hexdigest()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("expired.example", "certificate has expired"),
        ("self.example", "self-signed certificate"),
        ("unknown.example", "unable to get local issuer certificate"),
        ("other.example", "Hostname mismatch, certificate is not valid for 'other.example'."),
        ("192.0.2.1", "IP address mismatch, certificate is not valid for '192.0.2.1'."),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_bad_certificate_is_shown_all_the_same(
    name: str, problem: str, verify: bool, nginx: int, trusting: TlsSettings
) -> None:
    report = look(nginx, TlsSettings(verify=verify, ca=trusting.ca), name)
    assert not report.valid and report.problem == problem
    assert report.protocol == "TLSv1.2" and report.subject and report.sha256 and report.not_after_s
    if name == "expired.example":
        assert report.days_left == pytest.approx((PAST.timestamp() - NOW_S) / DAY_S, abs=0.01)
        assert as_lines(report)[0] == "certificate  NOT VALID, certificate has expired, expired 136 days ago"


def test_no_name_is_valid_by_its_chain_alone(nginx: int, trusting: TlsSettings) -> None:
    report = look(nginx, trusting, "")
    assert report.valid and report.problem == "name not verified"
    assert look(nginx, trusting, "127.0.0.1").problem == ""


def test_haproxy_behind_a_proxy_header(folder: Path, trusting: TlsSettings, tmp_path: Path) -> None:
    bind = f"accept-proxy ssl crt {folder}/good.pem alpn h2,http/1.1 ca-file {folder}/ca.pem verify optional"
    with haproxy(tmp_path, bind, "http-request return status 200") as port:
        header = proxy_v2("192.0.2.1:5555", "198.51.100.7:443")
        own = TlsSettings(ca=trusting.ca, certificate=str(folder / "good.pem"))
        report = look(port, own, header=header)
        assert report.valid and (report.protocol, report.alpn) == ("TLSv1.3", "http/1.1")
        refused = look(port, trusting, "other.example", header)
        assert refused.problem.startswith("Hostname mismatch") and refused.subject == report.subject
        assert not look(port, trusting).valid, "without the header HAProxy closes"


# Servers that do not get so far


def nothing(peer: Peer) -> None:
    peer.hold()


def plain(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.hold()


def closing(peer: Peer) -> None:
    peer.sock.recv(65536)


def resetting(peer: Peer) -> None:
    peer.sock.recv(65536)
    peer.reset()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (nothing, "time limit reached inside the handshake"),
        (plain, "wrong version number"),
        (closing, "closed inside the TLS handshake"),
        (resetting, "connection reset by peer"),
    ],
)
def test_no_handshake(script: Script, problem: str, trusting: TlsSettings) -> None:
    with ScriptedServer(script) as server:
        report = look(int(server.address.rpartition(":")[2]), trusting, timeout_s=0.1)
    assert report == CertificateReport(NAME, False, problem)
    assert as_lines(report) == [f"certificate  NOT VALID, {problem}", f"server name  {NAME}"]


def test_one_byte_at_a_time_does_not_hold_it_up(trusting: TlsSettings) -> None:
    def slow(peer: Peer) -> None:
        peer.send(b"\x16\x03\x03\x40\x00")  # a record of 16 KB
        while True:
            peer.send(b"\x02")
            peer.pause(0.02)

    with ScriptedServer(slow) as server:
        began_s = time.monotonic()
        report = look(int(server.address.rpartition(":")[2]), trusting, timeout_s=0.2)
    assert report.problem.startswith("time limit reached") and time.monotonic() - began_s < 1


def test_no_connection(trusting: TlsSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert look(port, trusting).problem == "connection refused"
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as open_ones:
        for _ in range(2):  # nobody accepts: the next connection is not answered
            sock = open_ones.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        report = look(full.getsockname()[1], trusting, timeout_s=0.1)
        assert report.problem == "time limit reached before a connection"
    assert look(port, trusting, timeout_s=0).problem == "time limit reached"


def test_sockets_come_from_the_factory(nginx: int, trusting: TlsSettings) -> None:
    made: list[socket.socket] = []

    def factory(family: socket.AddressFamily) -> socket.socket:
        made.append(socket.socket(family))
        return made[-1]

    def none_left(family: socket.AddressFamily) -> socket.socket:
        raise OSError(24, "Too many open files")

    address = ("127.0.0.1", nginx)
    assert inspect(address, socket.AF_INET, "self.example", trusting, 5, NOW_S, factory).problem
    assert len(made) == 2 and all(sock.fileno() < 0 for sock in made)
    report = inspect(address, socket.AF_INET, NAME, trusting, 5, NOW_S, none_left)
    assert report.problem == "too many open files"


def test_what_is_no_name_and_what_is_no_file(nginx: int, trusting: TlsSettings) -> None:
    assert look(nginx, trusting, "a..b\x1b").problem == r"'a..b\x1b' is not a server name"
    with pytest.raises(UpstreamError, match="tls ca '/none'"):
        look(nginx, TlsSettings(ca="/none"))


def test_a_certificate_from_a_stranger_writes_nothing_on_the_terminal(folder: Path, tmp_path: Path) -> None:
    ca = trustme.CA(organization_name="a\x1b[2J\n\u202eb")
    names = [f"n{number}.example" for number in range(20)]
    leaf = ca.issue_cert(*names, common_name="c\x1b[2J\r\nd")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "odd.pem"))
    with haproxy(tmp_path, f"ssl crt {tmp_path}/odd.pem") as port:
        report = look(port, TlsSettings(ca=str(folder / "ca.pem")))
    lines = as_lines(report)
    assert all(line.isprintable() for line in lines)
    assert "c?[2J" in report.subject and "a?[2J" in report.issuer and "?b" in report.issuer
    assert "names        " + ", ".join(names[:8]) + " and 12 more" in lines


# Words


REPORT = CertificateReport(
    *(NAME, True, "", "TLSv1.3", "TLS_AES_256_GCM_SHA384", "http/1.1", "CN=The Shop", "CN=The Authority"),
    *((NAME, "192.0.2.1"), 946_684_800, 1_800_000_000, 63.9, "ab" * 32),
)


def test_lines_for_a_terminal() -> None:
    assert as_lines(REPORT) == [
        "certificate  valid, 63 days left",
        "server name  shop.example",
        "handshake    TLSv1.3 TLS_AES_256_GCM_SHA384, http/1.1",
        "subject      CN=The Shop",
        "issuer       CN=The Authority",
        "names        shop.example, 192.0.2.1",
        "not before   2000-01-01 00:00:00 UTC",
        "not after    2027-01-15 08:00:00 UTC",
        "sha256       " + "ab" * 32,
    ]


def test_json() -> None:
    loaded = json.loads(json.dumps(as_dict(REPORT)))
    assert loaded["names"] == [NAME, "192.0.2.1"] and loaded["valid"] is True and loaded["days_left"] == 63.9
    assert CertificateReport(**{**loaded, "names": tuple(loaded["names"])}) == REPORT


def test_summary_of_a_connection() -> None:
    info = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", NAME, True, int(NOW_S) + 63 * DAY_S + 99, "The Shop")
    assert summary(info, NOW_S) == "TLSv1.3 TLS_AES_256_GCM_SHA384, valid, 63 days left"
    unknown = info._replace(verified=False, not_after_s=0, problem=NOT_VERIFIED)
    assert summary(unknown, NOW_S) == "TLSv1.3 TLS_AES_256_GCM_SHA384, not verified"


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (63.9, "63 days left"),
        (1.5, "1 day left"),
        (0.2, "0 days left"),
        (-0.5, "expired 0 days ago"),
        (-3.0, "expired 3 days ago"),
    ],
)
def test_days(left: float, text: str) -> None:
    assert days(left) == text
