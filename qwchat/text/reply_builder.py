"""Turn the tokens of a reply into its text and its final event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwchat.events import Done, Finished, TextStep, TokenLogprob, TokenStep
from qwchat.reasoning import ReasoningStart
from qwchat.request import Request
from qwchat.text.detokenizer import StreamDecoder
from qwchat.text.reply_text import ReplyText
from qwchat.text.thought_budget import ThoughtBudget
from qwchat.text.tokenizer import Tokenizer


class ReplyBuilder:
    """Builder of a reply.

    It holds back bytes of an incomplete character, text that may begin a tag, and text that may begin a stop string.

    Args:
        tokenizer: decodes the tokens.
        request: how the reply is generated.
        continued_ids: tokens of the reply so far.
        reasoning: how the reply begins.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: Request,
        continued_ids: Sequence[int],
        reasoning: ReasoningStart = "none",
    ) -> None:
        self._decoder, self._seed = StreamDecoder(tokenizer), request.seed
        self._text = ReplyText(reasoning, request.stop)
        self._tokenizer, self._constraint = tokenizer, request.constraint
        self._budget = ThoughtBudget(tokenizer, request.think_budget, constrained=request.constraint is not None)
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._reasoning_tokens = 0
        for token_id in continued_ids:  # restores the text that was held back
            self.step(TokenStep(token_id))

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the reply."""
        return self._text.stopped

    def forced_tokens(self) -> Sequence[int]:
        """Return the tokens that come next because they close the thought; empty if the next token is free."""
        return self._budget.forced

    def step(self, step: TokenStep) -> list[TextStep]:
        """Add a token and return the text that is final: one step, or two if the token ends the thought within it."""
        self._ids.append(step.token_id)
        splitter = self._text.splitter
        was_thinking = splitter.thinking
        was_open = splitter.undecided or was_thinking
        thought, answer = self._text.push(self._decoder.push(step.token_id))
        in_thought = was_open and splitter.has_thought
        if in_thought:
            self._reasoning_tokens = len(self._ids)
        self._budget.add(
            step.token_id,
            was_thinking=was_thinking,
            thinking=splitter.thinking,
            starts_line=self._text.starts_line,
        )
        logprob = self._token_logprob(step)
        if in_thought and not answer:
            return [TextStep(thought, step.token_id, logprob, reasoning=True)]
        before = [TextStep(thought, None, reasoning=True)] if thought else []
        return [*before, TextStep(answer, step.token_id, logprob)]

    def flush(self) -> TextStep | None:
        """Return the text that is held back, at the end of the reply, or None."""
        if self.stopped:
            return None
        thought, answer = self._text.push(self._decoder.flush(), ends=True)
        if thought:  # Then the thought was never closed.
            return TextStep(thought, None, reasoning=True)
        return TextStep(answer, None) if answer else None

    def done(self, end: Finished) -> Done:
        """Return the final event of the reply."""
        reason = "stop" if self.stopped else end.reason
        text = self._text.answer
        meets = None if self._constraint is None else self._constraint.fits(text)
        stats = replace(end.stats, reasoning_tokens=self._reasoning_tokens)
        return Done(
            reason,
            stats,
            text,
            tuple(self._ids),
            self._seed,
            meets,
            tuple(self._logprobs),
            self._text.thought,
            self._text.raw,
            self._budget.closed,
        )

    def _token_logprob(self, step: TokenStep) -> TokenLogprob | None:
        if step.logprob is None:
            return None
        top = tuple(self._logprob(*likely) for likely in step.likeliest)
        self._logprobs.append(self._logprob(step.token_id, step.logprob, top))
        return self._logprobs[-1]

    def _logprob(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.decode([token_id]), logprob, top)
