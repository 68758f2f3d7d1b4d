# SPDX-License-Identifier: GPL-2.0-only
"""Threads that fault against threads that change the mappings under them, on the native engine; and what is left over.

Pages of three kinds lie next to each other in one mapping. Each faulting thread has pages of its own, whose contents
it knows at any time (it alone writes them, throws them away, and changes their permissions); the pages between are
unmapped, remapped, moved and protected by another thread, and an access to them may fail; one page is the same for
every child that is forked meanwhile.
"""
from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pykmm.conformance.counters import counter_problems
from pykmm.conformance.guard import note
from pykmm.conformance.report import Failure, limited
from pykmm.conformance.semantics import base_of
from pykmm.errors import InvariantViolation
from pykmm.tape import OPCODES, Tape
from pykmm.tape_builder import OpStream

if TYPE_CHECKING:
    from pykmm.conformance.subject import Subject

__all__ = ["check_leaks", "check_stress", "stress_tape"]

FAULTERS = 2
PAGES = 24
#: Turns of every thread in one tape; more turns are more tapes.
TURNS = 400
_FORKS = 3
_EFAULT = 14


def stress_tape(page: int, base: int, seed: int, turns: int = TURNS) -> Tape:
    """Two faulting threads, one that changes mappings, one that forks. Every expectation holds in every order.

    :param page: bytes
    :param base: where the border of two page tables lies
    """
    rng = random.Random(f"stress {seed}")
    t = Tape()
    start = base - PAGES // 2 * page
    away = base + 64 * page
    t.setup.mmap(PAGES * page, fixed=start)
    t.setup.store(start, b"constant")
    known: dict[int, bytes] = {}
    racy = [n for n in range(1, PAGES) if n % 3 == 0]
    for number in range(FAULTERS):
        own = [n for n in range(1, PAGES) if n % 3 == number + 1]
        _faulter(t.thread(), rng, page, start, own, racy, known, turns)
    _mapper(t.thread(), rng, page, start, away, racy, turns)
    _forker(t.thread(), page, start, turns)
    for n, data in sorted(known.items()):
        t.final.load(start + n * page, len(data), expect=data)
    t.final.load(start, 8, expect=b"constant")
    return t


def _faulter(x: OpStream, rng: random.Random, page: int, start: int, own: list[int], racy: list[int],
             known: dict[int, bytes], turns: int) -> None:
    for _ in range(turns):
        n = rng.choice(own)
        at = start + n * page
        what = rng.randrange(6)
        if what == 0:
            x.madvise(at, page, "DONTNEED", expect_errno=0)
            known[n] = bytes(4)
        elif what == 1:
            x.mprotect(at, page, "r", expect_errno=0)
            x.store(at, b"denied", expect_errno="EFAULT")
            x.mprotect(at, page, "rw", expect_errno=0)
        elif what == 2:
            x.touch(start + rng.choice(racy) * page, access=rng.choice(["read", "write"]))
        else:
            known[n] = rng.randbytes(4)
            x.store(at, known[n], expect_errno=0)
        x.load(at, 4, expect=known.get(n, bytes(4)), expect_errno=0)
        x.touch(start + rng.choice(racy) * page, access=rng.choice(["read", "write"]))


def _mapper(y: OpStream, rng: random.Random, page: int, start: int, away: int, racy: list[int], turns: int) -> None:
    for _ in range(turns):
        at = start + rng.choice(racy) * page
        what = rng.randrange(6)
        if what == 0:
            y.mprotect(at, page, "r", expect_errno=0)
        elif what == 1:
            y.mprotect(at, page, "rw", expect_errno=0)
        elif what == 2:
            y.madvise(at, page, "DONTNEED", expect_errno=0)
        elif what == 3:
            y.munmap(at, page, expect_errno=0)
            y.mmap(page, rng.choice([3, 3, 1, 0]), fixed=at, expect_errno=0)
        elif what == 4:
            y.mremap(at, page, page, "MAYMOVE|FIXED", away, expect_errno=0)
            y.mmap(page, fixed=at, expect_errno=0)
            y.munmap(away, page, expect_errno=0)
        else:
            y.mmap(page, fixed=at, expect_errno=0)


