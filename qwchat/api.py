"""The Python API: a model that takes text and gives text.

import qwchat

with qwchat.load("path/to/model") as model:
    for event in model.chat([{"role": "user", "content": "Hello"}]):
        if isinstance(event, qwchat.events.TextStep):
            print(event.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quant.container import ModelFolder, open_model
from quant.wording import Argument, ArgumentMessage
from qwchat.cpu.build import build_decoder
from qwchat.cpu.kernels import kernel_store
from qwchat.errors import ModelError, NonFiniteLogitsError, SnapshotError, UsageError
from qwchat.events import Done, Finished, Prefilled, TextEvent, TextStep, TokenLogprob, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.integrity import Integrity
from qwchat.messages import Message
from qwchat.model.context_limits import context_limit
from qwchat.model.decoder import Decoder
from qwchat.models_folder import is_model, locate
from qwchat.request import Prompt, Request, SamplingParams, random_seed
from qwchat.text.detokenizer import StreamDecoder
from qwchat.text.generation_config import GenerationDefaults
from qwchat.text.stop_strings import StopStrings
from qwchat.text.template import ChatTemplate, encode_chat
from qwchat.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwchat.constraints import Constraint, MaskFactory

Cancel = Callable[[], bool]
_DEVICES: dict[str, Callable[..., Decoder]] = {"cpu": build_decoder}


def load(
    model: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str = "auto",
    kv: str = "auto",
    verify: bool = True,
) -> Model:
    """Opens a converted model: the path of its folder, or its name in the models folder.

    `threads`: by default the physical cores; `context`: positions of the KV cache, by default the model's, at
    most 4,096; `kv`: `f32`, `q8` or `auto`, which is `q8` where `f32` would take more than 128 MiB;
    `verify`: compare the model's files with their checksums in the background, unless they were found intact before
    and have not changed since.  The next event of a reply raises DamagedModelError where they differ, and
    `model.integrity.wait()` waits for the result.

    Raises ModelError if there is no such model or it has yet to be converted (`quant.convert` does it),
    quant.errors.ContainerError if it is damaged, the errors of :class:`Tokenizer`, UsageError
    for values out of range, and NotEnoughMemoryError.
    """
    folder = open_model(_converted_folder(str(model)))
    folder.prefetch()
    cached = _build_cached_context(folder, device, threads=threads, context=context, kv=kv)
    return Model(folder, device, cached, Integrity(folder if verify else None))


def _build_cached_context(
    folder: ModelFolder, device: str, *, threads: int | None, context: int | None, kv: str
) -> CachedContext:
    """Return an empty context of a new decoder. Raises what `load` raises for these arguments."""
    build = _DEVICES.get("cpu" if device == "auto" else device)
    if build is None:
        known = ", ".join(("auto", *_DEVICES))
        raise UsageError(ArgumentMessage(Argument("device"), f" must be one of {known}, not {device!r}"))
    decoder = build(folder, threads=threads, context=context, kv=kv)
    try:
        return CachedContext(decoder)
    except BaseException:
        decoder.close()
        raise


def _converted_folder(model: str) -> Path:
    located = locate(model)
    if located.converted:
        return located.path
    if is_model(located.destination):
        return located.destination
    raise ModelError(
        f"{located.path} is a checkpoint that has not been converted: run `qwchat convert {located.path}`, "
        "or call quant.convert, and load the result"
    )


class Model:
    """A converted model with its tokenizer, template and defaults, ready to answer.  Use it in one thread at a time.

    `defaults`: the sampling settings of the model's generation_config.json; `stop_ids`: tokens that end a reply;
    `integrity`: the check of its files.
    """

    def __init__(self, folder: ModelFolder, device: str, cached: CachedContext, integrity: Integrity) -> None:
        self.folder, self.config, self._device = folder, folder.config, device
        self.engine, self.cached_context = Engine(cached.decoder), cached
        self.integrity = integrity
        self.tokenizer = Tokenizer.from_folder(
            folder.path, kernel_store.KERNELS.writable_folder, self.config.vocab_size
        )
        self.template = ChatTemplate.from_folder(folder.path)
        generation = GenerationDefaults.from_folder(folder.path, self.config.eos_token_ids)
        self.defaults = generation.sampling
        self.stop_ids = frozenset(generation.eos_token_ids)
        integrity.start()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may fill together."""
        return self.engine.decoder.context

    @property
    def longest_context(self) -> int:
        """The longest context, in tokens, that the model was made for."""
        return context_limit(self.config)

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self.engine.decoder.threads

    @property
    def kv(self) -> str:
        """Kind of the KV cache, `f32` or `q8`."""
        return self.cached_context.cache.kind

    def reconfigure(self, *, threads: int | None = None, context: int | None = None, kv: str = "auto") -> int:
        """Change settings of :func:`load`, on the same device; return how many tokens must be evaluated again.

        Cached tokens are kept where the cache stays of one kind and they fit. Raises what :func:`load` raises for its
        arguments; the model is unchanged then.
        """
        cached = _build_cached_context(self.folder, self._device, threads=threads, context=context, kv=kv)
        dropped = self.cached_context.length - cached.copy_from(self.cached_context)
        self.engine.decoder.close()
        self.engine, self.cached_context = Engine(cached.decoder), cached
        return dropped

    @cached_property
    def mask_factory(self) -> MaskFactory:
        """Makes masks of constraints; imported on first use, since few replies are constrained."""
        from qwchat.constraints import MaskFactory

        return MaskFactory(self.tokenizer, self.stop_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; control tokens in it are text."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.tokenizer.decode(token_ids)

    def prompt(self, messages: Sequence[Message], *, continuing: bool = False) -> Prompt:
        """Render the prompt of a conversation, up to where the assistant's next turn begins.

        `continuing`: the last message is a turn of the assistant that was cut; the prompt ends with its tokens.
        Raises TemplateError, UsageError.
        """
        unfinished_ids = self._unfinished_reply_ids(messages) if continuing else []
        ids = encode_chat(self.tokenizer, self.template, messages[:-1] if continuing else messages)
        return Prompt([*ids, *unfinished_ids], len(unfinished_ids))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the prompt of a conversation. Raises TemplateError."""
        return list(self.prompt(messages).ids)

    def count(self, messages: Sequence[Message], *, continuing: bool = False) -> int:
        """Return the tokens of the prompt that `chat` makes of a conversation. Raises TemplateError, UsageError."""
        return self.prompt(messages, continuing=continuing).tokens

    def cached(self, prompt: Prompt) -> int:
        """Return how many tokens of `prompt` the KV cache holds."""
        return self.cached_context.count_cached(prompt.ids)

    def reevaluated_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a reply to `prompt` evaluates again, since a conversation changed before its end.

        It is 0 where the conversation only grew.
        """
        held = self.cached(prompt)
        return prompt.tokens - held if held < min(self.cached_context.length, prompt.tokens) else 0

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (tokens, vocab) f32 at every position of `token_ids`.

        Raises PromptTooLongError, and DamagedModelError if damage of the model's files is known.
        """
        self.integrity.raise_if_damaged()
        return self.cached_context.logits(token_ids)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        settings: SamplingParams | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: Cancel | None = None,
        speculate: bool = True,
        loop_guard: int = 0,
        continued: int = 0,
        constraint: Constraint | None = None,
        logprobs: int = 0,
    ) -> Iterator[TextEvent]:
        """Continues `prompt` (text or token ids) as it is, without a template.

        `settings`: the model's own if not given; `seed`: chosen if not given, and reported in Done; `stop`:
        strings that end the text and are not part of it; `cancel`: asked between tokens; `speculate`: guess tokens
        by looking up how the text went on before, where that saves time (it never changes the text); `loop_guard`:
        end a text that has repeated itself for so many tokens, 0 never does; `continued`: so many of the last ids are
        the text so far of a run that was cut, which goes on, token by token, as it would have (`max_tokens` counts
        new ones); `constraint`: what the text must look like, as a whole; `logprobs`: report the log-probability of
        every token and of so many of the likeliest in its place, up to `qwchat.limits.MAX_LOGPROBS`.
        Yields Prefilled, TextStep and one Done.  Raises PromptTooLongError, UsageError, NonFiniteLogitsError,
        DamagedModelError as soon as damage of the model's files is known, and ConstraintError where the constraint
        becomes too complex on the way.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        request = Request(
            settings or self.defaults,
            random_seed() if seed is None else seed,
            max_tokens=max_tokens,
            stop=tuple(stop),
            speculate=speculate,
            loop_guard=loop_guard,
            constraint=constraint,
            logprobs=logprobs,
        )
        return self.stream(Prompt(ids, continued), request, cancel)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        settings: SamplingParams | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: Cancel | None = None,
        speculate: bool = True,
        loop_guard: int = 0,
        continuing: bool = False,
        constraint: Constraint | None = None,
        logprobs: int = 0,
    ) -> Iterator[TextEvent]:
        """The assistant's next turn in a conversation; arguments, events and errors as for :meth:`generate`.

        `continuing`: the last message is a turn of the assistant that was cut, and goes on where it ended, as it
        would have with the same seed and settings; give its `token_ids`, or its text is encoded anew.
        """
        request = Request(
            settings or self.defaults,
            random_seed() if seed is None else seed,
            max_tokens=max_tokens,
            stop=tuple(stop),
            speculate=speculate,
            loop_guard=loop_guard,
            constraint=constraint,
            logprobs=logprobs,
        )
        return self.stream(self.prompt(messages, continuing=continuing), request, cancel)

    def stream(self, prompt: Prompt, request: Request, cancel: Cancel | None = None) -> Iterator[TextEvent]:
        """Generate the reply to a prompt that is rendered already; events and errors as for `generate`."""
        continued_ids = prompt.ids[prompt.tokens - prompt.continued :]
        mask = None if request.constraint is None else self.mask_factory.mask(request.constraint, continued_ids)
        reply = _ReplyBuilder(self.tokenizer, request, continued_ids)
        events = self.engine.generate(
            self.cached_context,
            prompt.ids,
            request,
            usable_vocab=self.tokenizer.vocab_size,
            stop_ids=self.stop_ids,
            cancel=lambda: reply.stopped or (cancel is not None and cancel()),
            continued=prompt.continued,
            mask=mask,
        )
        try:
            for event in events:
                self.integrity.raise_if_damaged()
                if isinstance(event, Prefilled):
                    yield event
                elif isinstance(event, TokenStep):
                    yield reply.step(event)
                else:
                    if tail := reply.flush():
                        yield tail
                    yield reply.done(event)
        except NonFiniteLogitsError:
            self.integrity.wait()  # Damage that is found explains more.
            self.integrity.raise_if_damaged()
            raise

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """The token ids (positions,) that the model has read or said and would not read again."""
        return self.cached_context.ids

    @property
    def cache_bytes(self) -> int:
        """Size of the file that :meth:`save_cache` would write."""
        return self.cached_context.snapshot_bytes()

    @property
    def reevaluation_seconds(self) -> float:
        """What reading :attr:`cached_ids` again would take, by the speed so far; 0 where nothing was read yet."""
        return self.cached_context.reevaluation_seconds

    def save_cache(self, path: str | Path) -> int:
        """Keeps on disk what the model has read and said, for :meth:`restore_cache` in another process; bytes written.

        Waits for the check of the model's files.  Raises SnapshotError where `path` cannot be written, and where the
        model is damaged: it has the fingerprint of the intact one, which would go on from there.
        """
        self.integrity.wait()
        if not self.integrity.intact:
            raise SnapshotError("what was read is not kept, since the model's files are damaged")
        return self.cached_context.save(Path(path), self.folder.fingerprint)

    def restore_cache(self, path: str | Path) -> int:
        """Takes up what :meth:`save_cache` wrote, so that a conversation that begins alike is not read again.

        Returns the positions that the cache now holds; they may be fewer than asked for later, or belong to another
        text: only what agrees with the next prompt is used.  Another `context` than that of the writer will do if
        they fit.  Raises FileNotFoundError, and SnapshotError for a file that is damaged, others can write, or comes
        from another model, another version of qwchat or another kind of cache: the cache is empty then.
        """
        return self.cached_context.restore(Path(path), self.folder.fingerprint)

    def _unfinished_reply_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a turn that is to be continued."""
        if not messages or messages[-1]["role"] != "assistant":
            raise UsageError("there is nothing to continue: the last message is no turn of the assistant")
        token_ids = messages[-1].get("token_ids")
        return self.encode(messages[-1]["content"]) if token_ids is None else [int(each) for each in token_ids]

    def close(self) -> None:
        """Ends the model's threads."""
        self.integrity.close()
        self.engine.decoder.close()


