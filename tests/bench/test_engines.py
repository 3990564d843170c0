"""Scenario (i): its turns, its comparisons, what it reads of a recording and of /proc, and that it measures at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay.balancer.policy import POLICIES
from replay.balancer.program import ProgramSettings, make_plan
from replay.schema import SCHEMA
from tests.bench import engines
from tests.bench.engines import ENGINES, NGINX, Run, figures_of, response_times_us, setup_of, turns
from tests.bench.figures import Figure
from vagrant.lab import Lab


def test_every_engine_has_every_place_in_turn() -> None:
    for place in range(len(ENGINES)):
        assert {turns(repeat)[place] for repeat in range(3)} == set(ENGINES)
    assert all(sorted(turns(repeat)) == sorted(ENGINES) for repeat in range(7))
    assert [turns(repeat)[0] for repeat in range(4)] == ["embedded", "haproxy", "nginx", "embedded"]


def test_programs_are_compared_with_the_embedded_engine_of_the_same_repeat() -> None:
    runs = {
        "embedded": [Run(50, 0, 100, 900), Run(100, 0, 200, 1000)],
        "haproxy": [Run(40, 35, 130, 1000), Run(90, 60, 260, 900)],
        "nginx": [Run(50, 50, 120, 950, delivered=0.5), Run(100, 100, 220, 1050)],
    }
    found = {(figure.name, figure.unit): figure for figure in figures_of(runs)}

    def values(engine: str, name: str, unit: str = "us") -> list[float]:
        return found[f"(i) {engine}: {name}", unit].values

    assert values("embedded", "CPU", "us/request") == [50, 100]
    assert values("haproxy", "CPU", "us/request") == [75, 150]
    assert values("haproxy", "CPU of the worker alone", "us/request") == [40, 90]
    assert values("haproxy", "CPU of the program alone", "us/request") == [35, 60]
    assert values("haproxy", "CPU", "of embedded") == [1.5, 1.5]
    assert values("haproxy", "added to the p50") == [30, 60]
    assert values("haproxy", "added to the p99") == [100, -100]
    assert not any(name.startswith("(i) embedded: added") for name, _ in found)
    delivered: Figure = found["(i) nginx: delivered", "share"]
    assert (delivered.values, delivered.met) == ([0.5, 1.0], False)


def test_times_are_of_answered_requests_that_were_sent_in_the_while(tmp_path: Path) -> None:
    rows: list[tuple[Any, Any, int]]
    rows = [("ok", 99_999, 9), ("ok", 100_000, 2), ("timeout", 150_000, 7), (None, None, 0), ("ok", 199_999, 3)]
    for part, some in enumerate((rows[:2], rows[2:], [("ok", 200_000, 8)])):
        table = {name: [None] * len(some) for name in SCHEMA.names} | {
            "answer": [answer for answer, _, _ in some],
            "shadow_t_sent_ns": [sent for _, sent, _ in some],
            "shadow_t_first_ns": [sent and sent + 1_000 for _, sent, _ in some],
            "shadow_t_last_ns": [sent and sent + 1_000 * us for _, sent, us in some],
        }
        pq.write_table(pa.table(table, SCHEMA), tmp_path / f"{part}.parquet")
    whole, first = response_times_us(tmp_path, 100_000, 200_000)
    assert (list(whole), list(first)) == ([2, 3], [1, 1])


def test_a_program_s_processes_are_told_from_the_agent_s() -> None:
    assert "program" not in engines.cpu_by_part_ns(os.getpid())
    script = "import subprocess; subprocess.run(['sleep', '60'])"
    argv = [sys.executable, "-c", script, "agent.balancing", "3"]
    process = subprocess.Popen(argv, start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        while "program" not in (parts := engines.cpu_by_part_ns(os.getpid())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {"service", "launcher", "program"} <= set(parts)
        assert parts["launcher"] > parts["program"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_nginx_s_file_stands_for_production_s(tmp_path: Path) -> None:
    lab = Lab()  # not built: it only says where things would be
    lab.directory = tmp_path
    balancer = setup_of(lab, NGINX).config(lab, tmp_path / "recordings")["shadows"]["candidate"]["balancer"]
    plan = make_plan(ProgramSettings(NGINX, balancer["from"], servers=balancer["servers"]), tmp_path)
    assert {server.production for server in plan.derived.servers} == {
        f"{lab.address(n)}:80" for n in ("prod1", "prod2")
    }
    assert {server.shadow for server in plan.derived.servers} == {lab.shadow_upstream}


def test_the_embedded_engine_s_file_names_the_upstream(tmp_path: Path) -> None:
    lab = Lab()
    shadow = setup_of(lab, "embedded").config(lab, tmp_path)["shadows"]["candidate"]
    assert shadow["upstreams"] == [lab.shadow_upstream] and "balancer" not in shadow


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_measured(policy: str) -> None:
    assert engines.assignment_ns(policy, 3, 200) > 0


@pytest.mark.parametrize("key", engines.TLS_KEYS)
def test_tls_is_measured(key: str) -> None:
    handshake_us, request_us = engines.tls_us(key, 2, 20)
    assert handshake_us > request_us > 0
