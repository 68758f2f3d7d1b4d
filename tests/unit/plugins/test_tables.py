# SPDX-License-Identifier: GPL-2.0-only
"""Page tables of every arch, read by decoders written from the manuals: what an access finds, A and D (R and C), the
ends of address spaces; and what walk(), pagemap() and smaps() say of them."""
from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import radix_isa
import sdm_paging
from arch_under_test import is_power

import pykmm
from pykmm.plugin import get_plugin_manager
from pykmm_ext.machine.machine_test import entry

NAMES = get_plugin_manager().arches.names()
LOAD, STORE, FETCH = "load", "store", "fetch"
PRIVATE_ANON, SHARED, PRIVATE, FIXED = 0x22, 1, 2, 0x10
PAGES = 14


class Tables:
    """A machine of an arch, its geometry, and its manual."""

    def __init__(self, name: str) -> None:
        self.arch = get_plugin_manager().arches.make(name)
        self.geometry: dict[str, Any] = dict(self.arch.geometry())
        self.page = 1 << self.geometry["page_shift"]
        self.manual: Any = radix_isa if is_power(name) else sdm_paging
        self.key = self.geometry["page_shift"] if is_power(name) else self.geometry["levels"]
        self.machine = pykmm.Machine(arch=self.arch, cpus=1, memory=2048 * self.page, fault_around=4 * self.page)

    def translate(self, mm: Any, address: int, access: str) -> int | None:
        found = self.manual.translate(self.machine.read_physical, mm.pgd, address, access, self.key)
        assert found is None or isinstance(found, int)
        return found

    def leaves(self, mm: Any) -> dict[int, Any]:
        return {leaf.ea: leaf for leaf in self.manual.leaves(self.machine.read_physical, mm.pgd, self.key)}

    def bases(self) -> list[int]:
        """Windows: low, across the end of a PTE table, above what mmap() gives out unasked, the last pages."""
        end = self.geometry["task_size"]
        span = 1 << self.geometry["level_shift"][1]
        return [0x10000000, 0x7_0000_0000 + span - 7 * self.page,
                min(self.geometry["map_window"], end) - 64 * self.page, end - PAGES * self.page]


