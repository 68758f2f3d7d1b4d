# SPDX-License-Identifier: GPL-2.0-only
"""mm/mempolicy.c: mbind against the mbind of the running kernel, and what it leaves in the VMAs."""
from __future__ import annotations

import ctypes
import errno
import itertools
import platform
import random
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arch_under_test import ARCH, PAGE, frames

import pykmm
from pykmm_ext.mm import memory_test, mempolicy_test, vma_test

BASE = 0x10_0000_0000
NONE, R, RW = 0, 1, 3
PRIV, SHARED, FIXED, FIXED_NOREPLACE = 0x22, 0x21, 0x10, 0x100000
DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, MANY, WEIGHTED = range(7)
STATIC, RELATIVE, BALANCING = 0x8000, 0x4000, 0x2000
STRICT, MOVE, MOVE_ALL = 1, 2, 4
SPAN = 32       # pages of a differential test


@pytest.fixture(params=["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"]
                if ARCH == "x86" else ["spf"])
def mm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty address space; everything is validated and accounted for afterwards."""
    with pykmm.Machine(arch=ARCH, strategy=request.param, cpus=2, memory=frames("32M")) as machine:
        space = machine.mm()
        yield space
        machine.validate()
        space.exit()
        machine.validate()


def policies(mm: Any, base: int = BASE) -> list[tuple[int, int, str]]:
    """(first page, page after the last, policy) of every mapping from BASE on."""
    return [((start - base) // PAGE, (end - base) // PAGE, policy)
            for start, end, policy, _ in mempolicy_test.numa_maps(mm) if start >= base]


def fixed(mm: Any, page: int, pages: int, prot: int = RW, flags: int = PRIV) -> int:
    return mm.mmap(BASE + page * PAGE, pages * PAGE, prot, flags | FIXED)


def code(call: Any, *args: Any, **kw: Any) -> str:
    """The name of the error, or "0"."""
    try:
        call(*args, **kw)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "0"


def count(mm: Any) -> int:
    """How many policies are allocated, once no freed VMA waits for its last speculative reader."""
    mm.machine.validate()
    return mempolicy_test.policies(mm.machine)


# ---- the running kernel -------------------------------------------------------------------------

class Kernel:
    """SPAN pages of this process and the system calls on them. They are far below where the process maps anything by
    itself: nobody else fills the holes that the tests make."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.base = BASE
        self.mmap(self.base, SPAN * PAGE, NONE, PRIV | FIXED_NOREPLACE)
        self.munmap(self.base, SPAN * PAGE)

    @staticmethod
    def _n(value: int) -> ctypes.c_ulong:
        return ctypes.c_ulong(value & (1 << 64) - 1)

    def _call(self, number: int, *args: Any) -> None:
        if self.libc.syscall(ctypes.c_long(number), *args) == -1:
            raise OSError(ctypes.get_errno(), "")

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> None:
        found = self.libc.mmap(self._n(addr), self._n(length), prot, flags, -1, ctypes.c_long(0))
        if found != addr:
            raise OSError(ctypes.get_errno(), "")

    def munmap(self, addr: int, length: int) -> None:
        self._call(11, self._n(addr), self._n(length))

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        self._call(10, self._n(addr), self._n(length), self._n(prot))

    def mremap(self, addr: int, old: int, new: int, flags: int, new_addr: int) -> None:
        self._call(25, self._n(addr), self._n(old), self._n(new), self._n(flags), self._n(new_addr))

    def madvise(self, addr: int, length: int, advice: int) -> None:
        self._call(28, self._n(addr), self._n(length), ctypes.c_int(advice))

    def mbind(self, addr: int, length: int, mode: int, nodes: Iterable[int] = (), flags: int = 0) -> None:
        wanted = list(nodes)
        mask = (ctypes.c_ulong * (max(wanted, default=0) // 64 + 1))()
        for node in wanted:
            mask[node // 64] |= 1 << node % 64
        self._call(237, self._n(addr), self._n(length), self._n(mode), mask if wanted else None,
                   self._n(max(wanted) + 2 if wanted else 0), ctypes.c_uint(flags))

    def touch(self, addr: int, length: int, access: str) -> None:
        for page in range(addr, addr + length, PAGE):
            if access == "w":
                ctypes.memset(page, 1, 1)
            else:
                ctypes.string_at(page, 1)

    def policies(self) -> list[tuple[int, int, str]]:
        low, high, found = self.base, self.base + SPAN * PAGE, []
        named = dict(line.split()[:2] if "prefer (many)" not in line and "weighted interleave" not in line
                     else re.fullmatch(r"(\S+) (\S+ \S+).*", line).groups()  # type: ignore[union-attr]
                     for line in Path("/proc/self/numa_maps").read_text().splitlines())
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if low <= start < high:
                found.append(((start - low) // PAGE, (end - low) // PAGE, named[line.split("-")[0]]))
        return found

    def close(self) -> None:
        self.munmap(self.base, SPAN * PAGE)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """The oracle: Linux 6.9 or later with one node."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the oracle is Linux on x86-64")
    if tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 9):
        pytest.skip("the running kernel is older than weighted interleaving (6.9)")
    online = Path("/sys/devices/system/node/online")
    if not online.exists() or online.read_text().strip() != "0" or not Path("/proc/self/numa_maps").exists():
        pytest.skip("the running kernel has no NUMA support, or more nodes than node 0")
    found = Kernel()
    found.mmap(found.base, PAGE, RW, PRIV | FIXED)
    state = code(found.mbind, found.base, PAGE, BIND, [0])
    found.munmap(found.base, PAGE)
    if state in ("ENOSYS", "EPERM"):
        found.close()
        pytest.skip("mbind is not available to this process")
    yield found
    found.close()


# ---- what is accepted -----------------------------------------------------------------------------

MASKS: list[list[int]] = [[], [0], [1], [0, 1], [1, 63], [0, 64], [5, 200], [2000], [0, 32767], [40000]]


def test_errno_of_modes_and_masks(mm: Any, kernel: Kernel) -> None:
    kernel.mmap(kernel.base, 2 * PAGE, RW, PRIV | FIXED)
    fixed(mm, 0, 2)
    seen = set()
    bits = (0, 1, 0x1000, BALANCING, RELATIVE, STATIC, STATIC | RELATIVE, BALANCING | STATIC)
    for mode, flag, nodes in itertools.product((*range(9), -1), bits, MASKS):
        args = (PAGE, mode | flag, nodes, 0)
        want = code(kernel.mbind, kernel.base, *args)
        assert code(mm.mbind, BASE, *args) == want, (mode, hex(flag), nodes)
        if want == "0":
            assert policies(mm) == kernel.policies(), (mode, hex(flag), nodes)
        seen |= {want, *(p for *_, p in policies(mm))}
    assert seen >= {"0", "EINVAL", "default", "local", "prefer:0", "bind=static:0", "interleave=relative:0",
                    "bind=balancing:0", "bind=static|balancing:0", "prefer (many):0", "weighted interleave:0"}


def test_errno_of_ranges_and_their_order(mm: Any, kernel: Kernel) -> None:
    """Bad mode, mask, flags, alignment, range; holes; each with each, so that the first one checked shows."""
    for page, pages in ((0, 2), (4, 2)):
        kernel.mmap(kernel.base + page * PAGE, pages * PAGE, RW, PRIV | FIXED)
        fixed(mm, page, pages)
    starts = (0, 1, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 1 << 63)
    # What is no multiple of 4 KiB lies in the last 4 KiB of a page: then that kernel rounds up to the same page.
    lengths = (0, PAGE - 4095, PAGE, 3 * PAGE, 6 * PAGE, 2**64 - PAGE, 2**64 - 4095, 2**64 - 1)
    modes = ((DEFAULT, []), (DEFAULT, [0]), (BIND, [0]), (BIND, []), (BIND, [1]), (LOCAL, []), (LOCAL, [0]), (9, [0]),
             (BIND, [40000]))
    seen = set()
    for start, length, (mode, nodes), flags in itertools.product(starts, lengths, modes, (0, STRICT, MOVE, 8)):
        args = (length, mode, nodes, flags)
        want = code(kernel.mbind, (kernel.base + start) % 2**64, *args)
        assert code(mm.mbind, (BASE + start) % 2**64, *args) == want, (start, length, mode, nodes, flags)
        seen.add(want)
        if want == "0" and length:
            assert policies(mm) == kernel.policies()
    assert seen == {"0", "EINVAL", "EFAULT"}


def test_strict(mm: Any, kernel: Kernel) -> None:
    """MPOL_MF_STRICT asks where pages are: every page is on node 0, a mask may leave node 0 out."""
    for page, prot, flags in ((0, RW, PRIV), (2, RW, SHARED), (4, R, PRIV), (7, RW, PRIV)):
        kernel.mmap(kernel.base + page * PAGE, 2 * PAGE, prot, flags | FIXED)
        fixed(mm, page, 2, prot, flags)
    seen = {}
    for touched in ((), ((0, "r"),), ((4, "r"),), ((3, "r"),), ((0, "w"), (8, "w"))):
        for page, access in touched:
            kernel.touch(kernel.base + page * PAGE, PAGE, access)
            mm.touch(BASE + page * PAGE, PAGE, access)
        for (page, pages), (mode, nodes), flags in itertools.product(
                ((0, 2), (2, 2), (3, 1), (4, 2), (7, 1), (7, 2), (0, 6), (0, 9)),
                ((LOCAL, []), (PREFERRED, []), (BIND | RELATIVE, [1]), (BIND | RELATIVE, [0, 1]), (BIND, [0]),
                 (DEFAULT, [])),
                (0, STRICT)):
            args = (pages * PAGE, mode, nodes, flags)
            want = code(kernel.mbind, kernel.base + page * PAGE, *args)
            assert code(mm.mbind, BASE + page * PAGE, *args) == want, (touched, page, pages, mode, nodes, flags)
            assert policies(mm) == kernel.policies()
            seen[want] = seen.get(want, 0) + 1
    assert {"0", "EIO", "EFAULT"} == set(seen)


def test_strict_and_moving_is_no_failure(mm: Any) -> None:
    fixed(mm, 0, 1)
    mm.touch(BASE, PAGE, "w")
    assert code(mm.mbind, BASE, PAGE, LOCAL, (), STRICT) == "EIO"
    assert policies(mm) == [(0, 1, "default")]
    for flags in (MOVE, MOVE_ALL, STRICT | MOVE, STRICT | MOVE_ALL):
        mm.mbind(BASE, PAGE, DEFAULT)
        mm.mbind(BASE, PAGE, LOCAL, (), flags)
        assert policies(mm) == [(0, 1, "local")]
    assert mm.load(BASE, 1) is not None


def test_arguments(mm: Any) -> None:
    fixed(mm, 0, 1)
    with pytest.raises(ValueError, match="a node"):
        mm.mbind(BASE, PAGE, BIND, [-1])
    with pytest.raises(TypeError, match="a node"):
        mm.mbind(BASE, PAGE, BIND, ["0"])
    with pytest.raises(TypeError):
        mm.mbind(BASE, PAGE, BIND, 0)
    mm.mbind(BASE, PAGE, BIND, {0})
    assert policies(mm) == [(0, 1, "bind:0")]


# ---- what is split and merged -----------------------------------------------------------------------

def test_splits_and_merges(mm: Any) -> None:
    fixed(mm, 0, 8)
    mm.mbind(BASE + 2 * PAGE, 2 * PAGE, BIND, [0])
    assert policies(mm) == [(0, 2, "default"), (2, 4, "bind:0"), (4, 8, "default")]
    mm.mbind(BASE + 4 * PAGE, 2 * PAGE, BIND, [0])
    assert policies(mm) == [(0, 2, "default"), (2, 6, "bind:0"), (6, 8, "default")]
    mm.mbind(BASE + 4 * PAGE, PAGE, BIND | STATIC, [0])
    mm.mbind(BASE + 5 * PAGE, PAGE, BIND | STATIC, [0, 1])
    assert policies(mm)[2:4] == [(4, 5, "bind=static:0"), (5, 6, "bind=static:0")], "the masks as passed in differ"
    mm.mbind(BASE, 8 * PAGE, DEFAULT)
    assert policies(mm) == [(0, 8, "default")]
    assert count(mm) == 0


def test_new_mappings_do_not_join_bound_ones(mm: Any) -> None:
    fixed(mm, 0, 2)
    mm.mbind(BASE, 2 * PAGE, LOCAL)
    fixed(mm, 2, 2)
    assert policies(mm) == [(0, 2, "local"), (2, 4, "default")]
    top = mm.brk(0)
    mm.brk(top + PAGE)
    mm.mbind(top, PAGE, LOCAL)
    mm.brk(top + 2 * PAGE)
    assert [p for *_, p in policies(mm, 0) if p == "local"] == ["local"] * 2
    assert sum(end - start for start, end, p in policies(mm, 0) if p == "local") == 3


@pytest.mark.parametrize("seed", range(12))
def test_as_the_running_kernel(mm: Any, kernel: Kernel, seed: int) -> None:
    """Random calls on both: the same errors, and after each the same mappings with the same policies."""
    rng = random.Random(seed)
    choices = [(DEFAULT, []), (DEFAULT, []), (BIND, [0]), (BIND, [0, 1]), (BIND | STATIC, [0]), (BIND | STATIC, [0, 1]),
               (INTERLEAVE, [0]), (PREFERRED, []), (LOCAL, []), (MANY, [0]), (PREFERRED | RELATIVE, [3])]
    kernel.mmap(kernel.base, SPAN * PAGE, RW, PRIV | FIXED)
    fixed(mm, 0, SPAN)
    for step in range(150):
        page = rng.randrange(SPAN)
        pages = rng.randint(1, SPAN - page)
        kind = rng.choices(("mbind", "mprotect", "mmap", "munmap", "madvise", "touch", "mremap"),
                           (9, 3, 2, 1, 1, 2, 1))[0]
        args: tuple[Any, ...] = (pages * PAGE,)
        if kind == "mbind":
            args += (*rng.choice(choices), rng.choice((0, 0, STRICT)))
        elif kind == "mprotect":
            args += (rng.choice((R, RW)),)
        elif kind == "mmap":
            args = (min(pages, 4) * PAGE, RW, rng.choice((PRIV, PRIV, SHARED)) | FIXED)
        elif kind == "madvise":
            args += (rng.choice((16, 17, 4)),)       # DONTDUMP, DODUMP, DONTNEED
        elif kind == "munmap":
            args = (min(pages, 2) * PAGE,)
        elif kind == "mremap":
            to = rng.randrange(SPAN)
            size = min(pages, SPAN - to, 3)
            if abs(to - page) < size:
                continue
            start, target = page * PAGE, to * PAGE
            assert (code(mm.mremap, BASE + start, size * PAGE, size * PAGE, 3, BASE + target)
                    == code(kernel.mremap, kernel.base + start, size * PAGE, size * PAGE, 3, kernel.base + target))
            assert policies(mm) == kernel.policies(), (seed, step, kind, page, to, size)
            continue
        elif kind == "touch":
            held = [v for v in mm.vmas if v.start <= BASE + page * PAGE < v.end and v.prot == RW]
            if not held:
                continue
            args = (PAGE, "w")
        got = code(getattr(mm, kind), BASE + page * PAGE, *args)
        assert got == code(getattr(kernel, kind), kernel.base + page * PAGE, *args), (seed, step, kind, page, args)
        assert policies(mm) == kernel.policies(), (seed, step, kind, page, args)


def test_too_many_mappings(mm: Any) -> None:
    fixed(mm, 0, 6)
    vma_test.set_max_map_count(mm, vma_test.counters(mm)["map_count"] + 1)
    assert code(mm.mbind, BASE + PAGE, PAGE, LOCAL) == "ENOMEM"
    assert {p for *_, p in policies(mm)} == {"default"}
    mm.mbind(BASE, 3 * PAGE, LOCAL)
    vma_test.set_max_map_count(mm, 65530)


# ---- references and write sections ------------------------------------------------------------------

def test_policies_are_shared_and_freed(mm: Any) -> None:
    fixed(mm, 0, 2)
    fixed(mm, 4, 2)
    mm.mbind(BASE, 2 * PAGE, BIND, [0])
    mm.mprotect(BASE, PAGE, R)
    assert (len(policies(mm)), count(mm)) == (3, 1), "a split takes a reference"
    child = mm.fork()
    assert policies(child) == policies(mm)
    assert count(mm) == 1
    mm.mbind(BASE, 6 * PAGE, DEFAULT)
    assert count(mm) == 1, "the child has it still"
    assert {p for *_, p in policies(child)} == {"default", "bind:0"}
    child.mbind(BASE, PAGE, INTERLEAVE, [0])
    child.munmap(BASE + PAGE, PAGE)
    mm.machine.validate()
    child.exit()
    fixed(mm, 8, 2)
    mm.mbind(BASE + 8 * PAGE, 2 * PAGE, MANY, [0])
    mm.mremap(BASE + 8 * PAGE, 2 * PAGE, 2 * PAGE, 3, BASE + 20 * PAGE)
    assert policies(mm)[-1] == (20, 22, "prefer (many):0"), "it moves with the mapping"
    for mode, nodes in ((BIND, [1]), (LOCAL, [0]), (INTERLEAVE, [])):
        assert code(mm.mbind, BASE, PAGE, mode, nodes) == "EINVAL"
    assert code(mm.mbind, BASE + 30 * PAGE, PAGE, LOCAL) == "EFAULT"


def test_a_failed_call_frees_its_policy() -> None:
    with pykmm.Machine(arch=ARCH, strategy="mmap_sem", cpus=1, memory=frames("16M")) as machine:
        mm = machine.mm()
        fixed(mm, 0, 1)
        assert code(mm.mbind, BASE, 3 * PAGE, LOCAL) == "EFAULT"
        assert mempolicy_test.policies(machine) == 0


def test_the_change_is_a_write_section() -> None:
    with pykmm.Machine(arch=ARCH, strategy="spf", cpus=1, memory=frames("16M")) as machine:
        mm = machine.mm()
        fixed(mm, 0, 2)

        def sequence() -> int:
            return int(memory_test.section(mm, BASE, 0, 0))

        before = sequence()
        one = memory_test.section(mm, BASE, 1, 1) - before
        mm.mbind(BASE, 2 * PAGE, LOCAL)
        assert sequence() == before + 2 * one, "one section, closed again"
        mm.mbind(BASE, 2 * PAGE, LOCAL)
        assert sequence() == before + 2 * one, "nothing to change"
        mm.mbind(BASE, 2 * PAGE, DEFAULT)
        assert sequence() == before + 3 * one


def test_against_speculative_faults() -> None:
    """One Cpu rebinds, splits and merges while another faults in the same mapping and loads what it stored."""
    with pykmm.Machine(arch=ARCH, strategy="spf", cpus=2, memory=frames("32M")) as machine:
        mm = machine.mm()
        fixed(mm, 0, SPAN)
        stop = threading.Event()
        errors: list[BaseException] = []

        def rebind() -> None:
            rng = random.Random(1)
            try:
                while not stop.is_set():
                    page = rng.randrange(SPAN)
                    mode, nodes = rng.choice(((DEFAULT, ()), (BIND, (0,)), (LOCAL, ()), (INTERLEAVE, (0,))))
                    mm.mbind(BASE + page * PAGE, rng.randint(1, SPAN - page) * PAGE, mode, nodes, cpu=1)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=rebind)
        thread.start()
        try:
            for n in range(300):
                for page in range(0, SPAN, 3):
                    mm.store(BASE + page * PAGE, bytes((n & 255, page)))
                    assert mm.load(BASE + page * PAGE, 2) == bytes((n & 255, page))
                mm.madvise(BASE, SPAN * PAGE, 4)
        finally:
            stop.set()
            thread.join()
        assert not errors
        machine.validate()


# ---- tapes --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("engine", ["native", "host"])
def test_tapes(engine: str, request: pytest.FixtureRequest) -> None:
    """mbind as an operation: node 0 is the mask of the modes that need one."""
    if engine == "host":
        request.getfixturevalue("kernel")
    tape = pykmm.Tape()
    stream = tape.setup
    whole = stream.mmap(16 * PAGE, "rw")
    for page, mode in enumerate((
            "DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL", "PREFERRED_MANY", "WEIGHTED_INTERLEAVE",
            "BIND|F_STATIC_NODES", "MPOL_INTERLEAVE|MPOL_F_RELATIVE_NODES")):
        stream.mbind(whole + page * PAGE, PAGE, mode, expect_errno=0)
    stream.munmap(whole + 12 * PAGE, PAGE)
    stream.mbind(whole + 10 * PAGE, 4 * PAGE, "BIND", expect_errno="EFAULT")
    stream.mbind(whole + 10 * PAGE, 4 * PAGE, "DEFAULT", expect_errno=0)
    stream.mbind(whole + 1, PAGE, "BIND", expect_errno="EINVAL")
    stream.mbind(whole, PAGE, 7, expect_errno="EINVAL")
    stream.mbind(whole, PAGE, "LOCAL|F_STATIC_NODES", expect_errno="EINVAL")
    with pytest.raises(ValueError, match="one mode"):
        stream.mbind(whole, PAGE, "BIND|LOCAL")
    with pykmm.Machine(arch=ARCH, strategy="spf", cpus=1, memory=frames("16M")) as machine:
        result = machine.run(tape, engine)
        machine.validate()
    assert result.mismatches == []
    lines = [line for lines in result.maps.values() for line in lines if line.perms == "rw-p"]
    assert sorted((line.end - line.start) // PAGE for line in lines) == [1] * 9 + [3, 3], "split by policy"
