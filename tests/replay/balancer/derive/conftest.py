"""Fixtures of the tests with HAProxy: the files to derive from, and one that runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.replay.balancer.derive.haproxy_harness import CORPUS, HAPROXY, Running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, with certificates beside them."""
    folder = tmp_path_factory.mktemp("haproxy") / "etc"
    shutil.copytree(CORPUS, folder)
    certificates = folder / "certs"
    certificates.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(certificates / "ca.pem"))
    site = authority.issue_cert("www.example.com", "*.example.com")
    site.private_key_and_cert_chain_pem.write_to_path(str(certificates / "site.pem"))
    lines = "site.pem [alpn h2,http/1.1] www.example.com shop.example.com\nsite.pem *.example.com !old.example.com\n"
    (certificates / "crt-list.txt").write_text(lines)
    return folder


@pytest.fixture
def here(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(corpus)
    return corpus


@pytest.fixture(scope="module")
def running(corpus: Path) -> Iterator[Running]:
    if HAPROXY is None:
        pytest.skip("haproxy is not installed")
    haproxy = Running(corpus)
    yield haproxy
    haproxy.stop()
