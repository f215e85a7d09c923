"""What prompt look-up gains where text is copied, and what it costs where it is not.

    python -m benchmarks.speculation                         # the embedded model
    python -m benchmarks.speculation --model FOLDER          # forced copying with another model

With the embedded model, decoding greedily, each prompt in turn with and without speculation, round after round:

    edit    "Repeat after me: ..." twice in a conversation, the second time with one word changed or added: the answer
            is the earlier one with that edit
    again   a question answered earlier in the conversation is asked again in other words: the answer is the earlier
            one, word for word
    chat    held-out dialogues of the recipe, every family, drawn as in training: one to sixty turns, the last answer

All texts before the last answer are the model's own, not the recipe's.  Tokens are compared with and without
speculation, and have to be equal.

With any model, also one of random weights: "forced" takes each token from a given text instead of from the logits,
which are computed and searched all the same; the text is one that the prompt holds, with one token in N replaced.

A prompt counts with the median over the rounds of its decoding time, a task with the sum over its prompts.  Ends with
one JSON line; the exit code is 1 where texts differ or a bar is missed (copying 1.8, chat 0.97).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

import qwchat
from benchmarks.measurements import Conditions, Measurement, add_results_option, append, model_and_preset
from models.recipe.chatml import ChatML
from models.recipe.dialogues import FAMILIES
from models.recipe.evaluate import held_out
from models.recipe.families import echo
from models.recipe.families.memory import value
from models.recipe.phrasing import vary
from models.recipe.recipe import MODEL, Recipe
from models.recipe.turns import load
from quant import convert
from qwchat.events import Finished, TokenStep
from qwchat.generation.generation_loop import GenerationLoop
from qwchat.generation.sampling import Sampler
from qwchat.generation.speculation import DraftPolicy
from qwchat.messages import Message
from qwchat.models_folder import is_model, locate
from qwchat.request import Request, SamplingParams

COPY_BAR, CHAT_BAR = 1.8, 0.97
LONGEST_ANSWER = 400
WORDS = (5, 8)  # of a text to repeat: more than the embedded model can repeat without a slip, it does not get
FACTS = ("about", "facts_qwen2", "facts_quant")
SHORTEST_ANSWER = 24  # tokens of an answer worth asking for again


@dataclass(frozen=True)
class Decoded:
    """One answer: its tokens, the seconds from the first to the last, drafts made and accepted."""

    tokens: tuple[int, ...]
    seconds: float
    drafted: int
    accepted: int


@dataclass(frozen=True)
class Task:
    """A name, and what to decode: each case runs once, with speculation or without."""

    name: str
    cases: list[Callable[[bool], Decoded]]


def decode(model: qwchat.Model, ids: Sequence[int], speculate: bool, settings: SamplingParams) -> Decoded:
    """The answer to a prompt of token ids."""
    *events, end = model.engine.generate(
        model.cached_context,
        ids,
        Request(settings, seed=1, max_tokens=LONGEST_ANSWER, speculate=speculate),
        usable_vocab=model.tokenizer.vocab_size,
        stop_ids=model.stop_ids,
    )
    return _decoded([event.token_id for event in events if isinstance(event, TokenStep)], cast(Finished, end))


def _decoded(tokens: list[int], end: Finished) -> Decoded:
    stats = end.stats
    return Decoded(tuple(tokens), stats.decode_seconds, stats.drafted_tokens, stats.accepted_tokens)


def converse(model: qwchat.Model, asks: Sequence[str]) -> list[int]:
    """Token ids of a conversation up to the answer to the last question; the answers before are the model's."""
    messages: list[Message] = []
    for ask in asks[:-1]:
        messages.append({"role": "user", "content": ask})
        answer = decode(model, model.prompt_ids(messages), False, SamplingParams())
        messages.append({"role": "assistant", "content": model.decode(answer.tokens)})
    return model.prompt_ids([*messages, {"role": "user", "content": asks[-1]}])


