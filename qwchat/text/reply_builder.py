"""Turn the tokens of a reply into its text and its final event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwchat.events import Done, Finished, TextStep, TokenLogprob, TokenStep
from qwchat.reasoning import ReasoningSplitter, ReasoningStart, ReplyParts
from qwchat.request import Request
from qwchat.text.detokenizer import StreamDecoder
from qwchat.text.stop_strings import StopStrings
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
        self._decoder, self._stops, self._seed = StreamDecoder(tokenizer), StopStrings(request.stop), request.seed
        self._tokenizer, self._constraint = tokenizer, request.constraint
        self._splitter = ReasoningSplitter(reasoning)
        self._budget = ThoughtBudget(tokenizer, request.think_budget, constrained=request.constraint is not None)
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._raw: list[str] = []
        self._thought: list[str] = []
        self._answer: list[str] = []
        self._answer_length = self._reasoning_tokens = 0  # The answer with a stop string and what follows it.
        self.stopped = False
        for token_id in continued_ids:  # restores the text that was held back
            self.step(TokenStep(token_id))

    def forced_tokens(self) -> Sequence[int]:
        """Return the tokens that come next because they close the thought; empty if the next token is free."""
        return self._budget.forced

    def step(self, step: TokenStep) -> list[TextStep]:
        """Add a token and return the text that is final: one step, or two if the token ends the thought within it."""
        self._ids.append(step.token_id)
        was_thinking = self._splitter.thinking
        was_open = self._splitter.undecided or was_thinking
        thought, answer = self._add(self._decoder.push(step.token_id), ends=False)
        in_thought = was_open and self._splitter.has_thought
        if in_thought:
            self._reasoning_tokens = len(self._ids)
        self._budget.add(
            step.token_id,
            was_thinking=was_thinking,
            thinking=self._splitter.thinking,
            starts_line=self._raw[-1].endswith("\n"),
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
        thought, answer = self._add(self._decoder.flush(), ends=True)
        if thought:  # Then the thought was never closed.
            return TextStep(thought, None, reasoning=True)
        return TextStep(answer, None) if answer else None

    def done(self, end: Finished) -> Done:
        """Return the final event of the reply."""
        reason = "stop" if self.stopped else end.reason
        text, raw = "".join(self._answer), None
        if self._splitter.has_thought:
            whole = "".join(self._raw)
            raw = whole[: len(whole) - self._answer_length] + text
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
            "".join(self._thought),
            raw,
            self._budget.closed,
        )

    def _add(self, text: str, *, ends: bool) -> ReplyParts:
        """Add the next text of the reply, `ends`: its last. Return what is final."""
        self._raw.append(text)
        thought, answer = self._splitter.push(text)
        if ends:
            rest = self._splitter.flush()
            thought, answer = thought + rest.thought, answer + rest.answer
        self._answer_length += len(answer)
        answer, self.stopped = self._stops.push(answer)
        if ends and not self.stopped:
            answer += self._stops.flush()
        self._thought.append(thought)
        self._answer.append(answer)
        return ReplyParts(thought, answer)

    def _token_logprob(self, step: TokenStep) -> TokenLogprob | None:
        if step.logprob is None:
            return None
        top = tuple(self._logprob(*likely) for likely in step.likeliest)
        self._logprobs.append(self._logprob(step.token_id, step.logprob, top))
        return self._logprobs[-1]

    def _logprob(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.decode([token_id]), logprob, top)
