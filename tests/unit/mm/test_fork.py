# SPDX-License-Identifier: GPL-2.0-only
"""kernel/fork.c: what a child has, what it shares, and that neither sees the other's writes."""
from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from arch_under_test import PAGE, frames, is_, make_arch

from pykmm import SegmentationFault
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_test import page_info, section, validate_contents
from pykmm_plugins.strategies._mmap_sem import MmapSem
from pykmm_plugins.strategies._per_vma_lock import PerVMALock
from pykmm_plugins.strategies._per_vma_lock_refcount import PerVMALockRefcount
from pykmm_plugins.strategies._spf import SPF
from pykmm_plugins.strategies._spf_2021 import SPF2021

R, W = 1, 2
PRIVATE, ANON = 2, 0x20
DONTFORK, DOFORK, WIPEONFORK, DONTNEED = 10, 11, 18, 4


@pytest.fixture(params=[MmapSem, SPF, SPF2021, PerVMALock, PerVMALockRefcount],
                ids=["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
def m(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(make_arch(), request.param(), cpus=2, memory=frames(64 << 20)) as machine:
        yield machine
        machine.validate()
        assert validate_contents(machine) is None


@pytest.fixture
def mm(m: Machine) -> MmStruct:
    return m.mm()


def test_copy_on_write_both_ways(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 3 * PAGE, R | W, PRIVATE | ANON)
    for i in range(3):
        mm.store(a + i * PAGE, b"parent")
    frames = m.vmstat["nr_used_frames"]
    child = mm.fork()
    assert m.vmstat["nr_used_frames"] == frames + child.stats["nr_ptes"]
    assert page_info(mm, a)[1:3] == (2, 2)
    assert not is_("write", page_info(mm, a)[4])
    assert page_info(child, a)[0] == page_info(mm, a)[0]
    child.store(a, b"child ")
    mm.store(a + PAGE, b"PARENT")
    assert mm.load(a, 6) == b"parent"
    assert child.load(a, 6) == b"child "
    assert mm.load(a + PAGE, 6) == b"PARENT"
    assert child.load(a + PAGE, 6) == b"parent"
    assert page_info(mm, a)[1:3] == (1, 1)
    assert page_info(mm, a + 2 * PAGE)[1:3] == (2, 2)
    assert mm.stats["anon_rss"] == child.stats["anon_rss"] == 3
    child.exit()
    m.validate()                # waits until its page tables are gone
    assert page_info(mm, a + 2 * PAGE)[1:3] == (1, 1)
    assert m.vmstat["nr_used_frames"] == frames


def test_stale_translations_of_the_parent_are_flushed(mm: MmStruct) -> None:
    a = mm.mmap(0, PAGE, R | W, PRIVATE | ANON)
    mm.store(a, b"1", cpu=0)
    mm.store(a, b"1", cpu=1)  # both CPUs have a writable translation
    child = mm.fork(cpu=0)
    mm.store(a, b"2", cpu=1)
    assert child.load(a, 1, cpu=0) == b"1"
    assert mm.load(a, 1, cpu=0) == b"2"


def test_madvise_fork_flags(mm: MmStruct) -> None:
    a = mm.mmap(0, 3 * PAGE, R | W, PRIVATE | ANON)
    for i in range(3):
        mm.store(a + i * PAGE, b"x")
    mm.madvise(a, PAGE, DONTFORK)
    mm.madvise(a + PAGE, PAGE, WIPEONFORK)
    child = mm.fork()
    with pytest.raises(SegmentationFault):
        child.load(a, 1)
    assert child.load(a + PAGE, 1) == b"\0"
    assert child.load(a + 2 * PAGE, 1) == b"x"
    assert child.stats["total_vm"] == 2
    assert child.stats["map_count"] == len(child.vmas) == 2
    grandchild = child.fork()  # the flag is inherited
    child.store(a + PAGE, b"y")
    assert child.fork().load(a + PAGE, 1) == b"\0"
    assert grandchild.load(a + PAGE, 1) == b"\0"


def test_layout_is_inherited(m: Machine, mm: MmStruct) -> None:
    f = m.file("lib", data=b"text" * 2048)
    mm.mmap(0, 2 * PAGE, R, PRIVATE, file=f)
    a = mm.mmap(0, 2 * PAGE, R | W, PRIVATE, file=f)
    mm.mmap(0, PAGE, 0, PRIVATE | ANON)
    mm.store(a, b"TEXT")
    mm.mlock(a, PAGE)
    child = mm.fork()
    assert [(v.start, v.end, v.prot, v.offset, v.name) for v in child.vmas] == [
        (v.start, v.end, v.prot, v.offset, v.name) for v in mm.vmas]
    assert mm.stats["locked_vm"] == 1
    assert child.stats["locked_vm"] == 0  # locks are not inherited
    assert child.load(a, 8) == b"TEXTtext"
    assert child.mmap(0, PAGE, R, PRIVATE | ANON) == mm.mmap(0, PAGE, R, PRIVATE | ANON)


def test_forks_of_forks_against_a_model(m: Machine) -> None:
    """Random forks, writes and drops: each address space reads as a plain copy would."""
    rng = random.Random(5)
    root = m.mm()
    a = root.mmap(0, 16 * PAGE, R | W, PRIVATE | ANON)
    family: list[tuple[MmStruct, list[int]]] = [(root, [0] * 16)]
    for _ in range(1500):
        mm, model = rng.choice(family)
        kind = rng.random()
        cpu = rng.randrange(2)
        if kind < 0.05 and len(family) < 12:
            family.append((mm.fork(cpu=cpu), list(model)))
        elif kind < 0.08 and len(family) > 1:
            family = [(x, y) for x, y in family if x is not mm]
            mm.exit()
        elif kind < 0.12:
            i = rng.randrange(16)
            mm.madvise(a + i * PAGE, PAGE, DONTNEED, cpu=cpu)
            model[i] = 0
        elif kind < 0.55:
            i, value = rng.randrange(16), rng.randrange(256)
            mm.store(a + i * PAGE, bytes([value]), cpu=cpu)
            model[i] = value
        else:
            i = rng.randrange(16)
            assert mm.load(a + i * PAGE, 1, cpu=cpu) == bytes([model[i]])
    for mm, model in family:
        assert [mm.load(a + i * PAGE, 1)[0] for i in range(16)] == model


def test_speculation_is_kept_out_while_the_parent_is_copied() -> None:
    """The VMAs whose pages become shared go through a write section; the others do not."""
    with Machine(make_arch(), SPF(), cpus=1, memory=frames(64 << 20)) as m:
        mm = m.mm()
        a = mm.mmap(0, PAGE, R | W, PRIVATE | ANON)
        b = mm.mmap(0, PAGE, R, PRIVATE | ANON)
        mm.store(a, b"x")
        before = section(mm, a), section(mm, b)
        mm.fork()
        after = section(mm, a), section(mm, b)
        assert after[0] != before[0]
        assert after[1] == before[1]
        attempts = m.counters["speculative"]
        mm.store(a, b"y")  # nobody was left inside
        assert m.counters["speculative"] == attempts + 1
