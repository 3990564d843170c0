"""The parameters behind an address on `bind` and `server` lines: which words are names, and which are their values.

Only parameters that take something after them are listed. One that is newer than this list is read as taking nothing,
which matters only if its value is the name of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

BIND_VALUED = frozenset((
    "accept-netscaler-cip", "alpn", "backlog", "ca-file", "ca-ignore-err", "ca-sign-file", "ca-sign-pass",
    "ca-verify-file", "cc", "ciphers", "ciphersuites", "client-sigalgs", "crl-file", "crt", "crt-ignore-err",
    "crt-list", "curves", "default-crt", "ecdhe", "expose-fd", "gid", "group", "guid-prefix", "id", "interface",
    "label", "level", "maxconn", "mode", "mss", "name", "namespace", "nbconn", "nice", "npn", "ocsp-update",
    "process", "proto", "quic-cc-algo", "quic-socket", "severity-output", "shards", "sigalgs", "ssl-max-ver",
    "ssl-min-ver", "tcp-md5sig", "tcp-ss", "tcp-ut", "thread", "tls-ticket-keys", "uid", "user", "verify",
))  # fmt: skip
SERVER_VALUED = frozenset((
    "addr", "agent-addr", "agent-inter", "agent-port", "agent-send", "alpn", "ca-file", "cc", "check-alpn",
    "check-pool-conn-name", "check-proto", "check-sni", "ciphers", "ciphersuites", "client-sigalgs", "cookie",
    "crl-file", "crt", "curves", "downinter", "error-limit", "fall", "fastinter", "guid", "hash-key",
    "healthcheck", "id", "idle-ping", "init-addr", "init-state", "inter", "interface", "log-bufsize",
    "log-proto", "max-reuse", "maxconn", "maxqueue", "minconn", "namespace", "npn", "observe", "on-error",
    "on-marked-down", "on-marked-up", "pool-conn-name", "pool-low-conn", "pool-max-conn", "pool-purge-delay",
    "port", "proto", "proxy-v2-options", "redir", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers",
    "rise", "shard", "sigalgs", "slowstart", "sni", "socks4", "source", "ssl-max-ver", "ssl-min-ver",
    "tcp-md5sig", "tcp-ut", "track", "usesrc", "verify", "verifyhost", "weight", "ws",
))  # fmt: skip
CONNECT_VALUED = frozenset(("addr", "alpn", "comment", "port", "proto", "sni"))


class Param(NamedTuple):
    """One parameter, with the words of the line that it takes. `value` is empty where it takes one word."""

    name: str
    value: str
    words: range


def read_params(values: Sequence[str], first: int, valued: frozenset[str]) -> Iterator[Param]:
    """The parameters from word `first` on."""
    at = first
    while at < len(values):
        takes = values[at] in valued and at + 1 < len(values)
        yield Param(values[at], values[at + 1] if takes else "", range(at, at + 1 + takes))
        at += 1 + takes


def take_off(params: Iterable[Param]) -> dict[int, str | None]:
    """What is to be changed for these parameters to be gone."""
    return {index: None for param in params for index in param.words}
