"""`convert --calibration sequential`: the text that the model writes, and the streams that follow the conversion."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qwchat import models_folder
from qwchat.cli.calibration_text import self_written_documents
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError

if TYPE_CHECKING:
    from quant.calibration import Calibration
    from quant.sources import Source

_SEED = 0


@contextmanager
def sequential_calibration(
    source: Source, destination: Path, dependencies: Dependencies, streams: Streams, threads: int | None
) -> Iterator[Calibration]:
    """Return the calibration of a conversion.

    The text is kept in `.NAME.text` beside the destination until the conversion has ended, for a resumed one.

    Args:
        source: the open checkpoint.
        destination: folder to create.
        dependencies: load the model that writes the text.
        streams: where the progress is shown.
        threads: threads that compute; None for the setting.

    Raises:
        QwchatError: the folder of the text cannot be created.
    """
    from qwchat.calibration.sequential import SequentialCalibration
    from qwchat.calibration.source_tensors import SourceTensors
    from qwchat.calibration.windows_of_text import DEFAULT_TOKENS, WINDOW, choose_windows
    from qwchat.cpu.kernels.thread_counts import default_threads

    folder = destination.parent / f".{destination.name}.text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QwchatError(f"cannot create {folder} ({error.strerror}): give another destination") from error
    located = models_folder.locate(str(source.path.resolve()))
    documents = self_written_documents(located, source, DEFAULT_TOKENS, _SEED, folder, dependencies, streams, threads)
    pieces = choose_windows(documents, DEFAULT_TOKENS, min(WINDOW, source.config.max_position_embeddings))
    count = threads or default_threads()
    yield SequentialCalibration(SourceTensors(source, count), pieces, count)
    shutil.rmtree(folder, ignore_errors=True)
