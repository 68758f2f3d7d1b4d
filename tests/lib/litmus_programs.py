# SPDX-License-Identifier: GPL-2.0-only
"""Small programs for tests of the check engine's front end; functions of a module, so that processes can make them."""
from __future__ import annotations

from typing import Any

from pykmm_ext.engine.litmus import Litmus

Instruction = dict[str, Any]


def load(addr: int, reg: int, **more: Any) -> Instruction:
    return {"op": "load", "addr": addr, "reg": reg, **more}


def store(addr: int, value: Any, **more: Any) -> Instruction:
    return {"op": "store", "addr": addr, "a": value, **more}


def increments(n: int) -> Litmus:
    """n threads that each add 1 atomically: n! executions."""
    return Litmus([[{"op": "rmw", "rmw": "add", "addr": 0, "a": 1, "reg": 0}]] * n)


def increments5() -> Litmus:
    return increments(5)


def increments6() -> Litmus:
    return increments(6)


def enter_both() -> Litmus:
    """Store buffering: two threads announce themselves, look for the other, and are inside. Right under sc only."""
    def thread(me: int, other: int) -> list[Instruction]:
        return [store(me, 1), load(other, 0), {"op": "jump_if", "reg": 0, "to": 6},
                {"op": "rmw", "rmw": "add", "addr": 3, "a": 1, "reg": 3}, {"op": "assert_eq", "reg": 3, "a": 0},
                store(4 + me, 0)]
    return Litmus([thread(0, 1), thread(1, 0)])


def lock_order() -> Litmus:
    """Two locks in both orders: a deadlock, and two orders that work."""
    def thread(first: int, second: int) -> list[Instruction]:
        return [{"op": "lock", "addr": first}, {"op": "lock", "addr": second},
                {"op": "unlock", "addr": second}, {"op": "unlock", "addr": first}]
    return Litmus([thread(0, 1), thread(1, 0)])


def late_bug() -> Litmus:
    """A bug that needs two preemptions: thread 1 has to see the first store of thread 0, not the second, then both."""
    return Litmus([
        [store(0, 1), store(1, 1), store(2, 1)],
        [load(0, 0), {"op": "jump_unless", "reg": 0, "to": 8}, load(1, 1), {"op": "jump_if", "reg": 1, "to": 8},
         store(5, 1), load(1, 2), {"op": "jump_unless", "reg": 2, "to": 8}, {"op": "assert_eq", "reg": 9, "a": 1},
         load(6, 4), load(6, 4), load(6, 4)],
        [store(6, 1), store(7, 1), load(6, 3)],
    ])


def two_bugs() -> Litmus:
    """A deadlock, and an assertion that fails when the first lock is free."""
    return Litmus([
        [{"op": "lock", "addr": 0}, {"op": "lock", "addr": 1}, {"op": "unlock", "addr": 1},
         {"op": "unlock", "addr": 0}],
        [{"op": "lock", "addr": 1}, {"op": "trylock", "addr": 0, "reg": 0}, {"op": "jump_unless", "reg": 0, "to": 4},
         {"op": "assert_eq", "reg": 9, "a": 1}, {"op": "lock", "addr": 0}],
    ])


def stale_read() -> Litmus:
    """Message passing without a read barrier: the flag is there, the data is not."""
    return Litmus([
        [store(0, 7), {"op": "fence", "fence": "wmb"}, store(1, 1)],
        [load(1, 0), {"op": "jump_unless", "reg": 0, "to": 4}, load(0, 1), {"op": "assert_eq", "reg": 1, "a": 7}],
    ])


def data_choice() -> Litmus:
    """A choice of three, one of which is wrong."""
    return Litmus([[{"op": "choose", "a": 3, "reg": 0}, {"op": "jump_eq", "reg": 0, "a": 2, "to": 3}, {"op": "end"},
                    {"op": "assert_eq", "reg": 0, "a": 0}]])
