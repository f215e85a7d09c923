"""Compiled side of the thread team: members wait for steps, and share the work of each.

A step is a sequence of stages, and a stage a number of items. Members claim items from a shared ticket, an integer that
holds the number of the step, of its stage and of the next item. A member can therefore never claim an item of another
stage than its own. The member that completes the last item of a stage opens the next stage.

Members wait for items, never for each other: a member that comes late, because the system gave its core to another
process, finds that the ticket has advanced, and skips to it. Only a member that loses its core in the middle of an item
delays the others, by a time slice of some milliseconds. If another process keeps competing for the core, this happens
again and again. Where it costs the team more than the member contributes, the member backs off: it sleeps for a while
and leaves the work to the others.

A step can be cancelled: Python sets a word in the team's memory. From then on items are claimed but not computed, so
that the step ends as soon as the items in progress are done (`ThreadTeam.run_cancellable`).

Between steps a member spins, then yields its processor, then parks in Python, where it uses no processor time.

The team's memory holds one cache line per field of the header, so that no two fields share a line, and then
MEMBER_BYTES for each member. `team` is its address.
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

# Header fields, one cache line each; the seventh is CANCEL_WORD, which Python writes.
_STEP, _TICKET, _COMPLETED, _STOP, _ACTIVE, _CONTENTION = (line * LINE_BYTES for line in range(HEADER_LINES - 1))
_MEMBERS = HEADER_LINES * LINE_BYTES

# The ticket: step number << 40 | stage number << 24 | number of the next item.
_NEXT_STAGE, _NEXT_STEP = 1 << 24, 1 << 40
_STEP_CLOSED = _NEXT_STEP - _NEXT_STAGE

# Fields of a member. Other threads read the first one only.
_STATE, _LAST_STEP, _STAGE, _CLAIMED, _LAST_BARRIER, _IDLE_SINCE, _SPINS_LONG = range(0, 56, 8)
_MARK_WALL, _MARK_PROCESSOR, _MARK_PREEMPTIONS, _ELAPSED, _STOLEN, _PREEMPTED, BACK_OFF, _BACK_OFF_END = range(
    64, 128, 8
)
_CLOCK = 128
_WORKING, _PARKED = 0, 1  # values of _STATE
_NOT_CONTENDED, _LEADER_CONTENDED, _MEMBER_BACKS_OFF = 0, 1, 2  # values of _CONTENTION

_SPINS_BEFORE_YIELD = 1_000
_LONG_SPIN = 2_000_000  # ns: sampling and printing a token take less
_SHORT_SPIN = 50_000  # ns, for members that had to park last time
_LONG_STAGE = 1_000_000  # ns: shorter than a time slice, so that the loss of one is noticed
_WINDOW = 15_000_000  # ns: some time slices
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 20_000_000, 160_000_000  # ns: doubled while the core stays contended
_SLEEP_MICROSECONDS = 5_000  # between two checks for the end of the team


@inlined
def _member_fields(team, member):
    """Return the address of a member's fields."""
    return team + _MEMBERS + member * MEMBER_BYTES


@inlined
def next_back_off(last, since_last):
    """Return how long a member should back off, in ns.

    Args:
        last: length of the previous back-off, 0 for the first one.
        since_last: time since the previous back-off ended.
    """
    return min(2 * last, _LONGEST_BACK_OFF) if last > 0 and since_last < last else _FIRST_BACK_OFF


@inlined
def _save_clocks(fields):
    """Store the present wall time, processor time and preemptions of this member."""
    clock = fields + _CLOCK
    store_private(fields + _MARK_WALL, wall_time(clock))
    store_private(fields + _MARK_PROCESSOR, thread_time(clock))
    store_private(fields + _MARK_PREEMPTIONS, preemptions(clock))


@kernel
def _back_off(team, fields):
    """Sleep for the next back-off, or until the team ends."""
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
    """Return whether a member costs the team more than it contributes, because its core is contended.

    The others wait for it meanwhile, so that `active` members work at `active * (1 - stolen / elapsed)` times the speed
    of one; without this member they are one fewer. The threshold is somewhat lower than that, since fewer members still
    saturate the memory.

    Args:
        elapsed: observed time, in ns.
        stolen: the part of it during which the member had no core, in ns.
        active: number of members that work.
    """
    return stolen > _LONG_STAGE and 10 * stolen * active > 7 * elapsed


