"""Upstreams out of files in Prometheus' file_sd form, JSON or YAML:

    - targets: ["192.0.2.1:8080", "shadow2.example:8080"]
      labels: {shadowtap_weight: "3", shadowtap_cookie: "s1"}

The labels `shadowtap_weight` and `shadowtap_cookie` hold for the targets of their group; all others are ignored.
A file that cannot be read or understood keeps what it said last.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from agent.discovery.settings import UPSTREAMS_MAX, WEIGHT_MAX, Answers, Clock, FileSource, Found, found
from replay.balancer.address import UNIX, Resolver, parse_host_port, resolve, show
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

POLL_S = 2.0
SETTLE_S = 1.0
NAMES_AGAIN_S = 30.0  # the system's resolver does not tell how long its answers are good
RETRY_S, RETRY_MAX_S = 5.0, 60.0
FILE_BYTES = 1 << 20
FILES_MAX = 256
TARGETS_MAX = 16_384  # of one file; YAML's aliases make many of a few bytes
DEPTH_MAX = 16  # of YAML; what is asked for is nested three deep
COOKIE_CHARS = 64
WEIGHT_LABEL, COOKIE_LABEL = "shadowtap_weight", "shadowtap_cookie"
_JSON, _YAML = (".json",), (".yml", ".yaml")
_COOKIE = re.compile(r"[!#-+\--:<-\[\]-~]*")  # RFC 6265's cookie-octet
# Everything is text: no dates, no numbers too long to read, no merging, which a small file can make run for ever.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

Stamp = tuple[int, ...]


class Target(NamedTuple):
    """One target as a file has it; `named`: its address is still to be resolved."""

    spec: UpstreamSpec
    named: bool


@dataclass(frozen=True, slots=True)
class Read:
    """What is known of one file."""

    stamp: Stamp = ()  # of the content that was understood or refused
    seen: Stamp = ()  # at the last look
    targets: tuple[Target, ...] = ()
    problem: str = ""


class FileSd:
    """The upstreams of one file, or of all that fit a pattern."""

    def __init__(
        self, settings: FileSource, clock: Clock = time.monotonic, resolver: Resolver = socket.getaddrinfo
    ) -> None:
        self._path = Path(settings.path)
        self._resolver = resolver
        self._files: dict[Path, Read] = {}
        self._names: Answers[str, list[str]] = Answers(self._resolve, clock, RETRY_S, RETRY_MAX_S)
        self._chosen: dict[str, str] = {}

    def look(self) -> Found:
        """See `Source`."""
        problems = []
        try:
            self._files = {path: look_at(path, self._files.get(path, Read())) for path in self._paths()}
        except UpstreamError as error:
            problems.append(str(error))
        files = self._files.values()
        targets = [target for each in files for target in each.targets]
        names = list(dict.fromkeys(target.spec.address for target in targets if target.named))
        specs = self._resolved(targets, names[:UPSTREAMS_MAX])
        problems += [each.problem for each in files if each.problem] + self._names.problems
        if len(names) > UPSTREAMS_MAX:
            problems.append(f"{self._path}: only the first {UPSTREAMS_MAX} of {len(names)} names are looked up")
        changing = any(each.seen != each.stamp for each in files)
        return found(specs, min(SETTLE_S if changing else POLL_S, self._names.again_in_s), problems)

    def _paths(self) -> list[Path]:
        """UpstreamError when no file fits; with one name, that is for reading it to find out."""
        name = self._path.name
        if not name.endswith((*_JSON, *_YAML)):
            raise UpstreamError(f"{self._path}: the name of the file must end in .json, .yml or .yaml")
        if "*" in str(self._path.parent):
            raise UpstreamError(f"{self._path}: only the last element of the path may hold *")
        if "*" not in name:
            return [self._path]
        fits = re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
        try:
            names = [each.name for each in self._path.parent.iterdir() if fits.fullmatch(each.name)]
        except (OSError, ValueError) as error:
            raise UpstreamError(f"{self._path.parent}: {_words(error)}") from None
        names = sorted(each for each in names if not each.startswith(".") or name.startswith("."))
        if not names:
            raise UpstreamError(f"{self._path}: there is no such file")
        if len(names) > FILES_MAX:
            raise UpstreamError(f"{self._path}: {len(names)} files are too many, at most {FILES_MAX} are read")
        return [self._path.parent / each for each in names]

    def _resolved(self, targets: list[Target], names: list[str]) -> list[UpstreamSpec]:
        """With each name replaced by its first address. A name that keeps it among its addresses keeps it: servers
        give them in ever another order."""
        answers = self._names.look(names)
        self._chosen = {
            name: old if (old := self._chosen.get(name, "")) in addresses else addresses[0]
            for name, addresses in answers.items()
        }
        numeric = [target.spec for target in targets if not target.named]
        return numeric + [
            UpstreamSpec(self._chosen[spec.address], spec.weight, spec.cookie)
            for spec, named in targets
            if named and spec.address in self._chosen
        ]

    def _resolve(self, name: str) -> tuple[list[str], float]:
        return [show(each) for each in resolve(name, self._resolver)], NAMES_AGAIN_S


def look_at(path: Path, before: Read) -> Read:
    """The file as it is now; as `before` where nothing has changed, or where it cannot be understood.

    One that is written in place may be half there, and half a YAML file is one, too: it is taken when it has stayed as
    it is from one look to the next. A new file under the name (renamed, as it should be done) is taken at once.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if stamp == before.stamp:
                return before if before.seen == stamp else replace(before, seen=stamp)
            if before.stamp[:2] == stamp[:2] and stamp != before.seen:
                return Read(before.stamp, stamp, before.targets, before.problem)
            if not stat.S_ISREG(status.st_mode):
                raise UpstreamError(f"{path}: not a file")
            data = file.read(FILE_BYTES + 1)
        return Read(stamp, stamp, tuple(read_targets(data, path)))
    except (OSError, ValueError) as error:
        return Read((), (), before.targets, f"{path}: {_words(error)}")
    except UpstreamError as error:
        return Read(stamp, stamp, before.targets, str(error))


