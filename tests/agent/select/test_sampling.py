"""The sampling hash: both directions alike, shares right, smaller ones within larger ones, workers balanced."""

from __future__ import annotations

import math
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.layout import PPM
from agent.capture.segment import reverse
from agent.select.sampling import client_hash, flow_hash, mix, sampled, worker_of

SERVER = bytes((192, 0, 2, 80))
seeds = st.integers(0, (1 << 64) - 1)
keys = st.binary(min_size=12, max_size=12) | st.binary(min_size=36, max_size=36)


def key4(client: bytes, port: int) -> bytes:
    return client + SERVER + struct.pack("!HH", port, 80)


def hashes(seed: int = 1, count: int = 20_000) -> list[int]:
    """Of one client's connections, as its ports go up: nothing is more alike."""
    return [flow_hash(key4(bytes((10, 0, 0, n >> 14)), 40_000 + (n & 0x3FFF)), seed) for n in range(count)]


def test_mix_is_the_finalizer_of_splitmix64() -> None:
    """Reference values: splitmix64 with state 0 mixes multiples of the golden gamma."""
    gamma = 0x9E3779B97F4A7C15
    assert [mix(gamma * n) for n in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(keys, seeds)
def test_both_directions_hash_alike(key: bytes, seed: int) -> None:
    assert flow_hash(key, seed) == flow_hash(reverse(key), seed) < 1 << 64


@given(st.integers(0, (1 << 64) - 1), st.integers(0, PPM), st.integers(0, PPM))
def test_a_smaller_share_is_within_a_larger_one(hash64: int, one: int, other: int) -> None:
    if sampled(hash64, min(one, other)):
        assert sampled(hash64, max(one, other))
    assert sampled(hash64, PPM)
    assert not sampled(hash64, 0)


@pytest.mark.parametrize("ppm", [1_000, 10_000, 100_000, 500_000, 900_000])
@pytest.mark.parametrize("seed", [0, 1, (1 << 64) - 1])
def test_shares_are_what_they_say(ppm: int, seed: int) -> None:
    found = hashes(seed)
    expected = len(found) * ppm / PPM
    spread = math.sqrt(expected * (1 - ppm / PPM))
    assert abs(sum(sampled(h, ppm) for h in found) - expected) < 4 * spread


def test_seeds_choose_independently() -> None:
    one, other = hashes(1), hashes(2)
    both = sum(sampled(a, 100_000) and sampled(b, 100_000) for a, b in zip(one, other, strict=True))
    assert abs(both - 200) < 4 * math.sqrt(200)


def test_the_resolution_is_a_millionth() -> None:
    edges = [(ppm << 32) // PPM for ppm in (1, 2, 500_000, 999_999)]
    for ppm, edge in zip((1, 2, 500_000, 999_999), edges, strict=True):
        assert sampled((edge - 1) << 32, ppm)
        assert not sampled((edge + 1) << 32, ppm)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
def test_workers_get_equal_shares_also_of_a_small_sample(workers: int) -> None:
    taken = [h for h in hashes(count=50_000) if sampled(h, 200_000)]
    counts = [0] * workers
    for h in taken:
        counts[worker_of(h, workers)] += 1
    expected = len(taken) / workers
    assert all(abs(count - expected) < 4.5 * math.sqrt(expected) for count in counts)


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 64))
def test_there_is_a_worker_for_every_hash(hash64: int, workers: int) -> None:
    assert 0 <= worker_of(hash64, workers) < workers


def test_a_clients_hash_does_not_depend_on_its_port() -> None:
    addresses = [f"10.0.{n >> 8}.{n & 255}" for n in range(20_000)]
    share = sum(sampled(client_hash(address, 5), 100_000) for address in addresses)
    assert abs(share - 2000) < 4 * math.sqrt(1800)
    six = [f"2001:db8::{n:x}" for n in range(20_000)]
    assert abs(sum(sampled(client_hash(address, 5), 100_000) for address in six) - 2000) < 4 * math.sqrt(1800)
    assert client_hash("2001:db8::1", 5) == client_hash("2001:0db8:0:0::1", 5) != client_hash("2001:db8::1", 6)


def test_ipv6_connections_are_spread_too() -> None:
    prefix = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    found = [flow_hash(prefix + struct.pack("!HH", port, 80), 9) for port in range(30_000, 50_000)]
    assert abs(sum(sampled(h, 100_000) for h in found) - 2000) < 4 * math.sqrt(1800)
    assert len({h & 0xFFFFFFFF for h in found}) > 19_900
