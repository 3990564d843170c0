"""What a run says of itself at its end: the account, and what the kernel program counted."""

from __future__ import annotations

from collections.abc import Mapping

from agent.capture.layout import Counters
from replay.account import Account


def account_lines(accounts: Mapping[str, Account], counters: Counters, rows_lost: int = 0) -> list[str]:
    """For the terminal; `rows_lost` are rows that could not be recorded."""
    lost = counters.ring_full + counters.over_budget
    lines = []
    for name, account in accounts.items():
        lines += ["", "account of requests" + (f" for shadow {name}" if len(accounts) > 1 else ""), *account.lines()]
    lines += ["", "segments on the watched ports, in the kernel"]
    lines += [f"  {name:<15}{value:>12}" for name, value in counters._asdict().items() if value or name == "copied"]
    if lost:
        lines.append(
            f"  {lost} segments were lost before the account could see them: {counters.ring_full} found the ring full "
            f"(capture.ring_kib, capture.workers), {counters.over_budget} were over the budget; "
            f"{counters.lost_to_server} of them carried requests"
        )
    if rows_lost:
        lines += ["", f"{rows_lost} rows could not be recorded: `compare` will not know of them"]
    return lines
