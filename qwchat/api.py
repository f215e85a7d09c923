"""The Python API: open a model, encode text, generate replies.

Example:
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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quant.container import ModelFolder, open_model
from quant.wording import Argument, ArgumentMessage
from qwchat.cpu.build import build_decoder
from qwchat.cpu.kernels import kernel_store
from qwchat.errors import NonFiniteLogitsError, SnapshotError, UsageError
from qwchat.events import Prefilled, TextEvent, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.integrity import Integrity
from qwchat.last_use import record_use
from qwchat.messages import Message
from qwchat.model.context_limits import context_limit
from qwchat.model.decoder import Decoder
from qwchat.models_folder import converted_folder
from qwchat.request import Prompt, PromptOptions, Request, SamplingParams, random_seed
from qwchat.text.generation_config import GenerationDefaults
from qwchat.text.prompts import build_prompt, has_thoughts
from qwchat.text.reply_builder import ReplyBuilder
from qwchat.text.template import ChatTemplate
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
    """Open a converted model.

    Args:
        model: path of the model folder, or a name in the models folder.
        threads: number of compute threads; the default is the number of physical cores.
        context: positions in the KV cache; the default is the model's limit, at most 4,096.
        device: `cpu` or `auto`.
        kv: format of the KV cache: `f32`, `q8` or `auto`, which is `q8` if `f32` needs more than 128 MiB.
        verify: compare the model's files with their checksums in the background, unless they were found intact before
            and have not changed since. If they differ, the next event of a reply raises DamagedModelError;
            `model.integrity.wait()` waits for the result.

    Raises:
        ModelError: there is no such model, or it has not been converted (see `quant.convert`).
        quant.errors.ContainerError: the model is damaged.
        UsageError: an argument is out of range.
        NotEnoughMemoryError: the weights, the KV cache or the work space do not fit in memory.
    """
    folder = open_model(converted_folder(str(model)))
    folder.prefetch()
    cached = _build_cached_context(folder, device, threads=threads, context=context, kv=kv)
    record_use(folder.path)
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


class Model:
    """A converted model with its tokenizer, chat template and defaults. Use it in one thread at a time.

    Attributes:
        engine: generates tokens; `cached_context` holds its KV cache.
        integrity: the background check of the model's files.
        defaults: sampling parameters from generation_config.json.
        stop_ids: token ids that end a reply.
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
        """Size of the context window in tokens, for prompt and reply together."""
        return self.engine.decoder.context

    @property
    def longest_context(self) -> int:
        """Longest context window that the model supports, in tokens."""
        return context_limit(self.config)

    @property
    def thinks(self) -> bool:
        """Whether replies of this model may begin with a thought."""
        return has_thoughts(self.tokenizer, self.template)

    @property
    def threads(self) -> int:
        """Number of compute threads."""
        return self.engine.decoder.threads

    @property
    def kv(self) -> str:
        """Format of the KV cache: `f32` or `q8`."""
        return self.cached_context.cache.kind

    def reconfigure(self, *, threads: int | None = None, context: int | None = None, kv: str = "auto") -> int:
        """Change arguments of `load` on the same device, and return how many tokens must be evaluated again.

        Cached tokens are kept if the cache format stays the same and they fit. Raises what `load` raises for these
        arguments; the model is unchanged then.
        """
        cached = _build_cached_context(self.folder, self._device, threads=threads, context=context, kv=kv)
        dropped = self.cached_context.length - cached.copy_from(self.cached_context)
        self.engine.decoder.close()
        self.engine, self.cached_context = Engine(cached.decoder), cached
        return dropped

    @cached_property
    def mask_factory(self) -> MaskFactory:
        """Factory of token masks for constraints, imported on first use."""
        from qwchat.constraints import MaskFactory

        return MaskFactory(self.tokenizer, self.stop_ids)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`. Control tokens in it are treated as plain text."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`. Invalid UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(token_ids)

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> Prompt:
        """Render the prompt of a conversation, up to the start of the assistant's next turn.

        With `continuing` the last message is an unfinished reply, and the prompt ends with its tokens.

        Raises:
            TemplateError: the chat template fails on the conversation.
            UsageError: `continuing` is set and the last message is not a reply, or a template variable is reserved or
                not JSON.
        """
        return build_prompt(self.tokenizer, self.template, messages, continuing=continuing, options=options)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the prompt of a conversation. Raises TemplateError."""
        return list(self.prompt(messages).ids)

    def count(self, messages: Sequence[Message], *, continuing: bool = False) -> int:
        """Return the number of prompt tokens of a conversation. Raises what `prompt` raises."""
        return self.prompt(messages, continuing=continuing).tokens

    def cached(self, prompt: Prompt) -> int:
        """Return the number of tokens of `prompt` that are in the KV cache."""
        return self.cached_context.count_cached(prompt.ids)

    def reevaluated_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens must be evaluated again because the conversation changed before its end.

        The result is 0 if the conversation has only grown.
        """
        held = self.cached(prompt)
        return prompt.tokens - held if held < min(self.cached_context.length, prompt.tokens) else 0

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits (tokens, vocabulary) f32 at every position of `token_ids`.

        Raises PromptTooLongError, and DamagedModelError if the model's files are known to be damaged.
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
        """Continue `prompt` without a chat template.

        Args:
            prompt: text or token ids.
            settings: sampling parameters; the default is `defaults`.
            max_tokens: maximum number of new tokens; None generates until the context window is full.
            seed: random seed; None picks one. Done reports it.
            stop: strings that end the text; they are not part of it.
            cancel: called between tokens; True stops the generation.
            speculate: evaluate draft tokens found in earlier text if that saves time. The output is the same.
            loop_guard: stop after this many repeated tokens; 0 is off.
            continued: number of ids at the end of `prompt` that belong to an interrupted generation. It continues with
                the tokens that it would have had without the interruption.
            constraint: what the whole text must match.
            logprobs: report the log-probability of every token and of this many most likely tokens, up to
                `qwchat.limits.MAX_LOGPROBS`.

        Yields:
            Prefilled and TextStep events, then one Done.

        Raises:
            PromptTooLongError: the prompt does not fit in the context window.
            UsageError: an argument is out of range.
            NonFiniteLogitsError: the model computed NaN or infinity.
            DamagedModelError: the model's files are known to be damaged.
            ConstraintError: the constraint becomes too complex during generation.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        request = self._request(
            settings,
            seed,
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
        think_budget: int = 0,
        options: PromptOptions | None = None,
    ) -> Iterator[TextEvent]:
        """Generate the assistant's next turn. Other arguments, events and errors are those of `generate`.

        Thoughts of a reasoning model are events with `reasoning` and Done.reasoning; `stop` and `constraint` apply to
        the answer alone. `think_budget` closes the thought after so many tokens; 0 is off. `options` are those of
        `prompt`. A message of an earlier reply takes Done.content.

        With `continuing` the last message is an unfinished reply, which continues as it would have with the same seed
        and parameters. Its `token_ids` are used if present; otherwise its text is encoded.
        """
        request = self._request(
            settings,
            seed,
            max_tokens=max_tokens,
            stop=tuple(stop),
            speculate=speculate,
            loop_guard=loop_guard,
            constraint=constraint,
            logprobs=logprobs,
            think_budget=think_budget,
        )
        return self.stream(self.prompt(messages, continuing=continuing, options=options), request, cancel)

    def _request(self, settings: SamplingParams | None, seed: int | None, **others: Any) -> Request:
        return Request(settings or self.defaults, random_seed() if seed is None else seed, **others)

    def stream(self, prompt: Prompt, request: Request, cancel: Cancel | None = None) -> Iterator[TextEvent]:
        """Generate the reply to a rendered prompt. Events and errors are those of `generate`."""
        continued_ids = prompt.ids[prompt.tokens - prompt.continued :]
        mask = (
            None
            if request.constraint is None
            else self.mask_factory.mask(request.constraint, continued_ids, prompt.reasoning)
        )
        reply = ReplyBuilder(self.tokenizer, request, continued_ids, prompt.reasoning)
        events = self.engine.generate(
            self.cached_context,
            prompt.ids,
            request,
            usable_vocab=self.tokenizer.vocab_size,
            stop_ids=self.stop_ids,
            cancel=lambda: reply.stopped or (cancel is not None and cancel()),
            continued=prompt.continued,
            mask=mask,
            forced=reply.forced_tokens,
        )
        try:
            for event in events:
                self.integrity.raise_if_damaged()
                if isinstance(event, Prefilled):
                    yield event
                elif isinstance(event, TokenStep):
                    yield from reply.step(event)
                else:
                    if tail := reply.flush():
                        yield tail
                    yield reply.done(event)
        except NonFiniteLogitsError:
            self.integrity.wait()  # A damaged file is the better explanation.
            self.integrity.raise_if_damaged()
            raise

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """Token ids (positions,) in the KV cache."""
        return self.cached_context.ids

    @property
    def cache_bytes(self) -> int:
        """Size in bytes of the file that `save_cache` would write."""
        return self.cached_context.snapshot_bytes()

    @property
    def reevaluation_seconds(self) -> float:
        """Estimated seconds to evaluate `cached_ids` again, at the speed measured so far; 0 before any prefill."""
        return self.cached_context.reevaluation_seconds

    def save_cache(self, path: str | Path) -> int:
        """Save the KV cache to `path` for `restore_cache` in another process, and return the bytes written.

        Waits for the check of the model's files, since a damaged model has the fingerprint of the intact one. Raises
        SnapshotError if the model is damaged or `path` cannot be written.
        """
        self.integrity.wait()
        if not self.integrity.intact:
            raise SnapshotError("the KV cache is not saved, because the model's files are damaged")
        return self.cached_context.save(Path(path), self.folder.fingerprint)

    def restore_cache(self, path: str | Path) -> int:
        """Load a KV cache that `save_cache` wrote, and return the number of its positions.

        A prompt uses the positions up to the first token that differs. The context window may differ from that of the
        writer if the positions fit.

        Raises:
            FileNotFoundError: there is no such file.
            SnapshotError: the file is damaged, writable by other users, or written by another model, another version of
                qwchat or with another cache format. The cache is empty then.
        """
        return self.cached_context.restore(Path(path), self.folder.fingerprint)

    def close(self) -> None:
        """Stop the model's threads."""
        self.integrity.close()
        self.engine.decoder.close()
