# SPDX-License-Identifier: GPL-2.0-only
"""mm/slab.c's test: a cache whose objects are allocated on one CPU and freed on another."""
from typing import Any

from typing_extensions import disjoint_base

from pykmm_ext.kernel.cpuset import CpuSet

@disjoint_base
class SlabCache:
    def __init__(self, cpus: CpuSet, object_size: int, id: int = ..., typesafe: bool = ...) -> None: ...
    active: Any
    def alloc(self, slot: int, cpu: int = ...) -> Any: ...
    def destroy(self) -> Any: ...
    def exchange(self, cpu: int, n: int, seed: int) -> Any: ...
    def free(self, slot: int, cpu: int = ...) -> Any: ...
    kept: Any
    object_size: Any
    total: Any
    def valid(self) -> Any: ...
