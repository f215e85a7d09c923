"""Exceptions for expected failures. Every message says what happened, where, and what to do about it."""

from __future__ import annotations


class QuantError(Exception):
    """Base class of all expected failures. A caller may show `str(error)` to the user unchanged."""


class ArgumentError(QuantError):
    """An argument or environment variable is invalid: unknown preset, bad group size, destination in use."""


class DestinationBusyError(ArgumentError):
    """Another process is converting to the same destination. The caller may wait for it."""


class FormatError(QuantError):
    """A tensor does not fit the requested format, or its parts contradict the layout of the format."""


class CheckpointError(QuantError):
    """The source checkpoint is missing, damaged, contradicts its config.json, or is not supported."""


class ContainerError(QuantError):
    """A converted model folder is missing, damaged or incomplete."""


class StatisticsError(QuantError):
    """A statistics file is missing, damaged, or belongs to another model."""


class DiskFullError(QuantError):
    """The disk of the destination is full. Existing files are unchanged."""


class QualityError(QuantError):
    """A converted model is further from its source than allowed, and is not kept."""
