# SPDX-License-Identifier: GPL-2.0-only
"""Power ISA 3.0 B, book III, radix tree translation: a decoder written from the field tables alone.

Nothing of pykmm is used here. Bits are numbered as in the ISA: 0 is the most significant of a doubleword.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LOAD, STORE, FETCH = "load", "store", "fetch"
ROOT_SIZE = 13          # RPDS of the process table entry: log2 of the root's entries
EA_SIZE = 52            # RTS: bits of the effective address that the tree translates


class RadixError(AssertionError):
    """A reserved bit is set, or the tree has a shape that no processor supports."""


def bits(word: int, first: int, last: int | None = None) -> int:
    """Bits first..last of a doubleword, as a number."""
    last = first if last is None else last
    return word >> (63 - last) & ((1 << (last - first + 1)) - 1)


@dataclass(frozen=True)
class Leaf:
    """A page table entry with V = 1 and L = 1."""

    ea: int             #: first effective address that it maps
    size: int           #: bytes
    ra: int             #: real address
    reference: bool
    change: bool
    att: int
    privileged: bool
    read: bool
    write: bool
    execute: bool

    def permits(self, access: str) -> bool:
        """May a program in problem state do this?"""
        if self.privileged:
            return False
        if access == LOAD:
            return self.read or self.write
        return self.write if access == STORE else self.execute


@dataclass(frozen=True)
class Directory:
    """A page directory entry with V = 1 and L = 0."""

    base: int           #: NLB
    size: int           #: NLS: log2 of the entries of the next level


def decode(word: int, ea: int, remaining: int, page_shift: int) -> Leaf | Directory | None:
    """One entry that leaves `remaining` bits of the address; None = not valid."""
    if not bits(word, 0):
        return None
    if bits(word, 1):
        if remaining not in (page_shift, 21, 30):
            raise RadixError(f"{word:#018x}: a leaf of {1 << remaining} bytes")
        ra = bits(word, 7, 51) << 12
        if ra & ((1 << remaining) - 1):
            raise RadixError(f"{word:#018x}: real address {ra:#x} is not aligned to {1 << remaining:#x}")
        if bits(word, 3, 6) or bits(word, 57):
            raise RadixError(f"{word:#018x}: reserved bits of a leaf")
        return Leaf(ea, 1 << remaining, ra, bool(bits(word, 55)), bool(bits(word, 56)), bits(word, 58, 59),
                    bool(bits(word, 60)), bool(bits(word, 61)), bool(bits(word, 62)), bool(bits(word, 63)))
    if bits(word, 2, 3) or bits(word, 56, 58):
        raise RadixError(f"{word:#018x}: reserved bits of a directory entry")
    below = Directory(bits(word, 4, 55) << 8, bits(word, 59, 63))
    if below.size < 5 or remaining - below.size < page_shift:
        raise RadixError(f"{word:#018x}: next level of 2**{below.size} entries for {remaining} bits of address")
    if below.base & ((8 << below.size) - 1):
        raise RadixError(f"{word:#018x}: next level is not aligned to its size")
    return below


def leaves(read: Callable[[int, int], bytes], root: int, page_shift: int) -> Iterator[Leaf]:
    """Every valid leaf below the root, in ascending order. ``read(real address, n)`` = n bytes of memory."""
    def table(at: int, size: int, ea: int, remaining: int) -> Iterator[Leaf]:
        remaining -= size
        data = read(at, 8 << size)
        if not any(data):
            return
        for index, word in enumerate(struct.unpack(f">{1 << size}Q", data)):
            if not word:
                continue
            entry = decode(word, ea + (index << remaining), remaining, page_shift)
            if isinstance(entry, Leaf):
                yield entry
            elif entry is not None:
                yield from table(entry.base, entry.size, ea + (index << remaining), remaining)

    yield from table(root, ROOT_SIZE, 0, EA_SIZE)


def translate(read: Callable[[int, int], bytes], root: int, ea: int, access: str, page_shift: int) -> int | None:
    """The real address of an access in problem state, or None for a storage interrupt."""
    if ea >> EA_SIZE:
        return None
    at, size, remaining = root, ROOT_SIZE, EA_SIZE
    while True:
        remaining -= size
        index = ea >> remaining & ((1 << size) - 1)
        word = int.from_bytes(read(at + 8 * index, 8), "big")
        entry = decode(word, ea >> remaining << remaining, remaining, page_shift)
        if entry is None:
            return None
        if isinstance(entry, Leaf):
            return entry.ra | ea & (entry.size - 1) if entry.permits(access) else None
        at, size = entry.base, entry.size
