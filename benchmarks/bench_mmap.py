# SPDX-License-Identifier: GPL-2.0-only
"""Cost of a pair of mmap(NULL, 64 KiB) and munmap, nothing touched, beside the same pair on the running kernel.

Run with ``pytest benchmarks/bench_mmap.py``; extra_info holds ns per pair, the host's, and the ratio. The host is timed
through the stdlib's ctypes, whose own cost (two calls that do nothing) is taken off.
"""
from __future__ import annotations

import ctypes
import time
from typing import Any

import pytest

import pykmm
from pykmm_ext.mm import vma_test

LENGTH, PAIRS, HOST_PAIRS = 0x10000, 20_000, 4_000
BASE = 0x100_0000_0000


def host_pair() -> float:
    """ns per mmap and munmap of the host."""
    libc = ctypes.CDLL(None)
    mmap, munmap, nothing = libc.mmap, libc.munmap, libc.abs
    mmap.restype = ctypes.c_void_p
    mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    start = time.perf_counter_ns()
    for _ in range(HOST_PAIRS):
        munmap(mmap(None, LENGTH, 3, 0x22, -1, 0), LENGTH)
    total = time.perf_counter_ns() - start
    start = time.perf_counter_ns()
    for _ in range(HOST_PAIRS):
        nothing(0)
        nothing(0)
    return (total - (time.perf_counter_ns() - start)) / HOST_PAIRS


@pytest.mark.parametrize("others", [0, 10_000])
@pytest.mark.parametrize("strategy", ["mmap_sem", "spf", "spf-2021", "per_vma_lock", "per_vma_lock-refcount"])
def test_mmap_munmap(benchmark: Any, strategy: str, others: int) -> None:
    with pykmm.Machine(arch="x86", strategy=strategy, cpus=1, memory="64M") as machine:
        mm = machine.mm()
        for i in range(others):
            mm.mmap(BASE + i * 0x2000, 0x1000, 3, 0x32)
        best = [float("inf"), float("inf")]

        def once() -> None:
            best[0] = min(best[0], vma_test.time_mmap_munmap(mm, LENGTH, PAIRS))
            best[1] = min(best[1], host_pair())

        benchmark.pedantic(once, rounds=5, warmup_rounds=1)
        mm.exit()
    benchmark.extra_info["ns_per_pair"] = round(best[0], 1)
    benchmark.extra_info["host_ns_per_pair"] = round(best[1], 1)
    benchmark.extra_info["ratio_to_host"] = round(best[0] / best[1], 3)
