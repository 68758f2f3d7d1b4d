# SPDX-License-Identifier: GPL-2.0-only
"""Cost of copying a machine back between two executions of the check engine, beside a memcpy() of as many bytes; and
executions of the real mm per second.

Run with ``pytest benchmarks/bench_check.py``. extra_info holds ns per reset, the bytes that are copied, and the ratio.
The machines: "small" has one address space with one mapping and two pages in it, "large" one after a hundred random
operations.
"""
from __future__ import annotations

from typing import Any

import pytest

import pykmm
from pykmm.checking.program import make_program
from pykmm_ext.engine.check import Exploration
from pykmm_ext.machine.snapshot_test import CheckedMachine

ROUNDS = 5_000


@pytest.mark.parametrize("cpus", [2, 3])
@pytest.mark.parametrize("state", ["small", "large"])
def test_reset(benchmark: Any, state: str, cpus: int) -> None:
    with pykmm.Machine(arch="x86", strategy="spf", cpus=1, memory="16M") as machine:
        checked = CheckedMachine(machine.arch_object, machine.strategy_object, cpus, 64 << 20)
    if state == "small":
        checked.mmap(0x2000_0000, 0x2000)
    else:
        checked.run(1, 100)
    size = checked.snapshot()
    best = [float("inf"), float("inf")]

    def once() -> None:
        reset, copy = checked.time_restore(ROUNDS)
        best[0] = min(best[0], reset)
        best[1] = min(best[1], copy)

    benchmark.pedantic(once, rounds=5, warmup_rounds=1)
    benchmark.extra_info["ns_per_reset"] = round(best[0], 1)
    benchmark.extra_info["bytes"] = size
    benchmark.extra_info["ratio_to_memcpy"] = round(best[0] / best[1], 3)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("model", ["sc", "tso"])
@pytest.mark.parametrize("strategy", ["mmap_sem", "spf"])
def test_fault_against_munmap(benchmark: Any, strategy: str, model: str) -> None:
    """One fault against one munmap on two CPUs, every schedule; extra_info: executions, and how many a second."""
    tape = pykmm.Tape()
    a = tape.setup.mmap(0x2000)
    tape.setup.store(a, b"A")
    tape.thread().store(a + 0x1000, b"B")
    tape.thread().munmap(a + 0x1000, 0x1000)
    program = make_program(tape, strategy)

    def once() -> int:
        done = 0
        for _ in range(20 if strategy == "spf" else 1000):
            exploration = Exploration(program, memory_model=model)
            exploration.run()
            assert exploration.complete
            done += exploration.executions + exploration.blocked
        return done

    done = benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    benchmark.extra_info["executions"] = done
    benchmark.extra_info["executions_per_s"] = round(done / benchmark.stats.stats.min)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