class _ReplyBuilder:
    """A reply as it grows: tokens to text, held back where a character or a stop string may be unfinished."""

    def __init__(self, tokenizer: Tokenizer, request: Request, continued_ids: Sequence[int]) -> None:
        self._decoder, self._stops, self._seed = StreamDecoder(tokenizer), StopStrings(request.stop), request.seed
        self._tokenizer, self._constraint = tokenizer, request.constraint
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._pieces: list[str] = []
        self.stopped = False
        for token_id in continued_ids:  # What was held back when the reply was cut is held back again.
            self.step(TokenStep(token_id))

    def step(self, step: TokenStep) -> TextStep:
        self._ids.append(step.token_id)
        text, self.stopped = self._stops.push(self._decoder.push(step.token_id))
        self._pieces.append(text)
        if step.logprob is None:
            return TextStep(text, step.token_id)
        top = tuple(self._logprob(*likely) for likely in step.likeliest)
        self._logprobs.append(self._logprob(step.token_id, step.logprob, top))
        return TextStep(text, step.token_id, self._logprobs[-1])

    def _logprob(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.decode([token_id]), logprob, top)

    def flush(self) -> TextStep | None:
        """What was held back and now belongs to the reply."""
        if self.stopped:
            return None
        text, self.stopped = self._stops.push(self._decoder.flush())
        text += "" if self.stopped else self._stops.flush()
        self._pieces.append(text)
        return TextStep(text, None) if text else None

    def done(self, end: Finished) -> Done:
        reason = "stop" if self.stopped else end.reason
        text = "".join(self._pieces)
        meets = None if self._constraint is None else self._constraint.fits(text)
        return Done(reason, end.stats, text, tuple(self._ids), self._seed, meets, tuple(self._logprobs))
