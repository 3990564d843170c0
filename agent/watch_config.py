"""The part of the configuration that says what is watched, when the agent steps back, and where it remembers that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from agent.fields import Directory, Model, Seconds

Metric = Literal["latency", "tail", "errors", "differences", "cpu", "memory"]
Cause = Literal["judge", "failing", "unreachable", "balancer", "harm", "leak", "agent"]
CAUSES: tuple[Cause, ...] = ("judge", "failing", "unreachable", "balancer", "harm", "leak", "agent")

Percent = Annotated[float, Field(ge=0, le=100)]
ErrorRate = Annotated[float, Field(gt=0, lt=1)]
STEPS_MAX = 64


class Floors(Model):
    """What of one metric counts, in per cent: more than `warn` is told, more than `rollback` trips, and less than
    `margin` must be shown for a PASS."""

    warn: Annotated[float, Field(ge=0, le=1000)]
    rollback: Annotated[float, Field(ge=0, le=1000)]
    margin: Annotated[float, Field(gt=0, le=1000)]

    @model_validator(mode="after")
    def _ordered(self) -> Floors:
        if self.warn > self.rollback:
            raise ValueError("`warn` is above `rollback`: what trips is worse than what is told")
        return self


class Judging(Model):
    """How strictly shadow and production are compared; the error rates are of a whole period, however long."""

    warn_alpha: ErrorRate = 0.05
    rollback_alpha: ErrorRate = 0.001
    pass_alpha: ErrorRate = 0.05
    block_s: Annotated[float, Field(ge=0.2, le=30)] = 1.0
    least_blocks: Annotated[int, Field(ge=1, le=10_000)] = 8
    noise_percentage: Percent = 0.0  # of the shadow's safe requests, asked twice to learn what differs by itself
    metrics: dict[Metric, Floors] = {}

    @model_validator(mode="after")
    def _rates_have_room(self) -> Judging:
        for name in ("errors", "differences"):
            floors = self.metrics.get(name)
            if floors is not None and floors.margin >= RATE_MARGIN_PERCENT:
                raise ValueError(f"metrics.{name}.margin: give less than {RATE_MARGIN_PERCENT:g} per cent")
        return self

    def settings(self, share: float = 1.0) -> dict[str, Any]:
        """For `agent.monitor.judging`; `share` is this period's part of the error rates (a ramp's step has one)."""
        return {
            "warn_alpha": self.warn_alpha * share,
            "rollback_alpha": self.rollback_alpha * share,
            "pass_alpha": self.pass_alpha,
            "block_ns": round(self.block_s * 1e9),
            "least_blocks": self.least_blocks,
            "floors": {name: floors.model_dump() for name, floors in self.metrics.items()},
        }


RATE_MARGIN_PERCENT = 5.0  # replay.judge.plan.RATE_MOST


class Rollback(Model):
    """What trips a shadow, and when it is tried again."""

    on: list[Cause] = list(CAUSES)
    failing_percent: Percent = 50.0
    failing_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    failing_s: Seconds = 5.0
    production_percent: Percent = 5.0  # with more of its own requests failing, production is not fine
    unreachable_percent: Percent = 90.0
    unreachable_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    unreachable_s: Seconds = 3.0
    balancer_s: Annotated[float, Field(ge=0, le=3600)] = 5.0  # the balancer program is down for so long
    cooldown_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    probe_percentage: Percent = 1.0
    probe_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    probe_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    retries: Annotated[int, Field(ge=0, le=1000)] = 3

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_key(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare `on` as true."""
        return {"on" if key is True else key: each for key, each in value.items()} if isinstance(value, dict) else value


class Limits(Model):
    """What the agent itself may use; 0 is no limit."""

    cpu_percent: Annotated[float, Field(ge=0)] = 0.0  # of one CPU, all processes
    memory_mib: Annotated[int, Field(ge=0)] = 4096
    loss_percent: Percent = 0.0  # of the segments that were to be copied


class Harm(Model):
    """The check that mirroring does not slow production down: off and on in turn, by the toss of a coin."""

    every_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0  # from one pair of blocks to the next
    block_s: Annotated[float, Field(ge=0.5, le=60)] = 5.0


class State(Model):
    """Where configurations, trips and evidence are kept."""

    directory: Directory = Path("/var/lib/shadowtap")


class RampStep(Model):
    """So much of the traffic, for at least so long."""

    percentage: Annotated[float, Field(gt=0, le=100)]
    hold_s: Annotated[float, Field(ge=1, le=30 * 86_400)]


class RampPlan(Model):
    """Growing shares of the traffic; each step is left only with a PASS."""

    steps: Annotated[list[RampStep], Field(min_length=1, max_length=STEPS_MAX)]
    inconclusive: Annotated[int, Field(ge=0, le=1000)] = 0  # looks without a verdict after which a step is left too
