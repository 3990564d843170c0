"""What is packed is unpacked as it was; of anything else nothing comes but ValueError. Workers load no numpy for it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitor import pairs
from agent.monitor.pairs import RECORD, LostRecord, PairRecord, pack_datagram, pack_text, unpack

AT_NS = 1_750_000_000_000_000_000
FLAGS = {None: 0, False: 1, True: 3}
MAYBE = st.sampled_from([None, False, True])
TIME = st.integers(0, 1 << 62)


def a_pair(flags: int = 0, text: bytes = b"GET /items/4711?page=2", **changed: int) -> bytes:
    fields = {"kind": pairs.PAIR, "place": 1, "status": 200, "shadow_status": 503, "word": 0, "connection": 7}
    fields |= {"position": 2, "at": AT_NS, "production": 10, "shadow": 20, "response": 30, "lag": -4, **changed}
    return RECORD.pack(flags, *fields.values(), len(text)) + text


def datagram(*records: bytes) -> bytes:
    return pack_datagram(3, 5, 7, bytearray(b"".join(records)))


def test_a_pair_and_a_lost_request_in_one_datagram() -> None:
    number = pairs.LOST_NUMBERS["incomplete", "gap"]
    found = unpack(datagram(a_pair(), a_pair(text=b"", kind=pairs.LOST, word=number)))
    route = "GET /items/{id}"
    pair = PairRecord(1, AT_NS, route, 10, 20, 30, -4, False, False, None, None, False, 200, 503, "ok", 7, 2,
                      "/items/4711?page=2")  # fmt: skip
    lost = LostRecord(1, AT_NS, "other", "incomplete", "gap", 10, 200, 7, 2, "")
    assert found == (3, 5, 7, [pair], [lost])


@given(st.booleans(), st.booleans(), st.booleans(), MAYBE, MAYBE)
def test_flags(production: bool, shadow: bool, unreachable: bool, different: bool | None, noisy: bool | None) -> None:
    flags = production * pairs.PRODUCTION_ERROR | shadow * pairs.SHADOW_ERROR | unreachable * pairs.UNREACHABLE
    flags |= FLAGS[different] * pairs.COMPARED | FLAGS[noisy] * pairs.ECHOED
    (pair,) = unpack(datagram(a_pair(flags))).pairs
    assert (pair.production_error, pair.shadow_error, pair.unreachable) == (production, shadow, unreachable)
    assert (pair.different, pair.noisy) == (different, noisy)


@given(TIME, TIME, TIME, st.integers(-(1 << 62), 1 << 62), st.integers(0, 999), st.integers(0, len(pairs.ANSWERS) - 1))
def test_numbers(production: int, shadow: int, response: int, lag: int, status: int, word: int) -> None:
    (pair,) = unpack(
        datagram(a_pair(production=production, shadow=shadow, response=response, lag=lag, status=status, word=word))
    ).pairs
    assert (pair.production_ns, pair.shadow_ns, pair.response_ns, pair.lag_ns) == (production, shadow, response, lag)
    assert (pair.status, pair.answer) == (status, pairs.ANSWERS[word])


@pytest.mark.parametrize(
    ("method", "target", "route", "shown"),
    [
        ("GET", "/", "GET /", "/"),
        ("GET", "/a?b=c d", "GET /a", "/a?b=c d"),
        ("HEAD", "/caf\xe9/\x1b[2J", "HEAD /caf\xe9/?[2J", "/caf\xe9/?[2J"),
        ("GET", "/" + "a" * 300, "GET /" + "a" * 119 + "...", "/" + "a" * 119),
        ("M" * 300, "/", "other", ""),
    ],
)
def test_routes_and_targets(method: str, target: str, route: str, shown: str) -> None:
    (pair,) = unpack(datagram(a_pair(text=pack_text(method, target)))).pairs
    assert (pair.route, pair.target) == (route, shown)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"[" * 199 + b"\n",
        b'{"worker": -1, "unsent": 0}\n',
        b'{"worker": true, "unsent": 0}\n',
        b'{"worker": 1.5, "unsent": 0}\n',
        b'{"worker": 1, "unsent": 1e999}\n',
        b'{"worker": 1, "unsent": 99999999999999999999999}\n',
        b'{"worker": "\xff", "unsent": 0}\n',
        b" " * 300 + b'{"worker": 1, "unsent": 0}\n',
        datagram(a_pair())[:-1],
        datagram(a_pair(), b"x"),
        datagram(a_pair(kind=2)),
        datagram(a_pair(flags=128)),
        datagram(a_pair(word=len(pairs.ANSWERS))),
        datagram(a_pair(kind=pairs.LOST, word=255)),
        datagram(a_pair(shadow=-1)),
        datagram(a_pair(kind=pairs.LOST, production=-1)),
        datagram(*[a_pair()] * 800),
    ],
)
def test_damaged_datagrams(damaged: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(damaged)


@given(st.binary(max_size=300), st.booleans(), st.integers(0, 1 << 32))
def test_anything_else_is_a_value_error(noise: bytes, with_header: bool, seed: int) -> None:
    mixed = bytearray(datagram(a_pair(), a_pair()))
    rng = random.Random(seed)
    for _ in range(3):
        mixed[rng.randrange(len(mixed))] = rng.randrange(256)
    for data in (datagram(noise) if with_header else noise, bytes(mixed)):
        try:
            batch = unpack(data)
        except ValueError:
            continue
        assert all(min(pair.production_ns, pair.shadow_ns, pair.at_ns) >= 0 for pair in batch.pairs)


def test_a_worker_needs_no_numpy_for_it() -> None:
    code = (
        "import sys, agent.monitor.feed, agent.monitor.pulse, agent.echo, agent.monitor.pairs, replay.sameness;"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
