"""Upstreams out of a target group of AWS: its registered instances and addresses that may take traffic.

Needs `elasticloadbalancing:DescribeTargetGroups` and `DescribeTargetHealth`, and for instances `ec2:DescribeInstances`.
Credentials are boto3's usual ones: the environment, a file that the agent's user can read, the instance's role.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agent.discovery.settings import Answers, Clock, Found, TargetGroup, found
from replay.balancer.address import resolve, show
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

POLL_S = 30.0
RETRY_MAX_S = 300.0
ATTEMPTS = 3  # of one call, with botocore's own pauses between them
CONNECT_S, READ_S = 5, 10
INSTANCES_AT_ONCE = 200  # values that EC2 takes in one filter
PROTOCOLS = ("HTTP", "HTTPS", "TCP", "TLS", "TCP_UDP")
_STATES = ("healthy",)
# Health that nobody checks says nothing against a target. A group of shadow hosts is often behind no balancer at all,
# and AWS checks the health of no such group; other targets that are "unused" are stopped, or not registered.
_UNCHECKED = {"unused": "Target.NotInUse", "unavailable": "Target.HealthCheckDisabled"}
_STALE = ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "AuthFailure", "SignatureDoesNotMatch")
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


class Pool(NamedTuple):
    """A target group's targets, and what there is to say about them."""

    upstreams: list[UpstreamSpec]
    problems: list[str]


