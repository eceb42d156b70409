"""Errors for users: which value is wrong, where it came from and what to do; each class has its exit code.

The command line prints their message without a traceback and exits with `exit_code`. The codes follow BSD's
sysexits.h (64 usage, 65 data, 70 internal, 75 temporary failure); 66 stands for a checkpoint that cannot be used.
Any other exception is a bug and keeps its traceback.
"""


class MegabertError(Exception):
    """Base class of the errors that the command line prints as one message."""

    exit_code = 70
    is_reported = False
    """Whether another process of the same run already prints this error."""


class ConfigError(MegabertError):
    """A setting or an argument does not exist, is invalid, or contradicts another."""

    exit_code = 64


class InputError(MegabertError):
    """A data file cannot be parsed, or a loss or norm is not finite."""

    exit_code = 65


class CheckpointError(MegabertError):
    """A checkpoint, vocabulary or run folder is missing, damaged, or of another shape."""

    exit_code = 66


class CheckpointWarning(UserWarning):
    """A damaged checkpoint of a run is skipped for another one, or a damaged cache entry is made again."""


class Interrupted(MegabertError):  # noqa: N818  (not a failure: the run can be resumed)
    """The user or the scheduler stopped the run; a checkpoint is saved."""

    exit_code = 75


class PeerLost(MegabertError):  # noqa: N818  (names the event)
    """Another process of a distributed run has exited, so this one cannot continue."""

    exit_code = 76
