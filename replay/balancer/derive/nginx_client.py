"""Who is the client to nginx, and which address the client asked: production's, not those of the replay client.

The replay client opens each connection with a PROXY header that names both ends of production's connection. The realip
module then makes $remote_addr of it, for access rules, rate limits and headers alike. It looks at one header only:
where production has another one believed (a CDN's), the shadow must believe that one from everybody, since all
replayed connections come from one host. That difference is noted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from replay.balancer.derive.nginx_edits import Edits, Reason
from replay.balancer.derive.nginx_tree import Statement, walk_all

FROM, HEADER = "set_real_ip_from", "real_ip_header"
PROXY_PROTOCOL = "proxy_protocol"
DEFAULT_HEADER = "X-Real-IP"  # of the realip module
_SCOPES = ("server", "location", "if", "limit_except")
_OWN_ADDRESS = re.compile(r"\$(\{?)server_(addr|port)(?![A-Za-z0-9_])")


def edit_client(http: Statement, hosts: Sequence[str], edits: Edits) -> list[str]:
    """Have the PROXY header believed where it comes from one of our own `hosts`. Returns notes."""
    notes: list[str] = []
    _edit_scope(http, "", False, "", hosts, edits, notes)
    return notes


def edit_ports(http: Statement, edits: Edits) -> list[str]:
    """$server_port and $server_addr are the private address here; what the client asked for is in the PROXY header.
    Returns notes."""
    notes = []
    for each in walk_all(http):
        if each.name == "log_format":
            continue
        if "_by_lua" in each.name:
            if any("server_port" in word or "server_addr" in word for word in each.args):
                notes.append(f"{each.place}: Lua that reads server_port or server_addr sees the private address")
            continue
        now = edits.now(each)
        if len(now) != 1:
            continue
        args = tuple(_OWN_ADDRESS.sub(r"$\1proxy_protocol_server_\2", word) for word in now[0].args)
        if args != now[0].args:
            edits.change(each, args, Reason.CLIENT_PORT)
    return notes


def _edit_scope(
    scope: Statement,
    header: str,
    believed: bool,
    inherited: str,
    hosts: Sequence[str],
    edits: Edits,
    notes: list[str],
) -> None:
    """`header` and `believed` are what holds here in production; `inherited` the header that holds around this block in
    the shadow, "" outside of everything."""
    own_from, own_header = scope.children(FROM), scope.children(HEADER)
    believed = believed or bool(own_from)
    header = own_header[-1].first if own_header else header
    wanted = (header or DEFAULT_HEADER) if believed else PROXY_PROTOCOL
    if own_from or not inherited:
        for host in hosts:
            if all(host != each.first for each in own_from):
                edits.add(scope, FROM, host, reason=Reason.REAL_IP)
    if own_header:
        edits.change(own_header[-1], (wanted,), Reason.REAL_IP)
    elif wanted != inherited:
        edits.add(scope, HEADER, wanted, reason=Reason.REAL_IP)
    if believed and wanted.lower() != PROXY_PROTOCOL and (own_from or own_header):
        notes.append(
            f"{(own_from or own_header)[0].place}: the client's address is taken from {wanted}, in the shadow from "
            "whoever sent it; without that header it is the replay client's"
        )
    for block in scope.children(*_SCOPES):
        _edit_scope(block, header, believed, wanted, hosts, edits, notes)