def edits(count: int, rng: random.Random) -> Iterator[list[str]]:
    """Questions: repeat a text, then repeat it with one word changed or added."""
    for _ in range(count):
        words = [value(rng, rng.choice(echo.KINDS)) for _ in range(rng.randint(*WORDS))]
        changed = list(words)
        place = rng.randrange(len(words))
        if rng.random() < 0.5:
            changed[place] = value(rng, rng.choice(echo.KINDS))
        else:
            changed.insert(place, value(rng, rng.choice(echo.KINDS)))
        shape = rng.choice(echo.SHAPES)
        yield [shape.replace("{text}", " ".join(text)) for text in (words, changed)]


def repetitions(model: qwchat.Model, count: int, rng: random.Random) -> Iterator[list[str]]:
    """Questions: one of the facts that take some words to tell, then the same one worded differently."""
    facts = [fact for name in FACTS for fact in load(name)["fact"]]
    facts = [fact for fact in facts if len(fact["asks"]) > 1 and len(model.encode(fact["answer"])) >= SHORTEST_ANSWER]
    for _ in range(count):
        yield [vary(rng, ask) for ask in rng.sample(rng.choice(facts)["asks"], 2)]


def embedded_tasks(model: qwchat.Model, count: int, seed: int, settings: SamplingParams) -> Iterator[Task]:
    """Tasks of the embedded model, `count` prompts each (chat: of each family)."""

    def task(name: str, prompts: list[list[int]]) -> Task:
        return Task(name, [lambda speculate, ids=ids: decode(model, ids, speculate, settings) for ids in prompts])

    rng = random.Random(f"speculation:{seed}")
    yield task("edit", [converse(model, asks) for asks in edits(count, rng)])
    yield task("again", [converse(model, asks) for asks in repetitions(model, count, rng)])
    chatml, recipe = ChatML.load(MODEL), Recipe.load()
    for family in (*FAMILIES, "memory"):
        dialogues = held_out(recipe, family, seed, chatml)
        prompts = [chatml.prompt(next(dialogues).messages()) for _ in range(count)]
        yield task(f"chat: {family}", [ids for ids in prompts if len(ids) < model.context - LONGEST_ANSWER])


class Script(Sampler):
    """Says a given text whatever the logits are, after looking for the largest of them."""

    def __init__(self, text: Sequence[int], vocab: int) -> None:
        super().__init__(SamplingParams(), 0, vocab)
        self._text = text

    def sample(self, logits: NDArray[np.float32], prompt_ids: object, generated_ids: Sequence[int]) -> int:  # type: ignore[override]
        super().sample(logits, [], [])
        return self._text[len(generated_ids)]


def forced_tasks(model: qwchat.Model, seed: int, depth: int, length: int) -> Iterator[Task]:
    """Copying a random text of `length` tokens in the prompt of `depth`, with edits of three rates."""
    rng = np.random.default_rng(seed)
    vocab = model.tokenizer.vocab_size
    prompt = rng.integers(0, vocab, depth)
    for every in (0, 32, 8, 1):
        text = prompt[depth // 4 : depth // 4 + length].copy()
        if every:
            text[::every] = rng.integers(0, vocab, len(text[::every]))

        def case(speculate: bool, text: NDArray[np.int64] = text) -> Decoded:
            script = Script(text.tolist(), vocab)
            request = Request(script.settings, script.seed, max_tokens=length, speculate=speculate)
            run = GenerationLoop(
                model.cached_context, prompt, request, script, model.engine.draft_policy if speculate else None
            )
            *events, end = run.events()
            return _decoded([event.token_id for event in events if isinstance(event, TokenStep)], cast(Finished, end))

        yield Task("forced: " + {0: "copy", 1: "nothing to copy"}.get(every, f"1 in {every} replaced"), [case])


def measure(task: Task, rounds: int) -> dict[str, object]:
    """Runs every case `rounds` times each way, alternating; one round before goes uncounted."""
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in task.cases]
    tokens = drafted = accepted = different = 0
    for number in range(rounds + 1):
        for case, taken in zip(task.cases, seconds, strict=True):
            order = (False, True) if number % 2 else (True, False)
            found = {speculate: case(speculate) for speculate in order}
            if number == 0:
                different += found[False].tokens != found[True].tokens
                continue
            for speculate, times in zip((False, True), taken, strict=True):
                times.append(found[speculate].seconds)
            if number == rounds:
                tokens += len(found[True].tokens)
                drafted += found[True].drafted
                accepted += found[True].accepted
    plain, guessed = (sum(statistics.median(taken[way]) for taken in seconds) for way in (0, 1))
    later = tokens - len(task.cases)  # the first token of an answer belongs to the prompt
    return {
        "task": task.name,
        "prompts": len(task.cases),
        "tokens": tokens,
        "plain": later / plain,
        "speculative": later / guessed,
        "gain": plain / guessed,
        "drafted": drafted,
        "accepted": accepted,
        "different": different,
        "plain_seconds": plain,
        "speculative_seconds": guessed,
    }


