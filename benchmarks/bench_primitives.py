# SPDX-License-Identifier: GPL-2.0-only
"""Locks and read sides, uncontended, in ns per lock/unlock pair; RCU and SRCU beside liburcu.

Every loop runs in compiled code; ns_per_op is the best of the rounds. Each benchmark measures its baseline in
between its own rounds, and reports `ratio` = own / baseline. Baselines: liburcu's memb flavour for RCU and SRCU,
two atomic additions for the locks, two full fences for the interrupt flag.
"""
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pykmm_ext.kernel.primitives import CpuSet
from pykmm_ext.kernel.primitives_bench import PrimitivesBench

N = 300_000
ROUNDS = 15

LIBURCU = r"""
#define URCU_INLINE_SMALL_FUNCTIONS
#define _LGPL_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <urcu/urcu-%(flavour)s.h>

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1e9 + ts.tv_nsec;
}

int main(int argc, char **argv)
{
    unsigned long n = strtoul(argv[argc - 1], NULL, 10);
    double t;
    urcu_%(flavour)s_register_thread();
    t = now();
    for (unsigned long i = 0; i < n; i++) {
        urcu_%(flavour)s_read_lock();
        urcu_%(flavour)s_read_unlock();
    }
    t = now() - t;
    urcu_%(flavour)s_unregister_thread();
    printf("%%.4f\n", t / n);
    return 0;
}
"""


def _liburcu(flavour: str, where: Path) -> Callable[[int], float]:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the liburcu comparison with")
    source = where / f"pair_{flavour}.c"
    source.write_text(f"#include <urcu/urcu-{flavour}.h>\n")
    if subprocess.run([*compiler.split(), "-E", str(source)], capture_output=True, check=False).returncode != 0:
        pytest.skip("the liburcu headers are not installed (Debian: liburcu-dev)")
    source.write_text(LIBURCU % {"flavour": flavour})
    # A program of its own: in a dlopen()ed library every access to liburcu's thread-local state is a call.
    program = where / f"pair_{flavour}"
    subprocess.run([*compiler.split(), "-O2", "-o", str(program), str(source), f"-lurcu-{flavour}", "-lurcu-common"],
                   check=True)

    def pair(n: int) -> float:
        return float(subprocess.run([str(program), str(n)], capture_output=True, text=True, check=True).stdout)

    return pair


@pytest.fixture(scope="module")
def memb(tmp_path_factory) -> Callable[[int], float]:
    return _liburcu("memb", tmp_path_factory.mktemp("urcu"))


@pytest.fixture(scope="module")
def mb(tmp_path_factory) -> Callable[[int], float]:
    return _liburcu("mb", tmp_path_factory.mktemp("urcu"))


@pytest.fixture(scope="module")
def bench() -> PrimitivesBench:
    return PrimitivesBench(CpuSet(2))


def measure(benchmark, own: Callable[[int], float], baseline: Callable[[int], float], name: str,
            n: int = N, rounds: int = ROUNDS) -> float:
    """Rounds of the two in turn; ns per operation and their ratio into the report."""
    mine: list[float] = []
    theirs: list[float] = []

    def setup() -> None:
        theirs.append(baseline(n))

    benchmark.pedantic(lambda: mine.append(own(n)), setup=setup, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info.update(ns_per_op=round(min(mine), 3), baseline=name,
                                baseline_ns_per_op=round(min(theirs), 3), ratio=round(min(mine) / min(theirs), 3))
    return min(mine) / min(theirs)


@pytest.mark.parametrize("side", ["rcu", "srcu"])
def bench_read_side_beside_liburcu_memb(benchmark, bench, memb, side):
    measure(benchmark, getattr(bench, side), memb, "liburcu memb")


@pytest.mark.parametrize("side", ["rcu", "srcu"])
def bench_read_side_beside_liburcu_mb(benchmark, bench, mb, side):
    measure(benchmark, getattr(bench, side), mb, "liburcu mb")


@pytest.mark.parametrize("side", ["rcu", "srcu"])
def bench_read_side_with_full_fences_beside_liburcu_mb(benchmark, mb, side):
    measure(benchmark, getattr(PrimitivesBench(CpuSet(2, full_fences=True)), side), mb, "liburcu mb")


@pytest.mark.parametrize("lock", ["spinlock", "rwsem_read", "rwsem_write", "seqlock_read", "slab"])
def bench_lock(benchmark, bench, lock):
    measure(benchmark, getattr(bench, lock), bench.atomic, "two atomic additions")


@pytest.mark.parametrize("full_fences", [False, True], ids=["membarrier", "full-fences"])
def bench_irq_disable_enable(benchmark, bench, full_fences):
    own = PrimitivesBench(CpuSet(2, full_fences))
    measure(benchmark, own.irq, bench.fence_pair, "two full fences")


@pytest.mark.parametrize("period", ["synchronize_rcu", "synchronize_srcu"])
def bench_grace_period(benchmark, bench, period):
    measure(benchmark, getattr(bench, period), bench.mb_heavy, "smp_mb_heavy", n=2_000)


@pytest.mark.parametrize("target", ["idle", "irqs-on", "irq-off-bursts"])
@pytest.mark.parametrize("full_fences", [False, True], ids=["membarrier", "full-fences"])
def bench_ipi(benchmark, bench, full_fences, target):
    own = PrimitivesBench(CpuSet(2, full_fences))
    busy = threading.Thread(target=own.irq_bursts, args=(1, *((0, 200) if target == "irqs-on" else (200, 200))))
    if target != "idle":
        busy.start()
    try:
        measure(benchmark, own.ipi, bench.mb_heavy, "smp_mb_heavy", n=2_000)
    finally:
        if target != "idle":
            own.finish()
            busy.join()
