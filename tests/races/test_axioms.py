# SPDX-License-Identifier: GPL-2.0-only
"""Random litmus tests: what the engine produces step by step, and what axioms allow that it knows nothing of."""
from __future__ import annotations

import random
from typing import Any

import axioms
import pytest
from axioms import Insn, Test, cyclic

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus

BATCHES, BATCH = 6, 40
Observe = list[tuple[Any, int]]


def program(rng: random.Random) -> tuple[list[list[Insn]], Observe]:
    """Two to four threads of straight lines: loads, stores, read-modify-writes, fences and dependencies."""
    nthreads, words = rng.choice([2, 2, 3, 3, 4]), rng.choice([2, 2, 3])
    lengths = [1] * nthreads
    for _ in range(max(0, rng.randint(4, 7) - nthreads)):
        lengths[rng.randrange(nthreads)] += 1
    threads: list[list[Insn]] = []
    observe: Observe = []
    value = 0
    for t, length in enumerate(lengths):
        code: list[Insn] = []
        loaded: list[int] = []      # registers; those of loads, which addresses may depend on
        nregs = 0
        for k in range(length):
            x, kind = rng.randrange(words), rng.random()
            if k and rng.random() < 0.45:
                code.append({"op": "fence", "fence": rng.choice(["mb", "rmb", "wmb"])})
            value += 1
            if kind < 0.48:
                load = {"op": "load", "reg": nregs, "addr": x, "order": rng.choice(["relaxed"] * 3 + ["acquire"])}
                if loaded and rng.random() < 0.35:
                    load["dep"] = rng.choice(loaded)
                code.append(load)
                loaded.append(nregs)
            elif kind < 0.85:
                data = ("reg", rng.randrange(nregs)) if nregs and rng.random() < 0.2 else value
                code.append({"op": "store", "addr": x, "a": data, "order": rng.choice(["relaxed"] * 3 + ["release"])})
                continue
            else:
                code.append({"op": "rmw", "reg": nregs, "addr": x, "rmw": rng.choice(["xchg", "add"]), "a": value,
                             "order": rng.choice(["relaxed", "relaxed", "acquire", "release", "seq_cst"])})
            observe.append((t, nregs))
            nregs += 1
            if rng.random() < 0.15:
                code.append({"op": "jump_unless", "reg": rng.randrange(nregs), "to": len(code) + 1})
        threads.append(code)
    used = {insn["addr"] for code in threads for insn in code if "addr" in insn}
    return threads, [*observe, *(("word", x) for x in sorted(used))]


def produced(threads: list[list[Insn]], observe: Observe, model: str) -> set[tuple[int, ...]]:
    search = Exploration(Litmus(threads, observe=observe), memory_model=model)
    search.run(stop_at_violation=False)
    assert search.complete
    n = len(observe)
    return {tuple(value >> 8 * (n - 1 - i) & 0xff for i in range(n)) for value in search.outcomes}


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_engine_against_axioms(batch: int) -> None:
    compared = 0
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        threads, observe = program(random.Random(seed))
        if len(observe) > 8:
            continue
        compared += 1
        sc, tso, linux, power, documented = axioms.outcomes(
            threads, observe, axioms.sc, axioms.tso, axioms.lkmm, axioms.power, axioms.produced)
        assert produced(threads, observe, "sc") == sc, seed
        assert produced(threads, observe, "tso") == tso, seed
        weak = produced(threads, observe, "power")
        assert weak <= linux, seed          # no alarm that Linux's model rules out
        assert documented <= weak, seed     # nothing is left out but what the docs say
        assert documented <= power <= linux, seed
    assert compared > BATCH // 2


def test_the_axioms_know_the_classical_tests() -> None:
    """Of the oracle itself; the numbers are those of the papers."""
    def load(reg: int, x: int, **more: Any) -> Insn:
        return {"op": "load", "reg": reg, "addr": x, **more}

    def store(x: int, value: int) -> Insn:
        return {"op": "store", "addr": x, "a": value}

    def fence(kind: str) -> Insn:
        return {"op": "fence", "fence": kind}

    def allowed(threads: list[list[Insn]], observe: Observe, outcome: tuple[int, ...]) -> list[bool]:
        models = axioms.sc, axioms.tso, axioms.power, axioms.lkmm
        return [outcome in seen for seen in axioms.outcomes(threads, observe, *models)]

    sb = [(0, 0), (1, 0)]
    assert allowed([[store(0, 1), load(0, 1)], [store(1, 1), load(0, 0)]], sb, (0, 0)) == [False, True, True, True]
    fenced = [[store(0, 1), fence("mb"), load(0, 1)], [store(1, 1), fence("mb"), load(0, 0)]]
    assert not any(allowed(fenced, sb, (0, 0)))
    mp = [(1, 0), (1, 1)]
    assert allowed([[store(0, 1), store(1, 1)], [load(0, 1), load(1, 0)]], mp, (1, 0)) == [False, False, True, True]
    assert not any(allowed([[store(0, 1), fence("wmb"), store(1, 1)], [load(0, 1), load(1, 0, dep=0)]], mp, (1, 0)))
    # R and Z6.3 with lightweight fences: allowed on Power.
    assert allowed([[store(0, 1), fence("wmb"), store(1, 1)], [store(1, 2), fence("mb"), load(0, 0)]],
                   [(1, 0), ("word", 1)], (0, 2)) == [False, False, True, True]
    iriw = [[store(0, 1)], [store(1, 1)],
            [load(0, 0), fence("rmb"), load(1, 1)], [load(0, 1), fence("rmb"), load(1, 0)]]
    assert allowed(iriw, [(2, 0), (2, 1), (3, 0), (3, 1)], (1, 0, 1, 0)) == [False, False, True, True]
    assert cyclic([2, 1]) and not cyclic([2, 0]) and Test([[store(0, 1)]]).n == 2
