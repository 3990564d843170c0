"""The configuration: one YAML file, checked whole before anything starts. Unknown keys are errors.

`load(path)` returns a `Config` or raises ConfigError with one line a fault: file, key, rule and value.
"""

from __future__ import annotations

import ipaddress
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agent.errors import ConfigError

PERCENT_TO_PPM = 10_000
SMALL_RING_BYTES = 256 * 1024
LONGEST_S = 86_400  # of any time limit
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

_short = reprlib.Repr()  # bounded, whatever a file makes of aliases
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def _without(unwanted: str, what: str) -> Callable[[Any], Any]:
    """Validator of text that is given to the system as `what`."""

    def validate(value: Any) -> Any:
        if any(c in unwanted for c in str(value)):
            raise ValueError(f"{str(value)!r} cannot be {what}")
        return value

    return validate


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]
MiB = Annotated[int, Field(ge=1, le=4096)]
Interface = Annotated[
    str,
    Field(min_length=1, max_length=15),
    AfterValidator(_without("\0/ \t\n\v\f\r", "the name of an interface")),
]
User = Annotated[str, Field(min_length=1), AfterValidator(_without("\0", "the name of a user"))]
Directory = Annotated[Path, AfterValidator(_without("\0", "a path"))]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Capture(_Model):
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


class Http(_Model):
    """Limits of what is kept of a message."""

    body_limit_bytes: Annotated[int, Field(ge=0, le=1 << 30)] = 1 << 20
    hash_bodies: bool = False  # hash what is beyond the limit, too


class Shadow(_Model):
    """One shadow: which traffic, where to, how."""

    enabled: bool = True
    percentage: Annotated[float, Field(ge=0, le=100)] = 100.0
    sample_by: Literal["connection", "client"] = "connection"
    upstreams: Annotated[list[str], Field(max_length=1024)] = []  # none: capture only
    methods: list[str] = ["GET", "HEAD", "OPTIONS"]
    connect_timeout_s: Seconds = 1.0
    timeout_s: Seconds = 10.0
    max_connections: Annotated[int, Field(ge=1, le=65535)] = 64
    queue_entries: Annotated[int, Field(ge=1)] = 4096
    queue_mib: MiB = 16
    queue_timeout_s: Seconds = 5.0

    @property
    def share_ppm(self) -> int:
        """The percentage in millionths."""
        return round(self.percentage * PERCENT_TO_PPM)

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: list[str]) -> list[str]:
        for method in value:
            if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", method):
                raise ValueError(f"{method!r} is not an HTTP method")
        return value


class Recording(_Model):
    """Where exchanges and outcomes are written."""

    directory: Directory
    rotate_mib: MiB = 128
    rotate_s: Annotated[int, Field(ge=1)] = 900
    limit_mib: Annotated[int, Field(ge=1)] = 4096
    exemplars: Annotated[int, Field(ge=0, le=10_000)] = 20

    def limits(self) -> dict[str, int]:
        """As the fields of replay.recording.RecordingSettings."""
        return {
            "rotate_bytes": self.rotate_mib << 20,
            "rotate_seconds": self.rotate_s,
            "directory_bytes": self.limit_mib << 20,
            "exemplars": self.exemplars,
        }


class Metrics(_Model):
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


class Config(_Model):
    """The whole file."""

    capture: Capture
    shadows: Annotated[dict[str, Shadow], Field(min_length=1, max_length=1)]  # several at once: a later version
    http: Http = Http()
    recording: Recording | None = None
    metrics: Metrics | None = Metrics()
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    user: User | None = None  # account the agent runs under; default shadowtap, else nobody
    mark: Annotated[int, Field(ge=0, lt=1 << 32)] = 0x5AD0  # SO_MARK of replayed connections, 0: none
    production: list[str] = []  # addresses a shadow must never have, beside this host's own server ports
    stop_timeout_s: Seconds = 10.0

    @model_validator(mode="after")
    def _names(self) -> Config:
        for name in self.shadows:
            if not _NAME.fullmatch(name):
                raise ValueError(f"shadow name {name!r}: lower-case letters, digits and inner hyphens, at most 63")
        return self

    @property
    def notes(self) -> list[str]:
        """What is allowed and yet hardly meant."""
        notes = []
        if self.capture.ring_bytes < SMALL_RING_BYTES:
            notes.append(f"capture.ring_kib {self.capture.ring_kib}: large segments will not fit; 256 is a good least")
        if (recording := self.recording) is not None:
            least = 2 * recording.rotate_mib * self.capture.workers
            if recording.limit_mib < least:
                notes.append(
                    f"recording.limit_mib {recording.limit_mib}: recording will stop when files that are not converted "
                    f"yet reach it; give {least} or more, or a smaller rotate_mib"
                )
        return notes

    @property
    def shadow(self) -> tuple[str, Shadow]:
        """Name and settings of the one shadow."""
        return next(iter(self.shadows.items()))


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
    try:
        return Config.model_validate(data)
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
