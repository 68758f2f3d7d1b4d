# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the VMA layer share: fixed mappings from BASE on, and views of the result."""
from __future__ import annotations

import errno
from typing import Any

import pytest
from arch_under_test import PAGE

from pykmm_ext.mm import task_mmu

BASE = 0x10_0000_0000
__all__ = ["BASE", "FIXED", "NONE", "PAGE", "PRIV", "RW", "SHARED", "R", "fails", "fixed", "layout", "vm_flags"]
R, RW, NONE = 1, 3, 0
PRIV, SHARED, FIXED = 0x22, 0x21, 0x10


def fixed(mm: Any, page: int, pages: int, prot: int = RW, flags: int = PRIV) -> int:
    return mm.mmap(BASE + page * PAGE, pages * PAGE, prot, flags | FIXED)


def layout(mm: Any) -> list[tuple[int, int, str]]:
    """(first page, page after the last, permissions) of every mapping from BASE on."""
    found = []
    for line in task_mmu.maps(mm).splitlines():
        span, perms = line.split()[:2]
        start, end = (int(x, 16) for x in span.split("-"))
        found.append(((start - BASE) // PAGE, (end - BASE) // PAGE, perms))
    return found


def vm_flags(mm: Any) -> list[set[str]]:
    """The two-letter flags of every mapping, as smaps has them."""
    return [set(line.split()[1:]) for line in task_mmu.smaps(mm).splitlines() if line.startswith("VmFlags:")]


def fails(number: int, call: Any, *args: Any, **kw: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*args, **kw)
    assert caught.value.errno == number, errno.errorcode[caught.value.errno or 0]
