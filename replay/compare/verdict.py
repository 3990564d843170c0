"""Puts a comparison into one careful line, and says what stands against trusting it.

This is a description of one recording, not a test that may be looked at again and again: that one comes with the live
judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from replay.compare.behaviour import Behaviour
from replay.compare.failures import Change
from replay.compare.report import Counts, RouteReport, Seen
from replay.compare.statistics import Ratio
from replay.compare.tally import DIFFERENT

SPEED_FLOOR = 0.02  # a difference in speed of less than this is not spoken of
FEW_ANSWERS = 100  # below this counts are told instead of shares
QUALITY_SHARE = 0.01  # of the requests that the agent could not use; above it the rest may be a biased part
WRONG_SHARE = 0.01  # of the replayed requests that failed or got an error; above it they come before the speed
SPEED_LIMIT = 1.5  # sent so many times faster than captured, latency says little
NAMED_CHANGES = 3
NAMED_REASONS = 2  # of each kind of failure


def verdict(total: RouteReport, behaviour: Behaviour) -> str:
    """One line: speed, differences, failures. The speed comes last when much is wrong: errors may be quick."""
    counts = total.counts
    replayed = counts.account.replayed
    if replayed == 0:
        dropped = reasons(counts.account.dropped)
        return "nothing was replayed, so there is nothing to compare" + (f" (dropped: {dropped})" if dropped else "")
    parts = [difference_words(counts) + _change_words(behaviour), *_own_words(behaviour)]
    if failed := counts.failed:
        words = ", ".join(_failure_words(behaviour, answer, n) for answer, n in failed.most_common())
        parts.append(f"{share(failed.total(), replayed)} of the replayed requests got no whole answer: {words}")
    wrong = failed.total() + sum(change.requests for change in _worse(behaviour))
    at = len(parts) if wrong / replayed > WRONG_SHARE else 0
    parts.insert(at, speed_words(total.total.ratio))
    return "; ".join(parts)


def _worse(behaviour: Behaviour) -> list[Change]:
    return [change for change in behaviour.failures.changes if change.worse]


def _change_words(behaviour: Behaviour) -> str:
    """ ", among them 200 -> 503: 120 by the balancer itself, 200 -> 404: 7"."""
    worse = _worse(behaviour)
    own = behaviour.balancing.itself
    words = [
        f"{each.production} -> {each.shadow}: {each.requests}"
        + (" by the balancer itself" if own.issuperset(each.upstreams) else "")
        for each in worse[:NAMED_CHANGES]
    ]
    more = sum(each.requests for each in worse[NAMED_CHANGES:])
    if more:
        words.append(f"other errors: {more}")
    return f", among them {', '.join(words)}" if words else ""


def _own_words(behaviour: Behaviour) -> list[str]:
    """The errors of a balancer program itself of which the reason is known."""
    return [
        f"the balancer itself answered {own.status} to {own.requests} requests ({own.why})"
        for own in behaviour.balancing.own
        if own.worse and own.why
    ]


def _failure_words(behaviour: Behaviour, answer: str, requests: int) -> str:
    """ "tls 300 (certificate verify failed: certificate has expired)"."""
    found = {reason: n for reason, n in behaviour.failures.of(answer).items() if reason}
    told = list(found)[:NAMED_REASONS]
    named = f"{answer.replace('_', ' ')} {requests}"
    if not told:
        return named
    counted = told if found[told[0]] == requests else [f"{reason} {found[reason]}" for reason in told]
    more = len(found) - len(told)
    return f"{named} ({', '.join(counted)}{f' and {more} more' if more else ''})"


def speed_words(ratio: Ratio) -> str:
    """What the paired ratio allows to say of the speed."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return f"too little data to compare the speed ({ratio.why})"
    numbers = f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.low > 1 + SPEED_FLOOR:
        return f"shadow is slower: {numbers}"
    if ratio.high < 1 - SPEED_FLOOR:
        return f"shadow is faster: {numbers}"
    return f"no clear difference in speed: {numbers}"


