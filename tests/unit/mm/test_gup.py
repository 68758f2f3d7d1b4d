# SPDX-License-Identifier: GPL-2.0-only
"""mm/gup: references, pins, and what a pin promises, on every strategy that is of interest."""
from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

import pytest
from arch_under_test import ARCH, PAGE, TABLE, frames

import pykmm

STRATEGIES = ("mmap_sem", "spf", "lockless_gup", "lockless_gup[monitor=atomic]",
              "lockless_gup[monitor=percpu,serialize=rcu]", "lockless_gup[monitor=percpu,serialize=ipi]")


ARCHES = ("x86", "x86-paravirt") if ARCH == "x86" else (ARCH,)


@pytest.fixture(params=[(s, a) for s in STRATEGIES for a in ARCHES], ids="-".join)
def m(request: pytest.FixtureRequest) -> Iterator[pykmm.Machine]:
    strategy, arch = request.param
    with pykmm.Machine(arch=arch, strategy=strategy, cpus=2, memory=frames("16M")) as machine:
        yield machine
        machine.validate()


def frame(mm: pykmm.MmStruct, addr: int) -> int:
    return mm.pagemap(addr, 1)[0] & ((1 << 55) - 1)


def test_a_pin_holds_the_frames_that_are_mapped(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 4 * PAGE)
    mm.store(a + PAGE, b"x")
    with mm.pin(a + 10, 3 * PAGE, write=True) as pin:
        assert (pin.addr, pin.length, pin.write_access) == (a + 10, 3 * PAGE, True)
        assert list(pin.pfns) == [frame(mm, a + i * PAGE) for i in range(4)]
        m.validate()
    assert m.vmstat["nr_foll_pin_acquired"] == m.vmstat["nr_foll_pin_released"] == 4


def test_what_a_device_writes_is_read_by_the_process_and_the_reverse(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 2 * PAGE)
    mm.store(a + PAGE - 2, b"abcd")
    pin = mm.pin(a, 2 * PAGE, write=True)
    assert pin.read(PAGE - 2, 4) == b"abcd"
    pin.write(b"ABCD", PAGE - 2)
    assert mm.load(a + PAGE - 2, 4) == b"ABCD"
    pin.unpin()
    pin.unpin()
    with pytest.raises(ValueError, match="given up"):
        pin.read()


def test_a_pinned_page_outlives_its_mapping_and_its_address_space(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"data")
    pin = mm.pin(a, PAGE, write=True)
    mm.munmap(a, PAGE)
    assert pin.read(0, 4) == b"data"
    b = mm.mmap(0, 64 * PAGE)
    mm.touch(b, 64 * PAGE, "w")
    assert pin.pfns[0] not in {frame(mm, b + i * PAGE) for i in range(64)}
    mm.exit()
    pin.write(b"DATA")
    assert pin.read(0, 4) == b"DATA"
    pin.unpin()


def test_fork_copies_what_is_pinned(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 2 * PAGE)
    mm.store(a, b"old")
    mm.store(a + PAGE, b"old")
    pin = mm.pin(a, PAGE, write=True)
    child = mm.fork()
    assert frame(child, a) != frame(mm, a) == pin.pfns[0]
    assert frame(child, a + PAGE) == frame(mm, a + PAGE)
    mm.store(a, b"new")
    assert frame(mm, a) == pin.pfns[0]
    pin.write(b"dev")
    assert mm.load(a, 3) == b"dev"
    assert child.load(a, 3) == b"old"
    m.validate()
    pin.unpin()


@pytest.mark.parametrize("write", [False, True])
def test_a_pin_of_a_page_that_a_child_shares_is_exclusive(m: pykmm.Machine, write: bool) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"old")
    child = mm.fork()
    shared = frame(mm, a)
    pin = mm.pin(a, PAGE, write=write)
    assert pin.pfns[0] != shared == frame(child, a)
    mm.store(a, b"new")
    assert pin.read(0, 3) == b"new"
    assert child.load(a, 3) == b"old"
    pin.unpin()


def test_the_last_owner_gets_the_page_itself(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"old")
    mm.fork().exit()
    page = frame(mm, a)
    with mm.pin(a, PAGE) as pin:
        assert pin.pfns == (page,)
        mm.store(a, b"new")
        assert pin.read(0, 3) == b"new"


def test_a_read_only_mapping_keeps_its_pinned_page_when_it_becomes_writable(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"old")
    mm.mprotect(a, PAGE, 1)
    with mm.pin(a, PAGE) as pin:
        with pytest.raises(OSError, match="Bad address"):
            mm.pin(a, PAGE, write=True)
        mm.mprotect(a, PAGE, 3)
        mm.store(a, b"new")
        assert pin.read(0, 3) == b"new"


