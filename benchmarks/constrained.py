"""Measure what constrained decoding costs: CPU time of masks and sampling, compared with an unconstrained step.

    python -m benchmarks.constrained MODEL [--rounds N] [--context N]

With the constraint, each step computes the mask of all tokens, applies it to the logits and samples. It then accepts
the next token of a given text instead of the sampled one, so that random weights write what a real model would write.
Without the constraint, the same number of tokens is generated at the same depth. The two alternate, round by round,
without speculation.

    schema      an object with strings, numbers, a list and a nested object, repeated
    closing     the same with just enough tokens, so that a way to close the JSON is computed at every token
    regex       prose of any length
    choices     one of three long texts

All figures are CPU time, which other programs hardly disturb. Each position of the text counts with its fastest round:

    step        an unconstrained step, divided by the threads
    masks       the constraint library, on the thread that also samples
    sampling    sampling with the mask minus sampling without: the filters run on the allowed tokens only
    loss        (masks + sampling) / (step + masks + sampling), the share of decode speed that is lost
    by clock    the same by the clock, over all rounds; meaningful on an idle machine only

Prints one JSON line at the end. The exit code is 1 if a task loses more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qwchat
from benchmarks.measurements import Conditions, Measurement, add_results_option, append, model_and_preset
from qwchat.constraints import Constraint
from qwchat.constraints.masks import GrammarMask
from qwchat.events import TokenStep
from qwchat.generation.sampling import Sampler
from qwchat.request import Request, SamplingParams

BAR = 0.15
PROMPT = "Describe some persons."
QWEN2 = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, repeat_penalty=1.05)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "height": {"type": "number"},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "kind": {"enum": ["friend", "colleague", "stranger"]},
    },
    "required": ["name", "age", "height", "email", "tags", "address", "kind"],
    "additionalProperties": False,
}
ONE = {
    "name": "Ada van Dijk", "age": 42, "height": 1.73, "email": "ada@example.org", "tags": ["two words", "naïve"],
    "address": {"street": "Long Lane 5, second floor", "zip": "12345"}, "kind": "colleague",
}  # fmt: skip
PROSE = "The sea is calm tonight, and those who stand on the pier can hear the bells of the harbour: one, two, three. "
CHOICES = [PROSE * 2 + ending for ending in ("Yes.", "No.", "Not yet known.")]


@dataclass(frozen=True)
class Task:
    """A constraint and a text that meets it; `tight` allows exactly as many tokens as the text has."""

    constraint: Constraint
    text: str
    tight: bool = False


def tasks() -> dict[str, Task]:
    """Return the tasks by name."""
    people = Constraint.json_schema(json.dumps({"type": "array", "items": PERSON, "minItems": 2}))
    text = json.dumps([ONE, ONE], ensure_ascii=False)
    return {
        "schema": Task(people, text),
        "closing": Task(people, text, tight=True),
        "regex": Task(Constraint.regex(r"([^\n]|\n)*"), PROSE * 5),
        "choices": Task(Constraint.choices(CHOICES), CHOICES[-1]),
    }


class ScriptedMask:
    """Mask that accepts the tokens of a given text, whatever was sampled, and times the mask that it wraps."""

    def __init__(self, mask: GrammarMask, token_ids: Sequence[int]) -> None:
        self._mask, self._token_ids, self._place = mask, token_ids, 0
        self.seconds = [0.0] * len(token_ids)
        self.bits: list[NDArray[np.uint8]] = []

    def allowed(self) -> NDArray[np.uint8]:
        """Return the mask of the wrapped one, and record its time."""
        started = time.thread_time()
        bits = self._mask.allowed()
        self.seconds[self._place] += time.thread_time() - started
        self.bits.append(bits)
        return bits

    def accept(self, token: int, remaining: int) -> int | None:
        """Accept the next token of the text instead of `token`."""
        started = time.thread_time()
        taken = self._mask.accept(self._token_ids[self._place], remaining)
        self.seconds[self._place] += time.thread_time() - started
        self._place += 1
        return taken

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next."""
        return self._mask.forced_tokens()

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens` the constraint allows."""
        return self._mask.count_allowed(tokens)

    @property
    def completing(self) -> bool:
        """True if the reply is being completed because few tokens remain."""
        return self._mask.completing

    @property
    def finished(self) -> bool:
        """True if the text is complete."""
        return self._place == len(self._token_ids)


class Round:
    """One round of a task, without and with the constraint; the order alternates with `number`."""

    def __init__(self, model: qwchat.Model, task: Task, prompt: Sequence[int], number: int) -> None:
        self._model, self._task, self._prompt, self._number = model, task, prompt, number
        self.token_ids = model.encode(task.text)
        self._script = ScriptedMask(model.mask_factory.mask(task.constraint), self.token_ids)
        self.clock, self.processor = [0.0, 0.0], [0.0, 0.0]  # seconds without and with the constraint
        for bound in (1, 0) if number % 2 else (0, 1):
            self._half(bound)
        self.masks = np.array(self._script.seconds)

    def _half(self, bound: int) -> None:
        cached = self._model.cached_context
        cached.truncate(len(self._prompt) - 1)
        limit = len(self.token_ids) if self._task.tight or not bound else None
        events = self._model.engine.generate(
            cached,
            self._prompt,
            Request(QWEN2, self._number, max_tokens=limit, speculate=False),
            usable_vocab=self._model.tokenizer.vocab_size,
            mask=self._script if bound else None,
        )
        clock, processor = time.perf_counter(), time.process_time()
        count = sum(isinstance(event, TokenStep) for event in events)
        self.clock[bound], self.processor[bound] = time.perf_counter() - clock, time.process_time() - processor
        assert count == len(self.token_ids), "a text that its constraint does not allow"

    def sampling(self) -> NDArray[np.float64]:
        """Return the seconds of sampling at each position, without and with the mask, (2, tokens) f64.

        All samples are drawn from the logits behind the prompt.
        """
        row = self._model.cached_context.logits(self._prompt)[-1].copy()
        prompt, taken = np.array(self._prompt), np.array(self.token_ids)
        seconds = np.empty((2, len(taken)))
        for place, bits in enumerate(self._script.bits):
            for bound, allowed in enumerate((None, bits)):
                sampler = Sampler(QWEN2, self._number, self._model.tokenizer.vocab_size)
                started = time.thread_time()
                sampler.sample(row, prompt, taken[:place], allowed)
                seconds[bound, place] = time.thread_time() - started
        return seconds


def loss_of(model: qwchat.Model, task: Task, prompt: Sequence[int], rounds: int, name: str) -> float:
    """Measure a task, print its line, and return the share of decode speed that it loses."""
    Round(model, task, prompt, 0)
    found = [Round(model, task, prompt, number) for number in range(rounds)]
    step = min(each.processor[0] for each in found) / len(found[0].token_ids) / model.threads
    masks = float(np.min([each.masks for each in found], axis=0).mean())
    plain, bound = np.min([each.sampling() for each in found], axis=0).mean(axis=1)
    more = masks + float(bound - plain)
    loss = more / (step + more)
    clock = 1 - sum(each.clock[0] for each in found) / sum(each.clock[1] for each in found)
    figures = f"{step * 1e6:8.0f} {masks * 1e6:8.0f} {(bound - plain) * 1e6:8.0f} {loss:8.1%} {clock:8.1%}"
    print(f"{name:8} {len(found[0].token_ids):6} {figures}", flush=True)
    return loss


def measurements(model: str, losses: Mapping[str, float], conditions: Conditions) -> list[Measurement]:
    """Return the share of decode speed that each task loses, as measurements."""
    name, preset = model_and_preset(model)
    return [
        Measurement(conditions, name, "qwchat", preset, task, None, loss, "share of decode speed lost", note="CPU time")
        for task, loss in losses.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder, or a name in the models folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024)
    add_results_option(parser)
    options = parser.parse_args(arguments)
    with qwchat.load(options.model, context=options.context, verify=False) as model:
        prompt = model.prompt_ids([{"role": "user", "content": PROMPT}])
        print("task     tokens  step/µs    masks sampling     loss by clock")
        conditions = Conditions.of_this_run("constrained", model.threads)
        losses = {name: loss_of(model, task, prompt, options.rounds, name) for name, task in tasks().items()}
    print(json.dumps({"losses": {name: round(loss, 4) for name, loss in losses.items()}, "bar": BAR}))
    append(options.results, measurements(options.model, losses, conditions))
    return int(max(losses.values()) > BAR)


if __name__ == "__main__":
    sys.exit(main())
