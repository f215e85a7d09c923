"""Following a conversion: its events become progress on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from qwchat.chat.view.progress import ByteProgress, byte_progress
from qwchat.cli.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Generator

    from quant.conversion import Event, Finished, Planned


@dataclass
class Conversion:
    """What a conversion said: its plan, its end (None for a dry run), its remarks."""

    planned: Planned
    finished: Finished | None = None
    notices: list[str] = field(default_factory=list)


def follow(events: Iterator[Event], title: str, streams: Streams, *, show_notices: bool = True) -> Conversion:
    """Run a conversion to its end, with progress. An error or Ctrl-C closes ``events``, which keeps what is done."""
    from quant.conversion import Advanced, Finished, Notice, Planned, TensorStarted

    conversion: Conversion | None = None
    label = ""
    with closing(cast("Generator[Event, None, None]", events)), ExitStack() as stack:
        progress: ByteProgress | None = None
        for event in events:
            if isinstance(event, Planned):
                conversion = Conversion(event)
            assert conversion is not None, "a conversion tells its plan first"
            if isinstance(event, TensorStarted):
                label = event.name
            elif isinstance(event, Advanced):
                if progress is None:
                    total = conversion.planned.total_bytes_in
                    shown = byte_progress(title, total, streams.screen, rewritable=streams.rewritable)
                    progress = stack.enter_context(shown)
                progress.update(event.bytes_done, label)
            elif isinstance(event, Notice):
                conversion.notices.append(event.text)
                if show_notices:
                    streams.screen.notice(event.text)
            elif isinstance(event, Finished):
                conversion.finished = event
    assert conversion is not None, "a conversion tells its plan first"
    return conversion