def test_dontneed_takes_the_page_from_the_mapping_not_from_the_pin(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.store(a, b"old")
    with mm.pin(a, PAGE, write=True) as pin:
        mm.madvise(a, PAGE, 4)
        assert mm.load(a, 3) == b"\0\0\0"
        pin.write(b"dev")
        assert mm.load(a, 3) == b"\0\0\0"


def test_the_zero_page_is_neither_counted_nor_copied(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 2 * PAGE)
    with mm.pin(a, 2 * PAGE) as pin:
        assert pin.pfns[0] == pin.pfns[1]
        assert pin.read() == bytes(2 * PAGE)
    assert m.vmstat["nr_foll_pin_acquired"] == 0


def test_files(m: pykmm.Machine) -> None:
    with contextlib.closing(m.file("f", data=b"file" + bytes(PAGE))) as f:
        mm = m.mm()
        shared = mm.mmap(0, PAGE, 3, 1, file=f)
        private = mm.mmap(0, PAGE, 3, 2, file=f)
        with mm.pin(shared, PAGE, write=True) as pin, mm.pin(private, PAGE) as reader:
            pin.write(b"FILE")
            assert mm.load(private, 4) == reader.read(0, 4) == b"FILE"
            assert reader.pfns == pin.pfns
            with mm.pin(private, PAGE, write=True) as own:
                own.write(b"mine")
                assert own.pfns != pin.pfns
            assert (mm.load(private, 4), mm.load(shared, 4)) == (b"mine", b"FILE")


def test_a_range_is_pinned_as_a_whole_or_not_at_all(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, 3 * PAGE)
    mm.touch(a, 3 * PAGE, "w")
    mm.munmap(a + 2 * PAGE, PAGE)
    for addr, n in ((a, 3 * PAGE), (a + 2 * PAGE, 1), (0, PAGE), ((1 << 47) - PAGE, PAGE), (1 << 60, 1), (a, 1 << 62)):
        with pytest.raises(OSError, match="Bad address"):
            mm.pin(addr, n)
    assert m.vmstat["nr_foll_pin_acquired"] == m.vmstat["nr_foll_pin_released"]
    mm.mprotect(a, PAGE, 0)
    with pytest.raises(OSError, match="Bad address"):
        mm.pin(a, PAGE)
    assert mm.pin(a, 0).pfns == ()


def test_a_collapse_leaves_pinned_pages_alone(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0x40000000, TABLE, 3, 0x32)
    mm.store(a, b"A")
    with mm.pin(a, PAGE), pytest.raises(BlockingIOError):
        mm.madvise(a, TABLE, 25)
    with pytest.raises(OSError, match="memory"):
        mm.madvise(a, TABLE, 25)
    assert mm.load(a, 1) == b"A"


def test_pins_that_nobody_gives_up(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    mm.pin(a, PAGE, write=True)
    gc.collect()
    m.mm()                                              # reaps
    assert m.vmstat["nr_foll_pin_acquired"] == m.vmstat["nr_foll_pin_released"] == 1


def test_close_gives_pins_up() -> None:
    with pykmm.Machine(strategy="lockless_gup") as m:
        mm = m.mm()
        pin = mm.pin(mm.mmap(0, PAGE), PAGE, write=True)
    with pytest.raises(ValueError, match="closed"):     # and close() has not found a frame left
        pin.read()


def test_wrong_arguments(m: pykmm.Machine) -> None:
    mm = m.mm()
    a = mm.mmap(0, PAGE)
    with mm.pin(a, 100) as pin:
        with pytest.raises(ValueError, match="for reading"):
            pin.write(b"x")
        with pytest.raises(ValueError, match="of a pin of 100"):
            pin.read(90, 11)
        with pytest.raises(ValueError, match="of a pin of 100"):
            pin.read(101)
        assert len(pin.read(90)) == 10
    with pytest.raises(TypeError):
        mm.pin("a", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MmStruct.pin"):
        type(pin)()


def test_counters_tell_how_the_pages_were_pinned() -> None:
    with pykmm.Machine(strategy="lockless_gup[monitor=percpu]", cpus=1) as m:
        mm = m.mm()
        a = mm.mmap(0, 4 * PAGE)
        mm.pin(a, PAGE, write=True).unpin()             # a fault
        mm.pin(a, PAGE, write=True).unpin()
        mm.pin(a, 2 * PAGE, write=True).unpin()
        counters = m.counters
        assert counters["gup_attempts"] == 3
        assert (counters["gup_slow"], counters["gup_fast"], counters["gup_partial"]) == (1, 1, 1)
        mm.munmap(a, 4 * PAGE)
        assert m.counters["walks_skipped"] == 1
        assert m.counters["walks_serialized"] == 0


@pytest.mark.parametrize("text", ["lockless_gup[monitor=all]", "lockless_gup[walks=1]"])
def test_unknown_options(text: str) -> None:
    with pytest.raises(ValueError, match="known|option"):
        pykmm.Machine(strategy=text)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("arch", ["x86", "x86-paravirt"])
def test_pinners_against_mappers(strategy: str, arch: str) -> None:
    """Threads that pin, write through pins and give up, against mapping, unmapping, fork and COW of the same pages."""
    with pykmm.Machine(arch=arch, strategy=strategy, cpus=4, memory="64M") as m:
        mm = m.mm()
        a = mm.mmap(0x40000000, 8 * PAGE, 3, 0x32)
        mm.touch(a, 8 * PAGE, "w")
        wrong: list[str] = []
        over = threading.Event()

        def pinner(cpu: int) -> None:
            data = bytes([cpu]) * 16
            while not over.is_set():
                try:
                    with mm.pin(a + cpu * PAGE, 3 * PAGE, write=True, cpu=cpu) as pin:
                        pin.write(data, 100 * cpu, cpu=cpu)
                        if pin.read(100 * cpu, 16, cpu=cpu) != data:
                            wrong.append("another's data")
                except OSError:
                    pass

        threads = [threading.Thread(target=pinner, args=(cpu,)) for cpu in (1, 2, 3)]
        for thread in threads:
            thread.start()
        try:
            for i in range(60):
                child = mm.fork()
                mm.store(a + i % 8 * PAGE, b"parent")
                child.store(a + i % 8 * PAGE, b"child")
                child.exit()
                mm.mprotect(a, 4 * PAGE, 1)
                mm.mprotect(a, 4 * PAGE, 3)
                mm.madvise(a, 8 * PAGE, 4)
                mm.munmap(a, 8 * PAGE)
                mm.mmap(a, 8 * PAGE, 3, 0x32)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not wrong
        m.validate()
        assert m.vmstat["nr_foll_pin_acquired"] == m.vmstat["nr_foll_pin_released"] > 0
