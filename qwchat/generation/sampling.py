"""From logits to the next token.

The steps and their order are those of transformers' logits processors: repetition penalty, presence and frequency
penalties, temperature, top-k, top-p, min-p, then a softmax over the tokens that are left. Ties and rounding follow them
too: top-k keeps every token that equals the k-th, top-p keeps only as many of a tie as it needs, and comparisons are
made in float32.

The n-th draw of a sampler depends on its seed and on n only (Philox, Salmon et al. 2011), never on earlier draws or on
other generators in the process. A reply can therefore be repeated and continued.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quant.wording import Argument, ArgumentMessage
from qwchat.errors import ConstraintError, NonFiniteLogitsError, UsageError
from qwchat.limits import MAX_SEED
from qwchat.model.logit_rows import LargestLogits, LogitRow
from qwchat.request import SamplingParams

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.int64]
TokenIds = Sequence[int] | npt.NDArray[np.integer]

_PENALTY_LIMIT = 1e6  # a larger penalty chooses the same tokens, but overflows f32
_BLOCK = 512  # probabilities per partial sum, when the token of a random number is searched
_GROUP = 64  # scores per group, of which only the maximum is compared at first


class Sampler:
    """Chooses tokens with fixed settings and one seed.

    Args:
        settings: how to choose.
        seed: 0 to 2**64 - 1.
        usable_vocab: number of logits that belong to a token; the padding after them is never chosen.
        first_draw: number of draws made before, to continue a reply.

    Raises:
        UsageError: the seed is out of range.
    """

    def __init__(self, settings: SamplingParams, seed: int, usable_vocab: int, first_draw: int = 0) -> None:
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(
                ArgumentMessage(Argument("seed"), f" must be a whole number from 0 to {MAX_SEED}, not {seed}")
            )
        assert usable_vocab > 0
        assert first_draw >= 0
        self.settings = settings
        self.seed = seed
        self.usable_vocab = usable_vocab
        self.draws_made = first_draw
        self._occurred: tuple[object, npt.NDArray[np.bool_], int] = None, np.zeros(0, np.bool_), 0

    def sample(
        self,
        logits: Float32Array,
        prompt_ids: TokenIds,
        generated_ids: TokenIds,
        allowed: npt.NDArray[np.uint8] | None = None,
    ) -> int:
        """Draw the next token id.

        Args:
            logits: (vocab,) f32, left unchanged.
            prompt_ids: ids of the prompt; a NumPy array saves a conversion per token.
            generated_ids: ids of the reply so far.
            allowed: packed bits of the ids that may be chosen, lowest id first; None allows all.

        Raises:
            NonFiniteLogitsError: a logit is NaN or infinite.
            ConstraintError: no id is allowed.
        """
        return self._draw(*self.distribution(logits, prompt_ids, generated_ids, allowed))

    def sample_row(
        self,
        row: LogitRow,
        prompt_ids: TokenIds,
        generated_ids: TokenIds,
        allowed: npt.NDArray[np.uint8] | None = None,
    ) -> int:
        """Draw the next token id as `sample` does, from the largest logits alone if they decide.

        Arguments and errors are as for `sample`.
        """
        largest = None if allowed is not None else row.largest()
        narrowed = None if largest is None else self._narrowed(largest, prompt_ids, generated_ids)
        if narrowed is None:
            return self.sample(row.values(), prompt_ids, generated_ids, allowed)
        return self._draw(*narrowed)

    def _draw(self, ids: IdArray, probabilities: Float64Array) -> int:
        """Draw one of `ids`."""
        self.draws_made += 1
        if len(ids) == 1:  # Greedy: drawing a number would take half of the time.
            return int(ids[0])
        number = uniform(self.seed, self.draws_made - 1)
        return int(ids[_inverse_cdf(probabilities, number)])

    def skip(self) -> None:
        """Leave out one draw, for a token that was not sampled, so that each token keeps its own draw."""
        self.draws_made += 1

    def distribution(
        self,
        logits: Float32Array,
        prompt_ids: TokenIds,
        generated_ids: TokenIds,
        allowed: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[IdArray, Float64Array]:
        """Return the distribution that `sample` draws from.

        Arguments and errors are as for `sample`.

        Returns:
            The ids that are left, ascending, (n,) i64, and their probabilities, (n,) f64. Greedy settings give one id
            with probability 1, the lowest of a tie.
        """
        settings = self.settings
        scores = np.asarray(logits, dtype=np.float32)[: self.usable_vocab]
        if not np.isfinite(scores).all():
            raise NonFiniteLogitsError(
                "the model produced NaN or infinite logits: check its files with qwchat verify MODEL; "
                "if they are intact, the checkpoint itself is broken"
            )
        scores = self._penalised(scores, prompt_ids, generated_ids)
        ids: IdArray | None = None  # None stands for all ids, in order
        if allowed is not None:
            ids = self._allowed_ids(allowed)
            scores = scores[ids]
        if settings.temperature == 0.0:
            best = np.argmax(scores)
            return np.array([best if ids is None else ids[best]], dtype=np.int64), np.ones(1)
        if 0 < settings.top_k < len(scores):
            scores, ids = _select(_top_k(scores, settings.top_k), scores, ids)
        return self._probabilities(scores, ids)

    def _probabilities(self, scores: Float32Array, ids: IdArray | None) -> tuple[IdArray, Float64Array]:
        """Return the distribution over the tokens that top-k left; `ids` of None stands for all ids."""
        settings = self.settings
        scores = _scaled(scores, settings.temperature)
        if settings.top_p < 1.0:
            scores, ids = _select(_top_p(scores, settings.top_p), scores, ids)
        if settings.min_p > 0.0:
            scores, ids = _select(_min_p(scores, settings.min_p), scores, ids)
        weights = (scores - scores.max()).astype(np.float64)
        np.exp(weights, out=weights)
        weights /= weights.sum()
        return np.arange(len(scores)) if ids is None else ids, weights

    def _narrowed(
        self, largest: LargestLogits, prompt_ids: TokenIds, generated_ids: TokenIds
    ) -> tuple[IdArray, Float64Array] | None:
        """Return the distribution that the largest logits alone determine, or None if others may count.

        No other token scores more than the last of them does before penalties, which only lower scores here.
        """
        settings = self.settings
        raises = settings.repeat_penalty < 1.0 or settings.presence_penalty != 0.0 or settings.frequency_penalty != 0.0
        if raises or (settings.temperature != 0.0 and settings.top_k <= 0):
            return None
        floor = largest.values[-1]
        ascending = np.argsort(largest.ids)
        ids, scores = largest.ids[ascending], largest.values[ascending]
        usable = (ids >= 0) & (ids < self.usable_vocab)
        ids, scores = ids[usable], scores[usable]
        if settings.repeat_penalty != 1.0:
            seen = self._seen(prompt_ids, generated_ids)[ids]
            penalty = min(settings.repeat_penalty, _PENALTY_LIMIT)
            scores = np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)
        wanted = 1 if settings.temperature == 0.0 else settings.top_k
        if len(scores) < wanted or not np.sort(scores)[-wanted] > floor:
            return None
        if settings.temperature == 0.0:
            return ids[[np.argmax(scores)]], np.ones(1)
        scores, ids = _select(_top_k(scores, wanted), scores, ids)
        return self._probabilities(scores, ids)

    def _seen(self, prompt_ids: TokenIds, generated_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Return which ids occurred, (usable_vocab,), from the ids of the last call and those that are new."""
        prompt, seen, counted = self._occurred
        if prompt is not prompt_ids or counted > len(generated_ids):
            seen, counted = np.zeros(self.usable_vocab, np.bool_), 0
            seen[self._usable(prompt_ids)] = True
        seen[self._usable(generated_ids[counted:])] = True
        self._occurred = prompt_ids, seen, len(generated_ids)
        return seen

    def _allowed_ids(self, bits: npt.NDArray[np.uint8]) -> IdArray:
        """Return the ids whose bits are set, ascending. Raises ConstraintError without any."""
        ids = np.flatnonzero(np.unpackbits(bits, count=self.usable_vocab, bitorder="little").view(bool))
        if len(ids) == 0:
            raise ConstraintError("the constraint allows no token here: simplify it")
        return ids

    def _penalised(self, scores: Float32Array, prompt_ids: TokenIds, generated_ids: TokenIds) -> Float32Array:
        """Return the scores (usable_vocab,) f32 after the three penalties: a copy if one of them changes a score."""
        settings = self.settings
        penalised = scores
        if settings.repeat_penalty != 1.0:
            penalised = scores.copy()
            penalty = min(max(settings.repeat_penalty, 1 / _PENALTY_LIMIT), _PENALTY_LIMIT)
            for ids in (self._usable(prompt_ids), self._usable(generated_ids)):
                # Read from the original, so that an id that occurs twice is penalised once.
                old = scores[ids]
                penalised[ids] = np.where(old < 0, old * penalty, old / penalty)
        if settings.presence_penalty != 0.0 or settings.frequency_penalty != 0.0:
            ids, counts = np.unique(self._usable(generated_ids), return_counts=True)
            penalised = scores.copy() if penalised is scores else penalised
            taken = settings.presence_penalty + settings.frequency_penalty * counts
            penalised[ids] = penalised[ids] - taken.astype(np.float32)
        return penalised

    def _usable(self, token_ids: TokenIds) -> IdArray:
        """Return those of the ids that have a logit."""
        ids = np.asarray(token_ids, dtype=np.int64)
        return ids[(ids >= 0) & (ids < self.usable_vocab)]


