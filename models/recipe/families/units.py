"""Conversions within closed tables, with small integers."""

from __future__ import annotations

import random

from ..phrasing import vary
from ..turns import Turn

# larger unit (one, many), smaller unit (one, many), factor, largest count
TABLE = (
    (("kilometre", "kilometres"), ("metre", "metres"), 1000, 30),
    (("metre", "metres"), ("centimetre", "centimetres"), 100, 30),
    (("metre", "metres"), ("millimetre", "millimetres"), 1000, 30),
    (("centimetre", "centimetres"), ("millimetre", "millimetres"), 10, 30),
    (("kilogram", "kilograms"), ("gram", "grams"), 1000, 30),
    (("tonne", "tonnes"), ("kilogram", "kilograms"), 1000, 30),
    (("litre", "litres"), ("millilitre", "millilitres"), 1000, 30),
    (("hour", "hours"), ("minute", "minutes"), 60, 12),
    (("minute", "minutes"), ("second", "seconds"), 60, 12),
    (("day", "days"), ("hour", "hours"), 24, 10),
    (("week", "weeks"), ("day", "days"), 7, 12),
    (("year", "years"), ("month", "months"), 12, 12),
    (("century", "centuries"), ("year", "years"), 100, 10),
    (("byte", "bytes"), ("bit", "bits"), 8, 12),
    (("KiB", "KiB"), ("byte", "bytes"), 1024, 8),
    (("MiB", "MiB"), ("KiB", "KiB"), 1024, 8),
    (("GiB", "GiB"), ("MiB", "MiB"), 1024, 8),
    (("foot", "feet"), ("inch", "inches"), 12, 12),
    (("yard", "yards"), ("foot", "feet"), 3, 12),
)
SPELLINGS = {
    "kilometre": ("kilometer", "km"),
    "metre": ("meter", "m"),
    "centimetre": ("centimeter", "cm"),
    "millimetre": ("millimeter", "mm"),
    "kilogram": ("kilo", "kg"),
    "gram": ("gram", "g"),
    "tonne": ("tonne", "t"),
    "litre": ("liter", "l"),
    "millilitre": ("milliliter", "ml"),
    "minute": ("minute", "min"),
    "hour": ("hour", "h"),
}


def counted(count: int, unit: tuple[str, str]) -> str:
    """Return a count with its unit, as in "1 metre" or "5 metres"."""
    return f"{count} {unit[0] if count == 1 else unit[1]}"


def typed(rng: random.Random, unit: tuple[str, str], count: int) -> str:
    """Return a unit as people type it: British, American or as a symbol."""
    one = count == 1
    if unit[0] not in SPELLINGS or rng.random() < 0.5:
        return unit[0] if one else unit[1]
    name, symbol = SPELLINGS[unit[0]]
    if rng.random() < 0.5:
        return symbol
    return name if one else name + "s"


def down(rng: random.Random) -> Turn:
    """Ask for a conversion to the smaller unit."""
    large, small, factor, most = rng.choice(TABLE)
    count = rng.randint(1, most)
    shape = rng.choice(
        (
            "How many {small} are [in|there in] {n} {large}?",
            "Convert {n} {large} to {small}.",
            "{n} {large} in {small}",
            "What is {n} {large} in {small}?",
            "How many {small} is {n} {large}?",
            "{n} {large} to {small}",
            "How many {small} do {n} {large} have?",
        )
    )
    ask = vary(rng, shape, {"n": count, "large": typed(rng, large, count), "small": typed(rng, small, 2)})
    rule = f"1 {large[0]} is {factor} {small[1]}"
    return Turn(
        ask, f"{rule}." if count == 1 else f"{rule}, so {counted(count, large)} are {counted(count * factor, small)}."
    )


def up(rng: random.Random) -> Turn:
    """Ask for a conversion to the larger unit."""
    large, small, factor, most = rng.choice(TABLE)
    count = rng.randint(1, most)
    shape = rng.choice(
        (
            "How many {large} are {n} {small}?",
            "Convert {n} {small} to {large}.",
            "{n} {small} in {large}",
            "What is {n} {small} in {large}?",
            "{n} {small} to {large}",
        )
    )
    ask = vary(rng, shape, {"n": count * factor, "large": typed(rng, large, 2), "small": typed(rng, small, 2)})
    return Turn(
        ask, f"1 {large[0]} is {factor} {small[1]}, so {count * factor} {small[1]} are {counted(count, large)}."
    )


def temperature(rng: random.Random) -> Turn:
    """Ask for a conversion between Celsius and Fahrenheit, in steps of ten degrees."""
    celsius = 10 * rng.randint(0, 10)
    fahrenheit = celsius * 9 // 5 + 32
    if rng.random() < 0.6:
        shape = (
            "[What is {n} °C in Fahrenheit?|Convert {n} degrees Celsius to Fahrenheit.|{n} Celsius in Fahrenheit|"
            "{n} degrees Celsius in Fahrenheit]"
        )
        return Turn(vary(rng, shape, {"n": celsius}), f"{celsius} °C are {fahrenheit} °F.")
    shape = "[What is {n} °F in Celsius?|Convert {n} degrees Fahrenheit to Celsius.|{n} Fahrenheit in Celsius]"
    return Turn(vary(rng, shape, {"n": fahrenheit}), f"{fahrenheit} °F are {celsius} °C.")


def draw(rng: random.Random) -> Turn:
    """Draw one conversion."""
    return rng.choices((down, up, temperature), (6, 3, 0.6))[0](rng)
