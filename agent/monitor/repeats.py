"""What production itself answers to one and the same request, asked again: differences there are noise, and finding
them costs nothing.

Only requests that are alike to the byte count, since anything in a head may change the answer, and only within a short
time, since content changes. A few seconds between two answers show more noise than the moment between production's and
the shadow's, so the shadow is never blamed for too much.
"""

from __future__ import annotations

from collections import OrderedDict

from replay.exchange import Request, Response

METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
WITHIN_NS = 30_000_000_000
REQUESTS_MAX = 4096

Answer = tuple[int, int, int, int]  # when it was asked; status, length and hash of the body


class Repeats:
    """The last answers, of as many different requests: 1 MB at most. Costs about a microsecond a request.

    Heads are told apart by Python's hash of them, which is keyed with a secret: that two of so many are alike is less
    likely than 1 in 10^15 a request, and would mean noise at most. A cryptographic digest takes five times as long.
    """

    __slots__ = ("_answers",)

    def __init__(self) -> None:
        self._answers: OrderedDict[int, Answer] = OrderedDict()

    def differ(self, request: Request, response: Response) -> bool | None:
        """Whether this answer differs from the one to the same request before it; None when there was none."""
        if request.method not in METHODS or request.body_bytes or response.body_bytes != len(response.body):
            return None
        answers, at_ns = self._answers, request.t_first_ns
        answer = (at_ns, response.status, response.body_bytes, hash(response.body))
        head = hash(request.head)
        before = answers.pop(head, None)
        answers[head] = answer
        if before is None:
            if len(answers) > REQUESTS_MAX:
                answers.popitem(last=False)
            return None
        return before[1:] != answer[1:] if 0 <= at_ns - before[0] <= WITHIN_NS else None
