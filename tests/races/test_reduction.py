# SPDX-License-Identifier: GPL-2.0-only
"""The reduced search against the naive one, on small random programs."""
from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from check_random import asymmetric, program, scene

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


def test_an_interrupt_before_a_store() -> None:
    """The handler may run before the first thread stores: then its store is the second one of the word."""
    store = {"op": "store", "addr": 1, "a": 3}
    load = {"op": "load", "reg": 1, "addr": 1}
    ipi = {"op": "ipi", "reg": 15, "a": 0}
    for model in MODELS:
        compare([[store], [{**store, "a": 1}], [load, ipi, {**load, "reg": 2}]], model)
        other = [{"op": "irq_disable"}, load, {"op": "irq_enable"}, ipi, {**load, "reg": 2}]
        compare([[{**ipi, "a": 1}, store], other], model)
