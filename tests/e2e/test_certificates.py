"""The use case "validate a new certificate": a candidate with a TLS frontend takes the traffic; its TLS is judged."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.e2e.agent_process import SHADOWTAP, running
from vagrant.lab import Lab

pytestmark = pytest.mark.root

NAME = "shop.example"


@pytest.fixture
def authority(lab: Lab) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(lab.directory / "ca.pem")
    (lab.directory / "ca.pem").chmod(0o644)
    return made


def candidate(lab: Lab, certificate: trustme.LeafCert) -> dict[str, Any]:
    """Production's file with a TLS frontend beside the plain one, and that is where traffic goes."""
    pem = lab.directory / "candidate.pem"
    pem.write_bytes(b"".join(each.bytes() for each in (certificate.private_key_pem, *certificate.cert_chain_pems)))
    path = lab.directory / "candidate.cfg"
    text = (lab.directory / "haproxy.cfg").read_text()
    path.write_text(text.replace("frontend web\n", f"frontend web\n    bind *:443 ssl crt {pem} alpn h2,http/1.1\n"))
    balancer = {
        "engine": "haproxy",
        "from": str(path),
        "production": str(lab.directory / "haproxy.cfg"),
        "servers": {"*": lab.shadow_upstream},
        "bind": "443",
        "tls": {"ca": str(lab.directory / "ca.pem")},
    }
    return {"shadows": {"candidate": {"upstreams": [], "balancer": balancer}}}


def test_a_good_certificate_is_reported(lab: Lab, authority: trustme.CA) -> None:
    good = authority.issue_cert(NAME)
    with running(lab, candidate(lab, good)) as agent:
        for _ in range(5):
            assert lab.get("/", headers={"Host": NAME}).status == 200
        agent.await_seen(5)
        ended = agent.stop()
    assert ended.account.answers == {"ok": 5}
    rows = ended.rows()
    assert {row["shadow_status"] for row in rows} == {200}
    assert {row["upstream"] for row in rows} == {lab.shadow_upstream}
    assert all(row["shadow_tls"].startswith("TLSv1.3 ") for row in rows)
    (ends,) = {row["shadow_tls_not_after_s"] for row in rows}
    assert ends > datetime.datetime.now().timestamp()


def _expired(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert(NAME, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))


def _of_another_name(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("other.example")


def _of_another_authority(authority: trustme.CA) -> trustme.LeafCert:
    return trustme.CA().issue_cert(NAME)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_expired, "certificate has expired"),
        (_of_another_name, "Hostname mismatch"),
        (_of_another_authority, "unable to get local issuer certificate"),
    ],
)
def test_a_wrong_certificate_is_named(
    lab: Lab, authority: trustme.CA, make: Callable[[trustme.CA], trustme.LeafCert], words: str
) -> None:
    before = lab.shadow_requests()
    with running(lab, candidate(lab, make(authority))) as agent:
        for _ in range(3):
            assert lab.get("/", headers={"Host": NAME}).status == 200
        agent.await_seen(3)
        ended = agent.stop()
    assert ended.account.answers == {"tls": 3}
    assert all(words in row["detail"] for row in ended.rows())
    assert lab.shadow_requests() == before
    told = lab.run_in("lb", [SHADOWTAP, "compare", ended.recording]).stdout
    assert words in " ".join(told.split())


def test_the_command_says_what_a_certificate_is_worth(lab: Lab, authority: trustme.CA, tmp_path: Path) -> None:
    with running(lab, candidate(lab, authority.issue_cert(NAME))) as agent:
        address = agent.control("pool").split("\n")[1].split()[0]
        argv = [SHADOWTAP, "balancer", "certificate", address, "--name", NAME, "--ca", lab.directory / "ca.pem"]
        plain = lab.run_in("lb", argv, check=False)
        told = lab.run_in("lb", [*argv, "--proxy"], check=False)
        agent.stop()
    assert plain.returncode == 1  # the shadow's frontend wants a PROXY header first
    assert told.returncode == 0, told
    assert "valid" in told.stdout and "days" in told.stdout
