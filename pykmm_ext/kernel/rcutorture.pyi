# SPDX-License-Identifier: GPL-2.0-only
"""kernel/rcu/rcutorture.c: stress for RCU and SRCU."""
from typing import Any

from typing_extensions import disjoint_base

from pykmm_ext.kernel.cpuset import CpuSet

@disjoint_base
class RcuTorture:
    def __init__(self, cpus: CpuSet, sleepable: bool, updates: int) -> None: ...
    def barrier(self, cpu: int) -> Any: ...
    callbacks: Any
    grace_periods: Any
    invoked_twice: Any
    def read_lock(self, cpu: int) -> Any: ...
    def read_unlock(self, cpu: int, idx: int) -> Any: ...
    def reader(self, cpu: int, limit: int, hold: int, nest: int) -> Any: ...
    readers_active: Any
    def writer(self, cpu: int, n: int, call_every: int, stops: int) -> Any: ...
