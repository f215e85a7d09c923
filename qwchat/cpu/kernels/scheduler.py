"""What the members of a team (`qwchat.cpu.kernels.thread_team`) do in compiled code: wait for steps and share them out.

A step is a row of phases, a phase a number of items.  Members take items from a ticket that names the step and the
phase too, so nobody can take an item of another phase than the one that he is in; the member that completes a phase's
last item opens the next.  Nobody waits for members, only for items: one that came late, because the system had given
its core to somebody else, finds the ticket further on and skips to it.

Only a member that loses its core in the middle of an item delays the others, by a time slice of some milliseconds.
On a core that another process wants this happens again and again; where it costs more than the member gives, it naps
for a while and leaves the work to the others.

A step can be cancelled: Python sets a word, and from then on items are taken and not worked on, so that the step ends
as soon as the items in hand are done (thread_team.run_watched).

Between steps a member spins, then yields, then parks in Python, where it costs nothing.

State: a cache line (LINE bytes) per field of the header, so that no two share one, and MEMBER_BYTES per member.
"""

from __future__ import annotations

from qwchat.cpu.kernels.jit import inlined, kernel
from qwchat.cpu.kernels.sync import (
    atomic_add,
    atomic_load,
    atomic_store,
    exchange_if,
    pause,
    preemptions,
    read_own,
    sleep_microseconds,
    thread_time,
    wall_time,
    write_own,
    yield_processor,
)
from qwchat.cpu.kernels.thread_team import CANCELLED, HEADER_LINES, LINE, MEMBER_BYTES, PARK, RUN, STOP

# And CANCELLED, which Python writes.
_STEP, _TICKET, _COMPLETED, _STOP, _ACTIVE, _CROWDED = (line * LINE for line in range(HEADER_LINES - 1))
_MEMBERS = HEADER_LINES * LINE

# The ticket: number of the step, of its phase, of the next item.
_NEXT_PHASE, _NEXT_STEP = 1 << 24, 1 << 40
_NO_PHASE = _NEXT_STEP - _NEXT_PHASE

# A member's own fields; the others look at the first alone.
_STATE, _SEEN, _PHASE, _TAKEN, _PASSED, _IDLE_SINCE, _PATIENT = range(0, 56, 8)
_MARK_WALL, _MARK_PROCESSOR, _MARK_PREEMPTIONS, _SPAN, _MISSED, _PREEMPTED, NAP, _WOKEN = range(64, 128, 8)
_CLOCK = 128
_WORKING, _PARKED = 0, 1  # a member's state
_NO, _LEADER_IS, _SOMEBODY_NAPS = 0, 1, 2  # crowded?

_SPINS_BEFORE_YIELD = 1_000
_PATIENCE = 2_000_000  # ns; sampling and showing a token take less
_IMPATIENCE = 50_000  # ns, for those who had to park last time
_LONG_PHASE = 1_000_000  # ns; shorter than a time slice, so that a lost one shows
_WINDOW = 15_000_000  # ns; some time slices
_FIRST_NAP, _LONGEST_NAP = 20_000_000, 160_000_000  # ns; doubled while the core stays crowded
_NAP_PIECE = 5_000  # us


@inlined
def _own(team, member):
    return team + _MEMBERS + member * MEMBER_BYTES


@inlined
def next_nap(last, awake):
    """How long to nap, in ns: `last` is the length of the nap before and `awake` the time since."""
    return min(2 * last, _LONGEST_NAP) if last > 0 and awake < last else _FIRST_NAP


@inlined
def _mark(own):
    clock = own + _CLOCK
    write_own(own + _MARK_WALL, wall_time(clock))
    write_own(own + _MARK_PROCESSOR, thread_time(clock))
    write_own(own + _MARK_PREEMPTIONS, preemptions(clock))


@kernel
def _nap(team, own):
    clock = own + _CLOCK
    now = wall_time(clock)
    length = next_nap(read_own(own + NAP), now - read_own(own + _WOKEN))
    while wall_time(clock) - now < length and atomic_load(team + _STOP) == 0:
        sleep_microseconds(_NAP_PIECE)
    write_own(own + NAP, length)
    write_own(own + _WOKEN, wall_time(clock))
    _mark(own)


@inlined
def is_crowded(span, missed, active):
    """Whether a member that was kept from its core for `missed` of `span` (ns) costs the team more than it gives.

    All wait for it meanwhile, so `active` members work at `active * (1 - missed / span)` times the speed of one;
    without it they are one fewer.  Somewhat less is asked for: memory has enough to do with fewer.
    """
    return missed > _LONG_PHASE and 10 * missed * active > 7 * span


@kernel
def _account(team, member):
    """Adds what has passed since the last mark; after a window of it naps, or asks for a nap, where it is crowded."""
    own = _own(team, member)
    wall, processor = read_own(own + _MARK_WALL), read_own(own + _MARK_PROCESSOR)
    preempted = read_own(own + _MARK_PREEMPTIONS)
    _mark(own)
    passed = read_own(own + _MARK_WALL) - wall
    span = read_own(own + _SPAN) + passed
    missed = read_own(own + _MISSED) + passed - (read_own(own + _MARK_PROCESSOR) - processor)
    # Waiting for a page of a mapped file is not counted as a preemption.
    preempted = read_own(own + _PREEMPTED) + read_own(own + _MARK_PREEMPTIONS) - preempted
    full = span >= _WINDOW
    write_own(own + _SPAN, 0 if full else span)
    write_own(own + _MISSED, 0 if full else missed)
    write_own(own + _PREEMPTED, 0 if full else preempted)
    if full and preempted > 0 and is_crowded(span, missed, atomic_load(team + _ACTIVE)):
        if member != 0:
            _nap(team, own)
        elif atomic_load(team + _ACTIVE) > 1:
            # The leader cannot leave: whoever sees this first makes room for it.
            exchange_if(team + _CROWDED, _NO, _LEADER_IS)


