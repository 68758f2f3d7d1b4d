# SPDX-License-Identifier: GPL-2.0-only
"""include/kmm/spinlock.h: mutual exclusion."""
import pytest

from pykmm_ext.kernel.locktorture import LockTorture
from pykmm_ext.kernel.primitives import CpuSet, SpinLock


@pytest.mark.parametrize("threads", [2, 4])
def test_mutual_exclusion(run_threads, threads):
    t = LockTorture(CpuSet(threads))
    n = 400_000 // threads
    assert run_threads(*((t.spin, cpu, n) for cpu in range(threads))) == [0] * threads
    assert t.counted == n * threads


def test_trylock_and_state():
    lock = SpinLock(CpuSet(2))
    assert not lock.locked
    assert lock.trylock(0)
    assert lock.locked
    assert not lock.trylock(1)
    lock.unlock(0)
    assert lock.trylock(1)
    lock.unlock(1)
    with pytest.raises(RuntimeError, match="not locked"):
        lock.unlock()
