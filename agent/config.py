"""The configuration: one YAML file, checked whole before anything starts. Unknown keys are errors.

`load(path)` returns a `Config` or raises ConfigError with one line a fault: file, key, rule and value.
"""

from __future__ import annotations

import ipaddress
import re
import reprlib
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from agent.alerts_config import AlertsConfig
from agent.capture.layout import PPM, SHADOWS_MAX
from agent.errors import ConfigError
from agent.fields import Directory, Interface, MiB, Model, Port, Seconds, User
from agent.resources_config import Resources
from agent.select.client_address import CONNECTION, ClientAddress, client_address
from agent.select.criteria import Geo, leaves
from agent.select.sampling import By, Window
from agent.shadow_config import NAME, Shadow
from agent.watch_config import Harm, Judging, Limits, Rollback, State

SMALL_RING_BYTES = 256 * 1024


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Python does not write a number of 4300 digits, which hexadecimal ones in a file may have."""
        return super().repr_int(x, level) if x.bit_length() < 1024 else "a number without end"


_short = _Short()  # bounded, whatever a file makes of aliases
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


class Capture(Model):
    """Where and how packets are copied."""

    interface: Interface
    ports: Annotated[list[Port], Field(min_length=1, max_length=1024)]
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    ring_kib: Annotated[int, Field(ge=4, le=1 << 20)] = 4096  # a worker; rounded up to a power of two
    attach: Literal["auto", "tcx", "clsact"] = "auto"
    lease_ms: Annotated[int, Field(ge=200, le=60_000)] = 3000
    poll_ms: Annotated[float, Field(ge=0.2, le=1000)] = 4.0
    request_limit_bytes: Annotated[int, Field(ge=0, le=65535)] = 65535  # copied of each segment
    response_limit_bytes: Annotated[int, Field(ge=0, le=65535)] = 65535
    budget_packets_per_s: Annotated[int, Field(ge=0, lt=1 << 32)] = 0  # 0: no limit
    budget_mib_per_s: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    scheduler: Literal["normal", "batch", "idle"] = "batch"

    @property
    def ring_bytes(self) -> int:
        """Size of one ring: a power of two."""
        return 1 << (self.ring_kib * 1024 - 1).bit_length()


class Http(Model):
    """Limits of what is kept of a message."""

    body_limit_bytes: Annotated[int, Field(ge=0, le=1 << 30)] = 1 << 20
    hash_bodies: bool = False  # hash what is beyond the limit, too


class Recording(Model):
    """Where exchanges and outcomes are written."""

    directory: Directory
    rotate_mib: MiB = 128
    rotate_s: Annotated[int, Field(ge=1)] = 900
    limit_mib: Annotated[int, Field(ge=1)] = 4096
    exemplars: Annotated[int, Field(ge=0, le=10_000)] = 20

    def limits(self, shadows: int) -> dict[str, int]:
        """As the fields of replay.recording.RecordingSettings, for each of so many shadows."""
        return {
            "rotate_bytes": self.rotate_mib << 20,
            "rotate_seconds": self.rotate_s,
            "directory_bytes": (self.limit_mib << 20) // shadows,
            "exemplars": self.exemplars,
        }


class Metrics(Model):
    """The Prometheus endpoint; loopback only."""

    listen: str = "127.0.0.1:9464"

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        try:
            loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            raise ValueError("give an address and port, like 127.0.0.1:9464") from None
        if not loopback:
            raise ValueError("the metrics port is for this host only: give a loopback address, like 127.0.0.1:9464")
        if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError("give an address and port, like 127.0.0.1:9464")
        return value

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class GeoFile(Model):
    """Where geography comes from."""

    database: Directory  # a MaxMind-format file, read again when it is replaced


class Client(Model):
    """Where the client's address comes from, when another balancer stands in front."""

    source: str = CONNECTION  # or proxy_protocol, or a header's name
    trusted: list[str] = []  # networks of the balancers whose header is believed

    @model_validator(mode="after")
    def _readable(self) -> Client:
        try:
            _ = self.settings
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def settings(self) -> ClientAddress:
        """Read."""
        return client_address(self.source, self.trusted)


class Control(Model):
    """The socket for `shadowtap set` and the like; mode 0660."""

    socket: Directory = Path("/run/shadowtap/control.sock")
    group: str | None = None  # who besides the agent's user may use it


