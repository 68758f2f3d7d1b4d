# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rwsem.pyx: exclusion, fairness, hand-off."""
import os
import threading

import pytest

from pykmm_ext.kernel.locktorture import LockTorture
from pykmm_ext.kernel.primitives import (
    RWSEM_FLAG_WAITERS,
    RWSEM_READER_BIAS,
    RWSEM_WRITER_LOCKED,
    CpuSet,
    RwSem,
)
from pykmm_ext.kernel.rwsem_test import SCENARIOS, hand_off


def wait_until(condition):
    while not condition():
        os.sched_yield()


@pytest.mark.parametrize("write_every", [1, 2, 10, 1000])
@pytest.mark.parametrize("threads", [2, 4])
def test_exclusion(run_threads, threads, write_every):
    t = LockTorture(CpuSet(threads))
    # Hand-offs between sleeping writers go wrong rarely: many of them.
    n = (2_000_000 if write_every == 1 else 100_000) // threads
    results = run_threads(*((t.rwsem, cpu, n, write_every) for cpu in range(threads)))
    assert [errors for errors, _ in results] == [0] * threads
    assert t.counted == sum(writes for _, writes in results)
    assert t.sem_count == 0


def test_writers_get_through_a_reader_storm(run_threads):
    # A lock that prefers readers lets the storm run to its limit; the sections of the readers overlap.
    t = LockTorture(CpuSet(4))
    storms = run_threads(
        (t.reader_storm, 0, 3_000_000, 20), (t.reader_storm, 1, 3_000_000, 20), (t.reader_storm, 2, 3_000_000, 20),
        (t.writer_in_storm, 3, 300, 1))
    assert storms == [True, True, True, 0]
    assert t.counted == 300
    assert t.sem_count == 0


def test_readers_share_and_exclude_writers():
    sem = RwSem(CpuSet(3))
    sem.down_read(0)
    sem.down_read(1)
    assert sem.count == 2 * RWSEM_READER_BIAS
    assert not sem.down_write_trylock(2)
    sem.up_read(0)
    assert not sem.down_write_trylock(2)
    sem.up_read(1)
    assert sem.down_write_trylock(2)
    assert not sem.down_read_trylock(0)
    assert sem.count == RWSEM_WRITER_LOCKED
    sem.up_write(2)
    assert sem.count == 0


def test_a_queued_writer_goes_before_later_readers():
    sem = RwSem(CpuSet(3))
    order = []

    def writer():
        sem.down_write(1)
        order.append("writer")
        sem.up_write(1)

    def reader():
        sem.down_read(2)
        order.append("reader")
        sem.up_read(2)

    sem.down_read(0)
    w = threading.Thread(target=writer)
    w.start()
    wait_until(lambda: sem.count & RWSEM_FLAG_WAITERS)
    assert not sem.down_read_trylock(2)
    r = threading.Thread(target=reader)
    r.start()
    # Still one reader: the later one waits behind the writer (its passing bias aside).
    for _ in range(1000):
        assert order == []
        os.sched_yield()
    sem.up_read(0)
    w.join()
    r.join()
    assert order == ["writer", "reader"] or order[0] == "writer"
    assert sem.count == 0


def test_queued_readers_come_in_together():
    sem = RwSem(CpuSet(4))
    inside = threading.Barrier(3)

    def reader(cpu):
        sem.down_read(cpu)
        inside.wait(timeout=60)  # passes only when all three are inside at once
        sem.up_read(cpu)

    sem.down_write(0)
    threads = [threading.Thread(target=reader, args=(cpu,)) for cpu in (1, 2, 3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sem.count & RWSEM_FLAG_WAITERS)
    sem.up_write(0)
    for thread in threads:
        thread.join()
    assert not inside.broken
    assert sem.count == 0


def test_downgrade_lets_queued_readers_in_and_writers_not():
    sem = RwSem(CpuSet(3))
    got = threading.Event()

    def reader():
        sem.down_read(1)
        got.set()
        sem.up_read(1)

    sem.down_write(0)
    thread = threading.Thread(target=reader)
    thread.start()
    wait_until(lambda: sem.count & RWSEM_FLAG_WAITERS)
    sem.downgrade_write(0)
    assert got.wait(timeout=60)
    thread.join()
    assert not sem.down_write_trylock(2)
    sem.up_read(0)
    assert sem.count == 0


def test_releasing_what_is_not_held_raises():
    sem = RwSem(CpuSet(1))
    with pytest.raises(RuntimeError, match="no reader"):
        sem.up_read()
    with pytest.raises(RuntimeError, match="no writer"):
        sem.up_write()
    with pytest.raises(RuntimeError, match="no writer"):
        sem.downgrade_write()
    with pytest.raises(IndexError):
        sem.down_read(1)


LOCKED, WAITERS, HANDOFF, READER = RWSEM_WRITER_LOCKED, RWSEM_FLAG_WAITERS, 4, RWSEM_READER_BIAS
STEPS = {
    # A waker finds that a spinning writer was faster than the first waiter: nobody else may be from then on.
    "overtaken": [
        ("overtaken", LOCKED | WAITERS), ("flagged", LOCKED | WAITERS | HANDOFF), ("handed over", LOCKED),
        ("has it", LOCKED), ("released by it", 0)],
    # The first waiter was told to try, and finds out itself.
    "told_then_overtaken": [
        ("told to try", WAITERS), ("overtaken", LOCKED | WAITERS), ("waits again", LOCKED | WAITERS | HANDOFF),
        ("handed over", LOCKED), ("has it", LOCKED), ("released by it", 0)],
    # It was told to try and before it ran the lock was taken, flagged, released and given to it.
    "granted_on_the_way": [
        ("told to try", WAITERS), ("overtaken", LOCKED | WAITERS), ("flagged", LOCKED | WAITERS | HANDOFF),
        ("handed over", LOCKED), ("has it", LOCKED), ("released by it", 0)],
    # The release falls between its look at the word and its flag: who released sees the flag, once it has wait_lock.
    "released_before_the_flag": [
        ("told to try", WAITERS), ("overtaken", LOCKED | WAITERS), ("released", WAITERS),
        ("handed over", LOCKED), ("has it", LOCKED), ("released by it", 0)],
    "reader_overtaken": [
        ("overtaken", LOCKED | WAITERS), ("flagged", LOCKED | WAITERS | HANDOFF), ("handed over", READER),
        ("has it", READER), ("released by it", 0)],
    # Free but flagged: a second writer queues behind the first.
    "nobody_overtakes": [
        ("overtaken", LOCKED | WAITERS), ("flagged", LOCKED | WAITERS | HANDOFF), ("free", WAITERS | HANDOFF),
        ("handed over", LOCKED | WAITERS), ("waiter is done", WAITERS), ("other has it", LOCKED), ("has it", 0)],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hand_off_step_by_step(scenario):
    assert hand_off(CpuSet(4), scenario) == (STEPS[scenario], False)
