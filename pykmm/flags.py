# SPDX-License-Identifier: GPL-2.0-only
"""include/uapi/linux/mman.h, asm-generic/mman*.h: the flag names of memory system calls and their x86-64 values.

Every family is a mapping of the kernel's full names to values (``PROT["PROT_READ"]``). Parsers take what a person
writes ("rw"), what ``perf trace`` prints ("READ|WRITE") and what ``strace`` prints ("PROT_READ|PROT_WRITE").
"""
from __future__ import annotations

import errno as _errno
from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "MADV", "MAP", "MCL", "MLOCK", "MPOL", "MREMAP", "MS", "PROT",
    "errno_name", "errno_value", "format_flags", "format_madvise", "format_map", "format_perms", "format_prot",
    "parse_flags", "parse_madvise", "parse_map", "parse_mode", "parse_prot",
]


def _family(prefix: str, **values: int) -> Mapping[str, int]:
    return MappingProxyType({prefix + name: value for name, value in values.items()})


#: Protection of a mapping (mmap(2), mprotect(2)).
PROT = _family("PROT_", NONE=0, READ=1, WRITE=2, EXEC=4, SEM=8, GROWSDOWN=0x01000000, GROWSUP=0x02000000)
#: Kind and behaviour of a mapping (mmap(2)).
MAP = _family(
    "MAP_", SHARED=0x01, PRIVATE=0x02, SHARED_VALIDATE=0x03, DROPPABLE=0x08, FIXED=0x10, ANONYMOUS=0x20, ANON=0x20,
    FILE=0, GROWSDOWN=0x0100, DENYWRITE=0x0800, EXECUTABLE=0x1000, LOCKED=0x2000, NORESERVE=0x4000, POPULATE=0x8000,
    NONBLOCK=0x10000, STACK=0x20000, HUGETLB=0x40000, SYNC=0x80000, FIXED_NOREPLACE=0x100000, UNINITIALIZED=0x4000000,
    ABOVE4G=0x80, **{"32BIT": 0x40},
)
#: mremap(2).
MREMAP = _family("MREMAP_", MAYMOVE=1, FIXED=2, DONTUNMAP=4)
#: Advice of madvise(2): values, not bits.
MADV = _family(
    "MADV_", NORMAL=0, RANDOM=1, SEQUENTIAL=2, WILLNEED=3, DONTNEED=4, FREE=8, REMOVE=9, DONTFORK=10, DOFORK=11,
    MERGEABLE=12, UNMERGEABLE=13, HUGEPAGE=14, NOHUGEPAGE=15, DONTDUMP=16, DODUMP=17, WIPEONFORK=18, KEEPONFORK=19,
    COLD=20, PAGEOUT=21, POPULATE_READ=22, POPULATE_WRITE=23, DONTNEED_LOCKED=24, COLLAPSE=25, HWPOISON=100,
    SOFT_OFFLINE=101, GUARD_INSTALL=102, GUARD_REMOVE=103,
)
#: mlockall(2).
MCL = _family("MCL_", CURRENT=1, FUTURE=2, ONFAULT=4)
#: mlock2(2).
MLOCK = _family("MLOCK_", ONFAULT=1)
#: Modes of mbind(2): values, of which one may be joined with the bits MPOL_F_*.
MPOL = _family(
    "MPOL_", DEFAULT=0, PREFERRED=1, BIND=2, INTERLEAVE=3, LOCAL=4, PREFERRED_MANY=5, WEIGHTED_INTERLEAVE=6,
    F_NUMA_BALANCING=0x2000, F_RELATIVE_NODES=0x4000, F_STATIC_NODES=0x8000,
)
#: msync(2).
MS = _family("MS_", ASYNC=1, INVALIDATE=2, SYNC=4)


def _prefix(family: Mapping[str, int]) -> str:
    return next(iter(family)).split("_", 1)[0] + "_"


