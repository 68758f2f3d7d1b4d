# SPDX-License-Identifier: GPL-2.0-only
"""The x86 backends against an MMU that is not pykmm's: the same accesses on a copy of the memory, in unicorn."""
from __future__ import annotations

from random import Random
from typing import Any

import pytest
from unicorn_mmu import EXEC, READ, WRITE, UnicornMMU

import pykmm

MEMORY = 2 << 20
PAGE = 4096
PRIVATE_ANON, FIXED = 0x22, 0x10
#: Instructions of one byte that change nothing that matters: nop, clc, stc, cld, cmc. What is stored can be executed.
HARMLESS = b"\x90\xf8\xf9\xfc\xf5"
LEVELS = {"x86": 4, "x86-paravirt": 4, "x86-5level": 5}
WHAT = ["mmap", "shared", "munmap", "mprotect", "load", "load", "store", "store", "store", "fork", "dontneed"]
BASES = {"x86": (0x10000000, 0x7fff00000000), "x86-paravirt": (0x10000000, 0x7fff00000000),
         "x86-5level": (0x10000000, 0x7fff00000000, 1 << 50, (1 << 56) - (64 << 12))}

def lay_out(machine: Any, spaces: list[Any], bases: tuple[int, ...], draw: Random) -> None:
    """A layout that is likely to have everything: whole and broken mappings, COW, pages that nobody may touch."""
    whole = [("mmap", base, 0, 16, 3 if base else 7) for base in range(len(bases))]
    todo = whole + [("store", base, page, 1, 0) for base in range(len(bases)) for page in range(0, 16, 2)]
    todo += [(draw.choice(WHAT), draw.randrange(len(bases)), draw.randrange(16), draw.randint(1, 6),
              draw.choice([0, 1, 3, 5, 7, 7])) for _ in range(30)]
    for what, base, first, count, prot in todo:
        mm, a, n = spaces[-1], bases[base] + first * PAGE, count * PAGE
        try:
            if what == "mmap":
                mm.mmap(a, n, prot, PRIVATE_ANON | FIXED)
            elif what == "shared":
                mm.mmap(a, n, prot, 1 | FIXED, file=machine.file("f", data=HARMLESS * (n // 5)))
            elif what == "munmap":
                mm.munmap(a, n)
            elif what == "mprotect":
                mm.mprotect(a, n, prot)
            elif what == "dontneed":
                mm.madvise(a, n, 4)
            elif what == "fork" and len(spaces) < 3:
                spaces.append(mm.fork())
            elif what == "load":
                mm.load(a, 1)
            elif what == "store":
                mm.store(a, HARMLESS * (PAGE // 5))
        except (OSError, pykmm.SegmentationFault):
            pass


def memory_of(machine: Any) -> bytes:
    with machine.physical_memory as memory:
        return bytes(memory)


def harmless(mm: Any, address: int, memory: bytes) -> bool:
    """May what lies there be executed, if it can be fetched at all?"""
    level, _, _, entry = mm.walk(address)[-1]
    return level > 0 or not entry & 1 or memory[(entry & 0x000ffffffffff000) + address % PAGE] in HARMLESS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("arch", LEVELS)
def test_another_mmu_does_the_same(arch: str, seed: int) -> None:
    """Where it faults pykmm faults; where it does not, both see and leave the same memory: data, A and D bits."""
    bases = BASES[arch]
    draw = Random(f"{arch} {seed}")
    seen = set()
    with pykmm.Machine(arch=arch, cpus=1, memory=MEMORY) as machine:
        spaces = [machine.mm()]
        lay_out(machine, spaces, bases, draw)
        for mm in spaces:
            other = UnicornMMU(MEMORY, mm.pgd, LEVELS[arch])
            for _ in range(60):
                address = draw.choice(bases) + draw.randrange(17) * PAGE + draw.randrange(PAGE)
                how = draw.choice([READ, WRITE, EXEC])
                before = memory_of(machine)
                if how == EXEC and not harmless(mm, address, before):
                    how = READ
                other.load(before)
                got = other.access(address, how, 0x90)
                seen.add((how, got is None))
                faults = machine.vmstat["pgfault"]
                try:
                    if how == READ:
                        byte = mm.load(address, 1)[0]
                    elif how == WRITE:
                        mm.store(address, b"\x90")
                        byte = 0x90
                    else:
                        mm.touch(address, access="x")
                        byte = got
                except pykmm.SegmentationFault:
                    assert got is None
                    continue
                if got is None:
                    assert machine.vmstat["pgfault"] > faults
                    assert other.contents() == before       # a fault changes nothing: no A or D either
                else:
                    assert machine.vmstat["pgfault"] == faults
                    assert byte == got or how == EXEC
                    assert other.contents() == memory_of(machine)
        for mm in spaces:
            mm.exit()
    assert len(seen) == 6               # each access, each answer


@pytest.mark.parametrize("arch", LEVELS)
def test_the_other_mmu_is_one(arch: str) -> None:
    """What the comparison rests on: it obeys every permission bit, and sets A and D itself."""
    with pykmm.Machine(arch=arch, cpus=1, memory=MEMORY) as machine:
        mm = machine.mm()
        base = BASES[arch][-1]
        a = mm.mmap(base, 4 * PAGE, 3, PRIVATE_ANON | FIXED)
        mm.store(a, HARMLESS)
        mm.load(a + PAGE, 1)                                # the zero page
        mm.mmap(a + 2 * PAGE, PAGE, 7, PRIVATE_ANON | FIXED)
        mm.store(a + 2 * PAGE, HARMLESS)
        mm.store(a + 3 * PAGE, HARMLESS)
        mm.mprotect(a + 3 * PAGE, PAGE, 0)
        other = UnicornMMU(MEMORY, mm.pgd, LEVELS[arch])
        memory = memory_of(machine)
        _, table, index, raw = mm.walk(a)[-1]
        old = bytearray(memory)
        old[table + 8 * index:table + 8 * index + 8] = (raw & ~(1 << 5 | 1 << 6)).to_bytes(8, "little")
        expected = {(0, READ): 0x90, (0, WRITE): 7, (0, EXEC): None, (1, READ): 0, (1, WRITE): None, (1, EXEC): None,
                    (2, READ): 0x90, (2, WRITE): 7, (2, EXEC): 7, (3, READ): None, (3, WRITE): None, (3, EXEC): None}
        for (page, how), value in expected.items():
            other.load(memory)
            assert other.access(a + page * PAGE, how, 7) == value, (page, how)
        for how, bits in ((READ, 1 << 5), (WRITE, 1 << 5 | 1 << 6)):
            other.load(bytes(old))
            other.access(a, how)
            found = int.from_bytes(other.contents()[table + 8 * index:table + 8 * index + 8], "little")
            assert found == raw & ~(1 << 5 | 1 << 6) | bits
        mm.exit()
