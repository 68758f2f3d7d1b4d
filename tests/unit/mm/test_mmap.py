# SPDX-License-Identifier: GPL-2.0-only
"""mm/mmap.c and mm/vma.c: addresses, merging and splitting, errno, brk, stacks; against a model and against Linux."""
from __future__ import annotations

import ctypes
import errno
import platform
import random
import re
from typing import Any

import pytest
from arch_under_test import ARCH, MAP_WINDOW, TABLE, TASK_SIZE, frames
from hypothesis import given, settings
from hypothesis import strategies as st
from vma_helpers import BASE, FIXED, NONE, PAGE, PRIV, RW, SHARED, R, fails, fixed, layout

import pykmm
from pykmm_ext.mm import task_mmu, vma_test

NOREPLACE, GROWSDOWN, NORESERVE, POPULATE = 0x100000, 0x100, 0x4000, 0x8000
HUGE = TABLE
GAP = 256 * PAGE


def test_top_down(mm: Any) -> None:
    a, b = mm.mmap(0, PAGE), mm.mmap(0, 3 * PAGE, R)
    assert b == a - 3 * PAGE
    mm.munmap(a, PAGE)
    assert mm.mmap(0, PAGE, R) == a, "the highest gap that is large enough"
    assert mm.mmap(0, 2 * PAGE, NONE) == b - 2 * PAGE


def test_hint(mm: Any) -> None:
    assert mm.mmap(BASE + 5, PAGE) == BASE, "rounded down"
    assert mm.mmap(BASE, PAGE) != BASE, "taken: somewhere else"
    if PAGE < 0x10000:
        assert mm.mmap(PAGE + 5, PAGE) == 0x10000, "raised to mmap_min_addr"
    assert mm.mmap(PAGE, PAGE, RW, PRIV | FIXED) == PAGE, "a privileged user may, with MAP_FIXED"
    assert 0x40000000 <= mm.mmap(0, PAGE, RW, PRIV | 0x40) < 0x80000000, "MAP_32BIT"


def test_window(mm: Any) -> None:
    """DEFAULT_MAP_WINDOW: what lies above it is for who asks for it."""
    assert mm.mmap(0, PAGE) < MAP_WINDOW
    assert mm.mmap(MAP_WINDOW, 4 * PAGE, R) < MAP_WINDOW - 4 * PAGE, "not a hint above it"
    across = mm.mmap(MAP_WINDOW - PAGE, 3 * PAGE)
    assert across + 3 * PAGE <= MAP_WINDOW, "not across it"
    if TASK_SIZE > MAP_WINDOW:
        above = mm.mmap(2 * MAP_WINDOW, PAGE, R)
        assert above == 2 * MAP_WINDOW
        mm.store(mm.mmap(TASK_SIZE - PAGE, PAGE), b"x")
        assert MAP_WINDOW < mm.mmap(2 * MAP_WINDOW, PAGE) < TASK_SIZE - PAGE, "taken: as high as there is room"
        assert mm.mmap(0, PAGE, NONE) < MAP_WINDOW
        fails(errno.ENOMEM, mm.mmap, 0, MAP_WINDOW + PAGE)
        assert mm.mmap(MAP_WINDOW - PAGE, 2 * PAGE, RW, PRIV | FIXED) == MAP_WINDOW - PAGE, "MAP_FIXED goes anywhere"


def test_huge_page_alignment(mm: Any) -> None:
    mm.mmap(0, 2 * PAGE)
    assert mm.mmap(0, HUGE, RW) % HUGE == 0
    assert mm.mmap(0, HUGE + PAGE, R) % HUGE != 0, "no multiple of a huge page"
    shared = mm.mmap(0, HUGE, RW, SHARED)
    assert shared % HUGE != 0
    big = mm.machine.file("/lib/big", size=3 * HUGE)
    at = mm.mmap(0, 2 * HUGE, R, 2, file=big, offset=3 * PAGE)
    assert (at - 3 * PAGE) % HUGE == 0, "address and offset agree modulo a huge page"
    small = mm.machine.file("/lib/small", size=PAGE)
    low = min(v.start for v in mm.vmas)
    assert mm.mmap(0, HUGE - PAGE, R, 2, file=small) < low


