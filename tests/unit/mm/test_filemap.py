# SPDX-License-Identifier: GPL-2.0-only
"""mm/filemap.c: contents of the page cache, references, sizes from nothing to absurd."""
from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from arch_under_test import ARCH, LEVELS, PAGE, frames, make_arch

from pykmm import BusError
from pykmm_ext.binding import Machine, MmStruct
from pykmm_ext.mm.memory_test import page_info, validate_contents
from pykmm_plugins.strategies._mmap_sem import MmapSem

R, W = 1, 2
SHARED, PRIVATE = 1, 2


@pytest.fixture
def m() -> Iterator[Machine]:
    with Machine(make_arch(), MmapSem(), cpus=1, memory=frames(16 << 20)) as machine:
        yield machine
        assert validate_contents(machine) is None


@pytest.fixture
def mm(m: Machine) -> MmStruct:
    return m.mm()


def test_data_then_zeroes(m: Machine, mm: MmStruct) -> None:
    data = bytes(range(256)) * 17 + b"end"
    f = m.file("f", data=data, size=3 * PAGE)
    a = mm.mmap(0, 3 * PAGE, R, PRIVATE, file=f)
    assert mm.load(a, 3 * PAGE) == data.ljust(3 * PAGE, b"\0")


def test_offset(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"".join(bytes([i]) * PAGE for i in range(8)))
    a = mm.mmap(0, 2 * PAGE, R, PRIVATE, file=f, offset=5 * PAGE)
    assert mm.load(a + PAGE - 1, 2) == b"\5\6"


def test_a_page_is_read_once(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"x" * PAGE)
    others = [m.mm() for _ in range(3)]
    for each in others:
        assert each.load(each.mmap(0, PAGE, R, SHARED, file=f), 1) == b"x"
    assert m.vmstat["pgmajfault"] == 1
    a = mm.mmap(0, PAGE, R, PRIVATE, file=f)
    mm.load(a, 1)
    assert page_info(mm, a)[1:3] == (5, 4)


def test_a_mapping_keeps_a_closed_file(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"still here")
    a = mm.mmap(0, PAGE, R, PRIVATE, file=f)
    f.close()
    assert mm.load(a, 10) == b"still here"
    used = m.vmstat["nr_used_frames"]
    mm.munmap(a, PAGE)
    m.validate()                # waits until the page tables are gone
    # the cached page, and the tables below the root
    assert m.vmstat["nr_used_frames"] == used - LEVELS


