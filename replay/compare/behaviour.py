"""What the shadow did with the requests that it was sent, whatever production did: upstreams, TLS, failures.

One pass over the replayed rows feeds all three; the pass is that of the comparison itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from replay.compare import balancing, failures, tls, upstreams
from replay.compare.balancing import UPSTREAM_LIMIT, BalancingTally
from replay.compare.failures import Failures, FailureTally
from replay.compare.names import Names
from replay.compare.tls import Tls, TlsTally
from replay.compare.upstreams import Balancing
from replay.exchange import Answer, Fate

COLUMNS = list(dict.fromkeys(["fate", "upstream", *balancing.COLUMNS, *failures.COLUMNS, *tls.COLUMNS]))


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a report says of the shadow alone."""

    balancing: Balancing
    tls: Tls
    failures: Failures


class BehaviourTally:
    """Feed it batches of COLUMNS, then take the `report`."""

    def __init__(self) -> None:
        self._names = Names(UPSTREAM_LIMIT)
        self._balancing = BalancingTally(self._names)
        self._tls = TlsTally(self._names)
        self._failures = FailureTally(self._names)

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches, counted as they pass."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one batch."""
        rows = batch.select(COLUMNS).filter(pc.equal(batch.column("fate"), Fate.REPLAYED))
        if not rows.num_rows:
            return
        numbers = self._names.codes(rows.column("upstream"))
        for tally in (self._balancing, self._tls, self._failures):
            tally.add(rows, numbers)

    def report(self, own_addresses: Collection[str] | None = None) -> Behaviour:
        """What was counted; for `own_addresses` see `BalancingTally.report`."""
        found = self._failures.report()
        return Behaviour(self._balancing.report(own_addresses), self._tls.report(found.of(Answer.TLS)), found)


def as_dict(behaviour: Behaviour) -> dict[str, Any]:
    """For JSON, beside the rest of the report."""
    return {
        "balancing": upstreams.as_dict(behaviour.balancing),
        "tls": tls.as_dict(behaviour.tls),
        **failures.as_dict(behaviour.failures),
    }
