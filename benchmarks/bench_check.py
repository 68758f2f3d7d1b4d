# SPDX-License-Identifier: GPL-2.0-only
"""Cost of copying a machine back between two executions of the check engine, beside a memcpy() of as many bytes; and
executions of the real mm per second.

Run with ``pytest benchmarks/bench_check.py``. extra_info holds ns per reset, the bytes that are copied, and the ratio.
The machines: "small" has one address space with one mapping and two pages in it, "large" one after a hundred random
operations.

Then how many executions the check engine makes in a second. The seqlock can be compared with Relacy: RELACY=directory
of its source (header only, https://github.com/dvyukov/relacy) in the environment.
"""
from __future__ import annotations

import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any

import check_programs
import pytest

import pykmm
from pykmm.checking.program import make_program
from pykmm_ext.engine.check import Exploration, Program
from pykmm_ext.engine.litmus import Litmus
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


def rate(benchmark: Any, program: Callable[[], Program], executions: int, **options: Any) -> float:
    """Executions per second, best of five; all kinds of executions count. Also puts it into extra_info."""
    made = program()
    best, total = 0.0, 0

    def once() -> None:
        nonlocal best, total
        search = Exploration(made, **options)
        start = perf_counter()
        search.run(executions, stop_at_violation=False)
        seconds = perf_counter() - start
        total = search.executions + search.blocked + search.failed
        best = max(best, total / seconds)

    benchmark.pedantic(once, rounds=5, warmup_rounds=1)
    benchmark.extra_info["executions"] = total
    benchmark.extra_info["executions_per_s"] = round(best)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
    return best


def test_pfzap(benchmark: Any) -> None:
    """Three threads, five rounds each, to the end: no mm code, what a step of the engine costs."""
    rate(benchmark, lambda: Litmus(check_programs.pfzap(5)), 0, memory_model="sc")


SEQLOCK = [
    [{"op": "store", "addr": 0, "a": 1}, {"op": "fence", "fence": "wmb"}, {"op": "store", "addr": 1, "a": 1},
     {"op": "store", "addr": 2, "a": 1}, {"op": "fence", "fence": "wmb"}, {"op": "store", "addr": 0, "a": 2}],
    [{"op": "load", "reg": 0, "addr": 0}, {"op": "fence", "fence": "rmb"}, {"op": "load", "reg": 1, "addr": 1},
     {"op": "load", "reg": 2, "addr": 2}, {"op": "fence", "fence": "rmb"}, {"op": "load", "reg": 3, "addr": 0}],
]
RELACY = pathlib.Path(__file__).with_name("relacy_seqlock.cpp")


@pytest.mark.parametrize("model", ["sc", "tso"])
def test_random_seqlock(benchmark: Any, model: str) -> None:
    """One writer, one reader, 300 000 random schedules; beside Relacy if RELACY names its directory."""
    own = rate(benchmark, lambda: Litmus(SEQLOCK), 300_000, memory_model=model, explorer="random")
    if "RELACY" in os.environ:
        with tempfile.TemporaryDirectory() as where:
            binary = f"{where}/seqlock"
            subprocess.run(["g++", "-O2", "-w", "-I", os.environ["RELACY"], str(RELACY), "-o", binary, "-lpthread"],
                           check=True)
            theirs = 0.0
            for _ in range(5):
                said = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
                theirs = max(theirs, float(said.split("throughput:")[1].split()[0]))
        benchmark.extra_info["relacy_executions_per_s"] = round(theirs)
        benchmark.extra_info["ratio_to_relacy"] = round(own / theirs, 2)
        print(f"{benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("strategy", ["mmap_sem", "spf"])
@pytest.mark.parametrize("explorer", ["dpor", "random"])
def test_fault_munmap(benchmark: Any, strategy: str, explorer: str) -> None:
    """The real mm: one write fault against one munmap(), on two CPUs, 20 000 executions or all there are."""
    def program() -> Program:
        tape = pykmm.Tape()
        a = tape.setup.mmap(0x2000)
        tape.setup.store(a, b"A")
        tape.thread().store(a + 0x1000, b"B")
        tape.thread().munmap(a + 0x1000, 0x1000)
        return make_program(tape, strategy)

    rate(benchmark, program, 20_000, memory_model="tso", explorer=explorer)


def test_explore(benchmark: Any) -> None:
    """Python functions on vCPUs, the seqlock again: what a switch between threads of Python costs."""
    best = 0.0

    def program(x: Any) -> None:
        seq, a, b = x.seq_lock(), x.atomic(), x.atomic()

        def writer(cpu: Any) -> None:
            seq.write_lock()
            a.store(1)
            b.store(1)
            seq.write_unlock()

        def reader(cpu: Any) -> None:
            start = seq.read_begin()
            pair = a.load(), b.load()
            assert seq.read_retry(start) or pair[0] == pair[1]

        x.vcpu(writer)
        x.vcpu(reader)

    def once() -> None:
        nonlocal best
        report = pykmm.explore(program, memory_model="tso", explorer="random", max_executions=500)
        assert report.ok, str(report)
        best = max(best, report.executions_per_s)

    benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    benchmark.extra_info["executions_per_s"] = round(best)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
