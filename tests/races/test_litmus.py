# SPDX-License-Identifier: GPL-2.0-only
"""Litmus tests: what each memory model allows, and how many executions there are.

The models stand for: sc = nothing is reordered; tso = x86; pso = the writer's side of a weak machine; power = both
sides. Not to be had on this engine, though Power's architecture and Linux's model allow it: load buffering (LB), for
a load never returns a store that is later in the execution.
"""
from __future__ import annotations

from typing import Any

import pytest
from check_programs import RMW, Code, F, L, R, S, op

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus

MODELS = ("sc", "tso", "pso", "power")
X, Y, Z = 0, 1, 2
Observe = list[tuple[Any, int]]


def explore(threads: list[Code], observe: Observe, model: str) -> Exploration:
    """Everything; no schedule is left out and none is repeated."""
    search = Exploration(Litmus(threads, observe=observe), memory_model=model, graphs=True)
    search.run(stop_at_violation=False)
    assert search.complete
    assert search.fallbacks == 0
    if model != "power":    # where loads may be stale, two schedules can show the same
        assert search.redundant == 0
    return search


def outcomes(search: Exploration, n: int) -> set[tuple[int, ...]]:
    """Values of the observed, in their order."""
    return {tuple(value >> 8 * (n - 1 - i) & 0xff for i in range(n)) for value in search.outcomes}


def acq(reg: int, x: int) -> dict[str, Any]:
    return L(reg, x, order="acquire")


def atomic_add(x: int, value: int) -> dict[str, Any]:
    """atomic_add() of Linux: returns nothing, orders nothing."""
    return RMW(7, x, "add", value, order="posted")


def locked(code: Code, lock: int = 9) -> Code:
    return [op("lock", addr=lock), *code, op("unlock", addr=lock)]


def rel(x: int, value: int) -> dict[str, Any]:
    return S(x, value, order="release")


SB_OBSERVE: Observe = [(0, 0), (1, 0)]
MP_OBSERVE: Observe = [(1, 0), (1, 1)]
IRIW_OBSERVE: Observe = [(2, 0), (2, 1), (3, 0), (3, 1)]
WRC_OBSERVE: Observe = [(1, 0), (2, 0), (2, 1)]
MEMORY: Observe = [("word", X), ("word", Y)]

