# SPDX-License-Identifier: GPL-2.0-only
"""The first things that a strategy must do, one access at a time, on one CPU and then from another.

What is expected is what Linux does on every arch; nothing is generated, so that a failure here is easy to read.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pykmm.conformance.guard import note
from pykmm.conformance.report import Failure
from pykmm.conformance.semantics import base_of
from pykmm.errors import BusError, InvariantViolation, PykmmError, SegmentationFault

if TYPE_CHECKING:
    from pykmm.conformance.subject import Subject
    from pykmm.machine import Machine

__all__ = ["check_basics"]

_PRIVATE, _SHARED, _FIXED, _ANON = 0x02, 0x01, 0x10, 0x20
_NONE, _READ, _READ_WRITE, _READ_EXEC = 0, 1, 3, 5
_DONTNEED = 4

Access = tuple[str, Callable[[], object], object]


def _outcome(action: Callable[[], object]) -> object:
    """What it gives; of an access that fails the signal and its code."""
    try:
        return action()
    except SegmentationFault as fault:
        return f"SIGSEGV {fault.code}"
    except BusError:
        return "SIGBUS"
    except PykmmError as error:     # what the machine says to a strategy that misbehaves
        return f"{type(error).__name__}: {error}"


def _accesses(subject: Subject, machine: Machine) -> Iterator[Access]:
    """(what it is, the access, what it gives). What comes later builds on what was done before."""
    page, a = subject.page, base_of(subject) - 2 * subject.page
    mm = machine.mm()
    mm.mmap(a, 4 * page, _READ_WRITE, _PRIVATE | _FIXED | _ANON)
    yield "a read of an untouched page", lambda: mm.load(a, 4), bytes(4)
    yield "a write to that page", lambda: mm.store(a, b"one!"), None
    yield "a read of what was written", lambda: mm.load(a, 4), b"one!"
    yield "a write to an untouched page", lambda: mm.store(a + page, b"two!"), None
    yield "a write across two pages and two page tables", lambda: mm.store(a + 2 * page - 2, b"both"), None
    yield "a read of both parts", lambda: mm.load(a + 2 * page - 2, 4), b"both"
    yield "a read from another CPU", lambda: mm.load(a, 4, cpu=1), b"one!"
    mm.mprotect(a, page, _READ)
    yield "a write to a page that may only be read", lambda: mm.store(a, b"no"), "SIGSEGV ACCERR"
    yield "the same from another CPU", lambda: mm.store(a, b"no", cpu=1), "SIGSEGV ACCERR"
    yield "a read of it", lambda: mm.load(a, 4), b"one!"
    mm.mprotect(a, page, _NONE)
    yield "a read of a page without permissions", lambda: mm.load(a, 4), "SIGSEGV ACCERR"
    mm.mprotect(a, page, _READ_WRITE)
    yield "a write when it is permitted again", lambda: mm.store(a, b"more"), None
    yield "execution of a page that may not be executed", lambda: mm.touch(a, 1, "x"), "SIGSEGV ACCERR"
    mm.mmap(a + 3 * page, page, _READ_EXEC, _PRIVATE | _FIXED | _ANON)
    yield "execution of a page that may", lambda: mm.touch(a + 3 * page, 1, "x"), None
    yield "a read where nothing is mapped", lambda: mm.load(a + 40 * page, 1), "SIGSEGV MAPERR"
    yield "a write where nothing is mapped", lambda: mm.store(a + 40 * page, b"x"), "SIGSEGV MAPERR"
    child = mm.fork()
    yield "the child's read", lambda: child.load(a, 4, cpu=1), b"more"
    yield "the child's write (a copy)", lambda: child.store(a, b"kid!", cpu=1), None
    yield "the parent's read after it", lambda: mm.load(a, 4), b"more"
    yield "the parent's write", lambda: mm.store(a, b"old!"), None
    yield "the child's read after that", lambda: child.load(a, 4, cpu=1), b"kid!"
    child.exit()
    mm.madvise(a, page, _DONTNEED)
    yield "a read after MADV_DONTNEED", lambda: mm.load(a, 4), bytes(4)
    mm.munmap(a, page)
    yield "a read after munmap", lambda: mm.load(a, 4), "SIGSEGV MAPERR"
    yield "the same from another CPU", lambda: mm.load(a, 4, cpu=1), "SIGSEGV MAPERR"
    f = machine.file("basics", b"file" * (page // 4), size=2 * page)
    s, p = a + 100 * page, a + 200 * page
    mm.mmap(s, 2 * page, _READ_WRITE, _SHARED | _FIXED, file=f)
    mm.mmap(p, 2 * page, _READ_WRITE, _PRIVATE | _FIXED, file=f)
    yield "a read of a shared file", lambda: mm.load(s, 4), b"file"
    yield "a write to it", lambda: mm.store(s, b"FILE"), None
    yield "a read of it through a private mapping", lambda: mm.load(p, 4), b"FILE"
    yield "a write to the private mapping (a copy)", lambda: mm.store(p, b"mine"), None
    yield "a read of the file after it", lambda: mm.load(s, 4), b"FILE"
    f.truncate(page)
    yield "an access behind the end of the file", lambda: mm.load(s + page, 1), "SIGBUS"
    mm.exit()
    f.close()


def check_basics(subject: Subject) -> tuple[str, list[Failure]]:
    """Stops at the first access that ends otherwise: the ones after it build on it."""
    done = 0
    what = "making the machine"
    try:
        with subject.machine(cpus=2, frames=2048) as machine:
            for what, action, expected in _accesses(subject, machine):
                note(what)
                found = _outcome(action)
                if found != expected:
                    return f"{done} accesses as expected", [Failure(
                        f"{what}: {_words(found)}, expected {_words(expected)}")]
                done += 1
            note("Machine.validate()")
            machine.validate()
    except InvariantViolation as error:
        return f"{done} accesses as expected", [Failure(f"after {what}: {error}")]
    return f"{done} accesses, each ended as on Linux", []


def _words(outcome: object) -> str:
    return "success" if outcome is None else outcome if isinstance(outcome, str) else repr(outcome)
