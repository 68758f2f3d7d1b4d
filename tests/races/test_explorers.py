# SPDX-License-Identifier: GPL-2.0-only
"""Ways through the schedules: random, PCT, bounds of preemptions, replay, parts."""
from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import check_programs as p
import pytest
from check_programs import L, R, S, add, link, op

from pykmm_ext.engine.check import Exploration
from pykmm_ext.engine.litmus import Litmus


def explore(program: Litmus, **options: Any) -> Exploration:
    search = Exploration(program, **options)
    search.run(stop_at_violation=False)
    return search


@pytest.mark.parametrize("explorer", ["random", "pct"])
def test_same_seed_same_executions(explorer: str) -> None:
    def runs(seed: int) -> list[tuple[int, ...]]:
        search = Exploration(Litmus(p.fib2(3), initial=(1, 1)), explorer=explorer, seed=seed, memory_model="tso")
        found = []
        for _ in range(20):
            search.run(1)
            found.append(search.schedule)
        return found

    assert runs(7) == runs(7) != runs(8)


@pytest.mark.parametrize("explorer", ["random", "pct"])
def test_sampling_finds_what_there_is(explorer: str) -> None:
    program = Litmus(p.increments(3))
    search = Exploration(program, explorer=explorer)
    search.run(2000)
    assert set(search.outcomes) == set(explore(program).outcomes)
    assert not search.complete


def test_bounds_of_preemptions() -> None:
    # Two threads of n steps each: with no preemption one runs after the other; each preemption is a cut in one of them.
    two = Litmus([[p.RMW(0, 0, "add", 1) for _ in range(3)], [p.RMW(0, 0, "add", 1) for _ in range(3)]])
    counts = [explore(two, explorer="dfs", preemptions=bound).executions for bound in (0, 1, 2)]
    assert counts == [2, 2 + 2 * 2, 2 + 2 * 2 + 2 * 4]
    assert explore(two, explorer="dfs").executions == 20
    bounded = explore(two, explorer="dfs", preemptions=0)
    assert bounded.bounded
    assert not bounded.complete


def starving(n: int) -> Litmus:
    """A bug of depth 3: each thread in turn must wait between two loads while the other does all its n additions."""
    return Litmus([[L(0, 0), L(1, 0), *[p.RMW(7, 1, "add", 1)] * n], [*[p.RMW(7, 0, "add", 1)] * n, L(0, 1), L(1, 1)]],
                  observe=[(0, 0), (0, 1), (1, 0), (1, 1)])


def test_pct_finds_what_random_does_not() -> None:
    n = 8
    bug = n << 16 | n
    found = {}
    for explorer in ("random", "pct"):
        search = Exploration(starving(n), explorer=explorer, depth=3)
        search.run(10_000)
        found[explorer] = search.outcomes.get(bug, 0)
    # At least 1 in 2 * 20 * 20 executions by the guarantee of PCT; 1 in 2 ** 16 by chance.
    assert found["pct"] >= 5 > found["random"]


def test_replay() -> None:
    program = Litmus(p.abba())
    kind, message, schedule, _, _ = explore(program).violations[0]
    again = Exploration(program, explorer="replay")
    steps = again.replay(schedule)
    assert again.last == (kind, message)
    assert not again.diverged
    assert [step["agent"] for step in steps] == [entry & 0xff for entry in schedule]


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_parts_make_the_whole(depth: int) -> None:
    whole = explore(Litmus(p.pfzap(4)), expand=depth)
    cutter = Exploration(Litmus(p.pfzap(4)))
    parts = cutter.split(depth)
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        results = list(pool.map(p.pfzap_part, parts))
    assert cutter.executions + sum(r[0] for r in results) == whole.executions
    total: dict[int, int] = dict(cutter.outcomes)
    for _, outcomes, _ in results:
        for value, count in outcomes.items():
            total[value] = total.get(value, 0) + count
    assert total == whole.outcomes


def test_livelock() -> None:
    forever = Litmus([link("again", L(0, 0), op("jump_unless", reg=0, to="again"))])
    search = Exploration(forever, max_steps=200)
    search.run()
    assert search.violations[0][0] == "livelock"


def test_limits() -> None:
    search = Exploration(Litmus(p.increments(5)))
    search.run(10)
    assert search.executions == 10
    assert not search.complete
    search.run()
    assert search.executions == 120
    assert search.complete


@pytest.mark.parametrize(("options", "message"), [
    ({"memory_model": "alpha"}, "known: sc"), ({"explorer": "bfs"}, "known: dpor"),
    ({"weaken": ("lfence",)}, "known: mb"),
    ({"explorer": "random", "preemptions": 1}, "preemptions"), ({"depth": 1}, "depth"),
])
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exploration(Litmus([[S(0, 1)], [L(0, 0), add(0, R(0))]]), **options)
