"""Exchanges and outcomes for the tests of recording and comparison."""

from __future__ import annotations

from replay.exchange import Answer, Exchange, Incomplete, Outcome, Request, Response

T0 = 1_750_000_000_000_000_000
MS = 1_000_000


def make_request(
    target: str = "/", method: str = "GET", at_ns: int = T0, headers: bytes = b"Host: shop.example\r\n"
) -> Request:
    """A whole request without a body."""
    head = method.encode() + b" " + target.encode("latin-1") + b" HTTP/1.1\r\n" + headers + b"\r\n"
    return Request(method, target, 11, head, b"", 0, None, at_ns, at_ns)


def make_response(
    status: int = 200,
    body: bytes = b"body",
    first_ns: int = T0 + MS,
    last_ns: int = T0 + 2 * MS,
    headers: bytes = b"Content-Type: text/plain\r\n",
    complete: bool = True,
) -> Response:
    """A response whose body was kept."""
    head = f"HTTP/1.1 {status} Word\r\n".encode() + headers + b"\r\n"
    return Response(status, 11, head, body, len(body), first_ns, last_ns, complete)


def make_exchange(
    request: Request | None = None,
    response: Response | None = None,
    index: int = 0,
    incomplete: Incomplete | None = None,
) -> Exchange:
    """An exchange of one connection."""
    return Exchange("192.0.2.1:5555", "198.51.100.1:80", 7, index, request, response, incomplete=incomplete)


def make_outcome(
    status: int = 200,
    body: bytes = b"body",
    sent_ns: int = T0 + MS,
    first_ns: int = T0 + 3 * MS,
    last_ns: int = T0 + 5 * MS,
    answer: Answer = Answer.OK,
    headers: bytes = b"Content-Type: text/plain\r\n",
    detail: str = "",
) -> Outcome:
    """What the shadow answered."""
    head = f"HTTP/1.1 {status} Word\r\n".encode() + headers + b"\r\n" if status else b""
    return Outcome(
        answer, "10.0.0.1:8080", status, head, body, len(body), sent_ns - MS, sent_ns, first_ns, last_ns, detail
    )


def failed_outcome(answer: Answer, sent_ns: int = T0 + MS) -> Outcome:
    """The shadow gave no answer."""
    return Outcome(answer, "10.0.0.1:8080", 0, b"", b"", 0, sent_ns - MS, sent_ns, 0, 0, answer.value)