def _forker(z: OpStream, page: int, start: int, turns: int) -> None:
    for _ in range(_FORKS):
        for _ in range(max(1, turns // (2 * _FORKS))):
            z.load(start, 8, expect=b"constant", expect_errno=0)
        child = z.fork(expect_errno=0)
        child.load(start, 8, expect=b"constant", expect_errno=0)
        child.store(start, b"changed!", expect_errno=0)
        child.munmap(start + page, (PAGES - 1) * page, expect_errno=0)
        child.load(start, 8, expect=b"changed!", expect_errno=0)
        child.exit(expect_errno=0)


def check_stress(subject: Subject) -> tuple[str, list[Failure]]:
    """Tapes of :func:`stress_tape`; after each: expectations, Machine.validate(), frames, counters."""
    failures: list[Failure] = []
    base = base_of(subject)
    tapes = max(1, subject.effort.rounds // TURNS)
    faults = 0
    try:
        # What is freed is reused as early as it may be, not by thousands: who still looks at it sees something else.
        with subject.machine(cpus=FAULTERS + 2 + _FORKS, quirks=("eager-callbacks",)) as machine:
            machine.validate()
            frames = machine.vmstat["nr_used_frames"]
            for turn in range(tapes):
                tape = stress_tape(subject.page, base, subject.seed * 1_000_003 + turn)
                note(f"tape {turn}")
                result = machine.run(tape)
                faults += result.faults
                wrong = list(result.mismatches)
                touches = tape.ops["op"] == OPCODES["TOUCH"]
                strange = sorted(set(result.errnos[touches].tolist()) - {0, _EFAULT})
                if strange:
                    wrong.append(f"accesses ended with errno {strange}: only success and EFAULT are possible")
                wrong += counter_problems(result.counters, result.vmstat)
                try:
                    machine.validate()
                    used = machine.vmstat["nr_used_frames"]
                    if used != frames:
                        wrong.append(f"{used - frames} frames more in use than before, with no address space left")
                        frames = used
                except InvariantViolation as error:
                    wrong.append(f"Machine.validate() afterwards: {error}")
                failures += [Failure(f"tape {turn}: {text}", subject.replay("stress"), tape) for text in wrong]
                if len(failures) > 10:
                    break
    except InvariantViolation as error:
        failures.append(Failure(f"closing the machine: {error}", subject.replay("stress")))
    return (f"{tapes} tapes of {FAULTERS} faulting threads against mappings that change and fork: {faults:,} faults",
            limited(failures))


def _coming_and_going(subject: Subject, seed: int) -> Tape:
    """One address space in which every kind of mapping is made, split, moved, forked and given back."""
    rng = random.Random(f"leaks {seed}")
    page, base = subject.page, base_of(subject)
    t = Tape()
    t.file("f", size=4 * page)
    x = t.thread()
    for n in range(4):
        at = base + (32 * n - 4) * page
        if n == 3:
            x.mmap(4 * page, shared=rng.random() < 0.5, file="f", fixed=at)
            x.touch(at, 4 * page, "write")
            continue
        x.mmap(8 * page, fixed=at)
        x.touch(at, 8 * page, "write")
        x.munmap(at + rng.randrange(1, 7) * page, page)
        x.mprotect(at + rng.randrange(8) * page, page, "r")
    x.mremap(base - 4 * page, page, page, "MAYMOVE|FIXED", base + 200 * page)
    child = x.fork()
    child.touch(base - 4 * page, 8 * page, "write")
    child.munmap(base + 28 * page, 8 * page)
    if rng.random() < 0.5:
        child.exit()
    x.touch(base + 200 * page, page, "write")
    x.madvise(base + 28 * page, 8 * page, "DONTNEED")
    if rng.random() < 0.5:
        x.munmap(base - 4 * page, 300 * page)
    return t


def check_leaks(subject: Subject) -> tuple[str, list[Failure]]:
    """Address spaces come and go: the frames in use stay the same, and nothing is left when the machine is closed."""
    failures: list[Failure] = []
    count = subject.effort.spaces
    replay = subject.replay("leaks")
    tape: Tape | None = None
    machine = subject.machine(cpus=2)
    try:
        machine.validate()
        frames = machine.vmstat["nr_used_frames"]
        for turn in range(count):
            tape = _coming_and_going(subject, subject.seed * 1_000_003 + turn)
            note(f"address space {turn}")
            before = machine.vmstat
            machine.run(tape)
            machine.validate()
            now = machine.vmstat
            if now["nr_used_frames"] != frames:
                failures.append(Failure(
                    f"address space {turn}: {now['nr_used_frames'] - frames} frames more in use than before it, after "
                    "the strategy's quiesce() and every grace period", replay, tape))
                break
            tables = {name: now[f"nr_pgtable_{name}"] - before[f"nr_pgtable_{name}"] for name in ("alloc", "free")}
            if tables["alloc"] != tables["free"]:
                failures.append(Failure(f"address space {turn}: {tables['alloc']} page tables allocated, "
                                        f"{tables['free']} freed", replay, tape))
                break
        mm = machine.mm()       # one that is still there when the machine goes
        mm.mmap(base_of(subject), 4 * subject.page, 3, 0x32)
        mm.touch(base_of(subject), 4 * subject.page, "w")
        mm.munmap(base_of(subject) + subject.page, subject.page)
    except InvariantViolation as error:
        failures.append(Failure(f"Machine.validate(): {error}", replay, tape))
    finally:
        try:
            machine.close()
        except InvariantViolation as error:
            failures.append(Failure(f"after {count} address spaces, all gone and their deferred frees waited for: "
                                    f"{error}", replay, tape))
    return f"{count} address spaces with forks came and went: frames, page tables, VMAs, files", failures
