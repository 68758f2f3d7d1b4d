# SPDX-License-Identifier: GPL-2.0-only
"""What tests/races/test_plain.py runs on a build that sees plain accesses: prints what it found as JSON.

    python plain_variant.py scenarios EXECUTIONS | pairs EXECUTIONS | weakened
"""
from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import pykmm
from pykmm.checking.scenario import Config, Scenario, get
from pykmm.checking.source import find
from pykmm.checking.symbols import with_names
from pykmm.plugin import get_plugin_manager
from pykmm.tape import Address, OpStream, Tape
from pykmm_ext.engine.check import PLAIN_ACCESSES, Exploration

PAGE = 0x1000
Operation = Callable[[OpStream, Address, Address], Any]

#: One operation of a thread: on four anonymous pages, a neighbour of theirs at +4, and two pages of a file.
OPERATIONS: dict[str, Operation] = {
    "store": lambda x, a, f: x.store(a, b"B"),
    "read": lambda x, a, f: x.touch(a + 2 * PAGE, access="read"),
    "neighbour": lambda x, a, f: x.store(a + 4 * PAGE, b"E"),
    "read file": lambda x, a, f: x.touch(f, access="read"),
    "store file": lambda x, a, f: x.store(f + PAGE, b"D"),
    "munmap": lambda x, a, f: x.munmap(a, 2 * PAGE),
    "munmap file": lambda x, a, f: x.munmap(f, PAGE),
    "mprotect": lambda x, a, f: x.mprotect(a + PAGE, PAGE, "r"),
    "merge": lambda x, a, f: x.mprotect(a + 4 * PAGE, PAGE, "rw"),
    "dontneed": lambda x, a, f: x.madvise(a, 3 * PAGE, "DONTNEED"),
    "mremap": lambda x, a, f: x.mremap(a, 2 * PAGE, 2 * PAGE, "MAYMOVE|FIXED", 0x50000000),
    "fork": lambda x, a, f: x.fork(),
    "mlock": lambda x, a, f: x.mlock(a, PAGE),
    "mmap": lambda x, a, f: x.mmap(PAGE),
    "mmap file": lambda x, a, f: x.mmap(PAGE, file="f", shared=True),
    "truncate": lambda x, a, f: x.truncate("f", PAGE),
    "exit": lambda x, a, f: x.exit(),
}


def pair(names: tuple[str, str], tables: bool) -> Tape:
    """Two threads with an operation each. `tables`: the page table and the anon_vma exist."""
    t = Tape()
    t.file("f", size=2 * PAGE)
    a = t.setup.mmap(4 * PAGE, fixed=0x40000000)
    t.setup.mmap(PAGE, "r", fixed=0x40004000)
    f = t.setup.mmap(2 * PAGE, shared=True, file="f")
    if tables:
        t.setup.store(a + 3 * PAGE, b"A")
    for one in names:
        OPERATIONS[one](t.thread(), a, f)
    return t


def scenarios(limit: int) -> dict[str, Any]:
    """Every scenario: messages of the fixed variant (and of others that must be clean), kinds of the buggy one."""
    found: dict[str, Any] = {}
    for name in get_plugin_manager().scenarios.names():
        scenario = get(name)
        clean = pykmm.check(scenario, max_executions=limit, stop_at_violation=False, minimised=False)
        row: dict[str, Any] = {"fixed": [v.message for v in clean.violations], "executions": clean.executions}
        if scenario.buggy is not None:
            buggy = pykmm.check(scenario, variant="buggy", max_executions=4 * limit, minimised=False)
            row["expected"] = sorted(scenario.expected)
            row["buggy"] = [(v.kind, v.message) for v in buggy.violations]
        found[name] = row
    return found


def pairs(limit: int) -> list[tuple[str, str, str]]:
    """What is wrong with two operations at once, under the shipped strategies: (strategy, operations, message)."""
    found = []
    for strategy in ("mmap_sem", "spf"):
        for names in itertools.combinations_with_replacement(OPERATIONS, 2):
            for tables in (False, True):
                scenario = Scenario("pair", "", lambda names=names, tables=tables: pair(names, tables),
                                    Config(strategy, fault_around="16K"))
                report = pykmm.check(scenario, max_executions=limit, minimised=False)
                found += [(strategy, "+".join(names), v.message) for v in report.violations]
    return found


def weakened() -> dict[str, list[str]]:
    """Messages of data races when locks or barriers do nothing."""
    found = {}
    for kinds, name, strategy in ((("rwsem",), "spf-mprotect-fault", "mmap_sem"),
                                  (("wmb", "release"), "spf-munmap-mmap-fault", "spf")):
        source = find(name, strategy=strategy)
        exploration = Exploration(source.program(), memory_model=source.memory_model, explorer="dpor", weaken=kinds)
        exploration.run(max_executions=1000, stop_at_violation=False)
        found["+".join(kinds)] = sorted({with_names(message) for kind, message, *_ in exploration.violations
                                         if kind == "data-race"})
    return found


def main() -> None:
    """See the module."""
    assert PLAIN_ACCESSES, "this build does not see plain accesses"
    what, limit = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    print(json.dumps({"scenarios": scenarios, "pairs": pairs}[what](limit) if limit else weakened()))


if __name__ == "__main__":
    main()
