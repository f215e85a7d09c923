"""`qwchat bench`: how fast a model is, and what share of the machine's limits that is.

Prefill of n tokens costs 2 n operations per weight of the layers, since only the last row is multiplied by the output
head. Decoding a token reads every weight once, except the embedding, of which it reads one row. So prefill is compared
with the int8 peak and decoding with the memory bandwidth. Both limits are measured in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from quant.units import data_size
from qwchat.chat.formatting import activations_note
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.integrity_check import wait_until_checked, with_repair_command
from qwchat.cli.json_output import ModelInfo, json_line
from qwchat.cli.model_options import BenchOptions
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.events import Finished, Stats
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.container import ModelFolder
    from qwchat.api import Model

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_COLUMNS = (
    Column(style="bold"),
    Column("tokens", right=True, drop=4),
    Column("depth", right=True, drop=3),
    Column("tok/s", right=True, style="bold"),
    Column("lowest", right=True, drop=1),
    Column("highest", right=True, drop=2),
    Column("rate", right=True, drop=5),
    Column("share", right=True),
    Column("of", wrap=12),
)


@dataclass(frozen=True)
class TokenCost:
    """Cost of a token: `bytes_per_token` are read to decode one, `operations_per_token` are needed to prefill one."""

    bytes_per_token: int
    operations_per_token: int


@dataclass(frozen=True)
class CpuConfig:
    """Number of threads that run the model, and the SIMD level of the kernels."""

    threads: int
    simd: str


@dataclass(frozen=True)
class Measurement:
    """Speed of prefill or decode.

    Attributes:
        tokens: tokens of each round.
        rates: tokens per second of each round.
        per_second: operations or bytes per second in the median round.
        limit: operations or bytes per second that the machine can do.
        cost_per_token: operations or bytes that a token costs.
    """

    tokens: int
    rates: tuple[float, ...]
    per_second: float
    limit: float
    cost_per_token: int

    @property
    def rate(self) -> float:
        """Median of the rounds in tokens per second."""
        return statistics.median(self.rates)

    @property
    def share(self) -> float:
        """`per_second` over `limit`."""
        return self.per_second / self.limit


def run(options: BenchOptions, dependencies: Dependencies) -> int:
    """Measure the speed, and print a table or one JSON object to standard output."""
    options.check()
    streams = Streams(quiet=options.quiet)
    settings = resolve()
    threads, kv = options.threads or settings["threads"], options.kv or settings["kv"]
    activations = int(options.activations or settings["activations"])
    located = ensure_model(options.model, dependencies, streams, threads)
    context = options.depth + max(options.prompt_tokens + 1, options.new_tokens + 2)
    with dependencies.load(
        located.path, threads=threads, context=context, device="cpu", kv=kv, activations=activations
    ) as model:
        with with_repair_command(model.folder):
            wait_until_checked(model, streams)  # Its threads would distort the figures.
        threads = model.threads
        bandwidth, peak = dependencies.bandwidth(threads), dependencies.int8_peak(threads)
        prefill, decode = _measure(model, options)
        cost = token_cost(model.folder)
        model_info = ModelInfo.of(located, model)
    cpu = CpuConfig(threads, dependencies.simd())
    prefill_result = _measurement(options.prompt_tokens, prefill, cost.operations_per_token, peak)
    decode_result = _measurement(options.new_tokens, decode, cost.bytes_per_token, bandwidth)
    if options.json:
        streams.write(json_line(_as_data(options, model_info, cpu, prefill_result, decode_result)) + "\n")
    else:
        _write_tables(TableWriter(streams), options, model_info, cpu, prefill_result, decode_result)
    return ExitCode.OK


def _measure(model: Model, options: BenchOptions) -> tuple[list[float], list[float]]:
    """Return tokens per second of prefill and of decode for each round. A first round warms up and is not measured."""
    prefill, decode = [], []
    depth = _tokens(model, options.depth, 0)
    if depth:
        _generate(model, depth, 1)
    for number in range(options.rounds + 1):
        # Each round has other tokens, so that only those of the depth are cached.
        prompt = _tokens(model, options.prompt_tokens, 1 + 2 * number)
        stats = _generate(model, [*depth, *prompt], 1)
        first_token = _tokens(model, 1, 2 + 2 * number)
        decoded = _generate(model, [*depth, *first_token], options.new_tokens + 1, speculate=options.speculate)
        if number:
            prefill.append(stats.prefill_rate)
            decode.append(decoded.decode_rate)
    return prefill, decode


def _generate(model: Model, token_ids: Sequence[int], count: int, *, speculate: bool = False) -> Stats:
    """Evaluate `token_ids` as a prompt and generate `count` tokens greedily."""
    from qwchat.request import Request, SamplingParams

    events = model.engine.generate(
        model.cached_context,
        token_ids,
        Request(SamplingParams(), seed=0, max_tokens=count, speculate=speculate),
        usable_vocab=model.tokenizer.vocab_size,
    )
    ends = [event for event in events if isinstance(event, Finished)]
    return ends[-1].stats


def _tokens(model: Model, count: int, seed: int) -> list[int]:
    """Return `count` random token ids. The first differs from that of nearby seeds."""
    import random

    drawn = random.Random(seed)
    vocabulary = model.tokenizer.vocab_size
    return [seed % vocabulary, *(drawn.randrange(vocabulary) for _ in range(count - 1))][:count]


def token_cost(folder: ModelFolder) -> TokenCost:
    """Return the cost of a token in the model of `folder`."""
    tensors = {name: folder.tensor(name) for name in folder.names}
    tied = _HEAD not in tensors
    unused = () if tied else (_EMBEDDING,)
    layers = [tensor for name, tensor in tensors.items() if len(tensor.shape) == 2 and name not in (_EMBEDDING, _HEAD)]
    return TokenCost(
        bytes_per_token=sum(tensor.nbytes for name, tensor in tensors.items() if name not in unused),
        operations_per_token=2 * sum(tensor.shape[0] * tensor.shape[1] for tensor in layers),
    )


def _measurement(tokens: int, rates: list[float], cost_per_token: int, limit: float) -> Measurement:
    return Measurement(tokens, tuple(rates), statistics.median(rates) * cost_per_token, limit, cost_per_token)


def _write_tables(
    tables: TableWriter,
    options: BenchOptions,
    model_info: ModelInfo,
    cpu: CpuConfig,
    prefill_result: Measurement,
    decode_result: Measurement,
) -> None:
    rows = [
        _row(
            "prefill",
            prefill_result,
            options.depth,
            f"{prefill_result.per_second / 1e9:,.1f} GOPS",
            f"{prefill_result.limit / 1e9:,.0f} GOPS int8 peak",
        ),
        _row(
            "decode",
            decode_result,
            options.depth,
            _bandwidth(decode_result.per_second),
            f"{_bandwidth(decode_result.limit)} read bandwidth",
        ),
    ]
    size = f"{model_info.bits_per_weight:.2f} bits per weight{activations_note(model_info.activations)}"
    guesses = ", with speculation" if options.speculate else ""
    title = f"{model_info.name}: {size}, {cpu.threads} threads, {cpu.simd}, median of {options.rounds} rounds{guesses}"
    tables.write(tables.paragraph(title), tables.table(_COLUMNS, rows))


def _row(name: str, measured: Measurement, depth: int, rate: str, limit: str) -> tuple[str, ...]:
    figures = (measured.rate, min(measured.rates), max(measured.rates))
    return (
        name,
        f"{measured.tokens:,}",
        f"{depth:,}",
        *(f"{figure:,.1f}" for figure in figures),
        rate,
        f"{100 * measured.share:.1f} %",
        limit,
    )


def _bandwidth(bytes_per_second: float) -> str:
    return f"{data_size(bytes_per_second)}/s"


def _as_data(
    options: BenchOptions,
    model_info: ModelInfo,
    cpu: CpuConfig,
    prefill_result: Measurement,
    decode_result: Measurement,
) -> dict[str, object]:
    return {
        "model": asdict(model_info),
        "threads": cpu.threads,
        "simd": cpu.simd,
        "rounds": options.rounds,
        "depth": options.depth,
        "speculate": options.speculate,
        "prefill": {
            "tokens": prefill_result.tokens,
            "tokens_per_second": prefill_result.rate,
            "rounds": list(prefill_result.rates),
            "operations_per_token": prefill_result.cost_per_token,
            "operations_per_second": prefill_result.per_second,
            "int8_peak": prefill_result.limit,
            "share_of_int8_peak": prefill_result.share,
        },
        "decode": {
            "tokens": decode_result.tokens,
            "tokens_per_second": decode_result.rate,
            "rounds": list(decode_result.rates),
            "bytes_per_token": decode_result.cost_per_token,
            "bytes_per_second": decode_result.per_second,
            "read_bandwidth": decode_result.limit,
            "share_of_read_bandwidth": decode_result.share,
        },
    }
