# SPDX-License-Identifier: GPL-2.0-only
"""Intel SDM, volume 3, "4-level paging and 5-level paging": a decoder written from the tables of entry formats alone.

Nothing of pykmm is used here. The same interface as radix_isa; accesses are those of a program in user mode.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LOAD, STORE, FETCH = "load", "store", "fetch"
PRESENT, WRITE, USER, ACCESSED, DIRTY, SIZE, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
ADDRESS = (1 << 52) - (1 << 12)         # bits 51:12
MAXPHYADDR = 46                         # of a processor for 64 TiB, the most that a machine has
RESERVED = (1 << 52) - (1 << MAXPHYADDR)
#: PWT and PCD: memory is cached. Of a leaf also G (it is the user's), PAT and the protection key (there are none).
CACHING, GLOBAL, PAT, KEY = 1 << 3 | 1 << 4, 1 << 8, 1 << 7, 15 << 59


class PagingError(AssertionError):
    """A reserved bit is set, or one that a kernel sets for no memory of a user."""


@dataclass(frozen=True)
class Leaf:
    """An entry that maps a page, with the permissions of all levels above it."""

    ea: int             #: first linear address that it maps
    size: int           #: bytes
    ra: int             #: physical address
    reference: bool
    change: bool
    user: bool
    write: bool
    execute: bool

    def permits(self, access: str) -> bool:
        """May a program in user mode do this?"""
        return self.user and (self.write if access == STORE else self.execute if access == FETCH else True)


def _table(read: Callable[[int, int], bytes], at: int) -> tuple[int, ...]:
    data = read(at, 4096)
    return struct.unpack("<512Q", data)


def leaves(read: Callable[[int, int], bytes], root: int, levels: int) -> Iterator[Leaf]:
    """Every present leaf of the lower half, in ascending order. ``read(physical address, n)`` = n bytes of memory."""
    def table(at: int, level: int, ea: int, allow: int, deny: int) -> Iterator[Leaf]:
        shift = 12 + 9 * level
        for index, word in enumerate(_table(read, at)[:256 if level == levels - 1 else 512]):
            if not word & PRESENT:
                continue
            here, both, either = ea + (index << shift), allow & word, deny | word
            wrong = RESERVED | CACHING
            if level == 0:
                wrong |= GLOBAL | PAT | KEY
            elif not (level < 3 and word & SIZE):
                wrong |= SIZE
            if word & wrong:
                raise PagingError(f"{word:#018x} of level {level}: {word & wrong:#x}")
            if level == 0 or (level < 3 and word & SIZE):
                yield Leaf(here, 1 << shift, word & ADDRESS >> shift << shift, bool(word & ACCESSED),
                           bool(word & DIRTY), bool(both & USER), bool(both & WRITE), not either & NX)
            else:
                yield from table(word & ADDRESS, level - 1, here, both, either)

    yield from table(root, levels - 1, 0, USER | WRITE, 0)


def translate(read: Callable[[int, int], bytes], root: int, ea: int, access: str, levels: int) -> int | None:
    """The physical address of an access in user mode, or None for a page fault (or what is not canonical)."""
    if ea >> (11 + 9 * levels):
        return None
    at, allow, deny = root, USER | WRITE, 0
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        word = int.from_bytes(read(at + 8 * (ea >> shift & 511), 8), "little")
        if not word & PRESENT:
            return None
        allow, deny = allow & word, deny | word
        if level == 0 or (level < 3 and word & SIZE):
            leaf = Leaf(0, 0, 0, True, True, bool(allow & USER), bool(allow & WRITE), not deny & NX)
            return word & ADDRESS >> shift << shift | ea & ((1 << shift) - 1) if leaf.permits(access) else None
        at = word & ADDRESS
    raise AssertionError("a table below the last level")
