"""Looks at the certificate that an upstream presents: who it is for, how long, and what is wrong with it.

Blocks: to be run in a thread. It connects once with verification; if that fails for the certificate, which OpenSSL then
does not show, once more without, to see what was presented. `cryptography` is loaded when first needed (10 MB).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from replay.balancer.settings import TlsSettings
from replay.sockets import new_socket, reason_of
from replay.tls import VERIFY_FAILED, TlsInfo, TlsStream, clean, make_context

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

READ_BYTES = 16 * 1024
NAMES_SHOWN = 8
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """What was found; fields that could not be found out are "", 0 or empty. Texts have printable characters only."""

    server_name: str
    valid: bool  # it was verified, whatever the pool's own setting is
    problem: str = ""  # "" when nothing is wrong; else OpenSSL's words, or why there was no handshake
    protocol: str = ""
    cipher: str = ""
    alpn: str = ""
    subject: str = ""  # distinguished names as in RFC 4514
    issuer: str = ""
    names: tuple[str, ...] = ()  # DNS names and IP addresses it is for
    not_before_s: int = 0  # Unix time
    not_after_s: int = 0
    days_left: float = 0.0  # below 0: expired so long ago
    sha256: str = ""  # its fingerprint, to tell it from another


class _Visit(NamedTuple):
    """One connection: what was agreed on and presented, or why not."""

    info: TlsInfo | None
    certificate: bytes
    problem: str


def inspect(
    address: Any,
    family: socket.AddressFamily,
    server_name: str,
    settings: TlsSettings,
    timeout_s: float,
    now_s: float,
    socket_factory: Callable[[socket.AddressFamily], socket.socket] | None = None,
    proxy_header: bytes = b"",
) -> CertificateReport:
    """Connect to `address`, a sockaddr of `family`, and report. `timeout_s` is for all of it; `server_name` replaces
    the settings' own. It is the upstream's certificate that is judged: in TLS 1.3, whether the upstream takes ours
    shows in its first answer only. UpstreamError when a file of the settings cannot be used."""
    factory = socket_factory or new_socket
    deadline_s = time.monotonic() + timeout_s

    def visit(verify: bool) -> _Visit:
        stream = TlsStream(make_context(replace(settings, verify=verify)), server_name)
        problem = ""
        try:
            with factory(family) as sock:
                _connect(sock, address, deadline_s)
                _shake(sock, stream, proxy_header, deadline_s)
        except OSError as error:
            problem = reason_of(error)
        return _Visit(stream.info, stream.certificate(), stream.failed or problem)

    first = visit(verify=True)
    if first.problem.startswith(VERIFY_FAILED):
        problem = first.problem.removeprefix(VERIFY_FAILED)
        return _report(server_name, visit(verify=False), False, problem, now_s)
    problem = first.problem or (first.info.problem if first.info else "")
    return _report(server_name, first, not first.problem, problem, now_s)


def _connect(sock: socket.socket, address: Any, deadline_s: float) -> None:
    sock.settimeout(_left_s(deadline_s))
    try:
        sock.connect(address)
    except TimeoutError:
        raise TimeoutError("time limit reached before a connection") from None


def _shake(sock: socket.socket, stream: TlsStream, proxy_header: bytes, deadline_s: float) -> None:
    """Until the stream is ready or failed, then say goodbye."""
    data = proxy_header + stream.begin()
    while not stream.ready and not stream.failed:
        sock.settimeout(_left_s(deadline_s))
        try:
            sock.sendall(data)
            stream.receive(sock.recv(READ_BYTES))
        except TimeoutError:
            raise TimeoutError("time limit reached inside the handshake") from None
        data = stream.pending()
    with contextlib.suppress(OSError):
        sock.sendall(data + stream.close())


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("time limit reached")
    return left_s


def _report(server_name: str, visit: _Visit, valid: bool, problem: str, now_s: float) -> CertificateReport:
    info = visit.info
    report = CertificateReport(
        clean(server_name),
        valid,
        problem,
        info.protocol if info else "",
        info.cipher if info else "",
        info.alpn if info else "",
        sha256=hashlib.sha256(visit.certificate).hexdigest() if visit.certificate else "",
    )
    return _with_details(report, visit.certificate, now_s) if visit.certificate else report


def _with_details(report: CertificateReport, der: bytes, now_s: float) -> CertificateReport:
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        not_after_s = int(certificate.not_valid_after_utc.timestamp())
        return replace(
            report,
            subject=clean(certificate.subject.rfc4514_string()),
            issuer=clean(certificate.issuer.rfc4514_string()),
            names=_names(certificate),
            not_before_s=int(certificate.not_valid_before_utc.timestamp()),
            not_after_s=not_after_s,
            days_left=(not_after_s - now_s) / DAY_S,
        )
    except (ValueError, x509.InvalidVersion) as error:
        reason = f"the certificate cannot be parsed: {error}"
        return replace(report, problem=report.problem or clean(reason))


def _names(certificate: Certificate) -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return ()
    names = found.get_values_for_type(x509.DNSName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return tuple(clean(str(name)) for name in (*names, *addresses))


def as_dict(report: CertificateReport) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(report), "names": list(report.names)}


def as_lines(report: CertificateReport) -> list[str]:
    """For a terminal; what is not known has no line."""
    shown = ", ".join(report.names[:NAMES_SHOWN])
    if len(report.names) > NAMES_SHOWN:
        shown += f" and {len(report.names) - NAMES_SHOWN} more"
    verdict = "valid" if report.valid else "NOT VALID"
    left = days(report.days_left) if report.not_after_s else ""
    handshake = ", ".join(filter(None, (f"{report.protocol} {report.cipher}".strip(), report.alpn)))
    rows = (
        ("certificate", ", ".join(filter(None, (verdict, report.problem, left)))),
        ("server name", report.server_name),
        ("handshake", handshake),
        ("subject", report.subject),
        ("issuer", report.issuer),
        ("names", shown),
        ("not before", _date(report.not_before_s)),
        ("not after", _date(report.not_after_s)),
        ("sha256", report.sha256),
    )
    return [f"{name:<12} {value}" for name, value in rows if value]


def summary(info: TlsInfo, now_s: float) -> str:
    """One line: "TLSv1.3 TLS_AES_256_GCM_SHA384, valid, 63 days left"."""
    left = days((info.not_after_s - now_s) / DAY_S) if info.not_after_s else ""
    return ", ".join(filter(None, (f"{info.protocol} {info.cipher}", info.problem or "valid", left)))


def days(left: float) -> str:
    """ "63 days left", "1 day left", "expired 3 days ago"; whole days that have passed or will."""
    count = int(abs(left))
    text = "1 day" if count == 1 else f"{count} days"
    return f"{text} left" if left >= 0 else f"expired {text} ago"


def _date(time_s: int) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC" if time_s else ""
