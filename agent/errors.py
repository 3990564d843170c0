"""The agent's set-up errors, beside those of `replay.errors`."""

from replay.errors import ShadowtapError


class ConfigError(ShadowtapError):
    """The configuration is wrong: file, key, rule and value."""


class CaptureError(ShadowtapError):
    """A capture file or an interface cannot be read."""


class LoadError(ShadowtapError):
    """The kernel program cannot be compiled, loaded or attached."""
