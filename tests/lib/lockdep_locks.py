# SPDX-License-Identifier: GPL-2.0-only
"""Locks for the tests of lockdep: a driver that names them."""
from pykmm_ext.kernel.lockdep_test import Lockdep

SLEEPABLE = 1
COUNTED = 2


class Graph:
    """Locks by name, one object a class unless an address is given."""

    def __init__(self, **limits: int) -> None:
        self.ld = Lockdep(**limits)
        self.classes: dict[str, int] = {}

    def cls(self, name: str, kind: str = "spinlock", flags: int = 0) -> int:
        if name not in self.classes:
            self.classes[name] = self.ld.lock_class(name, kind, flags)
        return self.classes[name]

    def address(self, name: str, which: int = 0) -> int:
        return 0x1000 * (1 + self.cls(name)) + which

    def take(self, name, cpu=0, which=0, **how):
        how.setdefault("where", f"take {name}")
        return self.ld.acquire(cpu, self.address(name, which), self.cls(name), **how)

    def give(self, name, cpu=0, which=0):
        return self.ld.release(cpu, self.address(name, which))

    def chain(self, *names, cpu=0, **how):
        """Take them in order and release them; the reports."""
        found = [self.take(name, cpu, **how) for name in names]
        found += [self.give(name, cpu) for name in reversed(names)]
        return [report for report in found if report]

    def edges(self):
        graph = self.ld.graph()
        names = [graph["classes"][cls][0] for cls, _, _ in graph["nodes"]]
        return {(names[edge["held"]], names[edge["taken"]]) for edge in graph["edges"]}


def kinds(reports):
    return [report["kind"] for report in reports]


def pairs(report):
    return [(step["held"], step["taken"]) for step in report["cycle"]]
