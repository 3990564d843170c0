"""Upstreams out of a target group, against moto's server; and health, kinds and refusals that it does not play."""

from __future__ import annotations

import functools
import itertools
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from agent.discovery import target_group as module
from agent.discovery.settings import Found, TargetGroup
from agent.discovery.target_group import POLL_S, RETRY_MAX_S, Targets, check_kind, chosen
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

REGION = "eu-west-1"
ARN = f"arn:aws:elasticloadbalancing:{REGION}:123456789012:targetgroup/shadow/0123456789abcdef"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

NUMBERS = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@functools.cache  # there are many, which takes a second to tell
def any_image(url: str) -> str:
    computing: Any = boto3.client("ec2", region_name=REGION, endpoint_url=url)
    return str(computing.describe_images()["Images"][0]["ImageId"])


class Account:
    """An account of AWS with one network."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.balancing: Any = boto3.client("elbv2", region_name=REGION, endpoint_url=url)
        self.computing: Any = boto3.client("ec2", region_name=REGION, endpoint_url=url)
        self.network = self.computing.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self._subnet = self.computing.create_subnet(VpcId=self.network, CidrBlock="10.0.0.0/17")["Subnet"]["SubnetId"]

    def group(self, kind: str, protocol: str = "HTTP", port: int = 8080) -> str:
        asked: dict[str, Any] = {"Name": f"shadow-{next(NUMBERS)}", "TargetType": kind}
        if kind != "lambda":
            asked |= {"Protocol": protocol, "Port": port, "VpcId": self.network}
        return str(self.balancing.create_target_group(**asked)["TargetGroups"][0]["TargetGroupArn"])

    def register(self, arn: str, *targets: dict[str, Any]) -> None:
        self.balancing.register_targets(TargetGroupArn=arn, Targets=list(targets))

    def deregister(self, arn: str, *targets: dict[str, Any]) -> None:
        self.balancing.deregister_targets(TargetGroupArn=arn, Targets=list(targets))

    def instances(self, count: int) -> list[dict[str, Any]]:
        image = any_image(self.url)
        made = self.computing.run_instances(ImageId=image, MinCount=count, MaxCount=count, SubnetId=self._subnet)
        return list(made["Instances"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys for moto, and none of whoever runs the tests."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    nowhere = str(tmp_path_factory.getbasetemp() / "none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", nowhere)
    monkeypatch.setenv("AWS_CONFIG_FILE", nowhere)
    yield
    module._forget_clients()


@pytest.fixture
def account(url: str, keys: None) -> Account:
    return Account(url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def addresses(found: Found) -> list[str]:
    return [each.address for each in found.upstreams]


def test_addresses_come_with_their_ports(account: Account, clock: Clock) -> None:
    arn = account.group("ip")
    account.register(arn, {"Id": "10.0.0.9", "Port": 81}, {"Id": "10.0.0.8"})
    found = Targets(TargetGroup(arn, account.url), clock).look()
    assert found == Found((UpstreamSpec("10.0.0.8:8080"), UpstreamSpec("10.0.0.9:81")), POLL_S, "")


def test_instances_have_their_private_addresses(account: Account, clock: Clock) -> None:
    arn, instances = account.group("instance"), account.instances(3)
    account.register(arn, *({"Id": each["InstanceId"]} for each in instances[:2]))
    targets = Targets(TargetGroup(arn, account.url), clock)
    found = targets.look()
    assert addresses(found) == sorted(f"{each['PrivateIpAddress']}:8080" for each in instances[:2])
    assert found.problem == ""
    account.register(arn, {"Id": instances[2]["InstanceId"], "Port": 90})
    account.deregister(arn, {"Id": instances[0]["InstanceId"]})
    assert targets.look().upstreams == found.upstreams  # not due yet
    clock.now_s += POLL_S
    one, other = (each["PrivateIpAddress"] for each in instances[1:])
    assert addresses(targets.look()) == sorted([f"{one}:8080", f"{other}:90"])


def test_an_instance_that_stopped_takes_nothing(account: Account, clock: Clock) -> None:
    arn, instances = account.group("instance"), account.instances(2)
    account.register(arn, *({"Id": each["InstanceId"]} for each in instances))
    targets = Targets(TargetGroup(arn, account.url), clock)
    targets.look()
    account.computing.stop_instances(InstanceIds=[instances[0]["InstanceId"]])
    clock.now_s += POLL_S
    found = targets.look()
    assert (addresses(found), found.problem) == ([f"{instances[1]['PrivateIpAddress']}:8080"], "")
    account.computing.stop_instances(InstanceIds=[instances[1]["InstanceId"]])
    clock.now_s += POLL_S
    found = targets.look()
    name = arn.split("/")[1]
    assert found == Found((), POLL_S, f"target group {name}: no target takes traffic: 2 unused")


def test_instances_are_asked_for_once(account: Account, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INSTANCES_AT_ONCE", 2)
    arn, instances = account.group("instance"), account.instances(5)
    account.register(arn, *({"Id": each["InstanceId"]} for each in instances))
    targets = Targets(TargetGroup(arn, account.url), clock)
    assert len(targets.look().upstreams) == 5
    asked: list[str] = []
    made = module._client
    monkeypatch.setattr(module, "_client", lambda service, *rest: asked.append(service) or made(service, *rest))
    clock.now_s += POLL_S
    assert len(targets.look().upstreams) == 5
    assert asked == ["elbv2"]


def test_an_empty_group_is_an_empty_pool(account: Account, clock: Clock) -> None:
    assert Targets(TargetGroup(account.group("ip"), account.url), clock).look() == Found((), POLL_S, "")


@pytest.mark.parametrize(
    ("kind", "protocol", "reason"),
    [("lambda", "", "its targets are of type lambda"), ("ip", "UDP", "its protocol is UDP")],
)
def test_groups_for_something_else_are_refused(
    account: Account, clock: Clock, kind: str, protocol: str, reason: str
) -> None:
    found = Targets(TargetGroup(account.group(kind, protocol), account.url), clock).look()
    assert found.upstreams == ()
    assert reason in found.problem


def test_a_group_of_balancers_is_refused() -> None:
    with pytest.raises(UpstreamError, match="shadow: its targets are of type alb: a shadow needs a group of instances"):
        check_kind({"TargetType": "alb", "Protocol": "TCP"}, "shadow")


def test_a_group_that_is_gone_keeps_its_pool(account: Account, clock: Clock) -> None:
    arn = account.group("ip")
    account.register(arn, {"Id": "10.0.0.9"})
    targets = Targets(TargetGroup(arn, account.url), clock)
    before = targets.look()
    account.balancing.delete_target_group(TargetGroupArn=arn)
    pauses = []
    for _ in range(5):
        clock.now_s += targets.look().again_in_s
        found = targets.look()
        assert found.upstreams == before.upstreams
        assert "AWS refuses DescribeTargetGroups with TargetGroupNotFound: " in found.problem
        pauses.append(found.again_in_s)
    assert pauses == [30, 60, 120, 240, RETRY_MAX_S]


@pytest.mark.parametrize(
    ("state", "reason", "taken"),
    [
        ("healthy", None, True),
        ("unused", "Target.NotInUse", True),
        ("unused", None, True),
        ("unavailable", "Target.HealthCheckDisabled", True),
        ("unused", "Target.InvalidState", False),
        ("unused", "Target.NotRegistered", False),
        ("unused", "Target.IpUnusable", False),
        ("unavailable", "Elb.InternalError", False),
        ("initial", "Elb.InitialHealthChecking", False),
        ("initial", "Elb.RegistrationInProgress", False),
        ("unhealthy", "Target.FailedHealthChecks", False),
        ("unhealthy.draining", None, False),
        ("draining", "Target.DeregistrationInProgress", False),
        ("", None, False),
    ],
)
def test_health_decides(state: str, reason: str | None, taken: bool) -> None:
    health = {"State": state} | ({"Reason": reason} if reason else {})
    target = {"Id": "10.0.0.9", "Port": 80}
    described = [{"Target": target, "TargetHealth": health}] * 2
    assert chosen(described) == (([target] * 2, "") if taken else ([], f"2 {state}"))


def test_without_boto3_it_says_what_to_install(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    found = Targets(TargetGroup(ARN), clock).look()
    assert found == Found((), POLL_S, "target group shadow: boto3 is missing: install shadowtap[aws]")


def test_credentials_that_come_later_are_found(account: Account, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = account.group("ip")
    account.register(arn, {"Id": "10.0.0.9"})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    targets = Targets(TargetGroup(arn, account.url), clock)
    assert "no AWS credentials: give this host a role" in targets.look().problem
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    clock.now_s += POLL_S
    assert addresses(targets.look()) == ["10.0.0.9:8080"]


class Answering:
    """An endpoint that says the same to every request."""

    def __init__(self, status: int, body: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def refusal(code: str, message: str) -> str:
    return f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"


def described(inner: str) -> str:
    return f"<R><DescribeTargetGroupsResult>{inner}</DescribeTargetGroupsResult></R>"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, refusal("AccessDenied", "another text each time"), "AWS refuses DescribeTargetGroups: allow it to those"),
        (403, refusal("ExpiredToken", "it is old"), "AWS refuses DescribeTargetGroups with ExpiredToken: it is old"),
        (200, "<html><p>Welcome</html>", "what answers is not AWS"),
        (200, "", "what answers is not AWS"),
        (200, described(""), "what answers is not AWS"),
        (200, described("<TargetGroups><member></member></TargetGroups>"), "what answers is not AWS"),
        (404, "<html></html>", "AWS refuses DescribeTargetGroups with"),
    ],
)
def test_what_an_endpoint_says_is_a_problem(clock: Clock, status: int, body: str, reason: str) -> None:
    endpoint = Answering(status, body)
    found = Targets(TargetGroup(ARN, endpoint.url), clock).look()
    endpoint.close()
    assert found.upstreams == ()
    assert found.problem.startswith("target group shadow: ")
    assert reason in found.problem


def test_an_overloaded_service_is_asked_again_by_botocore(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    endpoint = Answering(400, refusal("Throttling", "Rate exceeded"))
    found = Targets(TargetGroup(ARN, endpoint.url), clock).look()
    endpoint.close()
    reason = "target group shadow: AWS refuses DescribeTargetGroups with Throttling: Rate exceeded"
    assert found == Found((), POLL_S, reason)


@pytest.mark.parametrize(
    ("arn", "url", "reason"),
    [
        ("nonsense", "", "target group nonsense: not the ARN of a target group"),
        (ARN, "nonsense", "target group shadow: Invalid endpoint: nonsense"),
        (ARN, "http://[", "target group shadow: "),
        (ARN.replace(REGION, ""), "", "target group shadow: "),
        (ARN.replace(REGION, "a b"), "", "target group shadow: "),
    ],
)
def test_settings_that_cannot_be_are_problems(clock: Clock, arn: str, url: str, reason: str) -> None:
    found = Targets(TargetGroup(arn, url), clock).look()
    assert found.upstreams == ()
    assert found.problem.startswith(reason)


def test_an_endpoint_that_nobody_serves(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = Targets(TargetGroup(ARN, url), clock).look()
    assert found.problem == f'target group shadow: Could not connect to the endpoint URL: "{url}/"'


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", ""),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://vpce-1.elasticloadbalancing.eu-west-1.vpce.amazonaws.com", ""),
    ],
)
def test_a_private_endpoint_of_one_service_is_for_that_service(url: str, expected: str) -> None:
    assert module._ec2_url(url) == expected
