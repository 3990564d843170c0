"""The shadow's nginx.conf, derived from production's.

    production's nginx.conf ──crossplane──► tree ──► edits ──► one file ──► nginx -t

All files become one, since that is what can be compared: `baseline` is production's, as the same writer writes it, and
the derived text differs from it by the listed changes and by nothing else.

nginx looks for relative paths in two places. Beside its main file: those become absolute, as the derived file is
somewhere else. And below its prefix (`root html`, `load_module`, Lua's files), which is compiled in: so the shadow is
run by the same program, with `-p` only where production is.

    nginx -e stderr -t -q -c RUN/nginx.conf [-p PREFIX]    check
    nginx -e stderr -c RUN/nginx.conf [-p PREFIX]          run, in the foreground
    kill -HUP PID                                          reload
    kill -QUIT PID, or -TERM                               end, after or without what is under way

`-e stderr` says where errors go until the file is read; compiled in is production's log. The working directory is to be
production's, most often "/": a few modules look for their data there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from replay.balancer.derive.change import Derived, DeriveOptions
from replay.balancer.derive.mapping import ServerMap
from replay.balancer.derive.nginx_client import edit_client, edit_ports
from replay.balancer.derive.nginx_edits import Edits, write
from replay.balancer.derive.nginx_listen import Listeners
from replay.balancer.derive.nginx_own import Own
from replay.balancer.derive.nginx_scripts import edit_scripts
from replay.balancer.derive.nginx_servers import Servers
from replay.balancer.derive.nginx_tree import read
from replay.balancer.derive.nginx_via import edit_headers, parse_nginx_via

__all__ = ["baseline", "derive_nginx", "files_of", "parse_nginx_via"]


def derive_nginx(
    path: Path, servers: ServerMap, private: Callable[[], tuple[str, int]], options: DeriveOptions
) -> Derived:
    """The shadow's configuration from production's main file and all that it includes.

    `private` is called once for each entry of `listeners`, in their order; it returns an address on this host that is
    free. Lines of the changes are those of `baseline`; their files say where production has it. UpstreamError, in one
    line with the place, for what cannot be the same in the shadow.
    """
    tree = read(path)
    http = tree.http
    edits = Edits()
    own = Own(tree, options, edits)
    own.edit()
    notes = own.notes + edit_scripts(http, options, edits)
    listeners = Listeners(http, private)
    mapped = Servers(http, servers, listeners, options, edits)
    mapped.edit()
    listeners.edit(edits)
    listeners.edit_ports(edits)
    notes += mapped.notes + listeners.notes
    notes += edit_client(http, listeners.hosts(), edits)
    notes += edit_ports(http, edits)
    edit_headers(http, options.header, edits)
    texts = write(tree, edits)
    return Derived(
        texts.derived, texts.changes, listeners.listeners(), tuple(mapped.servers.values()), tuple(dict.fromkeys(notes))
    )


def baseline(path: Path) -> str:
    """Production's configuration, unchanged, in one file: what the derived text is to be compared with."""
    return write(read(path), Edits()).source


def files_of(path: Path) -> tuple[Path, ...]:
    """Every file that the configuration is made of, and the directories in which it looks for them by pattern. When one
    of them changes, the configuration may."""
    return read(path).files
