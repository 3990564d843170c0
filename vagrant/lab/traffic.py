"""The lab's client at work: single requests, and load of every kind."""

from __future__ import annotations

import http.client
import itertools
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vagrant.lab import shop
from vagrant.lab.load import SPARE_SECONDS, Load, h2load_argv, parse_h2load, parse_visits, parse_wrk, wrk_argv
from vagrant.lab.network import ADDRESSES, LabError, Network
from vagrant.lab.processes import Guests
from vagrant.lab.servers import TEMPLATES

_GET_SECONDS = 10.0
_VISITS = Path(__file__).parent / "visits.py"


class Answer(NamedTuple):
    """What the client was told."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class Traffic(ABC):
    """What the client can do. The Lab is one; it says where things run."""

    directory: Path
    network: Network
    guests: Guests
    url = f"http://{ADDRESSES['lb']}"

    @abstractmethod
    def run_in(
        self, namespace: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command in a namespace."""

    def get(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One request from the client, on a connection of its own."""
        with self.network.inside("client"):
            connection = http.client.HTTPConnection(ADDRESSES["lb"], timeout=_GET_SECONDS)
            try:
                connection.request(method, target, body, dict(headers or {}))
                answer = connection.getresponse()
                names = {name.lower(): value for name, value in answer.getheaders()}
                return Answer(answer.status, names, answer.read())
            finally:
                connection.close()

    def saturate(self, seconds: float, *, connections: int = 32, threads: int = 1, target: str = "/") -> Load:
        """As many requests as production can answer."""
        return self._wrk("", f"{self.url}{target}", seconds, connections, threads, [])

    def saturate_marked(self, seconds: float, *, every: int, connections: int = 32, target: str = "/") -> Load:
        """The same, with the header `X-Shadow-Test: 1` on one request in so many, on every connection."""
        script = (TEMPLATES / "marked.lua").read_text()
        return self._wrk(script, self.url, seconds, connections, 1, [target, str(every)])

    def mix(self, seconds: float, *, connections: int = 20, rate: float | None = None, seed: int = 1) -> Load:
        """The mixture of the shop's routes, at about `rate` requests a second (waits are random) or at full speed."""
        wait_ms = 0.0 if rate is None else 1000 * connections / rate
        args = [shop.etag(self.directory / "site", "index.html"), f"{wait_ms:.3f}", str(seed)]
        script = (TEMPLATES / "mix.lua").read_text()
        if not wait_ms:
            script = script.replace("function delay()", "local function unused()")
        return self._wrk(script, self.url, seconds, connections, 1, args)

    def rate(
        self, requests_per_second: float, seconds: float, *, connections: int = 50, targets: Sequence[str] = ("/",)
    ) -> Load:
        """A fixed number of requests a second, over so many connections, each asking the targets in turn."""
        count = round(requests_per_second * seconds)
        return self._h2load(count, min(connections, count), targets, requests_per_second)

    def requests(self, count: int, *, connections: int = 10, targets: Sequence[str] = ("/",)) -> Load:
        """Exactly so many requests, as fast as they are answered."""
        return self._h2load(count, min(connections, count), targets, None)

    def visits(
        self,
        connections: int,
        requests_each: int = 1,
        *,
        concurrency: int = 50,
        target: str = "/",
        method: str = "GET",
    ) -> Load:
        """Exactly so many connections with so many requests each; all are closed in order."""
        address = f"{ADDRESSES['lb']}:80"
        argv = [sys.executable, str(_VISITS), "--address", address, "--connections", str(connections)]
        argv += ["--requests-each", str(requests_each), "--concurrency", str(concurrency)]
        argv += ["--target", target, "--method", method]
        return parse_visits(self.run_in("client", argv, timeout=SPARE_SECONDS + connections / 100).stdout)

    @contextmanager
    def background(self, load: Callable[..., Load], *args: Any, **options: Any) -> Iterator[Future[Load]]:
        """Run a load beside the block; the end of the block waits for it, an exception in the block ends it."""
        with ThreadPoolExecutor(1) as pool:
            thread = pool.submit(threading.get_ident).result()
            self.guests.admit(thread)
            future = pool.submit(load, *args, **options)
            try:
                yield future
                future.exception()
            except BaseException:
                self.guests.end_thread(thread)
                raise

    def _wrk(
        self, script: str, url: str, seconds: float, connections: int, threads: int, args: Sequence[str]
    ) -> Load:
        path = self._file(".lua")
        path.write_text(script + (TEMPLATES / "summary.lua").read_text())
        argv = wrk_argv(url, path, seconds, connections, threads, args)
        return parse_wrk(self._client(argv, seconds))

    def _h2load(self, count: int, connections: int, targets: Sequence[str], rate: float | None) -> Load:
        urls, log = self._file(".urls"), self._file(".tsv")
        urls.write_text("".join(f"{self.url}{target}\n" for target in targets))
        argv = h2load_argv(urls, log, count, connections, rate)
        output = self._client(argv, count / rate if rate else 0.0)
        text = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        return parse_h2load(output, text)

    def _client(self, argv: list[str], seconds: float) -> str:
        """Run a load program; its output."""
        try:
            output: str = self.run_in("client", argv, timeout=seconds + SPARE_SECONDS).stdout
        except subprocess.TimeoutExpired:
            raise LabError(f"{argv[0]} took {SPARE_SECONDS:.0f} s longer than planned: production hangs?") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or error.stdout).strip() or f"exit code {error.returncode}"
            raise LabError(f"{argv[0]}: {reason.splitlines()[-1]}") from None
        return output

    def _file(self, suffix: str) -> Path:
        """A file name not used before in this lab."""
        return self.directory / f"load-{next(_numbers)}{suffix}"


_numbers = itertools.count(1)

