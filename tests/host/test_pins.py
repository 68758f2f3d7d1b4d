# SPDX-License-Identifier: GPL-2.0-only
"""Pins against the running kernel: what whoever holds the pages finds there, and which pins are refused.

On the host a pin is a vmsplice() into a pipe: get_user_pages_fast() and a reference. What differs from FOLL_PIN (a fork
copies what is pinned, and only that) is left out.
"""
from __future__ import annotations

from collections.abc import Callable

import pytest

import pykmm
from pykmm.tape import Address, OpStream, Tape
from pykmm_ext.engine import host

pytestmark = pytest.mark.skipif(not host.supported(), reason="the host engine makes system calls of x86-64 Linux")
PAGE = 0x1000
STRATEGIES = ("mmap_sem", "lockless_gup", "lockless_gup[monitor=percpu,serialize=rcu]")

Change = Callable[[OpStream, Address], object]
#: what happens between pin and unpin of one page at `a` that holds "old", and what the holder reads then
CHANGES: dict[str, tuple[Change, bytes]] = {
    "nothing": (lambda s, a: s.nop(), b"old"),
    "store": (lambda s, a: s.store(a, b"new"), b"new"),
    "munmap": (lambda s, a: s.munmap(a, PAGE), b"old"),
    "dontneed": (lambda s, a: (s.madvise(a, PAGE, "DONTNEED"), s.store(a, b"new")), b"old"),
    "mprotect": (lambda s, a: (s.mprotect(a, PAGE, "r"), s.mprotect(a, PAGE, "rw"), s.store(a, b"new")), b"new"),
    "mremap": (lambda s, a: (s.mremap(a, PAGE, PAGE, "MAYMOVE|FIXED", 0x50000000),
                             s.store(0x50000000, b"new", expect_errno=0)), b"new"),
    "replaced": (lambda s, a: (s.mmap(PAGE, fixed=a), s.store(a, b"new")), b"old"),
}


def run_both(tape: Tape, strategy: str) -> tuple[pykmm.RunResult, pykmm.RunResult]:
    with pykmm.Machine(strategy=strategy, cpus=tape.program().nstreams, memory="16M") as m:
        ours = m.run(tape)
        m.validate()
        return ours, m.run(tape, "host")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_the_holder_finds(name: str, write: bool, strategy: str) -> None:
    change, wanted = CHANGES[name]
    t = Tape()
    a = t.setup.mmap(2 * PAGE, fixed=0x40000000)
    t.setup.store(a, b"old")
    x = t.thread()
    x.pin(a, PAGE, write=write, expect_errno=0)
    change(x, a)
    x.unpin(a, PAGE, expect=wanted, expect_errno=0)
    for result in run_both(t, strategy):
        assert not result.mismatches
        assert not result.mismatch_count


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_file(strategy: str) -> None:
    t = Tape()
    t.file("f", data=b"file" + bytes(PAGE))
    shared = t.setup.mmap(PAGE, shared=True, file="f")
    private = t.setup.mmap(PAGE, file="f")
    x = t.thread()
    x.pin(private, PAGE)                        # read: the file's own page
    x.store(shared, b"new!")
    x.unpin(private, PAGE, expect=b"new!")
    x.pin(private, PAGE, write=True)            # write: a copy
    x.store(shared, b"NEW!")
    x.unpin(private, PAGE, expect=b"new!")
    for result in run_both(t, strategy):
        assert not result.mismatches


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_which_pins_are_refused(strategy: str) -> None:
    t = Tape()
    x = t.thread()
    a = x.mmap(4 * PAGE, fixed=0x40000000)
    x.munmap(a + 2 * PAGE, PAGE)
    x.pin(a, 4 * PAGE)                          # a hole
    x.pin(a + 2 * PAGE, 1)
    x.pin(a + 0x800, PAGE)
    x.mprotect(a, PAGE, "r")
    x.pin(a, PAGE, write=True)
    x.pin(a, PAGE)
    x.mprotect(a, PAGE, 0)
    x.pin(a + 1, PAGE - 1)
    x.unpin(a + 1, PAGE - 1)                    # of a pin that has failed
    x.pin(a + PAGE, 0)
    x.unpin(a + PAGE, 0)
    ours, theirs = run_both(t, strategy)
    assert ours.errnos.tolist() == theirs.errnos.tolist()
    assert 14 in ours.errnos


def test_what_the_host_cannot_do() -> None:
    t = Tape()
    x = t.thread()
    a = x.mmap(4 << 20)
    x.pin(a, PAGE, write=True)
    x.unpin(a, PAGE, write=b"x")
    with pytest.raises(host.HostEngineError, match="no device writes"):
        host.run(t.program())
    t = Tape()
    x = t.thread()
    x.pin(x.mmap(4 << 20), 4 << 20)
    with pytest.raises(host.HostEngineError, match="a pipe takes"):
        host.run(t.program())
    t = Tape()
    a = t.setup.mmap(PAGE)
    t.setup.pin(a, PAGE)
    t.setup.fork().unpin(a, PAGE)
    with pytest.raises(host.HostEngineError, match="own address space"):
        host.run(t.program())
