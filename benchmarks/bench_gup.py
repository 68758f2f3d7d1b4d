# SPDX-License-Identifier: GPL-2.0-only
"""Cost of a pin and its unpin: lockless with each walk counter, beside the slow path, alone and with a second pinner.

Tapes of pins on the native engine. All configurations take turns within a round, so that a disturbance hits all;
extra_info holds ns per pin and unpin of one configuration and its ratio to the slow path (``mmap_sem``) of the same
rounds. The collapse benchmark has one CPU that empties and restores a pmd, beside another that has the address space
active and pins nothing: what is saved there is waiting. Run with ``pytest benchmarks/bench_gup.py``.
"""
from __future__ import annotations

import statistics
from typing import Any

import pytest

import pykmm

PAGE, PMD = 0x1000, 0x200000
PINS = 4000
ROUNDS = 7
BASE = "mmap_sem"
STRATEGIES = (BASE, "lockless_gup", "lockless_gup[monitor=atomic]", "lockless_gup[monitor=percpu]")


def pins(threads: int, pages: int) -> pykmm.Tape:
    """Threads that pin and give up `pages` pages of one mapping, over and over."""
    t = pykmm.Tape()
    a = t.setup.mmap(64 * PAGE, fixed=0x40000000)
    t.setup.touch(a, 64 * PAGE)
    for _ in range(threads):
        x = t.thread()
        for _ in range(PINS // pages + 100):
            x.pin(a, pages * PAGE, write=True)
            x.unpin(a, pages * PAGE)
    return t


def collapses() -> pykmm.Tape:
    """Attempts to collapse, while another thread has the address space active."""
    t = pykmm.Tape()
    a = t.setup.mmap(PMD, fixed=0x40000000)
    t.setup.touch(a, 8 * PAGE)
    x, y = t.thread(), t.thread()
    y.touch(a, access="read")
    for _ in range(1000):
        x.madvise(a, PMD, "COLLAPSE")
    y.compute(3_000_000)
    return t


def ratios(benchmark: Any, tape: pykmm.Tape, operations: int, arch: str = "x86") -> None:
    """Runs the tape under each strategy in turn; medians, and the median of the paired ratios."""
    machines = {s: pykmm.Machine(arch=arch, strategy=s, cpus=tape.program().nstreams, memory="64M") for s in STRATEGIES}
    times: dict[str, list[float]] = {s: [] for s in STRATEGIES}

    def once() -> None:
        for strategy, machine in machines.items():
            times[strategy].append(machine.run(tape).streams[0])

    try:
        benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
    finally:
        for machine in machines.values():
            machine.close()
    for strategy, took in times.items():
        paired = [a / b for a, b in zip(took, times[BASE], strict=True)]
        benchmark.extra_info[strategy] = {
            "ns": round(statistics.median(took) * 1e9 / operations, 1), "ratio": round(statistics.median(paired), 2)}


@pytest.mark.parametrize("pages", [1, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_pin(benchmark: Any, threads: int, pages: int) -> None:
    ratios(benchmark, pins(threads, pages), PINS // pages + 100)


@pytest.mark.parametrize("arch", ["x86", "x86-paravirt"])
def test_collapse(benchmark: Any, arch: str) -> None:
    ratios(benchmark, collapses(), 1000, arch)
