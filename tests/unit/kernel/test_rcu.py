# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rcu.pyx and kernel/srcu.pyx: nothing that a reader can see is dead; callbacks run once, in order."""
import os
import threading

import pytest

from pykmm_ext.kernel.primitives import CpuSet, Rcu, Srcu
from pykmm_ext.kernel.rcutorture import RcuTorture


@pytest.fixture(params=[False, True], ids=["rcu", "srcu"])
def sleepable(request):
    return request.param


def domain(sleepable, cpus):
    return Srcu(cpus) if sleepable else Rcu(cpus)


def enter(d, cpu):
    return d.read_lock(cpu)


def leave(d, cpu, idx):
    if isinstance(d, Srcu):
        d.read_unlock(idx, cpu)
    else:
        d.read_unlock(cpu)


@pytest.mark.parametrize("call_every", [0, 1, 100], ids=["call", "synchronize", "both"])
@pytest.mark.parametrize("hold", [0, 30])
def test_readers_never_see_dead_objects(run_threads, full_fences, sleepable, call_every, hold):
    n = {0: 30_000, 1: 200, 100: 5_000}[call_every]
    t = RcuTorture(CpuSet(4, full_fences), sleepable, 2 * n)
    results = run_threads(
        (t.reader, 0, 1 << 40, hold, 3), (t.reader, 1, 1 << 40, hold, 0),
        (t.writer, 2, n, call_every, 2), (t.writer, 3, n, call_every, 2))
    assert [dead for _, dead in results[:2]] == [0, 0]
    assert results[2:] == [n, n]
    queued, invoked = t.barrier(0)
    assert queued == invoked == 2 * (n - len(range(0, n, call_every)) if call_every else n)
    assert t.invoked_twice == 0
    assert t.grace_periods > 0


def test_barrier_beside_callers(run_threads, sleepable):
    # Every barrier sees at least what was queued before it.
    t = RcuTorture(CpuSet(3), sleepable, 200_000)

    def barriers():
        return all(invoked >= queued for queued, invoked in (t.barrier(0) for _ in range(300)))

    results = run_threads((barriers,), (t.writer, 1, 100_000, 0, 2), (t.writer, 2, 100_000, 0, 2))
    assert results == [True, 100_000, 100_000]
    assert t.barrier(0) == (200_000, 200_000)
    assert t.invoked_twice == 0


def test_call_never_waits_for_a_reader(sleepable):
    t = RcuTorture(CpuSet(2), sleepable, 5_000)
    idx = t.read_lock(0)
    assert t.writer(1, 4_000, 0, 9) == 4_000
    assert t.callbacks == (4_000, 0)
    t.read_unlock(0, idx)
    # Later calls move on by themselves, no barrier needed.
    t.writer(1, 1_000, 0, 9)
    assert t.callbacks[1] > 4_000 - 64
    assert t.barrier(1) == (5_000, 5_000)


def test_synchronize_waits_for_a_reader_that_was_inside(sleepable):
    d = domain(sleepable, CpuSet(2))
    over = threading.Event()
    idx = enter(d, 0)
    inner = enter(d, 0)
    thread = threading.Thread(target=lambda: (d.synchronize(1), over.set()))
    thread.start()
    for _ in range(2000):
        os.sched_yield()
    assert not over.is_set()
    leave(d, 0, inner)
    for _ in range(2000):
        os.sched_yield()
    assert not over.is_set()
    leave(d, 0, idx)
    assert over.wait(timeout=60)
    thread.join()


def test_srcu_does_not_wait_for_readers_that_came_later():
    # Reader 0 is inside; the grace period has flipped the index; reader 2 comes and stays: it must not matter.
    cpus = CpuSet(3)
    s = Srcu(cpus)
    first = s.read_lock(0)
    thread = threading.Thread(target=s.synchronize, args=(1,))
    thread.start()
    later = first
    for _ in range(1 << 30):
        later = s.read_lock(2)
        if later != first:
            break
        s.read_unlock(later, 2)
        os.sched_yield()
    assert later != first
    s.read_unlock(first, 0)
    thread.join()
    s.read_unlock(later, 2)


def test_domains_are_independent():
    cpus = CpuSet(2)
    a, b, rcu = Srcu(cpus), Srcu(cpus), Rcu(cpus)
    idx = a.read_lock(0)
    b.synchronize(1)
    rcu.synchronize(1)
    a.read_unlock(idx, 0)
    a.synchronize(1)


def test_callbacks_run_in_order_and_from_a_callback_too(sleepable):
    d = domain(sleepable, CpuSet(1))
    ran = []

    def first():
        ran.append("first")
        d.call(lambda: ran.append("third"))

    d.call(first)
    d.call(lambda: ran.append("second"))
    assert ran == []
    d.barrier()
    assert ran[:2] == ["first", "second"]
    d.barrier()
    assert ran == ["first", "second", "third"]


def test_leftover_callbacks_run_when_the_domain_dies(sleepable):
    ran = []
    cpus = CpuSet(1)
    d = domain(sleepable, cpus)
    d.call(lambda: ran.append(1))
    del d, cpus
    assert ran == [1]


def test_an_exception_in_a_callback_is_reported(sleepable, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: seen.append(args.exc_type))
    d = domain(sleepable, CpuSet(1))
    d.call(lambda: 1 / 0)
    d.barrier()
    assert seen == [ZeroDivisionError]
    with pytest.raises(TypeError):
        d.call(None)


def test_misuse_raises(sleepable):
    d = domain(sleepable, CpuSet(2))
    with pytest.raises(RuntimeError, match="outside"):
        leave(d, 0, 0)
    idx = enter(d, 0)
    for wait in (d.synchronize, d.barrier):
        with pytest.raises(RuntimeError, match="inside"):
            wait(0)
    leave(d, 0, idx)
    with pytest.raises(IndexError):
        enter(d, 2)


def test_srcu_readers_active():
    t = RcuTorture(CpuSet(2), True, 1)
    assert not t.readers_active
    idx = t.read_lock(1)
    assert t.readers_active
    t.read_unlock(1, idx)
    assert not t.readers_active
