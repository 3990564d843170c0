"""The whole lab: real servers answer, counters are exact, the shadow changes its mood, and nothing stays."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vagrant.lab import FAULTS, Lab, LabError, Options
from vagrant.lab.network import prefixes
from vagrant.lab.shop import PRODUCTS

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = "from vagrant.lab import Lab\nimport time\nwith Lab() as lab:\n    print(lab.directory, flush=True)\n    "


def shadow_answer(lab: Lab, target: str) -> tuple[int, str]:
    """Status and body of the shadow, asked from the balancer as the agent would."""
    argv = ["curl", "-s", "-w", "%{http_code}", f"http://{lab.shadow_upstream}{target}"]
    output = lab.run_in("lb", argv).stdout
    return int(output[-3:]), output[:-3]


STATUSES = {"/": 200, "/products/7.html": 200, "/api/items/7": 200, "/api/items/999": 404, "/old": 302, "/no": 404}


@pytest.mark.parametrize("target", STATUSES)
def test_routes(lab: Lab, target: str) -> None:
    status = STATUSES[target]
    answer = lab.get(target)
    assert answer.status == status
    head = lab.get(target, method="HEAD")
    assert (head.status, head.body) == (status, b"")
    assert head.headers["content-length"] == str(len(answer.body))


def test_answers_of_every_form(lab: Lab) -> None:
    assert lab.get("/api/orders", method="POST", body=b"{}").status == 201
    assert lab.get("/", headers={"If-None-Match": lab.get("/").headers["etag"]}).status == 304
    assert lab.get("/news").headers["transfer-encoding"] == "chunked"
    assert lab.get("/static/app.js", headers={"Accept-Encoding": "gzip"}).headers["content-encoding"] == "gzip"
    assert len(lab.get("/static/photo.bin").body) == 100_000


def test_both_production_servers_answer_alike(lab: Lab) -> None:
    answers = [lab.get("/api/items/10") for _ in range(2)]
    assert {answer.headers["x-served-by"] for answer in answers} == {"prod1", "prod2"}
    assert len({(answer.body, answer.headers["etag"]) for answer in answers}) == 1


def test_production_counts_requests_and_the_shadow_saw_none(lab: Lab) -> None:
    before, statuses = lab.production_requests(), lab.production_statuses()
    for target in ("/", "/old", "/no", "/"):
        lab.get(target)
    assert lab.production_requests() - before == 4
    assert lab.production_statuses()["2xx"] - statuses.get("2xx", 0) == 2
    assert lab.production_failures() == 0
    assert lab.shadow_requests() == 0


def test_access_logs_are_files(lab: Lab) -> None:
    lab.get("/products/3.html")
    logs = [(lab.directory / f"{name}-access.log").read_text() for name in ("prod1", "prod2")]
    assert "GET /products/3.html" in "".join(logs)


def test_a_failing_command_is_told_with_its_output(lab: Lab) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        lab.run_in("lb", ["sh", "-c", "echo why >&2; exit 3"])
    assert (error.value.returncode, error.value.stderr) == (3, "why\n")
    assert lab.run_in("lb", ["false"], check=False).returncode == 1


def test_a_command_that_takes_too_long_is_killed(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lab.run_in("lb", ["sleep", "1000"], timeout=0.1)
    assert lab.run_in("lb", ["ip", "netns", "pids", Path(lab.netns("lb")).name]).stdout.count("\n") <= 2


def test_faults_are_where_they_are_said_to_be() -> None:
    targets = ["/", "/old", "/news", "/no", *(f"/products/{n}.html" for n in range(1, PRODUCTS + 1))]
    targets += [f"/api/items/{n}" for n in range(1, PRODUCTS + 1)]
    with Lab(Options(shadow_faults=True)) as lab:
        urls = [f"http://{lab.shadow_upstream}{target}" for target in targets]
        production = [f"http://{lab.address('prod1')}{target}" for target in targets]
        shadow_text = lab.run_in("lb", ["curl", "-s", "-w", "\n%{http_code}\x01", *urls]).stdout.split("\x01")
        production_text = lab.run_in("lb", ["curl", "-s", "-w", "\n%{http_code}\x01", *production]).stdout.split("\x01")
        pairs = zip(targets, shadow_text, production_text, strict=False)
        different = {target for target, shadow, true in pairs if shadow != true}
        assert lab.shadow_requests() == len(targets)
    assert different == {target for target in targets if any(fault.shows(target) for fault in FAULTS)}
    assert len(different) == 4 + 1 + 20


def test_the_shadow_goes_and_comes_back() -> None:
    with Lab(Options(shadow="down")) as lab:
        refused = lab.run_in("lb", ["curl", "-s", f"http://{lab.shadow_upstream}/"], check=False)
        assert refused.returncode == 7
        assert lab.shadow_requests() == 0
    with Lab() as lab:
        assert shadow_answer(lab, "/")[0] == 200
        lab.stop_shadow()
        assert lab.run_in("lb", ["curl", "-s", f"http://{lab.shadow_upstream}/"], check=False).returncode == 7
        lab.start_shadow()
        lab.start_shadow()
        assert lab.shadow_requests() == 0
        assert shadow_answer(lab, "/")[0] == 200
        assert lab.shadow_requests() == 1


def test_a_hanging_shadow_accepts_and_is_silent() -> None:
    with Lab() as lab:
        lab.hang_shadow()
        argv = ["curl", "-s", "-m", "0.3", f"http://{lab.shadow_upstream}/"]
        assert lab.run_in("lb", argv, check=False).returncode == 28
        lab.unhang_shadow()
        assert shadow_answer(lab, "/")[0] == 200


@pytest.mark.parametrize("kind", ["nginx", "origin"])
def test_the_shadow_takes_its_time(kind: str) -> None:
    options = Options(shadow="origin" if kind == "origin" else "nginx", shadow_delay_ms=80)
    with Lab(options) as lab:
        argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{time_total} %{http_code}", f"http://{lab.shadow_upstream}/"]
        seconds, status = lab.run_in("lb", argv).stdout.split()
        assert float(seconds) >= 0.079
        assert status == "200"
        assert lab.shadow_requests() == 1


def test_a_server_that_cannot_start_is_told() -> None:
    lab = Lab()
    with pytest.raises(LabError, match="ended with"), lab:
        lab.stop_shadow()
        (lab.directory / "shadow.conf").write_text("nonsense;")
        lab.start_shadow()
    assert lab.network.prefix not in prefixes()


def test_an_exception_leaves_nothing() -> None:
    with pytest.raises(RuntimeError), Lab() as lab:
        guest = lab.popen_in("client", ["sleep", "1000"])
        raise RuntimeError
    assert guest.wait(5) == -9
    assert lab.network.prefix not in prefixes()
    assert not lab.directory.exists()


def test_two_labs_at_once() -> None:
    with Lab() as one, Lab() as other:
        one.get("/")
        assert (one.production_requests(), other.production_requests()) == (1, 0)


def test_a_lab_may_be_made_in_another_thread() -> None:
    answers = []

    def work() -> None:
        with Lab() as lab:
            answers.append(lab.get("/").status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [200]


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_killed_lab_leaves_nothing_after_the_next_one(signal_name: str) -> None:
    code = ENDLESS + "time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    directory = Path(process.stdout.readline().decode().strip())
    subprocess.run(["kill", f"-{signal_name}", str(process.pid)], check=True)
    process.communicate(timeout=20)
    if signal_name == "SIGKILL":
        with Lab():  # its start removes what the other could not
            pass
    assert process.returncode != 0
    assert not directory.exists()
    assert directory.name not in prefixes()


def test_servers_die_with_the_lab_even_if_it_is_killed() -> None:
    code = ENDLESS + "time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    directory = process.stdout.readline().decode().strip()
    process.kill()
    process.communicate(timeout=20)
    end = time.monotonic() + 10
    while (left := subprocess.run(["pgrep", "-f", directory], check=False, capture_output=True).stdout) and (
        time.monotonic() < end
    ):
        time.sleep(0.05)
    assert left == b""
    with Lab():
        pass
