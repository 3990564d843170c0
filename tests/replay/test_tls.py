"""TLS without a socket, against Python's own server side in memory: whole, byte by byte and in any pieces."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.balancer.settings import TlsSettings
from replay.errors import UpstreamError
from replay.tls import NAME_NOT_VERIFIED, NOT_VERIFIED, TlsStream, make_context, reason_of

NAME = "shop.example"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
LAST_YEAR = datetime.datetime.now(datetime.UTC) - datetime.timedelta(365)
VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
WHOLE = (1 << 30,)

pieces = st.lists(st.integers(1, 900), min_size=1, max_size=12)


@functools.cache
def authority(which: str) -> trustme.CA:
    return trustme.CA()


@functools.cache
def leaf(kind: str) -> trustme.LeafCert:
    if kind == "unknown authority":
        return authority("another").issue_cert(NAME)
    if kind == "expired":
        return authority("ours").issue_cert(NAME, not_before=LAST_YEAR, not_after=LAST_YEAR + datetime.timedelta(30))
    return authority("ours").issue_cert(NAME, "192.0.2.7", "2001:db8::7", common_name="The Shop")


@functools.cache
def server_context(kind: str = "good", version: str = "TLSv1.3", client_authority: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.maximum_version = VERSIONS[version]
    if kind == "self-signed":
        ours = authority("ours")
        with trustme.Blob(ours.private_key_pem.bytes() + ours.cert_pem.bytes()).tempfile() as path:
            context.load_cert_chain(path)
    else:
        leaf(kind).configure_cert(context)
    if client_authority:
        context.verify_mode = ssl.CERT_REQUIRED
        authority("ours").configure_trust(context)
    return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authorities' certificates, and a certificate and key for clients."""
    folder = tmp_path_factory.mktemp("pem")
    authority("ours").cert_pem.write_to_path(str(folder / "ca.pem"))
    authority("another").cert_pem.write_to_path(str(folder / "another.pem"))
    ours = authority("ours").issue_cert("client.example")
    (folder / "client.pem").write_bytes(b"".join(blob.bytes() for blob in ours.cert_chain_pems))
    ours.private_key_pem.write_to_path(str(folder / "client.key"))
    ours.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    return folder


@functools.cache
def client_context(verify: bool = True) -> ssl.SSLContext:
    with authority("ours").cert_pem.tempfile() as path:
        return make_context(TlsSettings(verify=verify, ca=path))


