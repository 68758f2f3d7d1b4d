# SPDX-License-Identifier: GPL-2.0-only
"""include/kmm/atomic.h through kernel/primitives.pyx."""
import pytest

from pykmm_ext.kernel.primitives import Atomic, CpuSet


def test_operations():
    a = Atomic(CpuSet(2), 5)
    assert a.load() == 5
    a.store(7, 1)
    assert a.load_acquire(1) == 7
    a.store_release(8)
    assert a.xchg(9) == 8
    assert a.cmpxchg(1, 2) == 9
    assert a.load() == 9
    assert a.cmpxchg(9, 10) == 9
    assert a.add_return(-11) == 2**64 - 1
    assert a.add_return(1) == 0
    with pytest.raises(IndexError):
        a.load(2)


def test_cpu_sets():
    assert len(CpuSet(3)) == 3
    for n in (0, 1025, -1):
        with pytest.raises(ValueError):
            CpuSet(n)
