"""(h) What choosing costs: the kernel filter by kind, how large tables load, what a filter saves the agent and
production, and how soon a shadow that is turned off gets nothing any more."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agent.capture import kernel
from agent.capture.tap import Tap
from agent.select.geo import Prefix
from agent.select.language import parse
from agent.select.sampling import EVERYTHING
from agent.select.superset import Wanted, make_selection
from tests.bench import kernel_cost
from tests.bench.cpu import Run, one
from tests.bench.figures import Figure, Plan, Target, medians, progress
from tests.bench.measured_agent import MeasuredAgent, Setup
from tests.bpf.selections import arm, select, wanted
from vagrant.lab import Lab, Load, Options

RUNS = 3000
TARGET_UNSAMPLED_NS, TARGET_CPU_SHARE, TARGET_OFF_MS = 100, 0.1, 1
PREFIXES = (10_000, 300_000)
HEADS = (200, 500, 1400)
MARKED_EVERY = 100
CONNECTIONS = 32
IN_KERNEL = "header:X-Shadow-Test"
IN_USER_SPACE = "header:X-Shadow-Test or not header:Host"  # the same, but `not` keeps the kernel from deciding


def measure(plan: Plan) -> list[Figure]:
    """All of it."""
    return [*kernel_costs(plan), *loading(plan), *saturated(plan), *turning_off(plan)]


def head(size: int) -> bytes:
    """A browser's request of so many bytes, which no test wants."""
    start = (
        b"GET /products/1234/reviews?page=2 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux"
        b" x86_64) Firefox/128.0\r\nAccept: text/html,*/*;q=0.8\r\nCookie: session="
    )
    return (start + b"5f2d9a7e3c1b4f60" * 100)[: size - 4] + b"\r\n\r\n"


def packet(payload: bytes, seq: int) -> bytes:
    """A segment of the client, at `seq`."""
    data = bytearray(kernel_cost.packet(payload))
    struct.pack_into(">I", data, 14 + 20 + 4, seq)
    return bytes(data)


def geography(count: int) -> Callable[[Iterable[str]], Iterator[Prefix]]:
    """So many networks of a country, as in a real database of all sizes; the benchmark's client is in none."""
    rng = random.Random(count)
    networks = sorted(rng.sample(range(0x0B0000 << 3, 0xDF0000 << 3), count))

    def prefixes(codes: Iterable[str]) -> Iterator[Prefix]:
        return ((4, network << 5, 27, frozenset({"US"})) for network in networks)

    return prefixes


def kernel_costs(plan: Plan) -> list[Figure]:
    """Nanoseconds a segment, one run a call so that each is a new request; the kinds take turns."""
    progress("(h) kernel cost of filters")
    costs: dict[str, list[float]] = {}
    with kernel_cost.loaded_tap() as (tap, ring):
        for _ in range(max(plan.repeats, 3)):
            for name, run in _cases(tap):
                while ring.read():
                    pass
                costs.setdefault(name, []).append(run())
    harness = statistics.median(costs["not IP: what the harness itself costs"])
    figures = []
    for name, values in costs.items():
        target = Target("at most", TARGET_UNSAMPLED_NS) if name == "percentage" else None
        own = [value - harness for value in values]
        figures.append(Figure(f"(h) kernel, {name}, above the harness", "ns/segment", own, target))
    return figures


def _cases(tap: Tap) -> Iterator[tuple[str, Callable[[], float]]]:
    arm(tap, workers=1, lease_ns=kernel_cost.LEASE_NS)
    arp = bytes.fromhex("020000000002020000000001") + b"\x08\x06" + bytes(46)
    yield "not IP: what the harness itself costs", lambda: _mean_ns(tap, lambda n: arp)
    yield "ports only: another port", lambda: _mean_ns(tap, lambda n: kernel_cost.packet(b"x" * 100, port=81))
    select(tap, wanted(ppm=10_000))
    yield "percentage", lambda: _mean_ns(tap, lambda n: kernel_cost.packet(b"x" * 100))
    for count in PREFIXES:
        select(tap, wanted("geo:US"), geo=geography(count))
        yield f"{count} prefixes", lambda: _mean_ns(tap, lambda n: kernel_cost.packet(b"x" * 100))
    select(tap, wanted(IN_KERNEL))
    for size in HEADS:
        yield f"unwanted head of {size} bytes", lambda size=size: _heads_ns(tap, head(size))  # type: ignore[misc]


def _mean_ns(tap: Tap, packet_of: Callable[[int], bytes]) -> float:
    return statistics.median(kernel.test_run(tap.programs[0], packet_of(n))[1] for n in range(RUNS))


def _heads_ns(tap: Tap, request: bytes) -> float:
    """A new connection, then one request after the other, each answered."""
    syn = bytearray(kernel_cost.packet(b"", flags=0x02))
    struct.pack_into(">I", syn, 14 + 20 + 4, 0)
    kernel.test_run(tap.programs[0], bytes(syn))
    answer = _answer()
    before, times = tap.counters().unmatched, []
    for n in range(RUNS):
        times.append(kernel.test_run(tap.programs[0], packet(request, 1 + n * len(request)))[1])
        kernel.test_run(tap.programs[1], answer)
    if tap.counters().unmatched - before != 2 * RUNS:
        raise RuntimeError("some of the unwanted requests were not left in the kernel")
    return statistics.median(times)


