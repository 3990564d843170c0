"""What the lab's web servers serve: a small shop, and the faults that can be planted in the shadow's copy of it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PRODUCTS = 200
STATIC_BYTES = 100_000
INDEX_BYTES = 2_000

# The same on every server, so that ETags (nginx makes them of time and size) are too.
_MODIFIED_SECONDS = 1_700_000_000

_WRONG_PRICE_EVERY = 10
_BROKEN_PRODUCT = r"^/products/\d*[05]0\.html$"


@dataclass(frozen=True, slots=True)
class Fault:
    """One planted fault: the route it is on, what is wrong, and which targets show it."""

    route: str
    what: str
    shows: Callable[[str], bool]


def _number(target: str, before: str, after: str) -> int:
    """The number in a target such as /api/items/17, or 0."""
    middle = target.removeprefix(before).removesuffix(after)
    return int(middle) if target.startswith(before) and middle.isdigit() else 0


def _wrong_price(number: int) -> bool:
    return 0 < number <= PRODUCTS and number % _WRONG_PRICE_EVERY == 0


FAULTS = (
    Fault(
        "/products/{}.html",
        "every 50th product page answers 500 instead of 200",
        lambda target: (number := _number(target, "/products/", ".html")) > 0 and number % 50 == 0,
    ),
    Fault("/old", "redirects with 301 instead of 302", lambda target: target == "/old"),
    Fault(
        "/api/items/{}",
        "every 10th item's price is one cent too high (same status, same length)",
        lambda target: _wrong_price(_number(target, "/api/items/", "")),
    ),
)
FAULT_LOCATIONS = f"location ~ {_BROKEN_PRODUCT} {{ return 500; }}"
REDIRECT = "302 /"
FAULTY_REDIRECT = "301 /"


def write_site(directory: Path, *, faults: bool) -> None:
    """Write the shop's files into a new directory."""
    for folder in ("products", "api/items", "static"):
        (directory / folder).mkdir(parents=True)
    files = {"index.html": _page("Shop", INDEX_BYTES), "news.html": _news(), "static/app.js": _script()}
    for number in range(1, PRODUCTS + 1):
        files[f"products/{number}.html"] = _page(f"Product {number}", 800 + 17 * number)
        files[f"api/items/{number}.json"] = _item(number, wrong=faults and _wrong_price(number))
    contents = {name: text.encode() for name, text in files.items()}
    contents["static/photo.bin"] = random.Random(1).randbytes(STATIC_BYTES)
    for name, content in contents.items():
        path = directory / name
        path.write_bytes(content)
        os.utime(path, (_MODIFIED_SECONDS, _MODIFIED_SECONDS))


def etag(directory: Path, name: str) -> str:
    """The ETag nginx gives a file."""
    return f'"{_MODIFIED_SECONDS:x}-{(directory / name).stat().st_size:x}"'


def _page(title: str, size: int) -> str:
    head = f"<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n<p>"
    return head + "lorem ipsum " * ((size - len(head)) // 12) + "</p>\n"


def _news() -> str:
    items = "\n".join(f"<li>News item {n}</li>" for n in range(40))
    return f'<!doctype html>\n<title>News</title>\n<p>You read <!--# echo var="uri" --></p>\n<ul>\n{items}\n</ul>\n'


def _script() -> str:
    lines: list[str] = []
    size = 0
    while size < STATIC_BYTES:
        line = f"export function step{len(lines)}(x) {{ return x * {len(lines)} + 1; }}\n"
        lines.append(line)
        size += len(line)
    return "".join(lines)


def _item(number: int, *, wrong: bool) -> str:
    price = 1000 + 37 * number + (1 if wrong else 0)
    return json.dumps({"id": number, "name": f"Item {number}", "price_cents": price, "in_stock": number % 3 != 0})