@pytest.mark.parametrize(("args", "kw", "number"), [
    ((0, 0), {}, errno.EINVAL),
    ((BASE + 1, PAGE, RW, PRIV | FIXED), {}, errno.EINVAL),
    ((0, PAGE, RW, 0x20), {}, errno.EINVAL),
    ((0, PAGE, RW, 0x23), {}, errno.EINVAL),
    ((0, PAGE, RW, SHARED | GROWSDOWN), {}, errno.EINVAL),
    ((0, PAGE, RW, PRIV | 0x40000), {}, errno.EINVAL),
    ((0, PAGE, RW, PRIV), {"offset": 7}, errno.EINVAL),
    ((0, PAGE, RW, 2), {}, errno.EBADF),
    ((0, TASK_SIZE + PAGE), {}, errno.ENOMEM),
    ((0, 2**64 - 1), {}, errno.ENOMEM),
    ((TASK_SIZE, PAGE, RW, PRIV | FIXED), {}, errno.ENOMEM),
])
def test_mmap_errno(mm: Any, args: tuple[int, ...], kw: dict[str, int], number: int) -> None:
    fails(number, mm.mmap, *args, **kw)
    assert layout(mm) == []


def test_offset_overflow(mm: Any) -> None:
    f = mm.machine.file("/f", size=PAGE)
    fails(errno.EOVERFLOW, mm.mmap, 0, PAGE, R, 2, file=f, offset=2**63)
    fails(errno.EOPNOTSUPP, mm.mmap, BASE, PAGE, R, 3 | FIXED | NOREPLACE, file=f)


def test_noreplace(mm: Any) -> None:
    fixed(mm, 0, 2)
    fails(errno.EEXIST, mm.mmap, BASE + PAGE, 2 * PAGE, RW, PRIV | NOREPLACE)
    assert mm.mmap(BASE + 2 * PAGE, PAGE, RW, PRIV | NOREPLACE) == BASE + 2 * PAGE
    assert layout(mm) == [(0, 3, "rw-p")]


def test_max_map_count(mm: Any) -> None:
    vma_test.set_max_map_count(mm, 3)
    for page in (0, 4, 8):
        fixed(mm, page, 3)
    fails(errno.ENOMEM, mm.munmap, BASE + PAGE, PAGE)
    fails(errno.ENOMEM, mm.mprotect, BASE + PAGE, PAGE, R)
    mm.munmap(BASE + PAGE, 2 * PAGE)
    fixed(mm, 12, 1)
    fails(errno.ENOMEM, fixed, mm, 16, 1)
    vma_test.set_max_map_count(mm, 65530)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)])
def test_new_mappings_merge(mm: Any, order: tuple[int, ...]) -> None:
    for page in order:
        fixed(mm, page, 1)
    assert layout(mm) == [(0, 3, "rw-p")]
    assert vma_test.counters(mm)["map_count"] == 1


@pytest.mark.parametrize(("prot", "flags"), [(R, PRIV), (RW, PRIV | NORESERVE), (RW, SHARED), (RW, PRIV | 0x2000)])
def test_unlike_mappings_stay_apart(mm: Any, prot: int, flags: int) -> None:
    fixed(mm, 0, 1)
    fixed(mm, 1, 1, prot, flags)
    assert [x[:2] for x in layout(mm)] == [(0, 1), (1, 2)]


