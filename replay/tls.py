"""TLS to an upstream, without I/O: ciphertext in, plaintext out, and the other way round.

    begin() ──► handshake ──► ready ──► closed        every state ──► failed

The connection reads ciphertext itself and so knows when the kernel received it; a TLS socket or transport would hide
that. What `receive` returns came whole with the bytes it was given, so their time is the time of the plaintext.

What a server sends never raises: it ends in `failed`, with OpenSSL's reason. Nothing is kept but the unfinished record
(OpenSSL's limits: 16 KiB a record, 100 KB of certificates). Renegotiation is refused.

Sessions are not resumed. Whoever resumes is shown the certificate of the first handshake again, and a certificate that
was replaced meanwhile would be reported as valid; besides, taking the session costs a third of what a handshake does.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from pathlib import Path
from typing import Any, NamedTuple

from replay.balancer.settings import TlsSettings
from replay.errors import UpstreamError

RECORD_BYTES = 16 * 1024  # the most that one record holds (RFC 8446 section 5.1)
TEXT_LIMIT = 300  # characters of a reason or a subject: names in it come from strangers
VERIFY_FAILED = "certificate verify failed: "  # how the reason begins when it is the certificate
NOT_VERIFIED = "not verified"
NAME_NOT_VERIFIED = "name not verified"

_PREFIX = re.compile(r"^\[[^\]]*\] *")
_SUFFIX = re.compile(r" *\(_ssl\.c:\d+\)$")


NO_NAME = "is not a server name"  # ends the reason when a request's host cannot be asked for
NAME_LIMIT = 253  # characters; longer than any host name (RFC 1035 section 2.3.4)


class TlsInfo(NamedTuple):
    """What was agreed on. Without verification OpenSSL does not take the certificate apart: no date, no subject."""

    protocol: str  # "TLSv1.3"
    cipher: str
    server_name: str
    verified: bool  # the chain was, and the name if there is one
    not_after_s: int  # Unix time, 0 unknown
    subject: str  # common name, or the first alternative name
    problem: str = ""  # what was not verified, "" if all was
    alpn: str = ""


def make_context(settings: TlsSettings) -> ssl.SSLContext:
    """The context of a pool's connections; to be made once, it may hold the system's store (2 MB, 20 ms).

    UpstreamError when a file is missing, is not PEM, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.ca:
        _trust(context, settings.ca)
    elif settings.verify:
        context.load_default_certs()
    if settings.certificate or settings.key:
        _load_own(context, settings)
    return context


def _trust(context: ssl.SSLContext, path: str) -> None:
    _check_pem("ca", path, b"CERTIFICATE-----")
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise UpstreamError(f"tls ca {path!r}: {reason_of(error)}: give PEM certificates") from None
    # What the file names is trusted, an authority below the root too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _load_own(context: ssl.SSLContext, settings: TlsSettings) -> None:
    certificate, key = settings.certificate, settings.key
    if not certificate:
        raise UpstreamError(f"tls key {key!r}: give the certificate it belongs to as well")
    _check_pem("certificate", certificate, b"CERTIFICATE-----")
    _check_pem("key", key or certificate, b"PRIVATE KEY-----")

    def passphrase() -> str:  # without it OpenSSL asks on the terminal
        raise UpstreamError(f"tls key {key or certificate!r}: it is encrypted: give a key without passphrase")

    try:
        context.load_cert_chain(certificate, key or None, passphrase)
    except ssl.SSLError as error:
        what = f"tls certificate {certificate!r} with key {key or certificate!r}: {reason_of(error)}"
        raise UpstreamError(f"{what}: give PEM files of a certificate and its own key") from None


def _check_pem(what: str, path: str, marker: bytes) -> None:
    """OpenSSL tells neither which of two files is meant nor, for a missing one, its name."""
    try:
        found = marker in Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UpstreamError(f"tls {what} {path!r}: {reason}: give a file that can be read") from None
    if not found:
        kind = "private key" if what == "key" else "certificate"
        raise UpstreamError(f"tls {what} {path!r}: it has no {kind}: give a PEM file with one")