# name: threads, observed, executions under sc, tso, pso, power
COUNTS: dict[str, tuple[list[Code], Observe, tuple[int, int, int, int]]] = {
    "SB": ([[S(X, 1), L(0, Y)], [S(Y, 1), L(0, X)]], SB_OBSERVE, (3, 4, 4, 4)),
    "SB+mbs": ([[S(X, 1), F("mb"), L(0, Y)], [S(Y, 1), F("mb"), L(0, X)]], SB_OBSERVE, (3, 3, 3, 3)),
    "MP": ([[S(X, 1), S(Y, 1)], [L(0, Y), L(1, X)]], MP_OBSERVE, (3, 3, 4, 4)),
    "LB": ([[L(0, X), S(Y, 1)], [L(0, Y), S(X, 1)]], SB_OBSERVE, (3, 3, 3, 3)),    # 4 in life: see above
    "2+2W": ([[S(X, 1), S(Y, 2)], [S(Y, 1), S(X, 2)]], MEMORY, (3, 3, 4, 4)),
    "R": ([[S(X, 1), S(Y, 1)], [S(Y, 2), L(0, X)]], [(1, 0), ("word", Y)], (3, 4, 4, 4)),
    "WRC": ([[S(X, 1)], [L(0, X), S(Y, 1)], [L(0, Y), L(1, X)]], WRC_OBSERVE, (7, 7, 7, 8)),
    "IRIW": ([[S(X, 1)], [S(Y, 1)], [L(0, X), L(1, Y)], [L(0, Y), L(1, X)]], IRIW_OBSERVE, (15, 15, 15, 16)),
    "MP+lwsync+addr": ([[S(X, 1), F("lwsync"), S(Y, 1)], [L(0, Y), L(1, X, dep=0)]], MP_OBSERVE, (3, 3, 3, 3)),
    "MP+lwsync+ctrl": ([[S(X, 1), F("lwsync"), S(Y, 1)], [L(0, Y), op("jump_if", reg=0, to=2), L(1, X)]], MP_OBSERVE,
                       (3, 3, 3, 4)),
    "SB+lwsyncs": ([[S(X, 1), F("lwsync"), L(0, Y)], [S(Y, 1), F("lwsync"), L(0, X)]], SB_OBSERVE, (3, 4, 4, 4)),
    "SB+syncs": ([[S(X, 1), F("mb"), L(0, Y)], [S(Y, 1), F("mb"), L(0, X)]], SB_OBSERVE, (3, 3, 3, 3)),
    "IRIW+lwsyncs": ([[S(X, 1)], [S(Y, 1)], [L(0, X), F("lwsync"), L(1, Y)], [L(0, Y), F("lwsync"), L(1, X)]],
                     IRIW_OBSERVE, (15, 15, 15, 16)),
    "IRIW+syncs": ([[S(X, 1)], [S(Y, 1)], [L(0, X), F("mb"), L(1, Y)], [L(0, Y), F("mb"), L(1, X)]], IRIW_OBSERVE,
                   (15, 15, 15, 15)),
    "WRC+lwsync+addr": ([[S(X, 1)], [L(0, X), F("lwsync"), S(Y, 1)], [L(0, Y), L(1, X, dep=0)]], WRC_OBSERVE,
                        (7, 7, 7, 7)),
    "LB+datas": ([[L(0, X), S(Y, R(0))], [L(0, Y), S(X, R(0))]], SB_OBSERVE, (3, 3, 3, 3)),
    "2+2W+lwsyncs": ([[S(X, 1), F("lwsync"), S(Y, 2)], [S(Y, 1), F("lwsync"), S(X, 2)]], MEMORY, (3, 3, 3, 3)),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", COUNTS)
def test_number_of_executions(name: str, model: str) -> None:
    threads, observe, counts = COUNTS[name]
    assert explore(threads, observe, model).executions == counts[MODELS.index(model)]


NONE: tuple[str, ...] = ()
WEAK = ("pso", "power")
ALL = MODELS

# name: threads, observed, the outcome in question, the models that allow it
ALLOWED: dict[str, tuple[list[Code], Observe, tuple[int, ...], tuple[str, ...]]] = {
    "SB": ([[S(X, 1), L(0, Y)], [S(Y, 1), L(0, X)]], SB_OBSERVE, (0, 0), ("tso", "pso", "power")),
    "SB+mb+po": ([[S(X, 1), F("mb"), L(0, Y)], [S(Y, 1), L(0, X)]], SB_OBSERVE, (0, 0), ("tso", "pso", "power")),
    "SB+mbs": ([[S(X, 1), F("mb"), L(0, Y)], [S(Y, 1), F("mb"), L(0, X)]], SB_OBSERVE, (0, 0), NONE),
    "SB+wmbs": ([[S(X, 1), F("wmb"), L(0, Y)], [S(Y, 1), F("wmb"), L(0, X)]], SB_OBSERVE, (0, 0),
                ("tso", "pso", "power")),
    "SB+rel-acq": ([[rel(X, 1), acq(0, Y)], [rel(Y, 1), acq(0, X)]], SB_OBSERVE, (0, 0), ("tso", "pso", "power")),
    "SB+xchgs": ([[RMW(1, X, "xchg", 1), L(0, Y)], [RMW(1, Y, "xchg", 1), L(0, X)]], SB_OBSERVE, (0, 0), NONE),
    "SB+own": ([[S(X, 1), L(1, X), L(0, Y)], [S(Y, 1), L(1, Y), L(0, X)]], [(0, 1), (0, 0), (1, 1), (1, 0)],
               (1, 0, 1, 0), ("tso", "pso", "power")),
    "store forwarding, then overwritten": ([[S(X, 1), L(0, X)], [S(X, 2)]], [(0, 0), ("word", X)], (2, 2), ALL),
    "MP": ([[S(X, 1), S(Y, 1)], [L(0, Y), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP+wmb+po": ([[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), L(1, X)]], MP_OBSERVE, (1, 0), ("power",)),
    "MP+po+rmb": ([[S(X, 1), S(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP+wmb+rmb": ([[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "MP+mbs": ([[S(X, 1), F("mb"), S(Y, 1)], [L(0, Y), F("mb"), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "MP+rel+acq": ([[S(X, 1), rel(Y, 1)], [acq(0, Y), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "MP+rel+po": ([[S(X, 1), rel(Y, 1)], [L(0, Y), L(1, X)]], MP_OBSERVE, (1, 0), ("power",)),
    "MP+po+acq": ([[S(X, 1), S(Y, 1)], [acq(0, Y), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP+wmb+addr": ([[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), L(1, X, dep=0)]], MP_OBSERVE, (1, 0), NONE),
    "MP+rmb+rmb": ([[S(X, 1), F("rmb"), S(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP+xchg": ([[S(X, 1), RMW(0, Y, "xchg", 1)], [RMW(0, Y, "add", 0), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "LB": ([[L(0, X), S(Y, 1)], [L(0, Y), S(X, 1)]], SB_OBSERVE, (1, 1), NONE),     # allowed by Linux and Power
    "LB+acq+rel": ([[acq(0, X), rel(Y, 1)], [acq(0, Y), rel(X, 1)]], SB_OBSERVE, (1, 1), NONE),
    "S": ([[S(X, 2), S(Y, 1)], [L(0, Y), S(X, 1)]], [(1, 0), ("word", X)], (1, 2), WEAK),
    "S+wmb+data": ([[S(X, 2), F("wmb"), S(Y, 1)], [L(0, Y), S(X, R(0))]], [(1, 0), ("word", X)], (1, 2), NONE),
    "S+rel+acq": ([[S(X, 2), rel(Y, 1)], [acq(0, Y), S(X, 1)]], [(1, 0), ("word", X)], (1, 2), NONE),
    "R": ([[S(X, 1), S(Y, 1)], [S(Y, 2), L(0, X)]], [(1, 0), ("word", Y)], (0, 2), ("tso", "pso", "power")),
    "R+wmb+mb": ([[S(X, 1), F("wmb"), S(Y, 1)], [S(Y, 2), F("mb"), L(0, X)]], [(1, 0), ("word", Y)], (0, 2),
                 ("power",)),
    "R+mbs": ([[S(X, 1), F("mb"), S(Y, 1)], [S(Y, 2), F("mb"), L(0, X)]], [(1, 0), ("word", Y)], (0, 2), NONE),
    "2+2W": ([[S(X, 1), S(Y, 2)], [S(Y, 1), S(X, 2)]], MEMORY, (1, 1), WEAK),
    "2+2W+wmbs": ([[S(X, 1), F("wmb"), S(Y, 2)], [S(Y, 1), F("wmb"), S(X, 2)]], MEMORY, (1, 1), NONE),
    "2+2W+rels": ([[S(X, 1), rel(Y, 2)], [S(Y, 1), rel(X, 2)]], MEMORY, (1, 1), NONE),
    "WRC": ([[S(X, 1)], [L(0, X), S(Y, 1)], [L(0, Y), L(1, X)]], WRC_OBSERVE, (1, 1, 0), ("power",)),
    "WRC+po+rmb": ([[S(X, 1)], [L(0, X), S(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], WRC_OBSERVE, (1, 1, 0), ("power",)),
    "WRC+rel+rmb": ([[S(X, 1)], [L(0, X), rel(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], WRC_OBSERVE, (1, 1, 0), NONE),
    "WRC+mbs": ([[S(X, 1)], [L(0, X), F("mb"), S(Y, 1)], [L(0, Y), F("mb"), L(1, X)]], WRC_OBSERVE, (1, 1, 0), NONE),
    "IRIW": ([[S(X, 1)], [S(Y, 1)], [L(0, X), L(1, Y)], [L(0, Y), L(1, X)]], IRIW_OBSERVE, (1, 0, 1, 0), ("power",)),
    "IRIW+rmbs": ([[S(X, 1)], [S(Y, 1)], [L(0, X), F("rmb"), L(1, Y)], [L(0, Y), F("rmb"), L(1, X)]], IRIW_OBSERVE,
                  (1, 0, 1, 0), ("power",)),
    "IRIW+acqs": ([[S(X, 1)], [S(Y, 1)], [acq(0, X), L(1, Y)], [acq(0, Y), L(1, X)]], IRIW_OBSERVE, (1, 0, 1, 0),
                  ("power",)),
    "IRIW+mbs": ([[S(X, 1)], [S(Y, 1)], [L(0, X), F("mb"), L(1, Y)], [L(0, Y), F("mb"), L(1, X)]], IRIW_OBSERVE,
                 (1, 0, 1, 0), NONE),
    "CoRR": ([[S(X, 1)], [L(0, X), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "CoRR of two writers": ([[S(X, 1)], [S(X, 2)], [L(0, X), L(1, X)], [L(0, X), L(1, X)]], IRIW_OBSERVE,
                            (1, 2, 2, 1), NONE),
    "CoWW": ([[S(X, 1), S(X, 2)]], [("word", X)], (1,), NONE),
    "CoWR": ([[S(X, 1), L(0, X)], [S(X, 2)]], [(0, 0), ("word", X)], (2, 1), NONE),
    "CoRW": ([[L(0, X), S(X, 1)], [S(X, 2)]], [(0, 0), ("word", X)], (2, 2), NONE),
    "ISA2": ([[S(X, 1), S(Y, 1)], [L(0, Y), S(Z, 1)], [L(0, Z), L(1, X)]], [(1, 0), (2, 0), (2, 1)], (1, 1, 0), WEAK),
    "ISA2+rel+rel+acq": ([[S(X, 1), rel(Y, 1)], [acq(0, Y), rel(Z, 1)], [acq(0, Z), L(1, X)]], [(1, 0), (2, 0), (2, 1)],
                         (1, 1, 0), NONE),
    "ISA2+wmb+po+rmb": ([[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), S(Z, 1)], [L(0, Z), F("rmb"), L(1, X)]],
                        [(1, 0), (2, 0), (2, 1)], (1, 1, 0), ("power",)),
    "Z6.3": ([[S(X, 1), S(Y, 1)], [S(Y, 2), S(Z, 1)], [L(0, Z), L(1, X)]], [(2, 0), (2, 1), ("word", Y)],
             (1, 0, 2), WEAK),
    "Z6.3+mbs": ([[S(X, 1), F("mb"), S(Y, 1)], [S(Y, 2), F("mb"), S(Z, 1)], [L(0, Z), F("mb"), L(1, X)]],
                 [(2, 0), (2, 1), ("word", Y)], (1, 0, 2), NONE),
    "PPOCA": ([[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), op("jump_unless", reg=0, to=5), S(Z, 1), L(2, Z), L(1, X)]],
              [(1, 0), (1, 2), (1, 1)], (1, 1, 0), ("power",)),
    "W+RWC": ([[S(X, 1), S(Y, 1)], [L(0, Y), L(1, Z)], [S(Z, 1), L(0, X)]], [(1, 0), (1, 1), (2, 0)], (1, 0, 0),
              ("tso", "pso", "power")),
    "W+RWC+mbs": ([[S(X, 1), F("mb"), S(Y, 1)], [L(0, Y), F("mb"), L(1, Z)], [S(Z, 1), F("mb"), L(0, X)]],
                  [(1, 0), (1, 1), (2, 0)], (1, 0, 0), NONE),
    "await": ([[S(X, 1), S(Y, 1)], [op("await_eq", reg=0, addr=Y, a=1), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "await+wmb": ([[S(X, 1), F("wmb"), S(Y, 1)], [op("await_eq", reg=0, addr=Y, a=1), L(1, X)]], MP_OBSERVE, (1, 0),
                  NONE),
    "await of the own store": ([[S(X, 1), op("await_ne", reg=1, addr=X, a=0), L(0, Y)], [S(Y, 1), F("mb"), L(0, X)]],
                               SB_OBSERVE, (0, 0), ("tso", "pso", "power")),
    "lock": ([[op("lock", addr=9), S(X, 1), S(Y, 1), op("unlock", addr=9)],
              [op("lock", addr=9), L(0, Y), L(1, X), op("unlock", addr=9)]], MP_OBSERVE, (1, 0), NONE),
    "seen without the lock": ([[op("lock", addr=9), S(X, 1), S(Y, 1), op("unlock", addr=9)], [L(0, Y), L(1, X)]],
                             MP_OBSERVE, (1, 0), WEAK),
    "SB+adds": ([[atomic_add(X, 1), L(0, Y)], [atomic_add(Y, 1), L(0, X)]], SB_OBSERVE, (0, 0), WEAK),
    "MP+add": ([[S(X, 1), atomic_add(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP+add+wmb": ([[S(X, 1), F("wmb"), atomic_add(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "MP of adds": ([[atomic_add(X, 1), S(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP of adds+wmb": ([[atomic_add(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "two adds, one lost": ([[atomic_add(X, 1), atomic_add(X, 1)], [atomic_add(X, 1)]], [("word", X)], (2,), NONE),
    "an add between two stores": ([[S(X, 1), atomic_add(X, 1), S(Y, 1)], [S(X, 5)]], [("word", X)], (1,), NONE),
    "an add and the own load": ([[S(X, 3), atomic_add(X, 1), L(0, X)], [S(Y, 1)]], [(0, 0)], (3,), NONE),
    "an add hands on what was released": (
        [[S(X, 1), rel(Y, 1)], [atomic_add(Y, 1)], [acq(0, Y), L(1, X)]], [(2, 0), (2, 1)], (2, 0), NONE),
    "an acquire of another word": ([[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), acq(2, Z), L(1, X)]], MP_OBSERVE, (1, 0),
                                   ("power",)),
    "MP+lock": ([[S(X, 1), *locked([S(Y, 1)])], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), WEAK),
    "MP+wmb+lock": ([[S(X, 1), F("wmb"), *locked([S(Y, 1)])], [L(0, Y), F("rmb"), L(1, X)]], MP_OBSERVE, (1, 0), NONE),
    "SB+locks": ([[S(X, 1), *locked([L(0, Y)])], [S(Y, 1), *locked([L(0, X)], 10)]], SB_OBSERVE, (0, 0), WEAK),
    "MP+wmb+a lock between the loads": (
        [[S(X, 1), F("wmb"), S(Y, 1)], [L(0, Y), *locked([L(1, X)])]], MP_OBSERVE, (1, 0), ("power",)),
    "a barrier before interrupts on": (
        [[S(X, 1), op("irq_disable"), F("mb"), op("irq_enable"), L(0, Y)], [S(Y, 1), F("mb"), L(0, X)]], SB_OBSERVE,
        (0, 0), NONE),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ALLOWED)
def test_outcome(name: str, model: str) -> None:
    threads, observe, outcome, models = ALLOWED[name]
    assert (outcome in outcomes(explore(threads, observe, model), len(observe))) == (model in models)


@pytest.mark.parametrize("name", ALLOWED)
def test_weaker_models_allow_more(name: str) -> None:
    threads, observe, _, _ = ALLOWED[name]
    seen = [outcomes(explore(threads, observe, model), len(observe)) for model in MODELS]
    for stronger, weaker in zip(seen, seen[1:], strict=False):
        assert stronger <= weaker
