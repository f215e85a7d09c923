"""Small sums. Sums of two digits show their steps, since each step is a fact that a small model can learn."""

from __future__ import annotations

import random
from collections.abc import Callable

from ..phrasing import vary
from ..turns import Turn

TOO_BIG = "That is too big for me. I add and subtract numbers below 100, and I know the times tables up to 12."
LEAD = "[What is |What's |Calculate |How much is |Compute |Work out |]"


def added(a: int, b: int) -> str:
    """Return a + b by units and tens, as on paper."""
    units, tens = (a % 10, b % 10), (a - a % 10, b - b % 10)
    steps = [f"{x} + {y} = {x + y}" for x, y in ((units, tens) if all(tens) else (units,))]
    return worked(steps, f"{a} + {b} = {a + b}", max(a, b) > 9)


def taken(a: int, b: int) -> str:
    """Return a - b by units and tens, with a ten borrowed if the units need it; reversed if it is below zero."""
    high, low = max(a, b), min(a, b)
    borrowed = 10 if high % 10 < low % 10 else 0
    units, tens = (high % 10 + borrowed, low % 10), (high - high % 10 - borrowed, low - low % 10)
    steps = [f"{x} - {y} = {x - y}" for x, y in ((units, tens) if tens[1] else (units,))]
    return worked(steps, f"{a} - {b} = {a - b}", high > 9 or a < b)


def worked(steps: list[str], result: str, long: bool) -> str:
    """Return the result, preceded by the steps if it takes any."""
    return f"{' and '.join(steps)}, so {result}." if long else f"{result}."


def number(rng: random.Random) -> int:
    """Draw a number below 100; single digits are more frequent than in a uniform draw."""
    return rng.randint(0, 9) if rng.random() < 0.35 else rng.randint(10, 99)


def addition(rng: random.Random) -> Turn:
    """Ask for a + b, each below 100."""
    a, b = number(rng), number(rng)
    shape = rng.choice(
        (
            LEAD + "{a} + {b}?",
            LEAD + "{a}+{b}?",
            LEAD + "{a} plus {b}?",
            "Add {a} and {b}.",
            "{a} + {b} =",
            "What is the sum of {a} and {b}?",
            "Add {b} to {a}.",
        )
    )
    return Turn(vary(rng, shape, {"a": a, "b": b}), added(a, b))


