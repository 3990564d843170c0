"""Says how the shadow compares: reads a recording, counts and measures by route, and puts it into words."""

from replay.compare.comparison import compare
from replay.compare.read import recordings_in
from replay.compare.render import render
from replay.compare.report import Report, as_json

__all__ = ["Report", "as_json", "compare", "recordings_in", "render"]
