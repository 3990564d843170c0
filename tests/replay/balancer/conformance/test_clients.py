"""The shadow's servers see the real client, and the request as production's servers would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from replay.balancer.settings import BalancerSettings
from tests.replay.balancer.conformance.bench import said_in
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, SITE, Member, Setup
from tests.replay.balancer.conformance.shadows import Shadow

FORWARDING = Setup(embedded=BalancerSettings(forwarded_for=True))
PROXYING = Setup(
    members=(Member(0),),
    embedded=BalancerSettings(proxy_protocol=True, forwarded_for=False),
    server="send-proxy-v2",
)
CLIENTS = {"192.0.2.33:5555": "192.0.2.33", "[2001:db8::33]:5555": "2001:db8::33"}


@pytest.fixture(scope="module")
def proxied(shared_directory: Path) -> Iterator[Shadow]:
    """A server that expects a PROXY header."""
    shadow = Shadow("proxied", shared_directory / "proxied", proxied=True)
    shadow.start()
    yield shadow
    shadow.kill()


@pytest.mark.parametrize("client", CLIENTS)
def test_x_forwarded_for_names_the_client(run: Run, bench: MakeBench, client: str) -> None:
    """A list that the client came with is kept, and the client put behind it."""
    address = CLIENTS[client]

    async def main() -> None:
        async with bench(FORWARDING) as it:
            assert said_in(await it.ask(client=client))["forwarded"] == address
            outcome = await it.ask(client=client, headers=b"X-Forwarded-For: 203.0.113.9\r\n")
            assert said_in(outcome)["forwarded"] == f"203.0.113.9, {address}"

    run(main())


@pytest.mark.parametrize("forwarded", [IPv4Address("203.0.113.200"), IPv6Address("2001:db8::200")])
def test_who_stands_in_a_proxy_header_of_production_is_the_client(
    run: Run, bench: MakeBench, forwarded: IPv4Address | IPv6Address
) -> None:
    """Production is itself behind a balancer that names the client so."""

    async def main() -> None:
        async with bench(FORWARDING) as it:
            assert said_in(await it.ask(forwarded=forwarded))["forwarded"] == str(forwarded)

    run(main())


@pytest.mark.parametrize("kind", [EMBEDDED, HAPROXY], indirect=True)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_proxy_header_names_the_client(run: Run, bench: MakeBench, kind: str, proxied: Shadow, client: str) -> None:
    """nginx sends none to servers of HTTP. One connection never serves two clients."""

    async def main() -> None:
        async with bench(PROXYING, [proxied]) as it:
            for who, address in ((client, CLIENTS[client]), ("192.0.2.99:1", "192.0.2.99"), (client, CLIENTS[client])):
                assert said_in(await it.ask(client=who))["proxied"] == address

    run(main())


def test_the_request_arrives_as_it_was_with_the_mark(run: Run, bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(FORWARDING) as it:
            said = said_in(await it.ask())
            assert (said["host"], said["marked"], said["method"]) == (SITE, "1", "GET")
            for size in (7, 100_000):  # the second is more than nginx keeps in memory
                said = said_in(await it.ask(method="POST", body=bytes(size)))
                assert (said["method"], said["length"]) == ("POST", str(size))
            head = await it.ask(method="HEAD")
            assert (head.status, head.body) == (200, b"") and b"content-length: " in head.head.lower()

    run(main())


@pytest.mark.parametrize("target", ["/", "/status/500", "/nowhere"])
def test_the_header_of_the_program_is_taken_off(run: Run, bench: MakeBench, target: str) -> None:
    """Each test looks at that, for answers of servers. Here for those of the programs themselves as well."""
    setup = replace(
        FORWARDING,
        frontend="http-request return status 404 if { path /nowhere }",
        location="if ($uri = /nowhere) { return 404; }",
    )

    async def main() -> None:
        async with bench(setup) as it:
            outcome = await it.ask(target)
            assert outcome.head.startswith(b"HTTP/1.1 ") and outcome.head.endswith(b"\r\n\r\n")
            assert b"shadowtap" not in outcome.head.lower()

    run(main())
