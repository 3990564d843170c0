"""TLS to the shadow: what was agreed on, which certificate ends first, and why there was no connection.

What is left of a certificate's time counts from the last request that was sent to the shadow, not from when the report
is made: the same recording gives the same report. (A capture file may be much older than its replay, so it is not
counted from production's last request.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from replay.certificate import DAY_S, days
from replay.compare.names import Names
from replay.compare.routes import printable
from replay.compare.statistics import plain

COLUMNS = ["host", "shadow_t_queued_ns", "shadow_t_sent_ns", "shadow_tls", "shadow_tls_not_after_s"]

AGREED_LIMIT = 64  # combinations of protocol and cipher counted apart
WARN_DAYS = 14
LAST_S = 253_402_300_799  # the end of the year 9999
HOST_LIMIT_CHARS = 80


@dataclass(frozen=True, slots=True)
class Ends:
    """The certificate that ends first."""

    not_after_s: int  # Unix time
    days_left: float  # at the last request; below 0: expired so long before
    host: str  # for whom it was presented, "" when not known
    upstream: str  # who answered there; behind a balancer program it is that program's certificate

    @property
    def words(self) -> str:
        """ "ends 2026-12-03 10:00:00 UTC, 8 days left"."""
        return f"ends {_date(self.not_after_s)}, {days(self.days_left)}"

    @property
    def soon(self) -> bool:
        """It is time to renew it."""
        return self.days_left <= WARN_DAYS


@dataclass(frozen=True, slots=True)
class Tls:
    """What is known of TLS to the shadow; nothing when there was none."""

    agreed: dict[str, int] = field(default_factory=dict)  # requests by "protocol cipher", the most frequent first
    ends: Ends | None = None  # None: no certificate was verified
    failures: dict[str, int] = field(default_factory=dict)  # requests by reason

    def __bool__(self) -> bool:
        return bool(self.agreed or self.failures)


class TlsTally:
    """Feed it replayed rows with COLUMNS, and the number of each row's upstream in `names`."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._agreed = Names(AGREED_LIMIT)
        self._counts: Counter[int] = Counter()
        self._last_ns = 0
        self._first_end: tuple[int, str, int] | None = None  # when, host, number of the upstream

    def add(self, rows: pa.RecordBatch, upstreams: NDArray[Any]) -> None:
        """Count rows."""
        for name in ("shadow_t_queued_ns", "shadow_t_sent_ns"):
            self._last_ns = max(self._last_ns, pc.max(rows.column(name)).as_py() or 0)
        if rows.column("shadow_tls").null_count == rows.num_rows:
            return
        for each in pc.value_counts(rows.column("shadow_tls").drop_null()).to_pylist():
            self._counts[self._agreed.number(each["values"])] += each["counts"]
        ends = rows.column("shadow_tls_not_after_s").fill_null(0).to_numpy()
        known = np.where(ends > 0, ends, np.iinfo(np.int64).max)
        at = int(known.argmin())
        if ends[at] > 0 and (self._first_end is None or ends[at] < self._first_end[0]):
            host = printable(rows.column("host")[at].as_py() or "")[:HOST_LIMIT_CHARS]
            self._first_end = int(ends[at]), host, int(upstreams[at])

    def report(self, failures: Mapping[str, int]) -> Tls:
        """What was counted so far; `failures` are the TLS failures by reason."""
        agreed = {self._agreed.all[number]: n for number, n in self._counts.most_common()}
        return Tls(agreed, self._ends(), dict(failures))

    def _ends(self) -> Ends | None:
        if self._first_end is None:
            return None
        not_after_s, host, upstream = self._first_end
        return Ends(not_after_s, (not_after_s - self._last_ns / 1e9) / DAY_S, host, self._names.all[upstream])


def warnings(tls: Tls) -> list[str]:
    """What should be done something about; one sentence each."""
    ends = tls.ends
    if ends is None or not ends.soon:
        return []
    whose = f" for {ends.host}" if ends.host else ""
    return [f"the shadow's certificate{whose} {ends.words}"]


def as_dict(tls: Tls) -> dict[str, Any]:
    """For JSON."""
    ends = tls.ends
    return {
        "agreed": tls.agreed,
        "first_certificate_to_end": None
        if ends is None
        else {
            "not_after_s": ends.not_after_s,
            "not_after": _date(ends.not_after_s),
            "days_left": plain(ends.days_left),
            "soon": ends.soon,
            "host": ends.host,
            "upstream": ends.upstream,
        },
        "failures": tls.failures,
    }


def _date(time_s: int) -> str:
    return f"{datetime.fromtimestamp(min(time_s, LAST_S), UTC):%Y-%m-%d %H:%M:%S} UTC"
