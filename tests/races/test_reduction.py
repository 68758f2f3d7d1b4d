# SPDX-License-Identifier: GPL-2.0-only
"""The reduced search against the naive one, on small random programs."""
from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from check_random import asymmetric, program

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus

MODELS = ("sc", "tso", "pso", "power")
LIMIT = 60_000          # naive searches longer than this are left to the others
BATCHES, BATCH = 8, 12  # programs; every one under every memory model


def search(what: Litmus, model: str, explorer: str) -> Exploration:
    found = Exploration(what, memory_model=model, explorer=explorer, graphs=True)
    found.run(LIMIT, stop_at_violation=False)
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
