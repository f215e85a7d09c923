"""What the members of a team (`qwchat.cpu.kernels.thread_team`) do in compiled code: wait for steps and share them out.

A step is a row of stages, a stage a number of items.  Members claim items from a ticket that names the step and the
stage too, so nobody can claim an item of another stage than the one that he is in; the member that completes a stage's
last item opens the next.  Nobody waits for members, only for items: one that came late, because the system had given
its core to somebody else, finds the ticket further on and skips to it.

Only a member that loses its core in the middle of an item delays the others, by a time slice of some milliseconds.
On a core that another process wants this happens again and again; where it costs more than the member gives, it naps
for a while and leaves the work to the others.

A step can be cancelled: Python sets a word, and from then on items are claimed and not worked on, so that the step ends
as soon as the items in hand are done (thread_team.run_cancellable).

Between steps a member spins, then yields, then parks in Python, where it costs nothing.

State: a cache line (LINE_BYTES bytes) per field of the header, so that no two share one, and MEMBER_BYTES per member.
"""

from __future__ import annotations

from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.sync import (
    atomic_add,
    atomic_load,
    atomic_store,
    exchange_if,
    load_private,
    pause,
    preemptions,
    sleep_microseconds,
    store_private,
    thread_time,
    wall_time,
    yield_processor,
)
from qwchat.cpu.kernels.thread_team import CANCEL_WORD, HEADER_LINES, LINE_BYTES, MEMBER_BYTES, PARK, RUN, STOP

# And CANCEL_WORD, which Python writes.
_STEP, _TICKET, _COMPLETED, _STOP, _ACTIVE, _CONTENTION = (line * LINE_BYTES for line in range(HEADER_LINES - 1))
_MEMBERS = HEADER_LINES * LINE_BYTES

# The ticket: number of the step, of its stage, of the next item.
_NEXT_STAGE, _NEXT_STEP = 1 << 24, 1 << 40
_STEP_CLOSED = _NEXT_STEP - _NEXT_STAGE

# A member's own fields; the others look at the first alone.
_STATE, _LAST_STEP, _STAGE, _CLAIMED, _LAST_BARRIER, _IDLE_SINCE, _SPINS_LONG = range(0, 56, 8)
_MARK_WALL, _MARK_PROCESSOR, _MARK_PREEMPTIONS, _ELAPSED, _STOLEN, _PREEMPTED, BACK_OFF, _BACK_OFF_END = range(
    64, 128, 8
)
_CLOCK = 128
_WORKING, _PARKED = 0, 1  # a member's state
_NOT_CONTENDED, _LEADER_CONTENDED, _MEMBER_BACKS_OFF = 0, 1, 2  # crowded?

_SPINS_BEFORE_YIELD = 1_000
_LONG_SPIN = 2_000_000  # ns; sampling and showing a token take less
_SHORT_SPIN = 50_000  # ns, for those who had to park last time
_LONG_STAGE = 1_000_000  # ns; shorter than a time slice, so that a lost one shows
_WINDOW = 15_000_000  # ns; some time slices
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 20_000_000, 160_000_000  # ns; doubled while the core stays crowded
_SLEEP_MICROSECONDS = 5_000  # us


@inlined
def _member_fields(team, member):
    return team + _MEMBERS + member * MEMBER_BYTES


@inlined
def next_back_off(last, since_last):
    """How long to nap, in ns: `last` is the length of the nap before and `since_last` the time since."""
    return min(2 * last, _LONGEST_BACK_OFF) if last > 0 and since_last < last else _FIRST_BACK_OFF


@inlined
def _save_clocks(fields):
    clock = fields + _CLOCK
    store_private(fields + _MARK_WALL, wall_time(clock))
    store_private(fields + _MARK_PROCESSOR, thread_time(clock))
    store_private(fields + _MARK_PREEMPTIONS, preemptions(clock))


