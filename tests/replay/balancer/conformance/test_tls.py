"""TLS to the servers, verified; and TLS to the balancer, whose certificate the replay client verifies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.balancer.settings import BalancerSettings, TlsSettings
from replay.exchange import Answer, Outcome
from tests.replay.balancer.conformance.bench import said_in
from tests.replay.balancer.conformance.certificates import (
    ENDS,
    EXPIRED,
    GOOD,
    OTHER_ENDS,
    OTHER_SITE,
    REASONS,
    Certificates,
)
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, NGINX, SITE, Member, Setup
from tests.replay.balancer.conformance.shadows import Shadow

CIPHERS = ("TLSv1.3 TLS_AES_256_GCM_SHA384", "TLSv1.3 TLS_AES_128_GCM_SHA256", "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256")

programs = pytest.mark.parametrize("kind", [HAPROXY, NGINX], indirect=True)


@pytest.fixture(scope="session")
def secured(shared_directory: Path, certificates: Certificates) -> Iterator[dict[str, Shadow]]:
    """A server for each certificate there is."""
    made = {
        kind: Shadow(f"tls_{kind}", shared_directory / f"tls_{kind}", path) for kind, path in certificates.files.items()
    }
    for shadow in made.values():
        shadow.start()
    yield made
    for shadow in made.values():
        shadow.kill()


def to_servers(ca: str) -> Setup:
    """TLS to the one server that there is."""
    return Setup(
        members=(Member(0),),
        embedded=BalancerSettings(tls=TlsSettings(ca=ca), outlier=None),
        backend="retries 0",
        server=f"ssl verify required ca-file {ca} sni req.hdr(host) verifyhost {SITE}",
        scheme="https",
        location=f"""
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {ca};
            proxy_ssl_server_name on;
            proxy_ssl_name {SITE};
        """,
    )


def of_the_site(*files: tuple[str, str]) -> Setup:
    """TLS to the balancer. With the embedded engine there is none: it is the servers that present the certificate."""
    return Setup(
        certificates=files,
        frontend="http-request set-header X-Front-Sni %[ssl_fc_sni]",
        location="proxy_set_header X-Front-Sni $ssl_server_name;",
    )


def test_a_server_with_a_good_certificate_is_asked(
    run: Run, bench: MakeBench, kind: str, certificates: Certificates, secured: dict[str, Shadow]
) -> None:
    async def main() -> None:
        async with bench(to_servers(certificates.ca), [secured[GOOD]]) as it:
            outcome = await it.ask()
        assert (outcome.status, outcome.upstream) == (200, secured[GOOD].address)
        assert said_in(outcome)["sni"] == SITE
        if kind == EMBEDDED:
            assert outcome.tls in CIPHERS
            assert outcome.tls_not_after_s == ENDS.timestamp()
        else:
            assert (outcome.tls, outcome.tls_not_after_s) == ("", 0), "the balancer itself is spoken to in the clear"

    run(main())


@pytest.mark.parametrize("wrong", REASONS)
def test_a_server_that_cannot_be_verified_is_not_asked(
    run: Run, bench: MakeBench, kind: str, certificates: Certificates, secured: dict[str, Shadow], wrong: str
) -> None:
    """The embedded engine says why; of a program only its 503 or 502 is seen, as production's clients would see it."""
    shadow = secured[wrong]

    async def main() -> None:
        async with bench(to_servers(certificates.ca), [shadow]) as it:
            outcome = await it.end()
            front = it.balancer.upstreams[0].name
        assert isinstance(outcome, Outcome)
        if kind == EMBEDDED:
            assert (outcome.answer, outcome.upstream, outcome.detail) == (Answer.TLS, shadow.address, REASONS[wrong])
        elif kind == HAPROXY:
            assert (outcome.answer, outcome.upstream, outcome.status) == (Answer.OK, front, 503)
        else:
            assert (outcome.answer, outcome.upstream, outcome.status) == (Answer.OK, shadow.address, 502)

    run(main())
    assert shadow.asked == []


@programs
def test_the_balancer_presents_the_certificate_of_the_site(
    run: Run, bench: MakeBench, kind: str, certificates: Certificates, shadows: tuple[Shadow, ...]
) -> None:
    """SNI is what each request's own Host says, as it was in production."""
    sites = {SITE: ENDS, OTHER_SITE: OTHER_ENDS}
    setup = of_the_site((SITE, certificates.files[GOOD]), (OTHER_SITE, certificates.other_site))

    async def main() -> None:
        async with bench(setup, tls=TlsSettings(ca=certificates.ca)) as it:
            for site, ends in sites.items():
                outcome = await it.ask(host=site, server=it.production.secure)
                assert outcome.status == 200 and outcome.upstream in {shadow.address for shadow in shadows}
                assert outcome.tls in CIPHERS
                assert outcome.tls_not_after_s == ends.timestamp()
                said = said_in(outcome)
                assert (said["front_sni"], said["host"]) == (site, site)
            assert (await it.ask()).tls == "", "what came to the other address is still sent in the clear"

    run(main())


@programs
@pytest.mark.parametrize("wrong", REASONS)
def test_a_certificate_of_the_site_that_is_wrong_is_named(
    run: Run, bench: MakeBench, kind: str, certificates: Certificates, shadows: tuple[Shadow, ...], wrong: str
) -> None:
    setup = of_the_site((SITE, certificates.files[wrong]))

    async def main() -> None:
        async with bench(setup, tls=TlsSettings(ca=certificates.ca)) as it:
            outcome = await it.end(server=it.production.secure)
            front = it.balancer.upstreams[1].name
        assert isinstance(outcome, Outcome)
        assert (outcome.answer, outcome.upstream, outcome.detail) == (Answer.TLS, front, REASONS[wrong])

    run(main())
    assert [each for shadow in shadows for each in shadow.asked] == []


@programs
def test_an_unverified_certificate_is_still_told_of(
    run: Run, bench: MakeBench, kind: str, certificates: Certificates
) -> None:
    """Without verification there is an answer; of the certificate itself nothing is known then."""
    setup = of_the_site((SITE, certificates.files[EXPIRED]))

    async def main() -> None:
        async with bench(setup, tls=TlsSettings(verify=False)) as it:
            outcome = await it.ask(server=it.production.secure)
        assert outcome.tls in CIPHERS and outcome.tls_not_after_s == 0

    run(main())