def read_targets(data: bytes, path: Path) -> list[Target]:
    """The targets in a file's content. UpstreamError, where it is not as it must be."""
    if len(data) > FILE_BYTES:
        raise UpstreamError(f"{path}: longer than {FILE_BYTES >> 20} MiB")
    groups = _load(data, path)
    if not isinstance(groups, list):
        raise UpstreamError(f"{path}: not a list of groups with `targets`")
    read: list[Target] = []
    for group in groups:
        targets, labels = _parts(group, path)
        if len(groups) + len(read) + len(targets) > TARGETS_MAX:
            raise UpstreamError(f"{path}: more than {TARGETS_MAX} targets")
        weight, cookie = _weight(labels, path), _cookie(labels, path)
        read += [_target(text, weight, cookie, path) for text in targets]
    return read


def _load(data: bytes, path: Path) -> Any:
    kind = "JSON" if path.name.endswith(_JSON) else "YAML"
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text) if kind == "JSON" else _load_yaml(text)
    except UnicodeDecodeError:
        raise UpstreamError(f"{path}: not UTF-8 text") from None
    except RecursionError:
        raise UpstreamError(f"{path}: not valid {kind}: nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UpstreamError(f"{path}: not valid {kind}: {error}") from None


def _load_yaml(text: str) -> Any:
    """Looked through first: libyaml's own loader calls itself for each level, until the process dies of it."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            raise RecursionError
    return yaml.load(text, _LOADER)


def _parts(group: Any, path: Path) -> tuple[list[Any], dict[str, Any]]:
    if not isinstance(group, dict) or not set(group) <= {"targets", "labels"}:
        raise UpstreamError(f"{path}: a group has `targets` and `labels`, and nothing else")
    targets, labels = group.get("targets"), group.get("labels") or {}
    if not isinstance(targets, list) or not isinstance(labels, dict):
        raise UpstreamError(f"{path}: `targets` is a list, and `labels` has names with values")
    return targets, labels


def _weight(labels: dict[str, Any], path: Path) -> int:
    text = str(labels.get(WEIGHT_LABEL, 1))
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) > WEIGHT_MAX:
        raise UpstreamError(f"{path}: {WEIGHT_LABEL} is a whole number from 0 to {WEIGHT_MAX}")
    return int(text)


def _cookie(labels: dict[str, Any], path: Path) -> str:
    cookie = labels.get(COOKIE_LABEL, "")
    if not isinstance(cookie, str) or len(cookie) > COOKIE_CHARS or not _COOKIE.fullmatch(cookie):
        raise UpstreamError(f"{path}: {COOKIE_LABEL} is a cookie's value of at most {COOKIE_CHARS} characters")
    return cookie


def _target(text: Any, weight: int, cookie: str, path: Path) -> Target:
    if not isinstance(text, str) or not text.isprintable():
        raise UpstreamError(f"{path}: a target is text like 192.0.2.1:8080")
    try:
        named = not text.startswith(UNIX) and not _is_numeric(parse_host_port(text).host)
        return Target(UpstreamSpec(text if named else show(resolve(text)[0]), weight, cookie), named)
    except UpstreamError as error:
        raise UpstreamError(f"{path}: {error}") from None


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for a pipe's other end."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