def lay_out(t: Tables, draw: Random) -> list[Any]:
    """Address spaces in which everything has happened: every protection, files, forks, what was dropped or moved."""
    m, page = t.machine, t.page
    spaces = [m.mm()]
    file = m.file("f", bytes(range(256)) * (8 * page // 256))
    for _ in range(160):
        mm = draw.choice(spaces)
        base = draw.choice(t.bases())
        first = draw.randrange(PAGES - 4)
        a, n = base + first * page, draw.randrange(1, 5) * page
        prot = draw.choice([0, 1, 3, 3, 5, 7])
        what = draw.choice(["mmap", "mmap", "file", "munmap", "mprotect", "dontneed", "free", "fork", "load", "store",
                            "store", "store", "mremap"])
        try:
            if what == "mmap":
                mm.mmap(a, n, prot, PRIVATE_ANON | FIXED)
            elif what == "file":
                mm.mmap(a, n, prot, draw.choice([SHARED, PRIVATE]) | FIXED, file=file, offset=draw.randrange(4) * page)
            elif what == "munmap":
                mm.munmap(a, n)
            elif what == "mprotect":
                mm.mprotect(a, n, prot)
            elif what in ("dontneed", "free"):
                mm.madvise(a, n, 4 if what == "dontneed" else 8)
            elif what == "fork" and len(spaces) < 3:
                spaces.append(mm.fork())
            elif what == "load":
                mm.load(a, 1)
            elif what == "store":
                mm.store(a + draw.randrange(page), b"s")
            elif what == "mremap":
                mm.mremap(a, page, page, 3, base + draw.randrange(PAGES) * page)
        except (OSError, pykmm.SegmentationFault, pykmm.BusError):
            pass
    return spaces


@pytest.fixture(params=NAMES)
def tables(request: pytest.FixtureRequest) -> Any:
    t = Tables(request.param)
    with t.machine:
        yield t
        t.machine.validate()


def perform(mm: Any, address: int, n: int, how: str) -> bytes | None:
    """What was loaded; None: a signal, at the address of which the kernel was asked."""
    try:
        if how == LOAD:
            data = mm.load(address, n)
            assert isinstance(data, bytes)
            return data
        if how == STORE:
            mm.store(address, b"S" * n)
        else:
            mm.touch(address, n, access="x")
        return b""
    except (pykmm.SegmentationFault, pykmm.BusError):
        return None


@pytest.mark.parametrize("seed", range(2))
def test_an_access_does_what_the_manual_says(tables: Tables, seed: int) -> None:
    """One that the manual lets through does not ask the kernel, finds that memory, and sets A, and D for a store, of
    its leaf alone. One that it does not ends in the kernel; if that says no, no entry has changed."""
    t, draw = tables, Random(seed)
    seen: set[tuple[str, bool, bool]] = set()
    for mm in lay_out(t, draw):
        for _ in range(30):
            how = draw.choice([LOAD, STORE, FETCH])
            before = t.leaves(mm)
            address = draw.choice(t.bases()) + draw.randrange(PAGES) * t.page
            if before and draw.randrange(4):
                address = draw.choice(sorted(before))
            address += draw.randrange(t.page - 8)
            n = 1
            if draw.randrange(4) == 0:              # across the end of a page, and maybe of user space
                across = [ea for ea in before if ea + t.page in before]
                address, n = (draw.choice(across) if across else address & -t.page) + t.page - 3, 8
            parts = [(address, min(n, 3) if n > 1 else 1), (address + 3, 5)][:1 if n == 1 else 2]
            places = [t.translate(mm, at, how) for at, _ in parts]
            faults = t.machine.vmstat["pgfault"]
            memory = b"".join(t.machine.read_physical(place, size)
                              for place, (_, size) in zip(places, parts, strict=True) if place is not None)
            got = perform(mm, address, n, how)
            after = t.leaves(mm)
            through = None not in places
            seen.add((how, through, n > 1))
            if through:
                assert t.machine.vmstat["pgfault"] == faults
                assert got == (memory if how == LOAD else b"")
                for place, (at, size) in zip(places, parts, strict=True):
                    assert t.translate(mm, at, how) == place
                    if how == STORE:
                        assert place is not None
                        assert t.machine.read_physical(place, size) == b"S" * size
                touched = {at & -t.page for at, _ in parts}
                assert after.keys() == before.keys()
                for ea, leaf in after.items():
                    if ea in touched:
                        assert leaf.reference and (leaf.change or how != STORE)
                        assert leaf.change == (before[ea].change or how == STORE)
                    else:
                        assert leaf == before[ea]
            elif got is None:
                if n == 1:
                    assert after == before
            else:
                assert t.machine.vmstat["pgfault"] > faults
                assert all(t.translate(mm, at, how) is not None for at, _ in parts)
        mm.exit()
    assert len({(how, through) for how, through, _ in seen}) == 6
    assert any(across and through for _, through, across in seen)


@pytest.mark.parametrize("seed", range(2))
def test_pagemap_smaps_and_walk_say_the_same(tables: Tables, seed: int) -> None:
    """walk() has the entries as the manual finds them; pagemap() and smaps() count what they map."""
    t = tables
    levels, in_memory = t.geometry["levels"], memory_order(t)
    for mm in lay_out(t, Random(seed)):
        leaves = t.leaves(mm)
        present: dict[int, int] = {}
        for vma in mm.vmas:
            words = mm.pagemap(vma.start, (vma.end - vma.start) // t.page)
            rss = 0
            for a, word in zip(range(vma.start, vma.end, t.page), words, strict=True):
                walk = mm.walk(a)
                raw = in_memory(walk[-1][3]) if len(walk) == levels else 0
                assert [level for level, *_ in walk] == list(range(levels))[::-1][:len(walk)]
                there = bool(entry(t.arch, "pte_present", raw))
                assert bool(word >> 63) == there, hex(a)
                assert not word >> 62 & 1           # nothing is swapped
                if not there:
                    assert a not in leaves
                    continue
                pfn = entry(t.arch, "pte_pfn", raw)
                present[a] = pfn
                assert word & ((1 << 55) - 1) == pfn
                assert bool(word >> 55 & 1) == bool(entry(t.arch, "pte_soft_dirty", raw)) or word >> 55 & 1
                rss += not entry(t.arch, "pte_special", raw)        # the zero page is nobody's
                leaf = leaves.get(a)
                if entry(t.arch, "pte_protnone", raw):
                    assert leaf is None or not any(leaf.permits(how) for how in (LOAD, STORE, FETCH))
                else:
                    assert leaf is not None
                    assert (leaf.ra, leaf.reference, leaf.change) == (
                        pfn * t.page, bool(entry(t.arch, "pte_young", raw)), bool(entry(t.arch, "pte_dirty", raw)))
                    for how, number in ((LOAD, 0), (STORE, 1), (FETCH, 2)):
                        assert leaf.permits(how) == bool(entry(t.arch, "access_permitted", raw, number))
            assert smaps_rss(mm, vma.start) == rss * t.page // 1024
        assert leaves.keys() <= present.keys()
        mm.exit()


def memory_order(t: Tables) -> Callable[[int], int]:
    if not t.geometry["big_endian"]:
        return lambda word: word
    return lambda word: int.from_bytes(word.to_bytes(8, "big"), "little")


def smaps_rss(mm: Any, start: int) -> int:
    """KiB"""
    found = re.search(rf"^{start:08x}-.*?\nRss: +(\d+) kB", mm.smaps(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return int(found[1])


def test_the_ends_of_user_space(tables: Tables) -> None:
    """The last page is like any other; what lies beyond, and what is no address, is nobody's and asks nobody."""
    t = tables
    end, window = t.geometry["task_size"], t.geometry["map_window"]
    mm = t.machine.mm()
    a = mm.mmap(end - t.page, t.page, 7, PRIVATE_ANON | FIXED)
    mm.store(a + t.page - 1, b"\x90")
    assert t.translate(mm, end - 1, STORE) is not None
    beyond = [end, end + t.page - 1, 1 << 47, (1 << 47) - t.page, 1 << 52, 1 << 56, (1 << 56) - 1, 1 << 57, 1 << 63,
              (1 << 64) - (1 << 47), (1 << 64) - 1]
    for address in {one for one in beyond if one >= end}:
        for how in (LOAD, STORE, FETCH):
            faults = t.machine.vmstat["pgfault"]
            assert t.translate(mm, address, how) is None
            with pytest.raises(pykmm.SegmentationFault) as caught:
                mm.touch(address, 1, access={LOAD: "r", STORE: "w", FETCH: "x"}[how])
            assert (caught.value.address, caught.value.code) == (address, "MAPERR")
            assert t.machine.vmstat["pgfault"] == faults
    with pytest.raises(pykmm.SegmentationFault) as caught:
        mm.store(end - 2, b"1234")
    assert caught.value.address == end
    with pytest.raises(OSError, match="annot allocate"):
        mm.mmap(end, t.page, 3, PRIVATE_ANON | FIXED)
    # Who asks for an address above the window gets it, where there is one; nobody gets one unasked.
    assert mm.mmap(0, t.page) < window
    high = mm.mmap(window + 16 * t.page, t.page)
    assert (high == window + 16 * t.page) == (window + 17 * t.page <= end)
    mm.store(high, b"high")
    real = t.translate(mm, high, LOAD)
    assert real is not None
    assert t.machine.read_physical(real, 4) == b"high"
    mm.munmap(high, t.page)
    assert t.translate(mm, high, LOAD) is None
    mm.exit()
