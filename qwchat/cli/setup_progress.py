"""Progress of a first run: compiling the quantisers and kernels, and a conversion in between, on one bar."""

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
# Source bytes converted per unit of cost, a second of one core (see `qwchat.cpu.kernels.compile_costs`).
_BYTES_PER_COST = 40e6


class SetupProgress:
    """Shows the one-time work while the context is entered.

    Args:
        streams: where it is shown.
        subject: what is compiled, for the first line on an output that cannot be redrawn.
        cost: cost of the work without a conversion, as in `qwchat.cpu.kernels.compile_costs`.
        clock: returns seconds; tests replace it.
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
        """Expect a conversion before the original work, or only the compilation of its loops."""
        from quant.conversion import compiling_cost

        conversion = planned.total_bytes_in / _BYTES_PER_COST if with_conversion else 0.0
        self._status.expect(compiling_cost(planned.tensors, planned.calibrated) + conversion + self._cost)

    def expect_no_conversion(self) -> None:
        """Expect only the original work, after the conversion or if another process has done it."""
        self._status.expect(self._cost)

    def show(self, event: CompilingQuantiser | WaitingForCompiler) -> None:
        """Show an event about the loops of a conversion."""
        from quant.conversion import CompilingQuantiser

        if isinstance(event, CompilingQuantiser):
            self.compiling(event.format or COMPILER, event.cost)
        else:
            self.wait("quantisers")

    def compiling(self, name: str, cost: float) -> None:
        """Show that `name` is being compiled."""
        if not self._announced and not self._rewritable:
            self._screen.notice(f"compiling the {self._subject} for this processor (once)")
        self._announced = True
        self._status.stage(f"loading {name}" if name == COMPILER else f"compiling {name}", cost)

    def wait(self, subject: str = "kernels") -> None:
        """Show that another process is compiling what is needed."""
        self._status.wait(f"another qwchat is compiling the {subject}: waiting for it")

    def conversion(self, title: str, total: int) -> _ConversionStage:
        """Return the progress of a conversion of `total` bytes, as a stage of the bar."""
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
        """Set the number of finished bytes."""
        self._advance(done / self._total)
