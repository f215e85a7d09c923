"""Turn the tokens of a reply into its text and its final event."""

from __future__ import annotations

from collections.abc import Sequence

from qwchat.events import Done, Finished, TextStep, TokenLogprob, TokenStep
from qwchat.request import Request
from qwchat.text.detokenizer import StreamDecoder
from qwchat.text.stop_strings import StopStrings
from qwchat.text.tokenizer import Tokenizer


class ReplyBuilder:
    """Builder of a reply. It holds back bytes of an incomplete character and text that may begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, request: Request, continued_ids: Sequence[int]) -> None:
        self._decoder, self._stops, self._seed = StreamDecoder(tokenizer), StopStrings(request.stop), request.seed
        self._tokenizer, self._constraint = tokenizer, request.constraint
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._pieces: list[str] = []
        self.stopped = False
        for token_id in continued_ids:  # restores the text that was held back
            self.step(TokenStep(token_id))

    def step(self, step: TokenStep) -> TextStep:
        """Add a token and return the text that is final."""
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
        """Return the text that is held back, at the end of the reply, or None."""
        if self.stopped:
            return None
        text, self.stopped = self._stops.push(self._decoder.flush())
        text += "" if self.stopped else self._stops.flush()
        self._pieces.append(text)
        return TextStep(text, None) if text else None

    def done(self, end: Finished) -> Done:
        """Return the final event of the reply."""
        reason = "stop" if self.stopped else end.reason
        text = "".join(self._pieces)
        meets = None if self._constraint is None else self._constraint.fits(text)
        return Done(reason, end.stats, text, tuple(self._ids), self._seed, meets, tuple(self._logprobs))
