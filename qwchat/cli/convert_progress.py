"""Run a conversion and show its progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from qwchat.chat.view.progress import ByteProgress, byte_progress
from qwchat.cli.conversion_memory import oversize_warning
from qwchat.cli.setup_progress import SetupProgress
from qwchat.cli.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Generator

    from quant.conversion import ConversionEvent, ConversionFinished, ConversionPlanned


@dataclass
class ConversionResult:
    """The plan of a conversion, its end (None for a dry run) and its notices."""

    planned: ConversionPlanned
    finished: ConversionFinished | None = None
    notices: list[str] = field(default_factory=list)


def run_conversion(
    events: Iterator[ConversionEvent],
    title: str,
    streams: Streams,
    *,
    check: Callable[[ConversionPlanned], None] | None = None,
    show_notices: bool = True,
    setup: SetupProgress | None = None,
) -> ConversionResult:
    """Run a conversion to its end, with progress. An error or Ctrl-C closes `events`, which keeps finished tensors.

    Args:
        events: the conversion.
        title: title of the progress bar.
        streams: where the progress is shown.
        check: called with the plan before any work is done; raises if it cannot be carried out.
        show_notices: show notices about the checkpoint too.
        setup: progress of the first run that this conversion belongs to; None creates one.
    """
    from quant.conversion import (
        CompilingQuantiser,
        ConversionAdvanced,
        ConversionFinished,
        ConversionNotice,
        ConversionPlanned,
        QualityCheckStarted,
        TensorStarted,
        WaitingForCompiler,
    )

    conversion: ConversionResult | None = None
    label = ""
    with closing(cast("Generator[ConversionEvent, None, None]", events)), ExitStack() as stack:
        compiling = setup
        progress: ByteProgress | None = None
        for event in events:
            if isinstance(event, ConversionPlanned):
                conversion = ConversionResult(event)
                if check is not None:
                    check(event)
                if warning := oversize_warning(event.total_bytes_out):
                    conversion.notices.append(warning)
                    streams.screen.notice(warning)
                if setup is not None:
                    setup.plan(event)
            assert conversion is not None, "the plan is the first event"
            if isinstance(event, CompilingQuantiser | WaitingForCompiler):
                if compiling is None:
                    compiling = stack.enter_context(SetupProgress(streams, "quantisers"))
                    compiling.plan(conversion.planned, with_conversion=False)
                compiling.show(event)
            elif isinstance(event, TensorStarted):
                label = event.name
            elif isinstance(event, ConversionAdvanced):
                if progress is None:
                    if setup is None:
                        stack.pop_all().close()
                    total = conversion.planned.total_bytes_in
                    progress = stack.enter_context(_progress(title, total, streams, setup))
                progress.update(event.bytes_done, label)
            elif isinstance(event, QualityCheckStarted):
                stack.pop_all().close()  # The check shows its own progress.
            elif isinstance(event, ConversionNotice):
                conversion.notices.append(event.text)
                if show_notices:
                    streams.screen.notice(event.text)
            elif isinstance(event, ConversionFinished):
                conversion.finished = event
    assert conversion is not None, "the plan is the first event"
    return conversion


def _progress(title: str, total: int, streams: Streams, setup: SetupProgress | None) -> ByteProgress:
    if setup is not None:
        return setup.conversion(title, total)
    return byte_progress(title, total, streams.screen, rewritable=streams.rewritable)
