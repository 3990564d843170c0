"""How many requests production has had, estimated from those that were seen: for its CPU a request."""

from __future__ import annotations

from agent.capture.layout import PPM
from agent.config import Config
from agent.select.client_address import CONNECTION
from agent.select.sampling import By
from replay.account import Account


class ProductionRequests:
    """Counts on from look to look; what cannot be known of one is a gap, not a guess."""

    def __init__(self) -> None:
        self._seen = 0
        self._estimated = 0.0
        self._was_paused = False

    def count(self, accounts: dict[str, Account], config: Config, paused: bool) -> float | None:
        """Of all time; None where the kernel's choice is not a plain share of the traffic, or mirroring has `paused`
        since the last look."""
        seen = max((account.seen for account in accounts.values()), default=0)
        came, self._seen = seen - self._seen, seen
        gap, self._was_paused = paused or self._was_paused, paused
        (shadow, *others) = config.shadows.values()
        by = shadow.sampling[0]
        in_kernel = by is By.CONNECTION or (by is By.CLIENT and config.client.source == CONNECTION)
        if others or gap or not in_kernel or shadow.criteria != "random" or not shadow.enabled or not shadow.share_ppm:
            return None
        self._estimated += came * PPM / shadow.share_ppm
        return self._estimated
