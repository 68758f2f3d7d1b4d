# SPDX-License-Identifier: GPL-2.0-only
"""Rows of comparisons with times of one's own."""
from __future__ import annotations

from pykmm.comparison import Row


def row(strategy: str, cpus: int, times: list[float], work: int = 0, engine: str = "native", arch: str = "x86",
        workload: str = "w") -> Row:
    """A row as compare() makes it, with times of our own."""
    return Row(strategy, engine, arch, min(times), 1.0, 10, 1.0, {}, times, None, workload, cpus, cpus,
               "faults" if work else "", [work / time for time in times] if work else [])
