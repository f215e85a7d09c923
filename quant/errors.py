"""Exceptions for expected failures. Every message says what happened, where, and what to do next."""

from __future__ import annotations


class QuantError(Exception):
    """Base of all failures that a person can cause or cure; a caller may show `str(error)` as it is."""


class ArgumentError(QuantError):
    """The request itself is wrong: an unknown preset, a destination that is in use, a bad group size."""


class DestinationBusyError(ArgumentError):
    """Another process is converting to the same destination right now; waiting for it is an option."""


class FormatError(QuantError):
    """A tensor does not fit the packed format asked for, or its parts contradict the format's layout."""


class CheckpointError(QuantError):
    """The source checkpoint is missing, corrupt, contradicts its config, or is not supported."""


class ContainerError(QuantError):
    """A converted model folder is missing, corrupt or half-written."""


class DiskFullError(QuantError):
    """The destination has too little room. Nothing that was there before is harmed."""
