"""The work of a first run: compiling quantisers and kernels, and a conversion in between, on one bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from qwchat.chat.view.setup_status import SetupStatus
from qwchat.cli.streams import Streams

if TYPE_CHECKING:
    from quant.conversion import CompilingQuantiser, ConversionPlanned, WaitingForCompiler

COMPILER = "the compiler"
# Source bytes that are converted in the unit of all costs, a second of one core (see
# `qwchat.cpu.kernels.compile_costs`).
_BYTES_PER_COST = 40e6


class SetupProgress:
    """Tells a person what is compiled and converted once, for the time it is entered.

    Args:
        streams: where it is shown.
        subject: what is compiled, for the line that comes first where no line can be drawn over.
        cost: how much work there is without a conversion, as in `qwchat.cpu.kernels.compile_costs`.
        clock: seconds, for the tests.
    """

    def __init__(
        self, streams: Streams, subject: str, cost: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen, self._rewritable, self._subject = streams.screen, streams.rewritable, subject
        self._status = SetupStatus(streams.screen, rewritable=streams.rewritable, clock=clock)
        self._cost = cost
        self._announced = False
        self.expect_no_conversion()

    def __enter__(self) -> SetupProgress:
        self._status.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.__exit__(kind, error, trace)

    def plan(self, planned: ConversionPlanned, *, with_conversion: bool = True) -> None:
        """Count on a conversion before the work that was given at first, or on compiling its loops alone."""
        from quant.conversion import compiling_cost

        conversion = planned.total_bytes_in / _BYTES_PER_COST if with_conversion else 0.0
        self._status.expect(compiling_cost(planned.tensors) + conversion + self._cost)

    def expect_no_conversion(self) -> None:
        """Count on the work that was given at first: the conversion is over, or another process has made it."""
        self._status.expect(self._cost)

    def show(self, event: CompilingQuantiser | WaitingForCompiler) -> None:
        """Show what a conversion says of its loops."""
        from quant.conversion import CompilingQuantiser

        if isinstance(event, CompilingQuantiser):
            self.compiling(event.format or COMPILER, event.cost)
        else:
            self.wait("quantisers")

    def compiling(self, name: str, cost: float) -> None:
        """`name` is compiled now."""
        if not self._announced and not self._rewritable:
            self._screen.notice(f"compiling the {self._subject} for this processor, once")
        self._announced = True
        self._status.stage(f"loading {name}" if name == COMPILER else f"compiling {name}", cost)

    def wait(self, subject: str = "kernels") -> None:
        """Another process compiles what is wanted."""
        self._status.wait(f"another qwchat is compiling the {subject}: waiting for it")

    def conversion(self, title: str, total: int) -> _ConversionStage:
        """Return the progress of a conversion of `total` bytes, as a stage."""
        self._status.stage(title, total / _BYTES_PER_COST)
        return _ConversionStage(self._status.advance, total)


class _ConversionStage:
    """Bytes of a conversion as a share of its stage."""

    def __init__(self, advance: Callable[[float], None], total: int) -> None:
        self._advance, self._total = advance, max(total, 1)

    def __enter__(self) -> _ConversionStage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, done: int, label: str) -> None:
        """`done` bytes are through."""
        self._advance(done / self._total)