def parse_flags(text: str | int, family: Mapping[str, int]) -> int:
    """The value of names joined with ``|``; each with or without the family's prefix, or a number.

    Raises ValueError that holds the name when a name is unknown.
    """
    if isinstance(text, int):
        return text
    prefix, value = _prefix(family), 0
    for word in text.split("|"):
        name = word.strip()
        if not name:
            if text.strip():
                raise ValueError(f"empty name in {prefix}* flags {text!r}")
            return 0
        full = name if name.startswith(prefix) else prefix + name
        number = family.get(full)
        if number is None:
            base = name
            shift = 0
            if "<<" in name:                      # strace: 21<<MAP_HUGE_SHIFT
                base, _, where = name.partition("<<")
                shift = 26 if where.strip().endswith("HUGE_SHIFT") else -1
            try:
                number = int(base, 0) if shift >= 0 else None
            except ValueError:
                number = None
            if number is None:
                raise ValueError(f"unknown {prefix}* flag {name!r}")
            number <<= shift
        value |= number
    return value


def parse_prot(text: str | int) -> int:
    """``PROT_*`` from "rw", "r-x", "READ|WRITE", "PROT_NONE", "" or a number (of which nothing is checked)."""
    if isinstance(text, int):
        return text
    if text and set(text) <= set("rwx-"):
        return (1 if "r" in text else 0) | (2 if "w" in text else 0) | (4 if "x" in text else 0)
    return parse_flags(text, PROT)


def parse_map(text: str | int) -> int:
    """``MAP_*`` from "PRIVATE|ANONYMOUS", "MAP_SHARED|MAP_FIXED" or a number."""
    return parse_flags(text, MAP)


def parse_madvise(text: str | int) -> int:
    """One ``MADV_*`` advice from its name or number."""
    if isinstance(text, str) and "|" in text:
        raise ValueError(f"madvise takes one advice, not {text!r}")
    return parse_flags(text, MADV)


def parse_mode(text: str | int) -> int:
    """One ``MPOL_*`` mode with its ``MPOL_F_*`` bits, from names or a number."""
    if isinstance(text, str) and sum("F_" not in word for word in text.split("|")) > 1:
        raise ValueError(f"mbind takes one mode, not {text!r}")
    return parse_flags(text, MPOL)


def format_flags(value: int, family: Mapping[str, int]) -> str:
    """Full names joined with ``|``, unknown bits in hexadecimal; 0 is "0" or the family's name for it."""
    if value == 0:
        return next((name for name, number in family.items() if number == 0 and name != "MAP_FILE"), "0")
    words, rest = [], value
    for name, number in family.items():
        if number and number & (number - 1) == 0 and value & number and rest & number:
            words.append(name)
            rest &= ~number
    if rest:
        words.append(hex(rest))
    return "|".join(words)


def format_prot(value: int) -> str:
    """``PROT_*`` bits as names."""
    return format_flags(value, PROT)


def format_perms(prot: int, shared: bool = False) -> str:
    """Four characters as in /proc/PID/maps."""
    return "".join((
        "r" if prot & 1 else "-", "w" if prot & 2 else "-", "x" if prot & 4 else "-", "s" if shared else "p"))


def format_map(value: int) -> str:
    """``MAP_*`` bits as names; type 3 is MAP_SHARED_VALIDATE."""
    if value & 3 == 3:
        rest = format_flags(value & ~3, MAP)
        return "MAP_SHARED_VALIDATE" if value == 3 else f"MAP_SHARED_VALIDATE|{rest}"
    return format_flags(value, MAP)


def format_madvise(value: int) -> str:
    """The name of one advice, or its number."""
    return next((name for name, number in MADV.items() if number == value), str(value))


def errno_value(name: str | int) -> int:
    """The positive errno of "ENOMEM" or 12; 0 is success. Raises ValueError with the name when it is unknown."""
    if isinstance(name, int):
        if name < 0:
            raise ValueError(f"errno is positive, not {name}")
        return name
    number = getattr(_errno, name, None)
    if not isinstance(number, int):
        raise ValueError(f"unknown errno {name!r}")
    return number


def errno_name(number: int) -> str:
    """"ENOMEM" of 12 or -12; "0" of 0; the number where it has no name."""
    return "0" if number == 0 else _errno.errorcode.get(abs(number), str(abs(number)))