def _answer() -> bytes:
    """A segment of the server, in which the client has acknowledged everything."""
    data = bytearray(kernel_cost.packet(b"HTTP/1.1 200 OK\r\n\r\n", port=80))
    ends = bytes(data[26:34])
    data[26:34] = ends[4:] + ends[:4]
    data[34:38] = bytes(data[36:38]) + bytes(data[34:36])
    struct.pack_into(">I", data, 38, 59)  # ends at 78, which is what the client's segments acknowledge
    return bytes(data)


def loading(plan: Plan) -> list[Figure]:
    """Making the tables of a country and putting them into the kernel, and the kernel's memory."""
    figures = []
    with kernel_cost.loaded_tap() as (tap, _):
        for count in PREFIXES:
            progress(f"(h) loading {count} prefixes")
            made, put, memory = [], [], []
            for _ in range(max(plan.repeats, 2)):
                select(tap)  # both sets are emptied by the next
                start = time.monotonic()
                selection = make_selection([Wanted(parse("geo:US"), EVERYTHING)], geography(count))
                made.append(time.monotonic() - start)
                start = time.monotonic()
                tap.tables.select(selection)
                put.append(time.monotonic() - start)
                memory.append(trie_bytes(tap) / (1 << 20))
                select(tap)
                select(tap)
            figures.append(Figure(f"(h) {count} prefixes: tables made in", "s", made))
            figures.append(Figure(f"(h) {count} prefixes: written into the kernel in", "s", put))
            figures.append(Figure(f"(h) {count} prefixes: kernel memory", "MiB", memory))
    return figures


def trie_bytes(tap: Tap) -> int:
    """Memory of all tries, as the kernel says (6.4)."""
    texts = (Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in tap.tables.trie_fds)
    return sum(int(found[1]) for text in texts if (found := re.search(r"memlock:\s*(\d+)", text)))


def saturated(plan: Plan) -> list[Figure]:
    """One request in a hundred is wanted: the agent's CPU time beside what production answers, and production's
    throughput, with the filter in the kernel, in user space only, and without one."""
    modes = {"in the kernel": IN_KERNEL, "in user space": IN_USER_SPACE, "none": "random"}
    kinds = {"": True, ", capture alone": False}
    runs: dict[str, list[Run]] = {}
    off: list[float] = []
    with Lab(Options(access_logs=False)) as lab:

        def load() -> Load:
            return lab.saturate_marked(plan.seconds(6), every=MARKED_EVERY, connections=CONNECTIONS)

        for repeat in range(plan.repeats):
            progress(f"(h) a hundredth wanted, at saturation, run {repeat + 1} of {plan.repeats}")
            off.append(load().per_second)
            for kind, replay in kinds.items():
                for name, criteria in modes.items():
                    setup = Setup(replay=replay, recording=False, criteria=criteria)
                    runs.setdefault(name + kind, []).append(one(lab, setup, load))
    share = {name: [run.details["cpu_share"] for run in some] for name, some in runs.items()}
    figures = []
    for kind in kinds:
        ratio = [a / b for a, b in zip(share["in the kernel" + kind], share["none" + kind], strict=True)]
        target = Target("at most", TARGET_CPU_SHARE)
        figures.append(Figure(f"(h) agent's CPU, filter in the kernel{kind}", "of no filter", ratio, target))
    for name, some in runs.items():
        extra = {"medians": medians([run.details for run in some])}
        throughput = [run.details["production_per_s"] / alone for run, alone in zip(some, off, strict=True)]
        figures.append(Figure(f"(h) agent's CPU, filter {name}", "of a CPU", share[name], None, extra))
        figures.append(Figure(f"(h) production's throughput, filter {name}", "of off", throughput))
    return figures


def turning_off(plan: Plan) -> list[Figure]:
    """Milliseconds from the moment the command is sent to the agent to the last request that was copied. One client
    asks again and again, so the account's `seen` tells which of its requests that was."""
    times = []
    with Lab(Options(access_logs=False)) as lab:
        for repeat in range(max(plan.repeats, 7)):
            progress(f"(h) turning off, run {repeat + 1}")
            asked_ns: list[int] = []
            over = threading.Event()
            client = threading.Thread(target=ask_on, args=(lab, asked_ns, over))
            with MeasuredAgent(lab, Setup(replay=False, recording=False)) as agent:
                client.start()
                time.sleep(0.5)
                sent_ns = time.time_ns()
                turn_off(agent.control)
                time.sleep(0.1)
                over.set()
                client.join()
                seen = agent.end().fates["seen"]
            times.append((asked_ns[seen - 1] - sent_ns) / 1e6)
    return [Figure("(h) from `disable` to the last copied request", "ms", times, Target("at most", TARGET_OFF_MS))]


def ask_on(lab: Lab, asked_ns: list[int], over: threading.Event) -> None:
    """One request after the other on one connection, and when each was sent."""
    with lab.inside("client"), socket.create_connection((lab.address("lb"), 80)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not over.is_set():
            asked_ns.append(time.time_ns())
            connection.sendall(b"HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n")
            while not connection.recv(65536).endswith(b"\r\n\r\n"):
                pass


def turn_off(path: Path) -> None:
    """PATCH the one shadow, without the start of another process in the figure."""
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.sock.connect(str(path))
        headers = {"Content-Type": "application/json"}
        connection.request("PATCH", "/v1/shadows/candidate", b'{"enabled": false}', headers)
        if connection.getresponse().status != 200:
            raise RuntimeError("the agent did not take the command")
