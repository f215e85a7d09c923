"""The page of JSON output, from a reply that the program's own functions write."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

from docs.generator.markdown import code, table
from docs.generator.markdown import page as whole_page
from qwchat.chat.context_budget import ContextReduction
from qwchat.chat.reply_settings import ReplySettings
from qwchat.cli.json_output import EventWriter, ModelInfo, error_fields, json_line, reply_fields, request_fields
from qwchat.errors import ModelError
from qwchat.events import Done, Prefilled, Stats, TextStep, TokenLogprob
from qwchat.request import SamplingParams

_INTRODUCTION = """\
`--json` prints one object per command on standard output, on one line. Control characters are escaped. New keys may
appear in later versions; existing ones keep their meaning."""

_REPLY = "Printed by `qwchat -p ... --json`, and one object per line with `--count`:"
_ERROR = "A reply that an error ends has these keys, and `model`, `settings` and `seed`:"
_EVENTS = """\
`--jsonl` prints one object per event as it happens, each with the key `event`. `start` comes first, `done` or `error`
last; `done` has the keys of a reply. The second event of the example appears only if turns of the conversation are
left out from now on, and `reasoning` marks the text of a thought."""

KEYS = {
    "text": "The reply, without its thought.",
    "finish_reason": "`stop`, `length` (`--max-tokens`), `context` (full), `cancelled`, `repetition` or `error`.",
    "truncated": "A limit cut the reply, or turns of the conversation were left out.",
    "left_out": "Turns that the model did not receive.",
    "left_out.dropped": "Turns that were dropped.",
    "left_out.summarised": "Turns that a summary replaced.",
    "tokens.prompt": "Prompt tokens.",
    "tokens.cached": "Prompt tokens that were in the KV cache already.",
    "tokens.read": "Prompt tokens that were evaluated.",
    "tokens.generated": "Tokens of the reply.",
    "tokens.drafted": "Draft tokens that speculation proposed.",
    "tokens.accepted": "Draft tokens that were accepted.",
    "tokens.context": "Size of the context window.",
    "tokens.context_used": "Positions that the prompt and the reply use.",
    "tokens.reasoning": "Tokens of the thought with its tags; only if the reply has one.",
    "timings.time_to_first_token": "Seconds until the first token; null if there was no token.",
    "timings.prefill_seconds": "Seconds until the prompt was evaluated.",
    "timings.decode_seconds": "Seconds from the first token to the last.",
    "timings.prefill_tokens_per_second": "Evaluated prompt tokens per second.",
    "timings.decode_tokens_per_second": "Tokens per second after the first one.",
    "reasoning": 'The thought of a reasoning model, "" if it is empty; only if the reply has one.',
    "reasoning_truncated": "Whether `--think-budget` closed the thought; only if the reply has one.",
    "meets_constraint": "Whether the reply meets its constraint; only with a constraint.",
    "logprobs": "One entry per token, only with `--logprobs`.",
    "logprobs[].token_id": "Id of the token.",
    "logprobs[].text": "Text of the token.",
    "logprobs[].logprob": "Natural logarithm of the model's own probability of it, before sampling settings.",
    "logprobs[].top": "The likeliest tokens at this position, with the same keys.",
    "model.name": "Name of the model.",
    "model.path": "Its folder.",
    "model.fingerprint": "Short hash of its weights.",
    "model.device": "Device that computes, `cpu` or `cuda:N`.",
    "model.gpu_layers": "Number of layers on the GPU.",
    "model.activations": "Bits of the activations that quantised weights are multiplied by, 8 or 16.",
    "model.preset": "Its preset.",
    "model.bits_per_weight": "Bits per weight of the whole model.",
    "model.endpoint": "URL (a string) of the server that runs it; other figures may then be null.",
    "settings": "The sampling and reply settings in effect, by name.",
    "seed": "Seed of the reply.",
    "error": "The error message.",
    "exit_code": "The [exit code](exit-codes.md).",
}
OTHERS = {
    "list": ("folder", "models"),
    "show": (
        "name", "path", "converted", "preset", "settings", "source", "fingerprint", "quality", "bits_per_weight",
        "parameters", "bytes", "config", "tensors", "files", "memory",
    ),
    "verify": ("name", "path", "intact", "bytes", "tensors", "files", "not_covered", "damaged", "remedy"),
    "convert": (
        "path", "preset", "dry_run", "bytes_in", "bytes_out", "bits_per_weight", "seconds", "quality",
        "notices", "tensors",
    ),
    "export": (
        "path", "kind", "dry_run", "bytes_in", "bytes_out", "seconds", "notices", "files", "tensors",
    ),
    "pull": ("context", "machine_memory", "models"),
    "estimate": ("name", "machine_memory", "machine_bandwidth", "machine_card", "estimates"),
    "perplexity": (
        "model", "files", "chat", "window", "tokens", "documents", "blocks", "loss", "perplexity", "against",
    ),
    "calibrate": ("path", "model", "tokens", "text", "inputs", "bytes", "seconds"),
    "eval": (
        "model", "settings", "tasks", "questions", "correct", "acc", "acc_norm", "acc_bytes", "macro", "subjects",
        "output", "against",
    ),
    "sensitivity": ("path", "format", "source", "text", "tensors"),
    "bench": ("model", "threads", "simd", "rounds", "depth", "speculate", "prefill", "decode"),
    "doctor": ("ok", "checks"),
    "sessions list": ("folder", "sessions"),
}  # fmt: skip
"""Top-level keys of other commands; a test runs them and compares."""

_FACTS = ModelInfo("mini-q4", "/path/to/models/mini-q4", "0112f27f401c5c42", "q4", 5.4329, "cpu", 0, 8)
_STATS = Stats(27, 0, 20, 0.0026, 0.0043, 0.0027, 2048, 2, 1, reasoning_tokens=12)
_LOGPROB = TokenLogprob(17, "2", -0.000021, (TokenLogprob(17, "2", -0.000021),))
_CONTROLS = ReplySettings(SamplingParams(), seed=1)


def _paths(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each key of an object, with the JSON type of its value."""
    if isinstance(value, dict) and path != "settings":
        if path in KEYS:
            yield path, "object"
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and path == "logprobs":
        yield path, "array"
        yield from _paths(value[0], "logprobs[]")
    else:
        kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
        yield path, kinds.get(type(value), "null")


