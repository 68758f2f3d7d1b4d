# SPDX-License-Identifier: GPL-2.0-only
"""Programs for pykmm.explore that other processes can import."""
from __future__ import annotations

from pykmm.checking.explore import ExploreContext


def increments(x: ExploreContext) -> None:
    """Three vCPUs add one without looking at each other: one to three additions are seen."""
    word = x.atomic(0, "word")

    def add(cpu):
        word.store(word.load(cpu) + 1, cpu)

    for _ in range(3):
        x.vcpu(add)
    x.final(lambda: (word.load(),))


def lock_order(x: ExploreContext) -> None:
    """Two locks in two orders."""
    a, b = x.spin_lock("a"), x.spin_lock("b")

    def both(cpu, first, second):
        first.lock(cpu)
        second.lock(cpu)
        second.unlock(cpu)
        first.unlock(cpu)

    x.vcpu(both, a, b)
    x.vcpu(both, b, a)