def test_files_merge_by_offset(mm: Any) -> None:
    f, g = mm.machine.file("/f", size=16 * PAGE), mm.machine.file("/g", size=16 * PAGE)
    for page, file, offset in ((0, f, 4), (1, f, 5), (2, f, 5), (3, g, 6)):
        mm.mmap(BASE + page * PAGE, PAGE, R, 2 | FIXED, file=file, offset=offset * PAGE)
    assert [x[:2] for x in layout(mm)] == [(0, 2), (2, 3), (3, 4)]
    assert [v.offset // PAGE for v in mm.vmas] == [4, 5, 6]


def test_shared_anonymous_has_its_own_object(mm: Any) -> None:
    fixed(mm, 0, 1, RW, SHARED)
    fixed(mm, 1, 1, RW, SHARED)
    assert len(layout(mm)) == 2
    assert all(line.endswith("/dev/zero (deleted)") for line in task_mmu.maps(mm).splitlines())
    mm.store(BASE, b"x")
    assert mm.load(BASE + PAGE, 1) == b"\0"


def test_munmap(mm: Any) -> None:
    fixed(mm, 0, 8)
    mm.munmap(BASE + 2 * PAGE, PAGE + 1)
    assert layout(mm) == [(0, 2, "rw-p"), (4, 8, "rw-p")]
    mm.munmap(BASE + 20 * PAGE, PAGE)
    for addr, length in ((BASE + 1, PAGE), (BASE, 0), (0, 2 * TASK_SIZE), (2 * TASK_SIZE, PAGE)):
        fails(errno.EINVAL, mm.munmap, addr, length)
    mm.munmap(BASE + PAGE, 5 * PAGE)
    assert layout(mm) == [(0, 1, "rw-p"), (6, 8, "rw-p")]
    assert vma_test.counters(mm)["total_vm"] == 3


def test_fixed_replaces(mm: Any) -> None:
    fixed(mm, 0, 6)
    mm.store(BASE + 2 * PAGE, b"old")
    fixed(mm, 2, 2, R)
    assert layout(mm) == [(0, 2, "rw-p"), (2, 4, "r--p"), (4, 6, "rw-p")]
    assert mm.load(BASE + 2 * PAGE, 3) == b"\0\0\0"
    fixed(mm, 2, 2)
    assert layout(mm) == [(0, 6, "rw-p")]


def test_populate(mm: Any) -> None:
    fixed(mm, 0, 4, RW, PRIV | POPULATE)
    assert mm.mincore(BASE, 4 * PAGE) == b"\1\1\1\1"


def test_brk(mm: Any) -> None:
    old = mm.brk(0)
    assert mm.brk(old + 3 * PAGE) == old + 3 * PAGE
    assert mm.brk(old + 5 * PAGE - 7) == old + 5 * PAGE - 7
    [line] = task_mmu.maps(mm).splitlines()
    assert line == f"{old:08x}-{old + 5 * PAGE:08x} rw-p 00000000 00:00 0 ".ljust(73) + "[heap]"
    assert mm.brk(old - 1) == old + 5 * PAGE - 7, "below start_brk: unchanged"
    mm.mmap(old + 8 * PAGE, PAGE, RW, PRIV | FIXED)
    assert mm.brk(old + 8 * PAGE) == old + 5 * PAGE - 7, "a page stays free before the next mapping"
    assert mm.brk(old + 7 * PAGE) == old + 7 * PAGE
    assert mm.brk(old + 1) == old + 1
    assert [(v.start - old, v.end - old) for v in mm.vmas] == [(0, PAGE), (8 * PAGE, 9 * PAGE)]
    assert mm.brk(1 << 60) == old + 1


def test_stack_growth(mm: Any) -> None:
    top = BASE + 4096 * PAGE
    mm.mmap(top - PAGE, PAGE, RW, PRIV | FIXED | GROWSDOWN)
    mm.store(top - 3 * PAGE, b"x")
    assert [(v.start, v.end) for v in mm.vmas] == [(top - 3 * PAGE, top)]
    assert vma_test.counters(mm)["stack_vm"] == 3
    below = 4096 - 256 - min(840, (8 << 20) // PAGE - 1)     # the gap, and less than a stack may have
    fixed(mm, 0, below)
    mm.store(BASE + below * PAGE + GAP, b"x")
    with pytest.raises(pykmm.SegmentationFault):
        mm.store(BASE + (below - 1) * PAGE + GAP, b"x")
    gap = mm.mmap(top - 3 * PAGE - GAP, PAGE, R)
    assert not BASE + below * PAGE <= gap < top, "the guard gap is not handed out for a hint"


def test_stack_limit(mm: Any) -> None:
    top = BASE + 8192 * PAGE
    mm.mmap(top - PAGE, PAGE, RW, PRIV | FIXED | GROWSDOWN)
    mm.store(top - (8 << 20), b"x")
    with pytest.raises(pykmm.SegmentationFault):
        mm.store(top - (8 << 20) - 1, b"x")


def test_install_mapping(mm: Any) -> None:
    end = BASE + 4096 * PAGE
    assert vma_test.install(mm, end - 2 * PAGE, end, 3, "[stack]") == 0
    assert vma_test.install(mm, BASE, BASE + PAGE, 5, "[vdso]") == 0
    assert vma_test.install(mm, BASE + PAGE, BASE + 2 * PAGE, 5, "[vdso]") == 0
    assert vma_test.install(mm, BASE, BASE + PAGE, 1) == -errno.EEXIST
    assert vma_test.install(mm, BASE + 1, BASE + PAGE, 1) == -errno.EINVAL
    fixed(mm, 2, 1, 5)
    assert [line[73:] for line in task_mmu.maps(mm).splitlines()] == ["[vdso]", "[vdso]", "", "[stack]"]
    mm.store(end - 4 * PAGE, b"x")
    assert mm.vmas[-1].start == end - 4 * PAGE


def test_lookup_agrees_with_the_list(mm: Any) -> None:
    for i in range(300):
        fixed(mm, (i * 37) % 307 * 2, 1)
    assert vma_test.lookup_agrees(mm, BASE - 2 * PAGE, BASE + 620 * PAGE, PAGE // 2)
    for i in range(0, 300, 3):
        mm.munmap(BASE + i * 2 * PAGE, PAGE)
    assert vma_test.lookup_agrees(mm, BASE - 2 * PAGE, BASE + 620 * PAGE, PAGE // 2)


def test_cache_does_not_outlive_its_address_space() -> None:
    with pykmm.Machine(arch=ARCH, strategy="mmap_sem", cpus=1, memory=frames("16M")) as machine:
        for _ in range(3):
            space = machine.mm()
            fixed(space, 0, 2)
            space.store(BASE, b"x")
            space.munmap(BASE, PAGE)
            with pytest.raises(pykmm.SegmentationFault):
                space.load(BASE, 1)
            space.exit()


# ---- a model: every page has a permission or is free ----

PAGES = 16
OPS = st.lists(st.tuples(st.sampled_from(["mmap", "munmap", "mprotect", "store"]), st.integers(0, PAGES - 1),
                         st.integers(1, 6), st.sampled_from([NONE, R, RW])), max_size=40)


@settings(max_examples=60, deadline=None)
@given(ops=OPS, strategy=st.sampled_from(["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"]))
def test_model(ops: list[tuple[str, int, int, int]], strategy: str) -> None:
    with pykmm.Machine(arch=ARCH, strategy=strategy, cpus=1, memory=frames("16M")) as machine:
        space = machine.mm()
        pages: list[int | None] = [None] * PAGES
        for op, page, count, prot in ops:
            span = range(page, min(page + count, PAGES))
            if op == "mmap":
                fixed(space, page, len(span), prot)
                for p in span:
                    pages[p] = prot
            elif op == "munmap":
                space.munmap(BASE + page * PAGE, len(span) * PAGE)
                for p in span:
                    pages[p] = None
            elif op == "mprotect":
                hole = next((p for p in span if pages[p] is None), None)
                if hole is None:
                    space.mprotect(BASE + page * PAGE, len(span) * PAGE, prot)
                else:
                    fails(errno.ENOMEM, space.mprotect, BASE + page * PAGE, len(span) * PAGE, prot)
                for p in span:
                    if p == hole:
                        break
                    pages[p] = prot
            elif pages[page] == RW:
                space.store(BASE + page * PAGE, b"x")
            else:
                with pytest.raises(pykmm.SegmentationFault):
                    space.store(BASE + page * PAGE, b"x")
            machine.validate()
            seen: list[int | None] = [None] * PAGES
            for v in space.vmas:
                for p in range((v.start - BASE) // PAGE, (v.end - BASE) // PAGE):
                    assert seen[p] is None
                    seen[p] = v.prot
            assert seen == pages
        space.exit()
        machine.validate()


# ---- Linux itself: the same calls at the same addresses in this process ----

WINDOW = 24
KERNEL = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])


class Host:
    """System calls of this process on a window of its address space."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        p, n, i = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for name, types in {"mmap": [p, n, i, i, i, ctypes.c_long], "munmap": [p, n], "mprotect": [p, n, i],
                            "mremap": [p, n, n, i, p], "madvise": [p, n, i], "msync": [p, n, i]}.items():
            getattr(self.libc, name).argtypes = types
        self.libc.mmap.restype = self.libc.mremap.restype = p
        self.clear()

    def clear(self) -> None:
        self.libc.munmap(BASE - WINDOW * PAGE, 3 * WINDOW * PAGE)

    def call(self, op: str, *args: int) -> int:
        if op == "store":
            ctypes.memset(*args, 1)
            return 0
        result = getattr(self.libc, op)(*args, *((-1, 0) if op == "mmap" else ())) or 0
        return -ctypes.get_errno() if result in (-1, 2**64 - 1) else result

    def layout(self) -> list[tuple[int, int, str]]:
        found = []
        with open("/proc/self/maps") as maps:
            for line in maps:
                span, perms = line.split()[:2]
                start, end = (int(x, 16) for x in span.split("-"))
                if start < BASE + WINDOW * PAGE and end > BASE:
                    found.append(((start - BASE) // PAGE, (end - BASE) // PAGE, perms))
        return found


def random_call(rng: random.Random, now: list[tuple[int, int, str]]) -> tuple[Any, ...]:
    page, to = rng.randrange(WINDOW), rng.randrange(WINDOW)
    addr, length = BASE + page * PAGE, min(rng.randrange(1, 7), WINDOW - page) * PAGE
    kind = rng.random()
    if kind < 0.3:
        flags = rng.choice([PRIV, PRIV, PRIV, SHARED, PRIV | NORESERVE, PRIV | NOREPLACE, PRIV | 0x20000])
        return "mmap", addr, length, rng.choice([NONE, R, RW, RW, 5]), flags | FIXED
    if kind < 0.42:
        return "munmap", addr + rng.choice([0] * 9 + [1]), length
    if kind < 0.65:
        return "mprotect", addr, length, rng.choice([NONE, R, RW, RW, 7])
    if kind < 0.75:
        new = min(rng.randrange(1, 7), WINDOW - to) * PAGE
        return rng.choice([
            ("mremap", addr, length, new, 3, BASE + to * PAGE),
            ("mremap", addr, length, min(new, WINDOW * PAGE - page * PAGE), 0, 0),
            ("mremap", addr, length, length, rng.choice([3, 7]), min(BASE + to * PAGE, BASE + WINDOW * PAGE - length)),
        ])
    if kind < 0.85:
        advice = rng.choice([0, 1, 2, 4, 4, 7, 8, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
        return "madvise", addr, length, advice
    writable = [p for start, end, perms in now if perms == "rw-p" for p in range(start, end)]
    if writable and kind < 0.97:
        return "store", BASE + rng.choice(writable) * PAGE, rng.randrange(1, 255)
    return "msync", addr, length, rng.choice([0, 1, 4, 5])


@pytest.mark.skipif(KERNEL < (6, 17), reason="compares with Linux 6.17 and later; this kernel is older")
@pytest.mark.parametrize("seed", range(16))
def test_like_linux(seed: int) -> None:
    rng, host = random.Random(seed), Host()
    try:
        strategy = rng.choice(["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
        with pykmm.Machine(arch=ARCH, strategy=strategy, cpus=1, memory=frames("16M")) as machine:
            space = machine.mm()
            for _ in range(60):
                op, *args = random_call(rng, host.layout())
                expected = host.call(op, *args)
                try:
                    if op == "store":
                        result: int | None = space.store(args[0], bytes(args[1:]))
                    else:
                        result = getattr(space, op)(*args)
                except OSError as error:
                    result = -(error.errno or 0)
                assert (result or 0) == expected, (op, [hex(a) for a in args])
                assert layout(space) == host.layout(), (op, [hex(a) for a in args])
                machine.validate()
            space.exit()
    finally:
        host.clear()
