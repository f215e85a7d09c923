"""Journal of a measurement in steps, so that an interrupted one continues."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from quant.destination import append_record, translate_os_errors
from quant.errors import ArgumentError
from quant.safe_files import read_bounded

Values = Sequence[tuple[str, str, float]]
_MAX_BYTES = 64 << 20


class MeasurementJournal:
    """Steps of a measurement that are done, one line each after a line that identifies the measurement.

    In a `with` block the file is open for new steps.

    Args:
        path: the journal.
        identity: text that two measurements share only if they give the same values.

    Attributes:
        steps: values of the finished steps in order.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self.steps: list[Values] = []
        self._file = -1

    def read(self) -> bool:
        """Read the steps of an earlier attempt. Return False without a journal of this measurement."""
        try:
            lines = read_bounded(self._path, ArgumentError, _MAX_BYTES).split(b"\n")[:-1]
            first, *rest = [json.loads(line) for line in lines]
            if first != {"identity": self._identity}:
                return False
            self.steps = [[(str(name), str(kind), float(value)) for name, kind, value in each] for each in rest]
        except (ArgumentError, ValueError, TypeError, RecursionError):
            return False
        return True

    def __enter__(self) -> MeasurementJournal:
        with translate_os_errors(self._path):
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            append_record(self._file, {"identity": self._identity})
            for step in self.steps:
                append_record(self._file, step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def append(self, values: Values) -> None:
        """Add a finished step."""
        with translate_os_errors(self._path):
            append_record(self._file, values)
        self.steps.append(values)

    def delete(self) -> None:
        """Delete the journal, after the result is written."""
        self._path.unlink(missing_ok=True)
