"""What a shadow takes and where that goes, in words."""

from __future__ import annotations

from agent.config import Config
from agent.shadow_config import Shadow


def describe(name: str, shadow: Shadow) -> str:
    """What one shadow takes and where that goes, for people."""
    target = f"for {name}, captured only" if shadow.captures_only else f"to shadow {name} ({_pool(shadow)})"
    wanted = "" if shadow.criteria.strip().lower() == "random" else f" with {shadow.criteria}"
    by, value_name = shadow.sampling
    share = f"{shadow.percentage:g} % of the {f'requests by {by}:{value_name}' if value_name else f'{by}s'}"
    return f"{share}{wanted} {target}{'' if shadow.enabled else ' (disabled)'}"


def _pool(shadow: Shadow) -> str:
    balancer, discovery = shadow.balancer, shadow.discovery
    if balancer.is_program:
        return f"{balancer.engine} with {balancer.from_}"
    if shadow.shadow_pool_arn is not None:
        return shadow.shadow_pool_arn
    if discovery.dns is not None or discovery.file is not None:
        return f"as {discovery.dns.name if discovery.dns else discovery.file} says"
    return ", ".join(upstream.address for upstream in shadow.upstreams)


def describe_run(config: Config, attached: str) -> str:
    """A whole run in one line; `attached` as the tap says it."""
    capture = config.capture
    how = "TCX" if attached == "tcx" else "clsact"
    where = f"{capture.interface} port {', '.join(map(str, capture.ports))}"
    shadows = "; ".join(describe(name, shadow) for name, shadow in config.shadows.items())
    return f"{shadows}, on {where} ({how}, {capture.workers} worker{'s' * (capture.workers > 1)})"
