# SPDX-License-Identifier: GPL-2.0-only
"""The reduced search against the naive one, on small random programs."""
from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from check_random import asymmetric, heavy, program, scene

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus

MODELS = ("sc", "tso", "pso", "power")
LIMIT = 60_000          # naive searches longer than this are left to the others
BATCHES, BATCH = 8, 12  # programs; every one under every memory model


def search(what: Litmus, model: str, explorer: str, limit: int = LIMIT) -> Exploration:
    found = Exploration(what, memory_model=model, explorer=explorer, graphs=True)
    found.run(limit, stop_at_violation=False)
    return found


def kinds(found: Exploration) -> set[tuple[str, str]]:
    return {(violation[0], violation[1]) for violation in found.violations}


@pytest.mark.parametrize("make", [program, asymmetric])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_dpor_finds_what_naive_search_finds(batch: int, model: str, make: Callable[[random.Random], Any]) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        what = Litmus(make(random.Random(seed)), words=16)
        reduced, naive = search(what, model, "dpor"), search(what, model, "dfs")
        if not naive.finished:
            continue
        assert reduced.finished
        assert set(reduced.outcomes) == set(naive.outcomes), seed
        assert kinds(reduced) == kinds(naive), seed
        # Of different happens-before graphs. A light barrier makes a difference to a graph, if the store before it
        # is still in the buffer, that it does not make to what happens.
        if make is program:
            assert reduced.executions == naive.executions, seed
        else:
            assert reduced.executions <= naive.executions, seed
        assert reduced.fallbacks == 0, seed
        if model != "power":
            assert reduced.redundant == 0, seed


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("batch", range(BATCHES))
def test_heavy_barriers_in_every_order_that_matters(batch: int, model: str) -> None:
    compared = 0
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        what = Litmus(heavy(random.Random(seed)), words=16)
        naive = search(what, model, "dfs", 3000)
        if not naive.finished:
            continue
        compared += 1
        reduced = search(what, model, "dpor")
        assert reduced.finished
        assert set(reduced.outcomes) == set(naive.outcomes), seed
        assert reduced.fallbacks == 0, seed
    assert compared >= 4


@pytest.mark.parametrize("batch", range(BATCHES))
def test_weaker_models_allow_more(batch: int) -> None:
    for seed in range(1000 + batch * BATCH, 1000 + (batch + 1) * BATCH):
        what = Litmus(program(random.Random(seed)), words=16)
        seen = [search(what, model, "dpor") for model in MODELS]
        for stronger, weaker in zip(seen, seen[1:], strict=False):
            if stronger.finished and weaker.finished:
                assert set(stronger.outcomes) <= set(weaker.outcomes), seed


def test_an_await_behind_a_sleeping_step() -> None:
    """The await could come before the store of 0 that keeps it waiting, in a schedule whose other half is explored
    elsewhere: by then nobody but a sleeping step can go on, and the await has not happened."""
    def store(addr: int, value: int) -> dict[str, Any]:
        return {"op": "store", "addr": addr, "a": value, "order": "relaxed"}

    what = Litmus([
        [store(0, 1)],
        [{"op": "await_eq", "reg": 1, "addr": 1, "a": 1}, store(0, 0), store(1, 0)],
        [store(1, 1), store(1, 0), {"op": "await_eq", "reg": 1, "addr": 1, "a": 0}],
    ], words=16)
    reduced, naive = search(what, "sc", "dpor"), search(what, "sc", "dfs")
    assert set(reduced.outcomes) == set(naive.outcomes)
    assert len(naive.outcomes) == 2


@pytest.mark.parametrize("model", MODELS)
def test_scenes(model: str) -> None:
    compared = 0
    for seed in range(24):
        what = Litmus(scene(random.Random(seed)), words=8)
        naive = search(what, model, "dfs", 6000)
        if not naive.finished:
            continue
        compared += 1
        reduced = search(what, model, "dpor")
        assert set(reduced.outcomes) == set(naive.outcomes), seed
        assert kinds(reduced) == kinds(naive), seed
        assert reduced.executions == naive.executions, seed
        assert reduced.fallbacks == 0, seed
    assert compared >= 8


def compare(threads: list[list[dict[str, Any]]], model: str) -> None:
    reduced, naive = (search(Litmus(threads, words=8), model, explorer) for explorer in ("dpor", "dfs"))
    assert naive.finished
    assert set(reduced.outcomes) == set(naive.outcomes)
    assert reduced.executions == naive.executions