def _key_table(value: object, *, without: tuple[str, ...] = ()) -> str:
    paths = [(path, kind) for path, kind in _paths(value) if path.split(".")[0] not in without]
    return table(["Key", "Type and meaning"], [(code(path), f"*{kind}*: {KEYS[path]}") for path, kind in paths])


def _block(text: str) -> str:
    return f"```json\n{text}\n```"


def _reply() -> dict[str, object]:
    thought, answer = "Add 2 and 3.", "2 + 3 = 5."
    raw = f"{thought}</think>{answer}"
    done = Done("stop", _STATS, answer, (17,), 1, True, (_LOGPROB,), thought, raw)
    return reply_fields(done, _CONTROLS, _FACTS, {"dropped": 0, "summarised": 0})


def _events() -> str:
    """Return lines of events; objects that are described elsewhere are shortened."""
    out = io.StringIO()
    writer = EventWriter(out)
    writer.start(request_fields(_FACTS, _CONTROLS))
    writer.context_reduced(ContextReduction("dropped", 2, 4, 1536, 2048))
    writer.event(Prefilled(27, 27, 0))
    writer.event(TextStep("Add", 64, reasoning=True))
    writer.event(TextStep("2", 17))
    writer.done(_reply())
    lines = []
    for line in out.getvalue().splitlines():
        event = json.loads(line)
        short = {key: {} if isinstance(inner, dict) else inner for key, inner in event.items() if key != "logprobs"}
        lines.append(json_line(short).replace("{}", "{…}"))
    return "```text\n" + "\n".join(lines) + "\n```"


def page() -> str:
    """Return the page."""
    reply = _reply()
    shown = json.dumps({**reply, "settings": "…", "logprobs": "…"}, indent=2, ensure_ascii=False)
    error = error_fields(ModelError("/models/x: weights.bin is damaged"), 3, "", _FACTS, _CONTROLS)
    others = [(code(f"qwchat {name}"), ", ".join(map(code, keys))) for name, keys in OTHERS.items()]
    return whole_page(
        "JSON output",
        _INTRODUCTION,
        "## A reply",
        _REPLY,
        _block(shown),
        _key_table(reply),
        "## An error",
        _ERROR,
        _key_table(error, without=("text", "model", "settings", "seed")),
        "## Events",
        _EVENTS,
        _events(),
        "## Other commands",
        "Top-level keys (`pull` without a name); `config show` has one key per setting, each with `value` and `from`.",
        table(["Command", "Keys"], others),
    )
