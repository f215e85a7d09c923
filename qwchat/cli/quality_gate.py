"""The check of `convert`: how far a converted model is from its source, and whether that is too far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quant.errors import QualityError, QuantError
from quant.quality import Quality
from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import compile_kernels
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError
from qwchat.limits import MAX_THREADS

_TITLE = "comparing with the source"


@dataclass(frozen=True)
class QualityGate:
    """Measures a converted model, and refuses one that is too far from its source.

    Attributes:
        source: the checkpoint.
        max_kl: largest mean KL divergence in nats; None for any.
        threads: threads that compute; None for one per physical core.
        dependencies: the engine.
        streams: where progress and notices go.
    """

    source: Path
    max_kl: float | None
    threads: int | None
    dependencies: Dependencies
    streams: Streams

    def __call__(self, folder: Path) -> Quality | None:
        """Return the figures of a converted model; None, with a notice, if they cannot be measured.

        Raises:
            QualityError: the model is further away than `max_kl`, or that is set and cannot be checked.
        """
        try:
            quality = self._measure(folder)
        except (QwchatError, QuantError, MemoryError) as error:
            if self.max_kl is not None:
                problem = ArgumentMessage(
                    "the distance from the source cannot be measured (", error, "): convert without "
                )
                raise QualityError(ArgumentMessage(problem, Argument("max_kl"))) from error
            self.streams.screen.notice(f"the distance from the source is not measured: {error}")
            return None
        require_within(quality, self.max_kl)
        return quality

    def _measure(self, folder: Path) -> Quality:
        from quant.container import open_model
        from quant.families import parameter_count
        from quant.sources import open_source
        from qwchat.cpu.kernels.kernel_store import KERNELS
        from qwchat.cpu.kernels.thread_counts import default_threads
        from qwchat.evaluation.check_texts import check_texts, token_budget
        from qwchat.evaluation.quality_check import compare_with_source, summarise_scores

        compile_kernels(self.dependencies, self.streams)
        model = open_model(folder)
        tokens = token_budget(parameter_count(model.config))
        texts = check_texts(folder, model.config.vocab_size, KERNELS.writable_folder, tokens)
        screen, rewritable = self.streams.screen, self.streams.rewritable
        with open_source(self.source) as source:
            size = source.total_bytes
            with byte_progress(_TITLE, size, screen, rewritable=rewritable) as progress:
                scores = compare_with_source(
                    source,
                    model,
                    texts,
                    threads=min(self.threads or default_threads(), MAX_THREADS),
                    progress=lambda done, steps: progress.update(size * done // steps, _TITLE),
                )
        return summarise_scores(scores, texts.name)


def require_within(quality: Quality | None, max_kl: float | None) -> None:
    """Raise QualityError unless a model was measured and is within `max_kl`; None allows everything."""
    if max_kl is None:
        return
    if quality is None:
        suggestion = SuggestedArgument("force", True)
        raise QualityError(
            ArgumentMessage("the model was converted without a check: use ", suggestion, " to repeat it")
        )
    if quality.kl_mean > max_kl:
        problem = f"{describe(quality)}, which is more than "
        raise QualityError(ArgumentMessage(problem, Argument("max_kl", max_kl), ": use more bits or a calibration"))


def describe(quality: Quality) -> str:
    """Return the figures for people: "KL 0.0021 against the source, same top token 96.8 %"."""
    return f"KL {quality.kl_mean:.2g} against the source, same top token {100 * quality.same_top:.1f} %"