def test_full_barriers_in_either_order() -> None:
    """Which of the two smp_mb() came first decides whether the load may still miss the store of 2."""
    def store(addr: int, value: int, order: str = "relaxed") -> dict[str, Any]:
        return {"op": "store", "addr": addr, "a": value, "order": order}

    fence = {"op": "fence", "fence": "mb"}
    load = {"op": "load", "reg": 0, "addr": 1}
    for model in MODELS:
        compare([[store(0, 1), fence, load], [store(1, 2), store(0, 3, "release"), fence, store(1, 4)]], model)
        compare([[store(0, 1), load, fence, {**load, "reg": 1}], [store(1, 2), store(0, 3, "release"), fence]], model)


def test_a_heavy_barrier_before_what_its_cpu_learns() -> None:
    """The first thread learns of the store of word 0, and hands that on in a barrier that the last one wants of it. If
    the barrier comes before, the last thread can still miss the store when it has seen the flag."""
    full = {"op": "fence", "fence": "mb_heavy"}
    writer = [{"op": "store", "addr": 0, "a": 1}, {"op": "fence", "fence": "wmb"}, {"op": "store", "addr": 1, "a": 1}]
    flag, data = {"op": "load", "reg": 0, "addr": 1}, {"op": "load", "reg": 1, "addr": 0}
    learns: list[list[list[dict[str, Any]]]] = [
        [[{"op": "await_eq", "reg": 1, "addr": 1, "a": 1}], writer, [full, flag, data]],
        [[{"op": "await_eq", "reg": 1, "addr": 1, "a": 1}, {"op": "store", "addr": 2, "a": 1}], writer,
         [full, flag, data]],
        [[full], [flag, data], writer],
        [writer, [flag, data], [full]],
    ]
    for threads in learns:
        me = next(i for i, code in enumerate(threads) if flag in code)
        reduced, naive = (search(Litmus(threads, words=8, observe=[(me, 0), (me, 1)]), "power", explorer)
                          for explorer in ("dpor", "dfs"))
        assert set(reduced.outcomes) == set(naive.outcomes) == {0x000, 0x001, 0x100, 0x101}


def test_a_light_barrier_whose_store_is_visible_already() -> None:
    """Both barriers may come before the light one, and the store of 2 after the store of 3. In a schedule in which that
    store is visible early nothing keeps the barriers waiting; in the one wanted something would."""
    light, full = {"op": "fence", "fence": "mb_light"}, {"op": "fence", "fence": "mb_heavy"}
    threads: list[list[dict[str, Any]]] = [
        [{"op": "store", "addr": 1, "a": 2}, {"op": "load", "reg": 1, "addr": 0, "order": "acquire"}, light],
        [{"op": "store", "addr": 2, "a": 1, "order": "release"}, full, full,
         {"op": "store", "addr": 1, "a": 3, "order": "release"}]]
    for model in MODELS[1:]:
        reduced, naive = (search(Litmus(threads, words=8, observe=[("word", 1)]), model, explorer)
                          for explorer in ("dpor", "dfs"))
        assert set(reduced.outcomes) == set(naive.outcomes) == {2, 3}, model


def test_a_loop_that_reads_an_older_value_ends() -> None:
    """Nothing makes the reader see the flag; it is given the older value 16 times at most after it was overwritten."""
    reads: list[dict[str, Any]] = [
        insn for _ in range(20) for insn in (
            {"op": "load", "reg": 1, "addr": 0}, {"op": "add", "reg": 0, "a": ("reg", 1)})]
    what = Litmus([
        [{"op": "store", "addr": 0, "a": 1}, {"op": "fence", "fence": "wmb"}, {"op": "store", "addr": 1, "a": 1}],
        [{"op": "load", "reg": 2, "addr": 1}, {"op": "jump_unless", "reg": 2, "to": 2 + len(reads)}, *reads],
    ], words=8, observe=[(1, 2), (1, 0)])
    found = search(what, "power", "dpor")
    assert found.finished
    # Register 2: the flag was seen, so the store was visible. Register 0: how many of the 20 loads saw it.
    assert {value & 0xff for value in found.outcomes if value >> 8 == 1} == set(range(4, 21))


def test_an_interrupt_before_a_store() -> None:
    """The handler may run before the first thread stores: then its store is the second one of the word."""
    store = {"op": "store", "addr": 1, "a": 3}
    load = {"op": "load", "reg": 1, "addr": 1}
    ipi = {"op": "ipi", "reg": 15, "a": 0}
    for model in MODELS:
        compare([[store], [{**store, "a": 1}], [load, ipi, {**load, "reg": 2}]], model)
        other = [{"op": "irq_disable"}, load, {"op": "irq_enable"}, ipi, {**load, "reg": 2}]
        compare([[{**ipi, "a": 1}, store], other], model)
