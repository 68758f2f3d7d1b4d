# SPDX-License-Identifier: GPL-2.0-only
"""What a strategy counts, against what the machine counts itself.

Index 0 is attempts, 1 successes (answered in the strategy's own way, also with an error: as vma_lock_success of Linux),
2 faults retried under mmap_sem, the rest reasons of aborts, errors, and what is not about faults (pykmm/counters.py).
"""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from pykmm.conformance.report import Failure
from pykmm.conformance.semantics import base_of
from pykmm.counters import counter_roles
from pykmm.errors import InvariantViolation
from pykmm.tape import Tape

if TYPE_CHECKING:
    from pykmm.conformance.subject import Subject

__all__ = ["check_counters", "counter_problems"]


def counter_problems(counters: Mapping[str, int], vmstat: Mapping[str, int]) -> list[str]:
    """What does not add up in the counters of one run, beside the machine's own of the same run.

    The run must have faults of user accesses only: none of mlock(), MAP_POPULATE or pins.
    """
    names, error_name, reasons, _ = counter_roles(counters)
    attempts, successes, retried = (counters[name] for name in names)
    errors = counters[error_name] if error_name else 0
    shown = ", ".join(f"{name} {value}" for name, value in counters.items() if value) or "all 0"
    wrong = [f"{name} went down by {-value}" for name, value in counters.items() if value < 0]
    faults = vmstat["pgfault"]
    if attempts != faults:
        wrong.append(f"{names[0]} is {attempts}, the machine took {faults} page faults")
    if attempts != successes + retried + errors:
        wrong.append(f"{names[0]} {attempts} is not {names[1]} {successes} + {names[2]} {retried}"
                     + (f" + {error_name} {errors}" if error_name else ""))
    aborted = sum(counters[name] for name in reasons)
    if reasons and aborted != retried:
        wrong.append(f"{names[2]} is {retried}, the reasons of aborts sum up to {aborted}")
    slow = vmstat["fault_mmap_sem"]
    if slow > attempts:
        wrong.append(f"{slow} faults went through handle_fault_mmap_sem(), of {attempts} attempts")
    elif slow > retried + errors and (retried or slow < attempts):     # all of them: it has no other way
        wrong.append(f"{slow} faults went through handle_fault_mmap_sem(), {names[2]} is {retried}: the others were "
                     f"counted as {names[1]}")
    return [f"{text} ({shown})" for text in wrong]


def _tape(subject: Subject) -> Tape:
    """One thread: first accesses, repeated ones, COW in a child, what was thrown away, and accesses that must fail."""
    page, base = subject.page, base_of(subject)
    t = Tape()
    t.file("f", size=2 * page)
    x = t.thread()
    a = x.mmap(16 * page, fixed=base - 8 * page)
    x.touch(a, 16 * page, "write")
    x.touch(a, 16 * page, "read")
    x.madvise(a, 8 * page, "DONTNEED")
    x.touch(a, 16 * page, "read")
    x.store(a, b"after a read of zeroes")
    f = x.mmap(2 * page, shared=True, file="f", fixed=base + 64 * page)
    x.touch(f, 2 * page, "read")
    x.touch(f, 2 * page, "write")
    x.mprotect(a, 4 * page, "r")
    for n in range(6):
        x.store(a + n * page, b"B")             # the first four are denied
    x.load(a + 40 * page, 1)                    # nothing is there
    x.truncate("f", page)
    x.load(f + page, 1)                         # SIGBUS
    child = x.fork()
    child.touch(a + 4 * page, 12 * page, "write")
    child.exit()
    x.touch(a + 4 * page, 12 * page, "write")
    x.munmap(a, 16 * page)
    x.touch(a, 2 * page, "read")
    return t


def check_counters(subject: Subject) -> tuple[str, list[Failure]]:
    """The same tape three times: every run adds up, and totals never go down."""
    failures: list[Failure] = []
    faults = slow = 0
    with suppress(InvariantViolation), subject.machine(cpus=2) as machine:     # leaks are another check's
        before: dict[str, int] = dict.fromkeys(machine.counters, 0)
        for turn in range(3):
            tape = _tape(subject)
            result = machine.run(tape)
            faults += result.faults
            slow += result.vmstat["fault_mmap_sem"]
            now = machine.counters
            wrong = counter_problems(result.counters, result.vmstat)
            wrong += [f"total of {name} went from {before[name]} to {now[name]}" for name in now
                      if now[name] < before[name]]
            failures += [Failure(f"run {turn + 1}: {text}", subject.replay("counters"), tape) for text in wrong]
            before = now
            if failures:
                break
    return (f"{faults} faults, of which handle_fault_mmap_sem() handled {slow}: attempts, successes, retried and "
            "reasons against the machine's own counts"), failures
