"""Progress of weights on their way to a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from qwchat.chat.view.progress import ByteProgress, byte_progress
from qwchat.cli.streams import Streams


class UploadStatus:
    """Called with the copied bytes and the total, it shows them while its context is open. Nothing before that.

    Args:
        name: of the model.
        streams: where progress is shown.
    """

    def __init__(self, name: str, streams: Streams) -> None:
        self._name, self._streams = name, streams
        self._progress: ByteProgress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> UploadStatus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are on the GPU."""
        if self._progress is None:
            screen, title = self._streams.screen, f"loading {self._name} onto the GPU"
            bar = byte_progress(title, total, screen, rewritable=self._streams.rewritable)
            self._progress = self._stack.enter_context(bar)
        self._progress.update(done, "")
