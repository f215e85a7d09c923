"""Days of the week, months and leap years."""

from __future__ import annotations

import calendar
import random

from ..phrasing import vary
from ..turns import Turn

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def next_day(rng: random.Random) -> Turn:
    """Ask for the day before or after a day."""
    i = rng.randrange(7)
    if rng.random() < 0.5:
        shape = "[What|Which] day [comes|is] after {day}?"
        return Turn(vary(rng, shape, {"day": DAYS[i]}), f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}.")
    shape = "[What|Which] day [comes|is] before {day}?"
    return Turn(vary(rng, shape, {"day": DAYS[i]}), f"{DAYS[(i - 1) % 7]} comes before {DAYS[i]}.")


def days_later(rng: random.Random) -> Turn:
    """Ask for the day some days before or after a day."""
    i, count = rng.randrange(7), rng.randint(2, 3)
    if rng.random() < 0.5:
        shape = "[What|Which] day is {n} days after {day}?"
        found = f"{count} days after {DAYS[i]} is {DAYS[(i + count) % 7]}."
    else:
        shape = "[What|Which] day is {n} days before {day}?"
        found = f"{count} days before {DAYS[i]} is {DAYS[(i - count) % 7]}."
    return Turn(vary(rng, shape, {"n": count, "day": DAYS[i]}), found)


def tomorrow(rng: random.Random) -> Turn:
    """Ask for tomorrow, given today."""
    i = rng.randrange(7)
    word, step, verb = rng.choice((("tomorrow", 1, "is"), ("yesterday", -1, "was")))
    shape = "If today is {day}, [what|which] day {verb} {word}?"
    ask = vary(rng, shape, {"day": DAYS[i], "word": word, "verb": verb})
    return Turn(ask, f"If today is {DAYS[i]}, {word} {verb} {DAYS[(i + step) % 7]}.")


def between(rng: random.Random) -> Turn:
    """Ask for the days from a weekday to the next occurrence of another."""
    i, j = rng.sample(range(7), 2)
    shape = "How many days [is it|are there|are it|] from {a} to {b}?"
    count = (j - i) % 7
    return Turn(
        vary(rng, shape, {"a": DAYS[i], "b": DAYS[j]}), f"From {DAYS[i]} to {DAYS[j]} it is {plural(count, 'day')}."
    )


def month_length(rng: random.Random) -> Turn:
    """Ask for the days of a month."""
    i = rng.randrange(12)
    shape = "[How many days does {m} have?|How many days are in {m}?|How long is {m}?|How many days has {m}?]"
    length = "28 days, and 29 in a leap year" if i == 1 else f"{calendar.monthrange(2023, i + 1)[1]} days"
    return Turn(vary(rng, shape, {"m": MONTHS[i]}), f"{MONTHS[i]} has {length}.")


def month_number(rng: random.Random) -> Turn:
    """Ask for the number of a month, or the month of a number."""
    i = rng.randrange(12)
    if rng.random() < 0.5:
        shape = "[What number is {m}?|Which month of the year is {m}?|What is the number of {m}?]"
        return Turn(vary(rng, shape, {"m": MONTHS[i]}), f"{MONTHS[i]} is the {ORDINALS[i]} month of the year.")
    shape = "[What|Which] is the {nth} month [of the year|]?"
    name = rng.choice((ORDINALS[i], ORDINALS[i], f"{i + 1}{('th', 'st', 'nd', 'rd')[i + 1 if i < 3 else 0]}"))
    return Turn(vary(rng, shape, {"nth": name}), f"{MONTHS[i]} is the {ORDINALS[i]} month of the year.")


def next_month(rng: random.Random) -> Turn:
    """Ask for the month before or after a month."""
    i = rng.randrange(12)
    step, word = rng.choice(((1, "after"), (-1, "before")))
    shape = "[What|Which] month [comes|is] {word} {m}?"
    return Turn(
        vary(rng, shape, {"word": word, "m": MONTHS[i]}), f"{MONTHS[(i + step) % 12]} comes {word} {MONTHS[i]}."
    )


def leap_year(rng: random.Random) -> Turn:
    """Ask about leap years of our time, and about centuries, which are exceptions."""
    year = rng.choice((1800, 1900, 2000, 2100, 2200)) if rng.random() < 0.15 else rng.randint(1980, 2040)
    found = "a leap year" if calendar.isleap(year) else "not a leap year"
    shape = "[Is {y} a leap year?|Was {y} a leap year?|Is the year {y} a leap year?]"
    return Turn(vary(rng, shape, {"y": year}), f"{year} is {found}.")


FIXED = (
    ("[List|Name|Tell me] the days of the week.", ", ".join(DAYS) + "."),
    ("[What|Which] are the days of the week?", ", ".join(DAYS) + "."),
    ("[List|Name|Tell me] the months [of the year|].", ", ".join(MONTHS) + "."),
    ("[What|Which] are the months of the year?", ", ".join(MONTHS) + "."),
    ("How many days [are in|does] a week [have|]?", "A week has 7 days."),
    ("How many days [are in|does] a year [have|]?", "A year has 365 days, and 366 in a leap year."),
    ("How many months [are in|does] a year [have|]?", "A year has 12 months."),
    ("How many weeks [are in|does] a year [have|]?", "A year has 52 weeks and a day or two."),
    ("[How many days does a leap year have?|How long is a leap year?]", "A leap year has 366 days."),
    (
        "[What is a leap year?|When is a year a leap year?|Explain leap years.]",
        "A leap year has 29 days in February. "
        "Years that divide by 4 are leap years, but centuries only if they divide by 400.",
    ),
    ("[Which|What] is the [shortest|smallest] month?", "February is the shortest month."),
    ("[Which|What] is the [first day of the week|first day]?", "In this calendar the week starts on Monday."),
    ("[Which|What] days are the weekend?", "Saturday and Sunday are the weekend."),
)


def fixed(rng: random.Random) -> Turn:
    """Ask a question without slots."""
    shape, answer = rng.choice(FIXED)
    return Turn(vary(rng, shape), answer)


PARTS = (next_day, days_later, tomorrow, between, month_length, month_number, next_month, leap_year, fixed)
WEIGHTS = (1, 1.5, 1, 1.2, 0.8, 1.2, 1.4, 1.4, 1.3)


def draw(rng: random.Random) -> Turn:
    """Draw one question on dates."""
    return rng.choices(PARTS, WEIGHTS)[0](rng)
