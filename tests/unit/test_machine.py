# SPDX-License-Identifier: GPL-2.0-only
"""pykmm/machine.py, pykmm_ext/binding.pyx, mm_binding.pyx and handle.pyx: Machine, MmStruct, File, Vma."""
from __future__ import annotations

import array
import errno
import gc
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arch_under_test import ARCH, LEVELS, PAGE, TASK_SIZE, frames, in_memory, make_arch

import pykmm
from pykmm.machine import available_memory, parse_size, size_text
from pykmm.testing import assert_no_leaks, resident
from pykmm_ext.machine.machine_test import entry
from pykmm_ext.mm.memory_test import damage

Make = Callable[..., pykmm.Machine]


@pytest.fixture(params=["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
def m(request: pytest.FixtureRequest, machine: Make) -> pykmm.Machine:
    return machine(strategy=request.param)


def test_sizes() -> None:
    assert [parse_size(x) for x in ("256M", "2T", "64k", "4096", "1 G", "3MiB", 77)] == [
        256 << 20, 2 << 40, 64 << 10, 4096, 1 << 30, 3 << 20, 77]
    for bad in ("", "M", "-1M", "1.5G", "1X", "0x10"):
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(bad)
    with pytest.raises(TypeError):
        parse_size(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "error"), [
    ({"cpus": 0}, ValueError), ({"cpus": -3}, ValueError), ({"cpus": 100000}, ValueError), ({"cpus": "two"}, TypeError),
    ({"memory": 0}, ValueError), ({"memory": "1K"}, ValueError), ({"memory": -1}, ValueError),
    ({"memory": "4000000T"}, ValueError), ({"memory": 1 << 70}, ValueError), ({"fault_around": 5000}, ValueError),
    ({"fault_around": 0}, ValueError), ({"strategy": "none such"}, ValueError), ({"strategy": 3}, TypeError),
])
def test_bad_machines(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        pykmm.Machine(**{"arch": ARCH} | arguments)


def test_what_is_no_bytes_is_named(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    pin = mm.pin(a, PAGE, True)
    calls: list[Callable[[Any], object]] = [lambda data: mm.store(a, data), lambda data: m.file("f", data), pin.write]
    for call in calls:
        with pytest.raises(TypeError, match="data must be bytes-like, not int"):
            call(5)
        with pytest.raises(TypeError, match="data must be contiguous"):
            call(memoryview(b"abcd")[::2])
        call(memoryview(b""))
        call(array.array("I", [1, 2]))
    assert mm.load(a, 8) == array.array("I", [1, 2]).tobytes()
    pin.unpin()


def test_a_big_machine_costs_nothing() -> None:
    with pykmm.Machine(arch=ARCH, memory="2T", cpus=64) as machine:
        assert machine.memory == 2 << 40
        mm = machine.mm()
        mm.store(mm.mmap(0, PAGE), b"x")


def test_contents_and_protection(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 3 * PAGE)
    assert mm.load(a, 3 * PAGE) == bytes(3 * PAGE)
    mm.store(a + PAGE - 2, b"over the edge")
    assert mm.load(a + PAGE - 2, 13) == b"over the edge"
    mm.mprotect(a, PAGE, mmap.PROT_READ)
    with pytest.raises(pykmm.SegmentationFault) as caught:
        mm.store(a + 5, b"x")
    assert (caught.value.address, caught.value.code) == (a + 5, "ACCERR")
    mm.munmap(a + PAGE, PAGE)
    with pytest.raises(pykmm.SegmentationFault) as caught:
        mm.load(a, 2 * PAGE)
    assert (caught.value.address, caught.value.code) == (a + PAGE, "MAPERR")
    assert mm.load(a + PAGE - 2, 2) == b"ov"
    assert [(v.start, v.end, v.perms) for v in mm.vmas] == [(a, a + PAGE, "r--p"), (a + 2 * PAGE, a + 3 * PAGE, "rw-p")]
    found = mm.find_vma(a + PAGE)
    assert found is not None
    assert (found.start, found.prot, found.shared, found.file) == (a + 2 * PAGE, 3, False, None)
    assert mm.find_vma(a + 3 * PAGE) is None
    assert mm.proc_maps().splitlines()[0].startswith(f"{a:08x}-{a + PAGE:08x} r--p 00000000 00:00 0")
    assert "Rss:" in mm.smaps()


def test_fork_copies_on_write(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"parent")
    child = mm.fork(cpu=1)
    child.store(a, b"child!", cpu=1)
    assert (mm.load(a, 6), child.load(a, 6, cpu=1)) == (b"parent", b"child!")
    child.exit()
    for call in (lambda: child.load(a, 1), child.exit, child.fork, lambda: child.vmas, child.proc_maps,
                 lambda: child.pgd):
        with pytest.raises(ValueError, match="has exited"):
            call()
    assert mm.load(a, 6) == b"parent"


def test_files(m: pykmm.Machine) -> None:
    mm = m.mm()
    f = m.file("/data/x", b"abc" * 2000, size=3 * PAGE, dev=(0xfe, 1), ino=77)
    assert (f.size, f.dev, f.ino, f.name) == (3 * PAGE, (0xfe, 1), 77, "/data/x")
    a = mm.mmap(0, 4 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, file=f)
    assert mm.load(a, 6001) == b"abc" * 2000 + b"\0"
    mm.store(a, b"XYZ")
    b = mm.mmap(0, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE, file=f)
    assert (mm.load(a, 4), mm.load(b, 4)) == (b"XYZa", b"abca")
    with pytest.raises(pykmm.BusError) as caught:
        mm.load(a + 3 * PAGE, 1)
    assert caught.value.address == a + 3 * PAGE
    f.close()
    f.close()
    with pytest.raises(ValueError, match="closed"):
        mm.mmap(0, PAGE, 1, 2, file=f)
    assert mm.load(b, 3) == b"abc"
    assert {v.name for v in mm.vmas} == {"/data/x"}


@pytest.mark.parametrize(("arguments", "error"), [
    (("x",), ValueError), (("", b""), ValueError), (("a\0b", b""), ValueError), ((3, b""), TypeError),
    (("x", 3), TypeError),
])
def test_bad_files(machine: Make, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        machine().file(*arguments)
    with pytest.raises(ValueError, match="below"):
        machine().file("x", b"abc", size=2)
    with pytest.raises(ValueError, match="size"):
        machine().file("x", size=-1)


MAX = (1 << 64) - 1


@pytest.mark.parametrize(("call", "number"), [
    (lambda mm, a: mm.mmap(0, 0), errno.EINVAL),
    (lambda mm, a: mm.mmap(0, MAX), errno.ENOMEM),
    (lambda mm, a: mm.mmap(0, 1 << 60), errno.ENOMEM),
    (lambda mm, a: mm.mmap(0, PAGE, 3, 0x20), errno.EINVAL),                 # neither shared nor private
    (lambda mm, a: mm.mmap(0, PAGE, 3, 2), errno.EBADF),
    (lambda mm, a: mm.mmap(1, PAGE, 3, 0x32), errno.EINVAL),                 # MAP_FIXED, not aligned
    (lambda mm, a: mm.mmap(TASK_SIZE, PAGE, 3, 0x32), errno.ENOMEM),
    (lambda mm, a: mm.munmap(a, 0), errno.EINVAL),
    (lambda mm, a: mm.munmap(a + 1, PAGE), errno.EINVAL),
    (lambda mm, a: mm.munmap(a, MAX), errno.EINVAL),
    (lambda mm, a: mm.mprotect(a + 1, PAGE, 1), errno.EINVAL),
    (lambda mm, a: mm.mprotect(a + PAGE, PAGE, 1), errno.ENOMEM),
    (lambda mm, a: mm.madvise(a, PAGE, 12345), errno.EINVAL),
    (lambda mm, a: mm.madvise(a + 1, PAGE, 4), errno.EINVAL),
    (lambda mm, a: mm.mremap(a + 1, PAGE, PAGE), errno.EINVAL),
    (lambda mm, a: mm.mremap(a, PAGE, 0), errno.EINVAL),
    (lambda mm, a: mm.mremap(a + PAGE, PAGE, 2 * PAGE), errno.EFAULT),
    (lambda mm, a: mm.mincore(a + 1, PAGE), errno.EINVAL),
    (lambda mm, a: mm.mincore(a, MAX), errno.ENOMEM),
    (lambda mm, a: mm.mincore(a + PAGE, PAGE), errno.ENOMEM),
    (lambda mm, a: mm.mlock(a + PAGE, PAGE), errno.ENOMEM),
    (lambda mm, a: mm.msync(a, PAGE, 5), errno.EINVAL),                      # MS_SYNC | MS_ASYNC
])
def test_system_call_errors(m: pykmm.Machine, call: Callable[[pykmm.MmStruct, int], object], number: int) -> None:
    mm = m.mm()
    a = mm.mmap(0x10000000, PAGE)
    before = mm.proc_maps()
    with pytest.raises(OSError) as caught:
        call(mm, a)
    assert caught.value.errno == number
    assert mm.proc_maps() == before


@pytest.mark.parametrize(("call", "error"), [
    (lambda mm: mm.mmap(0, -1), ValueError), (lambda mm: mm.mmap(-1, PAGE), ValueError),
    (lambda mm: mm.mmap(0, 1 << 64), ValueError), (lambda mm: mm.mmap("0", PAGE), TypeError),
    (lambda mm: mm.mmap(0, PAGE, None), TypeError), (lambda mm: mm.mmap(0, PAGE, file="x"), TypeError),
    (lambda mm: mm.munmap(0, 1.5), TypeError), (lambda mm: mm.load(0, -5), ValueError),
    (lambda mm: mm.load(0, 1 << 63), ValueError), (lambda mm: mm.load(0, 1 << 62), pykmm.SegmentationFault),
    (lambda mm: mm.store(0, "text"), TypeError), (lambda mm: mm.touch(0, 1, "rw"), ValueError),
    (lambda mm: mm.load(0, 1, cpu=7), ValueError), (lambda mm: mm.load(0, 1, cpu=-1), ValueError),
    (lambda mm: mm.load(0, 1, cpu="a"), TypeError), (lambda mm: mm.madvise(0, PAGE, 1 << 40), ValueError),
    (lambda mm: mm.pagemap(0, 1 << 60), ValueError), (lambda mm: mm.touch(0, MAX), pykmm.SegmentationFault),
])
def test_absurd_arguments(m: pykmm.Machine, call: Callable[[pykmm.MmStruct], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(m.mm())


def test_residency(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 8 * PAGE)
    mm.touch(a + 2 * PAGE, 3 * PAGE, "w")
    assert mm.mincore(a, 8 * PAGE) == b"\0\0\1\1\1\0\0\0"
    mm.madvise(a + 3 * PAGE, PAGE, 4)       # MADV_DONTNEED
    assert resident(mm, a, 8 * PAGE) == 2
    words = mm.pagemap(a, 8)
    assert [bool(word >> 63) for word in words] == [False, False, True, False, True, False, False, False]
    frame = words[2] & ((1 << 55) - 1)
    mm.store(a + 2 * PAGE, b"in memory")
    assert m.read_physical(frame * PAGE, 9) == b"in memory"
    with m.physical_memory as view:
        assert bytes(view[frame * PAGE:frame * PAGE + 9]) == b"in memory"
        assert view.readonly
        with pytest.raises(BufferError):
            m.close()
    levels = mm.walk(a + 2 * PAGE)
    assert [level for level, *_ in levels] == list(range(LEVELS))[::-1]
    assert levels[0][1] == mm.pgd
    assert entry(make_arch(), "pte_pfn", in_memory(levels[-1][3])) == frame
    with pytest.raises(ValueError, match="not within"):
        m.read_physical(m.memory - 1, 2)


def test_brk_mremap_and_locks(m: pykmm.Machine) -> None:
    mm = m.mm()
    start = mm.brk()
    assert mm.brk(start + 5 * PAGE) == start + 5 * PAGE
    mm.store(start, b"heap")
    assert mm.brk(1) == start + 5 * PAGE
    assert "[heap]" in mm.proc_maps()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"moved")
    b = mm.mremap(a, PAGE, 4 * PAGE, 1)
    assert mm.load(b, 5) == b"moved"
    mm.mlock(b, PAGE)
    assert mm.stats["locked_vm"] == 1
    mm.munlock(b, PAGE)
    mm.mlockall(1)
    mm.munlockall()
    assert mm.stats["locked_vm"] == 0
    mm.msync(b, PAGE, 4)


def test_nothing_stays_behind(m: pykmm.Machine) -> None:
    with assert_no_leaks(m):
        mm = m.mm()
        f = m.file("/f", b"x" * 10000)
        a = mm.mmap(0, 10000, 3, 2, file=f)
        mm.touch(a, 10000, "w")
        child = mm.fork()
        child.touch(a, 10000, "w")
        child.exit()
        mm.exit()
        f.close()
    keep = m.mm()
    a = keep.mmap(0, PAGE)
    with pytest.raises(AssertionError, match="frames more"), assert_no_leaks(m):
        keep.touch(a, 1, "w")


def test_what_is_forgotten_is_ended(m: pykmm.Machine) -> None:
    def forget() -> None:
        mm = m.mm()
        mm.touch(mm.mmap(0, 64 * PAGE), 64 * PAGE, "w")
        m.file("/forgotten", b"x")

    forget()
    gc.collect()
    used = m.vmstat["nr_used_frames"]
    m.mm()                                  # the next one ends them
    assert m.vmstat["nr_used_frames"] <= used - 64


def test_closed_machines(machine: Make) -> None:
    one = machine()
    mm = one.mm()
    f = one.file("x", b"x")
    a = mm.mmap(0, PAGE)
    one.close()
    one.close()
    assert one.closed
    for call in (one.mm, lambda: one.vmstat, lambda: mm.load(a, 1), lambda: f.size, lambda: mm.vmas, one.validate,
                 mm.exit, lambda: one.physical_memory, lambda: one.run(pykmm.Tape()), mm.proc_maps):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert "closed" in repr(one)
    assert "closed" in repr(mm)
    gc.collect()


def test_out_of_memory_is_an_error_not_a_crash(machine: Make) -> None:
    one = machine(memory="1M")
    mm = one.mm()
    a = mm.mmap(0, 16 << 20)
    with pytest.raises(MemoryError):
        mm.touch(a, 16 << 20, "w")
    one.validate()
    mm.munmap(a, 16 << 20)
    b = mm.mmap(0, PAGE)
    mm.store(b, b"again")
    assert mm.load(b, 5) == b"again"


def test_objects_of_another_machine(machine: Make) -> None:
    one, two = machine(), machine()
    with pytest.raises(ValueError, match="another machine"):
        one.mm().mmap(0, PAGE, 3, 2, file=two.file("x", b"x"))


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "spf-2021"])
def test_threads_share_a_machine(machine: Make, strategy: str) -> None:
    """More Python threads than CPUs, in one address space: each sees its own bytes, structures stay valid."""
    one = machine(strategy=strategy, cpus=2)
    mm = one.mm()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                a = mm.mmap(0, 4 * PAGE, cpu=number % 2)
                data = bytes([number, turn]) * 4000
                mm.store(a + 3, data, cpu=number % 2)
                assert mm.load(a + 3, len(data), cpu=(number + 1) % 2) == data
                mm.mprotect(a, PAGE, mmap.PROT_READ, cpu=number % 2)
                mm.munmap(a, 4 * PAGE, cpu=number % 2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        one.validate()
    for thread in threads:
        thread.join()
    assert errors == []
    assert mm.vmas == []
    one.validate()


@pytest.mark.parametrize(("what", "message", "place"), [
    ("mm", "map_count", "address space"), ("page tables", "rss is wrong", "address space"),
    ("file", "fewer pages on the list", "file /data"), ("cache", "do not add up", "cache vm_area_struct"),
    ("tlb", "translation allows more", "TLB of cpu 0"), ("zone", "nr_free_pages", "frame"),
])
def test_validate_runs_every_walker(m: pykmm.Machine, what: str, message: str, place: str) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"x")
    b = mm.mmap(0, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE, file=m.file("/data", b"contents"))
    mm.load(b, 1)
    mm.store(a, b"y")
    m.validate()
    damage(mm, what, a)
    try:
        with pytest.raises(pykmm.InvariantViolation, match=message) as caught:
            m.validate()
        assert place in str(caught.value)
    finally:
        damage(mm, what, a, -1)
    m.validate()


def test_quirks() -> None:
    from pykmm_ext.binding import QUIRKS

    with pykmm.Machine(arch=ARCH, memory=frames("16M")) as machine:
        assert machine.quirks == ()
    with pykmm.Machine(arch=ARCH, memory=frames("16M"), quirks=reversed(QUIRKS)) as machine:
        assert machine.quirks == tuple(QUIRKS)
        mm = machine.mm()       # a whole life without any of the fixes, alone
        a = mm.mmap(0, 3 * PAGE, 1, 2 | 0x20)
        mm.mlock(a, 3 * PAGE)
        mm.mprotect(a, 2 * PAGE, 3)
        mm.store(a, b"x")
        child = mm.fork()
        mm.mprotect(a, 3 * PAGE, 3)
        mm.munmap(a, PAGE)
        assert child.load(a, 1) == b"x"
        machine.validate()
    with pytest.raises(ValueError, match="unknown quirk 'none'; known: vma-adjust-order, "):
        pykmm.Machine(quirks=("none",))
    with pytest.raises(TypeError, match="collection of names"):
        pykmm.Machine(quirks="vma-adjust-order")


def test_available_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 1 << 20 < available_memory() < 1 << 60
    files = {"memory.max": "1000000\n", "memory.current": "700000\n", "memory.stat": "anon 5\ninactive_file 50000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("pykmm.machine.CGROUP", tmp_path)
    assert available_memory() == 350_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 1 << 20


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (12, 4096, 1 << 20, 3 << 29, 16 << 40, 1023 << 20)] == [
        "12", "4K", "1M", "1.5G", "16T", "1023M"]