@inlined
def take(team, member, items):
    """The next of this phase's `items` that nobody else gets, or -1 if there is none.

    Call it until it returns -1: that reports the items taken as done.  `items` must be the same for all members, at
    least 1 and below 2**24.

    Once the step is cancelled, the first member that asks takes all items that are left and does none of them, in this
    phase and in those that follow.  The ticket is read before the stop word: a member that sees a phase behind skipped
    items also sees the stop word, so whatever is computed has complete inputs.
    """
    own = _own(team, member)
    phase = read_own(own + _PHASE)
    taken = read_own(own + _TAKEN)
    while True:
        ticket = atomic_load(team + _TICKET)
        item = ticket - phase
        if item < 0 or item >= items:
            break
        if atomic_load(team + CANCELLED) != 0:
            if exchange_if(team + _TICKET, ticket, phase + items):
                taken += items - item
                break
        elif exchange_if(team + _TICKET, ticket, ticket + 1):
            write_own(own + _TAKEN, taken + 1)
            return item
    write_own(own + _TAKEN, 0)
    if taken > 0 and atomic_add(team + _COMPLETED, taken) + taken == items:
        atomic_store(team + _COMPLETED, 0)
        atomic_store(team + _TICKET, phase + _NEXT_PHASE)
    return -1


@inlined
def barrier(team, member):
    """Waits until all items of the phase are done, and goes on to the next phase."""
    own = _own(team, member)
    phase = read_own(own + _PHASE)
    spins = 0
    while atomic_load(team + _TICKET) - phase < _NEXT_PHASE:
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_processor()
    write_own(own + _PHASE, phase + _NEXT_PHASE)
    now = wall_time(own + _CLOCK)
    if now - read_own(own + _PASSED) > _LONG_PHASE:
        _account(team, member)
    asked = member != 0 and atomic_load(team + _CROWDED) == _LEADER_IS
    if asked and exchange_if(team + _CROWDED, _LEADER_IS, _SOMEBODY_NAPS):
        _nap(team, own)
        atomic_store(team + _CROWDED, _NO)
    write_own(own + _PASSED, now)


@inlined
def _enter(own, step):
    write_own(own + _SEEN, step)
    write_own(own + _PHASE, step * _NEXT_STEP)
    _mark(own)
    write_own(own + _PASSED, read_own(own + _MARK_WALL))


@kernel
def await_step(team, member):
    """RUN when there is a new step for this member, STOP when the team ends, PARK when it should sleep in Python."""
    own = _own(team, member)
    clock = own + _CLOCK
    atomic_store(own + _STATE, _WORKING)
    seen = read_own(own + _SEEN)
    if seen != 0 and read_own(own + _IDLE_SINCE) == 0:
        _account(team, member)
    start = wall_time(clock)
    if read_own(own + _IDLE_SINCE) == 0:
        write_own(own + _IDLE_SINCE, start)
    patience = _PATIENCE if read_own(own + _PATIENT) != 0 else _IMPATIENCE
    spins = 0
    while True:
        step = atomic_load(team + _STEP)
        if step != seen:
            if atomic_load(team + _STOP) != 0:
                return STOP
            if member < atomic_load(team + _ACTIVE):
                write_own(own + _PATIENT, wall_time(clock) - read_own(own + _IDLE_SINCE) < _PATIENCE)
                write_own(own + _IDLE_SINCE, 0)
                _enter(own, step)
                return RUN
            seen = step
            write_own(own + _SEEN, step)
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            yield_processor()
            if wall_time(clock) - start > patience:
                atomic_store(own + _STATE, _PARKED)
                # The leader, who looks at that, may have announced a step before.
                if atomic_load(team + _STEP) == seen:
                    return PARK
                atomic_store(own + _STATE, _WORKING)
                start = wall_time(clock)


@kernel
def rouse(team, active, asleep):
    """The next step is for `active` members.  Notes at the address `asleep`, (active) i64, who must be woken;
    returns how many.

    One who parks after that misses a step, one who is woken twice parks again: neither harms anybody, so an interrupt
    may come between this and the waking.
    """
    atomic_store(team + _ACTIVE, active)
    count = 0
    for member in range(1, active):
        parked = atomic_load(_own(team, member) + _STATE) == _PARKED
        atomic_store(asleep + member * 8, parked)
        count += parked
    return count


@inlined
def begin_step(team):
    """Announces a step.  Only compiled code calls it, so that no signal falls between it and the work."""
    step = atomic_load(team + _STEP) + 1
    _enter(_own(team, 0), step)
    atomic_store(team + _TICKET, step * _NEXT_STEP)
    atomic_store(team + _STEP, step)


@inlined
def end_step(team):
    """Closes the step: a member that is still on its way through it must not meet the next one's state."""
    atomic_store(team + _TICKET, atomic_load(team + _STEP) * _NEXT_STEP + _NO_PHASE)
    _account(team, 0)


@kernel
def announce_end(team):
    """Tells the members that there will be no further step."""
    atomic_store(team + _STOP, 1)
    atomic_add(team + _STEP, 1)
