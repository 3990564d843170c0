"""Policies: which upstream of a pool the next request goes to.

A policy is a pure function. It sees the candidates with their passive state, the request, and how many assignments
were made before this one; it changes nothing. The engine acts on what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from replay.balancer.upstream import Upstream
from replay.exchange import Request

Policy = Callable[[Sequence[Upstream], Request, int], Upstream]
"""(candidates, at least one; request; number of earlier assignments) -> one of the candidates."""


def round_robin(candidates: Sequence[Upstream], request: Request, turn: int) -> Upstream:
    """Each in its turn."""
    return candidates[turn % len(candidates)]


POLICIES: Mapping[str, Policy] = MappingProxyType({"round_robin": round_robin})
