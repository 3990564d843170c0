"""What a pool's host or process says about itself: the text of a scrape, or a Prometheus server's answer, as numbers.

Both come over the network: whatever they hold gives a reading or a `Gap` with the reason, never an exception. Only
lines of metrics that are wanted are parsed at all. A wanted line that cannot be read makes the whole a gap, since a sum
without it would be a guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

SERIES_LIMIT = 20_000  # of wanted metrics; a host of 2048 processors has 16 384
LINE_LIMIT = 4096  # bytes of a wanted line: reading one takes time as the square of its length
LARGEST = 1e18  # of any count, time or size; what is more is no such thing
TEXT_LIMIT = 120  # of what a stranger wrote, where it is shown

NODE_CPU, NODE_TOTAL, NODE_AVAILABLE, NODE_BOOT = (
    "node_cpu_seconds_total",
    "node_memory_MemTotal_bytes",
    "node_memory_MemAvailable_bytes",
    "node_boot_time_seconds",
)
PROCESS_CPU, PROCESS_MEMORY, PROCESS_START = (
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
)
# Linux counts guests in user and nice already; stolen time is what others had of the processor, not the pool.
NOT_BUSY = ("idle", "iowait", "steal", "guest", "guest_nice")

Key = tuple[tuple[str, str], ...]  # a series' labels, sorted
Values = dict[Key, float]

_SELECTOR = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\\n]|\\[\\"n])*)"\s*(?:,|$)')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True, slots=True)
class Gap:
    """No numbers, and why; one printable line."""

    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What one target had counted at one moment. `started`: when what is counted began, in seconds since 1970; where
    that or the set of series changes, or a counter falls, two readings are not of one run."""

    source: str  # "node" or "process"
    cpu_seconds: Values
    memory_bytes: float | None
    started: Values


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric and labels that its series must have, with these very values."""

    name: str
    labels: frozenset[tuple[str, str]]


def parse_selector(text: str) -> Selector:
    """Of name{label="value",...}; ValueError."""
    found = _SELECTOR.fullmatch(text)
    if found is None:
        raise ValueError('give the name of a metric, with or without labels, like requests_total{proxy="web"}')
    rest, labels = found[2] or "", {}
    while rest.strip():
        label = _LABEL.match(rest)
        if label is None:
            raise ValueError('write labels as name="value", with commas between; there is only = here')
        labels[label[1]] = re.sub(r'\\[\\"n]', lambda escape: _ESCAPES[escape[0]], label[2])
        rest = rest[label.end() :]
    return Selector(found[1], frozenset(labels.items()))


def read(body: bytes) -> Reading | Gap:
    """CPU and memory of a scrape: of the whole host where node_exporter speaks (whose own process counts for nothing),
    else of the processes that use a client library."""
    names = (NODE_CPU, NODE_TOTAL, NODE_AVAILABLE, NODE_BOOT, PROCESS_CPU, PROCESS_MEMORY, PROCESS_START)
    found = _series(body, names)
    if isinstance(found, Gap):
        return found
    if found[NODE_CPU] or found[NODE_TOTAL]:
        busy = {key: value for key, value in found[NODE_CPU].items() if dict(key).get("mode") not in NOT_BUSY}
        total, available = found[NODE_TOTAL], found[NODE_AVAILABLE]
        used = sum(total.values()) - sum(available.values()) if total and total.keys() == available.keys() else None
        return Reading("node", busy, used, found[NODE_BOOT])
    if found[PROCESS_CPU] or found[PROCESS_MEMORY]:
        memory = found[PROCESS_MEMORY]
        return Reading("process", found[PROCESS_CPU], sum(memory.values()) if memory else None, found[PROCESS_START])
    return Gap(f"it shows neither {NODE_CPU} nor {PROCESS_CPU}")


def counted(body: bytes, selector: Selector) -> Values | Gap:
    """The series of a scrape that a selector takes."""
    found = _series(body, (selector.name,))
    if isinstance(found, Gap):
        return found
    chosen = {key: value for key, value in found[selector.name].items() if selector.labels <= set(key)}
    return chosen or Gap(f"it shows no such series of {selector.name}")


def answered(body: bytes) -> float | Gap:
    """The number that a Prometheus server answered a query with; several are added up."""
    try:
        answer = json.loads(body)
        if answer["status"] != "success":
            return Gap(f"the query failed: {shown(str(answer['error']))}")
        kind, result = answer["data"]["resultType"], answer["data"]["result"]
        if kind not in ("vector", "scalar"):
            return Gap(f"the query gives a {shown(str(kind))}, not numbers of one moment")
        pairs = [result] if kind == "scalar" else [each["value"] for each in result]
        numbers = [_number(value) for _, value in pairs]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Gap(f"not the answer of a Prometheus server ({type(error).__name__})")
    if not numbers:
        return Gap("the query finds nothing")
    if not all(0 <= number <= LARGEST for number in numbers):
        return Gap("the query gives what is not a number of 0 or more")
    return math.fsum(numbers)


def shown(text: str) -> str:
    """What a stranger wrote, fit for one line."""
    cut = text[:TEXT_LIMIT]
    return cut if cut.isprintable() else ascii(cut)[1:-1][:TEXT_LIMIT]


def _number(value: object) -> float:
    """Prometheus writes numbers as text."""
    if not isinstance(value, str):
        raise TypeError("a number that is no text")
    return float(value)


def _series(body: bytes, names: tuple[str, ...]) -> dict[str, Values] | Gap:
    """Every series of the metrics named."""
    found: dict[str, Values] = {name: {} for name in names}
    if not body.endswith(b"\n"):
        return Gap("its last line has no end" if body else "it is empty")
    for number, line in enumerate(_wanted(body, names)):
        if number == SERIES_LIMIT or len(line) > LINE_LIMIT:
            return Gap("too many series or too long a line")
        sample = _sample(line)
        if sample is None:
            return Gap(f"it cannot be read: {shown(line.decode(errors='replace'))}")
        name, key, value = sample
        if key in found[name]:
            return Gap(f"it shows one series of {name} twice")
        found[name][key] = value
    return found


def _wanted(body: bytes, names: tuple[str, ...]) -> Iterator[bytes]:
    either = b"|".join(re.escape(name.encode()) for name in names)
    for found in re.finditer(rb"^[ \t]*(?:" + either + rb")(?=[{ \t])[^\n]*", body, re.MULTILINE):
        yield found[0].strip()


def _sample(line: bytes) -> tuple[str, Key, float] | None:
    """None for what is not one, or has a value that no time and no size can have."""
    try:
        (family,) = text_string_to_metric_families(line.decode())
        (sample,) = family.samples
        value = float(sample.value)
    except Exception:  # of the parser, which does not say what it raises on text that is none
        return None
    if not 0 <= value <= LARGEST:
        return None
    return sample.name, tuple(sorted(sample.labels.items())), value
