# SPDX-License-Identifier: GPL-2.0-only
"""machine/irq.pyx: cross-CPU calls exclude the target's IRQ-off sections, reach everybody once, and end."""
import os
import threading
from typing import Any

import pytest

from pykmm_ext.kernel.locktorture import LockTorture
from pykmm_ext.kernel.primitives import CpuSet


def run_threads(*jobs: Any) -> list[Any]:
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def body(i: int, job: Any) -> None:
        start.wait()
        results[i] = job[0](*job[1:])

    threads = [threading.Thread(target=body, args=(i, job)) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("full_fences", [False, True], ids=["membarrier", "full-fences"])
@pytest.mark.parametrize("send_every", [1, 5, 50])
@pytest.mark.parametrize("threads", [2, 4])
def test_storm(threads, send_every, full_fences):
    t = LockTorture(CpuSet(threads, full_fences))
    n = {1: 40_000, 5: 80_000, 50: 200_000}[send_every] // threads
    burst = 20
    calls = run_threads(*((t.irq, cpu, n, send_every, burst) for cpu in range(threads)))
    sent, handled = t.ipis
    assert sent == handled == sum(calls) * (threads - 1)
    for cpu, (a, b, errors) in enumerate(t.irq_pairs):
        assert errors == 0
        assert a == b == n * burst + sum(calls) - calls[cpu]
        assert t.ipi_pending(cpu) == 0


def test_idle_cpus_are_served_by_the_sender():
    t = LockTorture(CpuSet(5))
    t.call(0, 0b11011)  # not CPU 2, not itself
    assert [a for a, _, _ in t.irq_pairs] == [0, 1, 0, 1, 1]
    t.call(3, 0)
    assert t.ipis == (3, 3)


def test_many_cpus():
    # More targets than fit on the sender's stack.
    t = LockTorture(CpuSet(64))
    t.call(7, (1 << 64) - 1)
    assert [a for a, _, _ in t.irq_pairs] == [0 if cpu == 7 else 1 for cpu in range(64)]


def test_call_waits_for_interrupts_to_be_on_again():
    t = LockTorture(CpuSet(2))
    t.irq_disable(1)
    t.irq_disable(1)
    thread = threading.Thread(target=t.call, args=(0, 0b10))
    thread.start()
    while not t.ipi_pending(1):
        os.sched_yield()
    t.irq_enable(1)  # still one level
    for _ in range(2000):
        os.sched_yield()
    assert t.irq_pairs[1][0] == 0
    t.irq_enable(1)
    thread.join()
    assert t.irq_pairs[1] == (1, 1, 0)
    assert t.ipi_pending(1) == 0