class TlsStream:
    """One connection's TLS.

    `server_name` is a host without its port. A name is sent as SNI and verified. An IP address is verified against the
    certificate's addresses and not sent (RFC 6066 section 3). With "" nothing is sent, and only the chain is verified:
    any certificate that the trusted authorities have issued will do.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "closed", "failed", "info", "ready", "server_name", "truncated")

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self.server_name = server_name
        self.ready = False  # the handshake is done; stays True
        self.failed = ""  # why, in one line
        self.closed = False  # nothing more comes
        self.truncated = False  # it closed without close_notify: what the close ended may be cut
        self.info: TlsInfo | None = None  # None until ready
        name = server_name.removeprefix("[").removesuffix("]").removesuffix(".")
        try:
            if len(name) > NAME_LIMIT:
                raise ValueError  # before it is encoded, which takes long for long ones
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name or None)
        except (ValueError, TypeError, ssl.SSLError):  # a Host header may say anything
            self.failed = clean(f"{server_name[:80]!r} {NO_NAME}")

    def begin(self) -> bytes:
        """The ciphertext to send first; b"" when the server name made it fail already."""
        self._shake()
        return self._outgoing.read()

    def receive(self, data: bytes) -> bytes:
        """Take ciphertext and return the plaintext that came whole with it, if any. b"" is the end, as from recv().

        Afterwards there may be something `pending`, also when it failed: the alert that says why.
        """
        if self.failed or self.closed:
            return b""
        if not data:
            self._end()
            return b""
        self._incoming.write(data)
        if not self.ready:
            self._shake()
        return self._read() if self.ready else b""

    def pending(self) -> bytes:
        """Ciphertext that must be sent now; b"" if none."""
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        """The ciphertext of `data`, behind what was pending. Only when `ready`; b"" once failed."""
        tls = self._tls
        if tls is None or self.failed:
            return b""
        try:
            sent = tls.write(data) if data else 0
            while sent < len(data):  # Python allows OpenSSL to stop after a record
                sent += tls.write(memoryview(data)[sent:])
        except ssl.SSLError as error:
            self.failed = reason_of(error)
        return self._outgoing.read()

    def close(self) -> bytes:
        """The close_notify that is sent before the socket is closed, behind what was pending."""
        if self._tls is not None and self.ready and not self.failed:
            with contextlib.suppress(ssl.SSLError):  # it asks to wait for the peer's, which nobody does
                self._tls.unwrap()
        self.closed = True
        return self._outgoing.read()

    def certificate(self) -> bytes:
        """The peer's certificate in DER, verified or not; b"" before `ready`."""
        der = self._tls.getpeercert(binary_form=True) if self._tls is not None and self.ready else None
        return der or b""

    def _shake(self) -> None:
        tls = self._tls
        if tls is None:
            return
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self.failed = reason_of(error)
            return
        self.ready = True
        self.info = _info(tls, self.server_name)

    def _read(self) -> bytes:
        tls, incoming = self._tls, self._incoming
        if tls is None:
            return b""
        pieces: list[bytes] = []
        try:
            # Asked first because a read that finds nothing costs more than one that finds a record.
            while incoming.pending or tls.pending():
                piece = tls.read(RECORD_BYTES)
                if not piece:
                    self.closed = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.failed = reason_of(error)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _end(self) -> None:
        self.closed = True
        self.truncated = True
        if not self.ready:
            self.failed = "closed inside the TLS handshake"


def _info(tls: ssl.SSLObject, server_name: str) -> TlsInfo:
    verified = tls.context.verify_mode == ssl.CERT_REQUIRED
    problem = "" if verified and server_name else NAME_NOT_VERIFIED if verified else NOT_VERIFIED
    cipher = tls.cipher()
    not_after_s, subject = _decoded(tls)
    return TlsInfo(
        tls.version() or "",
        cipher[0] if cipher else "",
        clean(server_name),
        verified,
        not_after_s,
        subject,
        problem,
        tls.selected_alpn_protocol() or "",
    )


def _decoded(tls: ssl.SSLObject) -> tuple[int, str]:
    """The certificate's end and subject; what OpenSSL accepts need not be a date or text to Python."""
    try:
        certificate: dict[str, Any] = dict(tls.getpeercert() or {})
        end = certificate.get("notAfter")
        return (ssl.cert_time_to_seconds(end) if end else 0), _subject(certificate)
    except (ValueError, ssl.SSLError):
        return 0, ""


def _subject(certificate: dict[str, Any]) -> str:
    for part in certificate.get("subject", ()):
        for kind, value in part:
            if kind == "commonName":
                return clean(value)
    names = certificate.get("subjectAltName", ())
    return clean(names[0][1]) if names else ""


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's words alone: "certificate verify failed: certificate has expired", "wrong version number"."""
    return clean(_SUFFIX.sub("", _PREFIX.sub("", str(error)))) or "unknown TLS error"


def clean(text: str) -> str:
    """What may be shown on a terminal of a text that a stranger had a hand in."""
    return "".join(c if c.isprintable() else "?" for c in text[:TEXT_LIMIT])
