# SPDX-License-Identifier: GPL-2.0-only
"""mm/rmap.c: which VMAs share an anon_vma, through merging, splitting and forking."""
from __future__ import annotations

from typing import Any

from vma_helpers import BASE, FIXED, PAGE, PRIV, RW, R, fixed, layout

from pykmm_ext.mm import vma_test


def family(mm: Any) -> list[int]:
    """Per mapping: 0 = no anon_vma, else a number that is equal for equal anon_vmas."""
    seen: dict[int, int] = {}
    return [0 if av == 0 else seen.setdefault(av, len(seen) + 1) for _, av, _, _ in vma_test.anon_vmas(mm)]


def test_prepared_at_the_first_write_only(mm: Any) -> None:
    fixed(mm, 0, 2)
    mm.load(BASE, 1)
    assert family(mm) == [0]
    mm.store(BASE, b"x")
    assert [x[2:] for x in vma_test.anon_vmas(mm)] == [(1, 2)], "a chain of one; itself and the VMA"


def test_neighbours_that_could_merge_share(mm: Any) -> None:
    fixed(mm, 0, 4)
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, R)
    mm.store(BASE, b"x")
    mm.mprotect(BASE, 2 * PAGE, R)
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, RW)
    mm.store(BASE + 2 * PAGE, b"y")
    assert family(mm) == [1, 1]
    mm.mprotect(BASE, 4 * PAGE, RW)
    assert layout(mm) == [(0, 4, "rw-p")]


def test_strangers_do_not_share(mm: Any) -> None:
    fixed(mm, 0, 1)
    fixed(mm, 4, 1)
    mm.store(BASE, b"x")
    mm.store(BASE + 4 * PAGE, b"y")
    assert family(mm) == [1, 2]
    fixed(mm, 1, 3)
    assert layout(mm) == [(0, 4, "rw-p"), (4, 5, "rw-p")], "merged with one of them; the two cannot"


def test_splitting_clones(mm: Any) -> None:
    fixed(mm, 0, 3)
    mm.store(BASE, b"x")
    mm.mprotect(BASE + PAGE, PAGE, R)
    assert family(mm) == [1, 1, 1]
    assert {x[3] for x in vma_test.anon_vmas(mm)} == {4}
    mm.munmap(BASE + PAGE, 2 * PAGE)
    assert [x[2:] for x in vma_test.anon_vmas(mm)] == [(1, 2)]


def test_an_unwritten_neighbour_takes_the_anon_vma_over(mm: Any) -> None:
    fixed(mm, 0, 2)
    fixed(mm, 2, 2)
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, 7)
    mm.store(BASE + 2 * PAGE, b"x")
    mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, RW)
    assert layout(mm) == [(0, 4, "rw-p")]
    assert family(mm) == [1]
    assert mm.load(BASE + 2 * PAGE, 1) == b"x"


def test_fork(mm: Any) -> None:
    fixed(mm, 0, 1)
    mm.store(BASE, b"x")
    child = mm.fork()
    [(_, own, length, _)] = vma_test.anon_vmas(child)
    assert length == 2, "the parent's and its own"
    assert own != vma_test.anon_vmas(mm)[0][1]
    assert vma_test.anon_vmas(mm)[0][3] == 3
    child.mmap(BASE + PAGE, PAGE, RW, PRIV | FIXED)
    assert len(layout(child)) == 2, "a forked mapping does not merge with a new one"
    grandchild = child.fork()
    child.exit()
    grandchild.store(BASE, b"y")
    assert mm.load(BASE, 1) == b"x"
    assert vma_test.anon_vmas(grandchild)[0][2] == 3
    again = grandchild.fork()
    assert again.load(BASE, 1) == b"y"
    assert vma_test.anon_vmas(again)[0][2] == 3, "the anon_vma that lost its VMA and has one child is reused"
    grandchild.exit()
    again.exit()
    assert vma_test.anon_vmas(mm)[0][3] == 2
