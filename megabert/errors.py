"""Errors that speak to a person: what is wrong with which value, where it came from, what to do.

The command line prints their message without a traceback and exits with their `exit_code`. The codes follow
BSD's sysexits.h (64 usage, 65 data, 70 internal, 75 try again); 66 stands for a checkpoint that cannot be used.
Anything else that escapes is a defect of ours and keeps its traceback.
"""


class MegabertError(Exception):
    """Base of all errors that the command line shows as one message."""

    exit_code = 70
    is_told = False
    """Whether another process of the same run says it to the person."""


class ConfigError(MegabertError):
    """A setting or an argument that does not exist, does not fit, or contradicts another."""

    exit_code = 64


class InputError(MegabertError):
    """A data file that cannot be read as what it should be, or numbers that are not finite."""

    exit_code = 65


class CheckpointError(MegabertError):
    """A checkpoint, vocabulary or run folder that is missing, damaged, or of another shape."""

    exit_code = 66


class Interrupted(MegabertError):  # noqa: N818  (it is not a fault: the work can be taken up again)
    """The user or the scheduler stopped the work; what was done is saved."""

    exit_code = 75


class PeerLost(MegabertError):  # noqa: N818  (what it says is what happened)
    """Another process of a training is gone, so that this one cannot go on."""

    exit_code = 76
