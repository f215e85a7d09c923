"""JSON output: a reply as one object, or its events as one object per line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TextIO

from qwchat.characters import escape_json
from qwchat.chat.context_budget import ContextReduction
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.statistics import figures
from qwchat.cli.error_messages import error_message
from qwchat.events import Done, Prefilled, TextEvent, TextStep, TokenLogprob
from qwchat.models_folder import LocatedModel

if TYPE_CHECKING:
    from qwchat.api import Model


@dataclass(frozen=True)
class ModelInfo:
    """The model of a reply: name, folder, short fingerprint of its weights, format, device, bits of activations.

    `endpoint` is the URL of the server where it runs, or None; of a model on a server, only the name is known.
    """

    name: str
    path: str | None = None
    fingerprint: str | None = None
    preset: str | None = None
    bits_per_weight: float | None = None
    device: str | None = None
    gpu_layers: int | None = None
    activations: int | None = None
    endpoint: str | None = None

    @classmethod
    def of(cls, located: LocatedModel, model: Model) -> ModelInfo:
        """Return the description of an opened model."""
        folder = model.folder
        bits = round(folder.bits_per_weight, 4)
        return cls(
            located.name,
            str(located.path),
            folder.fingerprint,
            folder.preset,
            bits,
            model.device,
            model.gpu_layers,
            model.activations,
        )


def json_line(value: object) -> str:
    """Return `value` as JSON on one line, in UTF-8, with unsafe characters escaped."""
    return escape_json(json.dumps(value, ensure_ascii=False))


def request_fields(model_info: ModelInfo, reply_settings: ReplySettings) -> dict[str, object]:
    """Return the fields about the model and the settings."""
    return {"model": asdict(model_info), "settings": reply_settings.record(), "seed": reply_settings.seed}


def reply_fields(
    done: Done, reply_settings: ReplySettings, model_info: ModelInfo, left_out: dict[str, int]
) -> dict[str, object]:
    """Return the fields of a reply.

    `left_out` counts turns that the model did not get, because they were "dropped" or "summarised". `truncated` is true
    if there are any, or if a limit ended the reply (finish_reason "length", "context" or "repetition").
    `reasoning` and `reasoning_truncated` are present if the reply has a thought, `meets_constraint` if there was a
    constraint, and `logprobs` if requested: natural logarithms of the model's own probabilities, before penalties,
    temperature, top-k, top-p, min-p and constraint.
    """
    fields: dict[str, object] = {}
    if done.raw_text is not None:
        fields["reasoning"] = done.reasoning
        fields["reasoning_truncated"] = done.reasoning_truncated
    if done.meets_constraint is not None:
        fields["meets_constraint"] = done.meets_constraint
    if done.logprobs:
        fields["logprobs"] = [_logprob_fields(each) for each in done.logprobs]
    return {
        "text": done.text,
        "finish_reason": done.finish_reason,
        "truncated": done.finish_reason in ("length", "context", "repetition") or any(left_out.values()),
        "left_out": left_out,
        **figures(done),
        **fields,
        **request_fields(model_info, reply_settings),
    }


def error_fields(
    error: Exception, code: int, text: str, model_info: ModelInfo, reply_settings: ReplySettings
) -> dict[str, object]:
    """Return the fields of a reply that `error` ended with exit code `code`; `text` is the reply so far."""
    fields = {"text": text, "finish_reason": "error", "error": error_message(error), "exit_code": code}
    return fields | request_fields(model_info, reply_settings)


def _logprob_fields(logprob: TokenLogprob) -> dict[str, object]:
    fields: dict[str, object] = {
        "token_id": logprob.token_id,
        "text": logprob.text,
        "logprob": round(logprob.logprob, 6),
    }
    return fields | ({"top": [_logprob_fields(each) for each in logprob.top]} if logprob.top else {})


class EventWriter:
    """Writes events as they happen; `docs/reference/json.md` lists them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def start(self, fields: dict[str, object]) -> None:
        """Write the start of a reply."""
        self._write({"event": "start", **fields})

    def context_reduced(self, reduction: ContextReduction) -> None:
        """Write which turns were left out to fit the context window."""
        self._write({"event": "room", **asdict(reduction)})

    def event(self, event: TextEvent) -> None:
        """Write an event of the generation."""
        if isinstance(event, Prefilled):
            self._write({"event": "prefill", **asdict(event)})
        elif isinstance(event, TextStep):
            logprobs = {} if event.logprob is None else {"logprobs": _logprob_fields(event.logprob)}
            thought = {"reasoning": True} if event.reasoning else {}
            self._write({"event": "text", "text": event.text, "token_id": event.token_id, **thought, **logprobs})

    def error(self, reply: dict[str, object]) -> None:
        """Write the error that ended the reply."""
        self._write({"event": "error", **reply})

    def done(self, reply: dict[str, object]) -> None:
        """Write the end of the reply."""
        self._write({"event": "done", **reply})

    def _write(self, value: dict[str, object]) -> None:
        self._out.write(json_line(value) + "\n")
        self._out.flush()
