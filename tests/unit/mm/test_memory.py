# SPDX-License-Identifier: GPL-2.0-only
"""mm/memory.c: what each kind of fault leaves behind: contents, page tables, counts, rss."""
from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from arch_under_test import PAGE, ROOT, SHIFTS, TABLE, TASK_SIZE, frames, is_, make_arch

from pykmm import BusError, SegmentationFault
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_test import page_info, validate_contents
from pykmm_plugins.strategies._mmap_sem import MmapSem
from pykmm_plugins.strategies._per_vma_lock import PerVMALock
from pykmm_plugins.strategies._per_vma_lock_refcount import PerVMALockRefcount
from pykmm_plugins.strategies._spf import SPF
from pykmm_plugins.strategies._spf_2021 import SPF2021

R, W, X = 1, 2, 4
SHARED, PRIVATE, FIXED, ANON = 1, 2, 0x10, 0x20
POPULATE, NORESERVE = 0x8000, 0x4000
DONTNEED = 4
PG_ANON = 1 << 8
BASE = 0x7000_0000_0000


@pytest.fixture(params=[MmapSem, SPF, SPF2021, PerVMALock, PerVMALockRefcount],
                ids=["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
def m(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with two CPUs; leaving it checks that nothing leaked."""
    with Machine(make_arch(), request.param(), cpus=2, memory=frames(64 << 20),
                 fault_around=16 * PAGE) as machine:
        yield machine
        machine.validate()
        assert validate_contents(machine) is None


@pytest.fixture
def mm(m: Machine) -> MmStruct:
    return m.mm()


def changes(m: Machine, call: Any) -> dict[str, int]:
    """What `call()` adds to vmstat, without what stays the same."""
    before = m.vmstat
    call()
    after = m.vmstat
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def rss(mm: MmStruct) -> tuple[int, int]:
    stats = mm.stats
    return stats["anon_rss"], stats["file_rss"]


def test_anonymous_write(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 2 * PAGE, R | W, PRIVATE | ANON)
    delta = changes(m, lambda: mm.store(a + 5, b"hello"))
    assert delta["pgfault"] == 1
    assert delta["fault_anon_write"] == 1
    assert mm.load(a, 11) == b"\0\0\0\0\0hello\0"
    _pfn, refs, maps, flags, pte = page_info(mm, a)
    assert (refs, maps) == (1, 1)
    assert flags & PG_ANON
    assert all(is_(what, pte) for what in ("present", "write", "young", "dirty"))
    assert page_info(mm, a + PAGE) is None
    assert rss(mm) == (1, 0)


def test_zero_page_then_write(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 2 * PAGE, R | W, PRIVATE | ANON)
    delta = changes(m, lambda: mm.load(a, 2 * PAGE))
    assert delta["fault_anon_zero"] == 2
    assert rss(mm) == (0, 0)
    zero = page_info(mm, a)
    assert zero[0] == page_info(mm, a + PAGE)[0]
    assert is_("special", zero[4])
    assert not is_("write", zero[4])
    delta = changes(m, lambda: mm.store(a, b"x"))
    assert delta["fault_wp_copy"] == 1
    assert mm.load(a, 2) == b"x\0"
    assert mm.load(a + PAGE, 1) == b"\0"
    assert page_info(mm, a)[0] != zero[0]
    assert page_info(mm, a + PAGE)[0] == zero[0]
    assert rss(mm) == (1, 0)


def test_dontneed_gives_frames_back(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 64 * PAGE, R | W, PRIVATE | ANON)
    for i in range(64):
        mm.store(a + i * PAGE, bytes([i + 1]))
    assert rss(mm) == (64, 0)
    used = m.vmstat["nr_used_frames"]
    mm.madvise(a + 8 * PAGE, 16 * PAGE, DONTNEED)
    assert m.vmstat["nr_used_frames"] == used - 16
    assert rss(mm) == (48, 0)
    assert mm.load(a + 7 * PAGE, 1) == b"\x08"
    assert mm.load(a + 8 * PAGE, 1) == b"\0"
    assert mm.load(a + 24 * PAGE, 1) == bytes([25])
    mm.munmap(a, 64 * PAGE)
    assert rss(mm) == (0, 0)


def test_more_pages_than_one_gather_holds(m: Machine, mm: MmStruct) -> None:
    n = 3000
    a = mm.mmap(0, n * PAGE, R | W, PRIVATE | ANON)
    used = m.vmstat["nr_used_frames"]
    mm.touch(a, n * PAGE, "w")
    assert rss(mm) == (n, 0)
    mm.munmap(a, n * PAGE)
    assert rss(mm) == (0, 0)
    m.validate()                # waits until the page tables are gone
    assert m.vmstat["nr_used_frames"] <= used
    assert mm.stats["nr_ptes"] == ROOT


@pytest.mark.parametrize("gap", [1 << shift for shift in SHIFTS])
def test_page_tables_stay_for_neighbours_only(mm: MmStruct, gap: int) -> None:
    """Unmapping frees exactly the tables that no neighbour needs, at every level."""
    below, middle, above = BASE, BASE + gap, BASE + 2 * gap
    expected = []
    for a in (below, middle, above):
        expected.append(mm.stats["nr_ptes"])
        mm.mmap(a, PAGE, R | W, PRIVATE | ANON | FIXED)
        mm.store(a, b"\1")
    tables = mm.stats["nr_ptes"]
    # the middle one takes what it needed alone
    mm.munmap(middle, PAGE)
    assert mm.stats["nr_ptes"] == tables - SHIFTS.index(gap.bit_length() - 1)
    assert mm.load(below, 1) == mm.load(above, 1) == b"\1"
    mm.munmap(below, PAGE)
    mm.munmap(above, PAGE)
    assert mm.stats["nr_ptes"] == expected[0] == ROOT


def test_unaligned_hole_keeps_the_table(mm: MmStruct) -> None:
    a = mm.mmap(BASE, 2 * TABLE, R | W, PRIVATE | ANON | FIXED)
    mm.touch(a, 2 * TABLE, "w")
    tables = mm.stats["nr_ptes"]
    mm.munmap(a + TABLE - 12 * PAGE, 24 * PAGE)  # across the border of the two tables
    assert mm.stats["nr_ptes"] == tables
    mm.munmap(a + TABLE, TABLE)
    assert mm.stats["nr_ptes"] == tables - 1
    assert mm.stats["anon_rss"] == TABLE // PAGE - 12


def test_last_page_of_user_space(mm: MmStruct) -> None:
    a = TASK_SIZE - PAGE
    mm.mmap(a, PAGE, R | W, PRIVATE | ANON | FIXED)
    mm.store(a, b"top")
    assert mm.load(a, 3) == b"top"
    mm.munmap(a, PAGE)
    assert mm.stats["nr_ptes"] == ROOT


def test_access_errors(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 4 * PAGE, R, PRIVATE | ANON)
    mm.mprotect(a + PAGE, PAGE, 0)
    with pytest.raises(SegmentationFault) as excinfo:
        mm.store(a, b"x")
    assert (excinfo.value.address, excinfo.value.code) == (a, "ACCERR")
    with pytest.raises(SegmentationFault) as excinfo:
        mm.load(a + PAGE, 1)
    assert (excinfo.value.address, excinfo.value.code) == (a + PAGE, "ACCERR")
    with pytest.raises(SegmentationFault) as excinfo:
        mm.load(a + 4 * PAGE + 7, 1)
    assert (excinfo.value.address, excinfo.value.code) == (a + 4 * PAGE + 7, "MAPERR")
    with pytest.raises(SegmentationFault) as excinfo:
        mm.touch(a, 1, "x")
    assert excinfo.value.code == "ACCERR"
    assert m.vmstat["fault_sigsegv"] == 4
    assert rss(mm) == (0, 0)


def test_present_page_behind_prot_none(mm: MmStruct) -> None:
    a = mm.mmap(0, PAGE, R | W, PRIVATE | ANON)
    mm.store(a, b"kept")
    mm.mprotect(a, PAGE, 0)
    with pytest.raises(SegmentationFault):
        mm.load(a, 4)
    mm.mprotect(a, PAGE, R)
    assert mm.load(a, 4) == b"kept"
    with pytest.raises(SegmentationFault):
        mm.store(a, b"x")
    mm.mprotect(a, PAGE, R | W)
    mm.store(a, b"K")
    assert mm.load(a, 4) == b"Kept"
    assert rss(mm) == (1, 0)


def test_write_protected_page_is_reused(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, PAGE, R | W, PRIVATE | ANON)
    mm.store(a, b"A")
    pfn = page_info(mm, a)[0]
    child = mm.fork()
    child.exit()
    delta = changes(m, lambda: mm.store(a, b"B"))
    assert delta["fault_wp_reuse"] == 1
    assert "fault_wp_copy" not in delta
    assert page_info(mm, a)[0] == pfn


# ---- files ----

def test_private_file(m: Machine, mm: MmStruct) -> None:
    f = m.file("data", data=b"".join(bytes([i]) * PAGE for i in range(1, 5)))
    a = mm.mmap(0, 4 * PAGE, R | W, PRIVATE, file=f)
    assert mm.load(a, 1) == b"\1"
    cached = page_info(mm, a)
    assert cached[1:3] == (2, 1)  # the cache's reference and the mapping's
    assert not cached[3] & PG_ANON
    assert not is_("write", cached[4])
    delta = changes(m, lambda: mm.store(a, b"X"))  # mapped read-only: COW of the cached page
    assert delta["fault_wp_copy"] == 1
    assert mm.load(a, 3) == b"X\1\1"
    assert page_info(mm, a)[3] & PG_ANON
    delta = changes(m, lambda: mm.store(a + PAGE + 1, b"Y"))  # not mapped yet: copied at once
    assert delta["fault_file_cow"] == 1
    assert mm.load(a + PAGE, 3) == b"\2Y\2"
    assert rss(mm) == (2, 0)
    other = m.mm()
    b = other.mmap(0, 4 * PAGE, R, PRIVATE, file=f)
    assert other.load(b, 3) == b"\1\1\1"
    assert other.load(b + PAGE, 3) == b"\2\2\2"
    assert page_info(other, b)[0] == cached[0]


def test_shared_file(m: Machine, mm: MmStruct) -> None:
    f = m.file("shared", size=2 * PAGE)
    other = m.mm()
    a = mm.mmap(0, 2 * PAGE, R | W, SHARED, file=f)
    b = other.mmap(0, 2 * PAGE, R | W, SHARED, file=f)
    delta = changes(m, lambda: mm.store(a, b"seen"))
    assert delta["fault_file_shared"] == 1
    assert other.load(b, 4) == b"seen"
    assert page_info(mm, a)[1:3] == (3, 2)
    mm.mprotect(a, PAGE, R)
    mm.mprotect(a, PAGE, R | W)
    mm.store(a, b"S")
    assert other.load(b, 4) == b"Seen"
    assert rss(mm) == (0, 1)
    child = mm.fork()
    child.store(a, b"child")
    assert mm.load(a, 5) == b"child"


def test_fault_around_maps_what_is_cached(m: Machine, mm: MmStruct) -> None:
    f = m.file("lib", size=64 * PAGE)
    a = mm.mmap(BASE, 64 * PAGE, R, PRIVATE | FIXED, file=f)
    for i in range(16, 24):
        mm.load(a + i * PAGE, 1)
    other = m.mm()
    b = other.mmap(BASE + 20 * PAGE, 64 * PAGE - 20 * PAGE, R, PRIVATE | FIXED, file=f, offset=20 * PAGE)
    delta = changes(m, lambda: other.load(b, 1))
    # the aligned window is pages 16-31, the mapping starts at 20, pages 20-23 are cached
    assert delta["fault_around_pages"] == 3
    assert rss(other) == (0, 4)
    assert [bool(word >> 63) for word in other.pagemap(b, 6)] == [True] * 4 + [False] * 2
    assert changes(m, lambda: other.load(b + 3 * PAGE, 1)).get("pgfault", 0) == 0


def test_fault_around_off(m: Machine) -> None:
    with Machine(make_arch(), type(m.strategy_object)(), cpus=1, memory=frames(16 << 20), fault_around=PAGE) as machine:
        f = machine.file("lib", size=16 * PAGE)
        first, second = machine.mm(), machine.mm()
        a = first.mmap(0, 16 * PAGE, R, PRIVATE, file=f)
        first.touch(a, 16 * PAGE, "r")
        b = second.mmap(0, 16 * PAGE, R, PRIVATE, file=f)
        second.load(b, 1)
        assert second.stats["file_rss"] == 1
        assert machine.vmstat["fault_around_pages"] == 0


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
@pytest.mark.parametrize("access", ["r", "w"])
def test_beyond_the_end_of_the_file(m: Machine, mm: MmStruct, flags: int, access: str) -> None:
    f = m.file("short", data=b"abc")
    a = mm.mmap(0, 3 * PAGE, R | W, flags, file=f)
    assert mm.load(a, 5) == b"abc\0\0"
    with pytest.raises(BusError) as excinfo:
        mm.touch(a + PAGE, 1, access)
    assert excinfo.value.address == a + PAGE
    assert m.vmstat["fault_sigbus"] == 1
    mm.store(a + PAGE - 1, b"!")
    assert mm.load(a, 3) == b"abc"


def test_populate(m: Machine, mm: MmStruct) -> None:
    delta = changes(m, lambda: mm.mmap(BASE, 8 * PAGE, R | W, PRIVATE | ANON | FIXED | POPULATE))
    assert delta["fault_anon_write"] == 8
    assert rss(mm) == (8, 0)
    assert "pgfault" not in changes(m, lambda: (mm.store(BASE, b"x"), mm.load(BASE + 7 * PAGE, 1)))


def test_rss_is_folded_for_every_cpu(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 300 * PAGE, R | W, PRIVATE | ANON)
    for i in range(300):
        mm.store(a + i * PAGE, b"x", cpu=i & 1)
    assert rss(mm) == (300, 0)
    mm.munmap(a, 200 * PAGE, cpu=1)
    assert rss(mm) == (100, 0)


# ---- out of memory ----

def scenario(m: Machine) -> None:
    """A bit of everything; raises where memory runs out."""
    f = m.file("f", data=b"f" * (3 * PAGE))
    mm = m.mm()
    a = mm.mmap(BASE, 8 * PAGE, R | W, PRIVATE | ANON | FIXED)
    b = mm.mmap(BASE + (1 << 30), 3 * PAGE, R | W, PRIVATE | FIXED, file=f)
    s = mm.mmap(BASE + (1 << 39), 3 * PAGE, R | W, SHARED | FIXED, file=f)
    for i in range(8):
        mm.store(a + i * PAGE, b"a")
    mm.load(b, PAGE)
    mm.store(b, b"b")
    mm.store(b + PAGE, b"b")
    mm.store(s + 2 * PAGE, b"s")
    child = mm.fork()
    child.store(a, b"c")
    mm.store(a + PAGE, b"p")
    assert mm.load(a, 1) == b"a"
    assert child.load(a, 1) == b"c"
    child.madvise(a, 4 * PAGE, DONTNEED)
    grandchild = child.fork()
    grandchild.store(a, b"g")
    child.exit()
    mm.mprotect(a + 2 * PAGE, PAGE, R)
    mm.munmap(a + 3 * PAGE, PAGE)


def errno_of(call: Any, m: Machine) -> int:
    try:
        call(m)
    except (MemoryError, BusError):
        return errno.ENOMEM
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("strategy", [MmapSem, SPF, SPF2021])
def test_out_of_memory_everywhere(strategy: Any) -> None:
    """Every size of a small machine: each allocation fails once; nothing crashes, and nothing leaks."""
    failed = succeeded = 0
    for size in range(64, 400):
        with Machine(make_arch(), strategy(), cpus=1, memory=size * PAGE) as m:
            # leave a different number of frames to the scenario than the smallest machine has
            hog = m.mm()
            h = hog.mmap(0, 48 * PAGE, R | W, PRIVATE | ANON)
            hog.touch(h, (49 - ROOT if size < 112 else 1) * PAGE, "w")
            outcome = errno_of(scenario, m)
            assert outcome in (0, errno.ENOMEM)
            failed += outcome != 0
            succeeded += outcome == 0
            m.validate()
            assert validate_contents(m) is None
        if succeeded > 3:
            break
    assert failed > 10
    assert succeeded > 3
