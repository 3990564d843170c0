"""(c) The share of production's requests that the shadow got and answered, 100 % mirrored, at a steady rate, and how
well they kept their distance."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from tests.bench.figures import Figure, Plan, Target, progress
from tests.bench.measured_agent import MeasuredAgent, Setup
from vagrant.lab import Lab, Options

RATES = (1000, 3500)
SECONDS = 60.0


def measure(plan: Plan) -> list[Figure]:
    """One figure a rate."""
    figures = []
    with Lab(Options(access_logs=False)) as lab:
        for rate in RATES:
            shares: list[float] = []
            spacing_ms: list[float] = []
            runs = []
            for repeat in range(plan.repeats):
                progress(f"(c) delivered share at {rate} req/s, run {repeat + 1} of {plan.repeats}")
                share, error_ms, seen = one(lab, rate, plan.seconds(SECONDS))
                shares.append(share)
                spacing_ms.append(error_ms)
                runs.append(seen)
            name = f"(c) delivered at {rate} req/s for {plan.seconds(SECONDS):.0f} s"
            figures.append(Figure(name, "share", shares, Target("at least", 1.0), {"runs": runs}))
            figures.append(Figure(f"(c) error of the spacing at {rate} req/s, 90 % within", "ms", spacing_ms))
    return figures


def one(lab: Lab, rate: int, seconds: float) -> tuple[float, float, dict[str, object]]:
    """The share, the error of the spacing in milliseconds, and what was seen in the run."""
    requests = lab.production_requests()
    with MeasuredAgent(lab, Setup()) as agent:
        load = lab.rate(rate, seconds)
        ring_bytes = agent.metric("ring_high_water_bytes")
        queue_peak = agent.metric("queue_peak_requests")
        ending = agent.end()
    requests = lab.production_requests() - requests
    return ending.ok / requests, spacing_error_ms(agent), {
        "production": requests,
        "production_failed": load.failed,
        "production_p99_us": load.p99_us,
        "fates": ending.fates,
        "lost": ending.lost(),
        "ring_high_water_bytes": ring_bytes,
        "queue_peak_requests": queue_peak,
    }


def spacing_error_ms(agent: MeasuredAgent) -> float:
    """How far 90 % of the requests were sent from their place, which lies a constant time after they were captured."""
    table = pq.read_table(sorted(agent.recordings.glob("*.parquet")), columns=["request_t_last_ns", "shadow_t_sent_ns"])
    behind = np.subtract(*(table.column(name).to_numpy() for name in ("shadow_t_sent_ns", "request_t_last_ns")))
    return float(np.quantile(np.abs(behind - np.median(behind)), 0.9)) / 1e6
