"""A shadow in one line."""

from __future__ import annotations

from typing import Any


def shadow_line(shadow: dict[str, Any]) -> str:
    """From what the agent says of it."""
    parts = ["enabled" if shadow.get("enabled") else "disabled"]
    if shadow.get("percentage") is not None:
        by = shadow.get("sample_by") or "connection"
        parts.append(f"{shadow['percentage']:g} % of the {f'requests by {by}' if ':' in by else f'{by}s'}")
    if shadow.get("criteria"):
        parts.append(f"criteria {shadow['criteria']}")
    return f"{shadow.get('name', '?')}: {', '.join(parts)}"
