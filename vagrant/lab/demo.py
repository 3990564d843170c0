"""`make demo`: shadowtap mirrors half of a load balancer's traffic to a shadow with faults, and says what is wrong.

The story is told on the terminal; everything happens inside the lab and nothing of it stays.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from vagrant.lab.lab import Lab
from vagrant.lab.load import Load
from vagrant.lab.network import LabError
from vagrant.lab.servers import Options
from vagrant.lab.shop import FAULTS

SHADOWTAP = Path(sys.executable).with_name("shadowtap")

LOAD_SECONDS = 20.0
REQUESTS_PER_SECOND = 500.0
CONNECTIONS = 20
HEAD_CONNECTIONS = 100
SHADOW_DELAY_MS = 3.0
PERCENTAGE = 50
METRICS = "127.0.0.1:9464"

READY_SECONDS = 90.0  # compiling the kernel program takes most of it on a slow machine
STOP_SECONDS = 30.0
COMPARE_SECONDS = 60.0


class Agent:
    """The agent under demonstration, running on the lab's load balancer."""

    def __init__(self, lab: Lab, argv: Sequence[str | Path]) -> None:
        self._out, self._err = lab.directory / "agent.out", lab.directory / "agent.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # A session of its own: Ctrl-C reaches the demo, and the demo ends the agent.
            self._process = lab.popen_in(
                "lb", argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    def await_ready(self) -> None:
        """Wait until it says that it captures."""
        end = time.monotonic() + READY_SECONDS
        while "ready" not in self._err.read_text(errors="replace"):
            if self._process.poll() is not None:
                raise LabError(f"the agent ended before it was ready: {self._last_error()}: run `shadowtap doctor`")
            if time.monotonic() > end:
                raise LabError(f"the agent is not ready after {READY_SECONDS:.0f} s: {self._last_error()}")
            time.sleep(0.05)

    def stop(self) -> str:
        """End it in order; what it printed last, which is the account."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(f"the agent did not end within {STOP_SECONDS:.0f} s of SIGTERM: this is a bug") from None
        if code != 0:
            raise LabError(f"the agent ended with {code}: {self._last_error()}")
        return self._out.read_text(errors="replace").strip() or self._err.read_text(errors="replace").strip()

    def _last_error(self) -> str:
        lines = self._err.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def configuration(lab: Lab, recording: Path) -> str:
    """The agent's configuration file."""
    settings = {
        "capture": {"interface": "front", "ports": [80]},
        "shadows": {"candidate": {"percentage": PERCENTAGE, "upstreams": [lab.shadow_upstream]}},
        "recording": {"directory": str(recording)},
        "metrics": {"listen": METRICS},
        "control": {"socket": str(lab.directory / "control.sock")},
        "state": {"directory": str(lab.directory / "state")},
        "rollback": {"on": []},
    }
    return yaml.safe_dump(settings, sort_keys=False)


def run(shadowtap: Sequence[str | Path], seconds: float) -> None:
    """The whole story."""
    with Lab(Options(shadow_faults=True, shadow_delay_ms=SHADOW_DELAY_MS)) as lab:
        _introduce(lab)
        recording, config = lab.directory / "recording", lab.directory / "shadowtap.yaml"
        config.write_text(configuration(lab, recording))
        _say(f"2. The agent starts on the load balancer: shadowtap run -c {config.name}", config.read_text())
        agent = Agent(lab, [*shadowtap, "run", "-c", config])
        agent.await_ready()
        kinds = "pages, an API, downloads, orders"
        _say(f"3. {seconds:.0f} s of traffic, about {REQUESTS_PER_SECOND:.0f} requests/s: {kinds}")
        load = _load(lab, seconds)
        _report_load(lab, load)
        _say("4. shadowtap status, while it runs: what the judge makes of it", _status(lab, shadowtap))
        account = agent.stop()
        _say("5. The agent was told to end (SIGTERM). Its account of every request it saw:", account)
        _say("6. shadowtap compare: the shadow against production, route by route", _compare(lab, shadowtap, recording))
        _conclude()


def _introduce(lab: Lab) -> None:
    faults = "\n".join(f"- {fault.route:<20} {fault.what}" for fault in FAULTS)
    _say(
        "1. A lab of network namespaces: client -> HAProxy -> two nginx (production), and a third nginx, the shadow",
        f"Only the agent talks to the shadow ({lab.shadow_upstream}). Planted there, for the comparison to find:\n"
        f"{faults}\n- {'everywhere':<20} answers come {SHADOW_DELAY_MS:.0f} ms later",
    )


def _load(lab: Lab, seconds: float) -> Load:
    """The mixture, and beside it some HEAD requests, which wrk cannot make."""
    with lab.background(lab.mix, seconds, connections=CONNECTIONS, rate=REQUESTS_PER_SECOND) as mix:
        lab.visits(HEAD_CONNECTIONS, concurrency=2, method="HEAD")
    return mix.result()


def _report_load(lab: Lab, load: Load) -> None:
    statuses = ", ".join(f"{count} {name}" for name, count in lab.production_statuses().items())
    _say(
        "   Production meanwhile:",
        f"{lab.production_requests()} requests ({statuses}), {lab.production_failures() + load.failed} failed\n"
        f"latency seen by the client: p50 {load.p50_us / 1000:.2f} ms, p99 {load.p99_us / 1000:.2f} ms",
    )


def _status(lab: Lab, shadowtap: Sequence[str | Path]) -> str:
    argv = [*shadowtap, "status", "--socket", lab.directory / "control.sock"]
    return str(lab.run_in("lb", argv, check=False, timeout=COMPARE_SECONDS).stdout).strip()


def _compare(lab: Lab, shadowtap: Sequence[str | Path], recording: Path) -> str:
    done = lab.run_in("lb", [*shadowtap, "compare", recording], check=False, timeout=COMPARE_SECONDS)
    output = str(done.stdout).strip()
    if not output:
        last = str(done.stderr).strip().splitlines()[-1:]
        raise LabError(f"shadowtap compare ended with {done.returncode}: {last[0] if last else 'no output'}")
    return output


def _conclude() -> None:
    _say(
        "7. What to look for",
        "Under /products the 500s of the shadow stand beside production's 200s, under /old the 301s beside the 302s,\n"
        f"and everywhere the shadow's times are about {SHADOW_DELAY_MS:.0f} ms longer: the judge was sure of that "
        "while it ran.\nHere it may only say so (`rollback: {on: []}`): by default the shadow is switched off then. "
        "POSTs were seen but not sent\n(skipped: method): only safe methods are replayed unless you allow more. "
        "Nothing of the lab is left.",
    )


def _say(title: str, text: str = "") -> None:
    print(f"\n{title}", flush=True)
    for line in text.splitlines():
        print(f"   {line}".rstrip(), flush=True)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """End with one line where the user can do something about it, quietly when he interrupted."""
    try:
        yield
    except LabError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; the lab is gone")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=LOAD_SECONDS, help="how long the load runs")
    parser.add_argument("--shadowtap", type=Path, default=SHADOWTAP, help="the command to demonstrate")
    given = parser.parse_args()
    with _one_line_errors():
        if not given.shadowtap.exists():
            raise LabError(f"{given.shadowtap} is missing: run `make setup`")
        run([given.shadowtap.absolute()], given.seconds)


if __name__ == "__main__":
    main()
