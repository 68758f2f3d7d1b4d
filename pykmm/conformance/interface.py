# SPDX-License-Identifier: GPL-2.0-only
"""The C table and the names of a strategy: what a machine takes for granted."""
from __future__ import annotations

from typing import TYPE_CHECKING

from pykmm.conformance.report import Failure

if TYPE_CHECKING:
    from pykmm.conformance.subject import Subject
    from pykmm_ext.strategy import Strategy

__all__ = ["check_interface"]

#: KMM_STRATEGY_COUNTERS (include/kmm/cpu.h).
MOST_COUNTERS = 32
#: The first is nothing without the second. (A strategy may leave locking to mmap_sem and have an mmap_write_unlock.)
_PAIRS = (("mmap_write_lock", "mmap_write_unlock"), ("vma_write_begin", "vma_write_end"),
          ("vma_write_end", "vma_write_begin"), ("tree_write_begin", "tree_write_end"),
          ("tree_write_end", "tree_write_begin"), ("pte_map_lock", "pte_spinlock"), ("pte_spinlock", "pte_map_lock"))


def check_interface(subject: Subject) -> tuple[str, list[Failure]]:
    """Context: nothing was run yet; a machine is made last, when the table is known to hold."""
    from pykmm_ext.conformance import strategy_table
    from pykmm_ext.strategy import Strategy

    made: object = subject.make_strategy()
    if not isinstance(made, Strategy):
        return "", [Failure(f"the factory gives a {type(made).__name__}, not a pykmm_ext.strategy.Strategy")]
    table = strategy_table(made)
    if table is None:
        return "", [Failure(f"{type(made).__name__} has set no strategy_ops: self.ops is NULL")]
    wrong: list[str] = []
    members = table["members"]
    if not members["handle_fault"]:
        wrong.append(f"no handle_fault in the strategy_ops of {table['size']} bytes: it is required"
                     + ("" if table["size"] >= table["known_size"] else ", and ops.size ends before it"
                        if table["size"] <= 3 * 8 else ""))
    if table["size"] > table["known_size"]:
        wrong.append(f"ops.size is {table['size']}, this pykmm's strategy_ops has {table['known_size']} bytes: "
                     "compiled against a later pykmm")
    elif table["size"] % 8:
        wrong.append(f"ops.size is {table['size']}, no multiple of a pointer: set it to sizeof(strategy_ops)")
    for one, other in _PAIRS:
        if members[one] and not members[other]:
            wrong.append(f"{one} without {other}: they belong together")
    if not made.name:
        wrong.append("no name")
    elif table["name"] != made.name and table["name"] != made.name.partition("[")[0]:
        wrong.append(f"ops.name is {table['name']!r}, the object's name {made.name!r}: reports and error messages "
                     "would name two strategies")
    if subject.named and made.name.partition("[")[0] != subject.strategy.partition("[")[0]:
        wrong.append(f"registered as {subject.strategy!r}, but calls itself {made.name!r}")
    if not made.description:
        wrong.append("no description: pykmm list has nothing to say about it")
    wrong += _counter_names(made)
    if not wrong:
        try:
            with subject.machine(cpus=1, frames=256) as machine:
                names = tuple(machine.counters)
            if names != made.counter_names:
                wrong.append(f"Machine.counters has {names}, the strategy's table {made.counter_names}")
        except Exception as error:
            wrong.append(f"no machine can be made with it: {type(error).__name__}: {error}")
    return (f"{sum(members.values())} of {len(members)} members, {len(made.counter_names)} counters",
            [Failure(text) for text in wrong])


def _counter_names(made: Strategy) -> list[str]:
    names = made.counter_names
    if len(names) < 3:
        return [f"{len(names)} counter names: the first three are attempts, successes and faults retried under "
                "mmap_sem"]
    wrong = []
    if len(names) > MOST_COUNTERS:
        wrong.append(f"{len(names)} counter names, there is room for {MOST_COUNTERS}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        wrong.append(f"counter names that stand for two counters: {', '.join(twice)}")
    if not all(names):
        wrong.append("a counter without a name")
    return wrong