def log_probabilities(logits: Float32Array, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the natural log of the probability of a token, and the likeliest tokens with theirs.

    They refer to the model's own distribution: softmax over the logits, before penalties, temperature, top-k, top-p,
    min-p and any constraint.

    Args:
        logits: (vocab,) f32.
        token: the id.
        top: number of likeliest tokens to return.

    Returns:
        The log of `token`'s probability, and (id, log of its probability) of the likeliest tokens, best first. Of
        equally likely ids the lower comes first.
    """
    scores = np.asarray(logits, np.float32)
    largest = scores.max()
    total = float(np.log(np.exp(scores - largest).sum(dtype=np.float64))) + float(largest)
    best = np.argpartition(-scores, min(top, len(scores)) - 1)[:top] if top else np.empty(0, np.int64)
    # argpartition may choose any of those that equal the last one.
    best = np.flatnonzero(scores >= scores[best].min()) if top else best
    ordered = sorted((-float(scores[number]), int(number)) for number in best)[:top]
    return float(scores[token]) - total, [(number, -score - total) for score, number in ordered]


def uniform(seed: int, draw: int) -> float:
    """Return number `draw` of the stream of `seed`, uniform over [0, 1) in steps of 2**-53.

    It is made from raw Philox words, whose values NumPy guarantees, and not from a distribution, whose method may
    change.
    """
    return (int(np.random.Philox(key=seed, counter=draw).random_raw()) >> 11) * 2.0**-53


def _inverse_cdf(probabilities: Float64Array, number: float) -> int:
    """Return the index at which the cumulative sum of `probabilities` exceeds `number`, which is in [0, 1)."""
    start, before, part = 0, 0.0, probabilities
    if len(probabilities) > _BLOCK:
        # Find the block first: NumPy sums ten times as fast as it accumulates.
        blocks = np.cumsum(np.add.reduceat(probabilities, np.arange(0, len(probabilities), _BLOCK)))
        block = min(int(np.searchsorted(blocks, number * blocks[-1], side="right")), len(blocks) - 1)
        start, before = block * _BLOCK, float(blocks[block - 1]) if block else 0.0
        part = probabilities[start : start + _BLOCK]
    cumulative = np.cumsum(part)
    # Scaled by the last sum, which rounding may leave slightly off 1, so that the index is always in range.
    target = number * (cumulative[-1] if part is probabilities else blocks[-1]) - before
    index = int(np.searchsorted(cumulative, target, side="right"))
    return start + min(index, len(part) - 1)


def _select(kept: npt.NDArray[np.intp], scores: Float32Array, ids: IdArray | None) -> tuple[Float32Array, IdArray]:
    """Return the scores and ids at the ascending positions `kept`; ids of None stand for all ids."""
    return scores[kept], kept if ids is None else ids[kept]


def _scaled(scores: Float32Array, temperature: float) -> Float32Array:
    """Return scores / temperature.

    Where that overflows float32, the largest score is subtracted first, which leaves the softmax unchanged.
    """
    largest = max(float(scores.max()), -float(scores.min()))
    if temperature > 1e-30 and largest / temperature < float(np.finfo(np.float32).max):
        divided: Float32Array = scores / np.float32(temperature)
        return divided
    with np.errstate(over="ignore"):
        return ((scores.astype(np.float64) - float(scores.max())) / temperature).astype(np.float32)


def _top_k(scores: Float32Array, top_k: int) -> npt.NDArray[np.intp]:
    """Return the positions of the scores that are not below the k-th largest.

    The largest of each group of scores is found first. The k-th largest of those cannot exceed the k-th largest of all,
    and few scores reach it, so that most of a large vocabulary is never partitioned.
    """
    groups = len(scores) // _GROUP
    candidates = None
    if top_k <= groups // 4:
        # A group is every `groups`-th score, so that NumPy takes the maximum of whole vectors.
        largest = np.maximum.reduce(scores[: groups * _GROUP].reshape(_GROUP, groups), axis=0)
        candidates = np.flatnonzero(scores >= np.partition(largest, groups - top_k)[groups - top_k])
        scores = scores[candidates]
    smallest = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    kept = np.flatnonzero(scores >= smallest)
    return kept if candidates is None else candidates[kept]


def _top_p(scores: Float32Array, top_p: float) -> npt.NDArray[np.intp]:
    """Return the positions of the smallest set of likeliest tokens whose probability exceeds `top_p`.

    A token is removed if its own probability and all smaller ones sum to at most 1 - top_p. That sum is at most n times
    its probability, so tokens below (1 - top_p) / n are removed without sorting; half of that bound allows for
    rounding. Of tied tokens the lowest ids stay, as with greedy decoding; in transformers that depends on its sort.
    """
    top = scores.max()
    weights: Float32Array = np.exp(scores - top)
    total = np.float32(weights.sum(dtype=np.float64))
    candidates = np.flatnonzero(weights > 0.5 * (1.0 - top_p) / len(scores) * total)
    chosen = scores[candidates]
    dropped_mass = 1.0 - float(weights[candidates].sum(dtype=np.float64) / total) if len(chosen) < len(scores) else 0.0
    ascending = np.sort(chosen)
    cumulative = np.cumsum(np.exp(ascending - top) / total, dtype=np.float64) + dropped_mass
    removed = int(np.count_nonzero(cumulative.astype(np.float32) <= np.float32(1.0 - top_p)))
    removed = min(removed, len(chosen) - 1)
    kept = chosen >= ascending[removed]
    tied_removed = removed - int(np.searchsorted(ascending, ascending[removed], side="left"))
    if tied_removed:
        kept[np.flatnonzero(chosen == ascending[removed])[-tied_removed:]] = False
    positions: npt.NDArray[np.intp] = candidates[kept]
    return positions


def _min_p(scores: Float32Array, min_p: float) -> npt.NDArray[np.intp]:
    """Return the positions of the tokens that are at least `min_p` times as likely as the likeliest."""
    weights: Float32Array = np.exp(scores - scores.max())
    return np.flatnonzero(weights >= np.float32(min_p))