def together(name: str, rows: list[dict[str, object]]) -> dict[str, object]:
    """Several tasks as one."""
    total = {key: sum(cast(float, row[key]) for row in rows) for key in rows[0] if key != "task"}
    later = total["tokens"] - total["prompts"]
    rates = {"plain": later / total["plain_seconds"], "speculative": later / total["speculative_seconds"]}
    return {**total, **rates, "task": name, "gain": total["plain_seconds"] / total["speculative_seconds"]}


def show(row: dict[str, object]) -> None:
    """One line of the table."""
    counts = f"{row['task']:28}{row['prompts']:8}{row['tokens']:8}{row['plain']:10.1f}{row['speculative']:13.1f}"
    print(f"{counts}{row['gain']:7.2f}{row['accepted']:10} of{row['drafted']:7}{row['different']:10}", flush=True)


def measurements(model: str, rows: Iterable[Mapping[str, object]], conditions: Conditions) -> list[Measurement]:
    """Return the speeds of each task without and with speculation."""
    name, preset = model_and_preset(model)
    ways = {"plain": "no speculation", "speculative": "speculation"}
    return [
        Measurement(
            conditions, name, "qwchat", f"{preset or 'q4'}, {setting}", str(row["task"]), None,
            cast(float, row[way]), "tokens/s",
        )
        for row in rows
        for way, setting in ways.items()
    ]  # fmt: skip


def open_model(name: str) -> qwchat.Model:
    """A model that is converted; the embedded one is converted first where that has not happened."""
    located = locate(name)
    if not located.converted and not is_model(located.destination):
        located.destination.parent.mkdir(parents=True, exist_ok=True)
        list(convert(located.path, located.destination))
    return qwchat.load(name, verify=False)


def main() -> int:
    """Measures, prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a converted model other than the embedded one: forced copying alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=20, help="of each task")
    parser.add_argument("--temp", type=float, default=0.0, help="temperature of the embedded model's answers")
    parser.add_argument("--depth", type=int, default=512, help="tokens of the prompt of forced copying")
    parser.add_argument("--length", type=int, default=96, help="tokens of the text of forced copying")
    parser.add_argument("--seed", type=int, default=9)
    add_results_option(parser)
    options = parser.parse_args()
    settings = SamplingParams(temperature=options.temp)
    print(
        f"{'task':28}{'prompts':>8}{'tokens':>8}{'plain':>10}{'speculative':>13}{'gain':>7}{'accepted':>20}{'differ':>10}"
    )
    rows = []
    with open_model(options.model or "mini") as model:
        conditions = Conditions.of_this_run("speculation", model.threads)
        tasks = list(forced_tasks(model, options.seed, options.depth, options.length))
        if options.model is None:
            tasks += embedded_tasks(model, options.prompts, options.seed, settings)
        for task in tasks:
            # Each task begins with what is known about nothing.
            model.engine.draft_policy = DraftPolicy()
            rows.append(measure(task, options.rounds))
            show(rows[-1])
    good = not any(row["different"] for row in rows)
    if options.model is None:
        copying = together("copy and edit", [row for row in rows if row["task"] in ("edit", "again")])
        chat = together("free chat", [row for row in rows if cast(str, row["task"]).startswith("chat")])
        for row in (copying, chat):
            show(row)
        rows += [copying, chat]
        good = good and cast(float, copying["gain"]) >= COPY_BAR and cast(float, chat["gain"]) >= CHAT_BAR
    model_name = Path(options.model).name if options.model else "mini"
    print(json.dumps({"model": model_name, "settings": vars(options), "rows": rows, "good": good}, default=str))
    append(options.results, measurements(model_name, rows, conditions))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