def test_sparse_tebibyte(m: Machine, mm: MmStruct) -> None:
    size = 1 << 40
    f = m.file("sparse", data=b"head", size=size)
    a = mm.mmap(0, PAGE, R | W, SHARED, file=f)
    b = mm.mmap(0, PAGE, R | W, SHARED, file=f, offset=size - PAGE)
    frames = m.vmstat["nr_used_frames"]
    mm.store(b + PAGE - 1, b"!")
    assert mm.load(a, 4) == b"head"
    assert m.vmstat["nr_used_frames"] - frames <= 8
    c = mm.mmap(0, PAGE, R, PRIVATE, file=f, offset=size - PAGE)
    assert mm.load(c + PAGE - 2, 2) == b"\0!"


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1])
def test_last_page(m: Machine, mm: MmStruct, size: int) -> None:
    f = m.file("f", data=b"z" * size)
    a = mm.mmap(0, 2 * PAGE, R, PRIVATE, file=f)
    pages = -(-size // PAGE)
    for i in range(2):
        if i < pages:
            assert mm.load(a + i * PAGE, 1) == b"z"
        else:
            with pytest.raises(BusError):
                mm.load(a + i * PAGE, 1)


@pytest.mark.parametrize("size", [PAGE << 46, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_absurd_sizes(m: Machine, size: int) -> None:
    with pytest.raises((MemoryError, OSError, ValueError, OverflowError)):
        m.file("huge", size=size)


def test_end_of_the_last_page_is_zero_in_a_used_frame(m: Machine, mm: MmStruct) -> None:
    a = mm.mmap(0, 64 * PAGE, R | W, PRIVATE | 0x20)
    for i in range(64):
        mm.store(a + i * PAGE, b"\xff" * PAGE)
    mm.munmap(a, 64 * PAGE)
    for i in range(8):
        f = m.file(f"f{i}", data=b"abc")
        assert mm.load(mm.mmap(0, PAGE, R, PRIVATE, file=f), PAGE) == b"abc".ljust(PAGE, b"\0")


# ---- truncation ----------------------------------------------------------------------------------

def test_truncation_takes_every_mapping_and_private_copies(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"".join(bytes([i]) * PAGE for i in range(1, 5)))
    shared = mm.mmap(0, 4 * PAGE, R | W, SHARED, file=f)
    private = mm.mmap(0, 3 * PAGE, R | W, PRIVATE, file=f, offset=PAGE)
    child = mm.fork()
    for each in (mm, child):
        each.store(shared + 2 * PAGE, b"s")
        each.store(private + PAGE, b"p")
        assert each.load(private, 3 * PAGE)[::PAGE] == b"\2p\4"
    f.truncate(2 * PAGE)
    assert f.size == 2 * PAGE
    for each in (mm, child):
        assert each.load(shared, 2 * PAGE)[::PAGE] == b"\1\2"
        assert each.load(private, 1) == b"\2"
        for address in (shared + 2 * PAGE, shared + 3 * PAGE, private + PAGE, private + 2 * PAGE):
            with pytest.raises(BusError):
                each.load(address, 1)
            with pytest.raises(BusError):
                each.store(address, b"x")
    m.validate()
    f.truncate(4 * PAGE)
    assert mm.load(shared, 4 * PAGE)[::PAGE] == b"\1\2\0\0"
    assert child.load(private, 3 * PAGE)[::PAGE] == b"\2\0\0"
    child.exit()
    m.validate()


def test_truncation_inside_a_page(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"x" * (2 * PAGE))
    a = mm.mmap(0, 2 * PAGE, R | W, SHARED, file=f)
    mm.store(a + 100, b"kept")
    f.truncate(103)
    assert mm.load(a + 99, 6) == b"xkep\0\0"
    assert mm.load(a + 104, PAGE - 104) == bytes(PAGE - 104)
    f.truncate(2 * PAGE)
    assert mm.load(a + PAGE, PAGE) == bytes(PAGE)       # not what the file began with


def test_truncation_before_anything_was_read(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", data=b"x" * (2 * PAGE))
    f.truncate(PAGE + 1)
    f.truncate(2 * PAGE)
    a = mm.mmap(0, 2 * PAGE, R, SHARED, file=f)
    assert mm.load(a, 2 * PAGE) == b"x" * (PAGE + 1) + bytes(PAGE - 1)
    assert m.vmstat["nr_used_frames"]
    f.truncate(0)
    with pytest.raises(BusError):
        mm.load(a, 1)
    m.validate()


def test_truncation_to_sizes_that_no_file_has(m: Machine) -> None:
    f = m.file("f", size=PAGE + 1)
    f.truncate(2 * PAGE)
    for size, number in ((2 * PAGE + 1, errno.EFBIG), (1 << 63, errno.EINVAL)):
        with pytest.raises(OSError) as error:
            f.truncate(size)
        assert error.value.errno == number
    with pytest.raises(ValueError):
        f.truncate(-1)
    f.close()
    with pytest.raises(ValueError, match="closed"):
        f.truncate(0)


def test_truncation_frees_the_pages(m: Machine, mm: MmStruct) -> None:
    f = m.file("f", size=64 * PAGE)
    before = m.vmstat["nr_used_frames"]
    a = mm.mmap(0, 64 * PAGE, R | W, SHARED, file=f)
    mm.touch(a, 64 * PAGE)
    f.truncate(0)
    mm.munmap(a, 64 * PAGE)
    m.validate()
    assert m.vmstat["nr_used_frames"] == before


def test_truncation_on_a_tape() -> None:
    from pykmm.machine import Machine as TapeMachine
    from pykmm.tape import Tape, TapeError

    t = Tape()
    t.file("f", data=b"ab" * PAGE)
    x = t.thread()
    a = x.mmap(2 * PAGE, shared=True, file="f")
    x.store(a + PAGE, b"c", expect_errno=0)
    x.truncate("f", 2, expect_errno=0)
    x.load(a, 4, expect=b"ab\0\0")
    x.load(a + PAGE, 1, expect_errno="EFAULT")
    x.truncate("f", 3 * PAGE, expect_errno="EFBIG")
    with TapeMachine(arch=ARCH, cpus=1, memory=frames("16M")) as machine:
        assert not machine.run(t).mismatches
        machine.validate()
    t.append("TRUNCATE", thread=x.thread_index, phase=1)
    with pytest.raises(TapeError, match="truncate without a file"):
        t.validate()
