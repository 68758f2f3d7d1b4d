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


def store_buffering(fence):
    def program(x: ExploreContext):
        words = x.atomic(), x.atomic()
        seen = [None, None]

        def cpu(cpu, me):
            words[me].store(1, cpu)
            if fence:
                cpu.smp_mb()
            seen[me] = words[1 - me].load(cpu)

        x.vcpu(cpu, 0)
        x.vcpu(cpu, 1)
        x.final(lambda: tuple(seen))

    return program


def philosophers(n, ordered):
    def program(x):
        forks = [x.spin_lock(f"fork {i}") for i in range(n)]

        def eat(cpu, i):
            first, second = forks[i], forks[(i + 1) % n]
            if ordered and i == n - 1:
                first, second = second, first
            first.lock(cpu)
            second.lock(cpu)
            second.unlock(cpu)
            first.unlock(cpu)

        for i in range(n):
            x.vcpu(eat, i)

    return program


def spinning(x: ExploreContext) -> None:
    """One waits by loading again and again."""
    word = x.atomic(name="word")

    def spin(cpu):
        while not word.load(cpu):
            pass

    x.vcpu(spin)
    x.vcpu(lambda cpu: word.store(1, cpu))
