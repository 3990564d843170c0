"""Certificates: of shadow servers, and of production's sites. Each file holds the key and the chain."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from tests.replay.balancer.conformance.production import SITE

OTHER_SITE = "blog.example"
GOOD, UNKNOWN_CA, EXPIRED, WRONG_NAME = "good", "unknown_ca", "expired", "wrong_name"
REASONS = {  # OpenSSL's words
    UNKNOWN_CA: "certificate verify failed: unable to get local issuer certificate",
    EXPIRED: "certificate verify failed: certificate has expired",
    WRONG_NAME: f"certificate verify failed: Hostname mismatch, certificate is not valid for '{SITE}'.",
}
_START = datetime.now(UTC).replace(microsecond=0) - timedelta(days=100)
ENDS = _START + timedelta(days=130)
OTHER_ENDS = _START + timedelta(days=140)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files. `files` by kind, all for SITE but the last; `other_site` is a good one for OTHER_SITE."""

    ca: str
    files: dict[str, str]
    other_site: str


def make_certificates(directory: Path) -> Certificates:
    """Write them; anybody may read them."""
    directory.mkdir()
    ours, theirs = trustme.CA(), trustme.CA()
    ca = directory / "ca.pem"
    ours.cert_pem.write_to_path(str(ca))
    files = {
        GOOD: _issue(directory / "good.pem", ours, SITE, ENDS),
        UNKNOWN_CA: _issue(directory / "unknown_ca.pem", theirs, SITE, ENDS),
        EXPIRED: _issue(directory / "expired.pem", ours, SITE, datetime.now(UTC) - timedelta(days=1)),
        WRONG_NAME: _issue(directory / "wrong_name.pem", ours, OTHER_SITE, ENDS),
    }
    return Certificates(str(ca), files, _issue(directory / "other_site.pem", ours, OTHER_SITE, OTHER_ENDS))


def _issue(path: Path, ca: trustme.CA, name: str, end: datetime) -> str:
    ca.issue_cert(name, not_before=_START, not_after=end).private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)
