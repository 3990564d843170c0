"""Which differences between two answers mean nothing, because the shadow's own answers differ as well.

Of some requests two answers of one side are known: users ask production the same again (agent/monitor/repeats.py), and
the shadow may be asked twice (agent/echo.py). On a route where these never differed, every pair can be compared. On any
other, only those pairs count, both ways: how often production and shadow differ, and how often a side differs from
itself.

Noise may be too rare to have been seen in the few requests that were asked twice. So where production and shadow do
differ now and then, a route is quiet only if noise as frequent as that would have been seen in them by now.
"""

from __future__ import annotations

from typing import Any

ECHOES_NEEDED = 20  # without a difference, until a route counts as quiet
EXPECTED_NOISY = 11  # of them, if the differences were noise: to see none has a chance of exp(-11)
ROUTES_MAX = 1000  # what comes after them is never quiet


class Noise:
    """What is known of each route. Which statistic a pair goes into depends on the past only."""

    def __init__(self) -> None:
        # By route: asked twice, of these different; since the first of them asked once and compared, of these different
        self._echoes: dict[str, list[int]] = {}

    def judge(self, route: str, different: bool | None, noisy: bool | None) -> tuple[bool | None, bool | None]:
        """A pair's `different` and `noisy` as the judge is to take them, and learn from it."""
        if noisy is not None:
            self._learn(route, noisy)
            return different, (noisy if different is not None else None)
        seen = self._echoes.get(route)
        if seen is None or different is None:
            return None, None
        seen[2] += 1
        seen[3] += different
        return (different, False) if _quiet(*seen) else (None, None)

    @property
    def noisy_routes(self) -> list[str]:
        """Routes whose answers differ by themselves."""
        return sorted(route for route, seen in self._echoes.items() if seen[1])

    def as_json(self) -> dict[str, Any]:
        """The state; `from_json` reads it back."""
        return {"echoes": {route: list(seen) for route, seen in self._echoes.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Noise:
        """Inverse of `as_json`."""
        noise = cls()
        for route, (asked, noisy, once, different) in data["echoes"].items():
            noise._echoes[str(route)] = [int(asked), int(noisy), int(once), int(different)]
        return noise

    def _learn(self, route: str, noisy: bool) -> None:
        seen = self._echoes.get(route)
        if seen is None:
            if len(self._echoes) >= ROUTES_MAX:
                return
            seen = self._echoes[route] = [0, 0, 0, 0]
        seen[0] += 1
        seen[1] += noisy


def _quiet(asked: int, noisy: int, once: int, different: int) -> bool:
    if asked < ECHOES_NEEDED or noisy:
        return False
    return not different or asked * different >= EXPECTED_NOISY * once