class Server:
    """The other end; `names` are the server names that clients sent."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.received = b""
        self.error = ""
        self.names: list[str | None] = []
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context.sni_callback = lambda tls, name, _: self.names.append(name)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.done = False
        self.closed = False  # by the client's close_notify

    def receive(self, data: bytes) -> bytes:
        """Take ciphertext; return what is to be sent."""
        self.incoming.write(data)
        try:
            if not self.done:
                self.tls.do_handshake()
                self.done = True
            while piece := self.tls.read(65536):
                self.received += piece
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = reason_of(error)
        return self.outgoing.read()

    def send(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def close(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()


def feed(stream: TlsStream, data: bytes, sizes: tuple[int, ...] | list[int] = WHOLE) -> bytes:
    """Give the stream `data` in pieces of these sizes, over and over."""
    plain, at = b"", 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            return plain
        plain += stream.receive(data[at : at + size])
        at += size
    return plain


def shake(
    context: ssl.SSLContext | None = None,
    server: ssl.SSLContext | None = None,
    name: str = NAME,
    sizes: tuple[int, ...] | list[int] = WHOLE,
) -> tuple[TlsStream, Server]:
    """Let both ends talk until neither has more to say."""
    stream, peer = TlsStream(context or client_context(), name), Server(server or server_context())
    data = stream.begin()
    while data:
        assert feed(stream, peer.receive(data), sizes) == b""
        data = stream.pending()
    return stream, peer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", [WHOLE, (1,), (5, 1, 300)], ids=str)
def test_a_request_and_its_response(version: str, sizes: tuple[int, ...]) -> None:
    stream, peer = shake(server=server_context(version=version), sizes=sizes)
    assert stream.ready and not stream.failed and not stream.closed
    assert peer.receive(stream.encrypt(b"GET / HTTP/1.1\r\n\r\n")) == b""
    assert peer.received == b"GET / HTTP/1.1\r\n\r\n"
    assert feed(stream, peer.send(RESPONSE), sizes) == RESPONSE
    assert feed(stream, peer.send(RESPONSE) + peer.send(RESPONSE), sizes) == RESPONSE + RESPONSE
    assert stream.pending() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_agreed_on(version: str) -> None:
    stream, peer = shake(server=server_context(version=version))
    info = stream.info
    assert info is not None
    assert info.protocol == version and info.cipher == peer.tls.cipher()[0]  # type: ignore[index]
    assert info.verified and info.problem == "" and info.server_name == NAME
    assert info.subject == "The Shop" and info.alpn == peer.tls.selected_alpn_protocol() == "http/1.1"
    assert info.not_after_s == 32_503_680_000  # trustme's default: the year 3000
    assert peer.names == [NAME]
    assert stream.certificate() == ssl.PEM_cert_to_DER_cert(leaf("good").cert_chain_pems[0].bytes().decode())


@settings(max_examples=25, deadline=None)
@given(pieces, st.sampled_from(sorted(VERSIONS)), st.integers(0, 60_000))
def test_any_pieces_give_the_same_plaintext(sizes: list[int], version: str, length: int) -> None:
    stream, peer = shake(server=server_context(version=version), sizes=sizes)
    body = random.Random(length).randbytes(length)
    peer.receive(stream.encrypt(body))
    assert peer.received == body
    sent = peer.send(body) if body else b""
    assert feed(stream, sent + peer.close(), sizes) == body
    assert stream.closed and not stream.truncated and not stream.failed


def test_plaintext_comes_with_the_piece_that_made_it_whole() -> None:
    stream, peer = shake()
    data = peer.send(RESPONSE)
    assert stream.receive(data[:-1]) == b""
    assert stream.receive(data[-1:]) == RESPONSE


def test_large_bodies_in_one_piece() -> None:
    stream, peer = shake()
    body = random.Random(1).randbytes(3_000_000)
    peer.receive(stream.encrypt(body))
    assert peer.received == body
    assert stream.receive(peer.send(body)) == body


def test_the_last_of_the_handshake_may_bring_the_response() -> None:
    stream, peer = shake(server=server_context(version="TLSv1.2"))
    early, other = TlsStream(client_context(), NAME), Server(server_context(version="TLSv1.2"))
    early.receive(other.receive(early.begin()))
    finished = other.receive(early.pending())
    assert early.receive(finished + other.send(RESPONSE)) == RESPONSE
    assert early.ready and stream.ready


def test_nothing_to_encrypt_is_no_record() -> None:
    stream, _ = shake()
    assert stream.encrypt(b"") == b""


# What is wrong with a certificate


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("expired", NAME, "certificate has expired"),
        ("unknown authority", NAME, "unable to get local issuer certificate"),
        ("good", "other.example", "Hostname mismatch, certificate is not valid for 'other.example'."),
        ("good", "192.0.2.8", "IP address mismatch, certificate is not valid for '192.0.2.8'."),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_that_is_refused(kind: str, name: str, reason: str, version: str) -> None:
    stream, peer = shake(server=server_context(kind, version), name=name)
    assert stream.failed == f"certificate verify failed: {reason}"
    assert not stream.ready and stream.info is None and stream.certificate() == b""
    assert "alert" in peer.error, "the server was not told"
    assert stream.receive(b"more") == stream.encrypt(b"more") == stream.pending() == stream.close() == b""


def test_a_self_signed_certificate(files: Path) -> None:
    context = make_context(TlsSettings(ca=str(files / "another.pem")))
    stream, _ = shake(context, server_context("self-signed"))
    assert stream.failed == "certificate verify failed: self-signed certificate"


@pytest.mark.parametrize("kind", ["good", "expired", "unknown authority", "self-signed"])
def test_without_verification_all_are_taken(kind: str) -> None:
    stream, peer = shake(client_context(verify=False), server_context(kind), name="other.example")
    assert stream.ready and stream.certificate()
    info = stream.info
    assert info is not None and not info.verified and info.problem == NOT_VERIFIED
    assert (info.not_after_s, info.subject) == (0, "")
    assert peer.names == ["other.example"]


def test_the_system_store_does_not_know_a_test_authority() -> None:
    stream, _ = shake(make_context(TlsSettings()))
    assert stream.failed.startswith("certificate verify failed: ")


def test_an_authority_below_the_root_can_be_trusted(tmp_path: Path) -> None:
    middle = authority("ours").create_child_ca()
    middle.cert_pem.write_to_path(str(tmp_path / "middle.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    middle.issue_cert(NAME).configure_cert(context)
    stream, _ = shake(make_context(TlsSettings(ca=str(tmp_path / "middle.pem"))), context)
    assert stream.ready and not stream.failed


# Server names


@pytest.mark.parametrize("name", ["192.0.2.7", "2001:db8::7", "[2001:db8::7]"])
def test_addresses_are_verified_and_not_sent(name: str) -> None:
    stream, peer = shake(name=name)
    assert stream.ready and stream.info is not None and stream.info.problem == ""
    assert peer.names == [None]


def test_no_name_leaves_the_chain_to_be_verified() -> None:
    stream, peer = shake(name="")
    assert stream.ready and peer.names == [None]
    assert stream.info is not None and stream.info.verified and stream.info.problem == NAME_NOT_VERIFIED
    unknown, _ = shake(server=server_context("unknown authority"), name="")
    assert unknown.failed == "certificate verify failed: unable to get local issuer certificate"


def test_the_dot_at_the_end_is_not_part_of_the_name() -> None:
    stream, peer = shake(name=f"{NAME}.")
    assert stream.ready and peer.names == [NAME]


@pytest.mark.parametrize("name", [".", ".x", "a..b", "x\0y", "a" * 64, "a." * 200 + "b", "\udc80", "\x1b[2J...", "[]"])
def test_what_is_no_server_name_fails_and_does_not_raise(name: str) -> None:
    stream = TlsStream(client_context(), name)
    if name in (".", "[]"):  # nothing is left of them
        assert stream.failed == "" and stream.begin()
        return
    assert stream.failed.endswith("is not a server name") and stream.failed.isprintable()
    assert stream.begin() == stream.receive(b"x") == stream.encrypt(b"x") == stream.pending() == stream.close() == b""
    assert stream.certificate() == b""


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_host_header_is_data(name: str) -> None:
    stream = TlsStream(client_context(), name)
    assert bool(stream.begin()) is not bool(stream.failed)
    assert stream.failed.isprintable()


def test_reasons_are_one_printable_line() -> None:
    stream, _ = shake(name="a\x1b[2J\n")
    assert stream.failed.startswith("certificate verify failed: Hostname mismatch") and stream.failed.isprintable()
    assert len(shake(name="abc." * 60)[0].failed) <= 300


# The client's own certificate


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("names", [("client.pem", "client.key"), ("both.pem", "")])
def test_a_client_certificate_that_is_asked_for(version: str, names: tuple[str, str], files: Path) -> None:
    own = [str(files / name) if name else "" for name in names]
    context = make_context(TlsSettings(ca=str(files / "ca.pem"), certificate=own[0], key=own[1]))
    stream, peer = shake(context, server_context(version=version, client_authority=True))
    assert stream.ready and not stream.failed and not peer.error
    assert peer.tls.getpeercert()


@pytest.mark.parametrize(
    ("version", "reason"),
    [("TLSv1.2", "sslv3 alert handshake failure"), ("TLSv1.3", "tlsv13 alert certificate required")],
)
def test_a_client_certificate_that_is_missing(version: str, reason: str) -> None:
    stream, peer = shake(server=server_context(version=version, client_authority=True))
    assert stream.failed == reason
    assert peer.error == "peer did not return a certificate"
    assert stream.ready is (version == "TLSv1.3"), "in TLS 1.3 the server judges after the client is done"


# The end


@pytest.mark.parametrize("version", VERSIONS)
def test_close_notify_behind_a_response(version: str) -> None:
    stream, peer = shake(server=server_context(version=version))
    data = peer.send(RESPONSE) + peer.close()
    assert stream.receive(data + b"what follows is not looked at") == RESPONSE
    assert stream.closed and not stream.truncated and not stream.failed
    assert stream.receive(data) == b""
    assert stream.receive(b"") == b"" and not stream.truncated


def test_an_end_without_close_notify() -> None:
    stream, peer = shake()
    assert stream.receive(peer.send(RESPONSE)) == RESPONSE
    assert stream.receive(b"") == b""
    assert stream.closed and stream.truncated and not stream.failed


def test_our_own_close_notify() -> None:
    stream, peer = shake()
    peer.receive(stream.close())
    assert stream.closed and peer.closed and not peer.error


@pytest.mark.parametrize("at", [0, 1, 100, -1])
def test_an_end_inside_the_handshake(at: int) -> None:
    stream = TlsStream(client_context(), NAME)
    flight = Server(server_context()).receive(stream.begin())
    feed(stream, flight[:at] if at >= 0 else flight[: len(flight) // 2])
    assert stream.receive(b"") == b"" and not stream.ready
    assert stream.failed == "closed inside the TLS handshake" and stream.closed


# What is not TLS, and what is broken


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", bytes(99), b"\x16\x03\x01" + b"\xff" * 99]
)
@pytest.mark.parametrize("sizes", [WHOLE, (1,)], ids=str)
def test_what_is_not_tls(data: bytes, sizes: tuple[int, ...]) -> None:
    stream = TlsStream(client_context(), NAME)
    assert stream.begin()
    assert feed(stream, data, sizes) == b""
    assert stream.failed and "[" not in stream.failed and "_ssl" not in stream.failed


@given(st.binary(min_size=1, max_size=400))
@settings(max_examples=100, deadline=None)
def test_garbage_never_raises(data: bytes) -> None:
    for stream in (TlsStream(client_context(), NAME), shake()[0]):
        stream.begin()
        assert feed(stream, data, (7, 60)) == b""
        stream.pending()
        stream.receive(b"")
        assert stream.failed or stream.closed


@given(st.integers(0, 5000), st.integers(1, 255), st.booleans(), st.sampled_from(sorted(VERSIONS)))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_never_raises(at: int, change: int, later: bool, version: str) -> None:
    stream, peer = TlsStream(client_context(), NAME), Server(server_context(version=version))
    if later:
        stream, peer = shake(server=server_context(version=version))
        data = bytearray(peer.send(RESPONSE * 20))
    else:
        data = bytearray(peer.receive(stream.begin()))
    data[at % len(data)] ^= change
    plain = feed(stream, bytes(data), (1000, 3))
    assert plain == b"" or not later, "a forged record was believed"
    stream.receive(b"")
    assert stream.failed or stream.closed


def test_what_came_before_a_broken_record_is_kept() -> None:
    stream, peer = shake()
    assert stream.receive(peer.send(RESPONSE) + b"\x17\x03\x03\x00\x20" + bytes(32)) == RESPONSE
    assert stream.failed and stream.pending(), "no alert"


def test_nothing_is_kept_but_an_unfinished_record() -> None:
    endless = TlsStream(client_context(), NAME)
    endless.begin()
    message = b"\x02\x00\x40\x00" + b"\x03\x03" * 2000  # a ServerHello that would be 16 KB, in records of 100 bytes
    fed = 0
    while not endless.failed and fed < 1_000_000:
        endless.receive(b"\x16\x03\x03\x00\x64" + message[:100])
        assert endless._incoming.pending == 0
        fed += 105
    assert endless.failed and fed < 200_000
    stream, peer = shake()
    data = peer.send(bytes(200_000))
    for at in range(0, len(data), 5000):
        stream.receive(data[at : at + 5000])
        assert stream._incoming.pending == 0


# The program openssl, which can ask for what Python cannot


class OpenSsl:
    """`openssl s_server` talking to a stream; a line to its input is a command (k, K, r) or is sent."""

    def __init__(self, folder: Path, *options: str) -> None:
        leaf("good").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", str(folder / "server.pem"), *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.watchdog = threading.Timer(5, self.process.kill)
        self.watchdog.start()
        self.log = b""
        self.port = int(self.wait_for(b"ACCEPT").rpartition(b":")[2])

    def wait_for(self, text: bytes) -> bytes:
        """The line that has `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if text in line:
                return bytes(line)
        raise AssertionError(f"openssl ended: {self.log!r}")

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + b"\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        self.watchdog.cancel()
        self.process.kill()
        self.process.communicate(timeout=5)


@pytest.fixture
def open_ssl(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenSsl]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    server = OpenSsl(tmp_path, *request.param)
    yield server
    server.stop()


@contextlib.contextmanager
def connected(server: OpenSsl) -> Iterator[tuple[socket.socket, TlsStream]]:
    """A socket on which the handshake is done."""
    stream = TlsStream(client_context(), NAME)
    with socket.create_connection(("127.0.0.1", server.port), 2) as sock:
        sock.sendall(stream.begin())
        while not stream.ready:
            stream.receive(sock.recv(65536))
            sock.sendall(stream.pending())
        yield sock, stream


@pytest.mark.parametrize("open_ssl", [["-tls1_3"]], indirect=True)
def test_key_updates(open_ssl: OpenSsl) -> None:
    plain = b""
    with connected(open_ssl) as (sock, stream):
        for number, command in enumerate([b"k", b"K", b"K"]):  # its own key; its own and ours
            open_ssl.say(command)
            time.sleep(0.02)  # it takes one line for each read
            open_ssl.say(b"line %d" % number)
            while b"line %d\n" % number not in plain:
                plain += stream.receive(sock.recv(65536))
                assert not stream.failed
            sock.sendall(stream.encrypt(b"request %d\n" % number))
            assert open_ssl.wait_for(b"request %d" % number)
    assert plain == b"line 0\nline 1\nline 2\n"


@pytest.mark.parametrize("open_ssl", [["-tls1_2"]], indirect=True)
def test_renegotiation_is_refused(open_ssl: OpenSsl) -> None:
    with connected(open_ssl) as (sock, stream):
        open_ssl.say(b"r")
        while not (alert := stream.pending()):
            assert stream.receive(sock.recv(65536)) == b""
        sock.sendall(alert)
        assert not stream.failed
        assert open_ssl.wait_for(b"no renegotiation")


# Set-up


def test_files_that_cannot_be_used(files: Path, tmp_path: Path) -> None:
    junk, good = (
        tmp_path / "junk.pem",
        TlsSettings(certificate=str(files / "client.pem"), key=str(files / "client.key")),
    )
    junk.write_text("hello")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nhello\n-----END CERTIFICATE-----\n")
    other = tmp_path / "other.key"
    leaf("good").private_key_pem.write_to_path(str(other))
    for setup, words in [
        (TlsSettings(ca=str(tmp_path / "none.pem")), "tls ca '.*none.pem': no such file or directory"),
        (TlsSettings(ca=str(tmp_path)), "tls ca '.*': is a directory"),
        (TlsSettings(ca=str(junk)), "tls ca '.*junk.pem': it has no certificate"),
        (TlsSettings(ca=str(broken)), "tls ca '.*broken.pem': "),
        (TlsSettings(ca="a\0b"), "tls ca '.*': embedded null byte"),
        (TlsSettings(verify=False, ca=str(junk)), "tls ca '.*junk.pem': it has no certificate"),
        (TlsSettings(key=good.key), "tls key '.*client.key': give the certificate"),
        (TlsSettings(certificate=good.certificate), "tls key '.*client.pem': it has no private key"),
        (replace(good, key=str(tmp_path / "none.key")), "tls key '.*none.key': no such file"),
        (replace(good, key=str(junk)), "tls key '.*junk.pem': it has no private key"),
        (replace(good, certificate=str(junk)), "tls certificate '.*junk.pem': it has no certificate"),
        (replace(good, certificate=str(broken)), "tls certificate '.*broken.pem' with key '.*client.key': "),
        (replace(good, key=str(other)), "tls certificate '.*' with key '.*other.key': key values mismatch: give"),
    ]:
        with pytest.raises(UpstreamError, match=words) as caught:
            make_context(setup)
        assert "\n" not in str(caught.value)


def test_an_encrypted_key_is_refused_and_not_asked_for(files: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key((files / "client.key").read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(UpstreamError, match="it is encrypted"):
        make_context(TlsSettings(certificate=str(files / "client.pem"), key=str(encrypted)))
