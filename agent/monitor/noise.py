"""Which differences between two answers mean nothing, because the shadow's own answers differ as well.

Of some requests two answers of one side are known: users ask production the same again (agent/monitor/repeats.py), and
the shadow may be asked twice (agent/echo.py). On a route where these never differed, every pair can be compared. On any
other, only those pairs count, both ways: how often production and shadow differ, and how often a side differs from
itself.
"""

from __future__ import annotations

from typing import Any

ECHOES_NEEDED = 20  # without a difference, until a route counts as quiet
ROUTES_MAX = 1000  # what comes after them is never quiet


class Noise:
    """What is known of each route. Which statistic a pair goes into depends on the past only."""

    def __init__(self) -> None:
        self._echoes: dict[str, list[int]] = {}  # by route: asked twice, of these different

    def judge(self, route: str, different: bool | None, noisy: bool | None) -> tuple[bool | None, bool | None]:
        """A pair's `different` and `noisy` as the judge is to take them, and learn from it."""
        seen = self._echoes.get(route)
        quiet = seen is not None and seen[0] >= ECHOES_NEEDED and not seen[1]
        if noisy is not None:
            self._learn(route, noisy)
            return different, (noisy if different is not None else None)
        return (different, False) if quiet and different is not None else (None, None)

    @property
    def noisy_routes(self) -> list[str]:
        """Routes whose answers differ by themselves."""
        return sorted(route for route, (_, different) in self._echoes.items() if different)

    def as_json(self) -> dict[str, Any]:
        """The state; `from_json` reads it back."""
        return {"echoes": {route: list(seen) for route, seen in self._echoes.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Noise:
        """Inverse of `as_json`."""
        noise = cls()
        for route, (asked, different) in data["echoes"].items():
            noise._echoes[str(route)] = [int(asked), int(different)]
        return noise

    def _learn(self, route: str, noisy: bool) -> None:
        seen = self._echoes.get(route)
        if seen is None:
            if len(self._echoes) >= ROUTES_MAX:
                return
            seen = self._echoes[route] = [0, 0]
        seen[0] += 1
        seen[1] += noisy
