# SPDX-License-Identifier: GPL-2.0-only
"""What Python on the fault path costs, native, one thread: read faults of anonymous memory under a strategy whose
handle_fault() only calls handle_fault_mmap_sem(), and under the tutorial's, beside the same in C.

Run with ``pytest benchmarks/bench_pystrategy.py``. extra_info holds ns per fault, mmap and munmap included.
"""
from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import pykmm
from pykmm import kernel
from pykmm_ext.mm.memory_test import bench_faults
from pykmm_ext.strategy import Strategy
from pykmm_plugins.strategies._mmap_sem import MmapSem

PAGES, ROUNDS = 2000, 20
TUTORIAL = pathlib.Path(__file__).resolve().parents[1] / "docs" / "tutorial" / "vma_lock" / "vma_lock.py"


class Fallback(pykmm.PythonStrategy):
    """The least that a strategy in Python does."""

    name = "fallback"

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return kernel.handle_fault_mmap_sem(cpu, mm, address, flags)


class Refuse(pykmm.PythonStrategy):
    """The adapter alone: no kernel function is called, and the access is refused."""

    name = "refuse"

    def handle_fault(self, cpu: Any, mm: Any, address: int, flags: int) -> Any:
        return kernel.VM_FAULT_SIGSEGV | kernel.VM_FAULT_BADMAP


def tutorial() -> Strategy:
    spec = importlib.util.spec_from_file_location("vma_lock", TUTORIAL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Strategy = module.VmaLock()
    return made


@pytest.mark.parametrize("make", [MmapSem, Fallback, tutorial], ids=["mmap_sem", "fallback", "vma-lock"])
def test_read_fault(benchmark: Any, make: Callable[[], Strategy]) -> None:
    best = [float("inf")]
    with pykmm.Machine(strategy=make(), cpus=1, memory="64M") as machine:
        mm = machine.mm()

        def once() -> None:
            best[0] = min(best[0], bench_faults(mm, 0, PAGES, ROUNDS, False)[1] / (PAGES * ROUNDS))

        benchmark.pedantic(once, rounds=10, warmup_rounds=2)
    benchmark.extra_info["ns_per_fault"] = round(best[0], 1)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("make", [MmapSem, Refuse], ids=["mmap_sem", "refuse"])
def test_refused_access(benchmark: Any, make: Callable[[], Strategy]) -> None:
    """mm.load() of an address where nothing is mapped: the difference is the adapter's."""
    with pykmm.Machine(strategy=make(), cpus=1, memory="64M") as machine:
        mm = machine.mm()

        def refused() -> None:
            with contextlib.suppress(pykmm.SegmentationFault):
                mm.load(0x1000, 1)

        benchmark(refused)
    benchmark.extra_info["ns"] = round(benchmark.stats.stats.min * 1e9, 1)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
