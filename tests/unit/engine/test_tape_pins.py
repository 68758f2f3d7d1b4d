# SPDX-License-Identifier: GPL-2.0-only
"""PIN and UNPIN on tapes: what the builder refuses, what the native and the check engine do with them."""
from __future__ import annotations

import pathlib

import pytest
from arch_under_test import ARCH, PAGE, frames

import pykmm
from pykmm.tape import NO_RESULT, OPCODES, Tape


def one(**unpin: bytes) -> Tape:
    t = Tape()
    a = t.setup.mmap(2 * PAGE, fixed=0x40000000)
    t.setup.store(a + PAGE - 2, b"abcd")
    x = t.thread()
    x.pin(a + PAGE - 2, 4, write="write" in unpin, expect_errno=0)
    x.unpin(a + PAGE - 2, 4, **unpin, expect_errno=0)       # type: ignore[arg-type]
    if "write" in unpin:
        t.final.load(a + PAGE - 2, 4, expect=unpin["write"])
    return t


def test_the_record() -> None:
    t = one(write=b"ABCD")
    pin, unpin = t.ops[2], t.ops[3]
    assert (pin["op"], pin["access"], pin["len"]) == (OPCODES["PIN"], 1, 4)
    assert (unpin["op"], unpin["access"], unpin["new_addr_ref"], unpin["result"]) == (OPCODES["UNPIN"], 1, 2, NO_RESULT)
    assert t.blobs[int(unpin["data"])] == b"ABCD"


def test_unpin_belongs_to_the_newest_pin_of_its_range() -> None:
    t = Tape()
    x = t.thread()
    a = x.mmap(PAGE)
    first, second = x.pin(a, PAGE), x.pin(a, PAGE)
    numbers = [x.unpin(a, PAGE), x.unpin(a, PAGE)]
    assert t.ops["new_addr_ref"][numbers].tolist() == [second, first]
    with pytest.raises(pykmm.TapeError, match="no pin of"):
        x.unpin(a, PAGE)


def test_what_the_builder_refuses() -> None:
    t = Tape()
    x = t.thread()
    a = x.mmap(PAGE)
    x.pin(a, 4)
    for kwargs, text in (({"write": b"x"}, "for reading"), ({"expect": b"12345"}, "do not fit"),
                         ({"expect": b"x", "write": b"x"}, "not both")):
        with pytest.raises(pykmm.TapeError, match=text):
            x.unpin(a, 4, **kwargs)     # type: ignore[arg-type]
    with pytest.raises(pykmm.TapeError, match="no pin of"):
        x.unpin(a, 5)
    x.unpin(a, 4)


def test_a_tape_whose_unpin_names_no_pin() -> None:
    t = one()
    t.ops["new_addr_ref"][3] = 1
    with pytest.raises(pykmm.TapeError, match="gives up a pin that is none"):
        t.program()


def test_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    t = one(expect=b"abcd")
    t.save(tmp_path / "t.npz")
    with pykmm.Machine(cpus=1, arch=ARCH, memory=frames("16M")) as m:
        assert m.run(Tape.load(tmp_path / "t.npz")).mismatch_count == 0


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "lockless_gup"])
def test_native(strategy: str) -> None:
    with pykmm.Machine(strategy=strategy, cpus=1, arch=ARCH, memory=frames("16M")) as m:
        for t in (one(), one(expect=b"abcd"), one(write=b"ABCD")):
            assert m.run(t).mismatch_count == 0
        assert m.run(one(expect=b"abcx")).mismatch_count == 1
        m.validate()


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "lockless_gup[monitor=percpu]"])
def test_check(strategy: str) -> None:
    for t in (one(), one(expect=b"abcd"), one(write=b"ABCD")):
        report = pykmm.check(t, strategy=strategy, arch=ARCH)
        assert report.ok, str(report)
        assert report.complete
    report = pykmm.check(one(expect=b"abcx"), strategy=strategy, arch=ARCH)
    assert report.violations[0].kind == "wrong-value"


def test_pins_that_are_held_to_the_end_are_no_leak() -> None:
    t = Tape()
    a = t.setup.mmap(PAGE)
    t.setup.pin(a, PAGE, write=True)
    x = t.thread()
    x.pin(a, PAGE)
    x.munmap(a, PAGE)
    report = pykmm.check(t, strategy="lockless_gup", arch=ARCH)
    assert report.ok, str(report)
    with pykmm.Machine(strategy="lockless_gup", cpus=1, arch=ARCH, memory=frames("16M")) as m:
        m.run(t)
        assert m.vmstat["nr_foll_pin_acquired"] == m.vmstat["nr_foll_pin_released"] == 2


def test_unpin_in_another_thread_waits_for_the_pin() -> None:
    t = Tape()
    a = t.setup.mmap(PAGE)
    t.setup.store(a, b"A")
    t.thread().pin(a, PAGE, expect_errno=0)
    t.thread().unpin(a, PAGE, expect=b"A", expect_errno=0)
    report = pykmm.check(t, strategy="lockless_gup", arch=ARCH)
    assert report.ok, str(report)
    with pykmm.Machine(strategy="lockless_gup", cpus=2, arch=ARCH, memory=frames("16M")) as m:
        assert m.run(t).mismatch_count == 0


def test_an_unpin_after_the_address_space_is_gone() -> None:
    t = Tape()
    a = t.setup.mmap(PAGE)
    t.setup.store(a, b"A")
    child = t.setup.fork()
    child.pin(a, PAGE, expect_errno=0)
    child.exit()
    t.final.unpin(a, PAGE, expect=b"A", expect_errno=0)
    with pykmm.Machine(strategy="lockless_gup", cpus=2, arch=ARCH, memory=frames("16M")) as m:
        assert m.run(t).mismatch_count == 0
        m.validate()
