"""A geographic database of three public addresses, in both of its forms, and clients near them and elsewhere.

The addresses of `trees.CODES` are private or for documentation: there is no geography of them in the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from hypothesis import strategies as st

from agent.select.client_address import Address
from agent.select.geo import Codes, Prefix

PLACES = {
    "8.8.8.8": frozenset({"US", "continent:NA"}),
    "81.2.69.142": frozenset({"DE", "continent:EU"}),
    "2a02:1::1": frozenset({"DE", "continent:EU"}),
}
CLIENTS = (*PLACES, "10.1.2.3", "10.200.0.1", "192.0.2.1", "2001:db8::1", "2001:db8:1::1", "9.9.9.9")

clients = st.sampled_from(CLIENTS).map(ipaddress.ip_address) | st.ip_addresses()


def locate(address: Address) -> Codes:
    """As GeoDatabase.locate."""
    return PLACES.get(str(address), frozenset())


def geo_networks(codes: Iterable[str]) -> Iterator[Prefix]:
    """As GeoDatabase.prefixes."""
    wanted = frozenset(codes)
    for text, found in PLACES.items():
        address = ipaddress.ip_address(text)
        if found & wanted:
            yield address.version, int(address), address.max_prefixlen, found & wanted
