"""What is production's own and must be neither shared nor done twice: logs, files of the process, caches, mirrors.

Two nginx that share a cache directory or temporary files destroy each other's; a log line of a replayed request looks
like a client's. All such paths become names in the run directory, the compiled-in ones as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from replay.balancer.derive.change import DeriveOptions
from replay.balancer.derive.nginx_edits import Edits, Reason
from replay.balancer.derive.nginx_tree import DATA_BLOCKS, Statement, Tree, walk

KEEP_LOGS = "log"
ERROR_LOG = "error.log"  # in the run directory
PID = "nginx.pid"
OUTSIDE = ("mail", "rtmp", "stream")  # blocks beside http
MODULES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # with temporary files at a compiled-in place

_CACHE = re.compile(r"(proxy|fastcgi|uwsgi|scgi)_cache_path")
_TEMPORARY = re.compile(rf"({'|'.join(MODULES)})_temp_path")
_STORE = re.compile(r"(proxy|fastcgi|uwsgi|scgi)_store")
_ZONE = re.compile(r"keys_zone=([^:]+)")
_TWICE = frozenset({"mirror", "mirror_request_body", "google_perftools_profiles"})
# Of these nginx looks for a relative path beside its main file; for all others below its prefix.
_BESIDE = re.compile(
    r"(?:\w+_)?ssl_(?:certificate|certificate_key|client_certificate|trusted_certificate|crl|dhparam|password_file"
    r"|session_ticket_key|stapling_file)"
    r"|auth_basic_user_file|js_import|js_path|xml_entities|xslt_stylesheet|modsecurity_rules_file"
)
_ELSEWHERE = ("/", "data:", "engine:", "store:", "$")
# Nothing is changed for these, but a person shall know.
_NOTED = {
    "dav_methods": "requests of these methods, if any are replayed, change production's files",
    "proxy_bind": "connections to shadow servers come from this address as well",
    "post_action": "the request after each request is sent by the shadow as well",
    "upload_store": "uploads, if any are replayed, are stored beside production's",
    "otel_exporter": "traces are exported by the shadow as well",
    "opentracing": "traces are exported by the shadow as well",
    "zipkin_collector_host": "traces are exported by the shadow as well",
    "nchan_redis_url": "the shadow uses production's Redis as well",
    "ssl_ocsp": "client certificates are looked up by the shadow as well",
}


class Own:
    """Edits of one tree. Paths are given out once for each of production's, so that equal paths stay equal."""

    def __init__(self, tree: Tree, options: DeriveOptions, edits: Edits) -> None:
        self._tree = tree
        self._directory = Path(options.run_directory)
        self._keep_logs = KEEP_LOGS in options.keep
        self._edits = edits
        self._temporary: dict[str, str] = {}
        self.notes: list[str] = []

    def edit(self) -> None:
        """Change all of them."""
        self._edit_process()
        self._edit_outside()
        for statement, parents in walk(self._tree.root):
            if parents[1:2] == (self._tree.http,) or statement is self._tree.http:
                self._edit_directive(statement)
        self._edit_logs(self._tree.http)
        self._add_missing()

    def _edit_process(self) -> None:
        root = self._tree.root
        own = {
            "daemon": ("off", Reason.FOREGROUND),
            "pid": (str(self._directory / PID), Reason.RUN_FILE),
            "lock_file": (str(self._directory / "nginx.lock"), Reason.RUN_FILE),
        }
        for name, (value, reason) in own.items():
            said = root.children(name)
            for each in said:
                self._edits.change(each, (value,), reason)
            if not said:
                self._edits.add(root, name, value, reason=reason)
        for each in root.children(*_TWICE):
            self._edits.remove(each, Reason.TWICE)
        self._edit_error_logs(root)
        if not root.children("error_log"):
            self._edits.add(root, "error_log", str(self._directory / ERROR_LOG), reason=Reason.ERROR_LOG)

    def _edit_outside(self) -> None:
        for each in self._tree.root.children(*OUTSIDE):
            self._edits.remove(each, Reason.NO_TRAFFIC)
            self.notes.append(f"{each.place}: {each.name} is taken out: only HTTP is replayed")

    def _edit_directive(self, statement: Statement) -> None:
        name, args = statement.name, statement.args
        if name in _TWICE:
            self._edits.remove(statement, Reason.TWICE)
        elif _CACHE.fullmatch(name):
            self._edits.change(statement, (self._cache(name, args), *args[1:]), Reason.CACHE)
        elif match := _TEMPORARY.fullmatch(name):
            self._edits.change(statement, (self._temp(match[1], args[0]), *args[1:]), Reason.TEMPORARY)
        elif _STORE.fullmatch(name):
            self._edits.change(statement, ("off",), Reason.STORE)
        elif _BESIDE.fullmatch(name) and args and args[-1] and not args[-1].startswith(_ELSEWHERE):
            absolute = str(Path(self._tree.root.file).parent / args[-1])
            self._edits.change(statement, (*args[:-1], absolute), Reason.ABSOLUTE)
        elif name in _NOTED and args[:1] != ("off",):
            self.notes.append(f"{statement.place}: {name}: {_NOTED[name]}")

    def _cache(self, name: str, args: tuple[str, ...]) -> str:
        """A directory named after the zone, which no other cache has."""
        zone = next((match[1] for each in args if (match := _ZONE.match(each))), "")
        return str(self._directory / f"{name.removesuffix('_path')}-{re.sub(r'[^A-Za-z0-9_.-]', '_', zone)}")

    def _temp(self, module: str, path: str) -> str:
        if path not in self._temporary:
            self._temporary[path] = f"{module}_temp-{len(self._temporary) + 1}"
        return str(self._directory / self._temporary[path])

    def _edit_logs(self, block: Statement) -> None:
        """One directive of a block says that there is no log; the further ones go."""
        self._edit_error_logs(block)
        if not self._keep_logs:
            for index, each in enumerate(block.children("access_log")):
                if index:
                    self._edits.remove(each, Reason.ACCESS_LOG)
                else:
                    self._edits.change(each, ("off",), Reason.ACCESS_LOG)
        for each in block.children():
            if each.block is not None and each.name not in DATA_BLOCKS:
                self._edit_logs(each)

    def _edit_error_logs(self, block: Statement) -> None:
        for index, each in enumerate(block.children("error_log")):
            if index:
                self._edits.remove(each, Reason.ERROR_LOG)
            else:
                self._edits.change(each, (str(self._directory / ERROR_LOG), *each.args[1:]), Reason.ERROR_LOG)

    def _add_missing(self) -> None:
        """Where production leaves it to nginx, its compiled-in paths are meant: production's again."""
        http = self._tree.http
        if not self._keep_logs and not http.children("access_log"):
            self._edits.add(http, "access_log", "off", reason=Reason.ACCESS_LOG)
        for module in MODULES:
            if not http.children(f"{module}_temp_path"):
                path = str(self._directory / f"{module}_temp")
                self._edits.add(http, f"{module}_temp_path", path, reason=Reason.TEMPORARY)
