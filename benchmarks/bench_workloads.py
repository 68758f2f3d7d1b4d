# SPDX-License-Identifier: GPL-2.0-only
"""Every workload under every strategy that is registered, also those of other packages; small sizes.

The time is that of the threads' work alone (``RunResult.work_seconds``): no machine is made and no memory of the host
is committed in it. Strategies of one workload are in one group, so that the table shows them side by side::

    pytest benchmarks/bench_workloads.py -k 'mmap1 and 2-'
    pytest benchmarks/bench_workloads.py --benchmark-group-by=param:strategy
    pytest benchmarks/bench_workloads.py --benchmark-save=before    # and later
    pytest benchmarks/bench_workloads.py --benchmark-compare='*before'

extra_info has the rate of the median round. For ratios use ``pykmm compare``, which interleaves strategies and pairs
their runs: here they run one after the other.
"""
from __future__ import annotations

from typing import Any

import pytest

from pykmm.plugin import get_plugin_manager
from pykmm.testing import WORK_CLOCK, benchmark_workload

STRATEGIES = get_plugin_manager().strategies.names()
#: name -> parameters; those of other packages run with their defaults.
SIZES = {
    "page_fault1": "size=16M", "page_fault2": "size=8M", "page_fault3": "size=8M", "mmap1": "iterations=2000",
    "mmap2": "size=8M,iterations=2000", "brk1": "iterations=2000", "tlb_flush1": "size=1M",
    "malloc1": "iterations=1000",
    "pft": "size=16M", "multi-fault": "iterations=4", "faults": "mapper=yes,size=16M",
}
WORKLOADS = {entry.name: f"{entry.name}[{SIZES[entry.name]}]" if entry.name in SIZES else entry.name
             for entry in get_plugin_manager().workloads}


@pytest.mark.benchmark(timer=WORK_CLOCK)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_workload(benchmark: Any, workload: str, threads: int, strategy: str) -> None:
    if workload == "mtest06" and threads == 1:
        pytest.skip("a mapper and at least one reader")
    benchmark.group = f"{workload}, {threads} thread{'s' if threads > 1 else ''}"
    benchmark_workload(benchmark, WORKLOADS[workload], strategy, threads)
