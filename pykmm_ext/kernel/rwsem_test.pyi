# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/rwsem.c's self-test: the hand-off, step by step, in one OS thread."""
from pykmm_ext.kernel.cpuset import CpuSet

SCENARIOS: dict[str, int]

def hand_off(cpus: CpuSet, name: str) -> tuple[list[tuple[str, int]], bool]: ...
