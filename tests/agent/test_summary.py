"""What `run` prints at its end: an account for each shadow, what the kernel counted, and every kind of loss."""

from __future__ import annotations

from collections import Counter

from agent.capture.layout import Counters
from agent.summary import account_lines
from replay.account import Account

NOTHING = Counters(*[0] * len(Counters._fields))


def account(seen: int = 3) -> Account:
    return Account(seen, seen - 1, skipped=Counter({"method": 1}), answers=Counter({"ok": seen - 1}))


def test_one_shadow_needs_no_name() -> None:
    counters = NOTHING._replace(copied=12, pure_acks=7, copied_bytes=3400)
    assert account_lines({"candidate": account()}, counters) == [
        "",
        "account of requests",
        *account().lines(),
        "",
        "segments on the watched ports, in the kernel",
        "  pure_acks                 7",
        "  copied                   12",
        "  copied_bytes           3400",
    ]


def test_each_of_several_shadows_has_its_account_in_their_order() -> None:
    lines = account_lines({"left": account(3), "empty": Account(), "right": account(5)}, NOTHING)
    heads = [line for line in lines if line.startswith("account")]
    assert heads == [f"account of requests for shadow {name}" for name in ("left", "empty", "right")]
    for name, one in (("left", account(3)), ("empty", Account()), ("right", account(5))):
        at = lines.index(f"account of requests for shadow {name}")
        assert lines[at + 1 : at + 1 + len(one.lines())] == one.lines(), name
        assert lines[at - 1] == "", "an empty line before each"
    assert lines.count("segments on the watched ports, in the kernel") == 1


def test_of_the_kernel_only_what_happened_is_listed_but_copied_always() -> None:
    lines = account_lines({"a": Account()}, NOTHING)
    assert lines[-2:] == ["segments on the watched ports, in the kernel", "  copied                    0"]
    everything = Counters(*range(1, len(Counters._fields) + 1))
    lines = account_lines({"a": Account()}, everything)
    at = lines.index("segments on the watched ports, in the kernel") + 1
    listed = [line.split() for line in lines[at : at + len(Counters._fields)]]
    assert listed == [[name, str(value)] for name, value in everything._asdict().items()]


def test_what_the_kernel_lost_is_said_with_what_to_do() -> None:
    lost = NOTHING._replace(copied=9, ring_full=4, over_budget=3, lost_to_server=2, lost_bytes=500)
    last = account_lines({"a": account()}, lost)[-1]
    assert last.startswith("  7 segments were lost before the account could see them: 4 found the ring full")
    assert "capture.ring_kib" in last and "3 were over the budget" in last
    assert last.endswith("2 of them carried requests")
    for name in ("ring_full", "over_budget"):
        assert "  1 segments were lost" in account_lines({"a": account()}, NOTHING._replace(**{name: 1}))[-1]


def test_what_was_left_on_purpose_is_no_loss() -> None:
    counters = NOTHING._replace(unsampled=9, unmatched=9, pure_acks=9, own=9, lease_over=9, cut=9, fragments=9)
    assert not any("lost" in line for line in account_lines({"a": account()}, counters))


def test_rows_that_could_not_be_recorded_come_last() -> None:
    full = NOTHING._replace(ring_full=1)
    for counters in (NOTHING, full):
        without = account_lines({"a": account()}, counters)
        assert account_lines({"a": account()}, counters, rows_lost=0) == without
        said = ["", "5 rows could not be recorded: `compare` will not know of them"]
        assert account_lines({"a": account()}, counters, rows_lost=5) == [*without, *said]
