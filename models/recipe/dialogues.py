"""Draw whole conversations: the families of their turns, and their lengths.

There are two kinds. A *chat* consists of a few independent turns. A *memory* conversation tells some facts, continues
with other turns, and asks for the facts. Both are drawn from one random generator, so a seed determines every word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from .families import arithmetic, calendar, echo, facts, program, scope, units, words
from .families.memory import Memory, topics
from .turns import Dialogue, Family, Turn

FAMILIES: dict[str, Family] = {
    "help": program.draw,
    **facts.FAMILIES,
    "scope": scope.draw,
    "arithmetic": arithmetic.draw,
    "units": units.draw,
    "calendar": calendar.draw,
    "words": words.draw,
    "echo": echo.draw,
}
MEMORY = "memory"
SYSTEMS = (
    "You are mini.",
    "You are a friendly assistant.",
    "You are mini, the small model of qwchat.",
    "Answer briefly.",
    "Be kind.",
    "You are an assistant.",
    "Answer in one sentence.",
    "You help people with qwchat.",
    "Be polite and short.",
    "",
    "You are a helpful and honest assistant.",
    "Answer the question.",
    "You are Qwen.",
    "You are a teacher.",
)
FRAME = 10  # tokens that ChatML adds to the two messages of a turn
LENGTHS = (1, 2, 3, 4, 6)  # turns of a chat
Measure = Callable[[str], int]


def system(rng: random.Random) -> str | None:
    """Draw a system message: mostly None, for that of the template."""
    return None if rng.random() < 0.8 else rng.choice(SYSTEMS)


def single(rng: random.Random, mixture: Mapping[str, float]) -> Turn:
    """Draw one turn of any family except memory."""
    names = [name for name in mixture if name != MEMORY]
    return FAMILIES[rng.choices(names, [mixture[name] for name in names])[0]](rng)


def chat(rng: random.Random, mixture: Mapping[str, float], turns: Sequence[float]) -> Dialogue:
    """Draw a few independent turns; `turns` are the weights of the lengths."""
    count = rng.choices(LENGTHS, turns)[0]
    return Dialogue(system(rng), tuple(single(rng, mixture) for _ in range(count)))


def remember(rng: random.Random, mixture: Mapping[str, float], budget: int, measure: Measure) -> Dialogue:
    """Draw a conversation that tells facts, continues for about `budget` tokens, and ends by asking for the facts."""
    memory = Memory(rng)
    chosen = rng.sample(topics(), rng.choices((1, 2, 3), (50, 35, 15))[0])
    told = list(chosen) if rng.random() < 0.9 else chosen[1:]
    turns = [memory.tell(name) for name in told]
    spent = sum(cost(turn, measure) for turn in turns)
    while spent < budget:
        turn = distraction(rng, memory, told, mixture)
        spent += cost(turn, measure)
        if spent > budget:
            break
        turns.append(turn)
    turns.extend(memory.ask(name) for name in rng.sample(chosen, len(chosen)))
    return Dialogue(system(rng), tuple(turns))


def distraction(rng: random.Random, memory: Memory, told: list[str], mixture: Mapping[str, float]) -> Turn:
    """Draw a turn between telling and asking: mostly of other families, rarely a new value or an early question."""
    luck = rng.random()
    if luck < 0.01 and told:
        return memory.tell(rng.choice(told))
    if luck < 0.16 and told:
        return memory.ask(rng.choice(told))
    if luck < 0.22:
        return memory.ask(rng.choice(topics()))
    return single(rng, mixture)


def cost(turn: Turn, measure: Measure) -> int:
    """Return the tokens of a turn."""
    return FRAME + measure(turn.ask) + measure(turn.answer)


def budget(rng: random.Random, longest: int) -> int:
    """Draw the number of tokens between telling and asking: mostly few, rarely up to the whole context."""
    if rng.random() < 0.25:
        return 0
    return int(60 * (longest / 60) ** (rng.random() ** 1.5))


def dialogue(
    rng: random.Random, mixture: Mapping[str, float], turns: Sequence[float], longest: int, measure: Measure
) -> Dialogue:
    """Draw one conversation of a mixture."""
    if rng.random() * sum(mixture.values()) < mixture.get(MEMORY, 0.0):
        return remember(rng, mixture, budget(rng, longest), measure)
    return chat(rng, mixture, turns)
