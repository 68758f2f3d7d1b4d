# SPDX-License-Identifier: GPL-2.0-only
"""kernel/slab.pyx: zeroed, distinct, aligned objects; counts that add up."""
from itertools import pairwise

import pytest

from pykmm_ext.kernel.primitives import CpuSet
from pykmm_ext.kernel.slab_test import SlabCache


@pytest.mark.parametrize("size", [16, 24, 64, 200, 1000, 70_000])
def test_objects_are_distinct_aligned_and_counted(size):
    cache = SlabCache(CpuSet(1), size)
    addresses = [cache.alloc(slot) for slot in range(500)]
    assert cache.object_size >= size
    spans = sorted(addresses)
    assert all(b - a >= cache.object_size for a, b in pairwise(spans))
    assert all(a % (64 if size >= 64 else 16) == 0 for a in addresses)
    assert cache.active == 500
    assert cache.valid()
    for slot in range(0, 500, 2):
        cache.free(slot)
    assert cache.active == 250
    assert cache.valid()
    assert cache.destroy() == 250
    assert cache.active == 0


def test_memory_is_reused_and_zeroed():
    cache = SlabCache(CpuSet(1), 256)
    first = {cache.alloc(slot) for slot in range(100)}
    total = cache.total
    for slot in range(100):
        cache.free(slot)
    again = {cache.alloc(slot) for slot in range(100)}  # alloc() checks the zeroes
    assert cache.total == total
    assert len(first & again) > 50


def test_objects_freed_on_another_cpu_come_back():
    cache = SlabCache(CpuSet(2), 64)
    for _ in range(50):
        for slot in range(1000):
            cache.alloc(slot, 0)
        for slot in range(1000):
            cache.free(slot, 1)
    assert cache.active == 0
    assert cache.total < 1500
    assert cache.valid()


@pytest.mark.parametrize("size", [24, 192])
def test_exchange_between_cpus(run_threads, size):
    cache = SlabCache(CpuSet(3), size)
    assert run_threads(*((cache.exchange, cpu, 200_000, 99 + cpu) for cpu in range(3))) == [0, 0, 0]
    assert cache.valid()
    assert cache.active <= 4096
    live = cache.active
    assert cache.destroy() == live


def test_caches_share_a_cpu():
    cpus = CpuSet(1)
    a, b = SlabCache(cpus, 64, 0), SlabCache(cpus, 64, 1)
    assert len({a.alloc(0), b.alloc(0), a.alloc(1), b.alloc(1)}) == 4
    assert (a.active, b.active) == (2, 2)
    with pytest.raises(ValueError):
        SlabCache(cpus, 64, 8)


def test_a_typesafe_object_stays_one():
    """Whichever way it takes, through magazines and the depot to another CPU: nobody writes to it, and no memory of the
    cache becomes anything else."""
    cpus = CpuSet(2)
    cache = SlabCache(cpus, 192, typesafe=True)
    first = {cache.alloc(slot) for slot in range(500)}
    assert cache.kept == 0
    for slot in range(500):
        cache.free(slot, slot & 1)
    assert cache.active == 0
    assert cache.valid()
    again = {cache.alloc(slot, 1) for slot in range(500)}
    assert cache.kept == len(first & again) > 400
    assert cache.valid()
    assert cache.destroy() == 500
