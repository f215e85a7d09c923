"""`convert --calibration sequential`: the text that the model writes, and the streams that follow the conversion."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qwchat import models_folder
from qwchat.cli.calibration_text import self_written_documents
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError

if TYPE_CHECKING:
    from quant.calibration import InputMoments
    from quant.formats import PackedTensor
    from quant.sources import Source
    from qwchat.calibration.sequential import SequentialCalibration

SEQUENTIAL = "sequential"
"""Value of `--calibration` that stands for this calibration instead of a file."""
_SEED = 0


def text_folder(destination: Path) -> Path:
    """Return the folder that keeps the text until the conversion to `destination` is complete."""
    return destination.parent / f".{destination.name}.text"


def discard_text(destination: Path) -> None:
    """Delete the text of a conversion, which is complete."""
    shutil.rmtree(text_folder(destination), ignore_errors=True)


class SelfWrittenCalibration:
    """Sequential calibration with text that the model writes when the conversion begins.

    It implements `quant.calibration.Calibration`. A dry run asks for nothing, and no text is written for it.

    Args:
        source: the open checkpoint.
        destination: folder to create.
        dependencies: load the model that writes the text.
        streams: where the progress is shown.
        threads: threads that compute; None for the setting.
    """

    ordered = True

    def __init__(
        self, source: Source, destination: Path, dependencies: Dependencies, streams: Streams, threads: int | None
    ) -> None:
        self._source, self._folder = source, text_folder(destination)
        self._dependencies, self._streams, self._threads = dependencies, streams, threads

    @property
    def fingerprint(self) -> str:
        """Identity of the text. Raises QwchatError if its folder cannot be created."""
        return self._calibration.fingerprint

    def moments(self, tensor: str) -> InputMoments | None:
        """Return the moments of the input of matrix `tensor`; see `Calibration.moments`."""
        return self._calibration.moments(tensor)

    def finished(self, tensor: str, packed: PackedTensor) -> None:
        """Use `packed` in the quantised stream from now on."""
        self._calibration.finished(tensor, packed)

    @cached_property
    def _calibration(self) -> SequentialCalibration:
        from qwchat.calibration.sequential import SequentialCalibration
        from qwchat.calibration.source_tensors import SourceTensors
        from qwchat.calibration.windows_of_text import DEFAULT_TOKENS, WINDOW, choose_windows
        from qwchat.cpu.kernels.thread_counts import default_threads

        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QwchatError(f"cannot create {self._folder} ({error.strerror}): give another destination") from error
        source = self._source
        documents = self_written_documents(
            models_folder.locate(str(source.path.resolve())),
            source,
            DEFAULT_TOKENS,
            _SEED,
            self._folder,
            self._dependencies,
            self._streams,
            self._threads,
        )
        pieces = choose_windows(documents, DEFAULT_TOKENS, min(WINDOW, source.config.max_position_embeddings))
        threads = self._threads or default_threads()
        return SequentialCalibration(SourceTensors(source, threads), pieces, threads)
