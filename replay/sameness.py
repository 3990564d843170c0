"""Whether two answers are the same: status and body. Headers are left to those who know which of them matter.

What was not kept cannot be compared; where a hash of it was taken, that is. Then the answer may be None: unknown.
"""

from __future__ import annotations

import hashlib

from replay.exchange import Answer, Outcome, Response

HASH_LIMIT_BYTES = 256 * 1024  # hashing more than this would hold up the worker: 256 KiB take about 0.15 ms

_NEW_SHA1 = hashlib.sha1(usedforsecurity=False)


def same(production: Response, outcome: Outcome) -> bool | None:
    """Whether the shadow answered as production did; None when it did not answer, or a body is known in part only."""
    if outcome.answer is not Answer.OK:
        return None
    if production.status != outcome.status:
        return False
    if not production.complete:
        return None
    ours, theirs, length = production.body, outcome.body, outcome.body_bytes
    if production.body_bytes != length:
        return False
    if len(ours) == length == len(theirs):
        return ours == theirs
    if len(theirs) != length or length > HASH_LIMIT_BYTES:
        return None
    sha1 = known_sha1(production)
    return None if sha1 is None else sha1 == sha1_of(theirs)


def alike(first: Outcome, second: Outcome) -> bool | None:
    """As `same`, for two answers of the shadow."""
    if first.answer is not Answer.OK or second.answer is not Answer.OK:
        return None
    if first.status != second.status or first.body_bytes != second.body_bytes:
        return False
    if len(first.body) == first.body_bytes == len(second.body):
        return first.body == second.body
    return None


def known_sha1(response: Response) -> str | None:
    """As `exchange.body_sha1`, in two thirds of the time, and no more than the limit is hashed here."""
    if not response.complete:
        return None
    if response.body_sha1 is not None or not response.body_bytes == len(response.body) <= HASH_LIMIT_BYTES:
        return response.body_sha1
    return sha1_of(response.body)


def sha1_of(body: bytes) -> str:
    """In hex."""
    # With OpenSSL 3 a copy takes half as long as a new one, for which it looks the algorithm up.
    made = _NEW_SHA1.copy()
    made.update(body)
    return made.hexdigest()
