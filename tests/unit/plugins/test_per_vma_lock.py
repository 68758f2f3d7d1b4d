# SPDX-License-Identifier: GPL-2.0-only
"""plugins/strategies/_per_vma_lock and _per_vma_lock_refcount: who gets the lock of a VMA, and what is counted."""
from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arch_under_test import PAGE, frames, make_arch
from fault_counts import counted

import pykmm
from pykmm import BusError, PluginError, SegmentationFault
from pykmm.plugin import get_plugin_manager
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.vma_lock_test import Reader, is_biased, lock_state
from pykmm_plugins.strategies import _per_vma_lock, _per_vma_lock_refcount
from pykmm_plugins.strategies._per_vma_lock import PerVMALock
from pykmm_plugins.strategies._per_vma_lock_refcount import PerVMALockRefcount

R, W = 1, 2
SHARED, PRIVATE, FIXED, ANON, GROWSDOWN = 1, 2, 0x10, 0x20, 0x100
BASE = 0x7000_0000_0000
NAMES = ["attempts", "vma_lock_success", "retried", "vma_lock_abort", "vma_lock_retry", "vma_lock_miss", "errors"]
SUCCESS = {"vma_lock_success": 1}
ABORT = {"retried": 1, "vma_lock_abort": 1}
RETRY = {"retried": 1, "vma_lock_retry": 1}
FORMS = [("per_vma_lock", PerVMALock, _per_vma_lock.OPTIONS),
         ("per_vma_lock-refcount", PerVMALockRefcount, _per_vma_lock_refcount.OPTIONS)]


def check_sums(m: Machine) -> None:
    c = m.counters
    assert c["attempts"] == c["vma_lock_success"] + c["retried"] + c["errors"]
    assert c["retried"] == sum(c[name] for name in NAMES[3:6]) == m.vmstat["fault_mmap_sem"]


