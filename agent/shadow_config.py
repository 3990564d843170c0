"""One shadow of the configuration: which traffic it takes, where that goes, and how."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from agent.fields import LONGEST_S, MiB, Model, Seconds
from agent.pool_config import Balancer, Discovery, UpstreamConfig
from agent.select.criteria import Criteria, read_criteria
from agent.select.sampling import By, read_sample_by
from agent.watch_config import RampPlan

PERCENT_TO_PPM = 10_000
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number from 0 to 100")
    return value


Percentage = Annotated[float, BeforeValidator(_no_switch), Field(ge=0, le=100)]


def _text_of(value: Any) -> Any:
    """`{type: HEADER, value: X-Shadow-Test}` says the same as `header:X-Shadow-Test`."""
    if not isinstance(value, dict) or not set(value) <= {"type", "value"} or not isinstance(value.get("type"), str):
        return value
    kind, text = value["type"], value.get("value")
    if text is not None and not isinstance(text, str):
        raise ValueError('`value` is no text: put it in quotes, as in value: "NO", which YAML reads as false')
    return kind if text is None else f"{kind}:{text}"


def _either(name: str) -> AliasChoices:
    """The key as everywhere here, or as it is written elsewhere (`mirrorPercentage`, `mirror_percentage`)."""
    return AliasChoices(name, f"mirror{name.capitalize()}", f"mirror_{name}")


class Shadow(Model):
    """One shadow: which traffic, where to, how."""

    enabled: bool = True
    percentage: Annotated[Percentage, Field(validation_alias=_either("percentage"))] = 100.0
    criteria: Annotated[str, BeforeValidator(_text_of), Field(validation_alias=_either("criteria"))] = "random"
    sample_by: str = "connection"
    exclusive: bool | str = False  # true, or the name of a group
    shadow_pool_arn: Annotated[
        str | None,
        Field(
            pattern=r"^arn:aws[a-z-]*:elasticloadbalancing:[a-z0-9-]+:[0-9]{12}:targetgroup/[A-Za-z0-9-]{1,32}/[0-9a-f]+$",
            validation_alias=AliasChoices("shadow_pool_arn", "shadowPoolArn"),
        ),
    ] = None
    upstreams: Annotated[list[UpstreamConfig], Field(max_length=1024)] = []
    discovery: Discovery = Discovery()
    balancer: Balancer = Balancer()
    methods: list[str] = ["GET", "HEAD", "OPTIONS"]
    connect_timeout_s: Seconds = 1.0
    first_byte_timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 0.0
    idle_timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 0.0
    timeout_s: Seconds = 10.0
    keepalive_s: Seconds = 30.0
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    requests_per_connection: Annotated[int, Field(ge=0)] = 0
    max_connections: Annotated[int, Field(ge=1, le=65535)] = 64
    queue_entries: Annotated[int, Field(ge=1)] = 4096
    queue_mib: MiB = 16
    queue_timeout_s: Seconds = 5.0
    ramp: RampPlan | None = None  # begins with the agent, unless it was ended already

    @property
    def captures_only(self) -> bool:
        """Nobody is asked."""
        return not self.upstreams and not self.discovers and not self.balancer.is_program

    @property
    def discovers(self) -> bool:
        """Upstreams are looked up while the agent runs."""
        return self.shadow_pool_arn is not None or self.discovery.dns is not None or self.discovery.file is not None

    @property
    def share_ppm(self) -> int:
        """The percentage in millionths."""
        return round(self.percentage * PERCENT_TO_PPM)

    @cached_property
    def tree(self) -> Criteria:
        """The criteria, read."""
        return read_criteria(self.criteria)

    @property
    def sampling(self) -> tuple[By, str]:
        """What is taken as a whole, and the name of the header (in lower case) or the cookie."""
        return read_sample_by(self.sample_by)

    @property
    def group(self) -> str:
        """The group within which shadows share no request; "" for none."""
        return "" if self.exclusive is False else "true" if self.exclusive is True else self.exclusive

    @model_validator(mode="after")
    def _one_pool(self) -> Shadow:
        if (self.upstreams or self.discovers) and self.balancer.is_program:
            raise ValueError(f"upstreams with engine {self.balancer.engine}: its servers are named in balancer.servers")
        if self.shadow_pool_arn is not None and (self.discovery.dns or self.discovery.file):
            raise ValueError("shadow_pool_arn and discovery: give one of them")
        if self.discovers and self.upstreams:
            raise ValueError("upstreams and a discovery of them: give one of them")
        return self

    @field_validator("criteria")
    @classmethod
    def _criteria(cls, value: str) -> str:
        read_criteria(value)
        return value

    @field_validator("exclusive", mode="before")
    @classmethod
    def _exclusive(cls, value: Any) -> Any:
        if not isinstance(value, bool) and not (isinstance(value, str) and NAME.fullmatch(value) and value != "true"):
            raise ValueError("give true, false or the name of a group (lower-case letters, digits, inner hyphens)")
        return value

    @field_validator("sample_by")
    @classmethod
    def _sample_by(cls, value: str) -> str:
        read_sample_by(value)
        return value

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: list[str]) -> list[str]:
        for method in value:
            if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", method):
                raise ValueError(f"{method!r} is not an HTTP method")
        return value
