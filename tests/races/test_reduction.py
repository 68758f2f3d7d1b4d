# SPDX-License-Identifier: GPL-2.0-only
"""The reduced search against the naive one, on small random programs."""
from __future__ import annotations

import random

import pytest
from check_random import program

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


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_dpor_finds_what_naive_search_finds(batch: int, model: str) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        what = Litmus(program(random.Random(seed)), words=16)
        reduced, naive = search(what, model, "dpor"), search(what, model, "dfs")
        if not naive.finished:
            continue
        assert reduced.finished
        assert set(reduced.outcomes) == set(naive.outcomes), seed
        assert kinds(reduced) == kinds(naive), seed
        assert reduced.executions == naive.executions, seed      # of different happens-before graphs
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