@kernel
def _back_off(team, fields):
    clock = fields + _CLOCK
    now = wall_time(clock)
    length = next_back_off(load_private(fields + BACK_OFF), now - load_private(fields + _BACK_OFF_END))
    while wall_time(clock) - now < length and atomic_load(team + _STOP) == 0:
        sleep_microseconds(_SLEEP_MICROSECONDS)
    store_private(fields + BACK_OFF, length)
    store_private(fields + _BACK_OFF_END, wall_time(clock))
    _save_clocks(fields)


@inlined
def is_contended(elapsed, stolen, active):
    """Whether a member that was kept from its core for `stolen` of `elapsed` (ns) costs the team more than it gives.

    All wait for it meanwhile, so `active` members work at `active * (1 - stolen / elapsed)` times the speed of one;
    without it they are one fewer.  Somewhat less is asked for: memory has enough to do with fewer.
    """
    return stolen > _LONG_STAGE and 10 * stolen * active > 7 * elapsed


@kernel
def _measure_contention(team, member):
    """Adds what has passed since the last mark; after a window of it naps, or asks for a nap, where it is crowded."""
    fields = _member_fields(team, member)
    wall, processor = load_private(fields + _MARK_WALL), load_private(fields + _MARK_PROCESSOR)
    preempted = load_private(fields + _MARK_PREEMPTIONS)
    _save_clocks(fields)
    passed = load_private(fields + _MARK_WALL) - wall
    elapsed = load_private(fields + _ELAPSED) + passed
    stolen = load_private(fields + _STOLEN) + passed - (load_private(fields + _MARK_PROCESSOR) - processor)
    # Waiting for a page of a mapped file is not counted as a preemption.
    preempted = load_private(fields + _PREEMPTED) + load_private(fields + _MARK_PREEMPTIONS) - preempted
    full = elapsed >= _WINDOW
    store_private(fields + _ELAPSED, 0 if full else elapsed)
    store_private(fields + _STOLEN, 0 if full else stolen)
    store_private(fields + _PREEMPTED, 0 if full else preempted)
    if full and preempted > 0 and is_contended(elapsed, stolen, atomic_load(team + _ACTIVE)):
        if member != 0:
            _back_off(team, fields)
        elif atomic_load(team + _ACTIVE) > 1:
            # The leader cannot leave: whoever sees this first makes room for it.
            exchange_if(team + _CONTENTION, _NOT_CONTENDED, _LEADER_CONTENDED)


@inlined
def claim(team, member, items):
    """The next of this stage's `items` that nobody else gets, or -1 if there is none.

    Call it until it returns -1: that reports the items claimed as done.  `items` must be the same for all members, at
    least 1 and below 2**24.

    Once the step is cancelled, the first member that asks takes all items that are left and does none of them, in this
    stage and in those that follow.  The ticket is read before the stop word: a member that sees a stage behind skipped
    items also sees the stop word, so whatever is computed has complete inputs.
    """
    fields = _member_fields(team, member)
    stage = load_private(fields + _STAGE)
    claimed = load_private(fields + _CLAIMED)
    while True:
        ticket = atomic_load(team + _TICKET)
        item = ticket - stage
        if item < 0 or item >= items:
            break
        if atomic_load(team + CANCEL_WORD) != 0:
            if exchange_if(team + _TICKET, ticket, stage + items):
                claimed += items - item
                break
        elif exchange_if(team + _TICKET, ticket, ticket + 1):
            store_private(fields + _CLAIMED, claimed + 1)
            return item
    store_private(fields + _CLAIMED, 0)
    if claimed > 0 and atomic_add(team + _COMPLETED, claimed) + claimed == items:
        atomic_store(team + _COMPLETED, 0)
        atomic_store(team + _TICKET, stage + _NEXT_STAGE)
    return -1