@kernel
def _measure_contention(team, member):
    """Add the time since `_save_clocks` to the member's window; back off at its end if the core is contended.

    Member 0 cannot back off, since it leads. It asks another member to free a core instead.
    """
    fields = _member_fields(team, member)
    wall, processor = load_private(fields + _MARK_WALL), load_private(fields + _MARK_PROCESSOR)
    preempted = load_private(fields + _MARK_PREEMPTIONS)
    _save_clocks(fields)
    passed = load_private(fields + _MARK_WALL) - wall
    elapsed = load_private(fields + _ELAPSED) + passed
    stolen = load_private(fields + _STOLEN) + passed - (load_private(fields + _MARK_PROCESSOR) - processor)
    # Without a preemption the time was lost to page faults of a mapped file, not to another process.
    preempted = load_private(fields + _PREEMPTED) + load_private(fields + _MARK_PREEMPTIONS) - preempted
    full = elapsed >= _WINDOW
    store_private(fields + _ELAPSED, 0 if full else elapsed)
    store_private(fields + _STOLEN, 0 if full else stolen)
    store_private(fields + _PREEMPTED, 0 if full else preempted)
    if full and preempted > 0 and is_contended(elapsed, stolen, atomic_load(team + _ACTIVE)):
        if member != 0:
            _back_off(team, fields)
        elif atomic_load(team + _ACTIVE) > 1:
            # The leader cannot sleep: the first member that sees this frees a core for it.
            exchange_if(team + _CONTENTION, _NOT_CONTENDED, _LEADER_CONTENDED)


@inlined
def claim(team, member, items):
    """Claim the next item of this stage; return its number, or -1 if no item is left.

    Call it until it returns -1: that also reports the claimed items as done. Once the step is cancelled, the first
    member that calls it claims all items that are left and computes none of them, in this stage and in those that
    follow. The ticket is read before the cancel word: a member that sees a stage after skipped items therefore also
    sees the cancel word, and whatever is computed has complete inputs.

    Args:
        team: address of the team's memory.
        member: number of this member.
        items: number of items of the stage, 1 to 2**24 - 1, the same for all members.
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
    """Wait until all items of the stage are done, then enter the next stage.

    It is also where a member notices that its core is contended, or that member 0 has asked for a core.
    """
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
    leader_needs_core = member != 0 and atomic_load(team + _CONTENTION) == _LEADER_CONTENDED
    if leader_needs_core and exchange_if(team + _CONTENTION, _LEADER_CONTENDED, _MEMBER_BACKS_OFF):
        _back_off(team, fields)
        atomic_store(team + _CONTENTION, _NOT_CONTENDED)
    store_private(fields + _LAST_BARRIER, now)


@inlined
def _enter_step(fields, step):
    """Enter stage 0 of `step`, and start its clocks."""
    store_private(fields + _LAST_STEP, step)
    store_private(fields + _STAGE, step * _NEXT_STEP)
    _save_clocks(fields)
    store_private(fields + _LAST_BARRIER, load_private(fields + _MARK_WALL))


@kernel
def await_step(team, member):
    """Wait for the next step; return RUN, STOP or PARK.

    RUN: this member takes part in a new step. STOP: the team ends. PARK: no step has come for a while, and the caller
    should wait on its semaphore.
    """
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
                # The leader may have announced a step before it could see this state.
                if atomic_load(team + _STEP) == seen:
                    return PARK
                atomic_store(fields + _STATE, _WORKING)
                start = wall_time(clock)


@kernel
def wake(team, active, parked_flags):
    """Set the number of members of the next step, and report which of them are parked.

    A member that parks after this call misses one step, and a member that is woken twice parks again. Both are
    harmless, so that an interrupt may come between this call and the waking.

    Args:
        team: address of the team's memory.
        active: number of members of the next step.
        parked_flags: address of (active) i64, set to 1 for each member that must be woken, else to 0.

    Returns:
        The number of parked members.
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
    """Announce a step. Only compiled code calls it, so that no signal handler runs between it and the work."""
    step = atomic_load(team + _STEP) + 1
    _enter_step(_member_fields(team, 0), step)
    atomic_store(team + _TICKET, step * _NEXT_STEP)
    atomic_store(team + _STEP, step)


@inlined
def end_step(team):
    """Close the step, so that a member which is still on its way through it cannot meet the next step's state."""
    atomic_store(team + _TICKET, atomic_load(team + _STEP) * _NEXT_STEP + _STEP_CLOSED)
    _measure_contention(team, 0)


@kernel
def announce_end(team):
    """Tell the members that no further step will come."""
    atomic_store(team + _STOP, 1)
    atomic_add(team + _STEP, 1)
