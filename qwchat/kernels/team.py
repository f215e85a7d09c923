"""What the members of a team (:mod:`qwchat.kernels.threads`) do in compiled code: wait, meet, take work.

Between steps a member spins, then yields, then parks in Python, where it costs nothing; a pure spin would collapse as
soon as another process takes a core.  Inside a step the members meet at barriers and take work from a shared cursor,
so that a slow core delays nobody.  State: one cache line (LINE bytes) per field, so that no two share one.
"""

from __future__ import annotations

from qwchat.kernels.jit import inlined, kernel
from qwchat.kernels.sync import atomic_add, atomic_load, atomic_store, exchange_if, pause, yield_processor
from qwchat.kernels.threads import HEADER_LINES, LINE, PARK, RUN, STOP

_STEP, _ARRIVED, _PASSED, _CURSOR, _STOP, _AWAKE, _MEMBERS = (line * LINE for line in range(HEADER_LINES))
_WORKING, _PARKED = 0, 1
_DONE = 8  # offset in a member's line: the last step that it took part in

_SPINS_BEFORE_YIELD = 2_000
_YIELDS_BEFORE_PARK = 4_000  # some milliseconds: longer than sampling a token takes


@inlined
def barrier(team, size):
    """Waits for all members; the last to arrive resets the work cursor."""
    if size == 1:
        atomic_store(team + _CURSOR, 0)
        return
    passed = atomic_load(team + _PASSED)
    if atomic_add(team + _ARRIVED, 1) == size - 1:
        atomic_store(team + _ARRIVED, 0)
        atomic_store(team + _CURSOR, 0)
        atomic_add(team + _PASSED, 1)
        return
    spins = 0
    while atomic_load(team + _PASSED) == passed:
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_processor()


@inlined
def take(team, count):
    """The first of ``count`` items of work that nobody else gets."""
    return atomic_add(team + _CURSOR, count)


@kernel
def await_step(team, member):
    """RUN when there is a new step for this member, STOP when the team ends, PARK when it should sleep in Python."""
    line = team + _MEMBERS + member * LINE
    done = atomic_load(line + _DONE)
    spins, yields = 0, 0
    while True:
        step = atomic_load(team + _STEP)
        if step != done:
            atomic_store(line + _DONE, step)
            return STOP if atomic_load(team + _STOP) != 0 else RUN
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_processor()
            yields += 1
        if yields > _YIELDS_BEFORE_PARK:
            exchange_if(line, _WORKING, _PARKED)
            # The leader may have begun meanwhile: stay, unless it has already undertaken to wake us.
            begun = atomic_load(team + _AWAKE) != 0 or atomic_load(team + _STEP) != done
            if not begun or not exchange_if(line, _PARKED, _WORKING):
                return PARK
            yields = 0


@kernel
def rouse(team, size, asleep):
    """Forbids parking and notes at the address ``asleep``, (size) i64, who must be woken; returns how many."""
    atomic_store(team + _AWAKE, 1)
    count = 0
    for member in range(1, size):
        parked = exchange_if(team + _MEMBERS + member * LINE, _PARKED, _WORKING)
        atomic_store(asleep + member * 8, parked)
        count += parked
    return count


@kernel
def relax(team):
    """Allows parking again."""
    atomic_store(team + _AWAKE, 0)


@inlined
def begin_step(team):
    """Announces a step.  Only compiled code calls it, so that no signal falls between it and the work."""
    atomic_add(team + _STEP, 1)


@kernel
def announce_end(team):
    """Tells the members that there will be no further step."""
    atomic_store(team + _STOP, 1)
    begin_step(team)