def difference_words(counts: Counts) -> str:
    """How many of the answers that could be compared differ."""
    if counts.compared == 0:
        return "no answers to compare"
    if counts.compared < FEW_ANSWERS:
        return f"{counts.differing} of {counts.compared} responses differ (few)"
    return f"{share(counts.differing, counts.compared)} of {counts.compared} responses differ"


def cautions(seen: Seen, total: RouteReport, behaviour: Behaviour) -> tuple[str, ...]:
    """What was not seen, and what else stands against the numbers; one sentence each."""
    said = [*_not_seen(seen, total.counts), *_not_recorded(seen, total.counts)]
    bodies = total.counts.bodies
    if bodies[DIFFERENT]:
        said.append("bodies are compared byte for byte: times and ids in them count as differences")
    if seen.speed > SPEED_LIMIT:
        said.append(
            f"requests were sent {seen.speed:.1f} times faster than they were captured: "
            "latencies are those of another load"
        )
    if seen.every > 1:
        said.append(f"times are from one pair in {seen.every}; counts are complete")
    return (*said, *_of_the_balancer(behaviour, total.counts))


def _of_the_balancer(behaviour: Behaviour, counts: Counts) -> list[str]:
    said = []
    worse = sum(change.requests for change in _worse(behaviour))
    if worse > WRONG_SHARE * counts.compared:
        said.append(f"times include {worse} errors where production had none: errors may be quick")
    balancing = behaviour.balancing
    if balancing.every > 1:
        said.append(f"times of upstreams are from about one answer in {balancing.every}; counts are complete")
    said += [
        f"{name} is an address of this host: if a balancer program listens there, its errors may be its own, "
        "as when all health checks fail"
        for name in balancing.perhaps_own
    ]
    return said


def _not_seen(seen: Seen, counts: Counts) -> list[str]:
    """What the agent lost, or had and could not use."""
    said = []
    lost = {name: n for name, n in seen.lost.items() if n}
    if lost:
        said.append(f"lost before requests could be counted: {reasons(lost)}")
    account = counts.account
    unused = account.incomplete + account.dropped
    if unused.total():
        part = share(unused.total(), account.seen)
        biased = ": above 1 %, so the rest may be a biased part" if _above(unused.total(), account.seen) else ""
        said.append(f"{part} of {account.seen} requests seen could not be used ({reasons(unused)}){biased}")
    if seen.account.in_flight > 0:
        said.append(f"{seen.account.in_flight} requests had no fate yet when the account was last written")
    return said


def _not_recorded(seen: Seen, counts: Counts) -> list[str]:
    """Rows that should be there and are not."""
    said = []
    ended = seen.account.seen - seen.account.in_flight
    missing = ended - sum(seen.not_meant.values()) - counts.account.seen
    if missing > 0:
        known = {name: seen.recording.get(name, 0) for name in ("rows_lost", "files_deleted")}
        why = reasons({name.replace("_", " "): n for name, n in known.items() if n}) or "no reason known"
        said.append(f"{missing} of {ended} requests in the account have no row ({why})")
    if seen.workers_not_ended:
        said.append(
            f"{seen.workers_not_ended} of {seen.workers} workers have not ended in order: they run still, or were "
            "killed and up to a second of rows is missing"
        )
    if seen.torn_bytes:
        said.append(f"{seen.torn_bytes} bytes of unfinished batches were left out")
    if seen.unreadable:
        said.append(f"{len(seen.unreadable)} files could not be read: {', '.join(seen.unreadable[:3])}")
    return said


def reasons(counted: Mapping[str, int]) -> str:
    """ "gap 3, cut 1": the most frequent first."""
    return ", ".join(f"{str(name).replace('_', ' ')} {n}" for name, n in Counter(counted).most_common() if n)


def _above(part: int, whole: int) -> bool:
    return whole > 0 and part / whole > QUALITY_SHARE


def share(part: int, whole: int) -> str:
    """A share in per cent that is never rounded to 0 or 100 when it is neither."""
    percent = 100 * part / whole
    if 0 < part < whole and (percent < 0.05 or percent > 99.95):
        return "under 0.1 %" if percent < 1 else "over 99.9 %"
    return f"{percent:.1f} %" if 0 < part < whole else f"{percent:.0f} %"