class Targets:
    """The upstreams of one target group."""

    def __init__(self, settings: TargetGroup, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._pool: Answers[str, Pool] = Answers(self._ask, clock, POLL_S, RETRY_MAX_S)
        self._addresses: dict[str, str] = {}  # of instances: they keep their private address for life

    def look(self) -> Found:
        """See `Source`."""
        pool = self._pool.look([self._settings.arn]).get(self._settings.arn, Pool([], []))
        return found(pool.upstreams, self._pool.again_in_s, self._pool.problems or pool.problems)

    def _ask(self, arn: str) -> tuple[Pool, float]:
        label = f"target group {arn.split('/')[1] if arn.count('/') == 2 else arn}"
        try:
            import boto3  # noqa: F401  (an option, and large)
            from botocore.exceptions import BotoCoreError, ClientError
            from botocore.parsers import ResponseParserError
        except ImportError:
            raise UpstreamError(f"{label}: boto3 is missing: install shadowtap[aws]") from None
        try:
            return self._describe(arn, label), POLL_S
        except (BotoCoreError, ClientError, ValueError) as error:
            raise UpstreamError(f"{label}: {_reason(error)}") from None
        except (ResponseParserError, LookupError):
            raise UpstreamError(f"{label}: what answers is not AWS: look at the endpoint's URL") from None

    def _describe(self, arn: str, label: str) -> Pool:
        if arn.count(":") != 5:
            raise UpstreamError(f"{label}: not the ARN of a target group")
        balancing = _client("elbv2", _region(arn), self._settings.endpoint_url)
        group = balancing.describe_target_groups(TargetGroupArns=[arn])["TargetGroups"][0]
        check_kind(group, label)
        described = balancing.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
        taken, others = chosen(described)
        problems = [f"{label}: no target takes traffic: {others}"] if others and not taken else []
        hosts = {target["Id"]: target["Id"] for target in taken}
        if group["TargetType"] == "instance":
            hosts = self._addresses_of(set(hosts), arn, group.get("IpAddressType") == "ipv6")
        lost = sorted({target["Id"] for target in taken} - set(hosts))
        problems += [f"{label}: instance {instance} has no private address" for instance in lost]
        return Pool(
            [_upstream(hosts[t["Id"]], t.get("Port") or group["Port"]) for t in taken if t["Id"] in hosts], problems
        )

    def _addresses_of(self, instances: set[str], arn: str, ipv6: bool) -> dict[str, str]:
        """Of those that have one."""
        self._addresses = {each: address for each, address in self._addresses.items() if each in instances}
        field = "Ipv6Address" if ipv6 else "PrivateIpAddress"
        unknown = sorted(instances - set(self._addresses))
        for start in range(0, len(unknown), INSTANCES_AT_ONCE):
            # Asked for by `InstanceIds`, one that is gone would be an error for all.
            asked = [{"Name": "instance-id", "Values": unknown[start : start + INSTANCES_AT_ONCE]}]
            computing = _client("ec2", _region(arn), _ec2_url(self._settings.endpoint_url))
            for page in computing.get_paginator("describe_instances").paginate(Filters=asked):
                found_here = [each for reservation in page["Reservations"] for each in reservation["Instances"]]
                self._addresses.update({each["InstanceId"]: each[field] for each in found_here if each.get(field)})
        return self._addresses


def chosen(described: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The targets that may take traffic, and how many there are of the others, by state: "1 draining, 2 unhealthy"."""
    taken, others = [], Counter[str]()
    for each in described:
        state, reason = each["TargetHealth"].get("State", ""), each["TargetHealth"].get("Reason")
        unchecked = state in _UNCHECKED and reason in (None, _UNCHECKED[state])
        if state in _STATES or unchecked:
            taken.append(each["Target"])
        else:
            others[state] += 1
    return taken, ", ".join(f"{count} {state}" for state, count in sorted(others.items()))


def check_kind(group: dict[str, Any], label: str) -> None:
    """UpstreamError, when no HTTP can be sent to the targets of such a group."""
    kind, protocol = group["TargetType"], group.get("Protocol")
    if kind not in ("instance", "ip"):
        raise UpstreamError(
            f"{label}: its targets are of type {kind}: a shadow needs a group of instances or addresses"
        )
    if protocol not in PROTOCOLS:
        raise UpstreamError(f"{label}: its protocol is {protocol}: a shadow needs {', '.join(PROTOCOLS)}")


def _upstream(host: str, port: int) -> UpstreamSpec:
    return UpstreamSpec(show(resolve(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")[0]))


def _region(arn: str) -> str:
    return arn.split(":")[3]


def _ec2_url(endpoint_url: str) -> str:
    """A VPC endpoint of the load balancers' service knows no instances: these are asked for at the usual place."""
    return "" if "elasticloadbalancing" in (urlsplit(endpoint_url).hostname or "") else endpoint_url


_making_client = threading.Lock()  # boto3's clients can be shared by threads, but not made by several at once


def _client(service: str, region: str, endpoint_url: str) -> Any:
    with _making_client:
        return _made_client(service, region, endpoint_url)


@lru_cache(maxsize=64)
def _made_client(service: str, region: str, endpoint_url: str) -> Any:
    """Shared by all shadows: each client holds a description of its service, 20 MB for EC2."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, connect_timeout=CONNECT_S, read_timeout=READ_S
    )
    session = boto3.session.Session(region_name=region)
    make: Any = session.client
    return make(service, endpoint_url=endpoint_url or None, config=config)


def _reason(error: Exception) -> str:
    from botocore.exceptions import ClientError, NoCredentialsError

    if isinstance(error, NoCredentialsError):
        _forget_clients()
        return "no AWS credentials: give this host a role, or set AWS_SHARED_CREDENTIALS_FILE to a file of the agent's"
    if not isinstance(error, ClientError):
        return str(error)
    said = error.response.get("Error", {})
    code = said.get("Code", "")
    if code in _STALE:
        _forget_clients()
    if code in _DENIED:  # what AWS says besides is another text each time
        return f"AWS refuses {error.operation_name}: allow it to those whose credentials these are"
    return f"AWS refuses {error.operation_name} with {code}: {said.get('Message', '')}"


def _forget_clients() -> None:
    """A client keeps the credentials, or the lack of them, that it was made with."""
    with _making_client:
        _made_client.cache_clear()
