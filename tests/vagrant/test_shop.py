"""The shop's files, and the faults in the shadow's copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vagrant.lab.shop import FAULTS, PRODUCTS, etag, write_site


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    parent = tmp_path_factory.mktemp("sites")
    for name in ("true", "faulty"):
        write_site(parent / name, faults=name == "faulty")
    return parent / "true", parent / "faulty"


def test_only_the_prices_differ_and_only_their_content(sites: tuple[Path, Path]) -> None:
    true, faulty = sites
    different = set()
    for path in sorted(true.rglob("*.*")):
        other = faulty / path.relative_to(true)
        assert path.stat().st_size == other.stat().st_size
        if path.read_bytes() != other.read_bytes():
            different.add(str(path.relative_to(true)))
    assert different == {f"api/items/{number}.json" for number in range(10, PRODUCTS + 1, 10)}


def test_a_wrong_price_is_one_cent_off(sites: tuple[Path, Path]) -> None:
    true, faulty = (json.loads((site / "api/items/10.json").read_text()) for site in sites)
    assert faulty["price_cents"] - true["price_cents"] == 1
    assert {**faulty, "price_cents": 0} == {**true, "price_cents": 0}


def test_etags_are_the_same_on_all_servers(sites: tuple[Path, Path]) -> None:
    true, faulty = sites
    assert etag(true, "index.html") == etag(faulty, "index.html")


@pytest.mark.parametrize(
    ("target", "routes"),
    [
        ("/", []),
        ("/old", ["/old"]),
        ("/products/50.html", ["/products/{}.html"]),
        ("/products/51.html", []),
        ("/products/.html", []),
        ("/api/items/20", ["/api/items/{}"]),
        ("/api/items/21", []),
        ("/api/items/1000", []),
    ],
)
def test_which_targets_show_a_fault(target: str, routes: list[str]) -> None:
    assert [fault.route for fault in FAULTS if fault.shows(target)] == routes
