"""The model `qwchat` of lm-evaluation-harness: all of its tasks with a converted model.

It needs the extra `eval`. `python -m qwchat.harness` is the harness's own command line, which knows the model then:

    python -m qwchat.harness run --model qwchat --model_args pretrained=Qwen2-7B-Instruct-q4 --tasks mmlu

The program never imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import qwchat
from qwchat.errors import UsageError
from qwchat.evaluation.likelihood import LikelihoodScorer
from qwchat.events import Done
from qwchat.generation.cached_context import common_prefix
from qwchat.request import SamplingParams

_LEAST_SHARED = 16  # Fewer equal tokens at the beginning of two prompts are not worth remembering.
_SAMPLING = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_NO_EFFECT = ("do_sample", "until", "max_gen_toks")

LikelihoodRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts of context and continuation for the harness's cache, or None; their token ids."""


@register_model("qwchat")
class QwchatLM(TemplateLM):
    """A converted model.

    Log-likelihoods of prompts that begin with the same tokens evaluate these tokens once.

    Args:
        pretrained: folder of the model, or its name in the models folder.
        ctx: size of the context window; longer prompts lose their beginning, as with the harness's model `hf`.
        kv: format of the KV cache; `f32` is exact.
        threads: number of threads; None for one per physical core.
        device: `cpu`, or `cuda:N` for the GPU number N. None uses a GPU if the model fits there, and so does `cuda:0`,
            which is the harness's default.
        max_gen_toks: tokens that a task without a limit of its own generates.
        batch_size: ignored, since prompts are evaluated one by one.
        max_batch_size: ignored.
    """

    def __init__(
        self,
        pretrained: str,
        ctx: int = 4096,
        kv: str = "f32",
        threads: int | None = None,
        device: str | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        chosen = "auto" if device in (None, "cuda:0") else device
        self.model = qwchat.load(pretrained, context=ctx, kv=kv, threads=threads, device=chosen)
        self.max_gen_toks = max_gen_toks
        self._shared: list[int] = []
        self._scorer = LikelihoodScorer(self.model)

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text; a text without a context is scored after it."""
        return self.model.config.eos_token_ids[0]

    @property
    def max_length(self) -> int:
        """Size of the context window in tokens."""
        return self.model.context

    @property
    def tokenizer_name(self) -> str:
        """Name for the harness's cache of requests: two models share it only if they encode texts in the same way."""
        return f"qwchat-{self.model.folder.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the source of the chat template, which the harness stores with the results."""
        return self.model.template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation. Without `add_generation_prompt` its last message is the beginning of the reply."""
        messages: list[Any] = chat_history if add_generation_prompt else chat_history[:-1]
        return self.model.template.render(messages) + ("" if add_generation_prompt else chat_history[-1]["content"])

    def get_model_info(self) -> dict[str, object]:
        """Return what the harness stores about the model."""
        folder = self.model.folder
        return {
            "model_fingerprint": folder.fingerprint,
            "model_preset": folder.preset,
            "model_bits_per_weight": round(folder.bits_per_weight, 4),
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Return the token ids of a text. Control tokens in it count as such: rendered templates contain them."""
        tokenizer, start = self.model.tokenizer, 0
        parts: list[str | Sequence[int]] = []
        for match in tokenizer.control_pattern.finditer(string):
            parts += [string[start : match.start()], (tokenizer.special_ids[match[0]],)]
            start = match.end()
        return tokenizer.encode_prompt([*parts, string[start:]])

    def tok_decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids."""
        return self.model.tokenizer.decode(tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[LikelihoodRequest], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation. Requests with the same context share a pass."""
        groups = [list(group) for _, group in groupby(requests, key=lambda request: request[1])]
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as progress:
            for number, group in enumerate(groups):
                following = groups[number + 1][0][1] if number + 1 < len(groups) else []
                for request, answer in zip(group, self._score(group, following), strict=True):
                    found.append(answer)
                    if request[0] is not None:
                        self.cache_hook.add_partial("loglikelihood", request[0], answer)
                progress.update(len(group))
        return found

    def _score(self, group: Sequence[LikelihoodRequest], following: list[int]) -> list[tuple[float, bool]]:
        """Score continuations of one context; `following` is the next context."""
        context = group[0][1]
        longest = max(len(continuation) for _, _, continuation in group)
        context = context[max(0, len(context) + longest - self.max_length - 1) :]
        if not context:
            raise UsageError(f"a continuation has {longest:,} tokens and the context holds {self.max_length:,}")
        common = _common(context, following)
        if _common(self._shared, context) < len(self._shared) or common > max(_LEAST_SHARED, 2 * len(self._shared)):
            self._shared = context[:common]
            self._scorer = LikelihoodScorer(self.model, self._shared)
        scores = self._scorer.score(context, [continuation for _, _, continuation in group])
        return [(each.total, each.greedy) for each in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, in windows of the whole context as the harness defines them."""
        found = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs: list[LikelihoodRequest] = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(score for score, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True))
            found.append(float(total))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), float(total))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each prompt, up to a stop string."""
        found = []
        for context, given in tqdm([request.args for request in requests], disable=disable_tqdm):
            text = self._generate(context, given)
            found.append(text)
            self.cache_hook.add_partial("generate_until", (context, given), text)
        return found

    def _generate(self, context: str, given: dict[str, Any]) -> str:
        options: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        unknown = sorted(options.keys() - _SAMPLING.keys() - set(_NO_EFFECT))
        if unknown:
            raise UsageError(f"generation argument {unknown[0]} is not supported: remove it from the task")
        greedy = not options["do_sample"]
        sampling = {name: options[name] for name in _SAMPLING if name in options and not greedy}
        most = self.max_length - options["max_gen_toks"]
        if most < 1:
            raise UsageError(f"{options['max_gen_toks']:,} new tokens do not fit in a context of {self.max_length:,}")
        stop = [each for each in options["until"] if each]
        events = self.model.generate(
            self.tok_encode(context)[-most:],
            settings=SamplingParams(**sampling),
            max_tokens=options["max_gen_toks"],
            seed=0,
            stop=stop,
        )
        text = next(event.text for event in events if isinstance(event, Done))
        return str(postprocess_generated_text(text, stop, None))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    return common_prefix(np.array(first, np.int64), np.array(second, np.int64))


def main() -> None:
    """Run the command line of lm-evaluation-harness."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
