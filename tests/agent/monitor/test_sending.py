"""Sending: nobody waits for anybody, what can arrive later does, what cannot is counted, and failures have words."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent.alerts_config import AlertsConfig
from agent.monitor import sending
from agent.monitor.alerts import Alert, Notice, Receiver, Severity
from agent.monitor.sending import Outlet, Sender, UndeliveredError, as_line, post

S = 1_000_000_000
OTHERS_S = 10.0  # how long a test waits for what must happen


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def until(what: Callable[[], Any]) -> Any:
    """Its value, once there is one."""
    end = time.monotonic() + OTHERS_S
    while not (value := what()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)
    return value


class Listener:
    """An HTTP server that keeps what it is sent and answers with what it was given, the last answer ever again."""

    def __init__(
        self, *answers: int, headers: Mapping[str, str] | None = None, text: str = "", pause_s: float = 0
    ) -> None:
        self.answers, self.headers, self.text, self.pause_s = list(answers or (200,)), headers or {}, text, pause_s
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(listener.pause_s)
                listener.posts.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(listener.answers[0] if len(listener.answers) == 1 else listener.answers.pop(0))
                for name, value in {"Content-Length": str(len(listener.text)), **listener.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(listener.text.encode())

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Listener:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def alert(name: str = "ShadowFailed", ended: bool = False, **fields: Any) -> Alert:
    given = {"severity": Severity.CRITICAL, "shadow": "candidate", "summary": "slower", "evidence": {"ratio": "1.2"}}
    return Alert(name=name, started_ns=5 * S, ended_ns=9 * S if ended else None, **{**given, **fields})


def message(name: str = "ShadowFailed", ended: bool = False) -> Notice:
    return Notice(Receiver.PEOPLE, alert(name, ended), 20 * S)


def state(name: str = "ShadowFailed", ended: bool = False) -> Notice:
    return Notice(Receiver.ALERTMANAGER, alert(name, ended), 20 * S)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "RETRY_S", 0.02)


class Senders:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.started: list[Sender] = []

    def __call__(self, **config: Any) -> Sender:
        self.started.append(Sender.start(AlertsConfig.model_validate(config), "lb1", self.lines.append))
        return self.started[-1]


@pytest.fixture
def senders() -> Iterator[Senders]:
    made = Senders()
    yield made
    for sender in made.started:
        sender.close(0.2)


def count(sender: Sender, number: int = 0) -> dict[str, int]:
    return list(sender.counts().values())[number]


def test_each_destination_gets_what_is_for_it(senders: Senders) -> None:
    with Listener() as manager, Listener() as hook:
        sender = senders(
            alertmanager=[manager.url + "/am/"], webhooks=[{"url": hook.url + "/x", "headers": {"A": "b"}}]
        )
        sender.send([message(), state()])
        ((path, _, (one,)),) = until(lambda: manager.posts)
        assert (path, one["labels"]["alertname"]) == ("/am/api/v2/alerts", "ShadowFailed")
        ((path, headers, body),) = until(lambda: hook.posts)
        assert (path, headers["A"], headers["Content-Type"]) == ("/x", "b", "application/json")
        assert (body["name"], body["host"]) == ("ShadowFailed", "lb1")
        assert until(lambda: senders.lines) == ["alert firing: critical ShadowFailed of candidate: slower [ratio: 1.2]"]
        until(lambda: all(each["sent"] == 1 for each in sender.counts().values()))
        assert sender.problems() == {}


def test_messages_arrive_in_order_and_after_an_outage(fast: None, senders: Senders) -> None:
    with Listener(503, 503, 429, 200) as hook:
        sender = senders(log=False, webhooks=[hook.url])
        sender.send([message("A"), message("B")])
        sender.send([message("A", ended=True)])
        until(lambda: count(sender)["sent"] == 3)
        assert [(body["name"], body["state"]) for _, _, body in hook.posts[2:]] == [
            ("A", "firing"),
            ("A", "firing"),
            ("B", "firing"),
            ("A", "resolved"),
        ]
        assert count(sender) == {"sent": 3, "failures": 3, "dropped": 0, "replaced": 0, "waiting": 0}
        assert sender.problems() == {}


def test_one_that_is_down_delays_no_other_and_nobody_waits(senders: Senders) -> None:
    with Listener(pause_s=1.5) as slow, Listener() as hook, socket.create_server(("127.0.0.1", 0)) as silent:
        dead = socket.create_server(("127.0.0.1", 0))
        dead_port = dead.getsockname()[1]
        dead.close()
        urls = [slow.url, f"http://127.0.0.1:{dead_port}", f"http://127.0.0.1:{silent.getsockname()[1]}", hook.url]
        sender = senders(webhooks=urls)
        before = time.monotonic()
        for _ in range(50):
            sender.send([message()])
        assert time.monotonic() - before < 0.5
        until(lambda: len(hook.posts) == 50)
        assert time.monotonic() - before < 1.4
        assert slow.posts == []
        problem = until(lambda: sender.problems().get(f"webhooks.1 http://127.0.0.1:{dead_port}"))
        assert problem.startswith("Connection refused (1 in a row, 50 waiting)")


def test_of_alertmanager_only_the_newest_state_waits(fast: None, senders: Senders) -> None:
    with Listener(500) as manager:
        sender = senders(log=False, alertmanager=[manager.url])
        sender.send([state("A"), state("B")])
        until(lambda: manager.posts)
        for _ in range(2000):
            sender.send([state("A")])
        sender.send([state("A", ended=True)])
        manager.answers = [200]
        until(lambda: not count(sender)["waiting"])
        last = {each["labels"]["alertname"]: each["endsAt"] for each in manager.posts[-1][2]}
        assert last["A"] == "1970-01-01T00:00:20.000Z"
        assert count(sender)["dropped"] == 0 and count(sender)["replaced"] >= 2000


def test_a_no_is_final(senders: Senders) -> None:
    with Listener(400, 200, text="bad\nlabels") as hook:
        sender = senders(log=False, webhooks=[hook.url + "/secret"])
        sender.send([message("A")])
        ((name, problem),) = until(lambda: sender.problems().items())
        assert name == f"webhooks.0 {hook.url}"  # without the path
        assert problem == "answers 400 Bad Request: bad labels (1 in a row, 0 waiting)"
        sender.send([message("B")])
        until(lambda: count(sender)["sent"])
        assert [body["name"] for _, _, body in hook.posts] == ["A", "B"]
        assert (count(sender)["dropped"], sender.problems()) == (1, {})


def test_what_waits_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch, senders: Senders) -> None:
    monkeypatch.setattr(sending, "WAITING_MAX", 10)
    monkeypatch.setattr(sending, "RETRY_S", 0.3)
    with Listener(500, 200) as hook:
        sender = senders(log=False, webhooks=[hook.url])
        sender.send([message("0")])
        until(lambda: sender.problems())
        sender.send([message(str(number)) for number in range(1, 25)])
        assert (count(sender)["waiting"], count(sender)["dropped"]) == (10, 15)
        until(lambda: count(sender)["sent"] == 10)
        assert [body["name"] for _, _, body in hook.posts] == ["0", *map(str, range(15, 25))]


def test_what_is_too_old_is_not_sent(monkeypatch: pytest.MonkeyPatch, fast: None, senders: Senders) -> None:
    monkeypatch.setattr(sending, "GIVE_UP_S", 0.2)
    with Listener(500) as hook:
        sender = senders(log=False, webhooks=[hook.url])
        sender.send([message()])
        until(lambda: count(sender)["dropped"] == 1)
        assert 2 <= len(hook.posts) <= 10


def test_a_server_may_say_when_to_come_again(senders: Senders) -> None:
    with Listener(503, 200, headers={"Retry-After": "1"}) as hook:
        sender = senders(log=False, webhooks=[hook.url])
        before = time.monotonic()
        sender.send([message()])
        until(lambda: count(sender)["sent"])
        assert time.monotonic() - before >= 1


def test_closing_tries_what_waits_once_and_does_not_wait_for_the_dead(senders: Senders) -> None:
    with Listener(500) as failing, Listener() as hook, socket.create_server(("127.0.0.1", 0)) as silent:
        sender = senders(webhooks=[failing.url, hook.url, f"http://127.0.0.1:{silent.getsockname()[1]}"])
        sender.send([message("A"), message("B")])
        before = time.monotonic()
        assert sender.close(0.5) == 4
        assert time.monotonic() - before < 0.8
        assert (len(hook.posts), len(senders.lines)) == (2, 2)


def test_a_fault_of_ours_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def deliver(notices: Any) -> None:
        seen.append(notices)
        if len(seen) == 1:
            raise KeyError("x")

    outlet = Outlet("hook", Receiver.PEOPLE, False, deliver)
    outlet.put([message("A")])
    assert until(lambda: outlet.problem).startswith("a fault of the agent: KeyError('x')")
    outlet.put([message("B")])
    until(lambda: outlet.counts().sent)
    outlet.close()
    assert (outlet.problem, outlet.counts().dropped) == ("", 1)
    assert "Traceback" in capsys.readouterr().err


def test_a_log_that_is_gone_is_a_problem() -> None:
    def closed(line: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    sender = Sender.start(AlertsConfig(), "lb1", closed)
    sender.send([message()])
    assert until(sender.problems)["log"].startswith("cannot be written: [Errno 32] Broken pipe")
    sender.close()


def test_a_template_that_went_bad_is_told_and_the_alert_goes_out_all_the_same(tmp_path: Path, senders: Senders) -> None:
    template = tmp_path / "t.json"
    template.write_text('{"text": "${name}"}')
    with Listener() as hook:
        good = AlertsConfig.model_validate({"log": False, "webhooks": [{"url": hook.url, "template": str(template)}]})
        template.unlink()
        sender = Sender.start(good, "lb1", print)
        sender.send([message()])
        assert until(lambda: hook.posts)[0][2]["version"] == 1
        assert list(sender.problems().values()) == [f"sent without its template {template}: there is no such file"]
        sender.close()


def why(url: str, **options: Any) -> tuple[str, bool]:
    with pytest.raises(UndeliveredError) as error:
        post(url, {}, b"{}", **options)
    return str(error.value), error.value.later


def test_redirects_are_not_followed() -> None:
    with Listener() as other, Listener(302, headers={"Location": "file:///etc/passwd"}) as hook:
        assert why(hook.url) == ("answers 302, a redirect: give the URL that it leads to", False)
        hook.headers = {"Location": other.url}
        for code in (301, 303, 307, 308):
            hook.answers = [code]
            assert why(hook.url)[1] is False
        assert other.posts == []


def test_other_schemes_are_not_for_sending(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}", "ftp://127.0.0.1/", "data:,x", "//x", ""):
        assert why(url) == ("only http and https can be sent to", False)


def test_an_answer_that_trickles_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        ended = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                while not ended.wait(0.05):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        before = time.monotonic()
        try:
            assert why(url, limit_s=0.5) == ("no answer within 0.5 s", True)
            assert time.monotonic() - before < 1.5
        finally:
            ended.set()
            thread.join()


def test_silence_nonsense_and_unknown_names_have_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert why(f"http://127.0.0.1:{silent.getsockname()[1]}", limit_s=0.2) == ("no answer within 0.2 s", True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"\x00nonsense\r\n\r\n"))
        thread.start()
        text, later = why(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        assert later and text.isprintable() and text

    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert why("http://name.invalid/") == ("Name or service not known", True)


def test_a_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with Listener() as hook:
        hook.server.socket = context.wrap_socket(hook.server.socket, server_side=True)
        port = hook.server.server_address[1]
        text, later = why(f"https://localhost:{port}")
        assert "certificate verify failed" in text and later
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        post(f"https://localhost:{port}", {}, b"{}")
        assert "IP address mismatch" in why(f"https://127.0.0.1:{port}")[0]
        assert len(hook.posts) == 1


def test_a_log_line_is_one_line() -> None:
    notice = Notice(Receiver.PEOPLE, alert(shadow="", evidence={"a": "1\n2", "b": "3"}, ended=True), 0)
    assert as_line(notice) == "alert resolved: critical ShadowFailed: slower [a: 1 2; b: 3]"