@inlined
def barrier(team, member):
    """Waits until all items of the stage are done, and goes on to the next stage."""
    fields = _member_fields(team, member)
    stage = load_private(fields + _STAGE)
    spins = 0
    while atomic_load(team + _TICKET) - stage < _NEXT_STAGE:
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_processor()
    store_private(fields + _STAGE, stage + _NEXT_STAGE)
    now = wall_time(fields + _CLOCK)
    if now - load_private(fields + _LAST_BARRIER) > _LONG_STAGE:
        _measure_contention(team, member)
    asked = member != 0 and atomic_load(team + _CONTENTION) == _LEADER_CONTENDED
    if asked and exchange_if(team + _CONTENTION, _LEADER_CONTENDED, _MEMBER_BACKS_OFF):
        _back_off(team, fields)
        atomic_store(team + _CONTENTION, _NOT_CONTENDED)
    store_private(fields + _LAST_BARRIER, now)


@inlined
def _enter_step(fields, step):
    store_private(fields + _LAST_STEP, step)
    store_private(fields + _STAGE, step * _NEXT_STEP)
    _save_clocks(fields)
    store_private(fields + _LAST_BARRIER, load_private(fields + _MARK_WALL))


@kernel
def await_step(team, member):
    """RUN when there is a new step for this member, STOP when the team ends, PARK when it should sleep in Python."""
    fields = _member_fields(team, member)
    clock = fields + _CLOCK
    atomic_store(fields + _STATE, _WORKING)
    seen = load_private(fields + _LAST_STEP)
    if seen != 0 and load_private(fields + _IDLE_SINCE) == 0:
        _measure_contention(team, member)
    start = wall_time(clock)
    if load_private(fields + _IDLE_SINCE) == 0:
        store_private(fields + _IDLE_SINCE, start)
    spin_limit = _LONG_SPIN if load_private(fields + _SPINS_LONG) != 0 else _SHORT_SPIN
    spins = 0
    while True:
        step = atomic_load(team + _STEP)
        if step != seen:
            if atomic_load(team + _STOP) != 0:
                return STOP
            if member < atomic_load(team + _ACTIVE):
                store_private(fields + _SPINS_LONG, wall_time(clock) - load_private(fields + _IDLE_SINCE) < _LONG_SPIN)
                store_private(fields + _IDLE_SINCE, 0)
                _enter_step(fields, step)
                return RUN
            seen = step
            store_private(fields + _LAST_STEP, step)
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_processor()
            if wall_time(clock) - start > spin_limit:
                atomic_store(fields + _STATE, _PARKED)
                # The leader, who looks at that, may have announced a step before.
                if atomic_load(team + _STEP) == seen:
                    return PARK
                atomic_store(fields + _STATE, _WORKING)
                start = wall_time(clock)


@kernel
def wake(team, active, parked_flags):
    """The next step is for `active` members.  Notes at the address `parked_flags`, (active) i64, who must be woken;
    returns how many.

    One who parks after that misses a step, one who is woken twice parks again: neither harms anybody, so an interrupt
    may come between this and the waking.
    """
    atomic_store(team + _ACTIVE, active)
    count = 0
    for member in range(1, active):
        is_parked = atomic_load(_member_fields(team, member) + _STATE) == _PARKED
        atomic_store(parked_flags + member * 8, is_parked)
        count += is_parked
    return count


@inlined
def begin_step(team):
    """Announces a step.  Only compiled code calls it, so that no signal falls between it and the work."""
    step = atomic_load(team + _STEP) + 1
    _enter_step(_member_fields(team, 0), step)
    atomic_store(team + _TICKET, step * _NEXT_STEP)
    atomic_store(team + _STEP, step)


@inlined
def end_step(team):
    """Closes the step: a member that is still on its way through it must not meet the next one's state."""
    atomic_store(team + _TICKET, atomic_load(team + _STEP) * _NEXT_STEP + _STEP_CLOSED)
    _measure_contention(team, 0)


@kernel
def announce_end(team):
    """Tells the members that there will be no further step."""
    atomic_store(team + _STOP, 1)
    atomic_add(team + _STEP, 1)