class Config(Model):
    """The whole file."""

    capture: Capture
    shadows: Annotated[dict[str, Shadow], Field(min_length=1, max_length=SHADOWS_MAX)]
    geo: GeoFile | None = None
    client: Client = Client()
    control: Control | None = Control()
    http: Http = Http()
    recording: Recording | None = None
    metrics: Metrics | None = Metrics()
    judge: Judging | None = Judging()
    rollback: Rollback = Rollback()
    limits: Limits = Limits()
    harm: Harm | None = Harm()
    resources: Resources | None = None
    alerts: AlertsConfig = AlertsConfig()
    state: State | None = State()
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    user: User | None = None  # account the agent runs under; default shadowtap, else nobody
    mark: Annotated[int, Field(ge=0, lt=1 << 32)] = 0x5AD0  # SO_MARK of replayed connections, 0: none
    production: list[str] = []  # addresses a shadow must never have, beside this host's own server ports
    stop_timeout_s: Seconds = 10.0

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name, shadow in self.shadows.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"shadow name {name!r}: lower-case letters, digits and inner hyphens, at most 63")
            if self.geo is None and any(isinstance(leaf, Geo) for leaf in leaves(shadow.tree)):
                raise ValueError(
                    f"shadows.{name}.criteria asks for a country: set geo.database to a file with countries"
                )
        if self.resources is not None and (unknown := sorted(set(self.resources.shadows) - set(self.shadows))):
            raise ValueError(f"resources.shadows: no shadow is called {', '.join(unknown)}")
        _ = self.windows
        return self

    @property
    def data(self) -> dict[str, Any]:
        """As plain data, which `validated` reads."""
        return self.model_dump(by_alias=True)

    @property
    def windows(self) -> dict[str, Window]:
        """What each shadow takes of the places that flows have. Within a group one window begins where that of the
        shadow before it ends; all others begin at 0. ValueError when a group has no room."""
        taken: defaultdict[str, int] = defaultdict(int)
        kinds: dict[str, tuple[By, str]] = {}
        windows = {}
        for name, shadow in self.shadows.items():
            group, start = shadow.group, taken[shadow.group] if shadow.group else 0
            windows[name] = Window(start, start + shadow.share_ppm)
            taken[group] = windows[name].to_ppm
            if group and windows[name].to_ppm > PPM:
                raise ValueError(f"shadows.{name}: the percentages of group {group!r} come to more than 100")
            if group and kinds.setdefault(group, shadow.sampling) != shadow.sampling:
                raise ValueError(f"shadows.{name}: all of group {group!r} need the same sample_by")
        return windows

    @property
    def notes(self) -> list[str]:
        """What is allowed and yet hardly meant."""
        notes = []
        if self.capture.ring_bytes < SMALL_RING_BYTES:
            notes.append(f"capture.ring_kib {self.capture.ring_kib}: large segments will not fit; 256 is a good least")
        if (recording := self.recording) is not None:
            least = 2 * recording.rotate_mib * self.capture.workers * len(self.shadows)
            if recording.limit_mib < least:
                notes.append(
                    f"recording.limit_mib {recording.limit_mib}: recording will stop when files that are not converted "
                    f"yet reach it; give {least} or more, or a smaller rotate_mib"
                )
        return notes


def load(path: Path) -> Config:
    """Read and check a configuration file."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: give a readable YAML file with -c") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Config:
    """Check configuration text; `name` is the file's, for messages."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {_one_line(getattr(error, 'problem', None) or error)}") from None
    except (LookupError, AttributeError, OverflowError):  # how PyYAML fails on an explicit tag, such as !!bool maybe
        raise ConfigError(f"{name}: not valid YAML: a value that does not fit its !!tag") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected keys such as `capture:` and `shadows:`, found {_short.repr(data)}")
    return validated(data, name)


def validated(data: dict[str, Any], name: str, files: bool = True) -> Config:
    """Check a configuration that is data already. Without `files` nothing that it names is read: what was in force once
    stays possible when such a file is gone."""
    try:
        return Config.model_validate(data, context={"files": files})
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {_fault(fault)}" for fault in error.errors())) from None


def _fault(fault: Any) -> str:
    parts = [str(part) for part in fault["loc"]]
    key = (
        ".".join(part if part.isprintable() and part.split() == [part] else repr(part) for part in parts) or "the file"
    )
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; see the README's configuration section for those there are"
    if fault["type"] == "missing":
        return f"{key}: missing; this key is required"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {_one_line(message[0].lower() + message[1:])} (found {_short.repr(fault['input'])})"


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if text.isprintable() else ascii(text)
