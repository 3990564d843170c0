"""(c) The share of production's requests that the shadow got and answered, 100 % mirrored, at a steady rate."""

from __future__ import annotations

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
            runs = []
            for repeat in range(plan.repeats):
                progress(f"(c) delivered share at {rate} req/s, run {repeat + 1} of {plan.repeats}")
                share, seen = one(lab, rate, plan.seconds(SECONDS))
                shares.append(share)
                runs.append(seen)
            name = f"(c) delivered at {rate} req/s for {plan.seconds(SECONDS):.0f} s"
            figures.append(Figure(name, "share", shares, Target("at least", 1.0), {"runs": runs}))
    return figures


def one(lab: Lab, rate: int, seconds: float) -> tuple[float, dict[str, object]]:
    """The share, and what was seen in the run."""
    requests = lab.production_requests()
    with MeasuredAgent(lab, Setup()) as agent:
        load = lab.rate(rate, seconds)
        ring_bytes = agent.metric("ring_high_water_bytes")
        queue_peak = agent.metric("queue_peak_requests")
        ending = agent.end()
    requests = lab.production_requests() - requests
    return ending.ok / requests, {
        "production": requests,
        "production_failed": load.failed,
        "production_p99_us": load.p99_us,
        "fates": ending.fates,
        "lost": ending.lost(),
        "ring_high_water_bytes": ring_bytes,
        "queue_peak_requests": queue_peak,
    }