def subtraction(rng: random.Random) -> Turn:
    """Ask for a - b, each below 100, sometimes below zero."""
    a, b = number(rng), number(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    shape = rng.choice(
        (
            LEAD + "{a} - {b}?",
            LEAD + "{a}-{b}?",
            LEAD + "{a} minus {b}?",
            "Subtract {b} from {a}.",
            "{a} - {b} =",
            "Take {b} away from {a}.",
            "What is the difference of {a} and {b}?",
        )
    )
    return Turn(vary(rng, shape, {"a": a, "b": b}), taken(a, b))


def product(rng: random.Random) -> Turn:
    """Ask for a product of the times tables."""
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    shape = rng.choice(
        (
            LEAD + "{a} [x|*|×|times] {b}?",
            LEAD + "{a}[x|*]{b}?",
            "Multiply {a} by {b}.",
            "{a} * {b} =",
            "What is the product of {a} and {b}?",
            "Multiply {a} and {b}.",
        )
    )
    return Turn(vary(rng, shape, {"a": a, "b": b}), f"{a} × {b} = {a * b}.")


def division(rng: random.Random) -> Turn:
    """Ask for a quotient of the times tables."""
    b, result = rng.randint(1, 12), rng.randint(1, 12)
    a = b * result
    shape = rng.choice(
        (LEAD + "{a} [/|÷|divided by|over|:] {b}?", LEAD + "{a}/{b}?", "Divide {a} by {b}.", "{a} / {b} =")
    )
    return Turn(vary(rng, shape, {"a": a, "b": b}), f"{b} × {result} = {a}, so {a} / {b} = {result}.")


def double_or_half(rng: random.Random) -> Turn:
    """Ask for the double of a number up to 50, or for a half."""
    n = rng.randint(1, 50)
    if rng.random() < 0.5:
        return Turn(
            vary(rng, "[What is double {n}?|Double {n}.|What is twice {n}?|What is the double of {n}?]", {"n": n}),
            f"Double {n} is {2 * n}.",
        )
    return Turn(
        vary(rng, "[What is half of {n}?|Halve {n}.|What is the half of {n}?|Half of {n}?]", {"n": 2 * n}),
        f"Half of {2 * n} is {n}.",
    )


def compare(rng: random.Random) -> Turn:
    """Ask which of two numbers is larger or smaller; their first digits decide."""
    first_digits = rng.sample(range(1, 10), 2)
    a, b = (10 * digit + rng.randint(0, 9) for digit in first_digits) if rng.random() < 0.8 else first_digits
    word = rng.choice(("larger", "bigger", "greater", "smaller", "less"))
    smaller = word in ("smaller", "less")
    first, second = (min(a, b), max(a, b)) if smaller else (max(a, b), min(a, b))
    shape = "[Which is|What is|Which number is] {word}, {a} or {b}?"
    return Turn(
        vary(rng, shape, {"a": a, "b": b, "word": word}),
        f"{first} is {'smaller' if smaller else 'larger'} than {second}.",
    )


def parity(rng: random.Random) -> Turn:
    """Ask if a number is even or odd."""
    n = rng.randint(0, 100)
    return Turn(
        vary(rng, "Is {n} [even or odd|odd or even|even|odd|an even number|an odd number]?", {"n": n}),
        f"{n} is {'odd' if n % 2 else 'even'}.",
    )


def neighbour(rng: random.Random) -> Turn:
    """Ask for the number before or after a number."""
    n = rng.randint(1, 99)
    if rng.random() < 0.5:
        return Turn(
            vary(rng, "[What|Which number] comes [after|next after] {n}?", {"n": n}), f"{n + 1} comes after {n}."
        )
    return Turn(
        vary(rng, "[What|Which number] comes [before|right before] {n}?", {"n": n}), f"{n - 1} comes before {n}."
    )


def three(rng: random.Random) -> Turn:
    """Ask for a sum of three digits."""
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    answer = f"{a} + {b} = {a + b} and {a + b} + {c} = {a + b + c}, so {a} + {b} + {c} = {a + b + c}."
    return Turn(vary(rng, LEAD + "{a} [+ {b} + |plus {b} plus ]{c}?", {"a": a, "b": b, "c": c}), answer)


def square(rng: random.Random) -> Turn:
    """Ask for a square up to 12."""
    n = rng.randint(1, 12)
    return Turn(
        vary(rng, "[What is {n} squared?|What is the square of {n}?|Square {n}.|{n} squared]", {"n": n}),
        f"{n} squared is {n * n}.",
    )


def counting(rng: random.Random) -> Turn:
    """Ask to count up from one or down to one."""
    n = rng.choice((5, 10, 12))
    up = ", ".join(str(i) for i in range(1, n + 1)) + "."
    down = ", ".join(str(i) for i in range(n, 0, -1)) + "."
    if rng.random() < 0.6:
        return Turn(
            vary(rng, "[Count from 1 to {n}.|Can you count to {n}?|Count to {n}.|Count 1 to {n}.]", {"n": n}), up
        )
    return Turn(vary(rng, "[Count from {n} to 1.|Count down from {n}.|Count backwards from {n}.]", {"n": n}), down)


def beyond(rng: random.Random) -> Turn:
    """Ask for a sum of numbers too large for this model; the answer says so."""
    small = rng.randint(1, 999)
    big = rng.randint(100, 9999)
    a, b = (small, big) if rng.random() < 0.5 else (big, small)
    sign = rng.choice(("+", "-", "*", "x", "times", "plus", "minus", "/", "divided by"))
    if sign in ("*", "x", "times") and rng.random() < 0.6:
        a, b = rng.randint(13, 99), rng.randint(2, 99)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
    elif sign in ("/", "divided by"):
        a, b = rng.randint(200, 9999), rng.randint(2, 99)
    return Turn(vary(rng, LEAD + "{a} {sign} {b}?", {"a": a, "b": b, "sign": sign}), TOO_BIG)


PARTS: dict[Callable[[random.Random], Turn], float] = {
    addition: 5,
    subtraction: 5,
    product: 3,
    division: 2.5,
    double_or_half: 1.5,
    compare: 1.5,
    parity: 0.5,
    neighbour: 1,
    three: 1,
    square: 0.4,
    counting: 0.8,
    beyond: 1,
}


def draw(rng: random.Random) -> Turn:
    """Draw one sum."""
    return rng.choices(list(PARTS), list(PARTS.values()))[0](rng)
