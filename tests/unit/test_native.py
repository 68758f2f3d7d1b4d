# SPDX-License-Identifier: GPL-2.0-only
"""pykmm_ext/engine/native.pyx: tapes on real threads."""
from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest
from arch_under_test import PAGE

import pykmm
from pykmm.testing import assert_no_leaks

Make = Callable[..., pykmm.Machine]


@pytest.fixture(params=["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
def m(request: pytest.FixtureRequest, machine: Make) -> pykmm.Machine:
    return machine(strategy=request.param, cpus=4)


def test_phases_and_contents(m: pykmm.Machine) -> None:
    t = pykmm.Tape()
    a = t.setup.mmap(4 * PAGE)
    t.setup.store(a, b"A")
    for number in range(3):
        x = t.thread()
        x.store(a + PAGE * (number + 1), bytes([66 + number]))
        x.load(a, 1, expect=b"A")
    for number in range(3):
        t.final.load(a + PAGE * (number + 1), 1, expect=bytes([66 + number]))
    wrong = t.final.load(a, 1, expect=b"Z")
    with assert_no_leaks(m):
        result = m.run(t, durations=True)
    assert result.mismatch_count == 1
    assert f"operation {wrong}" in result.mismatches[0]
    assert (result.errnos == 0).all()
    assert result.durations is not None
    assert (result.durations > 0).all()
    assert result.faults == 4
    assert 0 < result.elapsed < 60
    assert [(line.perms, line.end - line.start) for line in result.maps[0]] == [("rw-p", 4 * PAGE)]


def test_failures_are_results(m: pykmm.Machine) -> None:
    t = pykmm.Tape()
    x = t.thread()
    a = x.mmap(2 * PAGE)
    good = x.munmap(a + 1, PAGE, expect_errno="EINVAL")
    bad = x.mprotect(a, PAGE, "r", expect_errno=errno.ENOMEM)
    fault = x.store(a, b"x")
    outside = x.touch(0x1000)
    last = x.touch((1 << 64) - 1)
    nothing = x.mmap(0)
    result = m.run(t)
    assert [int(result.errnos[i]) for i in (good, bad, fault, outside, last, nothing.op)] == [
        errno.EINVAL, 0, errno.EFAULT, errno.EFAULT, errno.EFAULT, errno.EINVAL]
    assert result.mismatch_count == 1
    assert f"operation {bad}" in result.mismatches[0]
    assert "expected ENOMEM, got success" in result.mismatches[0]


def test_an_address_made_of_a_failure_fails(m: pykmm.Machine) -> None:
    t = pykmm.Tape()
    x = t.thread()
    touched = x.touch(x.mmap(0) + PAGE)
    assert m.run(t).errnos[touched] == errno.EFAULT


def test_fork_and_exit(m: pykmm.Machine) -> None:
    t = pykmm.Tape()
    a = t.setup.mmap(PAGE)
    t.setup.store(a, b"parent")
    x = t.thread()
    child = x.fork()
    child.load(a, 6, expect=b"parent")
    child.store(a, b"child!")
    x.load(a, 6, expect=b"parent")
    child.exit()
    with assert_no_leaks(m):
        result = m.run(t)
    assert result.mismatch_count == 0
    assert sorted(result.maps) == [0, 1]
    assert result.maps[0] == result.maps[1]
    assert result.vmstat["fault_wp_copy"] == 1


def test_dependencies_are_waited_for(m: pykmm.Machine) -> None:
    """A chain through all threads: each unmaps what the one before mapped; one that did not wait would fail."""
    t = pykmm.Tape()
    streams = [t.thread() for _ in range(4)]
    a = streams[0].mmap(PAGE)
    for turn in range(400):
        s = streams[(turn + 1) % 4]
        s.store(a, b"x")
        s.munmap(a, PAGE, expect_errno=0)
        a = s.mmap(PAGE)
        before = len(t) - 1
        following = streams[(turn + 2) % 4]
        following.touch(a)
        t.edges.append((before, len(t) - 1))
    result = m.run(t)
    assert result.mismatch_count == 0
    assert (result.errnos == 0).all()


def test_too_few_cpus_says_how_many(machine: Make) -> None:
    t = pykmm.Tape()
    for _ in range(3):
        t.thread().mmap(PAGE)
    with pytest.raises(ValueError, match=r"needs 3 CPUs, this machine has 2: Machine\(cpus=3\)"):
        machine(cpus=2).run(t)


def test_bad_calls(m: pykmm.Machine) -> None:
    with pytest.raises(TypeError, match=r"run\(\) takes a Tape, not str: 'x'"):
        m.run("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"compare\(\) takes a Tape or the name of a workload, not int: 5"):
        pykmm.compare([5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="unknown engine 'nope'; known: native, host"):
        m.run(pykmm.Tape(), "nope")
    broken = pykmm.Tape()
    broken.thread().mmap(PAGE)
    broken.append("TOUCH", mm=9)
    with pytest.raises(pykmm.TapeError):
        m.run(broken)


def test_an_empty_tape(m: pykmm.Machine) -> None:
    result = m.run(pykmm.Tape())
    assert (result.elapsed, result.faults, len(result.results)) == (0, 0, 0)


def test_out_of_memory_goes_on(machine: Make) -> None:
    one = machine(memory="2M", cpus=1)
    t = pykmm.Tape()
    x = t.thread()
    a = x.mmap(2048 * PAGE)
    full = x.touch(a, 2048 * PAGE, "write")
    x.munmap(a, 2048 * PAGE, expect_errno=0)
    b = x.mmap(PAGE)
    x.store(b, b"on")
    x.load(b, 2, expect=b"on")
    result = one.run(t)
    assert result.errnos[full] == errno.ENOMEM
    assert result.mismatch_count == 0


def test_two_threads_race_and_stay_consistent(m: pykmm.Machine) -> None:
    """Faults against mprotect, DONTNEED and munmap of the same range, without any order between them."""
    t = pykmm.Tape()
    a = t.setup.mmap(64 * PAGE)
    x, y = t.thread(), t.thread()
    for turn in range(200):
        x.touch(a, 64 * PAGE, "write")
        y.mprotect(a + PAGE * (turn % 32), 8 * PAGE, "r" if turn % 2 else "rw")
        y.madvise(a, 16 * PAGE, "MADV_DONTNEED")
        y.munmap(a + 60 * PAGE, PAGE)
    with assert_no_leaks(m):
        result = m.run(t)
    m.validate()
    touches = result.tape.ops["op"] == 17
    assert set(np.unique(result.errnos[touches]).tolist()) <= {0, errno.EFAULT}
    assert (result.errnos[~touches] == 0).all()


def test_touching_again_needs_no_more_memory() -> None:
    """What is committed before the clock starts is the footprint, not the number of accesses."""
    from pykmm.machine import memory_needed

    t = pykmm.Tape()
    a = t.setup.mmap(64 << 20)
    x = t.thread()
    for _ in range(1000):
        x.touch(a, 64 << 20, "write")
    assert memory_needed(t) < 1 << 30
    huge = pykmm.Tape()
    huge.thread().touch(0x1000, (1 << 64) - 0x2000)
    assert memory_needed(huge) <= 1 << 40