@pytest.fixture(params=[PerVMALock, PerVMALockRefcount], ids=["rwsem", "refcount"])
def m(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(make_arch(), request.param(), cpus=2, memory=frames(64 << 20)) as machine:
        yield machine
        check_sums(machine)
        machine.validate()


@pytest.mark.parametrize(("name", "form", "options"), FORMS, ids=["rwsem", "refcount"])
def test_names_and_options(name: str, form: Any, options: dict[str, tuple[str, ...]]) -> None:
    assert form().counter_names == tuple(NAMES)
    assert form().name == name
    for option, (right, *wrong) in options.items():
        assert form(**{option: right}).name == f"{name}[{option}={right}]"
        assert [form(**{option: value}).name for value in wrong] == [f"{name}[{option}={value}]" for value in wrong]
        with pytest.raises(ValueError, match=f"{option} is {right} or"):
            form(**{option: "nonsense"})
    with pytest.raises(ValueError, match="no option 'nonsense'; known: munmap, new_vma"):
        form(nonsense="x")
    made = get_plugin_manager().strategies.make(f"{name}[new_vma=unlocked]")
    assert isinstance(made, form)


def test_faults_need_no_mmap_sem(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 8 * PAGE, R | W, PRIVATE | ANON | FIXED)
    assert counted(m, lambda: mm.load(a, 1)) == SUCCESS              # tables are made under the VMA's lock
    assert counted(m, lambda: mm.store(a, b"x")) == RETRY            # the anon_vma is not
    assert counted(m, lambda: mm.touch(a + PAGE, 7 * PAGE, "w")) == {"vma_lock_success": 7}
    child = mm.fork()
    assert counted(m, lambda: mm.store(a, b"y")) == SUCCESS          # copy on write
    assert child.load(a, 1) == b"x"
    child.exit()


def test_files_are_served(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"f" * (4 * PAGE))
    a = mm.mmap(BASE, 4 * PAGE, R | W, PRIVATE | FIXED, file=f)
    s = mm.mmap(BASE + 8 * PAGE, 4 * PAGE, R | W, SHARED | FIXED, file=f)
    assert counted(m, lambda: mm.store(s, b"y")) == SUCCESS
    assert counted(m, lambda: mm.load(a + PAGE, 1)) == SUCCESS
    assert counted(m, lambda: mm.store(a, b"x")) == RETRY
    assert counted(m, lambda: mm.store(a + PAGE, b"x")) == SUCCESS
    assert mm.load(a, 1) + mm.load(s, 1) == b"xy"


def test_bad_accesses(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"f")
    a = mm.mmap(BASE, 2 * PAGE, R, PRIVATE | FIXED, file=f)
    assert counted(m, lambda: mm.store(a, b"x"), SegmentationFault) == {"errors": 1}   # told under the lock
    assert counted(m, lambda: mm.load(a + PAGE, 1), BusError) == {"errors": 1}
    assert counted(m, lambda: mm.load(a - PAGE, 1), SegmentationFault) == ABORT
    assert counted(m, lambda: mm.load(a + 2 * PAGE, 1), SegmentationFault) == ABORT


def test_stack_growth_takes_mmap_sem(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED | GROWSDOWN)
    mm.store(a, b"x")
    assert counted(m, lambda: mm.store(a - PAGE, b"x")) == ABORT
    assert mm.vmas[0].start == a - PAGE
    assert counted(m, lambda: mm.store(a + PAGE, b"x")) == SUCCESS               # downgrading has unlocked the VMA


def test_write_locks_end_all_at_once(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(BASE, 4 * PAGE, R | W, PRIVATE | ANON | FIXED)
    b = mm.mmap(BASE + 8 * PAGE, PAGE, R, PRIVATE | ANON | FIXED)
    before, untouched, *_ = lock_state(mm, b)
    mm.mprotect(a, PAGE, R)
    now, left, refs, detached = lock_state(mm, a)
    right = lock_state(mm, a + PAGE)[1]
    assert now == before + 1
    assert left == right == before      # both halves of the split were locked by that writer, and no longer are
    assert lock_state(mm, b)[1] == untouched < before
    assert (refs, detached) in {(0, 0), (1 << 31, 0)}
    mm.mprotect(a, PAGE, R)                         # changes nothing: locks nothing
    assert lock_state(mm, a)[:2] == (now + 1, left)
    mm.madvise(a, 4 * PAGE, 4)                      # DONTNEED holds mmap_sem for reading: no write lock
    assert lock_state(mm, a)[:2] == (now + 1, left)


def test_fork_locks_every_vma_of_the_parent(m: Machine, mm: MmStruct) -> None:
    for i in range(3):
        mm.mmap(BASE + 2 * i * PAGE, PAGE, R | W, PRIVATE | ANON | FIXED)
    seq = lock_state(mm, BASE)[0]
    child = mm.fork()
    assert [lock_state(mm, BASE + 2 * i * PAGE)[1] for i in range(3)] == [seq] * 3
    assert lock_state(mm, BASE)[0] == seq + 1
    assert [lock_state(child, BASE + 2 * i * PAGE)[:2] for i in range(3)] == [(1, 0)] * 3
    child.exit()


@pytest.mark.parametrize(("form", "refcount"), [(PerVMALock, False), (PerVMALockRefcount, True)],
                         ids=["rwsem", "refcount"])
@pytest.mark.parametrize("uncounted", [False, True], ids=["counted", "uncounted"])
@pytest.mark.parametrize("change", ["munmap", "mprotect", "mremap", "fork", "mlock", "madvise"])
def test_writers_wait_for_a_reader_and_keep_later_ones_out(form: Any, refcount: bool, change: str,
                                                           uncounted: bool) -> None:
    strategy = form(readers="biased" if uncounted else "adaptive")
    with Machine(make_arch(), strategy, cpus=2, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.mmap(BASE + 8 * PAGE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"x")
        calls: dict[str, Callable[[], Any]] = {
            "munmap": lambda: mm.munmap(a, PAGE, cpu=1),
            "mprotect": lambda: mm.mprotect(a, PAGE, R, cpu=1),
            "mremap": lambda: mm.mremap(a, 2 * PAGE, 2 * PAGE, 3, BASE + 16 * PAGE, cpu=1),
            "fork": lambda: mm.fork(cpu=1).exit(),
            "mlock": lambda: mm.mlock(a, PAGE, cpu=1),
            "madvise": lambda: mm.madvise(a, PAGE, 10, cpu=1),
        }
        reader = Reader(mm, a, refcount, uncounted)
        thread = threading.Thread(target=calls[change])
        thread.start()
        while not reader.waited_for():
            assert thread.is_alive()
        reader.leave()
        thread.join()
        mm.touch(BASE + 8 * PAGE, 2 * PAGE, "w")
        check_sums(m)
        m.validate()
        mm.exit()


@pytest.mark.parametrize(("form", "refcount"), [(PerVMALock, False), (PerVMALockRefcount, True)],
                         ids=["rwsem", "refcount"])
def test_zapping_does_not_wait_for_readers(form: Any, refcount: bool) -> None:
    with Machine(make_arch(), form(), cpus=2, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"x")
        reader = Reader(mm, a, refcount)
        mm.madvise(a, 2 * PAGE, 4, cpu=1)
        reader.leave()
        assert mm.load(a, 1) == b"\0"
        mm.exit()


@pytest.mark.parametrize(("form", "refcount"), [(PerVMALock, False), (PerVMALockRefcount, True)],
                         ids=["rwsem", "refcount"])
@pytest.mark.parametrize("readers", ["adaptive", "count", "biased"])
def test_readers_that_meet_need_not_be_counted_until_a_writer_comes(form: Any, refcount: bool, readers: str) -> None:
    with Machine(make_arch(), form(readers=readers), cpus=2, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 8 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.load(a, 1)
        mm.load(a + PAGE, 1)
        assert is_biased(mm, a) == (readers == "biased")    # one after the other do not meet
        reader = Reader(mm, a, refcount, uncounted=readers == "biased")
        mm.load(a + 2 * PAGE, 1, cpu=1)
        reader.leave()
        assert is_biased(mm, a) == (readers != "count")
        assert counted(m, lambda: mm.load(a + 3 * PAGE, 1)) == SUCCESS
        mm.mprotect(a, 8 * PAGE, R)
        assert not is_biased(mm, a)
        check_sums(m)
        m.validate()
        mm.exit()


def test_type_stable_vmas_are_recycled_at_once() -> None:
    with Machine(make_arch(), PerVMALockRefcount(), cpus=1, memory=frames(64 << 20)) as m:
        mm = m.mm()
        for i in range(5000):
            a = mm.mmap(BASE + i * PAGE, PAGE, R | W, PRIVATE | ANON | FIXED)
            mm.store(a, b"x")
            assert lock_state(mm, a)[2] == 1 << 31
            mm.munmap(a, PAGE)
        m.validate()
        mm.exit()


def test_vmas_are_freed_after_a_grace_period() -> None:
    with Machine(make_arch(), PerVMALock(), cpus=1, memory=frames(64 << 20)) as m:
        mm = m.mm()
        for i in range(300):
            mm.store(mm.mmap(BASE + 2 * i * PAGE, PAGE, R | W, PRIVATE | ANON | FIXED), b"x")
        mm.munmap(BASE, 600 * PAGE)
        m.validate()
        assert counted(m, lambda: mm.load(BASE, 1), SegmentationFault) == ABORT
        mm.exit()


def test_other_strategies_know_nothing_of_it() -> None:
    with pykmm.Machine(strategy="spf", cpus=1, memory=frames("16M")) as m:
        mm = m.mm()
        a = mm.mmap(BASE, PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.mprotect(a, PAGE, R)
        assert lock_state(mm, a) == (0, 0, 0, 0)
        mm.exit()


@pytest.mark.parametrize(("form", "refcount"), [(PerVMALock, False), (PerVMALockRefcount, True)],
                         ids=["rwsem", "refcount"])
@pytest.mark.parametrize("uncounted", [False, True], ids=["counted", "uncounted"])
def test_a_vma_that_is_still_held_is_told_of(form: Any, refcount: bool, uncounted: bool) -> None:
    with Machine(make_arch(), form(readers="biased" if uncounted else "count"), memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(BASE, 2 * PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"x")
        reader = Reader(mm, a, refcount, uncounted)
        place = "cpu 0" if uncounted else f"address space 1, {BASE:#x}"
        with pytest.raises(PluginError, match=re.escape(f" has left a VMA held ({place}): the machine cannot be")):
            m.validate()
        reader.leave()
        m.validate()
        mm.exit()
