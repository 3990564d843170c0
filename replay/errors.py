"""The errors that bad set-up raises, which the command line prints as one line. Bad traffic is counted instead."""


class ShadowtapError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


class RecordingError(ShadowtapError):
    """A recording directory cannot be written or read."""


class UpstreamError(ShadowtapError):
    """An address of a shadow pool cannot be used."""
