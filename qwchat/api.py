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
from qwchat.cpu.kernels import kernel_store
from qwchat.errors import GpuLostError, NonFiniteLogitsError, SnapshotError
from qwchat.events import Prefilled, TextEvent, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.integrity import Integrity
from qwchat.last_use import record_use
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.messages import Message
from qwchat.model_runner import EngineOptions, ModelRunner
from qwchat.models_folder import converted_folder
from qwchat.placement import DeviceRequest, UploadProgress
from qwchat.request import Prompt, PromptOptions, Request, SamplingParams, random_seed
from qwchat.text.generation_config import GenerationDefaults
from qwchat.text.prompts import build_prompt, has_thoughts
from qwchat.text.reply_builder import ReplyBuilder
from qwchat.text.template import ChatTemplate
from qwchat.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwchat.constraints import Constraint, MaskFactory

Cancel = Callable[[], bool]


def load(
    model: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    kv: str = "auto",
    activations: int = DEFAULT_ACTIVATIONS,
    verify: bool = True,
    progress: UploadProgress | None = None,
) -> Model:
    """Open a converted model.

    Args:
        model: path of the model folder, or a name in the models folder.
        threads: number of compute threads; the default is the number of physical cores.
        context: positions in the KV cache; the default is the model's limit, at most 4,096.
        device: `cpu`, `cuda`, `cuda:N` for the GPU number N, or `auto`: a GPU if the model, or enough of its layers,
            fits there.
        gpu_layers: how many layers, the last ones, run on the GPU; None for as many as fit.
        kv: format of the KV cache: `f32` (16 bits on a GPU), `q8` or `auto`, which is `q8` if the other needs more than
            128 MiB.
        activations: bits of the activations that quantised weights are multiplied by, 8 or 16. With 16, products are
            nearly exact, prefill takes twice as long, and the model runs on the CPU.
        verify: compare the model's files with their checksums in the background, unless they were found intact before
            and have not changed since. If they differ, the next event of a reply raises DamagedModelError;
            `model.integrity.wait()` waits for the result.
        progress: called with the bytes of weights that were copied to a GPU, and with the bytes of all of them.

    Raises:
        ModelError: there is no such model, or it has not been converted (see `quant.convert`).
        quant.errors.ContainerError: the model is damaged.
        UsageError: an argument is out of range.
        GpuError: `device` or `gpu_layers` ask for a GPU that cannot be used.
        NotEnoughMemoryError: the weights, the KV cache or the work space do not fit in memory.
    """
    folder = open_model(converted_folder(str(model)))
    folder.prefetch()
    options = EngineOptions(DeviceRequest(device, gpu_layers), threads, context, kv, activations, progress)
    opened = Model(folder, options, Integrity(folder if verify else None))
    record_use(folder.path)
    return opened


class Model(ModelRunner):
    """A converted model with its tokenizer, chat template and defaults. Use it in one thread at a time.

    `qwchat.load` returns one. The base class has the engine and the KV cache.

    Attributes:
        integrity: the background check of the model's files.
        defaults: sampling parameters from generation_config.json.
        stop_ids: token ids that end a reply.
    """

    def __init__(self, folder: ModelFolder, options: EngineOptions, integrity: Integrity) -> None:
        super().__init__(folder, options)
        self.integrity = integrity
        try:
            self._read_text_files()
        except BaseException:
            super().close()
            raise
        integrity.start()

    def _read_text_files(self) -> None:
        folder = self.folder.path
        self.tokenizer = Tokenizer.from_folder(folder, kernel_store.KERNELS.writable_folder, self.config.vocab_size)
        self.template = ChatTemplate.from_folder(folder)
        generation = GenerationDefaults.from_folder(folder, self.config.eos_token_ids)
        self.defaults = generation.sampling
        self.stop_ids = frozenset(generation.eos_token_ids)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def thinks(self) -> bool:
        """Whether replies of this model may begin with a thought."""
        return has_thoughts(self.tokenizer, self.template)

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

    def stream(
        self,
        prompt: Prompt,
        request: Request,
        cancel: Cancel | None = None,
        cached_context: CachedContext | None = None,
    ) -> Iterator[TextEvent]:
        """Generate the reply to a rendered prompt. Events and errors are those of `generate`.

        `cached_context` is the KV cache of the conversation, from `make_context`; None takes the model's own.
        """
        continued_ids = prompt.ids[prompt.tokens - prompt.continued :]
        mask = (
            None
            if request.constraint is None
            else self.mask_factory.mask(request.constraint, continued_ids, prompt.reasoning)
        )
        reply = ReplyBuilder(self.tokenizer, request, continued_ids, prompt.reasoning)
        events = self.engine.generate(
            self.cached_context if cached_context is None else cached_context,
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
        except GpuLostError as error:
            raise self.leave_gpu(error) from error
        except NonFiniteLogitsError:
            self.integrity.wait()  # A damaged file is the better explanation.
            self.integrity.raise_if_damaged()
            raise

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
        super().close()
