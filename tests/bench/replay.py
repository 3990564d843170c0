"""CPU time per replayed request: the replay client alone, against nginx on loopback. Prints JSON.

    python -m tests.bench.replay [--seconds 5] [--repeats 3] [--loop uvloop|asyncio] [--tick-ms 1] [--profile]

For each rate this process, which is only the client, is measured (user and system time from getrusage). Requests are
handed over by a timer every --tick-ms, as a worker does that polls its ring; `pacer_us` is what that timer costs
without a client, and is not taken off. `flat_out` submits as fast as there is room.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from replay.balancer.engine import Embedded
from replay.balancer.upstream import make_pool
from replay.client import Replayer, ReplaySettings
from replay.exchange import Answer, Dropped, Outcome, Request

RATES = (1000, 3500)
TICK_MS = 1.0
FLAT_OUT_QUEUE = 256

NGINX_CONF = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ default_type text/html; return 200 "{body}"; }} }}
}}
"""

HEAD = (
    b"GET /products/1234/reviews?page=2 HTTP/1.1\r\nHost: shop.example\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Cookie: session=5f2d9a7e3c1b4f60; seen=1\r\n\r\n"
)
REQUEST = Request("GET", "/products/1234/reviews?page=2", 11, HEAD, b"", 0, None, 0, 0)


@contextlib.contextmanager
def nginx(body_bytes: int = 600) -> Iterator[int]:
    """An nginx of our own on a free port."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with tempfile.TemporaryDirectory(prefix="shadowtap-nginx-") as name:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        conf = Path(name) / "nginx.conf"
        conf.write_text(NGINX_CONF.format(dir=name, port=port, body="x" * body_bytes))
        process = subprocess.Popen([program, "-c", str(conf), "-e", f"{name}/error.log"], stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            yield port
        finally:
            process.terminate()
            process.wait(10)


def wait_for_port(port: int) -> None:
    """Until something listens there; OSError after five seconds."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise OSError(f"nothing listens on port {port}")


class Tally:
    """Counts results."""

    def __init__(self) -> None:
        self.ok = 0
        self.other = 0
        self.latencies_ns: list[int] = []

    def done(self, token: object, result: Outcome | Dropped) -> None:
        if isinstance(result, Outcome) and result.answer is Answer.OK:
            self.ok += 1
            self.latencies_ns.append(result.t_first_ns - result.t_sent_ns)
        else:
            self.other += 1


async def pace(submit: Callable[[Request, object], object], rate: int, seconds: float, tick_s: float) -> int:
    """Call `submit` at `rate` for `seconds`, from a timer every `tick_s`; return how often."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    start = time.monotonic()
    sent = 0

    def tick() -> None:
        nonlocal sent
        elapsed = time.monotonic() - start
        due = int(min(elapsed, seconds) * rate)
        while sent < due:
            submit(REQUEST, sent)
            sent += 1
        if elapsed >= seconds:
            finished.set_result(None)
        else:
            loop.call_later(tick_s, tick)

    tick()
    await finished
    return sent


async def flood(replayer: Replayer, seconds: float) -> int:
    """Submit as fast as there is room."""
    stop = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < stop:
        for _ in range(32):
            await replayer.room()
            replayer.submit(REQUEST, sent)
            sent += 1
        await asyncio.sleep(0)
    return sent


async def measure(port: int, rate: int | None, seconds: float, tick_s: float) -> dict[str, Any]:
    """One run; rate None is flat out."""
    tally = Tally()
    settings = ReplaySettings(queue_entries=FLAT_OUT_QUEUE) if rate is None else ReplaySettings()
    balancer = Embedded(make_pool([f"127.0.0.1:{port}"]))
    replayer = Replayer(asyncio.get_running_loop(), balancer, settings, tally.done)
    await pace(replayer.submit, 500, 0.3, tick_s)
    await asyncio.sleep(0.05)
    tally.ok = 0
    tally.latencies_ns.clear()
    before, began = cpu_s(), time.monotonic()
    sent = await (flood(replayer, seconds) if rate is None else pace(replayer.submit, rate, seconds, tick_s))
    await replayer.drain(5)
    user, system = (b - a for a, b in zip(before, cpu_s(), strict=True))
    wall = time.monotonic() - began
    return {
        "requests_per_s": round(tally.ok / wall),
        "cpu_us": round((user + system) / sent * 1e6, 1),
        "user_us": round(user / sent * 1e6, 1),
        "system_us": round(system / sent * 1e6, 1),
        "answered_share": tally.ok / sent,
        "ttfb_p50_us": round(statistics.median(tally.latencies_ns) / 1e3, 1),
        "connections": replayer.counters.connects,
    }


async def pacer_us(rate: int, seconds: float, tick_s: float) -> float:
    """What the timer alone costs per request."""
    before = sum(cpu_s())
    sent = await pace(lambda request, token: None, rate, seconds, tick_s)
    return round((sum(cpu_s()) - before) / sent * 1e6, 1)


def cpu_s() -> tuple[float, float]:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in the middle by CPU time, with the spread beside it."""
    ordered = sorted(runs, key=lambda run: float(run["cpu_us"]))
    return {**ordered[len(ordered) // 2], "cpu_us_all": [run["cpu_us"] for run in ordered]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--profile", action="store_true", help="profile one run at 3500 requests/s instead")
    parser.add_argument("--tick-ms", type=float, default=TICK_MS, help="how often requests are handed over")
    options = parser.parse_args()
    tick_s = options.tick_ms / 1000
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    with nginx() as port:
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(run, measure(port, RATES[-1], options.seconds, tick_s))
            profile.print_stats("tottime")
            return
        report: dict[str, Any] = {"loop": options.loop, "tick_ms": options.tick_ms}
        for rate in (*RATES, None):
            runs = [run(measure(port, rate, options.seconds, tick_s)) for _ in range(options.repeats)]
            report[str(rate or "flat_out")] = median_of(runs)
            if rate:
                report[str(rate)]["pacer_us"] = run(pacer_us(rate, 2.0, tick_s))
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
