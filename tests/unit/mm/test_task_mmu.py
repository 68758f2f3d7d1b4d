# SPDX-License-Identifier: GPL-2.0-only
"""fs/proc/task_mmu.c: the texts of maps and smaps, the words of pagemap."""
from __future__ import annotations

from typing import Any

import pytest
from vma_helpers import BASE, FIXED, NONE, PAGE, SHARED, R, fixed, vm_flags

from pykmm_ext.mm import task_mmu

KIB = PAGE // 1024      # of a page


def smaps_of(mm: Any) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for line in task_mmu.smaps(mm).splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            found.append({})
        elif rest[-1:] == ["kB"]:
            found[-1][key[:-1]] = int(rest[0])
    return found


def test_maps_text(mm: Any) -> None:
    file = mm.machine.file("/usr/lib/a b\nc.so", size=9 * PAGE, dev=(0xfe, 0x1), ino=4711)
    mm.mmap(BASE, PAGE, 5, 2 | FIXED, file=file, offset=3 * PAGE)
    fixed(mm, 1, 1, NONE)
    assert task_mmu.maps(mm) == (
        f"1000000000-{BASE + PAGE:x} r-xp {3 * PAGE:08x} fe:01 4711".ljust(73) + "/usr/lib/a b\\012c.so\n"
        f"{BASE + PAGE:x}-{BASE + 2 * PAGE:x} ---p 00000000 00:00 0 \n")


def test_a_long_text(mm: Any) -> None:
    for i in range(200):
        fixed(mm, 2 * i, 1)
    assert len(task_mmu.maps(mm).splitlines()) == 200
    assert len(smaps_of(mm)) == 200


def test_smaps(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.store(BASE, b"x")
    mm.store(BASE + PAGE, b"x")
    mm.load(BASE + 2 * PAGE, 1)
    [now] = smaps_of(mm)
    assert [now[name] // KIB for name in ("Size", "Rss", "Pss", "Private_Dirty", "Anonymous")] == [4, 2, 2, 2, 2]
    child = mm.fork()
    child.store(BASE, b"y")
    [now] = smaps_of(child)
    assert [now[name] / KIB for name in ("Rss", "Pss", "Shared_Dirty", "Private_Dirty")] == [2, 1.5, 1, 1]
    child.exit()
    mm.mlock(BASE, 4 * PAGE)
    assert smaps_of(mm)[0]["Locked"] == 4 * KIB


def test_flags(mm: Any) -> None:
    fixed(mm, 0, 1)
    fixed(mm, 2, 1, R, SHARED | 0x4000)
    assert vm_flags(mm) == [{"rd", "wr", "mr", "mw", "me", "ac", "sd"},
                            {"rd", "sh", "mr", "mw", "me", "ms", "nr", "sd"}]


def test_pagemap(mm: Any) -> None:
    fixed(mm, 0, 2)
    file = mm.machine.file("/f", b"abc")
    mm.mmap(BASE + 2 * PAGE, PAGE, R, 2 | FIXED, file=file)
    mm.store(BASE, b"mark")
    mm.load(BASE + 2 * PAGE, 1)
    own, none, cached, hole = task_mmu.pagemap(mm, BASE, 4)
    assert own >> 63 == 1 and own >> 61 & 1 == 0 and own >> 56 & 1 == 1
    assert mm.machine.read_physical((own & (1 << 55) - 1) * PAGE, 4) == b"mark"
    assert none >> 56 == 0
    assert cached >> 63 == 1 and cached >> 61 & 1 == 1
    assert hole == 0
    with pytest.raises(ValueError):
        task_mmu.pagemap(mm, BASE, 1 << 60)


def test_after_exit(mm: Any) -> None:
    child = mm.fork()
    child.exit()
    for ask in (task_mmu.maps, task_mmu.smaps):
        with pytest.raises(ValueError):
            ask(child)
