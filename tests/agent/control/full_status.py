"""An answer to GET /v1/status in which every part says something."""

from __future__ import annotations

from typing import Any

from tests.agent.control.fake_desk import AT_NS, VERDICT

STARTED_NS = AT_NS
NOW_NS = STARTED_NS + 725 * 10**9  # 12 min 5 s later


def shadow(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "enabled": True, "percentage": 25.0, "criteria": "path:/api/*", "sample_by": "client", **more
    }  # fmt: skip


def side(p50: float | None, **more: Any) -> dict[str, Any]:
    return {
        "requests_per_s": 118.24, "error_share": 0.0012, "p50_ns": p50, "p90_ns": 9_120_000, "p99_ns": 1_200_000_000,
        **more,
    }  # fmt: skip


def account(**more: Any) -> dict[str, Any]:
    plain = {"seen": 1000, "replayed": 985, "incomplete": {"gap": 3}, "skipped": {}, "dropped": {"queue_full": 2}}
    return {**plain, "in_flight": 10, "answers": {"ok": 985}, **more}


def full() -> dict[str, Any]:
    """Three shadows: one goes up a ramp, one is tripped, of one nothing is known."""
    passing = {**VERDICT["findings"][0], "word": "pass", "sentence": "latency: pass; shadow +0.1% over 42 blocks"}
    usage = {"cpu_cores": 0.5, "memory_bytes": 3 * 2**30, "cpu_seconds_per_request": 0.00081, "missing": []}
    return {
        "shadows": [shadow("candidate"), shadow("second", sample_by="header:X-A"), shadow("third", enabled=False)],
        "accounts": {"candidate": account()},
        "kernel": {"copied": 11_990, "ring_full": 7, "over_budget": 3, "unsampled": 5, "lease_lapses": 0},
        "restarts": 1,
        "pools": {"candidate": {"engine": "embedded", "upstreams": ["198.51.100.1:80"], "problem": "one is ejected"}},
        "guards": {
            "candidate": {"state": "active", "cause": "", "reason": "", "since_ns": STARTED_NS, "trips": 2},
            "second": {"state": "tripped", "cause": "judge", "reason": "latency: +20.1%", "since_ns": STARTED_NS,
                       "trips": 1, "cooldown_left_s": 420.0, "permanent": False},
            "third": {"state": "tripped", "cause": "manual", "reason": "\x1b[2Jby hand", "since_ns": STARTED_NS,
                      "trips": 1, "cooldown_left_s": 0, "permanent": True},
        },
        "verdicts": {
            "candidate": {**VERDICT, "word": "inconclusive", "rollback": False, "reason": "tail: too few blocks",
                          "findings": [passing]},
            "second": VERDICT,
        },
        "traffic": {
            "candidate": {"seconds": 60.0, "production": side(5_100_000), "shadow": side(5_600_000),
                          "shadow_response": side(None), "different_share": 0.0123, "lost_per_s": 1.5,
                          "lag_p99_ns": 310_000},
        },
        "resources": {
            "production": usage,
            "shadows": {"candidate": {**usage, "memory_bytes": None, "cpu_seconds_per_request": None,
                                      "missing": [["10.0.0.21:9100", "connection refused"]]}},
        },
        "ramps": {
            "candidate": {"state": "running", "step": 2, "percentage": 25.0, "held_s": 185.0, "inconclusive": 0,
                          "steps": [{"percentage": 5, "hold_s": 300}, {"percentage": 25, "hold_s": 600}]},
            "second": {"state": "none"},
        },
        "harm": {**VERDICT, "word": "pass", "rollback": False, "reason": "", "findings": []},
        "alerts": [
            {"name": "ShadowTripped", "severity": "critical", "shadow": "second", "summary": "shadow second is off",
             "started_ns": STARTED_NS},
            {"name": "StateNotKept", "severity": "warning", "shadow": "", "summary": "no space left"},
        ],
        "problems": ["/var/lib/shadowtap: No space left on device"],
        "version": 12,
    }  # fmt: skip
