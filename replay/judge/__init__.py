"""Judges a shadow while it runs: evidence that may be looked at after every block of time, with a stated error rate."""

from replay.judge.blocks import Block, BlockBuilder, Lost, Pair
from replay.judge.judge import ALL, Judge
from replay.judge.plan import DEFAULT_PLANS, Kind, MetricPlan, Settings
from replay.judge.verdict import Finding, Verdict, Word, as_json, sentence

__all__ = [
    "ALL", "DEFAULT_PLANS", "Block", "BlockBuilder", "Finding", "Judge", "Kind", "Lost", "MetricPlan", "Pair",
    "Settings", "Verdict", "Word", "as_json", "sentence",
]  # fmt: skip
