"""The shadow's HAProxy configuration, derived from production's own file.

The file is read line by line. What each rule decides is noted for its line, with the reason; every other byte is
production's, directives that nobody here has heard of included. At the end the changes are carried out on the source
once more, and must give exactly the text that is handed out.
"""

from __future__ import annotations

from collections.abc import Callable

from replay.balancer.derive.change import Derived, DeriveOptions, unexplained
from replay.balancer.derive.haproxy_agents import disable_agents
from replay.balancer.derive.haproxy_bind import Binds
from replay.balancer.derive.haproxy_draft import Draft
from replay.balancer.derive.haproxy_lua import KEEP, disable_lua
from replay.balancer.derive.haproxy_server import Servers, read_targets
from replay.balancer.derive.haproxy_source import read_source
from replay.balancer.derive.haproxy_twice import refuse, take_out
from replay.balancer.derive.haproxy_via import add_header
from replay.balancer.derive.mapping import ServerMap, canonical


def derive_haproxy(
    text: str,
    source: str,
    servers: ServerMap,
    private: Callable[[], tuple[str, int]],
    options: DeriveOptions,
) -> Derived:
    """The shadow's configuration. `source` is the file's own name; `private` gives a fresh address for each one that is
    to be listened on. Reads the Lua and SPOE files that the configuration names.

    UpstreamError, with file and line, for what cannot be derived: a server without a shadow, and whatever would let
    requests go where no mapping holds.
    """
    servers = servers.fresh()
    read = read_source(text, source, options.environment)
    draft = Draft(read)
    refuse(draft)
    take_out(draft, options.keep)
    if KEEP not in options.keep:
        disable_lua(draft)
    idle = disable_agents(draft, options.keep)
    reached = frozenset(canonical(target.address) for target in read_targets(read))
    binds = Binds(draft, private, reached)
    binds.derive()
    Servers(draft, servers, binds.own, idle, options).derive()
    add_header(draft, options.header, loops=bool(binds.own))
    _note_the_rest(draft, servers)
    return _finish(draft)


def _note_the_rest(draft: Draft, servers: ServerMap) -> None:
    for key in servers.unused:
        draft.note(f"server mapping {key!r} is not used: no server of this file is called so")
    if any(at.values[0].startswith(".") for at in draft.source.statements):
        draft.note("conditional blocks stay: listeners and servers of every branch are listed, also of those not taken")
    if any(at.values[0] in ("chroot", "user", "group", "uid", "gid") for at in draft.source.within("global")):
        draft.note("chroot and user stay: the shadow has to be started by root, as production is")


def _finish(draft: Draft) -> Derived:
    text = draft.text()
    changes = draft.changes()
    rest = unexplained(draft.source.lines, text.split("\n"), changes)
    if rest:
        raise AssertionError(f"{draft.source.file}: no reason is known for {rest[0]!r}")
    return Derived(text, changes, tuple(draft.listeners), tuple(draft.servers), tuple(draft.notes))
