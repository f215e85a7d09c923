"""`qwchat perplexity`: how well a model predicts texts, and its distance from another model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qwchat.characters import sanitise_name
from qwchat.chat.formatting import activations_note
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.evaluation_options import PerplexityOptions
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.integrity_check import wait_until_checked, with_repair_command
from qwchat.cli.json_output import ModelInfo, json_line
from qwchat.cli.startup import load_located
from qwchat.cli.streams import Streams, read_stdin
from qwchat.cli.tables import TableWriter
from qwchat.settings.resolve import Settings, resolve

if TYPE_CHECKING:
    from qwchat.api import Model
    from qwchat.evaluation.documents import Document
    from qwchat.evaluation.figures import Divergence, Estimate, Figures

_TITLE = "predicting"


def run(options: PerplexityOptions, dependencies: Dependencies) -> int:
    """Evaluate a model, and print its figures or one JSON object to standard output."""
    options.check()
    streams = Streams(quiet=options.quiet)
    texts = [(name, _read(name)) for name in options.files]
    settings = resolve(options.engine_flags())
    with ExitStack() as stack:
        model_info, model = _open(options.model, settings, dependencies, streams, stack)
        other_info, other = None, None
        if options.against is not None:
            other_info, other = _open(options.against, settings, dependencies, streams, stack)
        found = _evaluate(model, other, texts, options, streams)
        for each in (model, other):
            if each is not None:
                with with_repair_command(each.folder):
                    wait_until_checked(each, streams)
    if options.json:
        streams.write(json_line(_as_data(options, model_info, other_info, found)) + "\n")
    else:
        _write(TableWriter(streams), options, model_info, other_info, found)
    return ExitCode.OK


def _read(name: str) -> str:
    """Return the text of a file, or of standard input for `-`."""
    if name == "-":
        return read_stdin()
    from qwchat.evaluation.documents import read_text

    return read_text(Path(name))


def _open(
    name: str, settings: Settings, dependencies: Dependencies, streams: Streams, stack: ExitStack
) -> tuple[ModelInfo, Model]:
    """Open a model, which is closed with `stack`."""
    located = ensure_model(name, dependencies, streams, settings["threads"])
    model = stack.enter_context(load_located(located, settings, dependencies, streams))
    return ModelInfo.of(located, model), model


def _evaluate(
    model: Model, other: Model | None, texts: list[tuple[str, str]], options: PerplexityOptions, streams: Streams
) -> Figures:
    """Evaluate all texts with progress on standard error."""
    from qwchat.evaluation.scoring import Evaluation, check_same_tokens, total_bytes

    if other is not None:
        check_same_tokens(model, other)
    documents = list(_documents(model, texts, conversations=options.chat))
    evaluation = Evaluation(model, other, min(each.context for each in (model, other or model)))
    done = 0
    with byte_progress(_TITLE, total_bytes(documents), streams.screen, rewritable=streams.rewritable) as progress:
        for document in documents:
            for tokens in evaluation.add(document, whole=options.chat):
                progress.update(done + document.text_bytes * tokens // len(document.ids), _TITLE)
            done += document.text_bytes
    return evaluation.figures()


def _documents(model: Model, texts: list[tuple[str, str]], *, conversations: bool) -> Iterator[Document]:
    from qwchat.evaluation.documents import parse_conversations, reply_documents, text_document

    number = 0
    for name, text in texts:
        if not conversations:
            yield text_document(model, text, number)
            number += 1
            continue
        for messages in parse_conversations(text, "standard input" if name == "-" else sanitise_name(name)):
            yield from reply_documents(model, messages, number)
            number += 1


def _as_data(
    options: PerplexityOptions, model_info: ModelInfo, other_info: ModelInfo | None, found: Figures
) -> dict[str, object]:
    figures = asdict(found)
    divergence = figures.pop("divergence")
    return {
        "model": asdict(model_info),
        "files": list(options.files),
        "chat": options.chat,
        "window": options.ctx,
        **figures,
        "against": None if other_info is None else {"model": asdict(other_info), **divergence},
    }


def _write(
    tables: TableWriter,
    options: PerplexityOptions,
    model_info: ModelInfo,
    other_info: ModelInfo | None,
    found: Figures,
) -> None:
    documents = "1 document" if found.documents == 1 else f"{found.documents:,} documents"
    size = f"{model_info.bits_per_weight:.2f} bits per weight{activations_note(model_info.activations)}"
    title = f"{model_info.name}: {size}, {found.tokens:,} tokens of {documents}, windows of {options.ctx:,}"
    pairs = [("perplexity", _with_interval(found.perplexity, ".4f")), ("loss", f"{found.loss:.5f} nats per token")]
    if found.divergence is not None and other_info is not None:
        pairs += _divergence_pairs(found.divergence, other_info.name)
    tables.write(tables.paragraph(title), tables.pairs(pairs))


def _divergence_pairs(divergence: Divergence, name: str) -> list[tuple[str, str]]:
    share = divergence.same_top
    interval = None if share.interval is None else (100 * share.interval[0], 100 * share.interval[1])
    return [
        ("against", name),
        ("its perplexity", f"{divergence.reference_perplexity:.4f}"),
        ("ratio", _with_interval(divergence.perplexity_ratio, ".5f")),
        ("KL mean", f"{_with_interval(divergence.mean, '.3e')} nats"),
        ("KL median", f"{divergence.median:.3e}"),
        ("KL 99 %", f"{divergence.percentile_99:.3e}"),
        ("KL 99.9 %", f"{divergence.percentile_99_9:.3e}"),
        ("KL largest", f"{divergence.largest:.3e}"),
        ("same top token", f"{_interval_text(100 * share.value, interval, '.2f')} %"),
    ]


def _with_interval(estimate: Estimate, form: str) -> str:
    return _interval_text(estimate.value, estimate.interval, form)


def _interval_text(value: float, interval: tuple[float, float] | None, form: str) -> str:
    """Return a figure with its 95 % interval, if it has one."""
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"
