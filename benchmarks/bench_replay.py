# SPDX-License-Identifier: GPL-2.0-only
"""Replays: a shipped recording, and threads that fault in VMAs of their own; beside the kernel that runs the benchmark.

Run with ``pytest benchmarks/bench_replay.py``. extra_info holds the fastest times of the same run: ``host_ms`` is the
same tape as real system calls and touches, ``speedup`` two threads over one (2.0 = perfect).
"""
from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import pykmm
from pykmm.machine import memory_needed, run_host

TRACE = Path(str(files("pykmm.data"))) / "python-threads.perf-trace.txt.xz"
ROUNDS = 15
SPAN = 512           # pages that one page table maps
STRATEGIES = pytest.mark.parametrize("strategy", ["mmap_sem", "spf"])


@STRATEGIES
def test_replay(benchmark: Any, strategy: str) -> None:
    tape = pykmm.Tape.load(TRACE)
    times = []

    def once() -> None:
        with pykmm.Machine(strategy=strategy, cpus=tape.program().nstreams, memory=memory_needed(tape)) as machine:
            times.append(machine.run(tape).elapsed)

    benchmark.pedantic(once, rounds=ROUNDS)
    host = min(run_host(tape).elapsed for _ in range(ROUNDS))
    benchmark.extra_info["replay_ms"] = round(min(times) * 1e3, 3)
    benchmark.extra_info["host_ms"] = round(host * 1e3, 3)
    benchmark.extra_info["ratio_to_host"] = round(min(times) / host, 3)


def faults(threads: int, pages: int, turns: int = 1, mapper: bool = False) -> pykmm.Tape:
    """Each thread touches a VMA of its own, giving the pages back before the next turn; `mapper` maps and unmaps."""
    tape = pykmm.Tape()
    areas = []
    for i in range(threads):        # VMAs that differ do not merge; the pages of two never share a page table
        area = tape.setup.mmap((pages + 2 * SPAN) * 4096, prot="rwx" if i % 2 else "rw")
        areas.append(area + SPAN * 4096)
    for area in areas:
        thread = tape.thread()
        for turn in range(turns):
            thread.touch(area, pages * 4096, "write")
            if turn + 1 < turns:
                thread.madvise(area, pages * 4096, "MADV_DONTNEED")
    if mapper:
        thread = tape.thread()
        for _ in range(turns * 20):
            thread.munmap(thread.mmap(4096 * 16), 4096 * 16)
    return tape


def fastest(tape: pykmm.Tape, strategy: str, rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of `rounds` runs on one machine; its first runs warm caches and memory up."""
    with pykmm.Machine(strategy=strategy, cpus=tape.program().nstreams, memory="512M") as machine:
        return min(machine.run(tape).elapsed for _ in range(rounds))


@STRATEGIES
def test_two_threads(benchmark: Any, strategy: str) -> None:
    """Faults in disjoint VMAs and nothing else: 4000 pages a thread fit the caches, so clearing them scales."""
    one, two = faults(1, 4000), faults(2, 4000)
    single = fastest(one, strategy, 200)
    double = benchmark.pedantic(fastest, args=(two, strategy, 200), rounds=1)
    host = min(run_host(one).elapsed for _ in range(ROUNDS)), min(run_host(two).elapsed for _ in range(ROUNDS))
    benchmark.extra_info["ns_per_fault"] = round(single / 4000 * 1e9, 1)
    benchmark.extra_info["host_ns_per_fault"] = round(host[0] / 4000 * 1e9, 1)
    benchmark.extra_info["ratio_to_host"] = round(single / host[0], 3)
    benchmark.extra_info["speedup"] = round(2 * single / double, 2)
    benchmark.extra_info["host_speedup"] = round(2 * host[0] / host[1], 2)


@STRATEGIES
def test_two_threads_that_unmap(benchmark: Any, strategy: str) -> None:
    """As above, with MADV_DONTNEED after every 512 pages: each is a shootdown that the other CPU must take."""
    single = fastest(faults(1, 512, 40), strategy)
    double = benchmark.pedantic(fastest, args=(faults(2, 512, 40), strategy), rounds=1)
    benchmark.extra_info["speedup"] = round(2 * single / double, 2)


def test_two_threads_and_a_mapper(benchmark: Any) -> None:
    """Three threads; on fewer processors than that the figures say more about the scheduler than about the locks."""
    tape = faults(2, 512, 40, mapper=True)
    classic = fastest(tape, "mmap_sem")
    speculative = benchmark.pedantic(fastest, args=(tape, "spf"), rounds=1)
    benchmark.extra_info["mmap_sem_ms"] = round(classic * 1e3, 3)
    benchmark.extra_info["spf_ms"] = round(speculative * 1e3, 3)
    benchmark.extra_info["spf_to_mmap_sem"] = round(speculative / classic, 3)
