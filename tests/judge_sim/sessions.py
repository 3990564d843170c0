"""Whole sessions through the judge itself, pair by pair: `python -m tests.judge_sim.sessions [--sessions N]`.

For what arrays of runs cannot show: blocks whose length follows bursts, and the gate of data quality. Table on stderr,
JSON on stdout; exit status 1 when a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from dataclasses import asdict, dataclass, replace

import numpy as np

from replay.judge.blocks import Lost, Pair
from replay.judge.judge import Judge
from replay.judge.plan import Settings
from replay.judge.verdict import Word
from tests.judge_sim.figures import Share, share
from tests.judge_sim.run import SEED
from tests.judge_sim.scenarios import BLOCKS, PAIRS, Sample, Scenario, Traffic

SESSIONS = 200
S = 1_000_000_000
T0 = 1_700_000_000 * S


@dataclass(frozen=True, slots=True)
class Session:
    """Traffic, what of it is lost, and what may be said of it in the end (None: anything but FAIL)."""

    scenario: Scenario
    word: Word | None = None
    lost_slow: float = 0.0  # share of the slowest requests of production that are lost
    fixed: bool = False  # blocks of a second, whatever happens: to see what following bursts is worth
    claimed: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """Of many sessions of one kind."""

    name: str
    warned: Share
    words: dict[str, int]
    longest_block_s: float  # the median over sessions
    broken: list[str]


LONG_STALLS = Scenario("alike, stalls of 2 s", stall_every=5_000, stall=(500, 500), blocks=4 * BLOCKS)
SLOWER = Scenario("+10 %, stalls of 2 s", effect=math.log(1.10), stall_every=5_000, stall=(500, 500))
KINDS = (
    Session(Scenario("alike"), Word.PASS),
    Session(LONG_STALLS),
    Session(replace(LONG_STALLS, name="alike, stalls of 2 s, blocks of 1 s"), fixed=True, claimed=False),
    Session(Scenario("+20 %", effect=math.log(1.2)), Word.FAIL),
    Session(replace(SLOWER, blocks=2 * BLOCKS), Word.FAIL),
    Session(Scenario("alike, slow ones lost"), Word.INCONCLUSIVE, lost_slow=0.008),
    Session(Scenario("+20 %, 3 % lost", effect=math.log(1.2)), Word.INCONCLUSIVE, lost_slow=0.03),
)


def pairs_of(sample: Sample, block: int) -> list[Pair]:
    """The first run's pairs of one block."""
    return [
        Pair(
            T0 + block * S + at * S // PAIRS,
            "GET /a",
            int(sample.production[0, at]),
            int(sample.shadow[0, at]),
            bool(sample.production_error[0, at]),
            bool(sample.shadow_error[0, at]),
            bool(sample.different[0, at]),
        )
        for at in range(sample.production.shape[1])
    ]


def play(session: Session, seed: int) -> tuple[bool, Word, float]:
    """Whether it was ever failed, the last verdict, and the longest block in seconds."""
    settings = Settings(routes_weight=0.0)
    if session.fixed:
        settings = replace(settings, longest_block_ns=settings.block_ns)
    random = np.random.default_rng([seed, zlib.crc32(session.scenario.name.encode())])
    traffic, judge, longest = Traffic(session.scenario, 1, random), Judge(settings), 0
    for block in range(session.scenario.blocks):
        pairs = pairs_of(traffic.next(), block)
        worst = np.quantile([pair.production_ns for pair in pairs], 1 - session.lost_slow)
        for pair in pairs:
            if session.lost_slow and pair.production_ns > worst:
                judge.lose(Lost(pair.at_ns, pair.route, "dropped", pair.production_ns))
            else:
                judge.add(pair)
        longest = max([longest, *(each.end_ns - each.start_ns for each in judge.advance(T0 + block * S))])
    verdict = judge.verdict()
    return verdict.failed_at_ns is not None, verdict.word, longest / S


def judge_kind(session: Session, count: int, seed: int) -> Result:
    """Play so many sessions."""
    played = [play(session, seed + number) for number in range(count)]
    warned = share(np.array([failed for failed, _, _ in played]))
    words = {word.value: sum(got is word for _, got, _ in played) for word in Word}
    broken = []
    if session.word is not None and words[session.word.value] < 0.9 * count:
        broken.append(f"{session.word.value} in {words[session.word.value]} of {count}")
    if session.word is not Word.FAIL and session.claimed and warned.least > Settings().warn_alpha:
        broken.append(f"false alarms in {warned.count} of {count}")
    longest = float(np.median([each for _, _, each in played]))
    return Result(session.scenario.name, warned, words, longest, broken)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    results = []
    for session in KINDS:
        began = time.monotonic()
        result = judge_kind(session, options.sessions, options.seed)
        results.append(result)
        print(
            f"{result.name}: failed {result.warned.count} of {result.warned.runs} (<{result.warned.most:.3f}), "
            f"in the end {result.words}, longest block {result.longest_block_s:.1f} s "
            f"({time.monotonic() - began:.0f} s)" + "".join(f"\n    BROKEN {each}" for each in result.broken),
            file=sys.stderr,
            flush=True,
        )
    json.dump({"seed": options.seed, "results": [asdict(each) for each in results]}, sys.stdout, indent=1)
    print()
    return int(any(each.broken for each in results))


if __name__ == "__main__":
    sys.exit(main())
