"""(i) The shadow balancer's three engines on the same load: CPU time per replayed request, and the latency they add.

    client ──► HAProxy ──► production          embedded:        agent ──────────────► shadow
                 └── agent, all mirrored       haproxy, nginx:  agent ──► program ──► shadow

HAProxy runs from the lab's own file, nginx from one that says the same. The engines take turns within a repeat, and
what is compared is of the same repeat. Besides, without a lab: what an assignment costs with each policy, and TLS;
`python -m tests.bench.engines` measures those alone, and needs no root.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import ssl
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import trustme

from replay.balancer.engine import Embedded
from replay.balancer.policy import POLICIES
from replay.balancer.settings import BalancerSettings, TlsSettings
from replay.balancer.upstream import make_pool
from replay.exchange import Answer, Exchange, Outcome
from replay.tls import TlsStream, make_context
from tests.bench import processes
from tests.bench.figures import Figure, Plan, Target, medians, progress
from tests.bench.measured_agent import SETTLE_S, MeasuredAgent, Setup
from tests.bench.replay import HEAD, REQUEST
from vagrant.lab import Lab, Options

EMBEDDED, HAPROXY, NGINX = ENGINES = ("embedded", "haproxy", "nginx")
RATE = 1000
SECONDS, BEFORE_S, AFTER_S = 8.0, 1.5, 0.5  # the load goes on before and after what is measured
CONNECTIONS = 30  # a program is given one for each of them, at most 64 (`max_connections`)
NOTE = (
    "worker: capture, replay and recording; program: all its processes. Both hold the receiving side of TCP of what "
    "they send to (veth, loopback). Each has one thread for the traffic; production's HAProxy is not in it."
)
NGINX_CONF = """
worker_processes 1;
pid {directory}/engine-nginx.pid;
error_log {directory}/engine-nginx.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    upstream production {{ server {prod1}:80; server {prod2}:80; keepalive 32; }}
    server {{
        listen {lb}:80;
        location / {{
            proxy_pass http://production;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""

UPSTREAMS = (3, 20)
ASSIGNMENTS, HANDSHAKES, TLS_REQUESTS = 100_000, 200, 10_000
QUICK = 10  # parts of that
CLIENTS, IN_FLIGHT = 500, 10
TLS_NAME = "shadow.example"
TLS_KEYS = {"ECDSA P-256": trustme.KeyType.ECDSA, "RSA 2048": trustme.KeyType.RSA}
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000


@dataclass(frozen=True, slots=True)
class EngineSetup(Setup):
    """The agent's configuration with a balancer of its own."""

    balancer: dict[str, Any] = field(default_factory=dict)

    def config(self, lab: Lab, recordings: Path) -> dict[str, Any]:
        config = Setup.config(self, lab, recordings)
        if self.balancer:
            config["shadows"]["candidate"] |= {"upstreams": [], "balancer": self.balancer}
        return config


@dataclass(frozen=True, slots=True)
class Run:
    """One engine under the load. `delivered` and `account` are of the whole run, all else of the while measured."""

    worker_us: float  # a replayed request
    program_us: float
    p50_us: float  # of the shadow's response time
    p99_us: float
    delivered: float = 1.0  # of production's requests
    details: dict[str, float] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)

    @property
    def both_us(self) -> float:
        """What a replayed request costs, whoever pays."""
        return self.worker_us + self.program_us


def measure(plan: Plan) -> list[Figure]:
    """All figures, those without a lab last."""
    runs: dict[str, list[Run]] = {engine: [] for engine in ENGINES}
    with Lab(Options(access_logs=False)) as lab:
        setups = {engine: setup_of(lab, engine) for engine in ENGINES}
        for repeat in range(plan.repeats):
            for engine in turns(repeat):
                progress(f"(i) {engine} at {RATE} req/s, run {repeat + 1} of {plan.repeats}")
                runs[engine].append(one(lab, setups[engine], plan.seconds(SECONDS)))
    return [*figures_of(runs), *measure_alone(plan)]


def turns(repeat: int) -> tuple[str, ...]:
    """The engines in the order of a repeat: each is first, second and last equally often."""
    at = repeat % len(ENGINES)
    return ENGINES[at:] + ENGINES[:at]


def setup_of(lab: Lab, engine: str) -> EngineSetup:
    """The agent with that engine; writes the file that nginx runs from."""
    if engine == EMBEDDED:
        return EngineSetup()
    source = lab.directory / "haproxy.cfg"
    if engine == NGINX:
        source = lab.directory / "engine-nginx.conf"
        hosts = {name: lab.address(name) for name in ("lb", "prod1", "prod2")}
        source.write_text(NGINX_CONF.format(directory=lab.directory, **hosts))
    return EngineSetup(balancer={"engine": engine, "from": str(source), "servers": {"*": lab.shadow_upstream}})


def one(lab: Lab, setup: EngineSetup, seconds: float) -> Run:
    """Start the agent, measure while the load runs and all connections are there, read the recording."""
    requests = lab.production_requests()
    with MeasuredAgent(lab, setup) as agent:
        whole_s = BEFORE_S + seconds + AFTER_S
        with lab.background(lab.rate, RATE, whole_s, connections=CONNECTIONS) as load:
            time.sleep(BEFORE_S)
            before, begin_ns = cpu_by_part_ns(agent.pid), time.time_ns()
            time.sleep(seconds)
            after, end_ns = cpu_by_part_ns(agent.pid), time.time_ns()
            failed = load.result().failed
        time.sleep(SETTLE_S)
        ending = agent.end()
    requests = lab.production_requests() - requests
    whole_us, first_us = response_times_us(agent.recordings, begin_ns, end_ns)
    if not len(whole_us):
        raise RuntimeError(f"nothing was replayed: {ending.fates} {ending.lost()}")
    spent_us = {part: (ns - before.get(part, 0)) / 1000 / len(whole_us) for part, ns in after.items()}
    p50_us, p99_us = np.quantile(whole_us, (0.5, 0.99))
    return Run(
        worker_us=spent_us.pop("worker"),
        program_us=spent_us.pop("program", 0.0),
        p50_us=float(p50_us),
        p99_us=float(p99_us),
        delivered=ending.ok / max(1, requests),
        details={f"{part}_us": us for part, us in spent_us.items()}
        | {"replayed": len(whole_us), "first_byte_p50_us": float(np.median(first_us))},
        account={"production": requests, "failed": failed, "fates": ending.fates, "lost": ending.lost()},
    )


def cpu_by_part_ns(pid: int) -> dict[str, int]:
    """CPU time so far of the agent's processes by role, and of the balancer program; who runs that is the launcher."""
    out: dict[str, int] = {}
    everybody = processes.family(pid)
    launcher = next((each for each in everybody if _is_launcher(each)), 0)
    program = set(processes.family(launcher)) - {launcher} if launcher else set()
    for each in everybody:
        part = "program" if each in program else "launcher" if each == launcher else processes.role(each)
        out[part] = out.get(part, 0) + processes.cpu_ns(each)
    return out


def _is_launcher(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"\0agent.balancing\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def response_times_us(recording: Path, begin_ns: int, end_ns: int) -> tuple[Any, Any]:
    """Of the requests sent in that while that the shadow answered: from sending to the last and to the first byte."""
    times = [f"shadow_t_{name}_ns" for name in ("sent", "first", "last")]
    table = pq.read_table(sorted(recording.glob("*.parquet")), columns=["answer", *times])
    rows = table.filter(pc.equal(table.column("answer"), pa.scalar("ok").cast(table.column("answer").type)))
    sent, first, last = (rows.column(name).to_numpy() for name in times)
    meant = (begin_ns <= sent) & (sent < end_ns)
    return (last - sent)[meant] / 1000, (first - sent)[meant] / 1000


def figures_of(runs: dict[str, list[Run]]) -> list[Figure]:
    """Of each engine its own figures, and of the programs how they compare with the embedded engine."""
    figures = []
    for engine, mine in runs.items():
        extra = {"note": NOTE, "version": version_of(engine), "medians": medians([run.details for run in mine])}
        figures.append(Figure(f"(i) {engine}: CPU", "us/request", [run.both_us for run in mine], None, extra))
        figures.append(Figure(f"(i) {engine}: response time p50", "us", [run.p50_us for run in mine]))
        figures.append(Figure(f"(i) {engine}: response time p99", "us", [run.p99_us for run in mine]))
        if engine != EMBEDDED:
            pairs = list(zip(mine, runs[EMBEDDED], strict=True))
            compared = {
                ("CPU of the worker alone", "us/request"): [run.worker_us for run in mine],
                ("CPU of the program alone", "us/request"): [run.program_us for run in mine],
                ("CPU", "of embedded"): [run.both_us / base.both_us for run, base in pairs],
                ("added to the p50", "us"): [run.p50_us - base.p50_us for run, base in pairs],
                ("added to the p99", "us"): [run.p99_us - base.p99_us for run, base in pairs],
            }
            figures += [Figure(f"(i) {engine}: {name}", unit, values) for (name, unit), values in compared.items()]
        shares, account = [run.delivered for run in mine], {"runs": [run.account for run in mine]}
        figures.append(Figure(f"(i) {engine}: delivered", "share", shares, Target("at least", 1.0), account))
    return figures


def version_of(engine: str) -> str:
    """What the program says it is."""
    argv = [engine, "-v"] if engine != EMBEDDED else [sys.executable, "-V"]
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.partition("\n")[0]


def measure_alone(plan: Plan) -> list[Figure]:
    """CPU time of policies and of TLS in this process, in turn within a repeat."""
    values: dict[tuple[str, str], list[float]] = {}  # by name and unit
    part = QUICK if plan.quick else 1
    for repeat in range(plan.repeats):
        progress(f"(i) policies and TLS alone, run {repeat + 1} of {plan.repeats}")
        for count, policy in itertools.product(UPSTREAMS, POLICIES):
            name = f"(i) assign and release, {policy}, {count} upstreams"
            values.setdefault((name, "ns"), []).append(assignment_ns(policy, count, ASSIGNMENTS // part))
        for key in TLS_KEYS:
            handshake_us, request_us = tls_us(key, HANDSHAKES // part, TLS_REQUESTS // part)
            values.setdefault((f"(i) TLS handshake, {key}", "us"), []).append(handshake_us)
            values.setdefault(("(i) TLS of a request and its answer", "us"), []).append(request_us)
    return [Figure(name, unit, some) for (name, unit), some in values.items()]


def assignment_ns(policy: str, upstreams: int, count: int) -> float:
    """One assignment and its release, as of a good answer; the loop is in it (about 10 ns)."""
    pool = make_pool([f"192.0.2.{number}:80" for number in range(1, upstreams + 1)])
    balancer = Embedded(pool, BalancerSettings(policy=policy))
    assign, release = balancer.assign, balancer.release
    clients = [f"198.51.{number // 250}.{number % 250}:{20_000 + number}" for number in range(CLIENTS)]
    origins = [Exchange(client, "203.0.113.1:80", number, 0, REQUEST) for number, client in enumerate(clients)]
    outcome = Outcome(Answer.OK, pool[0].name, 200, b"", b"", 0, 0, 0, 0, 0)
    for origin in origins[:IN_FLIGHT]:  # stay so; and a policy that has a table makes it now
        assign(REQUEST, origin)
    begin = time.process_time_ns()
    for origin in itertools.islice(itertools.cycle(origins), count):
        release(assign(REQUEST, origin), outcome)  # type: ignore[arg-type]
    return (time.process_time_ns() - begin) / count


def tls_us(key: str, handshakes: int, requests: int) -> tuple[float, float]:
    """The client's side of a handshake that verifies, and of encrypting a request and decrypting its answer."""
    authority = trustme.CA(key_type=TLS_KEYS[key])
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(TLS_NAME, key_type=TLS_KEYS[key]).configure_cert(theirs)
    with authority.cert_pem.tempfile() as path:
        ours = make_context(TlsSettings(ca=path))
    spent_ns = []
    for _ in range(handshakes):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client, server = TlsStream(ours, TLS_NAME), theirs.wrap_bio(incoming, outgoing, server_side=True)
        spent_ns.append(shake_ns(client, server, incoming, outgoing))
    answers = [(server.write(RESPONSE), outgoing.read())[1] for _ in range(requests)]
    begin = time.process_time_ns()
    for answer in answers:
        client.encrypt(HEAD)
        client.receive(answer)
    request_ns = (time.process_time_ns() - begin) / requests
    if not client.ready or client.failed:
        raise RuntimeError(f"TLS failed: {client.failed}")
    return statistics.median(spent_ns) / 1000, request_ns / 1000


def shake_ns(client: TlsStream, server: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> int:
    """Do the handshake of TLS 1.3, to the tickets behind it; how long the client had to do."""
    begin = time.process_time_ns()
    data = client.begin()
    spent = time.process_time_ns() - begin
    for _ in range(2):
        incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        answer = outgoing.read()
        begin = time.process_time_ns()
        client.receive(answer)
        data = client.pending()
        spent += time.process_time_ns() - begin
    return spent


if __name__ == "__main__":
    print(json.dumps([figure.as_json() for figure in measure_alone(Plan())], indent=1))
